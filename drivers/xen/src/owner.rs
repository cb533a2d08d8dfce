//! The thread that Xen's handles live on. The driver posts jobs to it; between them it takes what Xen raises.

use std::io;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vmtree_api::{Error, ErrorKind, Result};

use crate::error;
use crate::hypervisor::{Bell, Hypervisor};
use crate::world::World;

/// How often it looks whether the domain is still there.
const LOOK: Duration = Duration::from_millis(200);

type Job = Box<dyn FnOnce(&mut World) + Send>;

/// The front of the owner thread. Dropped, all that was done to the domain is undone.
pub struct Owner {
    jobs: Mutex<Option<Sender<Job>>>,
    bell: Arc<dyn Bell>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Owner {
    /// Starts it. `open` runs on the thread, and makes the world from Xen's handles.
    ///
    /// # Errors
    /// Those of `open`; [`ErrorKind::Io`] if there is no thread to be had.
    pub fn start(
        open: impl FnOnce() -> io::Result<Box<dyn Hypervisor>> + Send + 'static,
        world: impl FnOnce(Box<dyn Hypervisor>) -> Result<World> + Send + 'static,
    ) -> Result<Arc<Self>> {
        const OP: &str = "open xen";
        let (jobs, posted) = channel();
        let (tell, told) = sync_channel(1);
        let run = move || {
            let opened =
                open().map_err(|error| error::refused(OP, "Xen can't be reached", error)).and_then(world);
            match opened {
                Ok(mut world) => {
                    let _ = tell.send(Ok(world.xen.bell()));
                    serve(&mut world, &posted);
                    world.close();
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            }
        };
        let thread = thread::Builder::new().name("xen-owner".to_owned()).spawn(run);
        let thread =
            thread.map_err(|error| Error::new(ErrorKind::Io, OP, "no thread to be had").caused_by(error))?;
        let bell = told.recv().map_err(|_| error::gone(OP))??;
        Ok(Arc::new(Self { jobs: Mutex::new(Some(jobs)), bell, thread: Mutex::new(Some(thread)) }))
    }

    fn post(&self, op: &'static str, job: Job) -> Result<()> {
        let jobs = self.jobs.lock().clone().ok_or_else(|| error::gone(op))?;
        jobs.send(job).map_err(|_| error::gone(op))?;
        self.bell.ring();
        Ok(())
    }

    /// There is room for more events.
    pub fn wake(&self) {
        self.bell.ring();
    }

    /// Has a job done, and waits for it.
    ///
    /// # Errors
    /// Those of the job; [`ErrorKind::Gone`] where the domain is.
    pub fn ask<T: Send + 'static>(
        &self,
        op: &'static str,
        job: impl FnOnce(&mut World) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = sync_channel(1);
        let whole = move |world: &mut World| {
            let result = if world.is_gone() { Err(error::gone(op)) } else { job(world) };
            let _ = answer.send(result);
        };
        self.post(op, Box::new(whole))?;
        answered.recv().map_err(|_| error::gone(op))?
    }
}

/// The same for whoever may outlive the driver.
///
/// # Errors
/// As [`Owner::ask`].
pub fn ask<T: Send + 'static>(
    owner: &Weak<Owner>,
    op: &'static str,
    job: impl FnOnce(&mut World) -> Result<T> + Send + 'static,
) -> Result<T> {
    owner.upgrade().ok_or_else(|| error::gone(op))?.ask(op, job)
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.jobs.lock().take();
        self.bell.ring();
        let Some(thread) = self.thread.lock().take() else { return };
        // A job may hold the last reference: then the thread ends by itself.
        if thread.thread().id() != thread::current().id() {
            let _ = thread.join();
        }
    }
}

fn serve(world: &mut World, jobs: &Receiver<Job>) {
    let mut looked = Instant::now();
    loop {
        loop {
            match jobs.try_recv() {
                Ok(job) => job(world),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        let more = world.take_events();
        if looked.elapsed() >= LOOK {
            world.look();
            world.wake_stepped();
            world.settle_ring();
            looked = Instant::now();
        }
        if let Err(error) = world.xen.wait(if more { Duration::ZERO } else { LOOK }) {
            log::error!("waiting for Xen failed: {error}");
            thread::sleep(LOOK);
        }
    }
}
