//! Pauses through monitors that misbehave: the VM is never left stopped by us.

use super::*;
use crate::execution::Vm;
use crate::registers::Access;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use vmtree_api::Execution;

/// What the server does with a command instead of answering it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    /// Does it, and answers what is no JSON.
    Garbage,
    /// Does it, and stops in the middle of the answer's line.
    HalfALine,
    /// Does it, and hangs up.
    HangUp,
    /// Does it, and answers something else.
    Nonsense,
    /// Refuses it.
    Refusal,
    /// Does it, and never answers.
    Silence,
}

/// A VM behind a monitor.
#[derive(Default)]
struct Machine {
    stopped: bool,
    /// What goes wrong with the next commands of these names.
    faults: VecDeque<(&'static str, Fault)>,
}

struct Fake {
    folder: tempfile::TempDir,
    machine: Arc<Mutex<Machine>>,
}

impl Fake {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("qmp")).unwrap();
        let machine = Arc::<Mutex<Machine>>::default();
        let served = Arc::clone(&machine);
        // Ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let _ = serve(client.unwrap(), &served);
            }
        });
        Self { folder, machine }
    }

    fn vm(&self) -> Vm {
        let qmp = Qmp::connect(&self.folder.path().join("qmp")).unwrap();
        let control = Arc::new(Control::new(qmp, Arc::default(), Debts::default()).unwrap());
        let registers = Access::new(Arc::clone(&control), std::process::id(), true, false);
        Vm(control, Arc::new(registers))
    }

    fn will(&self, faults: &[(&'static str, Fault)]) {
        self.machine.lock().faults.extend(faults);
    }

    fn stopped(&self) -> bool {
        self.machine.lock().stopped
    }
}

fn serve(mut client: UnixStream, machine: &Mutex<Machine>) -> std::io::Result<()> {
    client.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n")?;
    for line in BufReader::new(client.try_clone()?).lines() {
        let Ok(request) = serde_json::from_str::<Value>(&line?) else { return Ok(()) };
        let command = request["execute"].as_str().unwrap_or_default();
        let mut machine = machine.lock();
        let planned = machine.faults.front().filter(|(name, _)| *name == command).map(|(_, fault)| *fault);
        if planned.is_some() {
            machine.faults.pop_front();
        }
        let mut text = String::new();
        if planned != Some(Fault::Refusal) && (command == "stop" || command == "cont") {
            if machine.stopped != (command == "stop") {
                let event = if command == "stop" { "STOP" } else { "RESUME" };
                text = format!("{{\"event\": \"{event}\"}}\r\n");
            }
            machine.stopped = command == "stop";
        }
        let status = if machine.stopped { "paused" } else { "running" };
        drop(machine);
        let id = &request["id"];
        text += &match planned {
            None => format!("{{\"return\": {{\"status\": \"{status}\"}}, \"id\": {id}}}\r\n"),
            Some(Fault::Garbage) => "\u{1}what?\r\n".to_owned(),
            Some(Fault::HalfALine) => "{\"return\": {".to_owned(),
            Some(Fault::HangUp) => return Ok(()),
            Some(Fault::Nonsense) => "{\"return\": 7, \"id\": 1000000}\r\n".to_owned(),
            Some(Fault::Refusal) => format!(
                "{{\"error\": {{\"class\": \"GenericError\", \"desc\": \"not now\"}}, \"id\": {id}}}\r\n"
            ),
            Some(Fault::Silence) => String::new(),
        };
        client.write_all(text.as_bytes())?;
        if planned == Some(Fault::HalfALine) {
            return Ok(());
        }
    }
    Ok(())
}

const FAULTS: [Fault; 5] = [Fault::Garbage, Fault::HalfALine, Fault::HangUp, Fault::Nonsense, Fault::Refusal];

#[test]
fn a_pause_that_fails_leaves_the_vm_running() {
    for fault in FAULTS {
        let fake = Fake::start();
        let vm = fake.vm();
        for faults in [
            &[("stop", fault)][..],
            &[("stop", fault), ("query-status", fault)],
            &[("stop", fault), ("query-status", fault), ("cont", fault), ("cont", fault)],
        ] {
            fake.will(faults);
            // Where the stop was refused, nobody gets as far as the cont.
            assert!(vm.pause().is_err(), "{faults:?}");
            assert!(!fake.stopped(), "{faults:?}");
            fake.machine.lock().faults.clear();
        }
        vm.pause().unwrap().resume().unwrap();
    }
}

#[test]
fn a_resume_that_fails_is_tried_again() {
    for fault in FAULTS {
        let fake = Fake::start();
        let vm = fake.vm();
        for faults in [
            &[("cont", fault)][..],
            &[("query-status", fault), ("cont", fault)],
            &[("query-status", fault), ("query-status", fault), ("cont", fault), ("cont", fault)],
        ] {
            let pause = vm.pause().unwrap();
            assert!(fake.stopped());
            fake.will(faults);
            pause.resume().unwrap();
            assert!(!fake.stopped(), "{faults:?}");
            fake.machine.lock().faults.clear();
            let _ = vm.state();
        }
    }
}

#[test]
fn silence_ends_after_a_while() {
    let fake = Fake::start();
    let vm = fake.vm();
    fake.will(&[("stop", Fault::Silence)]);
    assert_eq!(vm.pause().unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(!fake.stopped());
}

#[test]
fn what_could_not_be_given_back_is_given_later() {
    let fake = Fake::start();
    let vm = fake.vm();
    let pause = vm.pause().unwrap();
    fake.will(&[("cont", Fault::Refusal); 1000]);
    let begun = Instant::now();
    assert_eq!(pause.resume().unwrap_err().kind(), ErrorKind::Invalid);
    assert!(fake.stopped() && begun.elapsed() >= PATIENCE);
    vm.0.lock().tend();
    assert!(fake.stopped());
    fake.machine.lock().faults.clear();
    vm.0.lock().tend();
    assert!(!fake.stopped());
}

#[test]
fn a_monitor_that_hangs_up_during_our_pause_is_called_again() {
    let fake = Fake::start();
    let vm = fake.vm();
    let pause = vm.pause().unwrap();
    vm.0.lock().link.close();
    pause.resume().unwrap();
    assert!(!fake.stopped());
    // Somebody else let it run and stopped it again while we were not heard: only the first can be seen.
    let pause = vm.pause().unwrap();
    vm.0.lock().link.close();
    fake.machine.lock().stopped = false;
    vm.0.lock().settle().unwrap();
    fake.machine.lock().stopped = true;
    pause.resume().unwrap();
    assert!(fake.stopped());
}

#[test]
fn a_control_that_is_dropped_gives_back_what_it_owes() {
    let fake = Fake::start();
    let vm = fake.vm();
    let pause = vm.pause().unwrap();
    fake.will(&[("query-status", Fault::Garbage), ("cont", Fault::HangUp)]);
    drop(vm);
    assert!(!fake.stopped());
    pause.resume().unwrap();
}
