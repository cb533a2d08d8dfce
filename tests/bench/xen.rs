//! Reading a domain's memory in order: by `mem` of a mount, against a plain loop that maps page after page by
//! xenforeignmemory_map, copies it and unmaps it, over the same range in the same run. In dom0, as root:
//!
//!     cargo build --release -p vmtree-xen --features libxen --example xen-memory
//!     xen-memory DOMID MOUNTPOINT

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::env;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const ROUNDS: usize = 5;
/// What the issue asks for.
const WANTED: f64 = 2.0;

/// All of the range, page by page, each with a mapping of its own.
fn plain(frames: &dyn vmtree_xen::hypervisor::Frames, bytes: u64) -> Duration {
    let begun = Instant::now();
    let mut page = vec![0; PAGE as usize];
    for frame in 0..bytes / PAGE {
        let (mapped, there) = frames.map(&[frame]).expect("a page");
        assert!(there[0], "no memory at frame {frame:#x}");
        mapped.read(0, 0, &mut page);
    }
    begun.elapsed()
}

/// The same by the mount.
fn mounted(mem: &File, bytes: u64) -> Duration {
    let begun = Instant::now();
    let mut part = vec![0; MIB as usize];
    for at in (0..bytes).step_by(MIB as usize) {
        mem.read_exact_at(&mut part, at).expect("mem");
    }
    begun.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let [domid, mountpoint] = &words[..] else { panic!("usage: xen-memory DOMID MOUNTPOINT") };
    let frames = vmtree_xen::frames(domid.parse().expect("a number")).expect("Xen");
    let mem = File::open(Path::new(mountpoint).join("mem")).expect("mem");
    // The low memory of the guest, which has no hole.
    let bytes = 16 * MIB;
    let (mut loops, mut reads) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        loops.push(plain(&*frames, bytes));
        reads.push(mounted(&mem, bytes));
    }
    let (plain, mounted) = (median(loops), median(reads));
    let ratio = plain.as_secs_f64() / mounted.as_secs_f64();
    let rate = |time: Duration| bytes as f64 / MIB as f64 / time.as_secs_f64();
    println!("{} MiB, median of {ROUNDS}:", bytes / MIB);
    println!("a mapping a page  {plain:9.1?}  {:8.1} MiB/s", rate(plain));
    println!("mem               {mounted:9.1?}  {:8.1} MiB/s", rate(mounted));
    println!("ratio {ratio:.1}, wanted {WANTED}");
    assert!(ratio >= WANTED, "mem is not {WANTED} times as fast");
}
