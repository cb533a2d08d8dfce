//! What is written to `ctl` and `vcpu/N/ctl`.

use vmtree_api::{Error, ErrorKind, Result};

use super::{invalid, number_of, quoted, words};

const OP: &str = "read control text";

/// The most instructions of one `step`.
const MAX_STEPS: u64 = 1 << 63;

/// A verb of `ctl`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ctl {
    /// Stop all vCPUs.
    Pause,
    /// End this mount's own pause.
    Resume {
        /// Let the VM run whoever paused it.
        force: bool,
    },
    /// Drop cached copies of guest memory.
    Flush,
}

/// Reads the verbs of `ctl`, in the order written; at least one.
///
/// # Errors
/// [`ErrorKind::Invalid`] naming a word that is no verb, or for a text without any.
pub fn parse_ctl(text: &str) -> Result<Vec<Ctl>> {
    const VERBS: &str = "write pause, resume, resume force or flush";
    let mut words = words(text).peekable();
    let mut verbs = Vec::new();
    while let Some(word) = words.next() {
        verbs.push(match word {
            "pause" => Ctl::Pause,
            "resume" => Ctl::Resume { force: words.next_if_eq(&"force").is_some() },
            "flush" => Ctl::Flush,
            _ => return Err(invalid(OP, format!("{} is no verb: {VERBS}", quoted(word)))),
        });
    }
    match verbs.is_empty() {
        true => Err(invalid(OP, format!("there is no verb: {VERBS}"))),
        false => Ok(verbs),
    }
}

/// Reads `step [COUNT]`, the verb of `vcpu/N/ctl`, and returns how many instructions to execute: 1 to 2^63.
///
/// # Errors
/// [`ErrorKind::Invalid`] for anything but exactly one `step`, [`ErrorKind::OutOfRange`] for a count outside the limits.
pub fn parse_step(text: &str) -> Result<u64> {
    const FORM: &str = "write step, or step COUNT";
    let mut words = words(text);
    match words.next() {
        Some("step") => {}
        Some(word) => return Err(invalid(OP, format!("{} is no verb: {FORM}", quoted(word)))),
        None => return Err(invalid(OP, format!("there is no verb: {FORM}"))),
    }
    let count = match words.next() {
        Some(word) => number_of(OP, "step", word, 64)?,
        None => 1,
    };
    if let Some(word) = words.next() {
        return Err(invalid(OP, format!("{} is one word too many: {FORM}, once", quoted(word))));
    }
    match count {
        1..=MAX_STEPS => Ok(count),
        _ => Err(Error::new(ErrorKind::OutOfRange, OP, format!("step {count}: COUNT goes from 1 to 2^63"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_verbs_in_order() {
        let all = [Ctl::Pause, Ctl::Flush, Ctl::Resume { force: true }, Ctl::Resume { force: false }];
        assert_eq!(parse_ctl("pause # now\nflush resume\nforce\nresume\n").unwrap(), all);
    }

    #[test]
    fn refuses_unknown_verbs_by_name() {
        for (text, named) in
            [("stop", "'stop'"), ("pause force", "'force'"), ("", "no verb"), ("# pause", "no verb")]
        {
            let error = parse_ctl(text).unwrap_err();
            assert!(error.why().contains(named) && error.why().contains("resume force"), "{error}");
        }
    }

    #[test]
    fn reads_one_step() {
        assert_eq!(parse_step("step\n").unwrap(), 1);
        assert_eq!(parse_step("step 0x8000000000000000").unwrap(), 1 << 63);
        for text in ["", "run", "step x", "step 1 2", "step step", "step 1 step 1", "1"] {
            assert_eq!(parse_step(text).unwrap_err().kind(), ErrorKind::Invalid, "{text}");
        }
        for text in ["step 0", "step 0x8000000000000001", "step 0x10000000000000000"] {
            assert_eq!(parse_step(text).unwrap_err().kind(), ErrorKind::OutOfRange, "{text}");
        }
    }

    fn print(verb: &Ctl) -> &'static str {
        match verb {
            Ctl::Pause => "pause",
            Ctl::Resume { force: false } => "resume",
            Ctl::Resume { force: true } => "resume force",
            Ctl::Flush => "flush",
        }
    }

    proptest! {
        #[test]
        fn verbs_read_back(numbers in prop::collection::vec(0..4, 1..20)) {
            let all = [Ctl::Pause, Ctl::Flush, Ctl::Resume { force: false }, Ctl::Resume { force: true }];
            let verbs: Vec<Ctl> = numbers.into_iter().map(|number: i32| all[number as usize]).collect();
            let text: Vec<_> = verbs.iter().map(print).collect();
            prop_assert_eq!(parse_ctl(&text.join("\n")).unwrap(), verbs);
        }

        #[test]
        fn steps_read_back(count in 1..=MAX_STEPS) {
            prop_assert_eq!(parse_step(&format!("step {count}")).unwrap(), count);
        }

        #[test]
        fn never_panics(text: String, verbs in "((pause|resume|force|step|[0-9]{1,20}|#)[ \n]){0,5}") {
            for text in [&text, &verbs] {
                let _ = parse_ctl(text);
                let _ = parse_step(text);
            }
        }
    }
}
