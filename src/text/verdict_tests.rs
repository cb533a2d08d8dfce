//! Tests of answers.

use proptest::prelude::*;
use vmtree_api::events::{EventKind, Inject, InterruptType, Move};
use vmtree_api::x86::{Reg, Table};
use vmtree_api::{Access, Gpa, RegId, RegValue, VcpuId};

use super::super::event::tests::any_event;
use super::super::inject::tests::any_inject;
use super::super::registers::tests::value_of;
use super::*;

const ARCH: Arch = Arch::X86_64;

fn view_of(name: &str) -> Option<ViewId> {
    name.strip_prefix('v').and_then(|number| number.parse().ok()).map(ViewId)
}

fn name_of(view: ViewId) -> Option<String> {
    (view.0 != 0).then(|| format!("v{}", view.0))
}

fn read(text: &str) -> Result<Vec<(u64, Verdict)>> {
    parse(text, ARCH, &view_of)
}

#[test]
fn reads_the_contract_s_forms() {
    let two = vec![(Reg::Rax.id(), RegValue::Word(1)), (Reg::Rbx.id(), RegValue::Word(2))];
    let table = vec![(Reg::Idtr.id(), RegValue::Table(Table { base: 0x1000, limit: 7 }))];
    for (text, verdict) in [
        ("continue", Verdict::Continue),
        ("deny # it", Verdict::Deny),
        ("value=0x2a", Verdict::Value(42)),
        ("value=0xffffffff_ffffffff_ffffffff_ffffffff", Verdict::Value(u128::MAX)),
        ("set rax=1,rbx=2", Verdict::Set(two.clone())),
        ("set rbx=2 rax=1", Verdict::Set(two)),
        ("set idtr.limit=7,idtr.base=0x1000", Verdict::Set(table)),
        ("step", Verdict::Step(None)),
        ("step view=v3", Verdict::Step(Some(ViewId(3)))),
        ("view=0", Verdict::View(ViewId(0))),
        ("inject exception 6", Verdict::Inject(Inject::Exception { vector: 6, error: None })),
    ] {
        assert_eq!(read(&format!("7 {text}\n")).unwrap(), [(7, verdict)], "{text}");
    }
    let several = read("# two\n0x10 deny\n\n9 continue\n").unwrap();
    assert_eq!(several, [(16, Verdict::Deny), (9, Verdict::Continue)]);
}

#[test]
fn refuses_the_rest_by_name() {
    for (text, named) in [
        ("", "no answer"),
        ("# 7 deny", "no answer"),
        ("deny", "SEQ: 'deny'"),
        ("seq=7 deny", "'seq=7': the number stands alone"),
        ("7", "'7' has no action"),
        ("7 skip", "'skip' is no action"),
        ("7 deny now", "'now'"),
        ("7 value=", "value: ''"),
        ("7 value", "'value' is no action"),
        ("7 set", "nothing is set"),
        ("7 set eax=1", "'eax'"),
        ("7 set rax=1,rax=2", "second time"),
        ("7 set cs.sel=8", "cs is set whole here: name cs.sel=, cs.base="),
        ("7 step v3", "write view=NAME"),
        ("7 step view=v3 v4", "'v4'"),
        ("7 view=a/b", "'a/b' can't name a view"),
        ("7 inject", "nothing to inject"),
        ("7 inject smi", "'smi'"),
        ("7 deny\n7 continue", "second time"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.why().contains(named), "{text}: {error}");
    }
    assert_eq!(read("7 deny\n8 view=gone").unwrap_err().kind(), ErrorKind::Invalid);
    for text in [
        "0x10000000000000000 deny",
        "7 value=0x100000000000000000000000000000000",
        "7 set rax=0x10000000000000000",
    ] {
        assert_eq!(read(text).unwrap_err().kind(), ErrorKind::OutOfRange, "{text}");
    }
}

fn event(kind: EventKind, detail: Detail) -> Event {
    Event { vcpu: VcpuId(0), view: ViewId(0), kind, rip: 0, cr3: 0, detail }
}

fn slat(access: Access) -> Event {
    event(EventKind::Slat, Detail::Slat { access, gpa: Gpa(0), gva: None, page_walk: false })
}

