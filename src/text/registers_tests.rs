//! Tests of the registers' text, and random registers for the tests of other formats.

use proptest::prelude::*;
use vmtree_api::x86::Reg;

use super::*;

const ARCH: Arch = Arch::X86_64;

/// Any value of this shape.
pub fn value_of(shape: RegShape) -> BoxedStrategy<RegValue> {
    match shape {
        RegShape::Word(bits) => any::<u64>()
            .prop_map(move |word| RegValue::Word(word.checked_shr(64 - bits).unwrap_or(0)))
            .boxed(),
        RegShape::Segment => any::<(u16, u64, u32, u16)>()
            .prop_map(|(selector, base, limit, attr)| {
                RegValue::Segment(Segment { selector, base, limit, attr })
            })
            .boxed(),
        RegShape::Table => {
            any::<(u64, u16)>().prop_map(|(base, limit)| RegValue::Table(Table { base, limit })).boxed()
        }
    }
}

/// Any register set.
pub fn any_set() -> impl Strategy<Value = RegisterSet> {
    let values: Vec<_> = ARCH.registers().iter().map(|def| value_of(def.shape)).collect();
    values.prop_map(|values| {
        let mut set = RegisterSet::new(ARCH);
        for (index, value) in values.into_iter().enumerate() {
            set.set(RegId(index as u16), value).unwrap();
        }
        set
    })
}

/// Every register of the table, offered.
pub fn every_offer() -> Vec<RegOffer> {
    (0..ARCH.registers().len()).map(|index| RegOffer { id: RegId(index as u16), writable: true }).collect()
}

fn kind_all(text: &str) -> ErrorKind {
    let mut set = RegisterSet::new(ARCH);
    let error = apply_all(text, &mut set).unwrap_err();
    assert_eq!(set, RegisterSet::new(ARCH), "{text}");
    error.kind()
}

#[test]
fn shows_the_contract_s_forms() {
    assert_eq!(show(RegValue::Word(1), RegShape::Word(64)), "0x0000000000000001");
    assert_eq!(show(RegValue::Word(1), RegShape::Word(6)), "0x01");
    let segment = Segment { selector: 0x10, base: 0, limit: u32::MAX, attr: 0xa09b };
    assert_eq!(
        show(RegValue::Segment(segment), RegShape::Segment),
        "sel=0x0010 base=0x0000000000000000 limit=0xffffffff attr=0xa09b"
    );
    let table = Table { base: 0x1000, limit: 0xffff };
    assert_eq!(show(RegValue::Table(table), RegShape::Table), "base=0x0000000000001000 limit=0xffff");

    let mut set = RegisterSet::new(ARCH);
    set.set(Reg::Cs.id(), RegValue::Segment(segment)).unwrap();
    let offers = [Reg::Rax, Reg::Cs, Reg::Gdtr].map(|reg| RegOffer { id: reg.id(), writable: true });
    let text = "\
rax=0x0000000000000000
cs.sel=0x0010 cs.base=0x0000000000000000 cs.limit=0xffffffff cs.attr=0xa09b
gdtr.base=0x0000000000000000 gdtr.limit=0x0000
";
    assert_eq!(show_all(ARCH, &offers, &set), text);
}

