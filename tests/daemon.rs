//! The daemon and its mount as real processes. Each test is skipped, by name, where there is no /dev/fuse.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{family, kill, lab, sleeper, vmtree, wait_until};

#[test]
fn a_background_mount_returns_when_it_answers_and_umount_leaves_nothing() {
    let Some(lab) = lab("background mount") else { return };
    let start = Instant::now();
    let daemon = lab.mount();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(lab.answers());
    assert!(fs::read_dir(&lab.mountpoint).unwrap().any(|entry| entry.unwrap().file_name() == "info"));
    let pids = family(daemon);
    lab.umount();
    // Nothing to wait for: all had gone when umount returned, but for the zombie's last breath.
    assert!(lab.mounted().is_empty());
    lab.assert_clean(&pids);
}

#[test]
fn a_relative_mountpoint_works_and_the_caller_s_directory_stays_free() {
    let Some(lab) = lab("relative mountpoint") else { return };
    let output = vmtree().args(["mount", "emu:", "vm 1"]).current_dir(lab.folder.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let pids = family(lab.daemons()[0]);
    assert_eq!(pids.len(), 3);
    for &pid in &pids {
        wait_until("no process is in the caller's directory", || {
            fs::read_link(format!("/proc/{pid}/cwd")).unwrap() == Path::new("/")
        });
    }
    lab.umount();
    lab.assert_clean(&pids);
}

#[test]
fn a_failure_is_one_line_with_status_32_and_leaves_nothing() {
    let Some(lab) = lab("failures") else { return };
    let here = lab.mountpoint.to_str().unwrap().to_owned();
    let nowhere = lab.folder.path().join("nowhere");
    let file = lab.folder.path().join("file");
    fs::write(&file, "").unwrap();
    for (source, path, options, expected) in [
        ("vmware:x", here.as_str(), "ro", "'vmware'"),
        ("emu", &here, "ro", "emu"),
        ("emu:colour=red", &here, "ro", "colour"),
        ("emu:", &here, "colour=red", "colour"),
        ("emu:", nowhere.to_str().unwrap(), "ro", "nowhere"),
        ("emu:", file.to_str().unwrap(), "ro", "not a directory"),
    ] {
        for front in [false, true] {
            let mut command = vmtree();
            command.args(["mount", source, path, "-o", options]).args(front.then_some("-f"));
            let output = command.output().unwrap();
            let told = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(32), "{told}");
            assert!(told.starts_with("vmtree: ") && told.contains(expected), "{told}");
            assert_eq!(told.lines().count(), 1, "{told}");
        }
    }
    lab.assert_clean(&[]);
}

#[test]
fn a_mountpoint_in_use_is_refused_and_the_mount_there_lives_on() {
    let Some(lab) = lab("mountpoint in use") else { return };
    let pids = family(lab.mount());
    let output = lab.run(&["mount", "emu:"]);
    assert_eq!(output.status.code(), Some(32));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("already") && told.contains("vmtree umount"), "{told}");
    assert!(lab.answers());
    lab.umount();
    lab.assert_clean(&pids);
    let output = lab.run(&["umount"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("no vmtree mount"));
}

#[test]
fn signals_end_a_foreground_mount_in_order() {
    let Some(lab) = lab("signals") else { return };
    for signal in [1, 2, 15] {
        let mut child = lab.foreground(&mut vmtree());
        let pids = family(child.id());
        kill(child.id(), signal);
        assert_eq!(child.wait().unwrap().code(), Some(0));
        lab.assert_clean(&pids);
    }
}

#[test]
fn a_service_manager_is_told_when_the_mount_answers() {
    let Some(lab) = lab("notify") else { return };
    let path = lab.folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut child = lab.foreground(vmtree().env("NOTIFY_SOCKET", &path));
    let mut buf = [0; 64];
    let count = socket.recv(&mut buf).unwrap();
    assert_eq!(&buf[..count], b"READY=1");
    let pids = family(child.id());
    lab.umount();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    lab.assert_clean(&pids);
}

#[test]
fn an_umount_from_outside_ends_the_daemon_also_a_lazy_one_while_busy() {
    let Some(lab) = lab("outside umount") else { return };
    for lazy in [false, true] {
        let pids = family(lab.mount());
        let mut inside = lazy.then(|| sleeper(&lab.mountpoint));
        let mut umount = Command::new("umount");
        assert!(umount.args(lazy.then_some("-l")).arg(&lab.mountpoint).status().unwrap().success());
        lab.assert_clean(&pids);
        if let Some(inside) = &mut inside {
            inside.kill().unwrap();
            inside.wait().unwrap();
        }
    }
}

