//! Workers for calls that may wait for a hypervisor, so that no FUSE thread ever does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// The most workers at once. Each waits for one call; a caller waits for each, so this bounds callers, not work.
const MOST_WORKERS: usize = 64;
/// How long a worker without work stays.
const IDLE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    workers: usize,
    idle: usize,
}

/// A pool that has as many workers as there are calls under way.
#[derive(Default)]
pub struct Jobs {
    state: Mutex<State>,
    wake: Condvar,
}

impl Jobs {
    /// Has `job` done by a worker. If no worker can be started at all, it waits for one that is there, or is done
    /// here.
    pub fn post(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock();
        state.queue.push_back(Box::new(job));
        if state.idle >= state.queue.len() {
            self.wake.notify_one();
            return;
        }
        if state.workers >= MOST_WORKERS {
            return;
        }
        state.workers += 1;
        drop(state);
        let pool = self.clone();
        if let Err(error) = thread::Builder::new().name("vmtree-job".to_owned()).spawn(move || pool.work()) {
            log::warn!("no worker could be started: {error}");
            self.state.lock().workers -= 1;
            let job = self.state.lock().queue.pop_back();
            if let Some(job) = job {
                job();
            }
        }
    }

    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                job();
                state = self.state.lock();
                continue;
            }
            state.idle += 1;
            let late = self.wake.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if late && state.queue.is_empty() {
                state.workers -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_job_that_waits_keeps_no_other_waiting() {
        let jobs = Arc::new(Jobs::default());
        let (release, wait) = mpsc::channel::<()>();
        let (done, results) = mpsc::channel();
        let slow = done.clone();
        jobs.post(move || {
            let _ = wait.recv();
            let _ = slow.send("slow");
        });
        for _ in 0..10 {
            let done = done.clone();
            jobs.post(move || {
                let _ = done.send("quick");
            });
        }
        for _ in 0..10 {
            assert_eq!(results.recv_timeout(Duration::from_secs(10)).unwrap(), "quick");
        }
        release.send(()).unwrap();
        assert_eq!(results.recv_timeout(Duration::from_secs(10)).unwrap(), "slow");
    }
}
