//! The vCPU that a callback runs on: its registers and its memory.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_void};
use std::sync::OnceLock;

use vmtree_agent::Reg;

use super::load::version;
use super::table::{Array, ByteArray, RegisterRow, table};

/// QEMU's names of the registers, in the order of [`Reg::ALL`].
const NAMES: [&str; 33] = [
    "rax",
    "rcx",
    "rdx",
    "rbx",
    "rsp",
    "rbp",
    "rsi",
    "rdi",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "rip",
    "eflags",
    "cr0",
    "cr2",
    "cr3",
    "cr4",
    "cr8",
    "efer",
    "cs",
    "ss",
    "ds",
    "es",
    "fs",
    "gs",
    "fs_base",
    "gs_base",
    "k_gs_base",
];

/// Of a register that this QEMU has not. Handles are opaque, and null is one.
const ABSENT: usize = usize::MAX;

/// QEMU's handle of each register. The same for every vCPU.
static HANDLES: OnceLock<[usize; NAMES.len()]> = OnceLock::new();

/// The vCPU whose callback this is.
pub struct Cpu {
    /// Its number, from 0.
    pub vcpu: u32,
    _here: std::marker::PhantomData<*const ()>,
}

/// A memory access that a callback is about.
#[derive(Clone, Copy)]
pub struct Access {
    pub(super) info: u32,
    pub(super) address: u64,
}

/// GLib's byte array, one a thread, for as long as the thread lives.
struct Bytes(*mut ByteArray);

impl Bytes {
    fn new() -> Self {
        // SAFETY: it takes nothing and gives an array of no bytes.
        Self(table().bytes_new.map_or(std::ptr::null_mut(), |new| unsafe { new() }))
    }

    /// The array with so many bytes.
    fn sized(&self, len: usize) -> Option<*mut ByteArray> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: an array of ours that only this thread uses.
        Some(unsafe { table().bytes_size?(self.0, u32::try_from(len).ok()?) })
    }

    fn get(&self, buf: &mut [u8]) -> Option<()> {
        // SAFETY: as above; nobody changes it while this borrow lives.
        let array = unsafe { &*self.0 };
        if array.data.is_null() {
            return None;
        }
        // SAFETY: GLib's array has `len` bytes at `data`.
        let bytes = unsafe { std::slice::from_raw_parts(array.data, array.len as usize) };
        buf.copy_from_slice(bytes.get(..buf.len())?);
        Some(())
    }

    fn put(&self, data: &[u8]) -> Option<*mut ByteArray> {
        let array = self.sized(data.len())?;
        // SAFETY: as above.
        let to = unsafe { (*array).data };
        // SAFETY: it has just been given so many bytes.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
        Some(array)
    }

    fn len(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.0).len as usize }
    }
}

thread_local! {
    static BYTES: RefCell<Bytes> = RefCell::new(Bytes::new());
}

fn bytes<T>(with: impl FnOnce(&Bytes) -> Option<T>) -> Option<T> {
    BYTES.try_with(|bytes| with(&*bytes.try_borrow().ok()?)).ok()?
}

fn handle(reg: Reg) -> Option<*mut c_void> {
    let handle = *HANDLES.get()?.get(reg as usize)?;
    (handle != ABSENT).then_some(handle as *mut c_void)
}

impl Cpu {
    /// The vCPU of the callback that this is called in.
    pub(super) fn current(vcpu: u32) -> Self {
        Self { vcpu, _here: std::marker::PhantomData }
    }

    /// The vCPU that wants a block translated, in the callback of that; its number is not told.
    #[must_use]
    pub fn translating() -> Self {
        Self::current(0)
    }

    /// Learns the handles of the registers. When a vCPU starts.
    pub fn learn_registers(&self) {
        HANDLES.get_or_init(look_up);
    }

    /// A register; 0 where QEMU has none of that name. The instruction pointer is that of the block's beginning.
    #[must_use]
    pub fn get(&self, reg: Reg) -> u64 {
        bytes(|bytes| {
            let (handle, array) = (handle(reg)?, bytes.sized(0)?);
            // SAFETY: a handle of QEMU's, in a callback that may read registers.
            let result = unsafe { table().read_register?(handle, array) };
            if !succeeded(result) {
                return None;
            }
            let mut value = [0; 8];
            let known = value.get_mut(..bytes.len().min(8))?;
            bytes.get(known)?;
            Some(u64::from_le_bytes(value))
        })
        .unwrap_or(0)
    }

