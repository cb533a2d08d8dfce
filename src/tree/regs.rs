//! `vcpu/N/regs/*`: one register, all of them as text, all of them as a struct.

use vmtree_api::{Error, ErrorKind, RegDef, RegId, RegOffer, RegValue, RegisterSet, Registers};

use super::{Ctx, Tree};
use crate::error::{FsError, FsResult};
use crate::text::{raw, registers as text, text_of};

fn registers<'a>(ctx: &Ctx<'a>) -> FsResult<&'a dyn Registers> {
    Ok(ctx.tree.driver().registers()?)
}

fn read(ctx: &Ctx<'_>) -> FsResult<RegisterSet> {
    Ok(registers(ctx)?.read(ctx.vcpu())?)
}

/// The register that the place is of.
fn of_place(ctx: &Ctx<'_>) -> FsResult<(RegId, &'static RegDef)> {
    let id = RegId(ctx.place.item as u16);
    let defs = ctx.tree.driver().facts().arch.registers();
    match defs.get(usize::from(id.0)) {
        Some(def) => Ok((id, def)),
        None => Err(FsError::NoEntry(format!("there is no register number {}", id.0))),
    }
}

/// One register.
pub fn show(ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
    let (id, def) = of_place(ctx)?;
    let set = registers(ctx)?.read_some(ctx.vcpu(), &[id])?;
    let value = set.get(id).ok_or_else(|| FsError::NoEntry(format!("{} is not there", def.name)))?;
    Ok(format!("{}\n", text::show(value, def.shape)).into_bytes())
}

/// Its length, which is the same each time.
pub fn len(ctx: &Ctx<'_>) -> u64 {
    of_place(ctx).map_or(0, |(_, def)| text::shown_len(def.shape) as u64 + 1)
}

/// Sets one register.
pub fn store(ctx: &Ctx<'_>, data: &[u8]) -> FsResult<()> {
    let (id, _) = of_place(ctx)?;
    // Not all: of a vCPU that is held at an event some driver has only part.
    let mut set = registers(ctx)?.read_some(ctx.vcpu(), &[id])?;
    text::apply(text_of(data)?, id, &mut set)?;
    write(ctx, &set, &[id])
}

/// All registers at one instant.
pub fn show_all(ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
    let set = read(ctx)?;
    Ok(text::show_all(set.arch(), registers(ctx)?.offers(), &set).into_bytes())
}

/// The length of that text, which does not depend on the values.
pub fn all_len(ctx: &Ctx<'_>) -> u64 {
    let arch = ctx.tree.driver().facts().arch;
    let empty = RegisterSet::new(arch);
    registers(ctx).map_or(0, |registers| text::show_all(arch, registers.offers(), &empty).len() as u64)
}

/// Sets some registers together.
pub fn store_all(ctx: &Ctx<'_>, data: &[u8]) -> FsResult<()> {
    let mut set = read(ctx)?;
    let changed = text::apply_all(text_of(data)?, &mut set)?;
    write(ctx, &set, &changed)
}

/// All registers as a struct.
pub fn show_raw(ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
    let set = read(ctx)?;
    Ok(raw::encode(set.arch(), registers(ctx)?.offers(), &set))
}

/// The length of that struct.
pub fn raw_len(ctx: &Ctx<'_>) -> u64 {
    raw::len(ctx.tree.driver().facts().arch) as u64
}

/// Sets the registers that differ from what the struct says.
pub fn store_raw(ctx: &Ctx<'_>, data: &[u8]) -> FsResult<()> {
    let mut set = read(ctx)?;
    let mut changed = Vec::new();
    for (id, value) in raw::decode(data, set.arch())? {
        if set.get(id) != Some(value) {
            set.set(id, value)?;
            changed.push(id);
        }
    }
    write(ctx, &set, &changed)
}

/// Hands the changed registers to the driver, which takes all or none.
fn write(ctx: &Ctx<'_>, set: &RegisterSet, changed: &[RegId]) -> FsResult<()> {
    let registers = registers(ctx)?;
    let mut changes: Vec<(RegId, RegValue)> = Vec::with_capacity(changed.len());
    for id in changed {
        let offer = registers.offers().iter().find(|offer| offer.id == *id);
        let name = set.arch().registers().get(usize::from(id.0)).map_or("?", |def| def.name);
        match (offer, set.get(*id)) {
            (Some(RegOffer { writable: true, .. }), Some(value)) => changes.push((*id, value)),
            (Some(_), _) => return Err(unsupported(name, "can only be read with this driver")),
            (None, _) => return Err(unsupported(name, "is not offered by this driver")),
        }
    }
    if ctx.cancel.raised() {
        // The read before this took too long, and the caller was told so.
        let why = "the caller went away, and nothing was set";
        return Err(Error::new(ErrorKind::Interrupted, "write registers", why).into());
    }
    Ok(registers.write(ctx.vcpu(), &changes)?)
}

fn unsupported(name: &str, why: &str) -> FsError {
    Error::new(ErrorKind::Unsupported, "write registers", format!("{name} {why}; see capabilities")).into()
}

/// Whether the driver can write a register.
#[must_use]
pub fn writable(tree: &Tree, id: RegId) -> bool {
    let offers = tree.driver().registers().map(|registers| registers.offers()).unwrap_or_default();
    offers.iter().any(|offer| offer.id == id && offer.writable)
}
