//! The options of a mount, as several `-o LIST` give them.

use std::time::Duration;

use vmtree_api::{Error, ErrorKind, Result, number};

use super::{explain, invalid, number_of, quoted};

const OP: &str = "read mount options";

/// Every option of ours, as an error shows them.
const KNOWN: &str = "ro, rw, allow_other, uid=, gid=, mode=, holes=zero|eio, cache=SIZE, cache_ms=N, \
                     reply_timeout=SECONDS, threads=N";

/// What mount(8), fstab and systemd add by themselves and what has no meaning here.
const IGNORED: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "noexec",
    "async",
    "sync",
    "dirsync",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "diratime",
    "nodiratime",
    "nosymfollow",
    "silent",
    "loud",
];

/// The keys of the same origin that carry a value.
const IGNORED_KEYS: &[&str] = &["comment", "uhelper", "helper", "user"];

/// What reads of memory give where there is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Holes {
    /// Zeros.
    Zero,
    /// An input/output error.
    Error,
}

/// The options of a mount.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// Nothing of the VM can be changed.
    pub ro: bool,
    /// Users other than the one who mounts may look at the files, as far as their modes let them.
    pub allow_other: bool,
    /// The owner of all files; `None`: whoever mounts.
    pub uid: Option<u32>,
    /// The group of all files; `None`: that of whoever mounts.
    pub gid: Option<u32>,
    /// The permission bits that replace 0600 on files, at most 0777.
    pub mode: Option<u32>,
    /// What reads of holes give.
    pub holes: Holes,
    /// The room of the page cache in bytes.
    pub cache_bytes: u64,
    /// How old a copy of memory may be, in milliseconds.
    pub cache_ms: u64,
    /// How long a held event waits for its answer: more than 0, at most an hour.
    pub reply_timeout: Duration,
    /// How many threads answer the kernel: 1 to 64.
    pub threads: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ro: false,
            allow_other: false,
            uid: None,
            gid: None,
            mode: None,
            holes: Holes::Zero,
            cache_bytes: 64 << 20,
            cache_ms: 0,
            reply_timeout: Duration::from_secs(5),
            threads: 4,
        }
    }
}

/// Reads option lists, each separated by commas, in the order given. Of several values for one option the last counts.
///
/// # Errors
/// [`ErrorKind::Invalid`] naming an option that is unknown or has a bad value, [`ErrorKind::OutOfRange`] for
/// a number outside its limits.
pub fn parse<'a>(lists: impl IntoIterator<Item = &'a str>) -> Result<Options> {
    let mut options = Options::default();
    // mount(8) lets empty items pass, as in "-o ro,,nosuid".
    for item in lists.into_iter().flat_map(|list| list.split(',')).filter(|item| !item.is_empty()) {
        match item.split_once('=') {
            None => flag(&mut options, item)?,
            Some((key, value)) => pair(&mut options, item, key, value)?,
        }
    }
    Ok(options)
}

fn flag(options: &mut Options, item: &str) -> Result<()> {
    match item {
        "ro" => options.ro = true,
        "rw" => options.ro = false,
        "allow_other" => options.allow_other = true,
        "remount" => {
            return Err(invalid(OP, "remount is not supported: unmount and mount again".into()));
        }
        "uid" | "gid" | "mode" | "holes" | "cache" | "cache_ms" | "reply_timeout" | "threads" => {
            return Err(invalid(OP, format!("{item} needs a value: write {item}=VALUE")));
        }
        _ if IGNORED.contains(&item) || is_extension(item) => {}
        _ => return Err(unknown(item)),
    }
    Ok(())
}

