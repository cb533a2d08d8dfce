//! The SOURCE of a mount: `DRIVER:TARGET[,key=value...]`.

use vmtree_api::{Result, Source};

use super::{invalid, is_key, quoted, setting};

const OP: &str = "read SOURCE";

/// The keys that stand in TARGET itself, because they say which VM is meant: `qemu:name=debian`, `xen:domid=3`.
const TARGET_KEYS: [&str; 3] = ["name", "pid", "domid"];

/// Reads a SOURCE.
///
/// TARGET is all up to the first comma. There is one exception, so that `emu:ram=256M,vcpus=4` reads as it looks:
/// the first part is an option, and TARGET is empty, if it looks like `key=value` and the key is none of `name`, `pid`
/// and `domid`; with the driver `emu`, which has no targets, it always is. A file whose name looks like that is
/// written `./key=value`. `\,` is a literal comma and `\\` a literal backslash, in TARGET and in values.
///
/// # Errors
/// [`vmtree_api::ErrorKind::Invalid`] naming the part that is wrong.
pub fn parse(text: &str) -> Result<Source> {
    let Some((driver, rest)) = text.split_once(':') else {
        let why = format!("{} has no colon: write DRIVER:TARGET, as qemu:/run/vm.qmp or emu:", quoted(text));
        return Err(invalid(OP, why));
    };
    if !is_key(driver) {
        let why = format!("{} is no driver's name: write DRIVER:TARGET, as qemu:/run/vm.qmp", quoted(driver));
        return Err(invalid(OP, why));
    }
    let mut parts = split(rest);
    let target = if is_option(driver, &parts[0]) { String::new() } else { parts.remove(0) };
    Ok(Source::new(driver, &target, options(&parts)?))
}

/// Whether the first part after the colon is an option rather than TARGET. The rule is told at [`parse`].
fn is_option(driver: &str, part: &str) -> bool {
    if driver == "emu" {
        return !part.is_empty();
    }
    part.split_once('=').is_some_and(|(key, _)| is_key(key) && !TARGET_KEYS.contains(&key))
}

/// The parts between commas, escapes undone; at least one.
fn split(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            ',' => parts.push(std::mem::take(&mut part)),
            '\\' => part.push(chars.next_if(|next| matches!(next, ',' | '\\')).unwrap_or('\\')),
            _ => part.push(char),
        }
    }
    parts.push(part);
    parts
}

fn options(parts: &[String]) -> Result<Vec<(String, String)>> {
    let mut options: Vec<(String, String)> = Vec::with_capacity(parts.len());
    for part in parts {
        if part.is_empty() {
            return Err(invalid(OP, "there is nothing between two commas: write ,key=value".into()));
        }
        let (key, value) = setting(OP, part, "key=value, and a comma that belongs to TARGET as \\,")?;
        if !is_key(key) {
            let why = format!("{} is no option's name: write key=value in lower case", quoted(key));
            return Err(invalid(OP, why));
        }
        if options.iter().any(|(known, _)| known == key) {
            let why = format!("{} sets an option a second time: name each once", quoted(part));
            return Err(invalid(OP, why));
        }
        options.push((key.to_owned(), value.to_owned()));
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source(driver: &str, target: &str, options: &[(&str, &str)]) -> Source {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Source::new(driver, target, options)
    }

    #[test]
    fn reads_every_form_of_the_contract() {
        let cases = [
            ("emu:", source("emu", "", &[])),
            ("emu:ram=256M,vcpus=4", source("emu", "", &[("ram", "256M"), ("vcpus", "4")])),
            ("emu:,ram=1M", source("emu", "", &[("ram", "1M")])),
            ("emu:name=x", source("emu", "", &[("name", "x")])),
            ("qemu:/run/vm.qmp", source("qemu", "/run/vm.qmp", &[])),
            ("qemu:/run/vm.qmp,gdb=/run/gdb", source("qemu", "/run/vm.qmp", &[("gdb", "/run/gdb")])),
            ("qemu:name=debian", source("qemu", "name=debian", &[])),
            ("qemu:pid=4242,a=b", source("qemu", "pid=4242", &[("a", "b")])),
            ("xen:domid=3", source("xen", "domid=3", &[])),
            ("xen:name=a=b", source("xen", "name=a=b", &[])),
            ("dump:format=raw", source("dump", "", &[("format", "raw")])),
            ("dump:./format=raw", source("dump", "./format=raw", &[])),
            ("dump:a\\,b.raw,c=\\,", source("dump", "a,b.raw", &[("c", ",")])),
            ("dump:a\\\\,c=\\d", source("dump", "a\\", &[("c", "\\d")])),
            ("memflow:qemu:vm", source("memflow", "qemu:vm", &[])),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn refuses_bad_parts_by_name() {
        let cases = [
            ("/run/vm.qmp", "DRIVER:TARGET"),
            ("", "DRIVER:TARGET"),
            (":x", "driver"),
            ("Qemu:x", "'Qemu'"),
            ("emu:guest.elf", "'guest.elf'"),
            ("emu:ram=1,,vcpus=2", "two commas"),
            ("emu:ram=1,", "two commas"),
            ("qemu:a,b", "'b'"),
            ("qemu:a,=b", "'=b'"),
            ("qemu:a,b=1,b=1", "'b=1'"),
            ("qemu:a,B c=1", "'B c'"),
        ];
        for (text, named) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.why().contains(named), "{text}: {error}");
        }
    }

    fn escape(text: &str) -> String {
        text.replace('\\', "\\\\").replace(',', "\\,")
    }

    proptest! {
        #[test]
        fn reads_back_what_was_put_together(
            driver in "[a-z][a-z0-9_]{0,8}",
            target in "[^=]*",
            options in prop::collection::btree_map("[a-z][a-z0-9_]{0,3}", any::<String>(), 0..5),
        ) {
            let target = if driver == "emu" { String::new() } else { target };
            let mut text = format!("{driver}:{}", escape(&target));
            for (key, value) in &options {
                text += &format!(",{key}={}", escape(value));
            }
            let options = options.into_iter().collect();
            prop_assert_eq!(parse(&text).unwrap(), Source::new(&driver, &target, options));
        }

        #[test]
        fn never_panics(text: String, rest in "[a-z:,=\\\\]{0,20}") {
            let _ = parse(&text);
            let _ = parse(&rest);
        }
    }
}
