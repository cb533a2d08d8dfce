//! The functions of the interface, each with the version that brought it.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

/// What translation gives out: opaque.
#[repr(C)]
pub struct RawBlock([u8; 0]);
/// An instruction of it: opaque.
#[repr(C)]
pub struct RawInstruction([u8; 0]);
/// A physical address of a memory access: opaque.
#[repr(C)]
pub struct RawAddress([u8; 0]);

/// GLib's GByteArray, as its documentation has it.
#[repr(C)]
pub struct ByteArray {
    pub data: *mut u8,
    pub len: u32,
}

/// GLib's GArray, as its documentation has it.
#[repr(C)]
pub struct Array {
    pub data: *mut u8,
    pub len: u32,
}

/// The beginning of a row of `qemu_plugin_get_registers`; later versions have longer rows.
#[repr(C)]
pub struct RegisterRow {
    pub handle: *mut c_void,
    pub name: *const c_char,
    pub feature: *const c_char,
}

pub type ExecCallback = extern "C" fn(u32, *mut c_void);
pub type MemoryCallback = extern "C" fn(u32, u32, u64, *mut c_void);

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal: fn($($arg:ty),*) $(-> $result:ty)?;)+) => {
        /// The functions; `None` where this QEMU lacks one.
        #[derive(Default)]
        pub struct Table { $($(#[$doc])* pub $name: Option<unsafe extern "C" fn($($arg),*) $(-> $result)?>,)+ }

        impl Table {
            fn look_up() -> Self {
                Self {
                    $($name: {
                        let found = find($symbol);
                        // SAFETY: a null pointer is None, and any other is the function of that name, whose
                        // type is the documented one.
                        unsafe { std::mem::transmute::<*mut c_void, Option<unsafe extern "C" fn($($arg),*) $(-> $result)?>>(found) }
                    },)+
                }
            }
        }
    };
}

// A callback's type differs between versions (see callbacks.rs), so registration takes it as a plain pointer. A version
// that knows no user data does not look at that argument.
table! {
    /// 1
    register_vcpu_init = c"qemu_plugin_register_vcpu_init_cb": fn(u64, *const c_void, *mut c_void);
    /// 1
    register_vcpu_idle = c"qemu_plugin_register_vcpu_idle_cb": fn(u64, *const c_void, *mut c_void);
    /// 1
    register_vcpu_resume = c"qemu_plugin_register_vcpu_resume_cb": fn(u64, *const c_void, *mut c_void);
    /// 1
    register_translate = c"qemu_plugin_register_vcpu_tb_trans_cb": fn(u64, *const c_void, *mut c_void);
    /// 1
    register_exit = c"qemu_plugin_register_atexit_cb": fn(u64, *const c_void, *mut c_void);
    /// 6, and QEMU 10.2
    register_discontinuity = c"qemu_plugin_register_vcpu_discon_cb": fn(u64, c_int, *const c_void, *mut c_void);
    /// 1
    register_exec = c"qemu_plugin_register_vcpu_insn_exec_cb": fn(*mut RawInstruction, ExecCallback, c_int, *mut c_void);
    /// 1
    register_memory = c"qemu_plugin_register_vcpu_mem_cb": fn(*mut RawInstruction, MemoryCallback, c_int, c_int, *mut c_void);
    /// 1
    reset = c"qemu_plugin_reset": fn(u64, *const c_void, *mut c_void);
    /// 1
    block_count = c"qemu_plugin_tb_n_insns": fn(*const RawBlock) -> usize;
    /// 1
    block_instruction = c"qemu_plugin_tb_get_insn": fn(*const RawBlock, usize) -> *mut RawInstruction;
    /// 3: before it, another type
    instruction_data = c"qemu_plugin_insn_data": fn(*const RawInstruction, *mut u8, usize) -> usize;
    /// 1
    instruction_address = c"qemu_plugin_insn_vaddr": fn(*const RawInstruction) -> u64;
    /// 1
    memory_is_store = c"qemu_plugin_mem_is_store": fn(u32) -> bool;
    /// 1
    memory_size_shift = c"qemu_plugin_mem_size_shift": fn(u32) -> u32;
    /// 1
    memory_address = c"qemu_plugin_get_hwaddr": fn(u32, u64) -> *mut RawAddress;
    /// 1
    address_is_io = c"qemu_plugin_hwaddr_is_io": fn(*const RawAddress) -> bool;
    /// 1
    address_physical = c"qemu_plugin_hwaddr_phys_addr": fn(*const RawAddress) -> u64;
    /// 2
    registers = c"qemu_plugin_get_registers": fn() -> *mut Array;
    /// 2; a byte count until 5, a bool from 6 on
    read_register = c"qemu_plugin_read_register": fn(*mut c_void, *mut ByteArray) -> c_int;
    /// 5
    write_register = c"qemu_plugin_write_register": fn(*mut c_void, *mut ByteArray) -> c_int;
    /// 6; does not come back
    set_pc = c"qemu_plugin_set_pc": fn(u64);
    /// 4
    read_virtual = c"qemu_plugin_read_memory_vaddr": fn(u64, *mut ByteArray, usize) -> bool;
    /// 5
    write_virtual = c"qemu_plugin_write_memory_vaddr": fn(u64, *mut ByteArray) -> bool;
    /// 5
    translate = c"qemu_plugin_translate_vaddr": fn(u64, *mut u64) -> bool;
    /// 1
    outs = c"qemu_plugin_outs": fn(*const c_char);
    /// GLib, which every QEMU has loaded
    bytes_new = c"g_byte_array_new": fn() -> *mut ByteArray;
    /// GLib
    bytes_size = c"g_byte_array_set_size": fn(*mut ByteArray, u32) -> *mut ByteArray;
    /// GLib
    array_row_size = c"g_array_get_element_size": fn(*mut Array) -> u32;
    /// GLib
    array_free = c"g_array_free": fn(*mut Array, c_int) -> *mut c_char;
}

fn find(symbol: &CStr) -> *mut c_void {
    // SAFETY: a name that ends in NUL; RTLD_DEFAULT looks in the program and what it has loaded for all.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()) }
}

/// The functions of the QEMU that this is loaded into.
pub fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(Table::look_up)
}

/// What this QEMU has of the interface, as far as it differs.
pub mod has {
    use super::table;

    /// Registers can be read.
    #[must_use]
    pub fn registers() -> bool {
        table().read_register.is_some() && table().registers.is_some()
    }

    /// Registers can be written.
    #[must_use]
    pub fn write_register() -> bool {
        table().write_register.is_some()
    }

    /// The instruction pointer can be moved.
    #[must_use]
    pub fn set_pc() -> bool {
        table().set_pc.is_some() && write_register()
    }

    /// Interrupts and exceptions are told.
    #[must_use]
    pub fn discontinuities() -> bool {
        table().register_discontinuity.is_some() && table().read_virtual.is_some()
    }

    /// Virtual addresses can be translated.
    #[must_use]
    pub fn translate() -> bool {
        table().translate.is_some()
    }

    /// Virtual memory can be written.
    #[must_use]
    pub fn write_memory() -> bool {
        table().write_virtual.is_some()
    }
}
