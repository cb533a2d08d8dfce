//! The loads, and what they measure.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::subject::Subject;

/// What is read: the first bytes of every subject.
pub const SPAN: u64 = 384 << 20;
const CHUNK: usize = 1 << 20;
const PAGE: usize = 4096;
const RANDOM: Duration = Duration::from_millis(250);

/// What one round measures of one subject.
pub struct Figures {
    /// GB/s.
    pub sequential: f64,
    /// Reads a second.
    pub random: f64,
    /// Microseconds a read at the median.
    pub median_us: f64,
    /// Reads a second of four readers together.
    pub random4: f64,
    /// CPU time of reader and server for sequential reads.
    pub cpu_ns_per_kib: f64,
}

/// The CPU time of this process and of a server.
pub struct Cpu;

impl Cpu {
    /// Where it comes from.
    pub const SOURCE: &str = "utime + stime of /proc/PID/stat";

    fn seconds(server: Option<u32>) -> f64 {
        let of = |pid: &str| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let after_name = stat.rsplit(") ").next().unwrap_or_default().to_owned();
            let fields: Vec<f64> = after_name.split(' ').filter_map(|field| field.parse().ok()).collect();
            // Fields 14 and 15 of proc(5), counted behind the name and the state letter.
            (fields.get(10).unwrap_or(&0.0) + fields.get(11).unwrap_or(&0.0)) / 100.0
        };
        of("self") + server.map_or(0.0, |pid| of(&pid.to_string()))
    }
}

/// One round of one subject.
pub fn measure(subject: &Subject) -> Figures {
    let (sequential, cpu_ns_per_kib) = sequential(subject);
    let (random, median_us) = random(subject, 1);
    let readers: Vec<f64> = thread::scope(|scope| {
        let readers: Vec<_> = (0..4).map(|n| scope.spawn(move || random_rate(subject, n + 2))).collect();
        readers.into_iter().map(|reader| reader.join().expect("a reader")).collect()
    });
    Figures { sequential, random, median_us, random4: readers.iter().sum(), cpu_ns_per_kib }
}

fn sequential(subject: &Subject) -> (f64, f64) {
    let mut buf = vec![0; CHUNK];
    let reader = subject.reader();
    let (cpu, begun) = (Cpu::seconds(subject.server), Instant::now());
    let passes = 2;
    for _ in 0..passes {
        for offset in (0..SPAN).step_by(CHUNK) {
            reader(&mut buf, offset);
        }
    }
    let bytes = (SPAN * passes) as f64;
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = Cpu::seconds(subject.server) - cpu;
    (bytes / seconds / 1e9, cpu * 1e9 / (bytes / 1024.0))
}

fn random_rate(subject: &Subject, seed: u64) -> f64 {
    random(subject, seed).0
}

fn random(subject: &Subject, seed: u64) -> (f64, f64) {
    let mut buf = vec![0; PAGE];
    let reader = subject.reader();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut times = Vec::with_capacity(1 << 19);
    let begun = Instant::now();
    while begun.elapsed() < RANDOM {
        for _ in 0..32 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let page = state % (SPAN / PAGE as u64);
            let one = Instant::now();
            reader(&mut buf, page * PAGE as u64);
            times.push(one.elapsed().as_secs_f64() * 1e6);
        }
    }
    let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    (rate, times[times.len() / 2])
}

/// The median time of one read at offset 0, in microseconds.
pub fn latency(path: &Path) -> f64 {
    let file = File::open(path).expect("a file to read");
    let mut buf = vec![0; PAGE];
    let mut times: Vec<f64> = (0..3000)
        .map(|_| {
            let begun = Instant::now();
            let got = file.read_at(&mut buf, 0).expect("a read");
            assert!(got > 0);
            begun.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
