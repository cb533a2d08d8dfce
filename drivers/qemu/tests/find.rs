//! Finding a QEMU, not finding it, and noticing its end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../../../tests/labs/qemu/lab.rs"]
mod lab;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use lab::Vm;
use vmtree_api::{Driver, Error, ErrorKind, Gpa, Host, NoHost, Source};

fn open(target: &str) -> Result<Box<dyn Driver>, Error> {
    vmtree_qemu::open(Source::new("qemu", target, Vec::new()), Arc::new(NoHost))
}

fn refused(target: &str) -> Error {
    let error = open(target).err().unwrap_or_else(|| panic!("{target} was opened"));
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

/// A name that no other test's VM has.
fn name(of: &str) -> String {
    format!("vmtree-{of}-{}", std::process::id())
}

#[test]
fn a_vm_is_found_by_socket_pid_and_name_again_and_again() {
    if !lab::have_qemu() {
        return;
    }
    let name = name("found");
    let vm = Vm::start(&["-m", "64M", "-name", &format!("guest={name},debug-threads=on")]);
    for target in [vm.qmp(), format!("pid={}", vm.pid()), format!("name={name}")] {
        // The monitor is let go by each, or the next would find it held.
        for _ in 0..2 {
            let driver = open(&target).unwrap();
            assert_eq!(driver.facts().name.as_deref(), Some(name.as_str()));
            assert!(driver.facts().extra.contains(&("pid", vm.pid().to_string())));
            assert!(
                driver.facts().extra.contains(&("accelerator", "tcg".to_owned())),
                "{:?}",
                driver.facts()
            );
        }
    }
    let listed = vmtree_qemu::list();
    let row = listed.iter().find(|row| row.about.contains(&name)).unwrap_or_else(|| panic!("{listed:?}"));
    open(row.source.strip_prefix("qemu:").unwrap()).unwrap();
    assert!(row.source.ends_with("/qmp") && row.about.contains("-m 64M"), "{row:?}");
}

#[test]
fn a_monitor_behind_a_chardev_and_one_passed_as_a_descriptor_are_found() {
    if !lab::have_qemu() {
        return;
    }
    let chardev = ["-chardev", "socket,id=q,path=sock,server=on,wait=off", "-mon", "chardev=q,mode=control"];
    let vm = Vm::start_without_qmp(&chardev);
    open(&format!("pid={}", vm.pid())).unwrap();

    // As libvirt does: the manager listens and QEMU inherits the socket, so that the socket's peer is the manager.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("monitor.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let fd = rustix::io::dup(&listener).unwrap();
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
    let chardev = format!("socket,id=charmonitor,fd={number},server=on,wait=off");
    let vm =
        Vm::start_without_qmp(&["-chardev", &chardev, "-mon", "chardev=charmonitor,id=monitor,mode=control"]);
    drop((listener, fd));
    open(&format!("pid={}", vm.pid())).unwrap();
    let driver = open(path.to_str().unwrap()).unwrap();
    assert!(driver.facts().extra.contains(&("pid", vm.pid().to_string())));
}

#[test]
fn what_is_no_qemu_is_refused_in_words() {
    let me = std::process::id();
    let error = refused(&format!("pid={me}"));
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("is no QEMU"), "{error}");
    // Above the highest pid that Linux gives (proc_sys_kernel(5), pid_max).
    assert_eq!(refused("pid=2147483647").kind(), ErrorKind::NotFound);
    assert_eq!(refused("pid=x").kind(), ErrorKind::Invalid);
    assert_eq!(refused("").kind(), ErrorKind::Invalid);
    assert_eq!(refused("name=no such vm").kind(), ErrorKind::NotFound);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    assert_eq!(refused(path.to_str().unwrap()).kind(), ErrorKind::NotFound);
    drop(UnixListener::bind(&path).unwrap());
    let error = refused(path.to_str().unwrap());
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("nobody listens"), "{error}");
}

#[test]
fn a_qmp_server_that_is_no_qemu_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let _ = stream.write_all(b"{\"QMP\": {}}\n");
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"{\"return\": {}, \"id\": 1}\n");
    });
    let error = refused(path.to_str().unwrap());
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains(&format!("served by process {}", std::process::id())), "{error}");
    server.join().unwrap();
}

#[test]
fn options_that_are_not_there_are_refused() {
    let source = Source::new("qemu", "pid=1", vec![("ram".to_owned(), "1".to_owned())]);
    let error = vmtree_qemu::open(source, Arc::new(NoHost)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("'ram'"), "{error}");
}

