//! A real QEMU with the plugin and the conformance guest, and a client of its agent. The QEMU is the one in PATH;
//! tests/labs/qemu/versions.sh puts others there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use vmtree_agent::client::Client;
use vmtree_agent::{Event, Kind, Socket, Wanted, Watch};
use vmtree_guest::Mailbox;

pub const LONG: Duration = Duration::from_secs(40);

/// The library, built now: cargo builds none for the tests of a library that nothing links with.
pub fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "--quiet", "--package", "vmtree-qemu-plugin"])
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success());
        let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        deps.with_file_name("libvmtree_qemu.so")
    })
}

/// Major and minor of the QEMU in PATH, 0 and 0 where there is none.
pub fn release() -> (u32, u32) {
    let Ok(output) = Command::new("qemu-system-x86_64").arg("--version").output() else { return (0, 0) };
    let text = String::from_utf8(output.stdout).unwrap();
    let mut numbers =
        text.split_once("version ").unwrap().1.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    (numbers.next().unwrap().unwrap(), numbers.next().unwrap().unwrap())
}

/// Whether the QEMU in PATH has at least this release; else the test is told as skipped, past the capture of the harness.
pub fn at_least(wanted: (u32, u32)) -> bool {
    let enough = release() >= wanted;
    if !enough {
        let current = thread::current();
        let (test, (major, minor)) = (current.name().unwrap_or("a test of the plugin"), wanted);
        let why = format!("no QEMU {major}.{minor} or later is in PATH; tests/labs/qemu/versions.sh has one");
        let _ = writeln!(io::stderr(), "SKIPPED {test}: {why}");
    }
    enough
}

pub struct Lab {
    pub qemu: Child,
    pub folder: tempfile::TempDir,
    pub mailbox: Mailbox<File>,
}

pub fn command(folder: &Path, vcpus: u32, plugin: Option<&str>) -> Command {
    let (image, ram) = (folder.join("guest.elf"), folder.join("ram"));
    fs::write(&image, vmtree_guest::elf()).unwrap();
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-m", "64M", "-display", "none", "-nodefaults", "-no-reboot"]);
    command.args(["-machine", "pc,memory-backend=ram", "-smp", &vcpus.to_string()]);
    command
        .arg("-object")
        .arg(format!("memory-backend-file,id=ram,size=64M,share=on,mem-path={}", ram.display()));
    command.arg("-kernel").arg(image);
    command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", folder.join("qmp").display()));
    if let Some(args) = plugin {
        command.arg("-plugin").arg(format!("{}{args}", library().display()));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Lab {
    pub fn start(vcpus: u32, with_plugin: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plugin = format!(",socket={}", folder.path().join("agent").display());
        let mut command = command(folder.path(), vcpus, with_plugin.then_some(&*plugin));
        command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
        let qemu = command.spawn().unwrap();
        let ram = folder.path().join("ram");
        soon("QEMU makes its RAM", || fs::metadata(&ram).is_ok_and(|ram| ram.len() == 64 << 20));
        let file = OpenOptions::new().read(true).write(true).open(&ram).unwrap();
        let lab = Self { qemu, folder, mailbox: Mailbox::new(file) };
        lab.mailbox.wait_running(LONG).unwrap();
        lab.mailbox.background(false, LONG).unwrap();
        lab
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    pub fn client(&self) -> Arc<Client> {
        let mut found = None;
        soon("the agent serves", || {
            found = Client::open(Arc::new(Socket::connect(&self.socket()).unwrap())).ok();
            found.is_some()
        });
        let client = found.unwrap();
        let reader = client.clone();
        thread::spawn(move || reader.read_forever());
        client
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

pub fn watch(kind: Kind, hold: bool) -> Watch {
    Watch { kind, way: None, vcpu: None, index: None, hold }
}

pub fn wanted(watches: impl IntoIterator<Item = Watch>) -> Wanted {
    Wanted { watches: watches.into_iter().collect(), rules: Vec::new() }
}

/// All events until none comes for a while.
pub fn all(client: &Client) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(event) = client.next(Duration::from_millis(500)).unwrap() {
        events.push(event);
    }
    events
}

pub fn soon(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}
