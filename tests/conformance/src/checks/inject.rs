//! Injection by `vcpu/N/inject`: what the guest then counts.

use std::time::Duration;

use vmtree_guest::Outcome;
use vmtree_guest::mailbox::{Counter, Op, header};

use super::errno::{EINVAL, ERANGE};
use crate::order::CATCHABLE;
use crate::{Check, Checked, Vm};

const NEEDS: &[&str] = &["injection"];
/// A vector that the guest has no use for: it counts it among the others.
const FREE: u64 = 0x70;

pub const CHECKS: &[Check] = &[
    Check {
        name: "inject-exceptions",
        needs: NEEDS,
        about: "page faults and other exceptions, with CR2 and error code, in a running loop",
        run: exceptions,
    },
    Check {
        name: "inject-interrupt",
        needs: NEEDS,
        about: "an external interrupt is counted by its vector, by a halted vCPU too",
        run: interrupt,
    },
    Check {
        name: "inject-pending",
        needs: NEEDS,
        about: "an interrupt waits while the guest has interrupts off, and comes once they are on",
        run: pending,
    },
    Check { name: "inject-nmi", needs: NEEDS, about: "an NMI comes with interrupts off too", run: nmi },
    Check {
        name: "inject-refusals",
        needs: NEEDS,
        about: "bad words, vectors and error codes are refused, and nothing comes",
        run: refusals,
    },
    Check {
        name: "inject-by-answer",
        needs: &["injection", "event * inject"],
        about: "an interrupt in an answer is made pending, and the event takes place",
        run: by_answer,
    },
];

fn inject(vm: &Vm, vcpu: u64, what: &str) -> Checked {
    vm.write(&format!("vcpu/{vcpu}/inject"), &format!("{what}\n"))
}

fn exceptions(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let rounds = vm.rounds(CATCHABLE)?;
    let rows = [
        ("pf 0x7f1234567123 err=0x4", 14, 4, 0x7f12_3456_7123, Counter::PageFaults),
        ("pf 0xffff900000000000 err=0x11", 14, 0x11, 0xffff_9000_0000_0000, Counter::PageFaults),
        ("exception 13 err=0x18", 13, 0x18, 0, Counter::GeneralProtections),
        ("exception 6", 6, 0, 0, Counter::InvalidOpcodes),
        ("exception 17 err=0", 17, 0, 0, Counter::OtherExceptions),
    ];
    for vcpu in 0..vm.vcpus {
        for (what, wanted, code, address, counter) in rows {
            let before = vm.counters(vcpu)?;
            let posted = vm.post(vcpu, &(Op::Spin, vec![rounds]))?;
            vm.begun(&posted)?;
            inject(vm, vcpu, what)?;
            let Outcome::Faulted { vector, error, cr2, .. } = vm.end(&posted)? else {
                return Err(format!("vCPU {vcpu}: the loop ended without a fault, of '{what}'"));
            };
            same!((vector, error), (wanted, code), "vector and error code of '{what}' on vCPU {vcpu}");
            ensure!(wanted != 14 || cr2 == address, "CR2 of '{what}' on vCPU {vcpu} is {cr2:#x}");
            let counted = vm.worked(vcpu, &before)?;
            same!(counted, [(counter, 1), (Counter::Orders, 1)].into(), "counts of '{what}' on vCPU {vcpu}");
        }
    }
    Ok(())
}

fn interrupt(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    // Not the vector of `int`: behind that the guest sends no EOI, and a local APIC would hold all below it back for ever.
    let rows = [(FREE, Counter::OtherInterrupts), (vm.header(header::IPI_VECTOR)?, Counter::Ipis)];
    for vcpu in 0..vm.vcpus {
        for (vector, counter) in rows {
            let before = vm.counter(vcpu, counter)?;
            for n in 1..=3 {
                inject(vm, vcpu, &format!("interrupt {vector:#x}"))?;
                let what = format!("vCPU {vcpu} counts interrupt {vector:#x}");
                vm.until(&what, || Ok(vm.counter(vcpu, counter)? >= before + n))?;
            }
            vm.order(vcpu, Op::Nop, &[])?;
            same!(vm.counter(vcpu, counter)?, before + 3, "{} of vCPU {vcpu}", counter.name());
        }
    }
    Ok(())
}

