//! Events, decided: what each answer makes of the event, by what the guest itself then has.

use std::collections::BTreeMap;

use vmtree_guest::Outcome;
use vmtree_guest::mailbox::Counter;

use super::errno::{EINVAL, EOPNOTSUPP, ERANGE};
use super::events::EVENTS;
use crate::acts::{Act, all_acts};
use crate::event::Record;
use crate::perform::Posted;
use crate::pipe::Pipe;
use crate::{Check, Checked, Vm};

pub const CHECKS: &[Check] = &[
    Check {
        name: "control-continue",
        needs: EVENTS,
        about: "held at each event, and with continue the guest counts and has what it would have had",
        run: go_on,
    },
    Check {
        name: "control-deny",
        needs: &["event * deny"],
        about: "what is denied does not take place, and the guest goes on behind it",
        run: deny,
    },
    Check {
        name: "control-value",
        needs: &["event * value"],
        about: "the guest writes, or reads, the value that was answered",
        run: value,
    },
    Check {
        name: "control-cpuid-value",
        needs: &["event cpuid value"],
        about: "a value for cpuid is all four registers",
        run: cpuid_value,
    },
    Check {
        name: "control-set",
        needs: &["event * set"],
        about: "registers that are set are what the guest goes on with",
        run: set,
    },
    Check {
        name: "control-step",
        needs: &["event * step"],
        about: "step carries the instruction out, once",
        run: step,
    },
    Check {
        name: "control-inject",
        needs: &["event * inject"],
        about: "a page fault instead of the event: the guest counts it, with its CR2 and error code",
        run: inject,
    },
    Check {
        name: "control-refusals",
        needs: EVENTS,
        about: "answers that make no sense, or that the kind does not have, are refused and the vCPU stays held",
        run: refusals,
    },
];

/// A vCPU that is held at an act's event.
pub struct Stopped {
    pub posted: Posted,
    pub record: Record,
}

/// Orders the act, of which `pipe` decides, and waits until it is held.
pub fn stop(vm: &Vm, act: &Act, pipe: &mut Pipe) -> Result<Stopped, String> {
    let posted = vm.post(act.vcpu, &act.order)?;
    let record = pipe.held().map_err(|why| format!("{}: {why}", act.name()))?;
    act.check(vm, 0, &record)?;
    let state = vm.text(&format!("vcpu/{}/state", act.vcpu))?;
    same!(state, format!("held {}\n", record.seq()?), "vcpu/{}/state at {}", act.vcpu, act.name());
    Ok(Stopped { posted, record })
}

/// The file that decides an act, of its vCPU alone.
pub fn file(act: &Act) -> String {
    format!("{},vcpu={}", act.file(), act.vcpu)
}

/// The acts, once each, of which the mount takes this action.
fn taking(vm: &Vm, action: &str) -> Result<Vec<Act>, String> {
    let acts = all_acts(vm)?.into_iter().map(Act::once);
    Ok(acts.filter(|act| vm.offers(&format!("event {} {action}", act.kind))).collect())
}

/// Holds an act's event, answers it, and returns how the order ends; nothing is armed then.
fn answered(vm: &Vm, act: &Act, action: &str) -> Result<Outcome, String> {
    let mut pipe = vm.control(&file(act))?;
    let stopped = stop(vm, act, &mut pipe)?;
    pipe.answer(&stopped.record, action)?;
    let outcome = vm.end(&stopped.posted).map_err(|why| format!("{} after {action}: {why}", act.name()))?;
    // One more would hold the vCPU, and the order would not end.
    pipe.nothing_yet()?;
    Ok(outcome)
}

