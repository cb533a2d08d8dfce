//! Pause and resume.

use std::thread::sleep;
use std::time::Duration;

use vmtree_guest::Counters;
use vmtree_guest::mailbox::{Counter, Op, Site, header, slot, slot_of};

use crate::{Check, Checked, Vm};

const PAUSE: &[&str] = &["pause"];

pub const CHECKS: &[Check] = &[
    Check {
        name: "pause-stops-all",
        needs: PAUSE,
        about: "no counter of any vCPU moves while paused, all go on afterwards",
        run: stops_all,
    },
    Check {
        name: "pause-twice",
        needs: PAUSE,
        about: "two pauses and one resume: running; the state files say so",
        run: twice,
    },
    Check {
        name: "pause-memory",
        needs: PAUSE,
        about: "memory written while paused is read back, and by the guest afterwards",
        run: memory,
    },
    Check {
        name: "pause-at-registers",
        needs: &["pause", "registers"],
        about: "a register written while paused is what the guest goes on with",
        run: at_registers,
    },
];

fn all_counters(vm: &Vm) -> Result<Vec<Counters>, String> {
    (0..vm.vcpus).map(|vcpu| vm.counters(vcpu)).collect()
}

/// The state that all state files give.
fn state(vm: &Vm, wanted: &str) -> Checked {
    for path in
        std::iter::once("state".to_owned()).chain((0..vm.vcpus).map(|vcpu| format!("vcpu/{vcpu}/state")))
    {
        same!(vm.text(&path)?, format!("{wanted}\n"), "{path}");
    }
    Ok(())
}

/// Every vCPU's heartbeat and ticks move on.
fn goes_on(vm: &Vm) -> Checked {
    for vcpu in 0..vm.vcpus {
        for counter in [Counter::Heartbeat, Counter::Ticks] {
            let before = vm.counter(vcpu, counter)?;
            let what = format!("{} of vCPU {vcpu} moves on after a pause", counter.name());
            vm.until(&what, || Ok(vm.counter(vcpu, counter)? > before))?;
        }
    }
    Ok(())
}

fn stops_all(vm: &Vm) -> Checked {
    state(vm, "running")?;
    for _ in 0..5 {
        let paused = vm.pause()?;
        state(vm, "paused")?;
        let before = all_counters(vm)?;
        sleep(Duration::from_millis(100));
        let after = all_counters(vm)?;
        for (vcpu, (after, before)) in after.iter().zip(&before).enumerate() {
            let moved = after.since(before);
            ensure!(moved.is_empty(), "counters of vCPU {vcpu} moved while paused: {moved:?}");
        }
        drop(paused);
        state(vm, "running")?;
        goes_on(vm)?;
    }
    Ok(())
}

fn twice(vm: &Vm) -> Checked {
    let paused = vm.pause()?;
    vm.write("ctl", "pause\n")?;
    state(vm, "paused")?;
    drop(paused);
    state(vm, "running")?;
    goes_on(vm)?;
    // A resume of what runs changes nothing.
    vm.write("ctl", "resume\n")?;
    state(vm, "running")?;
    // Verbs on one line are done in order.
    vm.write("ctl", "pause resume pause resume\n")?;
    state(vm, "running")?;
    goes_on(vm)
}

fn memory(vm: &Vm) -> Checked {
    let scratch = vm.header(header::SCRATCH)?;
    let bytes = |n: u64| (0xabcd_0000_0000_0000 | n).to_le_bytes();
    for n in 0..10 {
        let paused = vm.pause()?;
        // Read before, so that a stale copy would be found.
        let _ = vm.word(scratch)?;
        std::os::unix::fs::FileExt::write_all_at(vm.mailbox.bytes(), &bytes(n), scratch)
            .map_err(|error| format!("write mem while paused: {error}"))?;
        same!(vm.mem(scratch, 8)?, bytes(n), "what was written while paused");
        drop(paused);
        let read = vm.order(n % vm.vcpus, Op::Read, &[1, scratch, 8])?;
        same!(read.to_le_bytes(), bytes(n), "what the guest reads after the pause");
        vm.order(n % vm.vcpus, Op::Write, &[1, scratch, n, 8])?;
        same!(vm.word(scratch)?, n, "what the guest wrote after the pause");
    }
    Ok(())
}

/// The guest writes r9 to memory r12 times: we change both on the way.
fn at_registers(vm: &Vm) -> Checked {
    const FIRST: u64 = 0x1111_2222;
    const OURS: u64 = 0x3333_4444_5555_6666;
    let _quiet = vm.quiet()?;
    let (scratch, at) = (vm.header(header::SCRATCH)?, vm.mailbox.site(Site::Write8));
    let at = at.map_err(|error| error.to_string())?;
    let n = vm.rounds(Duration::from_millis(500))?;
    for vcpu in 0..vm.vcpus {
        ensure!(vm.writable(vcpu, "r9") && vm.writable(vcpu, "r12"), "r9 and r12 can't be written");
        let seq = vm.begin(vcpu, Op::Write, &[n, scratch, FIRST, 8])?;
        // mov [r8], r9 and dec r12 have 3 bytes each.
        let (paused, regs) = vm.catch(vcpu, "in its loop", |regs| {
            let rip = regs.get("rip")?;
            ensure!(vm.word(slot_of(vcpu) + slot::ACK)? != seq, "the order was over too soon");
            Ok([at, at + 3, at + 6].contains(&rip) && regs.get("r12")? > 2)
        })?;
        same!(regs.get("r9")?, FIRST, "r9 of vCPU {vcpu} in its loop");
        ensure!(regs.get("r12")? <= n, "r12 of vCPU {vcpu} is {:#x}, of {n:#x} rounds", regs.get("r12")?);
        vm.set(vcpu, &format!("r9={OURS:#x} r12=2"))?;
        drop(paused);
        vm.finish(vcpu, Op::Write, seq)?;
        same!(vm.word(scratch)?, OURS, "what vCPU {vcpu} wrote after we changed r9");
    }
    Ok(())
}
