//! Locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock whatever became of the thread that had it: what it guards is whole between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
