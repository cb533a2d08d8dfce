//! Shared memory of the operating system: the one module here with `unsafe`.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// A memfd and its shared mapping, read and written by several parties at once: this process, the guest, and
/// whoever maps the file. So its bytes are copied, never borrowed, but for [`Shared::lend`].
#[derive(Debug)]
pub struct Shared {
    base: NonNull<u8>,
    bytes: usize,
    file: Arc<File>,
}

// SAFETY: the mapping lives as long as the value, and all access to it is by copies from raw pointers or atomics.
unsafe impl Send for Shared {}
// SAFETY: as above; a race between two copies mixes bytes of guest memory, which has no meaning to us.
unsafe impl Sync for Shared {}

impl Shared {
    /// A mapping of `bytes` zero bytes, which cost host memory only once they are touched.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn new(name: &str, bytes: u64) -> io::Result<Self> {
        let name = CString::new(format!("vmtree-{name}")).map_err(io::Error::other)?;
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: `name` is a valid C string during the call.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above just gave us this descriptor; nobody else owns it.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        let file = File::from(owned);
        file.set_len(bytes)?;
        // Whoever has the file by ram/NAME can neither make the guest's memory longer nor cut it under our mapping.
        let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
        // SAFETY: the descriptor is open, and the argument of F_ADD_SEALS is a number.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { base, bytes: length, file: Arc::new(file) })
    }

    /// The file whose pages these are.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The address of `bytes` bytes at `offset`; `None` if they don't all lie inside.
    fn at(&self, offset: u64, bytes: usize) -> Option<*mut u8> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(bytes)?;
        (end <= self.bytes).then(|| self.base.as_ptr().wrapping_add(offset))
    }

    /// The number in 1, 2, 4 or 8 aligned bytes, read at once; `None` for other sizes and places.
    fn load(&self, offset: u64, bytes: usize) -> Option<u64> {
        Some(match bytes {
            1 => self.byte(offset)?.load(Ordering::Relaxed).into(),
            2 => self.word(offset)?.load(Ordering::Relaxed).into(),
            4 => self.dword(offset)?.load(Ordering::Relaxed).into(),
            8 => self.qword(offset)?.load(Ordering::Acquire),
            _ => return None,
        })
    }

    /// Writes 1, 2, 4 or 8 aligned bytes at once; `None` for other sizes and places.
    fn store(&self, offset: u64, data: &[u8]) -> Option<()> {
        match *data {
            [value] => self.byte(offset)?.store(value, Ordering::Relaxed),
            [a, b] => self.word(offset)?.store(u16::from_le_bytes([a, b]), Ordering::Relaxed),
            [a, b, c, d] => self.dword(offset)?.store(u32::from_le_bytes([a, b, c, d]), Ordering::Relaxed),
            [a, b, c, d, e, f, g, h] => {
                self.qword(offset)?.store(u64::from_le_bytes([a, b, c, d, e, f, g, h]), Ordering::Release);
            }
            _ => return None,
        }
        Some(())
    }

    /// Copies out; `false` where the range is not all inside. 1, 2, 4 and 8 aligned bytes are read at once.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> bool {
        if let Some(value) = self.load(offset, buf.len()) {
            buf.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
            return true;
        }
        let Some(at) = self.at(offset, buf.len()) else { return false };
        // SAFETY: `at` was checked to have so many bytes in the mapping, and `buf` is not part of it.
        unsafe { ptr::copy_nonoverlapping(at, buf.as_mut_ptr(), buf.len()) };
        true
    }

    /// Copies in, as [`Shared::read`]. Nothing is written where the range is not all inside.
    pub fn write(&self, offset: u64, data: &[u8]) -> bool {
        if self.store(offset, data).is_some() {
            return true;
        }
        let Some(at) = self.at(offset, data.len()) else { return false };
        // SAFETY: `at` was checked to have so many bytes in the mapping, and `data` is not part of it.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), at, data.len()) };
        true
    }

    /// Sets bits of the aligned 8 bytes at `offset` as a CPU sets A and D: not losing what another party writes.
    pub fn set_bits(&self, offset: u64, bits: u64) -> bool {
        self.qword(offset).map(|word| word.fetch_or(bits, Ordering::AcqRel)).is_some()
    }

    /// Lends the bytes themselves; `false` where the range is not all inside.
    pub fn lend(&self, offset: u64, bytes: usize, take: &mut dyn FnMut(&[u8])) -> bool {
        let Some(at) = self.at(offset, bytes) else { return false };
        // SAFETY: the bytes are mapped and initialized. The guest may write them meanwhile; the contract of
        // `Memory::lend` is that `take` only hands them to the operating system, so no value is derived from them.
        let lent = unsafe { std::slice::from_raw_parts(at, bytes) };
        take(lent);
        true
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `new` made; nothing borrows it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

macro_rules! atomics {
    ($($name:ident $type:ident)+) => {
        impl Shared {
            $(
                /// An aligned place in the mapping; `None` where there is none.
                fn $name(&self, offset: u64) -> Option<&$type> {
                    let at: *mut $type = self.at(offset, size_of::<$type>())?.cast();
                    // SAFETY: checked to lie in the mapping, which lives as long as `self`, and to be aligned.
                    at.is_aligned().then(|| unsafe { $type::from_ptr(at.cast()) })
                }
            )+
        }
    };
}
atomics!(byte AtomicU8 word AtomicU16 dword AtomicU32 qword AtomicU64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_at_every_size_and_alignment() {
        let shared = Shared::new("test", 1 << 21).unwrap();
        for offset in 0..17_u64 {
            for len in 0..20_usize {
                let data: Vec<u8> = (0..len).map(|i| (i * 7 + offset as usize) as u8).collect();
                let mut back = vec![0; len];
                assert!(shared.write(offset, &data) && shared.read(offset, &mut back));
                assert_eq!(data, back);
            }
        }
    }

    #[test]
    fn nothing_outside_is_touched() {
        let shared = Shared::new("test", 1 << 21).unwrap();
        let mut buf = [0; 2];
        assert!(!shared.read((1 << 21) - 1, &mut buf));
        assert!(!shared.write(u64::MAX, &buf));
        assert!(!shared.set_bits(4, 1) && !shared.set_bits((1 << 21) - 4, 1));
        assert!(!shared.lend(1 << 21, 1, &mut |_| ()));
        assert!(shared.lend((1 << 21) - 2, 2, &mut |bytes| assert_eq!(bytes, [0, 0])));
    }

    #[test]
    fn the_file_is_the_memory() {
        use std::os::unix::fs::FileExt;
        let shared = Shared::new("test", 1 << 21).unwrap();
        shared.file().write_all_at(b"vmtree", 4094).unwrap();
        let mut buf = [0; 6];
        assert!(shared.read(4094, &mut buf));
        assert_eq!(&buf, b"vmtree");
    }
}