#[test]
fn a_register_s_own_file_takes_one_value() {
    let mut set = RegisterSet::new(ARCH);
    apply("  0x2a # the answer\n", Reg::Rax.id(), &mut set).unwrap();
    assert_eq!(set.get(Reg::Rax.id()), Some(RegValue::Word(42)));
    apply("sel=0x10 # code\nattr=0xa09b", Reg::Cs.id(), &mut set).unwrap();
    apply("limit=7", Reg::Cs.id(), &mut set).unwrap();
    let cs = Segment { selector: 0x10, base: 0, limit: 7, attr: 0xa09b };
    assert_eq!(set.get(Reg::Cs.id()), Some(RegValue::Segment(cs)));

    let before = set.clone();
    let invalid = [
        (Reg::Rax, ""),
        (Reg::Rax, "# 1"),
        (Reg::Rax, "1 2"),
        (Reg::Rax, "rax=1"),
        (Reg::Cs, ""),
        (Reg::Cs, "0x10"),
        (Reg::Cs, "sel=1 sel=1"),
        (Reg::Cs, "sel=1 rpl=1"),
        (Reg::Cs, "=1"),
        (Reg::Gdtr, "sel=1"),
    ];
    for (reg, text) in invalid {
        assert_eq!(apply(text, reg.id(), &mut set).unwrap_err().kind(), ErrorKind::Invalid, "{text}");
    }
    for (reg, text) in
        [(Reg::Rax, "0x10000000000000000"), (Reg::Cs, "base=1 sel=0x10000"), (Reg::Idtr, "limit=65536")]
    {
        assert_eq!(apply(text, reg.id(), &mut set).unwrap_err().kind(), ErrorKind::OutOfRange, "{text}");
    }
    assert_eq!(apply("1", RegId(999), &mut set).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(set, before);
}

#[test]
fn all_takes_any_subset_in_any_order() {
    let mut set = RegisterSet::new(ARCH);
    let text = "gdtr.limit=0x7f cs.sel=8 rbx=2 # set together\ncs.base=0x1000\trax=0b1\n";
    let ids = apply_all(text, &mut set).unwrap();
    assert_eq!(ids, [Reg::Rax, Reg::Rbx, Reg::Cs, Reg::Gdtr].map(Reg::id));
    assert_eq!(set.get(Reg::Rbx.id()), Some(RegValue::Word(2)));
    let cs = Segment { selector: 8, base: 0x1000, ..Segment::default() };
    assert_eq!(set.get(Reg::Cs.id()), Some(RegValue::Segment(cs)));
}

#[test]
fn all_is_all_or_nothing() {
    for bad in
        ["", "# rax=1", "eax=1", "RAX=1", "rax = 1", "rax", "=1", "rax=", "rax=1 rax=1", "cs=8", "cs.=8"]
    {
        assert_eq!(kind_all(bad), ErrorKind::Invalid, "{bad}");
    }
    for bad in
        ["cs.rpl=1", "rax.base=1", "cs.sel=1 cs.sel=1", "rbx=1 rax=y", ".sel=1", "rax=-1", "rbx=1 rax=1.5"]
    {
        assert_eq!(kind_all(bad), ErrorKind::Invalid, "{bad}");
    }
    for bad in ["rbx=1 rax=0x1ffffffffffffffff", "rbx=1 gdtr.limit=0x10000"] {
        assert_eq!(kind_all(bad), ErrorKind::OutOfRange, "{bad}");
    }
}

#[test]
fn what_is_set_whole_names_every_field() {
    let whole = parse_whole("rip=1 gdtr.limit=2 gdtr.base=3", ARCH).unwrap();
    let gdtr = RegValue::Table(Table { base: 3, limit: 2 });
    assert_eq!(whole, [(Reg::Rip.id(), RegValue::Word(1)), (Reg::Gdtr.id(), gdtr)]);
    assert_eq!(
        show_whole(ARCH, &whole),
        "rip=0x0000000000000001,gdtr.base=0x0000000000000003,gdtr.limit=0x0002"
    );
    let error = parse_whole("gdtr.limit=2", ARCH).unwrap_err();
    assert!(error.why().contains("gdtr.base=, gdtr.limit="), "{error}");
}

#[test]
fn errors_name_the_input_and_the_cure() {
    let mut set = RegisterSet::new(ARCH);
    let mut why = |text: &str| apply_all(text, &mut set).unwrap_err().to_string();
    assert!(why("eax=1").contains("'eax'"));
    assert!(why("cs=8").contains("cs.sel="));
    assert!(why("gdtr.sel=8").contains("gdtr.base="));
    assert_eq!(why("rax=y"), "read register text: rax: 'y' is no number: write 0x2a, 42 or 0b101010");
}

proptest! {
    #[test]
    fn every_register_reads_back_from_its_own_file(set in any_set()) {
        let mut copy = RegisterSet::new(ARCH);
        for (offer, def) in every_offer().iter().zip(ARCH.registers()) {
            let text = show(set.get(offer.id).unwrap(), def.shape);
            prop_assert_eq!(text.len(), shown_len(def.shape));
            apply(&text, offer.id, &mut copy).unwrap();
        }
        prop_assert_eq!(copy, set);
    }

    #[test]
    fn all_reads_back(set in any_set(), old in any_set()) {
        let offers = every_offer();
        let mut copy = old;
        let ids = apply_all(&show_all(ARCH, &offers, &set), &mut copy).unwrap();
        prop_assert_eq!(ids, offers.iter().map(|offer| offer.id).collect::<Vec<_>>());
        prop_assert_eq!(copy, set);
    }

    #[test]
    fn bad_text_changes_nothing(
        text: String,
        near in "((rax|rbx|cs|gdtr)?(.(sel|base|limit))?[= ](0x)?[0-9a-f]{0,20}[ \n#]){0,4}",
        old in any_set(),
    ) {
        for text in [&text, &near] {
            let mut set = old.clone();
            match apply_all(text, &mut set) {
                Ok(ids) => prop_assert!(!ids.is_empty()),
                Err(error) => {
                    prop_assert_eq!(&set, &old);
                    prop_assert!(!error.to_string().contains('\n'));
                }
            }
            for reg in [Reg::Rax, Reg::Cs, Reg::Gdtr] {
                let mut set = old.clone();
                if apply(text, reg.id(), &mut set).is_err() {
                    prop_assert_eq!(&set, &old);
                }
            }
        }
    }
}
