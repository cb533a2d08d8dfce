//! Registers as the guest itself wrote and read them.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vmtree_guest::Outcome;
use vmtree_guest::mailbox::{Op, header};

use super::errno::EINVAL;
use crate::vm::read_at;
use crate::{Check, Checked, Vm};

pub const CHECKS: &[Check] = &[
    Check {
        name: "registers-guest-reads",
        needs: &["registers"],
        about: "control, debug and MSR values are what the guest's own reads give",
        run: guest_reads,
    },
    Check {
        name: "registers-guest-writes",
        needs: &["registers"],
        about: "values that the guest wrote are read back by us",
        run: guest_writes,
    },
    Check {
        name: "registers-guest-sees-ours",
        needs: &["registers"],
        about: "values that we wrote are read back by the guest",
        run: guest_sees_ours,
    },
    Check {
        name: "registers-fault-address",
        needs: &["registers"],
        about: "cr2 is the address of the guest's last page fault",
        run: fault_address,
    },
    Check {
        name: "msrs-by-index",
        needs: &["msrs"],
        about: "vcpu/N/msr gives and takes what the guest's rdmsr gives",
        run: by_index,
    },
    Check {
        name: "msrs-bad-input",
        needs: &["msrs"],
        about: "half values and indices that are not there are refused",
        run: msr_refusals,
    },
];

