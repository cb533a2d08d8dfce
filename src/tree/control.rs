//! `ctl` and `state`: pause, resume and flush.

use vmtree_api::{Error, ErrorKind, RunState};

use super::{Ctx, Tree};
use crate::error::{FsError, FsResult};
use crate::text::control::{Ctl, parse_ctl};
use crate::text::text_of;

/// `running` or `paused`.
pub fn show_state(ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
    Ok(format!("{}\n", ctx.tree.driver.execution()?.state()?).into_bytes())
}

/// The length of the longer state, so that stat needs no call to the VM.
pub fn state_len(_ctx: &Ctx<'_>) -> u64 {
    "running\n".len() as u64
}

/// Carries out the verbs written to `ctl`.
pub fn store(ctx: &Ctx<'_>, data: &[u8]) -> FsResult<()> {
    let verbs = parse_ctl(text_of(data)?)?;
    let needs_execution = verbs.iter().any(|verb| !matches!(verb, Ctl::Flush));
    if needs_execution {
        ctx.tree.driver.execution()?;
    }
    for verb in verbs {
        match verb {
            _ if ctx.cancel.raised() => return Err(nobody_waits()),
            Ctl::Pause => pause(ctx)?,
            Ctl::Resume { force: false } => resume(ctx.tree)?,
            Ctl::Resume { force: true } => force_resume(ctx.tree)?,
            Ctl::Flush => ctx.tree.memory.cache().flush(),
        }
    }
    Ok(())
}

/// Pauses the VM for this mount; a second time changes nothing, unless somebody else has let the VM run meanwhile.
fn pause(ctx: &Ctx<'_>) -> FsResult<()> {
    let Ctx { tree, cancel, .. } = ctx;
    let mut held = tree.pause.lock();
    let execution = tree.driver.execution()?;
    if held.is_some() && execution.state()? == RunState::Paused {
        return Ok(());
    }
    let pause = execution.pause()?;
    if cancel.raised() {
        pause.resume()?;
        return Err(nobody_waits());
    }
    let exclusive = pause.exclusive();
    // The old one ends after the new one has begun, so the VM does not run in between.
    let old = held.replace(pause);
    tree.memory.cache().set_paused(exclusive);
    old.map_or(Ok(()), |old| Ok(old.resume()?))
}

/// The caller was told that nothing was done.
fn nobody_waits() -> FsError {
    Error::new(ErrorKind::Interrupted, "control", "the caller went away, and nothing more was done").into()
}

/// Ends this mount's own pause, and tells if somebody else's remains.
fn resume(tree: &Tree) -> FsResult<()> {
    give_back(tree)?;
    match tree.driver.execution()?.state()? {
        RunState::Running => Ok(()),
        RunState::Paused => {
            let why = "somebody else paused the VM; 'resume force' lets it run all the same";
            Err(Error::new(ErrorKind::Busy, "resume", why).into())
        }
    }
}

fn force_resume(tree: &Tree) -> FsResult<()> {
    give_back(tree)?;
    Ok(tree.driver.execution()?.force_resume()?)
}

/// Ends this mount's own pause, if it has one.
///
/// # Errors
/// The hypervisor could not be told. The pause is forgotten all the same: a VM that can't be told is gone.
pub fn give_back(tree: &Tree) -> FsResult<()> {
    let mut held = tree.pause.lock();
    let Some(pause) = held.take() else { return Ok(()) };
    // Before the guest runs, or a copy could be taken for fresh after it ran.
    tree.memory.cache().set_paused(false);
    Ok(pause.resume()?)
}
