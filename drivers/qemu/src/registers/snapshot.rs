//! All registers of a vCPU at one instant.

use serde_json::json;
use vmtree_api::x86::{Reg, Registers};
use vmtree_api::{Error, ErrorKind, RegValue, RegisterSet, Result, VcpuId};

use super::table::{self, TABLE};
use crate::gdb::door::Door;
use crate::gdb::stub::Values;
use crate::hmp::registers::{Shown, parse};
use crate::qmp::Qmp;

const OP: &str = "read registers";

/// Takes a snapshot of the VM, which stands still. Without a door, the monitor's part alone.
///
/// # Errors
/// [`ErrorKind::NotFound`] for a vCPU that is not there, [`ErrorKind::Busy`] if the VM did not stand still or the gdbstub
/// is somebody else's; those of the gdbstub and the monitor.
pub fn take(door: Option<&mut Door>, qmp: &Qmp, vcpu: VcpuId) -> Result<RegisterSet> {
    // The gdbstub first: the sooner after the stop, the less can come between.
    let by_gdb = match door {
        Some(door) => Some(words(&door.stub(qmp)?.read(vcpu.0)?)?),
        None => None,
    };
    let shown = show(qmp, vcpu)?;
    let mut registers = match &by_gdb {
        Some(registers) => {
            agree(registers, &shown)?;
            registers.clone()
        }
        None => Registers::default(),
    };
    for row in TABLE.iter().filter(|row| row.shown && (row.gdb.is_none() || by_gdb.is_none())) {
        match shown.get(row.reg) {
            Some(value) => registers.set(row.reg, value),
            // Registers that 16- and 32-bit code does not have.
            None if !shown.wide => {}
            None => return Err(missing("monitor", row.reg)),
        }
    }
    Ok(RegisterSet::X86_64(Box::new(registers)))
}

/// The registers of a `g` packet.
///
/// # Errors
/// [`ErrorKind::Protocol`] if one is missing.
pub fn words(values: &Values<'_>) -> Result<Registers> {
    let mut registers = Registers::default();
    for row in TABLE {
        if let Some(name) = row.gdb {
            let value = values.get(name).ok_or_else(|| missing("gdbstub", row.reg))?;
            registers.set(row.reg, RegValue::Word(value));
        }
    }
    Ok(registers)
}

fn missing(of: &str, reg: Reg) -> Error {
    let why = format!("QEMU's {of} does not tell {}, which it was to tell", table::name(reg));
    Error::new(ErrorKind::Protocol, OP, why)
}

fn show(qmp: &Qmp, vcpu: VcpuId) -> Result<Shown> {
    let arguments = json!({ "command-line": "info registers", "cpu-index": vcpu.0 });
    let answer = qmp.execute("human-monitor-command", arguments).map_err(|error| match error.kind() {
        ErrorKind::Invalid => {
            Error::new(ErrorKind::NotFound, OP, format!("there is no vCPU {}", vcpu.0)).caused_by(error)
        }
        _ => error,
    })?;
    let mut shown = parse(answer.as_str().unwrap_or_default());
    let is_it = |shown: &Shown| shown.index.is_none_or(|index| index == vcpu.0);
    match shown.pop() {
        Some(one) if shown.is_empty() && is_it(&one) => Ok(one),
        _ => Err(Error::new(ErrorKind::Protocol, OP, format!("the monitor does not show vCPU {}", vcpu.0))),
    }
}

/// Both ways must have seen the same instant.
fn agree(by_gdb: &Registers, shown: &Shown) -> Result<()> {
    let mut same = by_gdb.rip == shown.registers.rip && by_gdb.rflags == shown.registers.rflags;
    same &= by_gdb.gpr == shown.registers.gpr || !shown.wide;
    if same { Ok(()) } else { Err(Error::new(ErrorKind::Busy, OP, "somebody let the VM run in the middle")) }
}