fn go_on(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    for act in all_acts(vm)? {
        vm.prepare(&act)?;
        let before = vm.counters(act.vcpu)?;
        let mut pipe = vm.control(&file(&act))?;
        let posted = vm.post(act.vcpu, &act.order)?;
        let mut times = Vec::new();
        for nth in 0..act.records.len() {
            let record = pipe.held().map_err(|why| format!("{}: {why}", act.name()))?;
            act.check(vm, nth, &record)?;
            times.push(record.seq()?);
            pipe.answer(&record, "continue")?;
        }
        let held = vm.end(&posted)?;
        drop(pipe);
        let counted = vm.worked(act.vcpu, &before)?;
        vm.restore(&act)?;
        ensure!(times.is_sorted(), "numbers of {} go back: {times:?}", act.name());
        // Once more, with nobody there.
        vm.prepare(&act)?;
        let before = vm.counters(act.vcpu)?;
        let alone = vm.outcome(act.vcpu, act.order.0, &act.order.1)?;
        same!(held, alone, "how {} ends when each is held and continued, and alone", act.name());
        same!(counted, vm.worked(act.vcpu, &before)?, "counts of {}, held and alone", act.name());
        vm.restore(&act)?;
    }
    Ok(())
}

fn deny(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    for act in taking(vm, "deny")?.into_iter().filter(|act| act.way != "from") {
        vm.prepare(&act)?;
        let (old, before) = (act.probe.as_ref().map(|_| vm.probe(&act)).transpose()?, vm.counters(act.vcpu)?);
        let outcome = answered(vm, &act, "deny")?;
        ensure!(matches!(outcome, Outcome::Done(_)), "{} denied: {outcome:x?}", act.name());
        let counted = vm.counters(act.vcpu)?.since(&before);
        // Without a watcher a request is #UD, and then not counted.
        let counter = if act.kind == "guest_request" { Some(Counter::Vmcalls) } else { act.counter };
        let counted = counter.and_then(|counter| counted.get(&counter).copied()).unwrap_or(0);
        // An instruction is behind the guest, and counted there; a handler never ran.
        let swallowed = ["interrupt", "breakpoint"].contains(&act.kind);
        same!(counted, u64::from(!swallowed), "what the guest counted of {}, denied", act.name());
        if let Some(old) = old {
            same!(vm.probe(&act)?, old, "what the guest has after {} was denied", act.name());
        }
        vm.restore(&act)?;
    }
    Ok(())
}

fn value(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let acts = taking(vm, "value")?.into_iter().filter(|act| act.other != 0 && act.kind != "cpuid");
    for act in acts {
        vm.prepare(&act)?;
        let outcome = answered(vm, &act, &format!("value={:#x}", act.other))?;
        let Outcome::Done([result, ..]) = outcome else {
            return Err(format!("{} with value= ended with {outcome:x?}", act.name()));
        };
        match (act.way, &act.probe) {
            ("from", _) => {
                same!(result, act.other, "what the guest got of {} with value=", act.name());
                // It was for once.
                let again = vm.order(act.vcpu, act.order.0, &act.order.1)?;
                ensure!(again != act.other, "{} goes on to read the value of one answer", act.name());
            }
            ("", _) => same!(result, act.other, "what {} gave with value=", act.name()),
            (_, Some(_)) => {
                same!(vm.probe(&act)?, act.other, "what the guest has after {} with value=", act.name())
            }
            (_, None) => {}
        }
        vm.restore(&act)?;
    }
    Ok(())
}

fn cpuid_value(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    for act in taking(vm, "value")?.into_iter().filter(|act| act.kind == "cpuid") {
        let outcome = answered(vm, &act, "value=0x44444444333333332222222211111111")?;
        let wanted = Outcome::Done([0x1111_1111, 0x2222_2222, 0x3333_3333, 0x4444_4444]);
        same!(outcome, wanted, "what the guest got of {} with value=", act.name());
    }
    Ok(())
}

/// R12 counts the rounds of every order down: with 1 in it, this round is the last.
fn set(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    for mut act in taking(vm, "set")? {
        let Some(times) = act.order.1.first_mut() else { continue };
        *times = 100;
        vm.prepare(&act)?;
        let before = act.counter.map(|counter| vm.counter(act.vcpu, counter)).transpose()?;
        // One hundred times held would be one hundred answers: there is one.
        answered(vm, &act, "set r12=1")?;
        if let (Some(counter), Some(before)) = (act.counter, before) {
            let counted = vm.counter(act.vcpu, counter)? - before;
            same!(counted, 1, "{} of {} after r12 was set", counter.name(), act.name());
        }
        vm.restore(&act)?;
    }
    Ok(())
}

