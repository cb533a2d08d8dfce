//! The built-in guest under observers: it comes as far as it does alone, to the instruction.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use vmtree_api::events::{EventKind, Verdict, Watch};
use vmtree_api::views::Rule;
use vmtree_api::{Access, Gfn, ViewId};

use super::super::Bench;
use super::wild::sum;
use super::{answer, every};
use crate::events::queue::LENGTH;
use crate::loader;
use crate::machine::{State, Went};
use crate::ram::Ram;
use crate::start;

/// Virtual time of a run, in ns.
const LONG: u64 = 12_000_000;

fn guest(vcpus: u32) -> Bench {
    let data = vmtree_guest::elf();
    let image = loader::parse(&data).unwrap();
    let ram = Arc::new(Ram::new(8 << 20).unwrap());
    loader::load(&image, &data, &ram).unwrap();
    start::tables(&ram);
    let list = (0..vcpus).map(|id| start::vcpu(id, vcpus, image.entry)).collect();
    Bench { state: State::new(list, ram, 0) }
}

type Outcome = (Vec<vmtree_api::x86::Registers>, u64, u64);

/// Runs in portions of as many steps each, and returns what became of it and how many events there were. A slow observer
/// takes them only when there is no room for more.
fn run(mut bench: Bench, slow: bool) -> (Outcome, usize) {
    let arrived = AtomicU64::new(1);
    let mut events = 0;
    while bench.state.world.now() < LONG {
        let went = bench.state.go(&arrived);
        let full = bench.state.vcpus.iter().any(|vcpu| vcpu.trap.full);
        if full || !slow {
            events += std::iter::from_fn(|| bench.event()).count();
        }
        let held = (0..bench.state.vcpus.len())
            .find_map(|index| Some((index, bench.state.vcpus[index].trap.held?.serial)));
        if let Some((index, serial)) = held {
            answer(&mut bench.state, index, serial, &Verdict::Continue).unwrap();
            continue;
        }
        match went {
            Went::Called => {}
            Went::Idle if full => {}
            Went::Idle => {
                let time = (0..bench.state.vcpus.len()).filter_map(|index| bench.state.wakes(index)).min();
                bench.state.skip(time.expect("a timer"));
            }
            Went::Dead(index) => panic!("vCPU {index}"),
        }
    }
    let regs = bench.state.vcpus.iter().map(|vcpu| vcpu.snapshot(&bench.state.world)).collect();
    ((regs, bench.state.world.now(), sum(&bench)), events)
}

fn observed(vcpus: u32, watches: &[Watch], rules: &[Rule]) -> (Outcome, usize) {
    let mut bench = guest(vcpus);
    bench.watch(watches);
    bench.rules(rules);
    run(bench, false)
}

/// The kinds that the guest's everyday work has none of.
const RARE: &[EventKind] = &[
    EventKind::Cr8,
    EventKind::Xcr0,
    EventKind::Dr,
    EventKind::Breakpoint,
    EventKind::Io,
    EventKind::GuestRequest,
    EventKind::Cpuid,
    EventKind::Cr0,
    EventKind::Cr4,
];

#[test]
fn observers_of_each_kind_change_nothing() {
    // Of two vCPUs none waits for an observer; of one, none notices that it is held.
    for (vcpus, hold) in [(2, false), (1, true)] {
        let (expected, _) = run(guest(vcpus), false);
        for kind in EventKind::ALL.iter().filter(|kind| **kind != EventKind::Slat) {
            let (outcome, events) = observed(vcpus, &[Watch { hold, ..every(*kind) }], &[]);
            assert!(outcome == expected, "{kind}, held: {hold}");
            assert!(events > 0 || RARE.contains(kind), "{kind}");
        }
        for access in
            [Access::READ.union(Access::EXECUTE), Access::EXECUTE, Access::READ.union(Access::WRITE)]
        {
            let rule = Rule { view: ViewId(0), frames: Gfn(0)..Gfn(0x600), access, hold };
            let (outcome, events) = observed(vcpus, &[], &[rule]);
            assert!(outcome == expected, "{access}, held: {hold}");
            assert!(events > 1000, "{events}");
        }
    }
}

#[test]
fn nor_does_an_observer_that_is_too_slow() {
    let (expected, _) = run(guest(2), false);
    let mut bench = guest(2);
    bench.watch(&[Watch { hold: false, ..every(EventKind::SingleStep) }]);
    let (outcome, events) = run(bench, true);
    assert!(events > 2 * LENGTH && outcome == expected, "{events}");
}
