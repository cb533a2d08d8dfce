//! A Debian guest that boots: alone, beside the plugin, and watched.

use std::fs::File;
use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{self, Vm};
use crate::machine::mount;
use crate::{share, told};

const ROUNDS: usize = 9;
/// What is watched, as the promise says.
const WATCHED: [&str; 3] = ["events/cr3", "events/msr", "events/interrupt"];

/// Seconds from power-on until the guest's init says its first word.
fn boot(folder: &std::path::Path, plugin: Option<&str>, watched: bool) -> f64 {
    let file = |name: &str| folder.join(name).display().to_string();
    let (kernel, initrd) = (file("vmlinuz"), file("initrd.gz"));
    let mut args = vec!["-accel", "tcg", "-m", "256M", "-S", "-kernel", &kernel, "-initrd", &initrd];
    args.extend(["-append", "console=ttyS0 quiet panic=-1"]);
    if let Some(plugin) = plugin {
        args.extend(["-plugin", plugin]);
    }
    let mut vm = Vm::start(&args);
    let mounted = watched.then(|| mount(&format!("qemu:{}", vm.qmp())));
    let readers: Vec<_> =
        mounted.iter().flat_map(|dir| WATCHED.map(|name| reader(&dir.path(name)))).collect();
    let begun = Instant::now();
    vm.human("cont");
    vm.await_serial("guest says", Duration::from_secs(300));
    let seconds = begun.elapsed().as_secs_f64();
    drop(mounted);
    let events: u64 = readers.into_iter().map(|reader| reader.join().expect("a reader")).sum();
    assert!(!watched || events > 10_000, "{events} events");
    seconds
}

/// Reads until the end, and counts records.
fn reader(path: &std::path::Path) -> thread::JoinHandle<u64> {
    let mut file = File::open(path).expect("an event file");
    thread::spawn(move || {
        let (mut buf, mut records) = (vec![0; 1 << 18], 0);
        while let Ok(got @ 1..) = file.read(&mut buf) {
            records += buf[..got].iter().filter(|byte| **byte == b'\n').count() as u64;
        }
        records
    })
}

pub fn run(plugin: &str) -> bool {
    println!("\na Debian guest boots, ratio to the same one without the plugin");
    let Some(folder) = lab::debian() else { return true };
    let (mut idle, mut watched, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let without = boot(&folder, None, false);
        idle.push(boot(&folder, Some(plugin), false) / without);
        watched.push(boot(&folder, Some(plugin), true) / without);
        alone.push(without);
    }
    told("alone", share(&mut alone, 0.5), None, "s");
    let kept = told("beside the plugin, nothing watched", share(&mut idle, 0.5), Some(1.05), "");
    kept & told("cr3, msr and interrupts observed", share(&mut watched, 0.5), Some(1.25), "")
}