fn step(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    for act in taking(vm, "step")? {
        vm.prepare(&act)?;
        let before = vm.counters(act.vcpu)?;
        let stepped = answered(vm, &act, "step")?;
        let counted = vm.worked(act.vcpu, &before)?;
        vm.restore(&act)?;
        vm.prepare(&act)?;
        let before = vm.counters(act.vcpu)?;
        let alone = vm.outcome(act.vcpu, act.order.0, &act.order.1)?;
        same!(stepped, alone, "how {} ends after step, and alone", act.name());
        same!(counted, vm.worked(act.vcpu, &before)?, "counts of {} after step, and alone", act.name());
        vm.restore(&act)?;
    }
    Ok(())
}

fn inject(vm: &Vm) -> Checked {
    const AT: u64 = 0x7f12_3456_7000;
    let _quiet = vm.quiet()?;
    for act in taking(vm, "inject")? {
        vm.prepare(&act)?;
        let outcome = answered(vm, &act, &format!("inject pf {AT:#x} err=0x6"))?;
        let wanted = Outcome::Faulted { vector: 14, error: 6, cr2: AT, rip: act.rip };
        same!(outcome, wanted, "how the guest's order ended after a page fault instead of {}", act.name());
        vm.restore(&act)?;
    }
    Ok(())
}

/// Actions and the answers that try them.
const ACTIONS: &[(&str, &str)] =
    &[("deny", "deny"), ("value", "value=1"), ("set", "set rax=1"), ("step", "step")];

fn refusals(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    for act in all_acts(vm)?.into_iter().map(Act::once) {
        vm.prepare(&act)?;
        let mut pipe = vm.control(&file(&act))?;
        let stopped = stop(vm, &act, &mut pipe)?;
        let seq = stopped.record.seq()?;
        for text in [
            "",
            "walk",
            "deny now",
            "value=",
            "value=x",
            "set",
            "set rax",
            "set nosuch=1",
            "view=nosuch",
            "inject",
        ] {
            pipe.refuses(&format!("{seq} {text}"), EINVAL)?;
        }
        pipe.refuses("continue", EINVAL)?;
        pipe.refuses(&format!("{seq} value=0x100000000000000000000000000000000"), ERANGE)?;
        for (action, text) in ACTIONS.iter().filter(|(action, _)| !vm.contract_has(&act, action)) {
            pipe.refuses(&format!("{seq} {text}"), EINVAL)
                .map_err(|why| format!("{action} of {}: {why}", act.name()))?;
        }
        let lacked = ACTIONS.iter().filter(|(action, _)| {
            vm.contract_has(&act, action) && !vm.offers(&format!("event {} {action}", act.kind))
        });
        for (_, text) in lacked {
            pipe.refuses(&format!("{seq} {text}"), EOPNOTSUPP)?;
        }
        let state = vm.text(&format!("vcpu/{}/state", act.vcpu))?;
        same!(state, format!("held {seq}\n"), "vcpu/{}/state after refused answers", act.vcpu);
        vm.stands(&stopped.posted, "after refused answers")?;
        pipe.answer(&stopped.record, "continue")?;
        vm.end(&stopped.posted)?;
        drop(pipe);
        vm.restore(&act)?;
    }
    Ok(())
}

impl Vm {
    /// Whether the contract has this action for the act's kind and way.
    fn contract_has(&self, act: &Act, action: &str) -> bool {
        match (action, act.kind, act.way) {
            ("deny", "interrupt" | "breakpoint" | "guest_request", _) => true,
            ("deny", "cpuid" | "singlestep", _) => false,
            ("deny", _, way) => way == "to",
            ("value", "interrupt" | "breakpoint" | "descriptor" | "singlestep", _) => false,
            _ => true,
        }
    }

    /// What a vCPU counted since, but for what time alone moves.
    pub(crate) fn worked(
        &self,
        vcpu: u64,
        before: &vmtree_guest::Counters,
    ) -> Result<BTreeMap<Counter, u64>, String> {
        let mut counted = self.counters(vcpu)?.since(before);
        counted.retain(|counter, _| ![Counter::Heartbeat, Counter::Ticks].contains(counter));
        Ok(counted)
    }
}