#[test]
fn umount_works_under_load_and_with_a_process_inside() {
    let Some(lab) = lab("umount under load") else { return };
    let pids = family(lab.mount());
    let mut inside = sleeper(&lab.mountpoint);
    let over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (over, info) = (over.clone(), lab.mountpoint.join("info"));
            std::thread::spawn(move || {
                let mut good = 0_u32;
                while !over.load(Ordering::Relaxed) {
                    good += u32::from(fs::read(&info).is_ok());
                }
                good
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(100));
    lab.umount();
    over.store(true, Ordering::Relaxed);
    assert!(readers.into_iter().all(|reader| reader.join().unwrap() > 0));
    lab.assert_clean(&pids);
    inside.kill().unwrap();
    inside.wait().unwrap();
}

#[test]
fn many_mounts_in_a_row_leave_no_process_and_no_mount() {
    let Some(lab) = lab("mounts in a row") else { return };
    let mut pids = Vec::new();
    for _ in 0..100 {
        pids.extend(family(lab.mount()));
        lab.umount();
        assert!(lab.mounted().is_empty());
    }
    lab.assert_clean(&pids);
}

#[test]
fn the_demo_shows_real_output_and_cleans_up() {
    let Some(lab) = lab("demo") else { return };
    let output = lab.run(&["demo", "--once"]);
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("$ cat info") && told.contains("source emu:"), "{told}");
    lab.assert_clean(&[]);
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let Some(lab) = lab("closed pipes") else { return };
    let closed = || std::io::pipe().unwrap().1;
    let demo = vmtree().arg("demo").arg(&lab.mountpoint).stdout(closed()).output().unwrap();
    assert_eq!(demo.status.code(), Some(0), "{demo:?}");
    let failed = vmtree().args(["mount", "emu", "/"]).stderr(closed()).status().unwrap();
    assert_eq!(failed.code(), Some(32));
    assert_eq!(vmtree().args(["umount", "/"]).stderr(closed()).status().unwrap().code(), Some(1));
    lab.assert_clean(&[]);
}

#[test]
fn mount_may_call_the_program_itself_as_the_helper_of_its_type() {
    let Some(lab) = lab("type fuse.vmtree") else { return };
    let call = |options| vmtree().arg("emu:").arg(&lab.mountpoint).args(["-o", options]).output().unwrap();
    let good = call("rw,dev,suid");
    assert!(good.status.success(), "{good:?}");
    let pids = family(lab.daemons()[0]);
    let remount = call("rw,remount");
    assert_eq!(remount.status.code(), Some(32));
    assert!(String::from_utf8(remount.stderr).unwrap().contains("unmount and mount again"));
    lab.umount();
    lab.assert_clean(&pids);
}

#[test]
fn the_mount_helper_translates_what_mount_says() {
    let Some(lab) = lab("mount helper") else { return };
    let helper = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-helpers/mount.vmtree");
    let folder = Path::new(env!("CARGO_BIN_EXE_vmtree")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let call = |arguments: &[&str]| {
        let mut command = Command::new(&helper);
        command.arg("emu:").arg(&lab.mountpoint).args(arguments).env("PATH", &path).output().unwrap()
    };
    let mut lost = Command::new("/bin/sh");
    let lost = lost.arg(&helper).arg("emu:").arg(&lab.mountpoint).env("PATH", "/nowhere").output().unwrap();
    assert_eq!(lost.status.code(), Some(32));
    assert!(String::from_utf8(lost.stderr).unwrap().contains("install it as /usr/bin/vmtree"));
    assert!(call(&["-f"]).status.success());
    assert!(lab.mounted().is_empty());
    let bad = call(&["-o", "colour=red"]);
    assert_eq!(bad.status.code(), Some(32));
    assert!(String::from_utf8(bad.stderr).unwrap().contains("colour"));
    let good = call(&["-sn", "-o", "rw,nosuid,nofail,_netdev,x-systemd.automount", "-t", "vmtree"]);
    assert!(good.status.success(), "{good:?}");
    assert!(lab.answers());
    let pids = family(lab.daemons()[0]);
    lab.umount();
    lab.assert_clean(&pids);
}
