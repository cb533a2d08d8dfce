//! The events of a QEMU through its agent.

use std::io::ErrorKind as Io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmtree_agent::client::Client;
use vmtree_agent::{Event, Line, Socket};
use vmtree_api::events::{EventOffer, EventSource, Held, Wanted};
use vmtree_api::{Error, ErrorKind, Memory, Result};

use super::held::Holds;
use super::{check, error, gone, offers, words};
use crate::said::said;

const OP: &str = "reach the agent";

/// How long a client that just left may take to be let go of by the agent.
const LEAVING: Duration = Duration::from_millis(700);

/// An agent that serves us. Dropped, it lets go of everything.
pub struct Events {
    client: Arc<Client>,
    offers: Vec<EventOffer>,
    holds: Arc<Holds>,
    /// What rules are checked by.
    memory: Arc<dyn Memory>,
    closing: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Events {
    /// Connects to the agent at `path`. `ended` tells that QEMU has ended, and so why the agent is gone.
    ///
    /// # Errors
    /// With the cure: [`ErrorKind::NotFound`] if nobody listens, [`ErrorKind::Denied`], [`ErrorKind::Busy`] if it serves
    /// another client, [`ErrorKind::Protocol`] if it is no agent of our version.
    pub fn connect(path: &Path, memory: Arc<dyn Memory>, ended: Arc<AtomicBool>) -> Result<Self> {
        let begun = Instant::now();
        loop {
            let socket = Socket::connect(path).map_err(|error| unreached(path, error))?;
            match Client::open(Arc::new(socket) as Arc<dyn Line>) {
                Ok(client) => return Self::start(client, memory, ended),
                Err(why) if is_taken(&why) && begun.elapsed() < LEAVING => {
                    thread::sleep(Duration::from_millis(50))
                }
                Err(why) => return Err(refused(path, &why)),
            }
        }
    }

    fn start(client: Arc<Client>, memory: Arc<dyn Memory>, ended: Arc<AtomicBool>) -> Result<Self> {
        let holds = Arc::new(Holds::new(Arc::clone(&client)));
        let closing = Arc::new(AtomicBool::new(false));
        let offers = offers::offers(&client.hello().offers);
        let (reads, held, closes) = (Arc::clone(&client), Arc::clone(&holds), Arc::clone(&closing));
        let read = move || {
            reads.read_forever();
            held.end();
            // Of QEMU's end the watcher of its process tells.
            thread::sleep(Duration::from_millis(100));
            if !closes.load(Ordering::Acquire) && !ended.load(Ordering::Acquire) {
                log::error!(
                    "the agent in QEMU is gone, so events have ended; memory and registers stay; for events unmount and mount anew"
                );
            }
        };
        let reader = thread::Builder::new().name("qemu-agent".to_owned()).spawn(read);
        let reader =
            reader.map_err(|error| Error::new(ErrorKind::Io, OP, "no thread to be had").caused_by(error))?;
        Ok(Self { client, offers, holds, memory, closing, reader: Some(reader) })
    }

    /// What it says that it is.
    #[must_use]
    pub fn name(&self) -> String {
        said(&self.client.hello().name)
    }

    /// The vCPUs that are held.
    #[must_use]
    pub fn holds(&self) -> &Arc<Holds> {
        &self.holds
    }

    fn taken(&self, told: &Event) -> Result<Held> {
        let event = words::event(told).map_err(|error| {
            // It lets go of what it holds when it sees us gone.
            self.client.close();
            gone(OP, error.why())
        })?;
        if !told.held() {
            return Ok(Held::told(event));
        }
        self.holds.add(told);
        let (holds, vcpu, seq) = (Arc::clone(&self.holds), told.vcpu, told.seq);
        Ok(Held::new(event, move |verdict| holds.answer(vcpu, seq, &words::verdict(verdict)?)))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Release);
        self.client.close();
        self.holds.end();
        if let Some(reader) = self.reader.take() {
            // It ends at once, as its line is closed; a panic in it was told already.
            let _ = reader.join();
        }
    }
}

impl EventSource for Events {
    fn offers(&self) -> &[EventOffer] {
        &self.offers
    }

    fn watch(&self, all: &Wanted) -> Result<()> {
        check::wanted(all, &self.memory.map())?;
        self.client.watch(&words::wanted(all)?).map_err(|failure| error("watch events", failure))
    }

    fn next(&self, timeout: Duration) -> Result<Option<Held>> {
        match self.client.next(timeout) {
            Ok(None) => Ok(None),
            Ok(Some(told)) => self.taken(&told).map(Some),
            Err(why) => Err(gone("watch events", &why)),
        }
    }
}

/// Whether an agent says that it serves another client.
fn is_taken(why: &str) -> bool {
    why.contains("has a client already")
}

fn unreached(path: &Path, error: std::io::Error) -> Error {
    let at = path.display();
    let (kind, why) = match error.kind() {
        Io::NotFound => (
            ErrorKind::NotFound,
            format!("the agent's socket '{at}' is gone; start QEMU anew, or name it by agent=PATH"),
        ),
        Io::ConnectionRefused => {
            (ErrorKind::NotFound, format!("nobody listens at the agent's socket '{at}'; start QEMU anew"))
        }
        Io::PermissionDenied => (
            ErrorKind::Denied,
            format!("the agent's socket '{at}' is for QEMU's user alone; become it, or root"),
        ),
        _ => (ErrorKind::Io, format!("the agent's socket '{at}' can't be connected to")),
    };
    Error::new(kind, OP, why).caused_by(error)
}

fn refused(path: &Path, why: &str) -> Error {
    let at = path.display();
    let why = said(why);
    if is_taken(&why) {
        let why = format!(
            "the agent at '{at}' serves another mount, and only one at a time; unmount that one ('vmtree doctor' shows it)"
        );
        return Error::new(ErrorKind::Busy, OP, why);
    }
    let kind = if why.contains("in 10 seconds") { ErrorKind::TimedOut } else { ErrorKind::Protocol };
    Error::new(kind, OP, format!("'{at}' does not serve as an agent: {why}"))
}
