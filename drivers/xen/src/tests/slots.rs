//! Requests as Xen makes them, and what answers say.

use crate::events::wire::{SLOT, Slot, flag};

/// A request as Xen makes them: reason, vCPU, view, what it is about, RIP.
pub fn request(why: u32, vcpu: u32, view: Option<u16>, content: &[u64], rip: u64) -> Slot {
    let mut slot = [0; SLOT];
    let mut put = |at: usize, bytes: &[u8]| slot[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &7_u32.to_le_bytes());
    let alternate = if view.is_some() { flag::ALTERNATE_P2M } else { 0 };
    put(4, &(flag::VCPU_PAUSED | alternate).to_le_bytes());
    put(8, &why.to_le_bytes());
    put(12, &vcpu.to_le_bytes());
    put(16, &view.unwrap_or(0).to_le_bytes());
    for (n, word) in content.iter().enumerate() {
        put(24 + 8 * n, &word.to_le_bytes());
    }
    put(208, &rip.to_le_bytes());
    slot
}

/// The flags of an answer.
pub fn flags(slot: &Slot) -> u32 {
    u32::from_le_bytes(slot[4..8].try_into().unwrap())
}

/// The view of an answer.
pub fn view(slot: &Slot) -> u16 {
    u16::from_le_bytes(slot[16..18].try_into().unwrap())
}

/// A word of an answer.
pub fn word(slot: &Slot, at: usize) -> u64 {
    u64::from_le_bytes(slot[at..at + 8].try_into().unwrap())
}
