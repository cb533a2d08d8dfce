//! What a killed daemon of ours left behind: a VM that stands still.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vmtree_api::{ErrorKind, Result};

use crate::control::Control;
use crate::find::{self, Found};
use crate::gdb::door;
use crate::source::Target;

/// How long a monitor that does not answer is tried: the dead daemon's connection may still stand in it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lets the VM of `source` (`qemu:...`) run on if somebody stopped it. It is called only if a daemon that was killed
/// had paused the VM; whether somebody else has paused it as well can't be known any more.
///
/// # Errors
/// The VM is there and could not be told; those of finding it.
pub fn recover(source: &str) -> Result<()> {
    let target = Target::parse(source.strip_prefix("qemu:").unwrap_or(source))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match resume(&target) {
            // A VM that is gone needs nothing.
            Err(error) if matches!(error.kind(), ErrorKind::Gone) => return Ok(()),
            Err(error) if Instant::now() < deadline && error.kind() != ErrorKind::NotFound => {
                log::debug!("trying again: {error}");
                thread::sleep(Duration::from_millis(100));
            }
            result => return result,
        }
    }
}

fn resume(target: &Target) -> Result<()> {
    let Found { qmp, .. } = find::connect(target)?;
    let control = Control::new(qmp, Arc::default())?;
    control.adopt()?;
    // The VM runs already; the next use of the gdbstub would find it left over as well.
    if let Err(error) = control.lock().settle().and_then(|qmp| door::clear(&qmp)) {
        log::debug!("a gdbstub may be left over: {error}");
    }
    Ok(())
}
