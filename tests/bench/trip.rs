//! The round trip of a held event at the file: the answer's write(2) until the read(2) of the next event is over.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use crate::bare::Bare;
use crate::machine::Machine;
use crate::{share, told};

const EVENTS: usize = 20_000;
const ROUNDS: usize = 5;

/// Microseconds of each write and read of the bare file.
fn bare(file: &File) -> Vec<f64> {
    let (answer, mut buf) = (b"1000000 continue\n", [0; 4096]);
    let one = |_| {
        let begun = Instant::now();
        file.write_all_at(answer, 0).expect("a write");
        assert!(file.read_at(&mut buf, 0).expect("a read") > 0);
        begun.elapsed().as_secs_f64() * 1e6
    };
    (0..EVENTS).map(one).collect()
}

pub fn run() -> bool {
    println!("a held event at the file, against write + read of the bare file");
    let dir = tempfile::tempdir().expect("a folder");
    let mut served = Bare::mount(dir.path(), 256);
    let file = File::options().read(true).write(true).open(served.file()).expect("the bare file");
    let machine = Machine::mount("emu:ram=64M,vcpus=1");
    let (mut medians, mut tails, mut times) = (Vec::new(), Vec::new(), (Vec::new(), Vec::new()));
    for _ in 0..ROUNDS {
        let (mut base, mut trip) = (bare(&file), machine.held(EVENTS));
        medians.push(share(&mut trip, 0.5) / share(&mut base, 0.5));
        tails.push(share(&mut trip, 0.99) / share(&mut base, 0.99));
        times.0.push(share(&mut base, 0.5));
        times.1.push(share(&mut trip, 0.5));
    }
    told("bare write + read, median", share(&mut times.0, 0.5), None, "us");
    told("held cr3, answer to next event, median", share(&mut times.1, 0.5), None, "us");
    let kept = told("held / bare, median", share(&mut medians, 0.5), Some(2.5), "");
    told("held / bare, p99", share(&mut tails, 0.5), None, "");
    drop(file);
    served.unmount();
    kept
}
