//! Held vCPUs: who may hold, in which order they go on, and what lets them go without an answer.

use std::time::{Duration, Instant};

use vmtree_guest::mailbox::Counter;

use super::control::{file, stop};
use super::errno::{EBUSY, ESTALE};
use super::event_files::stat;
use super::events::EVENTS;
use crate::acts::{Act, acts};
use crate::order::Masked;
use crate::pipe::Pipe;
use crate::{Check, Checked, Vm};

pub const CHECKS: &[Check] = &[
    Check {
        name: "held-stale",
        needs: EVENTS,
        about: "a number that is unknown, answered or of another file is ESTALE",
        run: stale,
    },
    Check {
        name: "held-overlap",
        needs: EVENTS,
        about: "a second file that could decide the same event is EBUSY; one that can't is not, nor is a watcher",
        run: overlap,
    },
    Check {
        name: "held-timeout",
        needs: EVENTS,
        about: "without an answer in reply_timeout the vCPU goes on as if nobody had watched",
        run: timeout,
    },
    Check { name: "held-close", needs: EVENTS, about: "closing lets all go that the file holds", run: close },
    Check {
        name: "held-reverse",
        needs: EVENTS,
        about: "several vCPUs held at once, answered from the last to the first",
        run: reverse,
    },
    Check {
        name: "held-two-kinds",
        needs: &["event breakpoint", "event interrupt"],
        about: "one int3 raises both its kinds, one after the other, each held and answered on its own",
        run: two_kinds,
    },
    Check {
        name: "held-others-run",
        needs: EVENTS,
        about: "while one vCPU is held the others work",
        run: others_run,
    },
    Check {
        name: "held-pause",
        needs: &["event *", "pause"],
        about: "a pause while held: after the answer the vCPU stands until resume",
        run: pause,
    },
    Check {
        name: "held-registers",
        needs: &["event *", "registers"],
        about: "the registers of a held vCPU are those of the event, and those written are what it goes on with",
        run: registers,
    },
];

/// Something that every vCPU can do: the first kind that is offered, but for cr8, which masks interrupts.
fn first(vm: &Vm, vcpu: u64) -> Result<Act, String> {
    let act = acts(vm, vcpu)?.into_iter().find(|act| act.kind != "cr8");
    act.map(Act::once).ok_or_else(|| "no kind but cr8 is offered".to_owned())
}

/// All vCPUs look for orders without a pause: a timer may stand still while a vCPU is held, so no tick need come.
fn awake(vm: &Vm) -> Result<Vec<Masked<'_>>, String> {
    (0..vm.vcpus).map(|vcpu| vm.masked(vcpu)).collect()
}

fn stale(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let _awake = awake(vm)?;
    let act = first(vm, 0)?;
    vm.prepare(&act)?;
    let mut pipe = vm.control(&file(&act))?;
    pipe.refuses("1 continue", ESTALE)?;
    let stopped = stop(vm, &act, &mut pipe)?;
    let seq = stopped.record.seq()?;
    pipe.refuses(&format!("{} continue", seq + 1), ESTALE)?;
    // All of a write or nothing: the first line would have been right.
    pipe.refuses(&format!("{seq} continue\n{} continue", seq + 1), ESTALE)?;
    vm.stands(&stopped.posted, "after a refused write")?;
    if vm.vcpus > 1 {
        let other = first(vm, vm.vcpus - 1)?;
        vm.control(&file(&other))?.refuses(&format!("{seq} continue"), ESTALE)?;
    }
    pipe.answer(&stopped.record, "continue")?;
    pipe.refuses(&format!("{seq} continue"), ESTALE)?;
    vm.end(&stopped.posted)?;
    drop(pipe);
    vm.restore(&act)
}

/// A file that must not be had now.
fn busy(vm: &Vm, name: &str) -> Checked {
    let code = vm.try_control(name).err().and_then(|error| error.raw_os_error());
    same!(code, Some(EBUSY.0), "the errno of {name}, opened to decide what another file decides");
    Ok(())
}