/// The contract's table: whether an event can be denied, and how wide its value may be.
#[test]
fn the_table_of_deny_and_value_is_the_contract_s() {
    let (to, from) = (Move::To { old: 0, new: 1 }, Move::From { value: 1 });
    let kind = InterruptType::External;
    let interrupt = Detail::Interrupt { vector: Some(3), kind, error: None, cr2: None };
    let io = |value| Detail::Io { port: 1, bytes: 2, value };
    let descriptor = |way| Detail::Descriptor { table: vmtree_api::events::DescriptorTable::Idtr, way };
    for (event, deny, value) in [
        (event(EventKind::Cr3, Detail::Control(to)), true, Some(64)),
        (event(EventKind::Cr3, Detail::Control(from)), false, Some(64)),
        (event(EventKind::Xcr0, Detail::Control(to)), true, Some(64)),
        (event(EventKind::Dr, Detail::Debug { reg: 7, access: to }), true, Some(64)),
        (event(EventKind::Dr, Detail::Debug { reg: 7, access: from }), false, Some(64)),
        (event(EventKind::Msr, Detail::Msr { index: 1, access: to }), true, Some(64)),
        (event(EventKind::Msr, Detail::Msr { index: 1, access: from }), false, Some(64)),
        (slat(Access::WRITE), true, Some(128)),
        (slat(Access::READ), false, Some(128)),
        (slat(Access::EXECUTE), false, None),
        (event(EventKind::Interrupt, interrupt), true, None),
        (event(EventKind::Breakpoint, Detail::Breakpoint { gpa: None, len: 1 }), true, None),
        (event(EventKind::Cpuid, Detail::Cpuid { leaf: 0, subleaf: 0 }), false, Some(128)),
        (event(EventKind::Io, io(Some(1))), true, Some(16)),
        (event(EventKind::Io, io(None)), false, Some(16)),
        (event(EventKind::Descriptor, descriptor(Way::To)), true, None),
        (event(EventKind::Descriptor, descriptor(Way::From)), false, None),
        (event(EventKind::SingleStep, Detail::SingleStep), false, None),
        (event(EventKind::GuestRequest, Detail::GuestRequest), true, Some(64)),
    ] {
        assert_eq!(allowed(&Verdict::Deny, &event).is_ok(), deny, "{event:?}");
        assert_eq!(allowed(&Verdict::Value(0), &event).is_ok(), value.is_some(), "{event:?}");
        let Some(bits) = value else { continue };
        let widest = u128::MAX >> (128 - bits);
        assert!(allowed(&Verdict::Value(widest), &event).is_ok(), "{event:?}");
        if bits < 128 {
            let error = allowed(&Verdict::Value(widest + 1), &event).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfRange, "{event:?}");
        }
    }
    let fetch = allowed(&Verdict::Deny, &slat(Access::EXECUTE)).unwrap_err();
    assert_eq!(fetch.kind(), ErrorKind::Invalid);
    assert_eq!(fetch.why(), "slat x can't be answered with deny: use inject, set rip= or view=");
}

fn any_verdict() -> impl Strategy<Value = Verdict> {
    let setting = (0..ARCH.registers().len()).prop_flat_map(|index| {
        let shape = ARCH.registers()[index].shape;
        value_of(shape).prop_map(move |value| (RegId(index as u16), value))
    });
    let set = prop::collection::vec(setting, 1..6).prop_map(|mut all| {
        all.sort_by_key(|(id, _)| *id);
        all.dedup_by_key(|(id, _)| *id);
        Verdict::Set(all)
    });
    prop_oneof![
        Just(Verdict::Continue),
        Just(Verdict::Deny),
        any::<u128>().prop_map(Verdict::Value),
        set,
        any::<Option<u32>>().prop_map(|view| Verdict::Step(view.map(ViewId))),
        any::<u32>().prop_map(|view| Verdict::View(ViewId(view))),
        any_inject().prop_map(Verdict::Inject),
    ]
}

proptest! {
    #[test]
    fn answers_read_back(answers in prop::collection::btree_map(any::<u64>(), any_verdict(), 1..8)) {
        let answers: Vec<_> = answers.into_iter().collect();
        let text: Vec<_> = answers.iter().map(|(seq, verdict)| print(*seq, verdict, ARCH, &name_of)).collect();
        prop_assert_eq!(read(&text.join("\n")).unwrap(), answers);
    }

    #[test]
    fn every_event_can_go_on_and_no_refusal_is_silent(event in any_event(), verdict in any_verdict()) {
        prop_assert!(allowed(&Verdict::Continue, &event).is_ok());
        if let Err(error) = allowed(&verdict, &event) {
            prop_assert!(matches!(verdict, Verdict::Deny | Verdict::Value(_)));
            prop_assert!(error.why().contains(event.kind.name()));
            prop_assert!(!error.to_string().contains(char::is_control));
        }
    }

    #[test]
    fn never_panics(
        text: String,
        near in "([0-9]{1,3} (continue|deny|value=|set |step |view=|inject |rax=|,|0x|[0-9a-z]){0,5}[\n#]){0,3}",
    ) {
        for text in [&text, &near] {
            if let Err(error) = read(text) {
                prop_assert!(!error.to_string().contains(char::is_control));
            }
        }
    }
}
