//! The SOURCE: `kvmi:/path/to/socket[,wait=SECONDS][,mode=OCTAL]`.

use std::path::PathBuf;
use std::time::Duration;

use vmtree_api::{Error, ErrorKind, Result, Source};

const OP: &str = "open kvmi";
const KNOWN: &[&str] = &["wait", "mode"];
/// A path of a socket has at most so many bytes (unix(7), with the byte that ends it).
const PATH: usize = 107;

/// It, taken apart.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// The socket that QEMU connects to: it is made for that, and removed afterwards.
    pub path: PathBuf,
    /// How long QEMU may take to connect.
    pub wait: Duration,
    /// The rights of the socket.
    pub mode: u32,
}

fn refuse<T>(kind: ErrorKind, why: String) -> Result<T> {
    Err(Error::new(kind, OP, why))
}

impl Options {
    /// Takes a source apart.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] or [`ErrorKind::OutOfRange`], naming what is wrong and what it takes.
    pub fn take(mut source: Source) -> Result<Self> {
        let path = PathBuf::from(&source.target);
        if source.target.is_empty() {
            let why = "name the socket that QEMU connects to, as kvmi:/tmp/introspector";
            return refuse(ErrorKind::Invalid, why.to_owned());
        }
        if source.target.len() > PATH {
            return refuse(ErrorKind::Invalid, format!("a socket's path has at most {PATH} bytes"));
        }
        let wait = source.take_size("wait", 60)?;
        if !(1..=86400).contains(&wait) {
            return refuse(ErrorKind::OutOfRange, format!("wait={wait} won't do: it is 1 to 86400 seconds"));
        }
        let mode = source.take("mode").unwrap_or_else(|| "600".to_owned());
        let bits = u32::from_str_radix(&mode, 8).ok().filter(|bits| *bits <= 0o777 && !mode.is_empty());
        let Some(mode) = bits else {
            let short: String = mode.chars().take(16).collect();
            return refuse(ErrorKind::Invalid, format!("mode={short} won't do: it is octal, as mode=660"));
        };
        source.finish(KNOWN)?;
        Ok(Self { path, wait: Duration::from_secs(wait), mode })
    }

    /// What a QEMU with KVM-VMI is started with to connect here.
    #[must_use]
    pub fn qemu(&self) -> String {
        let path = self.path.display().to_string().replace(',', ",,");
        format!(
            "-chardev socket,path={path},id=kvmi,reconnect=1 -object introspection,id=vmtree,chardev=kvmi"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(target: &str, options: &[(&str, &str)]) -> Result<Options> {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Options::take(Source::new("kvmi", target, options))
    }

    #[test]
    fn a_source_is_a_path_and_what_goes_with_it() {
        let options = take("/tmp/a,b", &[("wait", "5"), ("mode", "660")]).unwrap();
        assert_eq!((options.wait, options.mode), (Duration::from_secs(5), 0o660));
        assert!(options.qemu().contains("path=/tmp/a,,b,"), "{}", options.qemu());
        assert_eq!(take("/tmp/a", &[]).unwrap().mode, 0o600);
    }

    #[test]
    fn bad_sources_are_refused_by_name() {
        for (target, key, value) in [
            ("", "wait", "1"),
            ("/x", "wait", "0"),
            ("/x", "wait", "y"),
            ("/x", "mode", "888"),
            ("/x", "mode", ""),
            ("/x", "a", ""),
        ] {
            let error = take(target, &[(key, value)]).unwrap_err().to_string();
            assert!(target.is_empty() || error.contains(key), "{error}");
        }
        assert!(take(&"x".repeat(108), &[]).is_err());
    }
}
