//! `mem`, `mem.map` and `vcpu/N/vmem`.

use vmtree_api::RegisterSet;
use vmtree_api::x86::{PagingMode, Reg};

use super::Ctx;
use super::row::{Bytes, Work};
use crate::error::{FsError, FsResult};
use crate::memory::{VirtualMemory, offset_to_gva};
use crate::text::map;

/// The file `mem.map`.
pub fn show_map(ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
    Ok(map::show(&ctx.tree.memory.map()).into_bytes())
}

/// The file `mem`.
pub struct PhysicalFile;

impl Bytes for PhysicalFile {
    fn size(&self, ctx: &Ctx<'_>) -> u64 {
        ctx.tree.memory.map().ram_end()
    }

    fn allocated(&self, ctx: &Ctx<'_>) -> u64 {
        ctx.tree.memory.map().ram_bytes()
    }

    fn work(&self) -> Work {
        Work::Prompt
    }

    fn read(&self, ctx: &Ctx<'_>, offset: u64, len: usize, take: &mut dyn FnMut(&[u8])) -> FsResult<()> {
        ctx.tree.memory.read(offset, len, take)
    }

    fn write(&self, ctx: &Ctx<'_>, offset: u64, data: &[u8]) -> FsResult<usize> {
        ctx.tree.memory.write(offset, data)
    }

    fn seek(&self, ctx: &Ctx<'_>, offset: u64, data: bool) -> FsResult<u64> {
        ctx.tree.memory.seek(offset, data)
    }
}

/// The file `vcpu/N/vmem`.
pub struct VirtualFile;

impl Bytes for VirtualFile {
    fn size(&self, _ctx: &Ctx<'_>) -> u64 {
        i64::MAX as u64
    }

    fn allocated(&self, _ctx: &Ctx<'_>) -> u64 {
        0
    }

    fn work(&self) -> Work {
        Work::Registers
    }

    fn read(&self, ctx: &Ctx<'_>, offset: u64, len: usize, take: &mut dyn FnMut(&[u8])) -> FsResult<()> {
        address_space(ctx)?.read(offset_to_gva(offset), len, take)
    }

    fn write(&self, ctx: &Ctx<'_>, offset: u64, data: &[u8]) -> FsResult<usize> {
        address_space(ctx)?.write(offset_to_gva(offset), data)
    }
}

/// The address space that the vCPU runs in now.
pub fn address_space<'a>(ctx: &Ctx<'a>) -> FsResult<VirtualMemory<'a>> {
    // What a page walk asks for.
    let wanted = [Reg::Cr0, Reg::Cr3, Reg::Cr4, Reg::Efer].map(Reg::id);
    match ctx.tree.driver().registers()?.read_some(ctx.vcpu(), &wanted)? {
        RegisterSet::X86_64(regs) => Ok(VirtualMemory::new(&ctx.tree.memory, PagingMode::from(&*regs))),
        // An architecture that drivers/api knows before the page walk does.
        _ => Err(FsError::NoMemory("virtual memory of this architecture can't be walked".to_owned())),
    }
}