fn overlap(vm: &Vm) -> Checked {
    let act = first(vm, 0)?;
    let whole = format!("events/{}{}", act.kind, act.params);
    let pipe = vm.control(&act.file())?;
    busy(vm, &act.file())?;
    busy(vm, &whole)?;
    busy(vm, &file(&act))?;
    busy(vm, "events/all")?;
    vm.watch(&act.file())?;
    drop(pipe);
    let pipe = vm.control(&file(&act))?;
    busy(vm, &act.file())?;
    if vm.vcpus > 1 {
        vm.control(&format!("{},vcpu=1", act.file()))?;
    }
    drop(pipe);
    // What was closed is free at once: opens wait for a release under way.
    for _ in 0..20 {
        vm.control(&act.file())?;
    }
    Ok(())
}

fn timeout(vm: &Vm) -> Checked {
    let patience = vm.fact("reply_timeout_ms")?;
    let patience: u64 = patience.parse().map_err(|error| format!("reply_timeout_ms of info: {error}"))?;
    let patience = Duration::from_millis(patience);
    let _quiet = vm.quiet()?;
    let act = first(vm, vm.vcpus - 1)?;
    let before = stat(vm, act.kind, "timed_out")?;
    vm.prepare(&act)?;
    let mut pipe = vm.control(&file(&act))?;
    let begun = Instant::now();
    let stopped = stop(vm, &act, &mut pipe)?;
    let outcome = vm.end(&stopped.posted)?;
    let took = begun.elapsed();
    pipe.refuses(&format!("{} continue", stopped.record.seq()?), ESTALE)?;
    drop(pipe);
    ensure!(took > patience * 9 / 10, "let go after {took:?}, of {patience:?}");
    ensure!(took < patience + Duration::from_secs(2), "let go only after {took:?}, of {patience:?}");
    ensure!(
        matches!(outcome, vmtree_guest::Outcome::Done(_)),
        "let go by time, the order ended with {outcome:x?}"
    );
    same!(stat(vm, act.kind, "timed_out")?, before + 1, "timed_out of {}", act.kind);
    vm.restore(&act)
}

/// All vCPUs held at the same kind of event by one file.
fn stop_all(vm: &Vm) -> Result<(Vec<Act>, Pipe, Vec<super::control::Stopped>), String> {
    let acts = (0..vm.vcpus).map(|vcpu| first(vm, vcpu)).collect::<Result<Vec<_>, _>>()?;
    let mut pipe = vm.control(&acts.first().ok_or("no vCPU")?.file())?;
    let mut all = Vec::new();
    for act in &acts {
        vm.prepare(act)?;
        all.push(stop(vm, act, &mut pipe)?);
    }
    Ok((acts, pipe, all))
}

fn close(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let _awake = awake(vm)?;
    let (acts, pipe, all) = stop_all(vm)?;
    for stopped in &all {
        vm.stands(&stopped.posted, "before the close")?;
    }
    drop(pipe);
    for (act, stopped) in acts.iter().zip(&all) {
        let outcome = vm.end(&stopped.posted).map_err(|why| format!("after the close: {why}"))?;
        ensure!(matches!(outcome, vmtree_guest::Outcome::Done(_)), "{}: {outcome:x?}", act.name());
        same!(vm.text(&format!("vcpu/{}/state", act.vcpu))?, "running\n", "state of vCPU {}", act.vcpu);
        vm.restore(act)?;
    }
    Ok(())
}

fn reverse(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let _awake = awake(vm)?;
    let (acts, mut pipe, all) = stop_all(vm)?;
    let mut later: Vec<_> = all.iter().collect();
    while let Some(stopped) = later.pop() {
        for waiting in &later {
            vm.stands(&waiting.posted, "before its answer")?;
        }
        pipe.answer(&stopped.record, "continue")?;
        vm.end(&stopped.posted)?;
    }
    drop(pipe);
    acts.iter().try_for_each(|act| vm.restore(act))
}

