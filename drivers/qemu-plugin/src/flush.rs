//! Having QEMU translate anew. Only a vCPU's own thread can ask for it, so who wants it waits for one to come by.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a running vCPU may take to come by: it does at its next interrupt or watched instruction.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a vCPU is at.
const RUNNING: u8 = 1;
/// It stands still, and comes by before it runs on.
const STILL: u8 = 2;

/// A flush that may be wanted.
pub struct Flush {
    wanted: AtomicBool,
    asked: AtomicBool,
    /// How often it was done.
    done: Mutex<u64>,
    changed: Condvar,
    /// Of each vCPU; 0 before it starts.
    vcpus: Box<[AtomicU8]>,
}

impl Flush {
    pub fn new(vcpus: u32) -> Self {
        Self {
            wanted: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            done: Mutex::new(0),
            changed: Condvar::new(),
            vcpus: (0..vcpus).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    /// A vCPU stands still, or runs again.
    pub fn still(&self, vcpu: u32, still: bool) {
        if let Some(state) = self.vcpus.get(vcpu as usize) {
            state.store(if still { STILL } else { RUNNING }, Ordering::SeqCst);
        }
    }

    /// On a vCPU's thread: whether it is to ask QEMU for a flush now.
    pub fn due(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) && !self.asked.swap(true, Ordering::SeqCst)
    }

    /// On the thread of a vCPU that is about to run again: waits for a flush that another one has asked for and that is not done
    /// yet, since nothing is to be executed that was translated before. Not long, as that one may need QEMU's lock, which
    /// is held here.
    pub fn let_pass(&self) {
        const SHORT: Duration = Duration::from_millis(20);
        let under_way = || self.wanted.load(Ordering::SeqCst) && self.asked.load(Ordering::SeqCst);
        if under_way() {
            let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = self.changed.wait_timeout_while(done, SHORT, |_| under_way());
        }
    }

    /// QEMU has flushed.
    pub fn finished(&self) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.store(false, Ordering::SeqCst);
        self.asked.store(false, Ordering::SeqCst);
        *done += 1;
        self.changed.notify_all();
    }

    /// Wants a flush, whenever a vCPU comes by.
    pub fn ask(&self) {
        self.wanted.store(true, Ordering::SeqCst);
    }

    /// Wants a flush and waits until it is done, or is sure to be done before any vCPU runs on. Whether it is.
    pub fn wait(&self) -> bool {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *done;
        self.ask();
        let end = Instant::now() + PATIENCE;
        while *done == before {
            let running = |state: &AtomicU8| state.load(Ordering::SeqCst) == RUNNING;
            if !self.vcpus.iter().any(running) {
                return true;
            }
            if Instant::now() > end {
                return false;
            }
            let wait = self.changed.wait_timeout(done, Duration::from_millis(10));
            done = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}
