//! Event files as files: names, modes, waiting, and their stats.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use crate::acts::{Act, acts};
use crate::checks::events::EVENTS;
use crate::{Check, Checked, Vm};

pub const CHECKS: &[Check] = &[
    Check {
        name: "events-listed",
        needs: EVENTS,
        about: "events/ lists the kinds that capabilities has, all and stats, and no name with parameters",
        run: listed,
    },
    Check {
        name: "events-names",
        needs: EVENTS,
        about: "bad parameters are ENOENT with a line in errors; their order means nothing",
        run: names,
    },
    Check {
        name: "events-modes",
        needs: EVENTS,
        about: "write-only is EACCES, and a file opened to read takes no answer",
        run: modes,
    },
    Check {
        name: "events-wait",
        needs: EVENTS,
        about: "an empty file gives EAGAIN and is not ready to poll; an event makes both ready",
        run: wait,
    },
    Check {
        name: "events-blocking",
        needs: EVENTS,
        about: "a read waits for an event, and gets it",
        run: blocking,
    },
    Check {
        name: "events-whole-records",
        needs: EVENTS,
        about: "a short read ends at the end of a record, and the next one goes on",
        run: whole_records,
    },
    Check {
        name: "events-stats",
        needs: EVENTS,
        about: "what is armed, raised and delivered is counted, and the last close disarms",
        run: stats,
    },
];

/// A line of `events/stats`.
pub fn stat(vm: &Vm, kind: &str, name: &str) -> Result<u64, String> {
    let text = vm.text("events/stats")?;
    let line = text.lines().find(|line| line.split(' ').next() == Some(kind));
    let line = line.ok_or_else(|| format!("events/stats has no line {kind}: {text}"))?;
    let word = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let word = word.ok_or_else(|| format!("no {name}= in '{line}'"))?;
    word.parse().map_err(|error| format!("{name}= in '{line}': {error}"))
}

fn listed(vm: &Vm) -> Checked {
    let entries = fs::read_dir(vm.path("events")).map_err(|error| format!("list events: {error}"))?;
    let mut found: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    found.sort();
    let mut wanted: Vec<String> = vm.event_kinds();
    wanted.extend(["all".to_owned(), "stats".to_owned()]);
    wanted.sort();
    same!(found, wanted, "the names in events, against capabilities");
    Ok(())
}

fn names(vm: &Vm) -> Checked {
    let kind = acts(vm, 0)?.first().map_or("cr3", |act| act.kind);
    for params in [
        ",",
        ",vcpu",
        ",vcpu=",
        ",vcpu=x",
        ",vcpu=99",
        ",vcpu=0,vcpu=0",
        ",format=xml",
        ",no=1",
        ",dir=up",
        ",gpa=0x1000",
        ",vcpu=0x1000000000000",
        ",,vcpu=0",
        ",vcpu=0,",
    ] {
        let name = format!("events/{kind}{params}");
        let found = fs::File::open(vm.path(&name)).err().map(|error| error.kind());
        same!(found, Some(ErrorKind::NotFound), "open {name}");
        let errors = vm.text("errors")?;
        let told =
            errors.lines().last().is_some_and(|line| line.contains("errno=ENOENT") && line.contains(kind));
        ensure!(told, "{name}: the last line of errors does not tell of it: {errors}");
    }
    for params in [",vcpu=0,format=json", ",format=json,vcpu=0", ",vcpu=0x0,format=json"] {
        vm.watch(&format!("events/{kind}{params}"))?;
    }
    let listed = fs::read_dir(vm.path("events")).map_err(|error| format!("list events: {error}"))?;
    let parameters = listed.flatten().any(|entry| entry.file_name().to_string_lossy().contains(','));
    ensure!(!parameters, "events lists a name with parameters after it was opened");
    Ok(())
}

