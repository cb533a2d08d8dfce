//! Tests of the lines of event files, and any item for the tests of other formats.

use proptest::prelude::*;
use vmtree_api::events::{DescriptorTable, EventKind, Way};
use vmtree_api::{Gpa, Gva, VcpuId};

use super::*;

fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        any::<(u64, u64)>().prop_map(|(old, new)| Move::To { old, new }),
        any::<u64>().prop_map(|value| Move::From { value }),
    ]
}

fn any_access() -> impl Strategy<Value = Access> {
    let sets = vec![Access::READ, Access::WRITE, Access::EXECUTE, Access::READ.union(Access::WRITE)];
    prop::sample::select(sets)
}

fn any_interrupt_type() -> impl Strategy<Value = InterruptType> {
    prop::sample::select(vec![
        InterruptType::External,
        InterruptType::Nmi,
        InterruptType::HardwareException,
        InterruptType::SoftwareInterrupt,
        InterruptType::PrivilegedSoftwareException,
        InterruptType::SoftwareException,
    ])
}

fn any_table() -> impl Strategy<Value = DescriptorTable> {
    let all = vec![DescriptorTable::Gdtr, DescriptorTable::Idtr, DescriptorTable::Ldtr, DescriptorTable::Tr];
    prop::sample::select(all)
}

/// Any detail that a kind can have.
fn any_detail(kind: EventKind) -> BoxedStrategy<Detail> {
    match kind {
        EventKind::Cr0 | EventKind::Cr3 | EventKind::Cr4 | EventKind::Cr8 | EventKind::Xcr0 => {
            any_move().prop_map(Detail::Control).boxed()
        }
        EventKind::Dr => (0u8..8, any_move()).prop_map(|(reg, access)| Detail::Debug { reg, access }).boxed(),
        EventKind::Msr => {
            (any::<u32>(), any_move()).prop_map(|(index, access)| Detail::Msr { index, access }).boxed()
        }
        EventKind::Interrupt => (any::<(Option<u8>, Option<u32>, Option<u64>)>(), any_interrupt_type())
            .prop_map(|((vector, error, cr2), kind)| Detail::Interrupt { vector, kind, error, cr2 })
            .boxed(),
        EventKind::Breakpoint => any::<(Option<u64>, u8)>()
            .prop_map(|(gpa, len)| Detail::Breakpoint { gpa: gpa.map(Gpa), len })
            .boxed(),
        EventKind::SingleStep => Just(Detail::SingleStep).boxed(),
        EventKind::Slat => (any_access(), any::<(u64, Option<u64>, bool)>())
            .prop_map(|(access, (gpa, gva, page_walk))| Detail::Slat {
                access,
                gpa: Gpa(gpa),
                gva: gva.map(Gva),
                page_walk,
            })
            .boxed(),
        EventKind::Cpuid => {
            any::<(u32, u32)>().prop_map(|(leaf, subleaf)| Detail::Cpuid { leaf, subleaf }).boxed()
        }
        EventKind::Io => any::<(u16, u8, Option<u32>)>()
            .prop_map(|(port, bytes, value)| Detail::Io { port, bytes, value })
            .boxed(),
        EventKind::Descriptor => (any_table(), prop::sample::select(vec![Way::To, Way::From]))
            .prop_map(|(table, way)| Detail::Descriptor { table, way })
            .boxed(),
        EventKind::GuestRequest => Just(Detail::GuestRequest).boxed(),
    }
}

/// Any event.
pub fn any_event() -> impl Strategy<Value = Event> {
    prop::sample::select(EventKind::ALL).prop_flat_map(|kind| {
        (any_detail(kind), any::<(u32, u32, u64, u64)>()).prop_map(move |(detail, (vcpu, view, rip, cr3))| {
            Event { vcpu: VcpuId(vcpu), view: ViewId(view), kind, rip, cr3, detail }
        })
    })
}

/// Any item.
pub fn any_item() -> impl Strategy<Value = Item> {
    prop_oneof![
        8 => (any_event(), any::<(u64, u64, bool)>()).prop_map(|(event, (seq, time, held))| {
            Item::Event { record: Record { seq, time, event }, held }
        }),
        1 => any::<(u64, u64)>().prop_map(|(first, last)| Item::Lost { first, last }),
    ]
}

fn item(view: u32, kind: EventKind, detail: Detail) -> Item {
    let event =
        Event { vcpu: VcpuId(1), view: ViewId(view), kind, rip: 0xffff_8000_0000_1234, cr3: 0x1000, detail };
    Item::Event { record: Record { seq: 7, time: 12_345_678_901, event }, held: true }
}

fn names(view: ViewId) -> Option<String> {
    match view.0 {
        3 => Some("hooks".into()),
        4 => Some("a b\n".into()),
        _ => None,
    }
}

fn text(item: &Item) -> String {
    let mut out = Vec::new();
    print_text(&mut out, item, &names);
    String::from_utf8(out).unwrap()
}

fn json(item: &Item) -> String {
    let mut out = Vec::new();
    print_json(&mut out, item, &names);
    String::from_utf8(out).unwrap()
}

const COMMON: &str = "held=1 rip=0xffff800000001234 cr3=0x0000000000001000";

