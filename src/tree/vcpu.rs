//! `vcpu/N/state`, `vcpu/N/ctl`, `vcpu/N/inject`, `vcpu/N/msr` and `vcpu/N/translate,gva=ADDR`.

use vmtree_api::{Error, ErrorKind, Gva, Msrs};

use super::mem::address_space;
use super::row::{Bytes, Work};
use super::{Ctx, control};
use crate::error::{FsError, FsResult};
use crate::memory::fault_in_words;
use crate::text::control::parse_step;
use crate::text::{self, text_of};

/// The width of an MSR.
const MSR_BYTES: usize = 8;

/// What the vCPU does: `held SEQ` while an event of it waits for an answer, else as the VM.
pub fn show_state(ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
    match ctx.tree.hub.held(ctx.vcpu()) {
        Some(seq) => Ok(format!("held {seq}\n").into_bytes()),
        None => control::show_state(ctx),
    }
}

/// The length of that, without a call to the VM.
pub fn state_len(ctx: &Ctx<'_>) -> u64 {
    match ctx.tree.hub.held(ctx.vcpu()) {
        Some(_) => show_state(ctx).map_or(0, |text| text.len() as u64),
        None => control::state_len(ctx),
    }
}

/// Injects what is written.
pub fn inject(ctx: &Ctx<'_>, data: &[u8]) -> FsResult<()> {
    let what = text::inject::parse(text_of(data)?)?;
    Ok(ctx.tree.driver().injection()?.inject(ctx.vcpu(), what)?)
}

/// Executes the instructions asked for, or as many as it could before the caller went away.
pub fn step(ctx: &Ctx<'_>, data: &[u8]) -> FsResult<()> {
    let count = parse_step(text_of(data)?)?;
    let execution = ctx.tree.driver().execution()?;
    let _step = ctx.tree.memory.cache().step();
    let done = execution.step(ctx.vcpu(), count, ctx.cancel)?;
    if done == count {
        return Ok(());
    }
    let why = format!("{done} of {count} instructions were executed");
    let kind = if ctx.cancel.raised() { ErrorKind::Interrupted } else { ErrorKind::Busy };
    Err(Error::new(kind, "step", why).into())
}

/// Where an address lies.
pub fn translate(ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
    let gva = Gva(ctx.place.param);
    let line = match address_space(ctx)?.translate(gva)? {
        Ok(walk) => format!(
            "gva={:#018x} gpa={:#018x} page_size={:#x} rights={} user={}\n",
            gva.0,
            walk.gpa.0,
            walk.size.bytes(),
            walk.rights,
            u8::from(walk.user),
        ),
        Err(fault) => format!("gva={:#018x} not mapped: {}\n", gva.0, fault_in_words(fault)),
    };
    Ok(line.into_bytes())
}

/// The file `msr`: as /dev/cpu/N/msr, the offset is the index and does not advance within a call.
pub struct MsrFile;

impl Bytes for MsrFile {
    fn size(&self, _ctx: &Ctx<'_>) -> u64 {
        1 << 32
    }

    fn allocated(&self, _ctx: &Ctx<'_>) -> u64 {
        0
    }

    fn work(&self) -> Work {
        Work::Registers
    }

    fn read(&self, ctx: &Ctx<'_>, offset: u64, len: usize, take: &mut dyn FnMut(&[u8])) -> FsResult<()> {
        if offset >= self.size(ctx) {
            take(&[]);
            return Ok(());
        }
        let (index, count) = (index(offset)?, whole(len)?);
        let mut all = Vec::with_capacity(len.min(1 << 16));
        // One value is what anybody asks for; more are the same MSR again, at most a page of them.
        for _ in 0..count.min(512) {
            all.extend_from_slice(&msrs(ctx)?.read(ctx.vcpu(), index)?.to_le_bytes());
        }
        take(&all);
        Ok(())
    }

    fn write(&self, ctx: &Ctx<'_>, offset: u64, data: &[u8]) -> FsResult<usize> {
        let (index, _) = (index(offset)?, whole(data.len())?);
        let Some((value, [])) = data.split_first_chunk::<MSR_BYTES>() else {
            return Err(bad("write one value of 8 bytes at a time".to_owned()));
        };
        msrs(ctx)?.write(ctx.vcpu(), index, u64::from_le_bytes(*value))?;
        Ok(MSR_BYTES)
    }
}

fn msrs<'a>(ctx: &Ctx<'a>) -> FsResult<&'a dyn Msrs> {
    Ok(ctx.tree.driver().registers()?.msrs()?)
}

fn index(offset: u64) -> FsResult<u32> {
    u32::try_from(offset).map_err(|_| bad(format!("an MSR index has 32 bits; {offset:#x} has more")))
}

fn whole(len: usize) -> FsResult<usize> {
    if len == 0 || !len.is_multiple_of(MSR_BYTES) {
        return Err(bad(format!("{len} bytes; an MSR has 8")));
    }
    Ok(len / MSR_BYTES)
}

fn bad(why: String) -> FsError {
    Error::new(ErrorKind::Invalid, "msr", why).into()
}
