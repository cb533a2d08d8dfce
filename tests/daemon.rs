//! The daemon, its guardians and its mount as real processes. Each test is skipped, by name, where there is no
//! /dev/fuse. Processes are found by their mountpoint, which is unique, and by their parent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A mountpoint of our own; what is left there in the end is taken away.
struct Lab {
    folder: tempfile::TempDir,
    mountpoint: PathBuf,
}

/// A lab, unless mounts can't be made here.
fn lab(test: &str) -> Option<Lab> {
    if fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        eprintln!("SKIPPED {test}: /dev/fuse can't be opened");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let mountpoint = folder.path().canonicalize().unwrap().join("vm 1");
    fs::create_dir(&mountpoint).unwrap();
    Some(Lab { folder, mountpoint })
}

fn vmtree() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmtree"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn kill(pid: u32, signal: i32) {
    assert!(pid > 1);
    let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status().unwrap();
    assert!(status.success());
}

/// The state letter and the parent of a process, from /proc/PID/stat.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn children(parent: u32) -> Vec<u32> {
    processes().filter(|&pid| alive(pid) && stat(pid).is_some_and(|(_, of)| of == parent)).collect()
}

fn guardians(daemon: u32) -> Vec<u32> {
    let is_guardian = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line == b"vmtree\0guardian\0"
    };
    children(daemon).into_iter().filter(is_guardian).collect()
}

impl Lab {
    fn run(&self, arguments: &[&str]) -> Output {
        vmtree().args(arguments).arg(&self.mountpoint).output().unwrap()
    }

    /// Mounts in the background and returns the daemon's pid.
    fn mount(&self) -> u32 {
        let output = self.run(&["mount", "emu:"]);
        assert!(output.status.success(), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        let daemons = self.daemons();
        assert_eq!(daemons.len(), 1);
        wait_until("two guardians", || guardians(daemons[0]).len() == 2);
        daemons[0]
    }

    /// Mounts in front.
    fn foreground(&self, command: &mut Command) -> Child {
        let child = command.args(["mount", "-f", "emu:"]).arg(&self.mountpoint);
        let child = child.stderr(Stdio::null()).spawn().unwrap();
        wait_until("the mount answers", || self.answers());
        child
    }

    fn daemons(&self) -> Vec<u32> {
        let path = self.mountpoint.to_str().unwrap();
        let serves = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.starts_with("vmtree\0serve\0") && line.contains(path)
        };
        processes().filter(serves).filter(|&pid| alive(pid)).collect()
    }

    /// The types of what is mounted here, as the kernel has it.
    fn mounted(&self) -> Vec<String> {
        let path = self.mountpoint.to_str().unwrap().replace(' ', "\\040");
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = table.lines().filter(|line| line.split(' ').nth(4) == Some(&path));
        here.map(|line| line.split(" - ").nth(1).unwrap().split(' ').next().unwrap().to_owned()).collect()
    }

    fn answers(&self) -> bool {
        fs::read_to_string(self.mountpoint.join("info")).is_ok_and(|info| info.contains("emu"))
    }

    fn umount(&self) {
        let output = self.run(&["umount"]);
        assert!(output.status.success(), "{output:?}");
    }

    /// Waits until these processes are gone and nothing is mounted.
    fn assert_clean(&self, pids: &[u32]) {
        wait_until("all processes are gone", || !pids.iter().any(|&pid| alive(pid)));
        wait_until("nothing is mounted", || self.mounted().is_empty());
        assert_eq!(self.daemons(), [0; 0]);
        assert_eq!(fs::read_dir(&self.mountpoint).unwrap().count(), 0);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for _ in self.mounted() {
            let _ = Command::new("umount").arg("-l").arg(&self.mountpoint).status();
        }
    }
}

/// All processes of a mount.
fn family(daemon: u32) -> Vec<u32> {
    let mut pids = guardians(daemon);
    pids.push(daemon);
    pids
}

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

/// A process that stands in this directory.
fn sleeper(directory: &Path) -> Child {
    Command::new("sleep").arg("60").current_dir(directory).spawn().unwrap()
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

/// Kills daemon and guardians at once, which none of them can mend.
fn kill_all(lab: &Lab) {
    let daemon = lab.mount();
    let pids = family(daemon);
    kill(daemon, 19);
    for &pid in &pids {
        kill(pid, 9);
    }
    wait_until("all are gone", || !pids.iter().any(|&pid| alive(pid)));
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

#[test]
fn many_mounts_in_a_row_leave_no_process_and_no_mount() {
    let Some(lab) = lab("mounts in a row") else { return };
    let mut pids = Vec::new();
    for _ in 0..20 {
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
fn the_mount_helper_translates_what_mount_says() {
    let Some(lab) = lab("mount helper") else { return };
    let helper = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-helpers/mount.vmtree");
    let folder = Path::new(env!("CARGO_BIN_EXE_vmtree")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let call = |arguments: &[&str]| {
        let mut command = Command::new(&helper);
        command.arg("emu:").arg(&lab.mountpoint).args(arguments).env("PATH", &path).output().unwrap()
    };
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