#[test]
fn a_qemu_that_can_not_be_asked_says_how_to_start_it() {
    if !lab::have_qemu() {
        return;
    }
    let vm = Vm::start_without_qmp(&[]);
    let error = refused(&format!("pid={}", vm.pid()));
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("-qmp unix:PATH"), "{error}");
    let row =
        vmtree_qemu::list().into_iter().find(|row| row.source == format!("qemu:pid={}", vm.pid())).unwrap();
    assert!(row.about.contains("-qmp unix:PATH"), "{row:?}");

    let vm = Vm::start(&[]);
    let holder = UnixStream::connect(vm.qmp()).unwrap();
    let since = Instant::now();
    let error = refused(&vm.qmp());
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(
        error.to_string().contains("another client holds it") && since.elapsed() < Duration::from_secs(5),
        "{error}"
    );
    drop(holder);
    open(&vm.qmp()).unwrap();
}

#[test]
fn a_name_of_two_vms_is_refused_with_their_pids() {
    if !lab::have_qemu() {
        return;
    }
    let name = name("twice");
    let vms = [Vm::start(&["-name", &name]), Vm::start(&["-name", &format!("guest={name}")])];
    let error = refused(&format!("name={name}"));
    assert_eq!(error.kind(), ErrorKind::Invalid);
    for vm in &vms {
        assert!(error.to_string().contains(&format!("pid={}", vm.pid())), "{error}");
    }
}

struct Tell(Mutex<mpsc::Sender<String>>);

impl Host for Tell {
    fn ended(&self, why: &str) {
        let _ = self.0.lock().unwrap().send(why.to_owned());
    }
}

#[test]
fn the_death_of_qemu_is_noticed_at_once_whatever_backs_its_memory() {
    if !lab::have_qemu() {
        return;
    }
    for args in [lab::SHARED, &["-m", "64M"]] {
        let mut vm = Vm::start(args);
        let (sender, told) = mpsc::channel();
        let host = Arc::new(Tell(Mutex::new(sender)));
        let driver = vmtree_qemu::open(Source::new("qemu", &vm.qmp(), Vec::new()), host).unwrap();
        let memory = driver.memory();
        assert_eq!(memory.read(Gpa(0), &mut [0; 8]).unwrap(), 8);
        vm.kill();
        // Not reaped: a zombie has ended too.
        let why = told.recv_timeout(Duration::from_secs(2)).expect("the end is told");
        assert!(why.contains(&vm.pid().to_string()) && why.contains("exited"), "{why}");
        assert_eq!(memory.read(Gpa(0), &mut [0; 8]).unwrap_err().kind(), ErrorKind::Gone);
        assert_eq!(memory.write(Gpa(0), &[0; 8]).unwrap_err().kind(), ErrorKind::Gone);
        assert_eq!(memory.lend(Gpa(0), 8, &mut |_| ()).unwrap_err().kind(), ErrorKind::Gone);
        vm.reap();
        drop(driver);
    }
}

#[test]
fn what_is_missing_says_why() {
    if !lab::have_qemu() {
        return;
    }
    let vm = Vm::start(&["-m", "64M"]);
    let driver = open(&vm.qmp()).unwrap();
    for missing in [
        driver.registers().unwrap().msrs().err(),
        driver.events().err(),
        driver.views().err(),
        driver.injection().err(),
    ] {
        assert!(!missing.unwrap().why.is_empty());
    }
}

/// The other half of the next test, run by it as another user.
#[test]
fn as_a_stranger() {
    let Ok(socket) = std::env::var("VMTREE_TEST_STRANGER") else { return };
    let error = refused(&socket);
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.to_string().contains("CAP_SYS_PTRACE"), "{error}");
}

#[test]
fn another_users_qemu_is_refused_with_the_cure() {
    if !lab::have_qemu() || !rustix::process::getuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let vm = Vm::start(&["-m", "64M"]);
    for path in [vm.folder().to_owned(), vm.qmp().into()] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
    }
    // A copy, in a place that the stranger can reach.
    let copy = vm.folder().join("stranger");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let run = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(&copy)
        .args(["--exact", "as_a_stranger"])
        .env("VMTREE_TEST_STRANGER", vm.qmp())
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success() && text.contains("1 passed"),
        "{text} {}",
        String::from_utf8_lossy(&run.stderr)
    );
}
