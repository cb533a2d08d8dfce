//! The hub over a real mount, fed by a driver that raises events as fast as they are taken.

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use vmtree::text::record::RECORD_BYTES;

use crate::mock::Mock;
use crate::mounted::Mounted;
use crate::told;

const SPAN: Duration = Duration::from_secs(2);

/// Records a second that a reader with large reads gets, in thousands, and the share of those raised that it lost.
fn rate(format: &str) -> (f64, f64) {
    let mock = Mock::new();
    let mounted = Mounted::with(mock.clone(), "threads=4");
    let path = mounted.path().join(format!("events/cr3,format={format}"));
    let mut file = File::open(path).expect("events/cr3");
    let (mut buf, mut records) = (vec![0; 1 << 20], 0);
    let (begun, before) = (Instant::now(), mock.raised());
    while begun.elapsed() < SPAN {
        let got = file.read(&mut buf).expect("records");
        records += match format {
            "binary" => got / RECORD_BYTES,
            _ => buf[..got].iter().filter(|byte| **byte == b'\n').count(),
        };
    }
    let (seconds, raised) = (begun.elapsed().as_secs_f64(), mock.raised() - before);
    drop(file);
    mounted.end();
    (records as f64 / seconds / 1e3, 1.0 - (records as f64 / raised as f64).min(1.0))
}

pub fn run() -> bool {
    println!("\nthe hub over a real mount, one reader with reads of 1 MiB");
    let mut kept = true;
    for (format, least) in [("binary", 1000.0), ("text", 300.0), ("json", 0.0)] {
        let (rate, lost) = rate(format);
        kept &= rate >= least;
        let broken = if rate >= least { "" } else { "  BROKEN" };
        println!("{:<58} {rate:>10.0} k/s  >= {least}{broken}", format!("delivered, {format}"));
        told("  of those raised it was too slow for", lost * 100.0, None, "%");
    }
    kept
}
