//! A QEMU for tests: a monitor and a gdbstub of one vCPU, of which one packet goes wrong.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;
use serde_json::{Value, json};

/// What the gdbstub does with a packet instead of answering it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// Answers with a wrong checksum.
    Garbage,
    /// Stops in the middle of the answer and hangs up.
    Half,
    /// Hangs up.
    HangUp,
    /// Answers with an error.
    Refusal,
    /// Answers with what makes no sense.
    Nonsense,
    /// Answers that there is no such request.
    Unknown,
    /// Never answers.
    Silence,
}

/// The registers in the order of the target description, all of 64 bits but eflags.
const NAMES: &[&str] = &[
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "rbp",
    "rsp",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "rip",
    "eflags",
    "cr0",
    "cr2",
    "cr3",
    "cr4",
    "cr8",
    "efer",
    "k_gs_base",
];

#[derive(Default)]
pub struct Machine {
    pub stopped: bool,
    pub registers: Vec<u64>,
    /// The packet that goes wrong, counted down, and how.
    pub fault: Option<(u32, Fault)>,
    /// How many packets have come.
    pub packets: u32,
    /// Register numbers that are not set but said to be.
    pub stuck: Vec<usize>,
    gdb: Option<String>,
    events: Vec<&'static str>,
}

pub struct Fake {
    pub folder: tempfile::TempDir,
    pub machine: Arc<Mutex<Machine>>,
}

impl Fake {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("qmp")).unwrap();
        let mut registers: Vec<u64> = (0..NAMES.len() as u64).map(|number| 0x1000 + number).collect();
        // eflags, cr0, cr4, cr8 and efer must be possible ones.
        for (at, value) in [(17, 2), (18, 0x8001_0033), (21, 0x620), (22, 0), (23, 0xd01)] {
            registers[at] = value;
        }
        let machine = Arc::new(Mutex::new(Machine { registers, ..Machine::default() }));
        let served = Arc::clone(&machine);
        // Ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let _ = monitor(client.unwrap(), &served);
            }
        });
        Self { folder, machine }
    }
}

fn monitor(mut client: UnixStream, machine: &Arc<Mutex<Machine>>) -> std::io::Result<()> {
    client.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n")?;
    for line in BufReader::new(client.try_clone()?).lines() {
        let Ok(request) = serde_json::from_str::<Value>(&line?) else { return Ok(()) };
        let mut held = machine.lock();
        let answer = match request["execute"].as_str().unwrap_or_default() {
            word @ ("stop" | "cont") => {
                set_running(&mut held, word == "cont");
                json!({})
            }
            "query-status" => json!({ "status": if held.stopped { "paused" } else { "running" } }),
            "query-chardev" => match &held.gdb {
                Some(path) => json!([{ "label": "gdb", "filename": format!("unix:{path},server=on") }]),
                None => json!([]),
            },
            "human-monitor-command" => {
                let line = request["arguments"]["command-line"].as_str().unwrap_or_default().to_owned();
                json!(human(&mut held, &line, machine))
            }
            _ => json!({}),
        };
        let events: String =
            held.events.drain(..).map(|event| format!("{{\"event\": \"{event}\"}}\r\n")).collect();
        drop(held);
        client.write_all(
            format!("{events}{}\r\n", json!({ "return": answer, "id": request["id"] })).as_bytes(),
        )?;
    }
    Ok(())
}

fn set_running(machine: &mut Machine, running: bool) {
    if machine.stopped == running {
        machine.stopped = !running;
        machine.events.push(if running { "RESUME" } else { "STOP" });
    }
}

fn human(machine: &mut Machine, line: &str, shared: &Arc<Mutex<Machine>>) -> String {
    match line.split(' ').collect::<Vec<_>>()[..] {
        ["gdbserver", "none"] => machine.gdb = None,
        ["gdbserver", device] => {
            let path = device.strip_prefix("unix:").unwrap().split(',').next().unwrap().to_owned();
            let listener = UnixListener::bind(Path::new(&path)).unwrap();
            machine.gdb = Some(path);
            let shared = Arc::clone(shared);
            thread::spawn(move || drop(stub(listener.accept().unwrap().0, &shared)));
        }
        ["info", "registers"] => return shown(&machine.registers),
        _ => panic!("{line}"),
    }
    String::new()
}

