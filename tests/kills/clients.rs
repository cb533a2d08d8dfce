//! The processes that are killed.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process};

use crate::random::Random;

/// What `cat` reads; V is the client's vCPU.
const READ: &[&str] = &[
    "events/cr3,vcpu=V",
    "events/all,vcpu=V,format=json",
    "events/interrupt,vcpu=V,format=binary",
    "events/guest_request,vcpu=V",
    "events/slat,vcpu=V,gpa=0x200000-0x201000,access=w",
    "events/singlestep,vcpu=V",
    "events/msr",
    "views/a/mem",
    "mem",
];

/// What is controlled. The gpa is that of the page of the guest's counters.
const CONTROL: &[&str] = &[
    "events/cr3,vcpu=V",
    "events/cr3,vcpu=V,dir=to",
    "events/interrupt,vcpu=V",
    "events/all,vcpu=V",
    "events/singlestep,vcpu=V",
    "events/slat,vcpu=V,gpa=0x200000-0x201000,access=w",
];

/// What bash does with it; only builtins, so that nothing outlives a kill.
const LOOPS: &[&str] = &[
    "exec 3<>FILE && while read -r e <&3; do s=${e%% *}; echo \"${s#seq=} ANSWER\" >&3; done",
    "exec 3<>FILE && while read -r e <&3; do s=${e%% *}; echo \"${s#seq=} ANSWER\" >&3; done",
    // Holds what comes.
    "exec 3<>FILE && while read -r e <&3; do :; done",
    // Closes while it holds.
    "while exec 3<>FILE; do read -r e <&3; exec 3>&-; done",
    "while :; do echo a >vcpu/V/view; echo 0 >vcpu/V/view; done",
    "while :; do echo '0x800000-0x900000 r-- deny' >views/0/access; echo reset >views/0/access; done",
    "while :; do echo nmi >vcpu/V/inject; done",
];

const ANSWERS: &[&str] = &["continue", "step", "step view=a", "view=a", "view=0"];

/// A process that uses a mount; killed if the test ends early.
pub struct Client {
    child: Child,
    /// What it does, for a report.
    pub what: String,
}

impl Client {
    /// A reader or a controller of this vCPU.
    pub fn start(random: &mut Random, root: &Path, vcpu: u64) -> Self {
        let fill = |text: &str| text.replace('V', &vcpu.to_string());
        let (what, mut command) = match random.below(10) {
            0..4 => {
                let file = fill(random.pick(READ));
                let mut cat = Command::new("cat");
                cat.arg(&file);
                (format!("cat {file}"), cat)
            }
            4..8 => {
                let script = fill(random.pick(LOOPS)).replace("FILE", &fill(random.pick(CONTROL)));
                let script = script.replace("ANSWER", random.pick(ANSWERS));
                let mut bash = Command::new("bash");
                bash.args(["-c", &script]);
                (script, bash)
            }
            8 => (format!("polls on vCPU {vcpu}"), own("poll", &fill(random.pick(CONTROL)))),
            _ => (format!("makes views for vCPU {vcpu}"), own("views", &vcpu.to_string())),
        };
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: quiet.current_dir(root).spawn().unwrap(), what }
    }

    /// Kills it; whether it still ran.
    pub fn kill(&mut self, random: &mut Random) -> bool {
        if self.ended() {
            return false;
        }
        let signal = if random.once_in(5) { Signal::TERM } else { Signal::KILL };
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        true
    }

    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ROLE: &str = "VMTREE_KILLS_CLIENT";

/// This program as a client.
fn own(role: &str, argument: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg0("vmtree-kills-client").args(["clients::client", "--exact", "--nocapture"]);
    command.env(ROLE, format!("{role} {argument}"));
    command
}

/// What this program does as a client, for ever; nothing where it is none.
#[test]
fn client() {
    let Ok(role) = std::env::var(ROLE) else { return };
    match role.split_once(' ').unwrap() {
        ("poll", file) => answer_when_polled(file),
        (_, vcpu) => make_views(vcpu),
    }
}

/// Answers what there is whenever poll(2) says so.
fn answer_when_polled(file: &str) {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut file = fs::File::options().read(true).write(true).custom_flags(flags).open(file).unwrap();
    let mut buf = vec![0; 1 << 16];
    loop {
        poll(&mut [PollFd::new(&file, PollFlags::IN)], None).unwrap();
        let got = file.read(&mut buf).unwrap();
        let text = String::from_utf8_lossy(&buf[..got]).into_owned();
        let seqs = text.lines().filter_map(|line| line.strip_prefix("seq=")?.split(' ').next());
        let answers: String = seqs.map(|seq| format!("{seq} continue\n")).collect();
        let _ = file.write(answers.as_bytes());
    }
}

/// Makes a view, runs the vCPU on it, and takes it back.
fn make_views(vcpu: &str) {
    let (view, current) = (format!("views/v{vcpu}"), format!("vcpu/{vcpu}/view"));
    loop {
        // There may be one of a client that was killed.
        let _ = fs::create_dir(&view);
        fs::write(format!("{view}/remap"), "0x800000 copy\n0x801000 0x802000").unwrap();
        fs::write(format!("{view}/access"), "0x200000-0x201000 r-x").unwrap();
        fs::write(&current, format!("v{vcpu}")).unwrap();
        fs::write(&current, "0").unwrap();
        fs::remove_dir(&view).unwrap();
    }
}
