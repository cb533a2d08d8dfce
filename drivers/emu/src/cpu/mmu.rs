//! From linear addresses to places: the rights, and a small TLB (Intel SDM volume 3A, chapter 4). The walk is in
//! `walk.rs`.

use vmtree_api::Access;
use vmtree_api::events::Way;
use vmtree_api::x86::Registers;

use super::Cpu;
use super::bits::{CR0_WP, CR4_PGE, CR4_SMAP, CR4_SMEP, EFER_NXE, RFLAGS_AC};

const SLOTS: usize = 512;

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

impl Use {
    /// A bit of its own.
    #[must_use]
    #[inline]
    pub const fn bit(self) -> u8 {
        1 << self as u8
    }

    /// The bits of what rights permit.
    #[must_use]
    pub fn bits(rights: Access) -> u8 {
        let permitted = [Self::Read, Self::Write, Self::Execute].into_iter();
        permitted
            .filter(|wanted| rights.contains(wanted.access()))
            .fold(0, |bits, wanted| bits | wanted.bit())
    }

    /// The right that it needs.
    #[must_use]
    pub const fn access(self) -> Access {
        match self {
            Self::Read => Access::READ,
            Self::Write => Access::WRITE,
            Self::Execute => Access::EXECUTE,
        }
    }

    /// The way of an event about it.
    #[must_use]
    pub const fn way(self) -> Way {
        match self {
            Self::Read => Way::Read,
            Self::Write => Way::Write,
            Self::Execute => Way::Execute,
        }
    }
}

/// What is wanted of an address. A read for a later write is a write to paging, and a read to SLAT.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// What the page tables must allow.
    pub paging: Use,
    /// What is done now, which SLAT must allow.
    pub slat: Use,
    /// On whose behalf.
    pub mode: Mode,
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
pub struct Slot {
    /// The linear address of the page, or [`NONE`].
    pub page: u64,
    /// The place of the frame in the view.
    pub frame: u64,
    /// What the page tables permit, as the bits of [`Use::bit`].
    pub rights: u8,
    /// What the view permits, as the bits of [`Use::bit`].
    pub slat: u8,
    /// Whether user mode may use it.
    pub user: bool,
    /// Whether D is set.
    pub dirty: bool,
    /// Whether it outlives a write to CR3.
    pub global: bool,
}

/// No page has this address: it is not aligned.
const NONE: u64 = 1;
const EMPTY: Slot =
    Slot { page: NONE, frame: 0, rights: 0, slat: 0, user: false, dirty: false, global: false };

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

    /// The place of an address, if it is remembered and may be used so.
    #[inline]
    pub fn find(&self, regs: &Registers, want: Want, address: u64) -> Option<u64> {
        let page = address & !0xfff;
        let slot = &self.0[(page >> 12) as usize % SLOTS];
        let usable = slot.page == page
            && (slot.dirty || want.paging != Use::Write)
            && slot.slat & want.slat.bit() != 0;
        (usable && permitted(regs, (slot.rights, slot.user), want)).then_some(slot.frame | address & 0xfff)
    }

    /// Remembers a translation.
    pub fn insert(&mut self, slot: Slot) {
        self.0[(slot.page >> 12) as usize % SLOTS] = slot;
    }
}

/// Whether the rights of a page allow an access (4.6.1).
#[inline]
pub fn permitted(regs: &Registers, (rights, user): (u8, bool), want: Want) -> bool {
    let Want { paging: wanted, mode, .. } = want;
    if mode == Mode::User {
        return user && rights & wanted.bit() != 0;
    }
    // Supervisor data accesses to user pages need SMAP off or, where the code itself makes them, AC set.
    let walled = user && regs.cr4 & CR4_SMAP != 0 && !(mode == Mode::Kernel && regs.rflags & RFLAGS_AC != 0);
    match wanted {
        Use::Read => !walled,
        Use::Write => !walled && (rights & Use::Write.bit() != 0 || regs.cr0 & CR0_WP == 0),
        Use::Execute => rights & Use::Execute.bit() != 0 && !(user && regs.cr4 & CR4_SMEP != 0),
    }
}

/// The bits of the error code that the access decides (4.7): W/R, U/S and I/D.
pub fn error_code(regs: &Registers, wanted: Use, mode: Mode) -> u32 {
    let write = u32::from(wanted == Use::Write) << 1;
    let user = u32::from(mode == Mode::User) << 2;
    let fetch = wanted == Use::Execute && (regs.efer & EFER_NXE != 0 || regs.cr4 & CR4_SMEP != 0);
    write | user | u32::from(fetch) << 4
}
