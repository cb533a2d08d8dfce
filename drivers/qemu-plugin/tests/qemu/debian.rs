//! A Debian kernel boots under the plugin: what it costs, as processor time of QEMU, in one run.
//!
//! VMTREE_DEBIAN names the folder with vmlinuz and initrd.gz that `tests/labs/qemu/lab.sh prepare` prints:
//! `cargo test --release -p vmtree-qemu-plugin --test qemu -- --ignored --nocapture debian`

mod guest;
mod told;
#[path = "../../../../tests/labs/qemu/lab.rs"]
mod vm;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use vmtree_agent::client::Client;
use vmtree_agent::{Kind, Wanted};

use crate::lab::{Socket, library, soon, wanted, watch};

/// How a boot is watched.
enum Way {
    Without,
    Idle,
    Watched(Wanted),
}

/// A QEMU that ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The processor time of a process, in ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Boots it to its first word, and gives QEMU's processor time and the events by kind.
fn boot(debian: &Path, way: &Way) -> (u64, BTreeMap<Kind, u64>) {
    let folder = tempfile::tempdir().unwrap();
    let (serial, socket) = (folder.path().join("serial"), folder.path().join("agent"));
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-m", "512M", "-display", "none", "-nodefaults", "-no-reboot", "-S"]);
    command.arg("-kernel").arg(debian.join("vmlinuz")).arg("-initrd").arg(debian.join("initrd.gz"));
    command.args(["-append", "console=ttyS0 panic=-1"]);
    command.arg("-serial").arg(format!("file:{}", serial.display()));
    command.arg("-monitor").arg(format!("unix:{},server=on,wait=off", folder.path().join("hmp").display()));
    if !matches!(way, Way::Without) {
        command.arg("-plugin").arg(format!("{},socket={}", library().display(), socket.display()));
    }
    let qemu = Ends(command.stdin(Stdio::null()).spawn().unwrap());
    let mut monitor = None;
    soon("its monitor listens", || {
        monitor = std::os::unix::net::UnixStream::connect(folder.path().join("hmp")).ok();
        monitor.is_some()
    });
    let over = Arc::new(AtomicBool::new(false));
    let counter = match way {
        Way::Watched(wanted) => {
            soon("the agent listens", || socket.exists());
            let (client, rest) = Client::open(Arc::new(Socket::open(&socket).unwrap())).unwrap();
            let reader = client.clone();
            thread::spawn(move || reader.read_forever(rest));
            client.watch(wanted).unwrap();
            let over = over.clone();
            Some(thread::spawn(move || count(&client, &over)))
        }
        _ => None,
    };
    std::io::Write::write_all(monitor.as_mut().unwrap(), b"cont\n").unwrap();
    soon("it boots", || {
        fs::read_to_string(&serial).is_ok_and(|said| said.contains("Run /init as init process"))
    });
    let spent = ticks(qemu.0.id());
    over.store(true, Ordering::SeqCst);
    let counted = counter.map(|counter| counter.join().unwrap()).unwrap_or_default();
    (spent, counted)
}

fn count(client: &Client, over: &AtomicBool) -> BTreeMap<Kind, u64> {
    let mut counted = BTreeMap::new();
    while !over.load(Ordering::SeqCst) {
        // At its end QEMU is killed.
        let Ok(next) = client.next(Duration::from_millis(50)) else { break };
        if let Some(event) = next {
            *counted.entry(event.kind).or_default() += 1;
        }
    }
    client.close();
    counted
}

#[test]
#[ignore = "a measurement, of a minute; needs a Debian kernel"]
fn debian_boots_at_nearly_its_own_speed() {
    let Some(debian) = std::env::var_os("VMTREE_DEBIAN").map(PathBuf::from) else {
        eprintln!("skipped: VMTREE_DEBIAN names no folder with vmlinuz and initrd.gz");
        return;
    };
    let kinds = [Kind::Cr3, Kind::Msr, Kind::Interrupt].map(|kind| watch(kind, false));
    let ways = [Way::Without, Way::Idle, Way::Watched(wanted(kinds))];
    let mut best = [u64::MAX; 3];
    for _ in 0..3 {
        for (best, way) in best.iter_mut().zip(&ways) {
            let (spent, counted) = boot(&debian, way);
            *best = (*best).min(spent);
            eprintln!("{} ms {counted:?}", spent * 10);
        }
    }
    let [without, idle, watched] = best.map(|ticks| ticks as f64);
    eprintln!("loaded but idle {:.3}, cr3 + msr + interrupt {:.3}", idle / without, watched / without);
    assert!(idle / without < 1.5);
}
