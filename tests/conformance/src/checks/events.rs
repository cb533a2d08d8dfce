//! Events, watched: what a record says, and which file it comes to.

use vmtree_guest::Outcome;
use vmtree_guest::mailbox::Counter;

use crate::acts::{Act, acts, all_acts};
use crate::event::Record;
use crate::pipe::Pipe;
use crate::{Check, Checked, Vm};

pub const EVENTS: &[&str] = &["event *"];

pub const CHECKS: &[Check] = &[
    Check {
        name: "events-observe",
        needs: EVENTS,
        about: "as many records as the guest was ordered to raise, each with its fields, and no others",
        run: observe,
    },
    Check {
        name: "events-filters",
        needs: EVENTS,
        about: "vcpu, dir, index and vector in the name keep the others out",
        run: filters,
    },
    Check {
        name: "events-formats",
        needs: EVENTS,
        about: "text, JSON and binary tell the same of the same events",
        run: formats,
    },
    Check {
        name: "events-all",
        needs: EVENTS,
        about: "all has every kind, by seq, and seq and t only grow",
        run: all,
    },
    Check {
        name: "events-interrupt-types",
        needs: &["event interrupt"],
        about: "exceptions, NMIs and interrupts with their type, error code and CR2",
        run: interrupt_types,
    },
    Check {
        name: "events-singlestep",
        needs: &["event singlestep"],
        about: "a record an instruction, each where the code goes",
        run: singlestep,
    },
];

/// What the order of an act may end with.
fn ended(act: &Act, outcome: Outcome) -> Checked {
    let refused = matches!(outcome, Outcome::Faulted { vector: 6, .. }) && act.kind == "guest_request";
    ensure!(refused || matches!(outcome, Outcome::Done(_)), "{} ended with {outcome:x?}", act.name());
    Ok(())
}

/// Performs an act while these files are open; its records are still in them.
fn perform(vm: &Vm, act: &Act) -> Checked {
    let outcome = vm.outcome(act.vcpu, act.order.0, &act.order.1)?;
    ended(act, outcome)
}

fn observe(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    for act in all_acts(vm)? {
        vm.prepare(&act)?;
        let mut pipe = vm.watch(&act.file())?;
        let before = act.counter.map(|counter| vm.counter(act.vcpu, counter)).transpose()?;
        perform(vm, &act)?;
        let records = pipe.exactly(act.records.len()).map_err(|why| format!("{}: {why}", act.name()))?;
        drop(pipe);
        for (nth, record) in records.iter().enumerate() {
            act.check(vm, nth, record)?;
            same!(record.get("held")?, 0, "held= of a record that nobody decides: {record:?}");
        }
        if let (Some(counter), Some(before)) = (act.counter, before) {
            let counted = vm.counter(act.vcpu, counter)? - before;
            same!(
                counted,
                records.len() as u64,
                "{} of the guest, while {} is watched",
                counter.name(),
                act.name()
            );
        }
        vm.restore(&act)?;
    }
    Ok(())
}

/// Names of event files that must not see this act.
fn blind(act: &Act, vcpus: u64) -> Vec<String> {
    let mut names = Vec::new();
    if vcpus > 1 {
        names.push(format!("events/{}{},vcpu={}", act.kind, act.params, (act.vcpu + 1) % vcpus));
    }
    let other_way = if act.way == "to" { "from" } else { "to" };
    if !["", "xcr0"].contains(&act.way) && act.kind != "xcr0" {
        names.push(format!("events/{}{},dir={other_way}", act.kind, act.params));
    }
    match act.kind {
        "msr" => names.push("events/msr,index=0xc0000103".to_owned()),
        "dr" => names.push("events/dr,index=1".to_owned()),
        "interrupt" => names.push("events/interrupt,vector=3".to_owned()),
        _ => {}
    }
    names
}

fn filters(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    for act in all_acts(vm)? {
        // CR0 and CR4 are read too by the order that writes them.
        let reads_too = ["cr0 to", "cr4 to"].contains(&format!("{} {}", act.kind, act.way).as_str());
        vm.prepare(&act)?;
        let open = |name: &String| vm.watch(name);
        let names = blind(&act, vm.vcpus);
        let names = names.iter().filter(|name| !(reads_too && name.contains("dir=from")));
        // A way that the driver does not have can't be opened.
        let names = names.filter(|name| !name.contains("dir=") || vm.offers(&both_ways(&act)));
        let mut others = names.map(open).collect::<Result<Vec<Pipe>, _>>()?;
        let mut own = vm.watch(&format!("{},vcpu={}", act.file(), act.vcpu))?;
        perform(vm, &act)?;
        own.exactly(act.records.len()).map_err(|why| format!("{}: {why}", act.name()))?;
        for other in &mut others {
            other.nothing_yet().map_err(|why| format!("{}: {why}", act.name()))?;
        }
        drop((own, others));
        vm.restore(&act)?;
    }
    Ok(())
}

/// The capability of the act's other direction.
fn both_ways(act: &Act) -> String {
    format!("event {} {}", act.kind, if act.way == "to" { "from" } else { "to" })
}

