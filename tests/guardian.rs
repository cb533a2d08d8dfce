//! What is left when daemon and guardians are killed: nothing. Each test is skipped, by name, where there is no
//! /dev/fuse.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{Lab, alive, family, guardians, kill, lab, sleeper, vmtree, wait_until};

#[test]
fn a_killed_daemon_leaves_nothing() {
    let Some(lab) = lab("kill the daemon") else { return };
    let daemon = lab.mount();
    let pids = family(daemon);
    let mut inside = sleeper(&lab.mountpoint);
    kill(daemon, 9);
    lab.assert_clean(&pids);
    inside.kill().unwrap();
    inside.wait().unwrap();
}

#[test]
fn killed_guardians_are_replaced_and_the_new_ones_do_their_work() {
    let Some(lab) = lab("kill the guardians") else { return };
    let daemon = lab.mount();
    let old = guardians(daemon);
    for &guardian in &old {
        kill(guardian, 9);
    }
    let fresh = || guardians(daemon).into_iter().filter(|pid| !old.contains(pid)).collect::<Vec<_>>();
    wait_until("two new guardians", || fresh().len() == 2);
    assert!(lab.answers());
    for guardian in fresh() {
        let fds = fs::read_dir(format!("/proc/{guardian}/fd")).unwrap();
        let fds: Vec<_> = fds.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()).collect();
        // It would keep the connection alive after the daemon's death.
        assert!(!fds.iter().any(|fd| fd == Path::new("/dev/fuse")), "{fds:?}");
    }
    let pids = family(daemon);
    kill(daemon, 9);
    lab.assert_clean(&pids);
}

#[test]
fn a_daemon_killed_together_with_one_guardian_leaves_nothing() {
    let Some(lab) = lab("kill the daemon and a guardian") else { return };
    for victim in [0, 1] {
        let daemon = lab.mount();
        let pids = family(daemon);
        // Stopped, so that it starts no new one in between.
        kill(daemon, 19);
        kill(pids[victim], 9);
        kill(daemon, 9);
        lab.assert_clean(&pids);
    }
}

/// sendfile reads by the kernel's pages. Where those are dropped while one is being read, a thread of the daemon waits in the kernel,
/// and no signal ends that.
#[test]
fn a_daemon_that_ends_while_the_kernel_drops_its_pages_leaves_nothing() {
    let Some(lab) = lab("end the daemon under sendfile") else { return };
    for signal in [9, 15] {
        let output = lab.run(&["mount", "emu:ram=256M", "-o", "threads=1"]);
        assert!(output.status.success(), "{output:?}");
        let daemon = lab.daemons()[0];
        let pids = family(daemon);
        let readers: Vec<_> = (0..4).map(|_| sends(lab.mountpoint.join("mem"))).collect();
        // The second time it drops what is there.
        std::thread::sleep(Duration::from_millis(1500));
        kill(daemon, signal);
        let threads = || fs::read_dir(format!("/proc/{daemon}/task")).map_or(0, Iterator::count);
        wait_until("the daemon has no thread left", || threads() <= 1);
        let sent: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        assert!(sent > 0);
        lab.assert_clean(&pids);
    }
}

/// Sends a file to nowhere again and again until that fails; returns how many bytes were sent.
fn sends(path: PathBuf) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        let nowhere = File::options().write(true).open("/dev/null").unwrap();
        let mut sent = 0;
        while let Ok(file) = File::open(&path) {
            let mut offset = 0;
            while let Ok(count @ 1..) = rustix::fs::sendfile(&nowhere, &file, Some(&mut offset), 1 << 20) {
                sent += count as u64;
            }
        }
        sent
    })
}

/// Kills daemon and guardians at once, which none of them can mend.
fn kill_all(lab: &Lab) {
    let daemon = lab.mount();
    let pids = family(daemon);
    kill(daemon, 19);
    for &pid in &pids {
        kill(pid, 9);
    }
    wait_until("all are gone", || !pids.iter().any(|&pid| alive(pid)));
    // The last thread takes the connection with it.
    wait_until("the mount is dead", || {
        fs::metadata(&lab.mountpoint).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
    });
    assert_eq!(lab.mounted(), ["fuse.vmtree"]);
}

#[test]
fn a_dead_mount_is_named_by_doctor_and_mended_by_umount_and_by_the_next_mount() {
    let Some(lab) = lab("dead mount") else { return };
    kill_all(&lab);
    let told = vmtree().arg("doctor").output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    let path = lab.mountpoint.to_str().unwrap();
    assert!(told.lines().any(|line| line.starts_with("missing") && line.contains(path)), "{told}");
    lab.umount();
    assert!(lab.mounted().is_empty());

    kill_all(&lab);
    let output = lab.run(&["mount", "emu:"]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("dead mount"));
    assert!(lab.answers());
    assert_eq!(lab.mounted().len(), 1);
    let pids = family(lab.daemons()[0]);
    lab.umount();
    lab.assert_clean(&pids);
}

#[test]
fn another_file_system_at_the_path_is_never_unmounted() {
    let Some(lab) = lab("another mount at the path") else { return };
    let mount_tmpfs = || {
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "none"])
            .arg(&lab.mountpoint)
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    };
    let daemon = lab.mount();
    let pids = family(daemon);
    // The daemon doesn't see it, so the journal still tells of a mount.
    kill(daemon, 19);
    assert!(Command::new("umount").arg("-l").arg(&lab.mountpoint).status().unwrap().success());
    if !mount_tmpfs() {
        eprintln!("SKIPPED another mount at the path: no right to mount tmpfs");
        kill(daemon, 9);
        return;
    }
    kill(daemon, 9);
    wait_until("all are gone", || !pids.iter().any(|&pid| alive(pid)));
    assert_eq!(lab.mounted(), ["tmpfs"]);
    // Nor when it covers ours, which then stays and is found dead.
    assert!(Command::new("umount").arg(&lab.mountpoint).status().unwrap().success());
    let daemon = lab.mount();
    let pids = family(daemon);
    assert!(mount_tmpfs());
    kill(daemon, 9);
    wait_until("all are gone", || !pids.iter().any(|&pid| alive(pid)));
    assert!(lab.mounted().contains(&"tmpfs".to_owned()));
}