fn pair(options: &mut Options, item: &str, key: &str, value: &str) -> Result<()> {
    match key {
        "uid" => options.uid = Some(id(key, value)?),
        "gid" => options.gid = Some(id(key, value)?),
        "mode" => options.mode = Some(mode(value)?),
        "holes" => options.holes = holes(value)?,
        "cache" => {
            options.cache_bytes =
                number::parse_size(value).map_err(|error| explain(OP, key, value, &error))?;
        }
        "cache_ms" => options.cache_ms = number_of(OP, key, value, 64)?,
        "reply_timeout" => options.reply_timeout = seconds(value)?,
        "threads" => options.threads = threads(value)?,
        "ro" | "rw" | "allow_other" => {
            return Err(invalid(OP, format!("{key} takes no value, and {} gives one", quoted(item))));
        }
        _ if IGNORED_KEYS.contains(&key) || is_extension(key) => {}
        _ => return Err(unknown(key)),
    }
    Ok(())
}

/// Options of mount(8)'s name spaces for other programs, such as x-systemd.automount.
fn is_extension(key: &str) -> bool {
    key.starts_with("x-") || key.starts_with("X-")
}

fn unknown(key: &str) -> Error {
    invalid(OP, format!("there is no option {}; there are: {KNOWN}", quoted(key)))
}

fn out_of_range(key: &str, value: &str, limits: &str) -> Error {
    Error::new(ErrorKind::OutOfRange, OP, format!("{key}: {} is outside {limits}", quoted(value)))
}

fn id(key: &str, value: &str) -> Result<u32> {
    match number_of(OP, key, value, 32)? as u32 {
        // chown(2) takes it for "leave it alone", so no file can have it.
        u32::MAX => Err(out_of_range(key, value, "0 to 4294967294")),
        id => Ok(id),
    }
}

fn mode(value: &str) -> Result<u32> {
    let digits = value.strip_prefix("0o").unwrap_or(value);
    if digits.is_empty() || !digits.bytes().all(|digit| matches!(digit, b'0'..=b'7')) {
        return Err(invalid(OP, format!("mode: {} is no octal number: write mode=0640", quoted(value))));
    }
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(out_of_range("mode", value, "0 to 0777")),
    }
}

fn holes(value: &str) -> Result<Holes> {
    match value {
        "zero" => Ok(Holes::Zero),
        "eio" => Ok(Holes::Error),
        _ => Err(invalid(OP, format!("holes: {} is neither zero nor eio", quoted(value)))),
    }
}

fn threads(value: &str) -> Result<u32> {
    match number_of(OP, "threads", value, 64)? {
        threads @ 1..=64 => Ok(threads as u32),
        _ => Err(out_of_range("threads", value, "1 to 64")),
    }
}

