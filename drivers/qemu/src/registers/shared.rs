//! Readers that come before a snapshot is begun share it.

use std::mem;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use vmtree_api::{Error, RegisterSet, Result, VcpuId};

/// The answer that some readers wait for.
type Slot = Arc<Mutex<Option<Result<RegisterSet>>>>;

/// The readers that wait.
#[derive(Debug, Default)]
pub struct Readers {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<(VcpuId, Slot)>,
    /// One of them works for all.
    led: bool,
}

/// Readers whose snapshots are to be taken.
#[derive(Debug, Default)]
pub struct Batch(Vec<(VcpuId, Slot)>);

impl Batch {
    /// Gives each vCPU's readers their answer.
    pub fn answer(self, mut snapshot: impl FnMut(VcpuId) -> Result<RegisterSet>) {
        for (vcpu, slot) in self.0 {
            *slot.lock() = Some(snapshot(vcpu));
        }
    }
}

impl Readers {
    /// Waits for a snapshot of `vcpu` that is begun after this call. One of the callers is asked to `lead`: to take the
    /// batch by [`Readers::begin`] when the VM stands still, and to answer it.
    ///
    /// # Errors
    /// What the snapshot or `lead` fails with.
    pub fn read(&self, vcpu: VcpuId, lead: impl Fn() -> Result<()>) -> Result<RegisterSet> {
        let mut state = self.state.lock();
        let found = state.waiting.iter().find(|(of, _)| *of == vcpu).map(|(_, slot)| Arc::clone(slot));
        let slot = found.unwrap_or_else(|| {
            let slot = Slot::default();
            state.waiting.push((vcpu, Arc::clone(&slot)));
            slot
        });
        loop {
            if let Some(answer) = &*slot.lock() {
                return match answer {
                    Ok(set) => Ok(set.clone()),
                    Err(error) => Err(copy(error)),
                };
            }
            if state.led {
                self.changed.wait(&mut state);
                continue;
            }
            state.led = true;
            drop(state);
            let led = lead();
            if let Err(error) = led {
                // Whoever has not been served is told why; the others have their answer.
                self.begin().answer(|_| Err(copy(&error)));
            }
            state = self.state.lock();
            state.led = false;
            self.changed.notify_all();
        }
    }

    /// Those who wait now; who comes later waits for the next snapshot.
    #[must_use]
    pub fn begin(&self) -> Batch {
        Batch(mem::take(&mut self.state.lock().waiting))
    }
}

/// An error has one owner; each reader gets its words.
fn copy(error: &Error) -> Error {
    let source = std::error::Error::source(error).map(|source| format!(" ({source})")).unwrap_or_default();
    Error::new(error.kind(), error.op(), format!("{}{source}", error.why()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;
    use std::time::Duration;
    use vmtree_api::x86::Reg;
    use vmtree_api::{Arch, ErrorKind, RegValue};

    fn numbered(number: u64) -> RegisterSet {
        let mut set = RegisterSet::new(Arch::X86_64);
        set.set(Reg::Rax.id(), RegValue::Word(number)).unwrap();
        set
    }

    /// The clock ticks at each begin of a reader and of a snapshot: a snapshot must be younger than its reader.
    #[test]
    fn readers_share_and_none_gets_an_older_snapshot() {
        let readers = Readers::default();
        let (clock, taken) = (AtomicU64::new(0), AtomicU64::new(0));
        let lead = || {
            let batch = readers.begin();
            thread::sleep(Duration::from_millis(2));
            batch.answer(|_| {
                taken.fetch_add(1, Ordering::SeqCst);
                Ok(numbered(clock.fetch_add(1, Ordering::SeqCst)))
            });
            Ok(())
        };
        thread::scope(|scope| {
            for reader in 0..8 {
                let (readers, clock, lead) = (&readers, &clock, &lead);
                scope.spawn(move || {
                    for _ in 0..50 {
                        let begun = clock.fetch_add(1, Ordering::SeqCst);
                        let set = readers.read(VcpuId(reader % 2), lead).unwrap();
                        let Some(RegValue::Word(number)) = set.get(Reg::Rax.id()) else { panic!("{set:?}") };
                        assert!(number > begun);
                    }
                });
            }
        });
        let taken = taken.into_inner();
        assert!(taken < 300, "{taken} snapshots for 400 readers");
    }

    #[test]
    fn a_failure_is_told_to_all_and_forgotten() {
        let readers = Readers::default();
        let fails = || Err(Error::new(ErrorKind::Gone, "test", "gone"));
        assert_eq!(readers.read(VcpuId(0), fails).unwrap_err().to_string(), "test: gone");
        let works = || {
            readers.begin().answer(|_| Ok(numbered(1)));
            Ok(())
        };
        assert_eq!(readers.read(VcpuId(0), works).unwrap(), numbered(1));
    }
}
