//! A driver whose pauses are noted in the undo journal before they are made.

use std::env;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmtree_api::events::{EventSource, Injection};
use vmtree_api::views::Views;
use vmtree_api::{
    Cancel, Driver, Error, ErrorKind, Execution, Facts, Memory, Missing, Pause, Registers, Result, RunState,
    VcpuId,
};

use super::journal::{Journal, Paused};

/// The driver, and the notes it takes.
pub struct Journaled {
    driver: Arc<dyn Driver>,
    execution: Noting,
}

/// Execution as the driver does it, with a note for as long as a pause of ours holds.
struct Noting {
    driver: Arc<dyn Driver>,
    notes: Arc<Notes>,
}

struct Notes {
    journal: Arc<Journal>,
    entry: Paused,
    count: Mutex<Count>,
}

/// The pauses of ours that the entry stands for.
#[derive(Default)]
struct Count {
    held: u32,
    /// Grows when a forced resume voids all that hold.
    epoch: u64,
}

impl Journaled {
    /// Wraps `driver`, which was opened by `source`.
    ///
    /// # Errors
    /// The current directory is gone.
    pub fn new(driver: Arc<dyn Driver>, source: &str, journal: Arc<Journal>) -> std::io::Result<Self> {
        let directory: PathBuf = env::current_dir()?;
        let entry = Paused { source: source.to_owned(), directory };
        let notes = Arc::new(Notes { journal, entry, count: Mutex::new(Count::default()) });
        let execution = Noting { driver: driver.clone(), notes };
        Ok(Self { driver, execution })
    }
}

impl Notes {
    fn count(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more pause, noting the first; returns the epoch to give it back with.
    fn hold(&self) -> Result<u64> {
        let mut count = self.count();
        if count.held == 0 {
            self.journal.paused(&self.entry).map_err(|error| {
                Error::new(ErrorKind::Io, "pause", "the undo journal can't be written").caused_by(error)
            })?;
        }
        count.held += 1;
        Ok(count.epoch)
    }

    /// Counts one pause less. The entry stays if the VM could not be told: then the guardians tell it.
    fn release(&self, epoch: u64, told: bool) {
        let mut count = self.count();
        if count.epoch != epoch {
            return;
        }
        count.held = count.held.saturating_sub(1);
        if count.held == 0 && told {
            self.forget();
        }
    }

    fn void(&self) {
        let mut count = self.count();
        *count = Count { held: 0, epoch: count.epoch + 1 };
        self.forget();
    }

    fn forget(&self) {
        if let Err(error) = self.journal.resumed() {
            log::error!("undo journal: {error}");
        }
    }
}

impl Execution for Noting {
    fn state(&self) -> Result<RunState> {
        inner(&*self.driver)?.state()
    }

    fn pause(&self) -> Result<Pause> {
        let execution = inner(&*self.driver)?;
        // A VM that somebody else has paused stays paused whatever becomes of us.
        if execution.state()? == RunState::Paused && self.notes.count().held == 0 {
            return execution.pause();
        }
        let epoch = self.notes.hold()?;
        let pause = execution.pause().inspect_err(|_| self.notes.release(epoch, true))?;
        let notes = self.notes.clone();
        let exclusive = pause.exclusive();
        let noted = Pause::new(move || {
            let result = pause.resume();
            let gone = |error: &Error| error.kind() == ErrorKind::Gone;
            notes.release(epoch, result.as_ref().err().is_none_or(gone));
            result
        });
        Ok(if exclusive { noted } else { noted.shared() })
    }

    fn force_resume(&self) -> Result<()> {
        inner(&*self.driver)?.force_resume()?;
        self.notes.void();
        Ok(())
    }

    fn step(&self, vcpu: VcpuId, count: u64, cancel: &Cancel) -> Result<u64> {
        inner(&*self.driver)?.step(vcpu, count, cancel)
    }
}

fn inner(driver: &dyn Driver) -> Result<&dyn Execution> {
    driver
        .execution()
        .map_err(|missing| Error::new(ErrorKind::Unsupported, "control execution", missing.to_string()))
}

impl Driver for Journaled {
    fn facts(&self) -> &Facts {
        self.driver.facts()
    }

    fn memory(&self) -> &dyn Memory {
        self.driver.memory()
    }

    fn registers(&self) -> std::result::Result<&dyn Registers, Missing> {
        self.driver.registers()
    }

    fn execution(&self) -> std::result::Result<&dyn Execution, Missing> {
        self.driver.execution()?;
        Ok(&self.execution)
    }

    fn events(&self) -> std::result::Result<&dyn EventSource, Missing> {
        self.driver.events()
    }