fn two_kinds(vm: &Vm) -> Checked {
    use vmtree_guest::mailbox::{Op, Site};
    let _quiet = vm.quiet()?;
    let at = vm.mailbox.site(Site::Int3).map_err(|error| error.to_string())?;
    let denied = |kind: &str| vm.offers(&format!("event {kind} deny"));
    let all = [(["continue", "continue"], 1), (["continue", "deny"], 0), (["deny", ""], 0)];
    for (answers, taken) in all {
        let [first, second] = answers;
        if first == "deny" && !denied("breakpoint") || second == "deny" && !denied("interrupt") {
            continue;
        }
        let before = vm.counter(0, Counter::Breakpoints)?;
        let mut pipes =
            [vm.control("events/breakpoint,vcpu=0")?, vm.control("events/interrupt,vcpu=0,vector=3")?];
        let posted = vm.post(0, &(Op::Int3, vec![1]))?;
        for (pipe, answer) in pipes.iter_mut().zip(answers).filter(|(_, answer)| !answer.is_empty()) {
            let record = pipe.held()?;
            same!(record.get("rip")?, at, "rip= of {record:?}");
            vm.stands(&posted, "at an int3 that is held")?;
            pipe.answer(&record, answer)?;
        }
        vm.end(&posted)?;
        pipes.iter_mut().try_for_each(Pipe::nothing_yet)?;
        let counted = vm.counter(0, Counter::Breakpoints)? - before;
        same!(counted, taken, "breakpoints that the guest took, answered {answers:?}");
    }
    Ok(())
}

fn others_run(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let _awake = awake(vm)?;
    let act = first(vm, 0)?;
    vm.prepare(&act)?;
    let mut pipe = vm.control(&file(&act))?;
    let stopped = stop(vm, &act, &mut pipe)?;
    let before = vm.counters(0)?;
    for vcpu in 1..vm.vcpus {
        let beats = vm.counter(vcpu, Counter::Heartbeat)?;
        vm.order(vcpu, vmtree_guest::mailbox::Op::Spin, &[1000])?;
        let what = format!("vCPU {vcpu} goes round");
        vm.until(&what, || Ok(vm.counter(vcpu, Counter::Heartbeat)? > beats + 10))?;
    }
    std::thread::sleep(Duration::from_millis(50));
    let moved = vm.counters(0)?.since(&before);
    ensure!(moved.is_empty(), "counters of a held vCPU moved: {moved:?}");
    pipe.answer(&stopped.record, "continue")?;
    vm.end(&stopped.posted)?;
    drop(pipe);
    vm.restore(&act)
}

fn pause(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let act = first(vm, 0)?;
    vm.prepare(&act)?;
    let mut pipe = vm.control(&file(&act))?;
    let stopped = stop(vm, &act, &mut pipe)?;
    let paused = vm.pause()?;
    pipe.answer(&stopped.record, "continue")?;
    vm.stands(&stopped.posted, "in a paused VM")?;
    same!(vm.text("vcpu/0/state")?, "paused\n", "vcpu/0/state after the answer in a pause");
    drop(paused);
    vm.end(&stopped.posted)?;
    // The other way round: an event can't be raised while paused, and is once resumed.
    let paused = vm.pause()?;
    let posted = vm.post(0, &act.order)?;
    pipe.nothing()?;
    drop(paused);
    let record = pipe.held()?;
    pipe.answer(&record, "continue")?;
    vm.end(&posted)?;
    drop(pipe);
    vm.restore(&act)
}

fn registers(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let mut act = first(vm, vm.vcpus - 1)?;
    if let Some(times) = act.order.1.first_mut() {
        *times = 50;
    }
    vm.prepare(&act)?;
    let mut pipe = vm.control(&file(&act))?;
    let stopped = stop(vm, &act, &mut pipe)?;
    for name in ["rip", "cr3"] {
        let found = vm.reg(act.vcpu, name)?;
        same!(found, stopped.record.get(name)?, "{name} of the held vCPU, against its record");
    }
    same!(vm.reg(act.vcpu, "r12")?, 50, "r12 of the held vCPU: rounds to go");
    // A driver may lack one of a held vCPU, and so all at once.
    match vm.regs(act.vcpu) {
        Ok(all) => same!(all.get("rip")?, stopped.record.get("rip")?, "rip in regs/all of the held vCPU"),
        Err(why) => ensure!(why.contains("os error 16"), "regs/all of the held vCPU: {why}"),
    }
    if vm.writable(act.vcpu, "r12") {
        vm.write(&format!("vcpu/{}/regs/r12", act.vcpu), "1\n")?;
        pipe.answer(&stopped.record, "continue")?;
    } else {
        drop(pipe);
        vm.end(&stopped.posted)?;
        return vm.restore(&act);
    }
    vm.end(&stopped.posted)?;
    pipe.nothing()?;
    drop(pipe);
    vm.restore(&act)
}