fn modes(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let act = first(vm)?;
    let code = OpenOptions::new().write(true).open(vm.path(&act.file())).err();
    same!(
        code.as_ref().map(|error| error.kind()),
        Some(ErrorKind::PermissionDenied),
        "open write-only: {code:?}"
    );
    let mut pipe = vm.watch(&act.file())?;
    ensure!(pipe.try_answer("1 continue").is_err(), "a file opened to read took an answer");
    // It watches on all the same.
    vm.perform(&act)?;
    pipe.next().map(drop)
}

/// Something that the guest can do, once.
fn first(vm: &Vm) -> Result<Act, String> {
    acts(vm, 0)?.into_iter().next().map(Act::once).ok_or_else(|| "no act".to_owned())
}

fn wait(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let act = first(vm)?;
    let mut pipe = vm.watch(&act.file())?;
    let code = pipe.read(4096).err().map(|error| error.kind());
    same!(code, Some(ErrorKind::WouldBlock), "a read of an empty file with O_NONBLOCK");
    ensure!(!pipe.wait(Duration::from_millis(50))?, "poll found an empty file ready");
    let posted = vm.post(act.vcpu, &act.order)?;
    ensure!(pipe.wait(vm.patience)?, "poll was not told of an event");
    vm.end(&posted)?;
    pipe.exactly(1)?;
    ensure!(!pipe.wait(Duration::from_millis(50))?, "poll found a file ready that was read to its end");
    drop(pipe);
    vm.restore(&act)
}

fn blocking(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let act = first(vm)?;
    let path = vm.path(&act.file());
    let mut file = fs::File::open(&path).map_err(|error| format!("open {}: {error}", act.file()))?;
    // The read is left alone if no event comes: closing the mount ends it.
    let (sender, receiver) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        let got = std::io::Read::read(&mut file, &mut bytes)
            .map(|got| bytes.get(..got).unwrap_or_default().to_vec());
        let _ = sender.send((Instant::now(), got));
    });
    std::thread::sleep(Duration::from_millis(50));
    ensure!(receiver.try_recv().is_err(), "a read of an empty file came back");
    let ordered = Instant::now();
    vm.perform(&act)?;
    let (ended, got) =
        receiver.recv_timeout(vm.patience).map_err(|_| "a waiting read was not told of an event")?;
    let got = got.map_err(|error| format!("the waiting read: {error}"))?;
    ensure!(ended >= ordered && got.ends_with(b"\n"), "the waiting read got {got:x?}");
    reader.join().map_err(|_| "the reader died".to_owned())
}

fn whole_records(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let mut act = first(vm)?;
    if let Some(times) = act.order.1.first_mut() {
        *times = 20;
    }
    let mut pipe = vm.watch(&act.file())?;
    vm.outcome(act.vcpu, act.order.0, &act.order.1)?;
    let mut lines = 0;
    while pipe.wait(Duration::from_millis(60))? {
        // Room for one record, and not for two.
        let bytes = pipe.read(350).map_err(|error| format!("a short read: {error}"))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        ensure!(text.ends_with('\n'), "a read of 350 bytes ends inside a record: {text}");
        for line in text.lines() {
            crate::event::Record::of_text(line)?.seq()?;
            lines += 1;
        }
    }
    drop(pipe);
    same!(lines, 20, "records by short reads");
    vm.restore(&act)
}

fn stats(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let act = first(vm)?;
    let counts = || Ok::<_, String>([stat(vm, act.kind, "raised")?, stat(vm, act.kind, "delivered")?]);
    same!(stat(vm, act.kind, "armed")?, 0, "armed {} before anything is open", act.kind);
    let mut pipes = [vm.watch(&act.file())?, vm.watch(&act.file())?];
    ensure!(stat(vm, act.kind, "armed")? > 0, "{} is not armed while open", act.kind);
    let before = counts()?;
    vm.perform(&act)?;
    for pipe in &mut pipes {
        pipe.next()?;
    }
    let after = counts()?;
    ensure!(after[0] > before[0], "raised went from {} to {}", before[0], after[0]);
    ensure!(after[1] >= before[1] + 2, "delivered went from {} to {} by two readers", before[1], after[1]);
    drop(pipes);
    vm.until("the last close disarms", || Ok(stat(vm, act.kind, "armed")? == 0))
}
