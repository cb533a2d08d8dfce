//! The handle of libxenctrl.

use std::ffi::{c_char, c_int};
use std::io::{Error, Result};
use std::ptr::{NonNull, null_mut};

use xenctrl_sys as c;

use super::done;

/// Neither a dummy nor for one thread only.
const PLAIN: u32 = 0;

/// A logger that says nothing: what fails is told by errno, and we say it ourselves.
struct Silent(c::xentoollog_logger);

// SAFETY: its functions keep nothing.
unsafe impl Sync for Silent {}

static SILENT: Silent = Silent(c::xentoollog_logger {
    vmessage: Some(no_message),
    progress: Some(no_progress),
    destroy: Some(no_destroy),
});

unsafe extern "C" fn no_message(
    _logger: *mut c::xentoollog_logger,
    _level: c::xentoollog_level,
    _errno: c_int,
    _context: *const c_char,
    _format: *const c_char,
    _arguments: *mut c::__va_list_tag,
) {
}

unsafe extern "C" fn no_progress(
    _logger: *mut c::xentoollog_logger,
    _context: *const c_char,
    _what: *const c_char,
    _percent: c_int,
    _done: u64,
    _total: u64,
) {
}

unsafe extern "C" fn no_destroy(_logger: *mut c::xentoollog_logger) {}

/// For the libraries, which only read it.
pub fn silent() -> *mut c::xentoollog_logger {
    (&raw const SILENT.0).cast_mut()
}

/// An open handle.
pub struct Handle(NonNull<c::xc_interface>);

impl Handle {
    /// Opens one.
    ///
    /// # Errors
    /// Xen can't be talked to.
    pub fn open() -> Result<Self> {
        // SAFETY: the logger is there for ever, and the library does not write to it.
        let handle = unsafe { c::xc_interface_open(silent(), silent(), PLAIN) };
        NonNull::new(handle).map(Self).ok_or_else(Error::last_os_error)
    }

    /// For the library.
    pub fn raw(&self) -> *mut c::xc_interface {
        self.0.as_ptr()
    }

    /// The version of Xen that runs.
    ///
    /// # Errors
    /// As the call says.
    pub fn version(&self) -> Result<String> {
        // SAFETY: the handle is open, and this question has no argument.
        let code = unsafe { c::xc_version(self.raw(), c::XENVER_version as i32, null_mut()) };
        let version = done(code)?;
        Ok(format!("{}.{}", version >> 16, version & 0xffff))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: nobody uses the handle any more.
        unsafe { c::xc_interface_close(self.raw()) };
    }
}