/// Seconds, with a decimal fraction of up to nine digits.
fn seconds(value: &str) -> Result<Duration> {
    const KEY: &str = "reply_timeout";
    let time = match value.split_once('.') {
        None => Duration::from_secs(number_of(OP, KEY, value, 64)?),
        Some((whole, fraction)) => {
            let digits = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
            if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
                let why = format!("{KEY}: {} is no time in seconds: write 5 or 0.5", quoted(value));
                return Err(invalid(OP, why));
            }
            let nanos = number_of(OP, KEY, &format!("{fraction:0<9}"), 32)?;
            Duration::new(number_of(OP, KEY, whole, 64)?, nanos as u32)
        }
    };
    match time {
        time if !time.is_zero() && time <= Duration::from_secs(3600) => Ok(time),
        _ => Err(out_of_range(KEY, value, "more than 0 up to 3600 seconds")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(list: &str) -> Options {
        parse([list]).unwrap()
    }

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(parse([]).unwrap(), Options::default());
        assert_eq!(one(""), Options::default());
        let options = Options::default();
        assert_eq!((options.cache_bytes, options.threads), (64 << 20, 4));
        assert_eq!(options.reply_timeout, Duration::from_secs(5));
    }

    #[test]
    fn reads_every_option() {
        let lists = [
            "ro,allow_other,uid=1000,gid=0x64,mode=0640",
            "holes=eio,cache=1G,cache_ms=10",
            "reply_timeout=0.5,threads=64",
        ];
        let expected = Options {
            ro: true,
            allow_other: true,
            uid: Some(1000),
            gid: Some(100),
            mode: Some(0o640),
            holes: Holes::Error,
            cache_bytes: 1 << 30,
            cache_ms: 10,
            reply_timeout: Duration::from_millis(500),
            threads: 64,
        };
        assert_eq!(parse(lists).unwrap(), expected);
    }

    #[test]
    fn the_last_one_counts() {
        assert!(!one("ro,rw").ro);
        assert!(parse(["rw", "ro"]).unwrap().ro);
        assert_eq!(one("threads=1,threads=2").threads, 2);
    }

    #[test]
    fn what_mount_adds_is_ignored() {
        let list = IGNORED.join(",")
            + ",x-systemd.automount,X-mount.mkdir=0755,x-gvfs-show,comment=a b,uhelper=u,helper=h,user=u";
        assert_eq!(one(&list), Options::default());
    }

    #[test]
    fn refuses_unknown_options_by_name() {
        for (list, named) in [
            ("ro,hidden", "'hidden'"),
            ("roo=1", "'roo'"),
            ("=1", "''"),
            ("remount,ro", "unmount and mount again"),
            ("ro=1", "'ro=1'"),
            ("uid", "uid=VALUE"),
            (" ro", "' ro'"),
        ] {
            let error = one_error(list);
            assert!(error.kind() == ErrorKind::Invalid && error.why().contains(named), "{error}");
        }
        assert!(one_error("x").why().contains("reply_timeout=SECONDS"));
    }

    #[test]
    fn a_dirty_size_is_told_clean() {
        let error = one_error("cache=a\0'\nm");
        assert_eq!(error.why(), "cache: 'a\\0'\\nm' is no number: write 0x2a, 42 or 0b101010");
    }

    fn one_error(list: &str) -> Error {
        parse([list]).unwrap_err()
    }

    #[test]
    fn refuses_bad_values() {
        for list in [
            "uid=root",
            "gid=",
            "mode=8",
            "mode=",
            "mode=+7",
            "mode=0x1",
            "holes=yes",
            "cache=big",
            "cache_ms=1.5",
            "threads=two",
            "reply_timeout=",
            "reply_timeout=.5",
            "reply_timeout=5.",
            "reply_timeout=1.0000000001",
            "reply_timeout=5s",
            "reply_timeout=-1",
            "reply_timeout=+1.5",
            "reply_timeout=0x1.5",
        ] {
            assert_eq!(one_error(list).kind(), ErrorKind::Invalid, "{list}");
        }
        for list in [
            "uid=4294967295",
            "gid=4294967296",
            "mode=1000",
            "mode=77777777777777",
            "cache=99999999999T",
            "threads=0",
            "threads=65",
            "reply_timeout=0",
            "reply_timeout=0.0",
            "reply_timeout=3601",
            "reply_timeout=3600.1",
            "reply_timeout=99999999999999999999.5",
        ] {
            assert_eq!(one_error(list).kind(), ErrorKind::OutOfRange, "{list}");
        }
    }

    proptest! {
        #[test]
        fn values_read_back(
            ids in any::<(u16, u16)>(), mode in 0u32..=0o777, cache_bytes: u64, cache_ms: u64,
            secs in 0u64..3600, nanos in 1u32..1_000_000_000, threads in 1u32..=64, ro: bool, eio: bool,
        ) {
            let (uid, gid) = ids;
            let text = format!(
                "{},uid={uid},gid={gid},mode={mode:o},holes={},cache={cache_bytes},cache_ms={cache_ms},\
                 reply_timeout={secs}.{nanos:09},threads={threads}",
                if ro { "ro" } else { "rw" }, if eio { "eio" } else { "zero" },
            );
            let expected = Options {
                ro, allow_other: false, uid: Some(uid.into()), gid: Some(gid.into()), mode: Some(mode),
                holes: if eio { Holes::Error } else { Holes::Zero },
                cache_bytes, cache_ms, reply_timeout: Duration::new(secs, nanos), threads,
            };
            prop_assert_eq!(one(&text), expected);
        }

        #[test]
        fn never_panics(list: String, near in "((ro|uid|mode|cache|reply_timeout|threads)=?[0-9.xMT]{0,24},){0,4}") {
            let _ = parse([list.as_str(), near.as_str()]);
            let _ = parse([near.as_str()]);
        }
    }
}
