//! The docs' system-call tracer on a Debian guest, by the plugin in a real QEMU 11 (tests/labs/qemu/versions.sh).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "labs/qemu/lab.rs"]
mod qemu;

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use common::live::{Live, has, skip};
use common::wait_until;
use qemu::Vm;

const TEST: &str = "the_docs_tracer_tells_the_system_calls_of_a_known_program";

/// A guest that stands before its first instruction; its process that says what it does is tests/labs/qemu/probe.c.
fn guest() -> Option<Vm> {
    let plugin = qemu::plugin(env!("CARGO_BIN_EXE_vmtree")).inspect_err(|why| skip(TEST, why)).ok()?;
    let Some(debian) = qemu::debian() else {
        skip(TEST, "there is no Debian guest; see tests/labs/qemu/lab.sh");
        return None;
    };
    let file = |name| debian.join(name).to_str().unwrap().to_owned();
    let files = ["-kernel", &file("vmlinuz"), "-initrd", &file("initrd.gz"), "-plugin", &plugin];
    let line = "console=ttyS0 quiet panic=-1 -- probe";
    Some(Vm::start(&[&["-accel", "tcg", "-m", "512M", "-S", "-append", line], &files[..]].concat()))
}

/// A process that ends with the test.
struct Ends(Option<Child>);

impl Drop for Ends {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The numbers of a line: CR3, the call, its first three arguments.
fn call(line: &str) -> [u64; 5] {
    let words: Vec<_> = line.split(' ').filter(|word| *word != "syscall").collect();
    let number = |word: &&str| match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
        None => word.parse().unwrap(),
    };
    let numbers: Vec<_> = words.iter().map(number).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("{line}"))
}

#[test]
fn the_docs_tracer_tells_the_system_calls_of_a_known_program() {
    const PAGE: u64 = 0x1234_5678_9000;
    if !has(TEST, "python3") {
        return;
    }
    let Some(mut vm) = guest() else { return };
    let Some(live) = Live::mount(TEST, &format!("qemu:{}", vm.qmp()), "") else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/syscalls.py");
    let mut tracer = live.command("timeout");
    tracer.arg("300").arg(script).arg(live.path("")).arg("400");
    let tracer = tracer.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut tracer = Ends(Some(tracer));
    // The kernel has not said yet where its system calls go: the tracer waits for that.
    wait_until("the tracer listens", || {
        live.text("events/stats").lines().any(|line| line.starts_with("msr ") && !line.contains("armed=0"))
    });
    live.write("ctl", "resume force\n").unwrap();
    let output = tracer.0.take().unwrap().wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.is_empty(), "{}\n{told}\n{:?}", output.status, live.errors());
    let lines = String::from_utf8(output.stdout).unwrap();
    let calls: Vec<_> = lines.lines().map(call).collect();
    assert_eq!(calls.len(), 400);
    vm.await_serial("probe has gpa", Duration::from_secs(60));

    let [cr3, ..] = *calls.iter().find(|call| call[1..3] == [9, PAGE]).unwrap_or_else(|| panic!("{lines}"));
    assert_eq!(vm.walk(cr3, PAGE), vm.said("probe has gpa"));
    let own: Vec<_> = calls.iter().filter(|call| call[0] == cr3).map(|[_, call @ ..]| *call).collect();
    let first = own.iter().position(|call| call[..2] == [9, PAGE]).unwrap();
    let (begin, rest) = own[first..].split_at(6);
    // mmap, write, write, open, pread64, write: by the number, and the arguments that don't depend on how it was compiled.
    assert_eq!(begin.iter().map(|call| call[0]).collect::<Vec<_>>(), [9, 1, 1, 2, 17, 1], "{begin:x?}");
    assert_eq!(begin[0], [9, PAGE, 0x1000, 3]);
    assert!(begin[1..3].iter().all(|call| call[1] == 1) && begin[4][3] == 8, "{begin:x?}");
    // Then getpid and lseek, in turn.
    let turns = [[39, 0x111, 0x222, 0x333], [8, 0x7fff_fff1, 0xab_cdef, 0x42]].into_iter().cycle();
    assert_eq!(rest, turns.take(rest.len()).collect::<Vec<_>>());
    assert!(rest.len() > 20, "{lines}");
    wait_until("the rule has gone with its file", || live.text("views/0/access").is_empty());
}