    /// Sets a register. Whether it was set.
    pub fn set(&mut self, reg: Reg, value: u64) -> bool {
        let set = bytes(|bytes| {
            // QEMU reads as many bytes as the register has, which are at most eight here.
            let (handle, array) = (handle(reg)?, bytes.put(&value.to_le_bytes())?);
            // SAFETY: as above, in a callback that may write registers.
            Some(succeeded(unsafe { table().write_register?(handle, array) }))
        });
        set.unwrap_or(false)
    }

    /// Reads virtual memory of this vCPU, as its kernel sees it. Whether all was read.
    #[must_use]
    pub fn read(&self, address: u64, buf: &mut [u8]) -> bool {
        let read = bytes(|bytes| {
            let array = bytes.sized(0)?;
            // SAFETY: QEMU gives the array the size that it needs.
            if !unsafe { table().read_virtual?(address, array, buf.len()) } {
                return None;
            }
            bytes.get(buf)
        });
        read.is_some()
    }

    /// Writes virtual memory of this vCPU, whatever its rights are. Whether all was written.
    pub fn write(&mut self, address: u64, data: &[u8]) -> bool {
        let written = bytes(|bytes| {
            let array = bytes.put(data)?;
            // SAFETY: an array of ours with the data.
            Some(unsafe { table().write_virtual?(address, array) })
        });
        written.unwrap_or(false)
    }

    /// The physical address of a virtual one, where it is mapped.
    #[must_use]
    pub fn translate(&self, address: u64) -> Option<u64> {
        let mut physical = 0;
        // SAFETY: it writes one number.
        unsafe { table().translate?(address, &raw mut physical) }.then_some(physical)
    }

    /// The virtual and the physical address of an access, whether it is a write, and its bytes. `None` for a device's.
    #[must_use]
    pub fn access(&self, access: Access) -> Option<(u64, u64, bool, u32)> {
        // SAFETY: in the callback that this access is of.
        let address = unsafe { table().memory_address?(access.info, access.address) };
        // SAFETY: as above; it is valid until the callback ends.
        if address.is_null() || unsafe { table().address_is_io?(address) } {
            return None;
        }
        // SAFETY: as above.
        let physical = unsafe { table().address_physical?(address) };
        // SAFETY: a number that this callback was given.
        let write = unsafe { table().memory_is_store?(access.info) };
        // SAFETY: as above.
        let shift = unsafe { table().memory_size_shift?(access.info) };
        Some((access.address, physical, write, 1 << shift.min(16)))
    }
}

/// Whether a register call did its work: a count of bytes until version 5, and from 6 on a bool, of which only the lowest
/// byte is defined.
fn succeeded(result: i32) -> bool {
    if version() >= 6 { result & 0xff != 0 } else { result > 0 }
}

fn look_up() -> [usize; NAMES.len()] {
    let mut handles = [ABSENT; NAMES.len()];
    // SAFETY: on a vCPU's thread, says the caller.
    let Some(array) = table().registers.map(|registers| unsafe { registers() }) else { return handles };
    if array.is_null() {
        return handles;
    }
    // SAFETY: an array that QEMU made for us.
    let rows = unsafe { &*array };
    // SAFETY: as above.
    let size = table().array_row_size.map_or(0, |size| unsafe { size(array) }) as usize;
    for index in 0..rows.len as usize {
        // SAFETY: rows of this size, `len` of them.
        let row = unsafe { rows.data.add(index * size) }.cast::<RegisterRow>();
        // SAFETY: every version's row begins so.
        let row = unsafe { &*row };
        // SAFETY: a string that QEMU keeps.
        let name = unsafe { CStr::from_ptr(row.name) };
        let place = NAMES.iter().position(|known| name.to_bytes() == known.as_bytes());
        if let Some(place) = place.and_then(|place| handles.get_mut(place)) {
            *place = row.handle as usize;
        }
    }
    free(array);
    handles
}

fn free(array: *mut Array) {
    // SAFETY: ours to free, with its rows.
    let _ = table().array_free.map(|free| unsafe { free(array, 1) });
}

/// Prints by QEMU's log (`-d plugin`).
pub fn outs(text: &str) {
    let (Ok(text), Some(outs)) = (CString::new(text), table().outs) else { return };
    // SAFETY: a string that ends in NUL.
    unsafe { outs(text.as_ptr()) };
}
