//! Tests of injections, and any injection for the tests of answers.

use proptest::prelude::*;

use super::*;

/// Any injection.
pub fn any_inject() -> impl Strategy<Value = Inject> {
    prop_oneof![
        any::<(u64, u32)>().prop_map(|(address, error)| Inject::PageFault { address: Gva(address), error }),
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
