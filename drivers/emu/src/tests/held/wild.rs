//! Guests that are anything at all, stopped at everything they do, against the same guests left alone.

use vmtree_api::events::{EventKind, Verdict, Watch};
use vmtree_api::views::Rule;
use vmtree_api::{Access, Gfn, ViewId};

use super::super::Bench;
use super::super::wild::wild;
use super::every;
use crate::cpu::Stepped;

const STEPS: usize = 400;

/// What a guest has become.
#[derive(Debug, PartialEq)]
struct Outcome {
    regs: vmtree_api::x86::Registers,
    xmm: [u128; 16],
    now: u64,
    steps: usize,
    memory: u64,
}

/// A sum of what the guest can have written (FNV-1a over words).
pub fn sum(bench: &Bench) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    let mut page = [0; 4096];
    for gfn in 0..0x600_u64 {
        assert!(bench.state.world.ram.load(gfn << 12, &mut page));
        for word in page.chunks(8).filter(|word| word.iter().any(|byte| *byte != 0)) {
            let word = word.iter().rev().fold(gfn << 32, |all, byte| all << 8 ^ u64::from(*byte));
            sum = (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    sum
}

/// Runs vCPU 0 alone, without remembering translations: those are not the same where walks are watched.
fn run(bench: &mut Bench) -> Outcome {
    answered(bench, |_| Verdict::Continue)
}

/// The same with these answers; they are told how many came before.
fn answered(bench: &mut Bench, mut verdict: impl FnMut(u64) -> Verdict) -> Outcome {
    let mut steps = 0;
    let mut stops = 0_u64;
    while steps < STEPS {
        bench.state.vcpus[0].tlb.flush();
        match bench.state.step(0) {
            Stepped::Ran | Stepped::Yielded => steps += 1,
            Stepped::Held => {
                stops += 1;
                assert!(stops < 400 * STEPS as u64, "it makes progress");
            }
            Stepped::Idle | Stepped::Dead => break,
        }
        while bench.event().is_some() {}
        if bench.state.vcpus[0].trap.held.is_some() {
            bench.answer(verdict(stops));
        }
    }
    let vcpu = &bench.state.vcpus[0];
    let regs = vcpu.snapshot(&bench.state.world);
    Outcome { regs, xmm: vcpu.cpu.xmm, now: bench.state.world.now(), steps, memory: sum(bench) }
}

fn intercepted(seed: u64, access: Access, hold: bool) -> Outcome {
    let mut bench = wild(seed);
    let kinds = EventKind::ALL.iter().filter(|kind| **kind != EventKind::Slat);
    let watches: Vec<Watch> = kinds.map(|kind| Watch { hold, ..every(*kind) }).collect();
    bench.watch(&watches);
    bench.rules(&[Rule { view: ViewId(0), frames: Gfn(0)..Gfn(0x600), access, hold }]);
    run(&mut bench)
}

fn rounds() -> u64 {
    std::env::var("VMTREE_WILD").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}

#[test]
fn no_guest_notices_that_it_is_stopped() {
    let mut longest = 0;
    for seed in 0..rounds() {
        let plain = run(&mut wild(seed));
        longest = longest.max(plain.steps);
        for (access, hold) in [(Access::NONE, true), (Access::NONE, false), (Access::READ, true)] {
            assert_eq!(intercepted(seed, access, hold), plain, "seed {seed}, {access}, held: {hold}");
        }
    }
    assert!(longest > 100, "{longest}");
}

#[test]
fn nor_that_it_goes_to_and_fro_between_views_that_show_the_same() {
    for seed in 0..rounds() {
        let plain = run(&mut wild(seed));
        let mut bench = wild(seed);
        let kinds = EventKind::ALL.iter().filter(|kind| **kind != EventKind::Slat);
        bench.watch(&kinds.map(|kind| every(*kind)).collect::<Vec<_>>());
        let other = bench.state.world.slat.create().unwrap();
        let guarded = |view| Rule { view, frames: Gfn(0)..Gfn(0x600), access: Access::NONE, hold: true };
        bench.rules(&[guarded(ViewId(0)), guarded(other)]);
        let outcome = answered(&mut bench, |number| {
            let chance = (number ^ seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
            match chance {
                0 => Verdict::View(other),
                1 => Verdict::View(ViewId(0)),
                2 => Verdict::Step(Some(other)),
                3 => Verdict::Step(Some(ViewId(0))),
                4 => Verdict::Step(None),
                5 => Verdict::Set(Vec::new()),
                _ => Verdict::Continue,
            }
        });
        assert_eq!(outcome, plain, "seed {seed}");
    }
}
