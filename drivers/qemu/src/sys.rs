//! The calls that have no safe form: another process's memory, a mapping of guest memory or of a vCPU, a
//! peer's credentials.
#![allow(unsafe_code)]

pub mod run;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::ptr::{self, NonNull};

/// The process that listens at the other end, as SO_PEERCRED tells (unix(7)); `None` where it lives in a pid
/// namespace that we don't see into.
///
/// # Errors
/// Those of getsockopt(2).
pub fn peer_pid(socket: &UnixStream) -> io::Result<Option<u32>> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers are to locals that live through the call, and `bytes` is the size of the first.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            ptr::from_mut(&mut credentials).cast(),
            &raw mut bytes,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u32::try_from(credentials.pid).ok().filter(|pid| *pid != 0))
}

/// Copies from the memory of process `pid` at `hva`; fewer bytes than asked for where the rest is not mapped.
///
/// # Errors
/// Those of process_vm_readv(2): EPERM, ESRCH, EFAULT.
pub fn read_process(pid: u32, hva: u64, buf: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let remote = remote(hva, buf.len())?;
    // SAFETY: `local` covers `buf`, which is ours and writable; `remote` is checked by the kernel, in that process.
    let copied =
        unsafe { libc::process_vm_readv(pid.cast_signed(), &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(copied).map_err(|_| io::Error::last_os_error())
}

/// Copies into the memory of process `pid` at `hva`, as [`read_process`].
///
/// # Errors
/// Those of process_vm_writev(2): EPERM, ESRCH, EFAULT.
pub fn write_process(pid: u32, hva: u64, data: &[u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let remote = remote(hva, data.len())?;
    // SAFETY: `local` covers `data`, which this call only reads; `remote` is checked by the kernel, in that process.
    let copied =
        unsafe { libc::process_vm_writev(pid.cast_signed(), &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(copied).map_err(|_| io::Error::last_os_error())
}

fn remote(hva: u64, bytes: usize) -> io::Result<libc::iovec> {
    let base = usize::try_from(hva).map_err(|_| io::Error::from_raw_os_error(libc::EFAULT))?;
    Ok(libc::iovec { iov_base: ptr::without_provenance_mut(base), iov_len: bytes })
}

/// A read-only shared mapping of guest memory.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and stays where it is until it is dropped.
unsafe impl Send for Mapping {}
// SAFETY: `&Mapping` only hands out the bytes to be read by the kernel; see `lend`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` of `file` from `offset` on.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn new(file: &File, offset: u64, bytes: u64) -> io::Result<Self> {
        let too_large = |_| io::Error::from_raw_os_error(libc::EOVERFLOW);
        let bytes = usize::try_from(bytes).map_err(too_large)?;
        let offset = i64::try_from(offset).map_err(too_large)?;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), offset)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { start, bytes })
    }

    /// Lends `bytes` from `offset` on, and returns whether they lie in the mapping.
    ///
    /// The guest may change them meanwhile and the file may be cut short: `take` must do nothing with them but
    /// pass them to a system call, which then sees either value or fails with EFAULT.
    pub fn lend(&self, offset: u64, bytes: usize, take: &mut dyn FnMut(&[u8])) -> bool {
        let Ok(offset) = usize::try_from(offset) else { return false };
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return false;
        }
        // SAFETY: `offset` was just seen to lie inside the mapping.
        let start = unsafe { self.start.add(offset) };
        // SAFETY: the range is mapped for as long as `self` lives. That another party writes it meanwhile is the
        // one liberty that `vmtree_api::Memory::lend` grants: `take` only hands it to the operating system.
        let lent = unsafe { std::slice::from_raw_parts(start.as_ptr(), bytes) };
        take(lent);
        true
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `bytes` are those of the mapping made in `new`, and nothing borrows from it any more.
        let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