fn shown(registers: &[u64]) -> String {
    let mut text = "CPU#0\r\n".to_owned();
    for (name, value) in NAMES.iter().zip(registers) {
        let name = if *name == "eflags" { "RFL".to_owned() } else { name.to_uppercase() };
        if !matches!(&*name, "CR8" | "K_GS_BASE") {
            text += &format!("{name}={value:016x}\r\n");
        }
    }
    for name in ["ES", "CS", "SS", "DS", "FS", "GS", "LDT", "TR"] {
        text += &format!("{name} =0008 0000000000000000 ffffffff 00af9b00 DPL=0\r\n");
    }
    text + "GDT=     0000000000001000 0000003f\r\nIDT=     0000000000002000 00000fff\r\n\
        DR0=0 DR1=0 DR2=0 DR3=0 \r\nDR6=00000000ffff0ff0 DR7=0000000000000400\r\n"
}

fn packet(payload: &str) -> Vec<u8> {
    let sum = payload.bytes().fold(0_u8, |sum, byte| sum.wrapping_add(byte));
    format!("${payload}#{sum:02x}").into_bytes()
}

fn stub(mut client: UnixStream, machine: &Mutex<Machine>) -> std::io::Result<()> {
    set_running(&mut machine.lock(), false);
    let mut pending = Vec::new();
    let mut byte = [0];
    while client.read(&mut byte)? == 1 {
        // As QEMU: a byte that comes while the VM runs stops it and is lost. An acknowledgment is none of these.
        if !machine.lock().stopped && byte != *b"+" {
            set_running(&mut machine.lock(), false);
            client.write_all(&packet("T02thread:01;"))?;
            pending.clear();
            continue;
        }
        pending.push(byte[0]);
        let Some(end) = pending.iter().position(|byte| *byte == b'#').filter(|end| pending.len() == end + 3)
        else {
            continue;
        };
        let start = pending.iter().position(|byte| *byte == b'$').unwrap();
        let request = String::from_utf8(pending[start + 1..end].to_vec()).unwrap();
        pending.clear();
        let mut machine = machine.lock();
        machine.packets += 1;
        let answer = packet(&answer(&mut machine, &request));
        let due = machine.fault.as_mut().and_then(|(left, fault)| {
            *left = left.checked_sub(1)?;
            (*left == 0).then_some(*fault)
        });
        drop(machine);
        let text = match due {
            None => answer,
            Some(Fault::Garbage) => b"$OK#00".to_vec(),
            Some(Fault::Half) => {
                client.write_all(&answer[..answer.len() / 2])?;
                return Ok(());
            }
            Some(Fault::HangUp) => return Ok(()),
            Some(Fault::Refusal) => packet("E22"),
            Some(Fault::Nonsense) => packet("what?"),
            Some(Fault::Unknown) => packet(""),
            Some(Fault::Silence) => Vec::new(),
        };
        client.write_all(&text)?;
    }
    Ok(())
}

fn answer(machine: &mut Machine, request: &str) -> String {
    let hex = |value: u64, bytes: usize| super::super::gdb::hex(&value.to_le_bytes()[..bytes]);
    let width = |number: usize| if NAMES[number] == "eflags" { 4 } else { 8 };
    match request.split([':', '.', ',', '=']).next().unwrap() {
        "qSupported" => "PacketSize=1000;qXfer:features:read+;multiprocess+".to_owned(),
        "qXfer" => {
            let register = |name: &&str| {
                format!("<reg name=\"{name}\" bitsize=\"{}\"/>", if *name == "eflags" { 32 } else { 64 })
            };
            format!("l<target>{}</target>", NAMES.iter().map(register).collect::<String>())
        }
        "qfThreadInfo" => "mp01.01".to_owned(),
        "qqemu" => "ENABLE=1,NOIRQ=2,NOTIMER=4".to_owned(),
        "Hgp1" => if request == "Hgp1.1" { "OK" } else { "E22" }.to_owned(),
        "g" => {
            machine.registers.iter().enumerate().map(|(number, value)| hex(*value, width(number))).collect()
        }
        "Hcp1" | "Qqemu" => "OK".to_owned(),
        "vCont;s" | "vCont" => {
            machine.registers[16] += 1;
            machine.events.extend(["RESUME", "STOP"]);
            "T05thread:p01.01;".to_owned()
        }
        "qC" => "QCp01.01".to_owned(),
        "qThreadExtraInfo" => hex(0, 1),
        word => {
            let number =
                usize::from_str_radix(word.strip_prefix('P').unwrap_or_else(|| panic!("{request}")), 16)
                    .unwrap();
            let value = request.split_once('=').unwrap().1;
            let bytes = (0..value.len() / 2)
                .rev()
                .map(|at| u64::from_str_radix(&value[2 * at..2 * at + 2], 16).unwrap());
            if !machine.stuck.contains(&number) {
                machine.registers[number] = bytes.fold(0, |all, byte| all << 8 | byte);
            }
            "OK".to_owned()
        }
    }
}