/// A register with the order that makes the guest read it: argument after the count.
type Source = (&'static str, Op, Option<u64>);

/// Flipping no bits of CR0 and CR4 tells their value. Not here: tsc, which moves, and gs, which the guest has no order for.
const SOURCES: &[Source] = &[
    ("cr0", Op::WriteCr0, Some(0)),
    ("cr4", Op::WriteCr4, Some(0)),
    ("cr8", Op::ReadCr8, None),
    ("dr0", Op::ReadDr, Some(0)),
    ("dr1", Op::ReadDr, Some(1)),
    ("dr2", Op::ReadDr, Some(2)),
    ("dr3", Op::ReadDr, Some(3)),
    ("dr6", Op::ReadDr, Some(6)),
    ("dr7", Op::ReadDr, Some(7)),
    ("apic_base", Op::ReadMsr, Some(0x1b)),
    ("sysenter_cs", Op::ReadMsr, Some(0x174)),
    ("sysenter_esp", Op::ReadMsr, Some(0x175)),
    ("sysenter_eip", Op::ReadMsr, Some(0x176)),
    ("pat", Op::ReadMsr, Some(0x277)),
    ("efer", Op::ReadMsr, Some(0xc000_0080)),
    ("star", Op::ReadMsr, Some(0xc000_0081)),
    ("lstar", Op::ReadMsr, Some(0xc000_0082)),
    ("cstar", Op::ReadMsr, Some(0xc000_0083)),
    ("fmask", Op::ReadMsr, Some(0xc000_0084)),
    ("kernel_gs_base", Op::ReadMsr, Some(0xc000_0102)),
    ("tsc_aux", Op::ReadMsr, Some(0xc000_0103)),
];

/// What a test may change on a quiet guest, with a value that it can hold: no breakpoint gets enabled, and the guest
/// uses neither sysenter nor, without background traffic, swapgs.
const CHANGES: &[(&str, u64)] = &[
    ("cr8", 5),
    ("dr0", 0x1234_5678),
    ("dr1", 0xffff_8000_0000_1000),
    ("dr2", 7),
    ("dr3", 0x7fff_ffff_f000),
    ("sysenter_cs", 0x10),
    ("sysenter_esp", 0xffff_8000_1111_0000),
    ("sysenter_eip", 0xffff_8000_2222_0000),
    ("cstar", 0xffff_8000_3333_0000),
    ("kernel_gs_base", 0xffff_8000_4444_0000),
];

fn source(name: &str) -> Result<Source, String> {
    SOURCES.iter().copied().find(|(of, ..)| *of == name).ok_or_else(|| format!("no order reads {name}"))
}

/// What the guest reads; `None` where its CPU has no such register.
fn guest_value(vm: &Vm, vcpu: u64, (name, op, which): Source) -> Result<Option<u64>, String> {
    let args: Vec<u64> = [1].into_iter().chain(which).collect();
    match vm.outcome(vcpu, op, &args)? {
        Outcome::Done([value, ..]) => Ok(Some(value)),
        Outcome::Faulted { vector: 13, .. } if op == Op::ReadMsr => Ok(None),
        other => Err(format!("the guest's read of {name} ended with {other:x?}")),
    }
}

fn guest_write(vm: &Vm, vcpu: u64, (_, op, which): Source, value: u64) -> Checked {
    let (op, args) = match (op, which) {
        (Op::ReadDr, Some(number)) => (Op::WriteDr, vec![1, number, value]),
        (Op::ReadMsr, Some(index)) => (Op::WriteMsr, vec![1, index, value]),
        _ => (Op::WriteCr8, vec![1, value]),
    };
    vm.order(vcpu, op, &args).map(drop)
}

fn guest_reads(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let mut compared = 0;
    for vcpu in 0..vm.vcpus {
        for source in SOURCES.iter().filter(|(name, ..)| vm.has(vcpu, name)) {
            let Some(theirs) = guest_value(vm, vcpu, *source)? else { continue };
            let ours = vm.regs(vcpu)?.get(source.0)?;
            same!(ours, theirs, "{} of vCPU {vcpu}, against the guest's own read", source.0);
            compared += 1;
        }
        if let Some(lstar) = vm.regs(vcpu)?.find("lstar") {
            same!(lstar, vm.header(header::LSTAR)?, "lstar of vCPU {vcpu}, against the mailbox");
        }
    }
    ensure!(compared >= 2 * vm.vcpus, "only {compared} registers are offered that the guest can read");
    Ok(())
}

fn guest_writes(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    for vcpu in 0..vm.vcpus {
        for (name, value) in CHANGES.iter().filter(|(name, _)| vm.has(vcpu, name)) {
            let source = source(name)?;
            let Some(before) = guest_value(vm, vcpu, source)? else { continue };
            guest_write(vm, vcpu, source, *value)?;
            let found = vm.regs(vcpu)?.get(name);
            guest_write(vm, vcpu, source, before)?;
            same!(found?, *value, "{name} of vCPU {vcpu} after the guest wrote it");
            same!(vm.regs(vcpu)?.get(name)?, before, "{name} of vCPU {vcpu} after the guest restored it");
        }
    }
    Ok(())
}

fn guest_sees_ours(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    for vcpu in 0..vm.vcpus {
        for (name, value) in CHANGES.iter().filter(|(name, _)| vm.writable(vcpu, name)) {
            let source = source(name)?;
            let Some(before) = guest_value(vm, vcpu, source)? else { continue };
            vm.write(&format!("vcpu/{vcpu}/regs/{name}"), &format!("{value:#x}\n"))?;
            let found = guest_value(vm, vcpu, source)?;
            vm.write(&format!("vcpu/{vcpu}/regs/{name}"), &format!("{before:#x}\n"))?;
            same!(found, Some(*value), "{name} that vCPU {vcpu} reads after our write");
            same!(
                guest_value(vm, vcpu, source)?,
                Some(before),
                "{name} that vCPU {vcpu} reads after we restored it"
            );
        }
    }
    Ok(())
}

fn fault_address(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let guard = vm.header(header::GUARD)?;
    for vcpu in (0..vm.vcpus).filter(|vcpu| vm.has(*vcpu, "cr2")) {
        for address in [guard + 0x123, guard + 0x456] {
            let fault = vm.outcome(vcpu, Op::Read, &[1, address, 1])?;
            ensure!(
                matches!(fault, Outcome::Faulted { vector: 14, cr2, .. } if cr2 == address),
                "a read at {address:#x}: {fault:x?}"
            );
            same!(vm.regs(vcpu)?.get("cr2")?, address, "cr2 of vCPU {vcpu}");
        }
    }
    Ok(())
}

/// The MSRs of [`SOURCES`], by index.
fn msrs() -> impl Iterator<Item = (Source, u64)> {
    SOURCES.iter().filter(|(_, op, _)| *op == Op::ReadMsr).filter_map(|source| Some((*source, source.2?)))
}

fn by_index(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    for vcpu in 0..vm.vcpus {
        let path = format!("vcpu/{vcpu}/msr");
        let file = File::options().read(true).write(true).open(vm.path(&path));
        let file = file.map_err(|error| format!("open {path}: {error}"))?;
        let failed = |index: u64| move |error: std::io::Error| format!("MSR {index:#x}: {error}");
        for (source, index) in msrs() {
            let Some(theirs) = guest_value(vm, vcpu, source)? else { continue };
            let ours = read_at(&file, index, 8).map_err(failed(index))?;
            same!(ours, theirs.to_le_bytes(), "{path} at {index:#x}, against the guest's rdmsr");
            let Some((_, value)) = CHANGES.iter().find(|(name, _)| *name == source.0) else { continue };
            let done = file.write_at(&value.to_le_bytes(), index);
            let found = guest_value(vm, vcpu, source)?;
            file.write_all_at(&theirs.to_le_bytes(), index).map_err(failed(index))?;
            same!(done.map_err(failed(index))?, 8, "bytes written to {path} at {index:#x}");
            same!(
                found,
                Some(*value),
                "{} that vCPU {vcpu} reads after our write of MSR {index:#x}",
                source.0
            );
        }
    }
    Ok(())
}

fn msr_refusals(vm: &Vm) -> Checked {
    let file = File::options().read(true).write(true).open(vm.path("vcpu/0/msr"));
    let file = file.map_err(|error| format!("open vcpu/0/msr: {error}"))?;
    let before = read_at(&file, 0x175, 8).map_err(|error| format!("MSR 0x175: {error}"))?;
    for len in [1, 4, 7, 9, 16] {
        let code = file.write_at(&vec![0x11; len], 0x175).err().and_then(|error| error.raw_os_error());
        same!(code, Some(EINVAL.0), "the errno of a write of {len} bytes to an MSR");
        same!(read_at(&file, 0x175, 8).ok(), Some(before.clone()), "the MSR after a refused write");
    }
    let code = read_at(&file, 0x175, 4).err().and_then(|error| error.raw_os_error());
    same!(code, Some(EINVAL.0), "the errno of a read of 4 bytes of an MSR");
    // No CPU has this one, and the guest must not see a #GP for our asking.
    ensure!(read_at(&file, 0xdead_beef, 8).is_err(), "MSR 0xdeadbeef was read");
    ensure!(file.write_at(&[0; 8], 0xdead_beef).is_err(), "MSR 0xdeadbeef was written");
    Ok(())
}
