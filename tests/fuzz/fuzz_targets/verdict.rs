//! Answers: what parses prints and parses to the same; whether it is allowed is answered for every kind.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmtree::text::{text_of, verdict};
use vmtree_api::events::{Detail, Event, EventKind, Move};
use vmtree_api::{Access, Arch, Gpa, VcpuId, ViewId};
use vmtree_fuzz::checked;

const ARCH: Arch = Arch::X86_64;

fn events() -> impl Iterator<Item = Event> {
    let slat = |access| Detail::Slat { access, gpa: Gpa(0), gva: None, page_walk: false };
    let io = |value| Detail::Io { port: 0, bytes: 4, value };
    let details = [
        (EventKind::Cr3, Detail::Control(Move::To { old: 0, new: 0 })),
        (EventKind::Cr3, Detail::Control(Move::From { value: 0 })),
        (EventKind::Slat, slat(Access::READ)),
        (EventKind::Slat, slat(Access::WRITE)),
        (EventKind::Slat, slat(Access::EXECUTE)),
        (EventKind::Cpuid, Detail::Cpuid { leaf: 0, subleaf: 0 }),
        (EventKind::Io, io(None)),
        (EventKind::Io, io(Some(0))),
        (EventKind::SingleStep, Detail::SingleStep),
    ];
    let event = |(kind, detail)| Event { vcpu: VcpuId(0), view: ViewId(0), kind, rip: 0, cr3: 0, detail };
    details.into_iter().map(event)
}

fuzz_target!(|data: &[u8]| {
    let Some(text) = checked(text_of(data)) else { return };
    let view_of = |name: &str| name.strip_prefix('v').and_then(|number| number.parse().ok()).map(ViewId);
    let name_of = |view: ViewId| (view.0 != 0).then(|| format!("v{}", view.0));
    let Some(answers) = checked(verdict::parse(text, ARCH, &view_of)) else { return };
    let printed: Vec<String> =
        answers.iter().map(|(seq, verdict)| verdict::print(*seq, verdict, ARCH, &name_of)).collect();
    for (_, verdict) in &answers {
        events().for_each(|event| drop(checked(verdict::allowed(verdict, &event))));
    }
    assert_eq!(verdict::parse(&printed.join("\n"), ARCH, &view_of).ok(), Some(answers));
});
