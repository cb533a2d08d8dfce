//! Calls to Xen that undo something, or let a vCPU go: what they leave undone would stay so for ever.

use std::io::{Error, Result};

use vmtree_api::ErrorKind;

use crate::error::{is, number};

/// How often one is made.
const TIMES: u32 = 3;

/// Makes a call again that failed by what may pass, as a lack of memory for its arguments does.
///
/// # Errors
/// Those of the last.
pub fn again<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..TIMES {
        match call() {
            Err(error) if may_pass(&error) => log::debug!("Xen is asked again: {error}"),
            other => return other,
        }
    }
    call()
}

/// The same for what takes several calls, of which none changes anything that the next try would not.
///
/// # Errors
/// Those of the last.
pub fn again_whole<T>(mut act: impl FnMut() -> vmtree_api::Result<T>) -> vmtree_api::Result<T> {
    for _ in 1..TIMES {
        match act() {
            Err(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::NoSpace) => {
                log::debug!("Xen is asked again: {error}");
            }
            other => return other,
        }
    }
    act()
}

/// Whether it is no answer to what was asked.
fn may_pass(error: &Error) -> bool {
    use number::*;
    let answers = [EPERM, EACCES, ENOENT, ESRCH, ENODEV, EBUSY, EEXIST, EINVAL, EOPNOTSUPP];
    !answers.iter().any(|answer| is(error, *answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again_and_not_for_ever() {
        let tries = |number, fails| {
            let mut made = 0;
            let result = again(|| {
                made += 1;
                if made > fails { Ok(()) } else { Err(Error::from_raw_os_error(number)) }
            });
            (made, result.is_ok())
        };
        assert_eq!((tries(number::ENOMEM, 2), tries(number::ENOMEM, 3)), ((3, true), (3, false)));
        assert_eq!((tries(number::EBUSY, 1), tries(number::EBUSY, 0)), ((1, false), (1, true)));
    }
}
