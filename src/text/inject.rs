//! What is injected: `vcpu/N/inject`, and `inject` in an answer.

use vmtree_api::events::Inject;
use vmtree_api::{Error, ErrorKind, Gva, Result};

use super::{invalid, lines, number_of, quoted, setting};

const OP: &str = "read injection";
const FORM: &str = "write pf ADDR err=CODE, exception VECTOR [err=CODE], interrupt VECTOR or nmi";

/// The last vector of exceptions (Intel SDM volume 3A, 6.2: 0 to 31 are the architecture's).
const LAST_EXCEPTION: u8 = 31;

/// Reads the one injection of `vcpu/N/inject`.
///
/// # Errors
/// [`ErrorKind::Invalid`] for anything but exactly one injection on one line, [`ErrorKind::OutOfRange`] for an address of
/// more than 64 bits, an error code of more than 32, or a vector past the last.
pub fn parse(text: &str) -> Result<Inject> {
    let mut lines = lines(text);
    let words = lines.next().unwrap_or_default();
    if let Some(word) = lines.next().and_then(|words| words.first().copied()) {
        return Err(invalid(OP, format!("{} starts a second injection: write one at a time", quoted(word))));
    }
    parse_words(&words)
}

/// Reads an injection from the words of a line.
pub(super) fn parse_words(words: &[&str]) -> Result<Inject> {
    let Some((what, rest)) = words.split_first() else {
        return Err(invalid(OP, format!("there is nothing to inject: {FORM}")));
    };
    let (inject, rest) = match (*what, rest) {
        ("pf", [address, code, rest @ ..]) => {
            let address = Gva(number_of(OP, "ADDR", address, 64)?);
            (Inject::PageFault { address, error: error_of(code)? }, rest)
        }
        ("pf", _) => {
            return Err(invalid(OP, "pf needs an address and an error code: write pf ADDR err=CODE".into()));
        }
        ("exception", [vector, rest @ ..]) => {
            let error = rest.first().map(|code| error_of(code)).transpose()?;
            (Inject::Exception { vector: exception_of(vector)?, error }, rest.get(1..).unwrap_or_default())
        }
        ("interrupt", [vector, rest @ ..]) => {
            (Inject::Interrupt { vector: number_of(OP, "VECTOR", vector, 8)? as u8 }, rest)
        }
        ("exception" | "interrupt", []) => {
            return Err(invalid(OP, format!("{what} needs a vector: write {what} VECTOR")));
        }
        ("nmi", rest) => (Inject::Nmi, rest),
        _ => return Err(invalid(OP, format!("{} can't be injected: {FORM}", quoted(what)))),
    };
    match rest.first() {
        Some(word) => Err(invalid(OP, format!("{} is one word too many: {FORM}", quoted(word)))),
        None => Ok(inject),
    }
}

fn error_of(word: &str) -> Result<u32> {
    match setting(OP, word, "err=CODE")? {
        ("err", code) => Ok(number_of(OP, "err", code, 32)? as u32),
        _ => Err(invalid(OP, format!("{} is no error code: write err=CODE", quoted(word)))),
    }
}

fn exception_of(word: &str) -> Result<u8> {
    match number_of(OP, "VECTOR", word, 8)? as u8 {
        vector @ 0..=LAST_EXCEPTION => Ok(vector),
        _ => {
            let why = format!(
                "VECTOR: {}: exceptions have 0 to {LAST_EXCEPTION}; write interrupt for others",
                quoted(word)
            );
            Err(Error::new(ErrorKind::OutOfRange, OP, why))
        }
    }
}

/// An injection as [`parse`] reads it, without a newline.
#[must_use]
pub fn print(inject: &Inject) -> String {
    match inject {
        Inject::PageFault { address, error } => format!("pf {:#018x} err={error:#x}", address.0),
        Inject::Exception { vector, error: Some(error) } => format!("exception {vector} err={error:#x}"),
        Inject::Exception { vector, error: None } => format!("exception {vector}"),
        Inject::Interrupt { vector } => format!("interrupt {vector}"),
        Inject::Nmi => "nmi".into(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any injection.
    pub fn any_inject() -> impl Strategy<Value = Inject> {
        prop_oneof![
            any::<(u64, u32)>()
                .prop_map(|(address, error)| Inject::PageFault { address: Gva(address), error }),
            (0..=LAST_EXCEPTION, any::<Option<u32>>())
                .prop_map(|(vector, error)| Inject::Exception { vector, error }),
            any::<u8>().prop_map(|vector| Inject::Interrupt { vector }),
            Just(Inject::Nmi),
        ]
    }

    #[test]
    fn reads_the_contract_s_forms() {
        let pf = Inject::PageFault { address: Gva(0x7000), error: 6 };
        assert_eq!(parse("# make it fault\npf 0x7000 err=6\n").unwrap(), pf);
        assert_eq!(parse("exception 6").unwrap(), Inject::Exception { vector: 6, error: None });
        assert_eq!(parse("exception 13 err=0").unwrap(), Inject::Exception { vector: 13, error: Some(0) });
        assert_eq!(parse("interrupt 0xff").unwrap(), Inject::Interrupt { vector: 255 });
        assert_eq!(parse(" nmi # now").unwrap(), Inject::Nmi);
    }

    #[test]
    fn refuses_the_rest_by_name() {
        for (text, named) in [
            ("", "nothing to inject"),
            ("# nmi", "nothing to inject"),
            ("smi", "'smi'"),
            ("pf", "pf ADDR err=CODE"),
            ("pf 1", "pf ADDR err=CODE"),
            ("pf 1 2", "'2' has no '='"),
            ("pf 1 code=2", "'code=2'"),
            ("pf x err=2", "ADDR: 'x'"),
            ("pf 1 err=2 3", "'3'"),
            ("exception", "exception VECTOR"),
            ("exception 13 0", "'0'"),
            ("exception 13 err=0 err=0", "'err=0'"),
            ("interrupt", "interrupt VECTOR"),
            ("interrupt 3 err=0", "'err=0'"),
            ("nmi nmi", "'nmi'"),
            ("nmi\nnmi", "second"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.why().contains(named), "{text}: {error}");
        }
        for text in ["exception 32", "exception 256", "interrupt 256", "pf 1 err=0x100000000"] {
            assert_eq!(parse(text).unwrap_err().kind(), ErrorKind::OutOfRange, "{text}");
        }
    }

    proptest! {
        #[test]
        fn injections_read_back(inject in any_inject()) {
            prop_assert_eq!(parse(&print(&inject)).unwrap(), inject);
        }

        #[test]
        fn never_panics(text: String, near in "((pf|exception|interrupt|nmi|err=|0x)?[ \n#0-9]{0,4}){0,5}") {
            for text in [&text, &near] {
                if let Err(error) = parse(text) {
                    prop_assert!(!error.to_string().contains(char::is_control));
                }
            }
        }
    }
}
