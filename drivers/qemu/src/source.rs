//! The three forms of a target: `/path/to.qmp`, `name=debian`, `pid=4242`.

use std::path::PathBuf;

use vmtree_api::{Error, ErrorKind, Result};

const OP: &str = "read SOURCE";
const FORMS: &str = "write qemu:/path/to/qmp.sock, qemu:name=NAME or qemu:pid=PID";

/// Which QEMU is meant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// The one that serves QMP at this socket.
    Socket(PathBuf),
    /// The one started with this `-name`.
    Name(String),
    /// This process.
    Pid(u32),
}

impl Target {
    /// Reads the text between `qemu:` and the first comma. A socket whose path begins with `name=` or `pid=` is
    /// written with `./` before it.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an empty target, an empty name, and a pid that is no number or 0.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |why: String| Error::new(ErrorKind::Invalid, OP, format!("{why}; {FORMS}"));
        if text.is_empty() {
            return Err(invalid("'qemu:' names no VM".to_owned()));
        }
        if text.contains('\0') {
            return Err(invalid("a target has no NUL byte".to_owned()));
        }
        if let Some(name) = text.strip_prefix("name=") {
            return match name {
                "" => Err(invalid("'name=' has no name".to_owned())),
                name => Ok(Self::Name(name.to_owned())),
            };
        }
        let Some(pid) = text.strip_prefix("pid=") else {
            return Ok(Self::Socket(PathBuf::from(text)));
        };
        match pid.parse::<i32>() {
            Ok(number) if number > 0 && pid.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok(Self::Pid(number.unsigned_abs()))
            }
            _ => Err(invalid(format!("'pid={pid}' is no process id"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_each_form() {
        assert_eq!(Target::parse("/run/vm.qmp").unwrap(), Target::Socket("/run/vm.qmp".into()));
        assert_eq!(Target::parse("name=debian").unwrap(), Target::Name("debian".to_owned()));
        assert_eq!(Target::parse("pid=4242").unwrap(), Target::Pid(4242));
        assert_eq!(Target::parse("./pid=1").unwrap(), Target::Socket("./pid=1".into()));
    }

    #[test]
    fn refuses_half_values_with_the_forms() {
        for text in ["", "name=", "pid=", "pid=0", "pid=-1", "pid=+1", "pid=1x", "pid=4294967296", "a\0b"] {
            let error = Target::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
            assert!(error.to_string().contains("qemu:pid=PID"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = Target::parse(&text);
        }
    }
}
