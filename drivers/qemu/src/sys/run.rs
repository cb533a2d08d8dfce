//! A vCPU's `kvm_run`, which KVM shares with whoever maps the vCPU's descriptor, and what goes with it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

/// The 64-bit words of a page of 4 KiB, which all of `struct kvm_run` but a vCPU's I/O data fits in.
const WORDS: usize = 512;

/// KVM_CHECK_EXTENSION: _IO(KVMIO, 0x03) of linux/kvm.h.
const KVM_CHECK_EXTENSION: libc::c_ulong = 0xae03;

/// The first page of a vCPU's mapping, which KVM and the monitor write at any time.
#[derive(Debug)]
pub struct RunPage {
    start: NonNull<[AtomicU64; WORDS]>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and stays where it is until it is dropped.
unsafe impl Send for RunPage {}
// SAFETY: `&RunPage` only gives atomic words.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps it from a vCPU's descriptor.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn map(vcpu: &OwnedFd) -> io::Result<Self> {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), 8 * WORDS, rights, libc::MAP_SHARED, vcpu.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { start })
    }

    /// Its words.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64; WORDS] {
        // SAFETY: the page is mapped, readable and writable, and page-aligned for as long as `self` lives; all that we do
        // with it is atomic, whoever else writes it.
        unsafe { self.start.as_ref() }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, of which nothing is borrowed any more.
        let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), 8 * WORDS) };
    }
}

/// What /dev/kvm answers to KVM_CHECK_EXTENSION.
///
/// # Errors
/// Those of ioctl(2).
pub fn check_extension(kvm: &File, extension: libc::c_ulong) -> io::Result<u32> {
    // SAFETY: this request takes a number and touches no memory of ours.
    let answer = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CHECK_EXTENSION, extension) };
    u32::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// Sends SIGUSR1 to thread `tid` of process `pid`.
///
/// # Errors
/// Those of tgkill(2): EPERM, ESRCH.
pub fn kick(pid: u32, tid: u32) -> io::Result<()> {
    // SAFETY: a call that takes three numbers; the kernel refuses a thread that is not the process's.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGUSR1) };
    if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
