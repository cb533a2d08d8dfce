//! Several registers set together, or none.

use vmtree_api::x86::{Reg, Registers};
use vmtree_api::{Error, ErrorKind, RegId, RegOffer, RegValue, Result, VcpuId};

use super::table::{name, row};
use super::{check, snapshot};
use crate::gdb::door::Door;
use crate::qmp::Qmp;

const OP: &str = "write registers";

/// A number for a register, and the register's name in the gdbstub.
pub type Word = (Reg, &'static str, u64);

/// The numbers to write, of which the last one for a register counts.
///
/// # Errors
/// [`ErrorKind::NotFound`] for an unknown register, [`ErrorKind::Unsupported`] for one that is not writable,
/// [`ErrorKind::Invalid`] for a value of another shape, [`ErrorKind::OutOfRange`].
pub fn words(offers: &[RegOffer], changes: &[(RegId, RegValue)]) -> Result<Vec<Word>> {
    let mut words: Vec<Word> = Vec::new();
    for (id, value) in changes {
        // The architecture's own checks of id and shape.
        vmtree_api::RegisterSet::new(vmtree_api::Arch::X86_64).set(*id, *value)?;
        let writable = offers.iter().any(|offer| offer.id == *id && offer.writable);
        let (Some((reg, gdb)), RegValue::Word(word), true) =
            (row(*id).and_then(|row| Some((row.reg, row.gdb?))), value, writable)
        else {
            let name = Reg::from_id(*id).map_or("it", name);
            let why =
                format!("{name} can't be written: QEMU's gdbstub does not set it, or is somebody else's");
            return Err(Error::new(ErrorKind::Unsupported, OP, why));
        };
        words.retain(|(earlier, ..)| *earlier != reg);
        words.push((reg, gdb, *word));
    }
    Ok(words)
}

/// Writes all of `words` and sees that they took. On any failure the old values are put back.
///
/// # Errors
/// [`ErrorKind::Invalid`] for a value that the processor would refuse or that QEMU changes, [`ErrorKind::NotFound`]
/// for a vCPU that is not there; those of the gdbstub.
pub fn transact(door: &mut Door, qmp: &Qmp, vcpu: VcpuId, words: &[Word]) -> Result<()> {
    let before = snapshot::words(&door.stub(qmp)?.read(vcpu.0)?)?;
    let mut after = before.clone();
    for (reg, _, value) in words {
        after.set(*reg, RegValue::Word(*value));
    }
    check::changes(&before, &after)
        .map_err(|(reg, why)| Error::new(ErrorKind::Invalid, OP, format!("{}: {why}", name(reg))))?;
    let Err(error) = put(door, qmp, vcpu, words, &after) else { return Ok(()) };
    match put_back(door, qmp, vcpu, words, &before) {
        Ok(()) => Err(error),
        // Once more: the first try may have been a connection that was broken.
        Err(first) => put_back(door, qmp, vcpu, words, &before).map_or_else(
            |_| {
                let why = format!("{}; and the old values could not be put back: {first}", error.why());
                Err(Error::new(error.kind(), OP, why))
            },
            |()| Err(Error::new(error.kind(), error.op(), error.why())),
        ),
    }
}

fn put(door: &mut Door, qmp: &Qmp, vcpu: VcpuId, words: &[Word], after: &Registers) -> Result<()> {
    let stub = door.stub(qmp)?;
    // After a `g`, by which QEMU fetches KVM's registers.
    for (_, gdb, value) in words {
        stub.write_one(vcpu.0, gdb, *value)?;
    }
    let now = snapshot::words(&stub.read(vcpu.0)?)?;
    for (reg, ..) in words {
        if now.get(*reg) != after.get(*reg) {
            let why = format!(
                "{}: QEMU makes another value of this one; r8 to r15 and upper halves can't be set while 16- or 32-bit \
                 code runs, nor bits that this processor lacks. Nothing is changed",
                name(*reg)
            );
            return Err(Error::new(ErrorKind::Invalid, OP, why));
        }
    }
    Ok(())
}

/// In the reverse order, and seen to have taken.
fn put_back(door: &mut Door, qmp: &Qmp, vcpu: VcpuId, words: &[Word], before: &Registers) -> Result<()> {
    door.close_if_broken(qmp);
    let stub = door.stub(qmp)?;
    // QEMU fetches KVM's registers for `g` and not for `P`: what is set before it would be lost.
    stub.read(vcpu.0)?;
    for (reg, gdb, _) in words.iter().rev() {
        if let RegValue::Word(old) = before.get(*reg) {
            stub.write_one(vcpu.0, gdb, old)?;
        }
    }
    let now = snapshot::words(&stub.read(vcpu.0)?)?;
    let same = words.iter().all(|(reg, ..)| now.get(*reg) == before.get(*reg));
    let lost = || Error::new(ErrorKind::Io, OP, "QEMU makes another value of the old one");
    if same { Ok(()) } else { Err(lost()) }
}