fn formats(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    for act in acts(vm, vm.vcpus - 1)? {
        vm.prepare(&act)?;
        let mut pipes = ["", ",format=json", ",format=binary", ",format=text"]
            .map(|format| vm.watch(&format!("{}{format}", act.file())))
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        perform(vm, &act)?;
        let all =
            pipes.iter_mut().map(|pipe| pipe.exactly(act.records.len())).collect::<Result<Vec<_>, _>>()?;
        drop(pipes);
        vm.restore(&act)?;
        for (format, others) in ["json", "binary", "text"].iter().zip(all.iter().skip(1)) {
            for (text, other) in all.iter().take(1).flatten().zip(others) {
                let differ = text.differences(other);
                ensure!(differ.is_empty(), "{}: text and {format} differ: {}", act.name(), differ.join("; "));
            }
        }
    }
    Ok(())
}

fn all(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let acts = acts(vm, 0)?;
    acts.iter().try_for_each(|act| vm.prepare(act))?;
    let mut pipe = vm.watch("events/all")?;
    let mut records = Vec::new();
    for act in &acts {
        perform(vm, act)?;
        // Before the next one: where every instruction is a record, much would wait in the file.
        records.extend(until_told(act, &mut pipe)?);
    }
    drop(pipe);
    acts.iter().rev().try_for_each(|act| vm.restore(act))?;
    for pair in records.windows(2) {
        let [one, next] = pair else { continue };
        for field in ["seq", "t"] {
            ensure!(one.get(field)? <= next.get(field)?, "{field} goes back from {one:?} to {next:?}");
        }
        ensure!(one.seq()? != next.seq()?, "two records of one number: {one:?} and {next:?}");
    }
    Ok(())
}

/// Reads until all records of an act have come, with all that come before.
fn until_told(act: &Act, pipe: &mut Pipe) -> Result<Vec<Record>, String> {
    let of_act =
        |record: &Record| Ok(record.has(&[("kind", act.kind.to_owned())]) && record.get("rip")? == act.rip);
    let mut records = Vec::new();
    for nth in 0..act.records.len() {
        let more = pipe.until(of_act).map_err(|why| format!("{nth} records of {}: {why}", act.name()))?;
        records.extend(more);
    }
    Ok(records)
}

fn interrupt_types(vm: &Vm) -> Checked {
    use crate::event::number as hex;
    use vmtree_guest::mailbox::{Op, Site, header};
    let _quiet = vm.quiet()?;
    let guard = vm.header(header::GUARD)? + 0x18;
    let read = vm.mailbox.site(Site::Read8).map_err(|error| error.to_string())?;
    let ipi = vm.header(header::IPI_VECTOR)?;
    let last = vm.vcpus - 1;
    let kind = |name: &str| ("type", name.to_owned());
    let rows = [
        (
            14,
            (Op::Read, vec![1, guard, 8]),
            vec![kind("hwexc"), ("err", hex(0)), ("cr2", hex(guard)), ("rip", hex(read))],
        ),
        (13, (Op::Read, vec![1, 1 << 62, 8]), vec![kind("hwexc"), ("err", hex(0)), ("rip", hex(read))]),
        (2, (Op::Nmi, vec![1, last]), vec![kind("nmi")]),
        (ipi, (Op::Ipi, vec![1, last]), vec![kind("external")]),
    ];
    for (vector, order, mut fields) in rows {
        let before = vm.counters(last)?;
        let mut pipe = vm.watch(&format!("events/interrupt,vector={vector}"))?;
        let posted = vm.post(last, &order)?;
        vm.end(&posted)?;
        let records = pipe.exactly(1)?;
        drop(pipe);
        fields.extend([("vector", hex(vector)), ("vcpu", hex(last))]);
        for record in records {
            record.check(&format!("vector {vector}"), &fields)?;
        }
        let counted = vm.counters(last)?.since(&before);
        let taken: u64 = [Counter::PageFaults, Counter::GeneralProtections, Counter::Nmis, Counter::Ipis]
            .iter()
            .map(|counter| counted.get(counter).copied().unwrap_or(0))
            .sum();
        same!(taken, 1, "interrupts of vector {vector} that the guest counted");
    }
    Ok(())
}

fn singlestep(vm: &Vm) -> Checked {
    use vmtree_guest::mailbox::{Op, Site};
    let _quiet = vm.quiet()?;
    let spin = vm.mailbox.site(Site::Spin).map_err(|error| error.to_string())?;
    let last = vm.vcpus - 1;
    let mut pipe = vm.watch(&format!("events/singlestep,vcpu={last}"))?;
    vm.order(last, Op::Spin, &[50])?;
    let records = pipe.rest()?;
    drop(pipe);
    // dec r12, of 3 bytes, and jne behind it, 50 rounds. A tick that comes in between leads away and back.
    let [dec, jne] = [spin, spin + 3];
    for (from, to, times) in [(dec, jne, 50), (jne, dec, 49)] {
        let is = |record: &Record, at| record.get("rip") == Ok(at);
        let seen = records.windows(2).filter(|pair| is(&pair[0], from) && is(&pair[1], to)).count();
        same!(seen, times, "steps from {from:#x} to {to:#x}, in 50 rounds, among {} records", records.len());
    }
    for record in &records {
        same!(record.get("vcpu")?, last, "vcpu= of {record:?}");
    }
    Ok(())
}
