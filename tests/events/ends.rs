//! The ends of a mount, with vCPUs held and readers blocked.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use vmtree_api::events::Verdict;

use crate::{lab, wait_until};

#[test]
fn the_unmount_lets_go_and_ends_every_reader() {
    let Some(lab) = lab("unmount while held", "reply_timeout=60") else { return };
    let mut control = lab.control("events/cr3").unwrap();
    lab.script.cr3(0, 1);
    lab.script.cr3(1, 1);
    wait_until("both are held", || {
        ["vcpu/0/state", "vcpu/1/state"].iter().all(|name| lab.text(name).starts_with("held"))
    });
    let readers: Vec<_> = (0..100)
        .map(|_| {
            let mut file = File::open(lab.path("events/msr")).unwrap();
            std::thread::spawn(move || file.read(&mut [0; 4096]))
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    // One that holds, and reads on.
    let controller = std::thread::spawn(move || {
        let mut all = Vec::new();
        control.read_to_end(&mut all).map(|_| all)
    });
    let script = lab.script.clone();
    lab.end();
    assert_eq!(controller.join().unwrap().unwrap().split(|byte| *byte == b'\n').count(), 3);
    assert_eq!(script.verdicts(2), [(0, Verdict::Continue), (1, Verdict::Continue)]);
    for reader in readers {
        assert_eq!(reader.join().unwrap().unwrap(), 0, "the end of the file");
    }
    assert!(script.wanted().watches.is_empty());
}

#[test]
fn the_death_of_the_vm_ends_every_reader() {
    let Some(lab) = lab("death of the VM", "") else { return };
    let mut held = lab.control("events/cr3").unwrap();
    lab.script.cr3(0, 1);
    wait_until("it is held", || lab.text("vcpu/0/state").starts_with("held"));
    let mut blocked = File::open(lab.path("events/msr")).unwrap();
    let reader = std::thread::spawn(move || blocked.read(&mut [0; 4096]));
    std::thread::sleep(Duration::from_millis(100));
    lab.script.gone();
    // What is there can still be read; then comes the end.
    assert!(matches!(reader.join().unwrap(), Ok(0)));
    let mut rest = String::new();
    held.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.lines().count(), 1, "{rest}");
    drop(held);
    lab.end();
}

#[test]
fn an_opener_that_is_killed_leaves_nothing_armed() {
    let Some(lab) = lab("killed opener", "") else { return };
    lab.script.hang(true);
    for mode in ["<", "<>"] {
        let hung = lab.script.hung();
        let mut opener = lab.bash(&format!("exec 3{mode}events/cr3"));
        wait_until("it hangs", || lab.script.hung() > hung);
        opener.signal("KILL");
        let took = opener.ends_within(Duration::from_secs(2));
        assert!(took < Duration::from_millis(600), "{took:?}");
        lab.script.hang(false);
        // What was armed for it is disarmed; there may be nothing armed yet.
        std::thread::sleep(Duration::from_millis(300));
        lab.script.wait_watches(0);
        lab.script.hang(true);
    }
    lab.script.hang(false);
    // Nobody is in the way of the next controller.
    drop(lab.control("events/cr3").unwrap());
    lab.end();
}