fn pending(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let rounds = vm.rounds(Duration::from_millis(400))?;
    for vcpu in 0..vm.vcpus {
        let before = vm.counter(vcpu, Counter::OtherInterrupts)?;
        let posted = vm.post(vcpu, &(Op::ClosedSpin, vec![rounds]))?;
        vm.begun(&posted)?;
        std::thread::sleep(Duration::from_millis(5));
        inject(vm, vcpu, &format!("interrupt {FREE}"))?;
        // The guest itself looks at the end of its loop.
        same!(
            vm.end(&posted)?,
            Outcome::Done([0; 4]),
            "interrupts that vCPU {vcpu} took with interrupts off"
        );
        let what = format!("vCPU {vcpu} takes the interrupt that waited");
        vm.until(&what, || Ok(vm.counter(vcpu, Counter::OtherInterrupts)? > before))?;
        same!(vm.counter(vcpu, Counter::OtherInterrupts)?, before + 1, "interrupts of vCPU {vcpu}");
    }
    Ok(())
}

fn nmi(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let rounds = vm.rounds(Duration::from_millis(400))?;
    for vcpu in 0..vm.vcpus {
        let before = vm.counter(vcpu, Counter::Nmis)?;
        let posted = vm.post(vcpu, &(Op::ClosedSpin, vec![rounds]))?;
        vm.begun(&posted)?;
        inject(vm, vcpu, "nmi")?;
        let what = format!("vCPU {vcpu} takes an NMI");
        vm.until(&what, || Ok(vm.counter(vcpu, Counter::Nmis)? > before))?;
        ensure!(!vm.done(vcpu, posted.seq())?, "the loop of vCPU {vcpu} was over before the NMI came");
        vm.end(&posted)?;
        same!(vm.counter(vcpu, Counter::Nmis)?, before + 1, "NMIs of vCPU {vcpu}");
    }
    Ok(())
}

fn refusals(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let before = vm.counters(0)?;
    for (text, errno) in [
        ("", EINVAL),
        ("smi", EINVAL),
        ("pf", EINVAL),
        ("pf 0x1000", EINVAL),
        ("pf 0x1000 err=", EINVAL),
        ("pf 0x1000 4", EINVAL),
        ("pf 0x10000000000000000 err=0", ERANGE),
        ("exception", EINVAL),
        ("exception 32", ERANGE),
        ("exception 13", EINVAL),
        ("exception 6 err=0", EINVAL),
        ("interrupt", EINVAL),
        ("interrupt 256", ERANGE),
        ("nmi nmi", EINVAL),
    ] {
        vm.refused("vcpu/0/inject", format!("{text}\n").as_bytes(), errno)?;
    }
    vm.order(0, Op::Nop, &[])?;
    same!(
        vm.worked(0, &before)?,
        [(Counter::Orders, 1)].into(),
        "what vCPU 0 counted after refused injections"
    );
    Ok(())
}

fn by_answer(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let act = crate::acts::acts(vm, 0)?.into_iter().find(|act| act.way == "to" && act.probe.is_some());
    let act = act.ok_or("no register can be watched")?.once();
    for (what, counter) in
        [(format!("interrupt {FREE}"), Counter::OtherInterrupts), ("nmi".to_owned(), Counter::Nmis)]
    {
        vm.prepare(&act)?;
        let before = vm.counter(0, counter)?;
        let mut pipe = vm.control(&super::control::file(&act))?;
        let stopped = super::control::stop(vm, &act, &mut pipe)?;
        pipe.answer(&stopped.record, &format!("inject {what}"))?;
        let outcome = vm.end(&stopped.posted)?;
        drop(pipe);
        ensure!(matches!(outcome, Outcome::Done(_)), "{} with inject {what}: {outcome:x?}", act.name());
        vm.until(&format!("the guest counts '{what}'"), || Ok(vm.counter(0, counter)? == before + 1))?;
        vm.restore(&act)?;
    }
    Ok(())
}
