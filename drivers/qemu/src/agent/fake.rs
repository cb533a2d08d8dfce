//! An agent for tests: a thread at a socket that speaks the protocol, or does not.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vmtree_agent::frame::Splitter;
use vmtree_agent::{Hello, Offer, ToAgent, ToClient, VERSION};
use vmtree_api::{Gpa, Memory, MemoryMap, Region, RegionKind, Result};

use super::Events;

/// The agent's end of one connection.
pub struct Peer {
    stream: UnixStream,
    splitter: Splitter,
}

impl Peer {
    pub fn send(&mut self, messages: &[ToClient]) {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| message.encode(&mut bytes));
        self.raw(&bytes);
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        // The client may be gone already.
        let _ = self.stream.write_all(bytes);
    }

    /// The next message that is no beat; `None` at the end.
    pub fn receive(&mut self) -> Option<ToAgent> {
        let mut buf = [0; 4096];
        loop {
            match self.splitter.frame().unwrap() {
                Some((kind, body)) => match ToAgent::decode(kind, body).unwrap() {
                    ToAgent::Beat => {}
                    message => return Some(message),
                },
                None => match self.stream.read(&mut buf) {
                    Ok(count) if count > 0 => self.splitter.add(&buf[..count]),
                    _ => return None,
                },
            }
        }
    }

    /// Greets, and answers the hello.
    pub fn greet(&mut self, offers: Vec<Offer>) {
        assert_eq!(self.receive(), Some(ToAgent::Hello { version: VERSION }));
        let hello = Hello { name: "a fake\nagent".to_owned(), vcpus: 2, offers };
        self.send(&[ToClient::Hello { version: VERSION, hello }]);
    }
}

pub struct Fake {
    _folder: tempfile::TempDir,
    pub path: PathBuf,
}

impl Fake {
    /// An agent that does this with each client.
    pub fn start(serve: impl Fn(Peer) + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                serve(Peer { stream, splitter: Splitter::default() });
            }
        });
        Self { _folder: folder, path }
    }

    pub fn connect(&self) -> Result<Events> {
        Events::connect(&self.path, Arc::new(Ram), Arc::default())
    }
}

/// 1 MiB of RAM from 0 on, in two blocks.
pub struct Ram;

impl Memory for Ram {
    fn map(&self) -> Arc<MemoryMap> {
        let ram =
            |start, end| Region { start: Gpa(start), end: Gpa(end), kind: RegionKind::Ram, block: None };
        Arc::new(MemoryMap::new(1, vec![ram(0, 0x8_0000), ram(0x8_0000, 0x10_0000)]))
    }

    fn blocks(&self) -> Vec<vmtree_api::Block> {
        Vec::new()
    }

    fn read(&self, _: Gpa, _: &mut [u8]) -> Result<usize> {
        Ok(0)
    }

    fn write(&self, _: Gpa, _: &[u8]) -> Result<usize> {
        Ok(0)
    }

    fn lend(&self, _: Gpa, _: usize, _: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(false)
    }
}
