//! Tests of event names, and any filter for the tests of others.

use proptest::prelude::*;
use vmtree_api::ErrorKind;

use super::*;

const VCPUS: u32 = 4;

fn read(name: &str) -> (Filter, Format) {
    parse(name, VCPUS).unwrap().unwrap()
}

/// Any filter that a name can say.
pub fn any_filter() -> impl Strategy<Value = Filter> {
    let kinds: Vec<_> = EventKind::ALL.iter().copied().map(Some).chain([None]).collect();
    let gpa = any::<(u64, u64)>().prop_filter("a range", |(a, b)| a < b).prop_map(|(a, b)| Gpa(a)..Gpa(b));
    let access = (1u32..8).prop_map(|bits| {
        let rights = [Access::READ, Access::WRITE, Access::EXECUTE].into_iter().enumerate();
        rights.filter(|(bit, _)| bits >> bit & 1 != 0).fold(Access::NONE, |all, (_, right)| all.union(right))
    });
    let of = |strategy: BoxedStrategy<_>| prop::option::of(strategy);
    (
        prop::sample::select(kinds),
        prop::option::of(0..VCPUS),
        prop::option::of(any::<u32>()),
        prop::option::of(any::<prop::sample::Index>()),
        of(gpa.boxed()),
        prop::option::of(access),
    )
        .prop_map(|(kind, vcpu, index, way, gpa, access)| {
            let has = |key: &str| params(kind).contains(&key);
            let ways = kind.map_or(&[][..], EventKind::ways);
            Filter {
                kind,
                vcpu: vcpu.map(VcpuId),
                index: match kind {
                    Some(EventKind::Msr) => index,
                    Some(EventKind::Dr) => index.map(|index| index % 8),
                    Some(EventKind::Interrupt) => index.map(|index| index % 256),
                    _ => None,
                },
                way: way.filter(|_| has("dir")).map(|way| *way.get(ways)),
                gpa: gpa.filter(|_| has("gpa")),
                access: access.filter(|_| has("access")),
            }
        })
}

#[test]
fn reads_the_contract_s_names() {
    let msr = Filter { index: Some(0xc000_0082), ..Filter::of(EventKind::Msr) };
    assert_eq!(read("msr,index=0xc0000082"), (msr, Format::Text));
    let cr3 = Filter { vcpu: Some(VcpuId(0)), way: Some(Way::To), ..Filter::of(EventKind::Cr3) };
    assert_eq!(read("cr3,vcpu=0,dir=to"), (cr3, Format::Text));
    let gpa = Some(Gpa(0x1000)..Gpa(0x3000));
    let slat = Filter { gpa, access: Some(Access::WRITE), ..Filter::of(EventKind::Slat) };
    assert_eq!(read("slat,gpa=0x1000-0x3000,access=w"), (slat, Format::Text));
    assert_eq!(read("all,format=json"), (Filter::default(), Format::Json));
    assert_eq!(read("interrupt,vector=14,format=binary").0.index, Some(14));
    assert_eq!(read("dr,index=7").0.index, Some(7));
    assert_eq!(read("io,dir=from").0.way, Some(Way::From));
}

#[test]
fn any_order_is_the_same_file() {
    let (filter, format) = read("slat,vcpu=3,access=xr,gpa=4096-0x3000,format=text");
    assert_eq!(print(&filter, format), "slat,access=rx,gpa=0x1000-0x3000,vcpu=3");
    let (filter, format) = read("msr,vcpu=1,index=174,format=binary,dir=from");
    assert_eq!(print(&filter, format), "msr,dir=from,format=binary,index=0xae,vcpu=1");
    assert_eq!(read("msr,dir=from,index=0xae,format=binary,vcpu=1"), (filter, format));
}

#[test]
fn names_of_nothing_are_none_of_ours() {
    for name in ["", "stats", "cr2", "CR3", "cr3 ", "cr", "al", "all2", "single-step"] {
        assert_eq!(parse(name, VCPUS).unwrap(), None, "{name}");
        let error = parse(&format!("{name},vcpu=0"), VCPUS).unwrap_err();
        assert!(error.to_string().contains(&format!("no kind '{name}'")), "{error}");
    }
}

#[test]
fn refuses_bad_parameters_by_name() {
    for (name, named) in [
        ("cr3,", "''"),
        ("cr3,vcpu", "'vcpu'"),
        ("cr3,vcpu=", "'vcpu='"),
        ("cr3,vcpu=1,vcpu=1", "a second time"),
        ("cr3,vcpu=x", "vcpu: 'x'"),
        ("cr3,index=3", "it has dir, format, vcpu"),
        ("cr3,dir=both", "write to or from"),
        ("xcr0,dir=from", "xcr0 has no 'from'"),
        ("singlestep,dir=to", "'dir'"),
        ("all,dir=to", "'dir'"),
        ("msr,vector=3", "'vector'"),
        ("interrupt,index=3", "'index'"),
        ("msr,index=lstar", "'lstar'"),
        ("slat,gpa=0x1000", "'0x1000' is no range"),
        ("slat,gpa=0x3000-0x1000", "is empty"),
        ("slat,access=rr", "'rr'"),
        ("slat,access=r-x", "'r-x'"),
        ("slat,access=", "'access='"),
        ("slat,dir=to", "'dir'"),
        ("all,format=xml", "text, json or binary"),
        ("all,format=JSON", "'JSON'"),
    ] {
        let error = parse(name, VCPUS).unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.why().contains(named), "{name}: {error}");
    }
    for name in
        ["dr,index=8", "interrupt,vector=256", "msr,index=0x100000000", "slat,gpa=0-0x10000000000000000"]
    {
        assert_eq!(parse(name, VCPUS).unwrap_err().kind(), ErrorKind::OutOfRange, "{name}");
    }
    let absent = parse("cr3,vcpu=4", VCPUS).unwrap_err();
    assert!(absent.kind() == ErrorKind::NotFound && absent.why().contains("has 4"), "{absent}");
}

proptest! {
    #[test]
    fn names_read_back(filter in any_filter(), format in prop::sample::select(vec![Format::Text, Format::Json, Format::Binary])) {
        let name = print(&filter, format);
        prop_assert_eq!(parse(&name, VCPUS).unwrap(), Some((filter, format)));
        prop_assert_eq!(name::split(&name).unwrap().canonical(), name);
    }

    #[test]
    fn never_panics(
        name: String,
        near in "(all|cr3|msr|dr|slat|interrupt|xcr0)(,(vcpu|index|dir|gpa|access|vector|format)=[0-9a-z-]{0,6}){0,4}",
    ) {
        for name in [&name, &near] {
            match parse(name, VCPUS) {
                Ok(Some((filter, format))) => {
                    let printed = print(&filter, format);
                    prop_assert_eq!(parse(&printed, VCPUS).unwrap(), Some((filter, format)));
                }
                Ok(None) => {}
                Err(error) => prop_assert!(!error.to_string().contains(char::is_control)),
            }
        }
    }
}
