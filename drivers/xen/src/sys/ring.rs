//! The ring of events, a page that Xen shares with us (public/io/ring.h), its event channel, and the bell.

use std::ffi::c_void;
use std::io::{Error, Result};
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use xenevtchn_sys as c;
use xenvmevent_sys::{vm_event_request_t, vm_event_sring};

use super::{done, handle};
use crate::events::wire::{SLOT, Slot};

const PAGE: usize = 4096;
/// How many slots fit behind the counters: a power of two.
const SLOTS: u32 = {
    let room = (PAGE - FIRST) / SLOT;
    1 << room.ilog2()
};
const FIRST: usize = offset_of!(vm_event_sring, ring);

// The wire's offsets are written down by number.
const _: () = assert!(size_of::<vm_event_request_t>() == SLOT);
const _: () = assert!(offset_of!(vm_event_request_t, data) == 56);

/// The counters, by their offsets.
const REQUESTS: usize = offset_of!(vm_event_sring, req_prod);
const REQUEST_EVENT: usize = offset_of!(vm_event_sring, req_event);
const RESPONSES: usize = offset_of!(vm_event_sring, rsp_prod);
const RESPONSE_EVENT: usize = offset_of!(vm_event_sring, rsp_event);

/// A ring that is ours.
pub struct Ring {
    page: NonNull<c_void>,
    channel: Channel,
    taken: u32,
    answered: u32,
}

/// An event channel, open and perhaps bound.
struct Channel {
    handle: NonNull<c::xenevtchn_handle>,
    port: u32,
}

impl Channel {
    fn bind(domid: u32, remote: u32) -> Result<Self> {
        // SAFETY: the logger is there for ever, and the library does not write to it.
        let handle = unsafe { c::xenevtchn_open(handle::silent().cast(), 0) };
        let handle = NonNull::new(handle).ok_or_else(Error::last_os_error)?;
        let mut channel = Self { handle, port: 0 };
        // SAFETY: the handle is open.
        channel.port = done(unsafe { c::xenevtchn_bind_interdomain(handle.as_ptr(), domid, remote) })?;
        Ok(channel)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the handle is open.
        let fd = unsafe { c::xenevtchn_fd(self.handle.as_ptr()) };
        // SAFETY: the descriptor is open for as long as the handle.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// Takes what made the descriptor readable.
    fn clear(&self) -> Result<()> {
        // SAFETY: the handle is open.
        let port = done(unsafe { c::xenevtchn_pending(self.handle.as_ptr()) })?;
        // SAFETY: the handle is open.
        done(unsafe { c::xenevtchn_unmask(self.handle.as_ptr(), port) }).map(drop)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: nobody uses the handle any more; its port goes with it.
        unsafe { c::xenevtchn_close(self.handle.as_ptr()) };
    }
}

impl Ring {
    /// The ring in this page, which Xen tells of by this port of the domain.
    ///
    /// # Errors
    /// No event channel is to be had; the page is unmapped.
    pub fn new(domid: u32, page: NonNull<c_void>, remote: u32) -> Result<Self> {
        let channel = Channel::bind(domid, remote).inspect_err(|_| unmap(page))?;
        let ring = Self { page, channel, taken: 0, answered: 0 };
        for (counter, value) in [(REQUESTS, 0), (REQUEST_EVENT, 1), (RESPONSES, 0), (RESPONSE_EVENT, 1)] {
            ring.counter(counter).store(value, Ordering::SeqCst);
        }
        Ok(ring)
    }

    fn counter(&self, at: usize) -> &AtomicU32 {
        // SAFETY: the offset is inside the page.
        let counter = unsafe { self.page.cast::<u8>().add(at) };
        // SAFETY: it is aligned, mapped for as long as this ring, and both sides use it as an atomic number.
        unsafe { AtomicU32::from_ptr(counter.cast::<u32>().as_ptr()) }
    }

    fn slot(&self, number: u32) -> NonNull<Slot> {
        let at = FIRST + (number % SLOTS) as usize * SLOT;
        // SAFETY: the offset is inside the page.
        unsafe { self.page.cast::<u8>().add(at) }.cast()
    }

    /// The next request.
    pub fn request(&mut self) -> Option<Slot> {
        if self.counter(REQUESTS).load(Ordering::Acquire) == self.taken {
            return None;
        }
        // SAFETY: a slot is bytes; Xen writes it no more until it is answered, and a torn read would be refused as any bad one.
        let slot = unsafe { self.slot(self.taken).read_volatile() };
        self.taken = self.taken.wrapping_add(1);
        self.counter(REQUEST_EVENT).store(self.taken.wrapping_add(1), Ordering::SeqCst);
        Some(slot)
    }

    /// Answers a request.
    ///
    /// # Errors
    /// Xen can't be told; it is not answered.
    pub fn respond(&mut self, response: &Slot) -> Result<()> {
        // SAFETY: a slot is bytes, and this one holds a request that was taken.
        unsafe { self.slot(self.answered).write_volatile(*response) };
        self.answered = self.answered.wrapping_add(1);
        self.counter(RESPONSES).store(self.answered, Ordering::Release);
        let channel = self.channel.handle.as_ptr();
        // SAFETY: the handle is open.
        let told = done(unsafe { c::xenevtchn_notify(channel, self.channel.port) });
        if told.is_err() {
            // Xen looks at the ring when it is told.
            self.answered = self.answered.wrapping_sub(1);
            self.counter(RESPONSES).store(self.answered, Ordering::Release);
        }
        told.map(drop)
    }
}

fn unmap(page: NonNull<c_void>) {
    // SAFETY: the page was mapped for the ring, and is used no more.
    unsafe { libc::munmap(page.as_ptr(), PAGE) };
}

impl Drop for Ring {
    fn drop(&mut self) {
        unmap(self.page);
    }
}

/// Ends a wait from any thread.
pub struct Bell(OwnedFd);

impl Bell {
    /// One that nobody has rung.
    ///
    /// # Errors
    /// No descriptor is to be had.
    pub fn new() -> Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }
}

impl crate::hypervisor::Bell for Bell {
    fn ring(&self) {
        // An eventfd takes 8 bytes; it is full only after 2^64 - 2 of these.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

/// Waits for requests, for the bell, or until the time is over.
///
/// # Errors
/// As poll(2) says.
pub fn wait(ring: Option<&Ring>, bell: &Bell, timeout: Duration) -> Result<()> {
    let mut fds = vec![PollFd::from_borrowed_fd(bell.0.as_fd(), PollFlags::IN)];
    fds.extend(ring.map(|ring| PollFd::from_borrowed_fd(ring.channel.fd(), PollFlags::IN)));
    match poll(&mut fds, Timespec::try_from(timeout).ok().as_ref()) {
        Ok(0) | Err(Errno::INTR) => return Ok(()),
        Ok(_) => {}
        Err(errno) => return Err(errno.into()),
    }
    let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    if ready.first() == Some(&true) {
        // It counts; whoever rang is served after this.
        let _ = rustix::io::read(&bell.0, &mut [0; 8]);
    }
    match (ring, ready.get(1)) {
        (Some(ring), Some(true)) => ring.channel.clear(),
        _ => Ok(()),
    }
}
