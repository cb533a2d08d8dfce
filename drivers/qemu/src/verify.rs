//! What we read is compared to what QEMU itself shows, once, before anyone relies on it.

use std::thread;
use std::time::Duration;

use vmtree_api::{Error, ErrorKind, Gpa, Memory, Region, Result};

use crate::hmp::answers::examined;
use crate::qmp::Qmp;

const OP: &str = "check the memory layout";

/// How much of a region is searched for bytes worth comparing.
const SEARCHED: usize = 64 << 10;

/// How often a comparison is made again: a running guest may write between the two looks.
const TRIES: u32 = 10;

/// Compares eight bytes of each region that holds data.
///
/// # Errors
/// [`ErrorKind::Protocol`] if a region stays different; those of [`Memory::read`] and [`Qmp::execute`].
pub fn verify(qmp: &Qmp, memory: &dyn Memory) -> Result<()> {
    let map = memory.map();
    map.regions()
        .iter()
        .filter(|region| region.holds_data())
        .try_for_each(|region| compare(qmp, memory, region))
}

fn compare(qmp: &Qmp, memory: &dyn Memory, region: &Region) -> Result<()> {
    let at = telling_address(memory, region)?;
    for attempt in 0..TRIES {
        let Some(before) = word(memory, at)? else { return Ok(()) };
        let shown = examined(&qmp.human(&format!("xp /1gx {at}"))?);
        if shown.is_some() && (shown == Some(before) || shown == word(memory, at)?) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1 << attempt));
    }
    let why = format!(
        "what QEMU shows at {at} is not what is found there; this QEMU's memory can't be read soundly"
    );
    Err(Error::new(ErrorKind::Protocol, OP, why))
}

/// The first eight bytes near the region's start that are not zero; zeros look alike everywhere.
fn telling_address(memory: &dyn Memory, region: &Region) -> Result<Gpa> {
    let mut buf = vec![0; usize::try_from(region.bytes()).unwrap_or(SEARCHED).min(SEARCHED)];
    let copied = memory.read(region.start, &mut buf)?;
    let words = buf.get(..copied).unwrap_or_default().chunks_exact(8);
    let index = words.into_iter().position(|word| word.iter().any(|byte| *byte != 0)).unwrap_or(0);
    Ok(region.start.checked_add(index as u64 * 8).unwrap_or(region.start))
}

/// Eight bytes as `xp /1gx` shows them; `None` where the region is shorter.
fn word(memory: &dyn Memory, at: Gpa) -> Result<Option<u64>> {
    let mut bytes = [0; 8];
    match memory.read(at, &mut bytes) {
        Ok(8) => Ok(Some(u64::from_le_bytes(bytes))),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
