//! What QEMU reads and calls when it loads the library.

use std::ffi::{CStr, c_char, c_int};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};

use super::table::table;

/// The version of the interface that this library speaks: QEMU reads it once, after the library's constructor.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "the name is QEMU's")]
pub static qemu_plugin_version: AtomicI32 = AtomicI32::new(4);

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = choose_version;

/// The version of the interface that was chosen.
#[must_use]
pub fn version() -> i32 {
    qemu_plugin_version.load(Ordering::Relaxed)
}

/// Chooses the version before QEMU looks at it. What functions there are tells all but 6 from 7: these two have the same
/// functions with other callbacks, and each QEMU takes one of them alone.
extern "C" fn choose_version() {
    let table = table();
    // Not in a QEMU: a test of this crate.
    if table.register_translate.is_none() {
        return;
    }
    let version = if table.set_pc.is_some() {
        if qemu_release().is_some_and(|release| release < (11, 1)) { 6 } else { 7 }
    } else if table.write_register.is_some() {
        5
    } else if table.read_virtual.is_some() {
        4
    } else {
        // Loads everywhere; `install` then says what is missing.
        1
    };
    qemu_plugin_version.store(version, Ordering::Relaxed);
}

/// The release of this QEMU, as it says itself. No function of the interface tells it.
fn qemu_release() -> Option<(u32, u32)> {
    let mut command = Command::new("/proc/self/exe");
    let output = command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    crate::args::release(&String::from_utf8_lossy(&output.stdout))
}

/// The beginning of `qemu_info_t`, of which the rest is not used but for the vCPUs.
#[repr(C)]
struct RawInfo {
    target_name: *const c_char,
    version_min: c_int,
    version_cur: c_int,
    system_emulation: bool,
    smp_vcpus: c_int,
    max_vcpus: c_int,
}

/// What QEMU says of itself when it loads the library.
#[derive(Clone, Debug)]
pub struct Info {
    /// The plugin's number.
    pub id: u64,
    /// The guest's architecture, as QEMU names it.
    pub target: String,
    /// The newest version of the interface that it has.
    pub newest: i32,
    /// Whether it emulates a whole machine.
    pub system: bool,
    /// The most vCPUs there can be.
    pub max_vcpus: u32,
    /// The arguments after the file's name, `key=value` each.
    pub args: Vec<String>,
}

/// Called once by QEMU. Anything but 0 ends QEMU with an error.
///
/// # Safety
/// As QEMU's interface says: `info` is readable, and `argv` has `argc` strings.
#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    info: *const RawInfo,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    // SAFETY: readable during this call, says the interface.
    let raw = unsafe { &*info };
    let args = (0..usize::try_from(argc).unwrap_or(0)).map(|index| {
        // SAFETY: there are `argc` of them.
        let arg = unsafe { argv.add(index) };
        // SAFETY: readable, says the interface.
        text(unsafe { *arg })
    });
    let info = Info {
        id,
        target: text(raw.target_name),
        newest: raw.version_cur,
        system: raw.system_emulation,
        max_vcpus: u32::try_from(raw.max_vcpus).unwrap_or(1),
        args: args.collect(),
    };
    match crate::plugin::install(&info) {
        Ok(()) => 0,
        Err(why) => {
            eprintln!("libvmtree_qemu.so: {why}");
            1
        }
    }
}

fn text(raw: *const c_char) -> String {
    if raw.is_null() {
        return String::new();
    }
    // SAFETY: a string of QEMU's that ends in NUL and lives at least as long as this call.
    unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned()
}
