//! What QEMU calls, and what is asked of a block while it is translated.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;

use super::cpu::Cpu;
use super::load::version;
use super::table::{RawBlock, RawInstruction, table};
use crate::hooks;

/// Registers may be read, written, and the instruction pointer moved in a callback: `enum qemu_plugin_cb_flags`.
const READ: c_int = 1;
const WRITE: c_int = 2;
const WRITE_PC: c_int = 3;

fn rights() -> c_int {
    let table = table();
    match (table.set_pc.is_some(), table.write_register.is_some()) {
        (true, _) => WRITE_PC,
        (false, true) => WRITE,
        (false, false) => READ,
    }
}

/// A block that QEMU is translating.
pub struct Block<'a>(*const RawBlock, PhantomData<&'a ()>);

/// An instruction of it.
pub struct Instruction<'a>(*mut RawInstruction, PhantomData<&'a ()>);

impl Block<'_> {
    /// Its instructions.
    pub fn instructions(&self) -> impl Iterator<Item = Instruction<'_>> {
        // SAFETY: the block lives as long as the callback that `self` borrows from.
        let count = table().block_count.map_or(0, |count| unsafe { count(self.0) });
        (0..count).filter_map(|index| {
            // SAFETY: as above, and the index is one of its instructions.
            let instruction = unsafe { table().block_instruction?(self.0, index) };
            (!instruction.is_null()).then_some(Instruction(instruction, PhantomData))
        })
    }
}

impl Instruction<'_> {
    /// Its linear address.
    #[must_use]
    pub fn address(&self) -> u64 {
        // SAFETY: an instruction lives as long as its block.
        table().instruction_address.map_or(0, |address| unsafe { address(self.0) })
    }

    /// Its bytes.
    pub fn bytes<'b>(&self, buf: &'b mut [u8; 16]) -> &'b [u8] {
        // SAFETY: QEMU writes at most as many bytes as it is told there is room for.
        let count =
            table().instruction_data.map_or(0, |data| unsafe { data(self.0, buf.as_mut_ptr(), buf.len()) });
        buf.get(..count).unwrap_or_default()
    }

    /// Has [`hooks::executed`] called before it, each time, with `site`.
    pub fn watch(&self, site: u64) {
        let Some(register) = table().register_exec else { return };
        // SAFETY: the callback's type is the documented one, in every version.
        unsafe { register(self.0, executed, rights(), site as *mut c_void) };
    }

    /// Has [`hooks::accessed`] called after each of its accesses to memory.
    pub fn watch_memory(&self, site: u64) {
        const READS_AND_WRITES: c_int = 3;
        let Some(register) = table().register_memory else { return };
        // SAFETY: as above.
        unsafe { register(self.0, accessed, rights(), READS_AND_WRITES, site as *mut c_void) };
    }
}

extern "C" fn executed(vcpu: u32, site: *mut c_void) {
    let moved = hooks::executed(&mut Cpu::current(vcpu), site as u64);
    let (Some(pc), Some(set_pc)) = (moved, table().set_pc) else { return };
    // SAFETY: it was registered with the right to. It leaves this frame for good, in which nothing waits to be dropped.
    unsafe { set_pc(pc) };
}

extern "C" fn accessed(vcpu: u32, info: u32, address: u64, site: *mut c_void) {
    hooks::accessed(&mut Cpu::current(vcpu), super::cpu::Access { info, address }, site as u64);
}

extern "C" fn initialized(a: u64, b: u64) {
    hooks::started(&mut Cpu::current(second_or_first(a, b)));
}

extern "C" fn idle(a: u64, b: u64) {
    hooks::idle(second_or_first(a, b), true);
}

extern "C" fn resumed(a: u64, b: u64) {
    hooks::idle(second_or_first(a, b), false);
}

/// The vCPU in a simple callback: `(id, vcpu)` until version 6, `(vcpu, userdata)` from 7 on.
fn second_or_first(a: u64, b: u64) -> u32 {
    (if version() >= 7 { a } else { b }) as u32
}

/// `(id, block)` until version 6, `(block, userdata)` from 7 on.
extern "C" fn translated(a: *const RawBlock, b: *const RawBlock) {
    hooks::translated(&Block(if version() >= 7 { a } else { b }, PhantomData));
}

/// `(id, vcpu, type, from, to)`.
extern "C" fn discontinued_6(_id: u64, vcpu: u32, kind: c_int, from: u64, to: u64) {
    hooks::discontinued(&mut Cpu::current(vcpu), kind, from, to);
}

/// `(vcpu, type, from, to, userdata)`.
extern "C" fn discontinued_7(vcpu: u32, kind: c_int, from: u64, to: u64, _data: *mut c_void) {
    hooks::discontinued(&mut Cpu::current(vcpu), kind, from, to);
}

extern "C" fn exiting(_a: u64, _b: u64) {
    hooks::exiting();
}

/// Registers all callbacks but those of single instructions.
pub fn register(id: u64) {
    const INTERRUPTS_AND_EXCEPTIONS: c_int = 3;
    let table = table();
    let simple = [
        (table.register_vcpu_init, initialized as *const c_void),
        (table.register_vcpu_idle, idle as *const c_void),
        (table.register_vcpu_resume, resumed as *const c_void),
        (table.register_translate, translated as *const c_void),
        (table.register_exit, exiting as *const c_void),
    ];
    for (register, callback) in simple {
        let Some(register) = register else { continue };
        // SAFETY: the callback has the type that this version documents.
        unsafe { register(id, callback, std::ptr::null_mut()) };
    }
    let Some(register) = table.register_discontinuity else { return };
    let callback =
        if version() >= 7 { discontinued_7 as *const c_void } else { discontinued_6 as *const c_void };
    // SAFETY: as above.
    unsafe { register(id, INTERRUPTS_AND_EXCEPTIONS, callback, std::ptr::null_mut()) };
}

extern "C" fn flushed(_id_or_data: u64) {
    hooks::flushed();
}

/// Has QEMU drop all that it has translated, as soon as no vCPU runs, and then call [`hooks::flushed`]. Only on a
/// vCPU's thread. All callbacks are then gone: [`register`] them again.
pub fn flush(id: u64) {
    let Some(reset) = table().reset else { return };
    // SAFETY: the callback takes one number in every version: the plugin's, or user data.
    unsafe { reset(id, flushed as *const c_void, std::ptr::null_mut()) };
}
