//! What watching must not change: the guest's own progress.

use std::collections::BTreeMap;

use vmtree_guest::Outcome;
use vmtree_guest::mailbox::{Counter, Op, header};

use super::events::EVENTS;
use crate::acts::{Order, all_acts};
use crate::{Check, Checked, Vm};

pub const CHECKS: &[Check] = &[Check {
    name: "watched-progress",
    needs: EVENTS,
    about: "under a watcher of each kind the guest counts and answers exactly as without",
    run: progress,
}];

/// What the guest counted and answered.
#[derive(Debug, Eq, PartialEq)]
struct Progress {
    outcomes: Vec<Outcome>,
    counts: Vec<BTreeMap<Counter, u64>>,
}

/// The same work each time: all that raises events, accesses to memory, faults, and ring 3, on every vCPU.
fn orders(vm: &Vm) -> Result<Vec<(u64, Order)>, String> {
    let mut all = Vec::new();
    for act in all_acts(vm)? {
        let orders = act.before.iter().chain([&act.order]);
        all.extend(orders.map(|order| (act.vcpu, order.clone())));
        // CR0 and CR4 are flipped an even number of times.
        let after = act.after.iter().filter(|_| !["cr0", "cr4"].contains(&act.kind));
        all.extend(after.map(|order| (act.vcpu, order.clone())));
    }
    let (scratch, code, guard) =
        (vm.header(header::SCRATCH)?, vm.header(header::CODE)?, vm.header(header::GUARD)?);
    for vcpu in 0..vm.vcpus {
        let work = [
            (Op::Write, vec![5, scratch + 0xb0, 7, 8]),
            (Op::Read, vec![5, scratch + 0xb0, 8]),
            (Op::Exec, vec![3, code]),
            (Op::Read, vec![1, guard, 8]),
            (Op::Copy, vec![1, scratch + 0x100, vm.header(header::DATA)?, 0x300]),
            (Op::UserSyscall, vec![10]),
            (Op::UserLazy, vec![3]),
            (Op::UserSelfModify, vec![3]),
            (Op::Ipi, vec![2, (vcpu + 1) % vm.vcpus]),
            (Op::Spin, vec![200]),
        ];
        all.extend(work.map(|order| (vcpu, order)));
    }
    Ok(all)
}

/// CR2 is of the last page fault, whenever that was: of another exception it says nothing.
fn without_stale_cr2(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Faulted { vector, error, rip, .. } if vector != 14 => {
            Outcome::Faulted { vector, error, rip, cr2: 0 }
        }
        outcome => outcome,
    }
}

fn work(vm: &Vm, orders: &[(u64, Order)]) -> Result<Progress, String> {
    let before = (0..vm.vcpus).map(|vcpu| vm.counters(vcpu)).collect::<Result<Vec<_>, _>>()?;
    let outcome = |(vcpu, (op, args)): &(u64, Order)| vm.outcome(*vcpu, *op, args).map(without_stale_cr2);
    let outcomes = orders.iter().map(outcome).collect::<Result<_, _>>()?;
    let counts =
        (0..).zip(&before).map(|(vcpu, before)| vm.worked(vcpu, before)).collect::<Result<_, _>>()?;
    Ok(Progress { outcomes, counts })
}

/// The files to watch: each kind, the MSR that is written, rules on pages that the work touches, and all at once.
fn files(vm: &Vm) -> Result<Vec<Vec<String>>, String> {
    let page = |gpa| super::slat::page(gpa);
    let mut files: Vec<Vec<String>> = Vec::new();
    for kind in vm.event_kinds() {
        files.push(match kind.as_str() {
            "msr" => vec!["events/msr".to_owned(), "events/msr,index=0xc0000102".to_owned()],
            "slat" => [header::SCRATCH, header::CODE, header::DATA]
                .iter()
                .map(|offset| Ok(format!("events/slat,gpa={},access=rwx", page(vm.header(*offset)?))))
                .collect::<Result<_, String>>()?,
            kind => vec![format!("events/{kind}")],
        });
    }
    let all = files.iter().flatten().filter(|name| !name.contains("singlestep")).cloned().collect();
    files.push(all);
    Ok(files)
}

fn progress(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let orders = orders(vm)?;
    let alone = work(vm, &orders)?;
    same!(work(vm, &orders)?, alone, "the same work twice, with nobody there");
    for names in files(vm)? {
        let pipes = names.iter().map(|name| vm.watch(name)).collect::<Result<Vec<_>, _>>()?;
        let watched = work(vm, &orders).map_err(|why| format!("with {names:?} open: {why}"))?;
        drop(pipes);
        for ((vcpu, (op, args)), (found, wanted)) in
            orders.iter().zip(watched.outcomes.iter().zip(&alone.outcomes))
        {
            same!(found, wanted, "how {} {args:x?} of vCPU {vcpu} ends with {names:?} open", op.name());
        }
        for (vcpu, (found, wanted)) in watched.counts.iter().zip(&alone.counts).enumerate() {
            same!(found, wanted, "counts of vCPU {vcpu} with {names:?} open");
        }
    }
    Ok(())
}