#[test]
fn shows_each_kind_as_documented() {
    let to = Move::To { old: 1, new: 2 };
    let from = Move::From { value: 3 };
    let hwexc = InterruptType::HardwareException;
    let fault = Detail::Interrupt { vector: Some(14), kind: hwexc, error: Some(6), cr2: Some(0x7000) };
    let timer = Detail::Interrupt { vector: Some(32), kind: InterruptType::External, error: None, cr2: None };
    let unknown = Detail::Interrupt { vector: None, kind: InterruptType::External, error: None, cr2: None };
    let access = Access::WRITE;
    let walk = Detail::Slat { access, gpa: Gpa(0x2008), gva: None, page_walk: true };
    let out = Detail::Io { port: 0x3f8, bytes: 1, value: Some(0x41) };
    let gdtr = Detail::Descriptor { table: DescriptorTable::Gdtr, way: Way::To };
    for (kind, detail, tail) in [
        (EventKind::Cr3, Detail::Control(to), " dir=to old=0x0000000000000001 new=0x0000000000000002"),
        (EventKind::Dr, Detail::Debug { reg: 7, access: from }, " reg=7 dir=from value=0x0000000000000003"),
        (
            EventKind::Msr,
            Detail::Msr { index: 0xc000_0082, access: from },
            " index=0xc0000082 dir=from value=0x0000000000000003",
        ),
        (EventKind::Interrupt, fault, " vector=14 type=hwexc err=0x00000006 cr2=0x0000000000007000"),
        (EventKind::Interrupt, timer, " vector=32 type=external"),
        (EventKind::Interrupt, unknown, " type=external"),
        (
            EventKind::Breakpoint,
            Detail::Breakpoint { gpa: Some(Gpa(0x5000)), len: 1 },
            " gpa=0x0000000000005000 len=1",
        ),
        (EventKind::SingleStep, Detail::SingleStep, ""),
        (EventKind::Slat, walk, " access=w gpa=0x0000000000002008 ptwalk=1"),
        (
            EventKind::Cpuid,
            Detail::Cpuid { leaf: 0x8000_0001, subleaf: 0 },
            " leaf=0x80000001 subleaf=0x00000000",
        ),
        (EventKind::Io, out, " dir=to port=0x03f8 bytes=1 value=0x00000041"),
        (EventKind::Descriptor, gdtr, " table=gdtr dir=to"),
        (EventKind::GuestRequest, Detail::GuestRequest, ""),
    ] {
        let expected = format!("seq=7 t=12345678901 vcpu=1 view=hooks kind={kind} {COMMON}{tail}\n");
        assert_eq!(text(&item(3, kind, detail)), expected);
    }
    let lost = Item::Lost { first: 0, last: u64::MAX };
    assert_eq!(text(&lost), "kind=lost first=0 last=18446744073709551615\n");
    assert_eq!(json(&lost), "{\"kind\":\"lost\",\"first\":0,\"last\":18446744073709551615}\n");
}

#[test]
fn json_has_the_same_fields() {
    let detail = Detail::Slat { access: Access::READ, gpa: Gpa(0x1000), gva: Some(Gva(2)), page_walk: false };
    let expected = concat!(
        r#"{"seq":7,"t":12345678901,"vcpu":1,"view":"0","kind":"slat","held":true,"#,
        r#""rip":"0xffff800000001234","cr3":"0x0000000000001000","#,
        r#""access":"r","gpa":"0x0000000000001000","gva":"0x0000000000000002","ptwalk":false}"#,
    );
    assert_eq!(json(&item(0, EventKind::Slat, detail)).trim_end(), expected);
}

#[test]
fn a_view_without_a_good_name_is_a_dash() {
    for view in [4, 5] {
        assert!(text(&item(view, EventKind::SingleStep, Detail::SingleStep)).contains(" view=- "));
    }
}

proptest! {
    #[test]
    fn text_is_one_line_of_settings_and_json_says_the_same(item in any_item()) {
        let (text, json) = (text(&item), json(&item));
        let line = text.strip_suffix('\n').unwrap();
        prop_assert!(!line.contains('\n'));
        let fields: Vec<(&str, &str)> = line.split(' ').map(|word| word.split_once('=').unwrap()).collect();
        let as_json: Vec<String> = fields
            .iter()
            .map(|(key, value)| match (*key, *value) {
                ("held" | "ptwalk", value) => format!("\"{key}\":{}", value == "1"),
                (_, number) if number != "0" || *key != "view" => match number.parse::<u64>() {
                    Ok(_) => format!("\"{key}\":{number}"),
                    Err(_) => format!("\"{key}\":\"{number}\""),
                },
                _ => format!("\"{key}\":\"{value}\""),
            })
            .collect();
        prop_assert_eq!(json, format!("{{{}}}\n", as_json.join(",")));
        for (key, value) in &fields {
            let number = value.strip_prefix("0x").map(|hex| u64::from_str_radix(hex, 16));
            prop_assert!(number.is_none_or(|number| number.is_ok()), "{key}={value}");
        }
    }
}

/// `cargo test --release -p vmtree --lib lines_a_second -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn lines_a_second() {
    const LINES: u32 = 2_000_000;
    let item = item(3, EventKind::Cr3, Detail::Control(Move::To { old: 1, new: 0x1234_5000 }));
    let rate = |what: &str, print: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::with_capacity(1 << 20);
        let start = std::time::Instant::now();
        for _ in 0..LINES {
            if out.len() > 1 << 19 {
                out.clear();
            }
            print(std::hint::black_box(&mut out));
        }
        println!("{what}: {:.0} a second", f64::from(LINES) / start.elapsed().as_secs_f64());
    };
    rate("text", &|out| print_text(out, &item, &names));
    rate("json", &|out| print_json(out, &item, &names));
    rate("binary", &|out| out.extend(crate::text::record::encode(&item)));
}
