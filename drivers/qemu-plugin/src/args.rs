//! The arguments after the file's name, and the version that QEMU prints.

/// The path of `socket=PATH`, the one argument there is.
///
/// # Errors
/// A sentence with the cure.
pub fn socket(args: &[String]) -> Result<&str, String> {
    const USAGE: &str = "use -plugin libvmtree_qemu.so,socket=PATH";
    let mut socket = None;
    for arg in args {
        match arg.split_once('=') {
            Some(("socket", path)) if !path.is_empty() => socket = Some(path),
            _ => {
                return Err(format!(
                    "there is no argument '{}': {USAGE}",
                    arg.chars().take(60).collect::<String>()
                ));
            }
        }
    }
    socket.ok_or_else(|| format!("no socket is named: {USAGE}"))
}

/// Major and minor of what `qemu-system-x86_64 --version` prints.
pub fn release(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("version ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_named_once_and_nothing_else() {
        let args = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(socket(&args(&["socket=/run/a.sock"])), Ok("/run/a.sock"));
        for (wrong, says) in
            [(&[][..], "no socket"), (&["socket="], "'socket='"), (&["sokcet=/x"], "'sokcet=/x'")]
        {
            let why = socket(&args(wrong)).unwrap_err();
            assert!(why.contains(says) && why.contains("socket=PATH"), "{why}");
        }
    }

    #[test]
    fn releases_are_read_as_qemu_prints_them() {
        assert_eq!(release("QEMU emulator version 11.1.2 (Debian 1:11.1.2+ds-3)\nCopyright"), Some((11, 1)));
        assert_eq!(release("QEMU emulator version 10.2.50 (v10.2.0-1-g0)"), Some((10, 2)));
        assert_eq!(release("no QEMU"), None);
    }
}
