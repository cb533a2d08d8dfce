//! From linear to physical addresses: the page walk, the rights, A and D, and a small TLB (Intel SDM volume 3A,
//! chapter 4).

use vmtree_api::x86::{Fault, PagingMode, Registers, walk};
use vmtree_api::{Access, Gva};

use super::bits::{CR0_WP, CR4_PGE, CR4_SMAP, CR4_SMEP, EFER_NXE, RFLAGS_AC, canonical};
use super::{Cpu, Exception};
use crate::phys::World;

const SLOTS: usize = 512;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const GLOBAL: u64 = 1 << 8;

/// What an access is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Use {
    /// A data read.
    Read,
    /// A data write.
    Write,
    /// An instruction fetch.
    Execute,
}

/// On whose behalf an access is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Code at privilege level 3.
    User,
    /// Code at a lower level.
    Kernel,
    /// The CPU itself: descriptor tables, TSS, IDT.
    Implicit,
}

impl Mode {
    /// The mode of the code that runs.
    #[must_use]
    pub fn of(cpu: &Cpu) -> Self {
        if cpu.cpl() == 3 { Self::User } else { Self::Kernel }
    }
}

/// A translation of one 4 KiB page.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The linear address of the page, or [`NONE`].
    page: u64,
    frame: u64,
    rights: Access,
    user: bool,
    dirty: bool,
    global: bool,
}

/// No page has this address: it is not aligned.
const NONE: u64 = 1;
const EMPTY: Slot =
    Slot { page: NONE, frame: 0, rights: Access::NONE, user: false, dirty: false, global: false };

/// The translations that a vCPU remembers.
#[derive(Debug)]
pub struct Tlb(Vec<Slot>);

impl Default for Tlb {
    fn default() -> Self {
        Self(vec![EMPTY; SLOTS])
    }
}

impl Tlb {
    /// Forgets all.
    pub fn flush(&mut self) {
        self.0.fill(EMPTY);
    }

    /// Forgets what a write to CR3 makes stale: all but global pages, where they are enabled.
    pub fn flush_for_cr3(&mut self, cr4: u64) {
        let keep = cr4 & CR4_PGE != 0;
        self.0.iter_mut().filter(|slot| !(keep && slot.global)).for_each(|slot| *slot = EMPTY);
    }

    /// The physical address of a linear one. A and D are set as the access wants it.
    ///
    /// # Errors
    /// #PF, or #GP for an address that is not canonical.
    pub fn translate(
        &mut self,
        world: &World,
        cpu: &Cpu,
        (vcpu, address): (usize, u64),
        wanted: Use,
        mode: Mode,
    ) -> Result<u64, Exception> {
        let page = address & !0xfff;
        let slot = self.0[(page >> 12) as usize % SLOTS];
        let usable = slot.page == page && (slot.dirty || wanted != Use::Write);
        if usable && permitted(&cpu.regs, (slot.rights, slot.user), wanted, mode) {
            return Ok(slot.frame | address & 0xfff);
        }
        let slot = look_up(world, &cpu.regs, vcpu, address, wanted, mode)?;
        self.0[(page >> 12) as usize % SLOTS] = slot;
        Ok(slot.frame | address & 0xfff)
    }
}

/// Walks the tables, checks the rights and sets A and D.
fn look_up(
    world: &World,
    regs: &Registers,
    vcpu: usize,
    address: u64,
    wanted: Use,
    mode: Mode,
) -> Result<Slot, Exception> {
    if !canonical(address) {
        return Err(Exception::protection(0));
    }
    let fault = |error| Err(Exception::page(address, error | error_code(regs, wanted, mode)));
    let read = |gpa: vmtree_api::Gpa| Ok::<_, std::convert::Infallible>(world.entry(vcpu, gpa.0));
    let Ok(found) = walk(&PagingMode::from(regs), Gva(address), read);
    let found = match found {
        Ok(found) => found,
        Err(Fault::NonCanonical) => return Err(Exception::protection(0)),
        Err(Fault::NotPresent(_)) => return fault(0),
        Err(Fault::Reserved(_)) => return fault(0b1001),
    };
    if !permitted(regs, (found.rights, found.user), wanted, mode) {
        return fault(1);
    }
    let leaf = found.entries().len().saturating_sub(1);
    let mut dirty = false;
    let mut global = false;
    for (index, entry) in found.entries().iter().enumerate() {
        let wants_dirty = index == leaf && wanted == Use::Write;
        let bits = if wants_dirty { ACCESSED | DIRTY } else { ACCESSED };
        if entry.value & bits != bits {
            world.mark(vcpu, entry.gpa.0, bits);
        }
        if index == leaf {
            dirty = wants_dirty || entry.value & DIRTY != 0;
            global = entry.value & GLOBAL != 0;
        }
    }
    let frame = found.gpa.0 & !0xfff;
    Ok(Slot { page: address & !0xfff, frame, rights: found.rights, user: found.user, dirty, global })
}

/// Whether the rights of a page allow an access (4.6.1).
fn permitted(regs: &Registers, (rights, user): (Access, bool), wanted: Use, mode: Mode) -> bool {
    if mode == Mode::User {
        let needed = match wanted {
            Use::Read => Access::READ,
            Use::Write => Access::WRITE,
            Use::Execute => Access::EXECUTE,
        };
        return user && rights.contains(needed);
    }
    // Supervisor data accesses to user pages need SMAP off or, where the code itself makes them, AC set.
    let walled = user && regs.cr4 & CR4_SMAP != 0 && !(mode == Mode::Kernel && regs.rflags & RFLAGS_AC != 0);
    match wanted {
        Use::Read => !walled,
        Use::Write => !walled && (rights.contains(Access::WRITE) || regs.cr0 & CR0_WP == 0),
        Use::Execute => rights.contains(Access::EXECUTE) && !(user && regs.cr4 & CR4_SMEP != 0),
    }
}

/// The bits of the error code that the access decides (4.7): W/R, U/S and I/D.
fn error_code(regs: &Registers, wanted: Use, mode: Mode) -> u32 {
    let write = u32::from(wanted == Use::Write) << 1;
    let user = u32::from(mode == Mode::User) << 2;
    let fetch = wanted == Use::Execute && (regs.efer & EFER_NXE != 0 || regs.cr4 & CR4_SMEP != 0);
    write | user | u32::from(fetch) << 4
}
