//! The daemon's side: it keeps two guardians, and starts a new one for each that dies.

use std::io::{self, PipeReader, PipeWriter};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::journal::Journal;
use crate::daemon;

/// Two, so that killing the daemon and one guardian at once leaves one.
const GUARDIANS: usize = 2;
/// How long the end waits for them: a hypervisor that has to be told to resume may be slow.
const PATIENCE: Duration = Duration::from_secs(15);
/// The pause before a new one is started.
const RESTART: Duration = Duration::from_millis(50);

/// Where the guardians' log lines go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Log {
    /// To this process's standard error.
    Stderr,
    /// Nowhere: a background daemon must not hold its caller's standard error open.
    Nowhere,
}

/// The guardians of this process.
#[derive(Debug)]
pub struct Guardians {
    kit: Arc<Kit>,
    /// Its end is the guardians' call to work.
    pipe: PipeWriter,
    done: Receiver<()>,
}

#[derive(Debug)]
struct Kit {
    journal: Arc<Journal>,
    pipe: PipeReader,
    log: Log,
    ending: AtomicBool,
}

impl Guardians {
    /// Starts them.
    ///
    /// # Errors
    /// No process could be started.
    pub fn start(journal: Arc<Journal>, log: Log) -> io::Result<Self> {
        let (reader, pipe) = io::pipe()?;
        let kit = Arc::new(Kit { journal, pipe: reader, log, ending: AtomicBool::new(false) });
        // If the second one can't be started, the pipe ends here and the first one leaves.
        let children = (0..GUARDIANS).map(|_| kit.spawn()).collect::<io::Result<Vec<Child>>>()?;
        let (sender, done) = mpsc::channel();
        for child in children {
            let (kit, sender) = (kit.clone(), sender.clone());
            thread::Builder::new().name("guardian".to_owned()).spawn(move || keep(&kit, child, &sender))?;
        }
        Ok(Self { kit, pipe, done })
    }

    /// Lets them undo what the journal says, and returns when that is done.
    pub fn finish(self) {
        self.kit.ending.store(true, Ordering::SeqCst);
        drop(self.pipe);
        let deadline = Instant::now() + PATIENCE;
        for _ in 0..GUARDIANS {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.done.recv_timeout(left).is_err() {
                log::error!("a guardian takes too long; it is left to its work");
                break;
            }
        }
        // Both may have been killed this instant; nothing is left to do where they were not.
        if let Err(error) = super::undo(&self.kit.journal, false) {
            log::error!("undo journal: {error}");
        }
    }
}

impl Kit {
    fn spawn(&self) -> io::Result<Child> {
        let mut command = daemon::this_program();
        command.arg("guardian").stdin(self.pipe.try_clone()?).stdout(self.journal.share()?);
        command.stderr(match self.log {
            Log::Stderr => Stdio::inherit(),
            Log::Nowhere => Stdio::null(),
        });
        command.spawn()
    }
}

/// Waits for one guardian and replaces it, until the end.
fn keep(kit: &Kit, mut child: Child, done: &Sender<()>) {
    loop {
        let status = child.wait();
        if kit.ending.load(Ordering::SeqCst) {
            // Nobody listens any more only when the patience is over.
            let _ = done.send(());
            return;
        }
        log::warn!("a guardian ended ({}); starting another", describe(status));
        child = loop {
            thread::sleep(RESTART);
            match kit.spawn() {
                Ok(child) => break child,
                Err(error) => log::error!("start a guardian: {error}"),
            }
            thread::sleep(Duration::from_secs(1));
        };
    }
}

fn describe(status: io::Result<std::process::ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}
