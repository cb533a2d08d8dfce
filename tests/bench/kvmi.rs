//! What KVMI costs: a page read and a held event's round trip at the file, as ratios to a bare ping over the same kind of socket, to the
//! same endpoint. `tests/labs/kvmi/lab.sh bench`; needs root and /dev/fuse.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod figures;
#[path = "../labs/kvmi/lab.rs"]
mod lab;
#[allow(dead_code, reason = "the part that is of held events")]
mod machine;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

pub use figures::{share, told};
use lab::Endpoint;
use machine::Machine;

const TIMES: usize = 5000;
const ROUNDS: usize = 5;
/// A page of the guest's own memory.
const PAGE: u64 = 0x20_0000;

/// The smallest introspector: one message, one answer.
struct Bare(UnixStream);

impl Bare {
    /// Lets the endpoint connect, and does the handshake.
    fn meet(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        let (mut socket, _) = listener.accept().expect("the endpoint");
        std::fs::remove_file(path).expect("the socket's path");
        socket.read_exact(&mut [0; 96]).expect("a handshake");
        socket.write_all(&[&24u32.to_ne_bytes()[..], &[0; 20]].concat()).expect("an answer");
        Self(socket)
    }

    fn ask(&mut self, id: u16, data: &[u8]) -> usize {
        let head = [id.to_ne_bytes(), (data.len() as u16).to_ne_bytes()].concat();
        self.0.write_all(&[&head, &7u32.to_ne_bytes()[..], data].concat()).expect("a message");
        let mut head = [0; 8];
        self.0.read_exact(&mut head).expect("an answer");
        let mut rest = vec![0; usize::from(u16::from_ne_bytes([head[2], head[3]]))];
        self.0.read_exact(&mut rest).expect("an answer");
        rest.len()
    }
}

/// Microseconds of each of many times.
fn times(mut one: impl FnMut()) -> Vec<f64> {
    let timed = |_| {
        let begun = Instant::now();
        one();
        begun.elapsed().as_secs_f64() * 1e6
    };
    (0..TIMES).map(timed).collect()
}

fn main() {
    if lab::program().is_none() {
        println!("skipped: vmtree-kvmi-endpoint is not built; see tests/labs/kvmi/lab.sh");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("introspector");
    let _endpoint = Endpoint::start(&socket, "ram=64M,vcpus=1");
    let source = format!("kvmi:{},wait=20", socket.display());
    let mut all: [Vec<f64>; 4] = Default::default();
    let mut ratios: [Vec<f64>; 3] = Default::default();
    for _ in 0..ROUNDS {
        let mut bare = Bare::meet(&socket);
        // GET_VERSION, and READ_PHYSICAL of a page.
        let mut ping = times(|| assert_eq!(bare.ask(2, &[]), 24));
        let page = [PAGE.to_ne_bytes(), 4096u64.to_ne_bytes()].concat();
        let mut read = times(|| assert_eq!(bare.ask(17, &page), 8 + 4096));
        drop(bare);
        let machine = Machine::mount(&source);
        let mem = File::open(machine.path("mem")).expect("mem");
        let mut buf = [0; 4096];
        let mut file = times(|| mem.read_exact_at(&mut buf, PAGE).expect("a page"));
        let mut held = machine.held(TIMES);
        let medians = [&mut ping, &mut read, &mut file, &mut held].map(|times| share(times, 0.5));
        for (to, median) in all.iter_mut().zip(medians) {
            to.push(median);
        }
        for (to, median) in ratios.iter_mut().zip(&medians[1..]) {
            to.push(median / medians[0]);
        }
    }
    let names = ["bare ping", "bare page read", "page read of mem", "held cr3, answer to next event"];
    for (name, mut times) in names.into_iter().zip(all) {
        told(&format!("{name}, median"), share(&mut times, 0.5), None, "us");
    }
    for (name, mut ratio) in names.into_iter().skip(1).zip(ratios) {
        told(&format!("{name} / bare ping"), share(&mut ratio, 0.5), None, "");
    }
}