    fn views(&self) -> std::result::Result<&dyn Views, Missing> {
        self.driver.views()
    }

    fn injection(&self) -> std::result::Result<&dyn Injection, Missing> {
        self.driver.injection()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use vmtree_api::Source;

    /// A VM that counts its pauses, of which the tenth can't be ended.
    struct Counting(Arc<AtomicU32>);

    impl Execution for Counting {
        fn state(&self) -> Result<RunState> {
            Ok(if self.0.load(Ordering::SeqCst) > 0 { RunState::Paused } else { RunState::Running })
        }

        fn pause(&self) -> Result<Pause> {
            self.0.fetch_add(1, Ordering::SeqCst);
            let count = self.0.clone();
            Ok(Pause::new(move || {
                if count.load(Ordering::SeqCst) == 10 {
                    return Err(Error::new(ErrorKind::TimedOut, "resume", "no answer"));
                }
                let _ = count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |held| held.checked_sub(1));
                Ok(())
            }))
        }

        fn force_resume(&self) -> Result<()> {
            self.0.store(0, Ordering::SeqCst);
            Ok(())
        }

        fn step(&self, _: VcpuId, count: u64, _: &Cancel) -> Result<u64> {
            Ok(count)
        }
    }

    struct Machine(Counting, Facts);

    impl Driver for Machine {
        fn facts(&self) -> &Facts {
            &self.1
        }
        fn memory(&self) -> &dyn Memory {
            panic!("not asked for")
        }
        fn registers(&self) -> std::result::Result<&dyn Registers, Missing> {
            Err(Missing::new("no"))
        }
        fn execution(&self) -> std::result::Result<&dyn Execution, Missing> {
            Ok(&self.0)
        }
        fn events(&self) -> std::result::Result<&dyn EventSource, Missing> {
            Err(Missing::new("no"))
        }
        fn views(&self) -> std::result::Result<&dyn Views, Missing> {
            Err(Missing::new("no"))
        }
        fn injection(&self) -> std::result::Result<&dyn Injection, Missing> {
            Err(Missing::new("no"))
        }
    }

    fn machine() -> (Arc<AtomicU32>, Arc<Journal>, Journaled) {
        let source = Source::new("test", "", Vec::new());
        let extra = vec![("target", source.target)];
        let facts =
            Facts { driver: "test", name: None, arch: vmtree_api::Arch::X86_64, vcpus: Some(1), extra };
        let count = Arc::new(AtomicU32::new(0));
        let journal = Arc::new(Journal::create().unwrap());
        let machine = Arc::new(Machine(Counting(count.clone()), facts));
        let journaled = Journaled::new(machine, "test:", journal.clone()).unwrap();
        (count, journal, journaled)
    }

    #[test]
    fn the_entry_stands_while_any_pause_of_ours_holds() {
        let (_, journal, driver) = machine();
        let execution = driver.execution().unwrap();
        let first = execution.pause().unwrap();
        assert_eq!(journal.read_paused().unwrap().unwrap().source, "test:");
        let second = execution.pause().unwrap();
        first.resume().unwrap();
        assert!(journal.read_paused().unwrap().is_some());
        drop(second);
        assert_eq!(journal.read_paused().unwrap(), None);
    }

    #[test]
    fn a_pause_of_somebody_else_is_not_ours_to_undo() {
        let (count, journal, driver) = machine();
        count.store(1, Ordering::SeqCst);
        let pause = driver.execution().unwrap().pause().unwrap();
        assert_eq!(journal.read_paused().unwrap(), None);
        pause.resume().unwrap();
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_entry_stays_where_the_vm_could_not_be_told() {
        let (count, journal, driver) = machine();
        let execution = driver.execution().unwrap();
        let pause = execution.pause().unwrap();
        count.store(10, Ordering::SeqCst);
        assert!(pause.resume().is_err());
        assert!(journal.read_paused().unwrap().is_some());
        count.store(0, Ordering::SeqCst);
        execution.pause().unwrap().resume().unwrap();
        assert_eq!(journal.read_paused().unwrap(), None);
    }

    #[test]
    fn a_forced_resume_voids_the_entry_and_the_next_pause_writes_it_anew() {
        let (_, journal, driver) = machine();
        let execution = driver.execution().unwrap();
        let voided = execution.pause().unwrap();
        execution.force_resume().unwrap();
        assert_eq!(journal.read_paused().unwrap(), None);
        let next = execution.pause().unwrap();
        drop(voided);
        assert!(journal.read_paused().unwrap().is_some());
        drop(next);
        assert_eq!(journal.read_paused().unwrap(), None);
    }
}
