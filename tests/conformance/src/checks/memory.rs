//! Physical memory from our side: sizes, freshness, and bytes that go both ways.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vmtree_guest::mailbox::{COUNTERS_SIZE, Counter, GREETING_SIZE, Op, counter_of, header};

use crate::map::{Region, hex};
use crate::vm::read_at;
use crate::{Check, Checked, Vm};

pub const CHECKS: &[Check] = &[
    Check {
        name: "memory-sizes",
        needs: &[],
        about: "mem's size and blocks, mem.map and info agree",
        run: sizes,
    },
    Check {
        name: "memory-fresh",
        needs: &[],
        about: "counters of every vCPU move behind an open file",
        run: fresh,
    },
    Check {
        name: "memory-greeting",
        needs: &[],
        about: "a greeting that we write is answered by the guest",
        run: greeting,
    },
    Check {
        name: "memory-image",
        needs: &[],
        about: "the guest's program is in memory as it was assembled",
        run: image,
    },
    Check {
        name: "memory-blocks",
        needs: &["ram_files"],
        about: "ram/NAME is mem at mem.map's offsets, both ways",
        run: blocks,
    },
    Check {
        name: "memory-concurrent",
        needs: &[],
        about: "a counter never tears nor goes back under four readers",
        run: concurrent,
    },
];

fn sizes(vm: &Vm) -> Checked {
    let map = vm.map()?;
    let ram = || map.iter().filter(|region| region.is_ram());
    let end = ram().map(|region| region.range.end).max().unwrap_or(0);
    let bytes: u64 = ram().map(Region::bytes).sum();
    ensure!(bytes > 0, "mem.map has no RAM");
    let file = fs::metadata(vm.path("mem")).map_err(|error| format!("stat mem: {error}"))?;
    same!(file.size(), end, "the size of mem, against the end of the highest RAM of mem.map");
    same!(file.blocks() * 512, bytes, "the blocks of mem in bytes, against the RAM of mem.map");
    same!(vm.fact("ram_bytes")?, bytes.to_string().as_str(), "ram_bytes of info");
    same!(hex(vm.fact("max_gpa")?)?, end - 1, "max_gpa of info");
    same!(vm.mem(end - 1, 16)?.len(), 1, "bytes read across the end of mem");
    same!(vm.mem(end, 16)?.len(), 0, "bytes read past the end of mem");
    Ok(())
}

fn fresh(vm: &Vm) -> Checked {
    for vcpu in 0..vm.vcpus {
        for counter in [Counter::Heartbeat, Counter::Ticks, Counter::Syscalls, Counter::Cr3Writes] {
            let before = vm.counter(vcpu, counter)?;
            let what = format!("{} of vCPU {vcpu} moves on from {before}", counter.name());
            vm.until(&what, || Ok(vm.counter(vcpu, counter)? > before))?;
        }
        same!(vm.counter(vcpu, Counter::SelfModifiedWrong)?, 0, "self_modified_wrong of vCPU {vcpu}");
    }
    Ok(())
}

fn greeting(vm: &Vm) -> Checked {
    let at = vm.header(header::GREETING)?;
    for text in ["conformance asks", "and asks again, with more bytes", "hello from the guest"] {
        let mut page = text.as_bytes().to_vec();
        page.resize(GREETING_SIZE as usize, 0);
        vm.mailbox.bytes().write_all_at(&page, at).map_err(|error| format!("write the greeting: {error}"))?;
        let wanted = text.to_ascii_uppercase();
        let what = format!("the guest answers '{wanted}'");
        vm.until(&what, || Ok(vm.mailbox.reply().map_err(|error| error.to_string())? == wanted))?;
    }
    Ok(())
}

fn image(vm: &Vm) -> Checked {
    let code = vmtree_guest::asm::assemble().map_err(|error| format!("the guest's assembler: {error}"))?;
    for part in &code.parts {
        let found = vm.mem(part.gpa, part.bytes.len())?;
        let differs = found.iter().zip(&part.bytes).position(|(found, wanted)| found != wanted);
        same!(found.len(), part.bytes.len(), "bytes of the part {} of the guest", part.name);
        ensure!(
            differs.is_none(),
            "the part {} of the guest differs at {:#x?}",
            part.name,
            differs.map(|at| part.gpa + at as u64)
        );
    }
    Ok(())
}

/// RAM that the guest never uses (it ends at 4 MiB), below the least RAM of any VM.
const FREE: u64 = 0x50_0000;

fn blocks(vm: &Vm) -> Checked {
    let map = vm.map()?;
    let backed: Vec<_> = map.iter().filter_map(|region| Some((region, region.block.as_ref()?))).collect();
    ensure!(!backed.is_empty(), "mem.map names no block");
    for (region, (name, offset)) in &backed {
        let file = File::options().read(true).write(true).open(vm.path(name));
        let file = file.map_err(|error| format!("open {name}: {error}"))?;
        for at in [0, region.bytes() / 2 & !0xfff, region.bytes() - 0x1000] {
            equal_pages(vm, &file, region.range.start + at, offset + at, name)?;
        }
        if region.range.contains(&FREE) {
            let at = offset + (FREE - region.range.start);
            write_through(vm, &file, at).map_err(|why| format!("{name}: {why}"))?;
        }
    }
    ensure!(backed.iter().any(|(region, _)| region.range.contains(&FREE)), "no block holds {FREE:#x}");
    Ok(())
}

/// A page of a block is the page of mem. The guest may write between two reads, so some tries are allowed.
fn equal_pages(vm: &Vm, file: &File, gpa: u64, offset: u64, name: &str) -> Checked {
    for _ in 0..100 {
        let block = read_at(file, offset, 0x1000).map_err(|error| format!("read {name}: {error}"))?;
        same!(block.len(), 0x1000, "bytes of {name} at {offset:#x}");
        if block == vm.mem(gpa, 0x1000)? {
            return Ok(());
        }
    }
    Err(format!("mem at {gpa:#x} is not {name} at {offset:#x}"))
}

fn write_through(vm: &Vm, file: &File, offset: u64) -> Checked {
    let failed = |error: std::io::Error| error.to_string();
    let before = vm.word(FREE)?;
    vm.mailbox.bytes().write_all_at(b"from mem", FREE).map_err(failed)?;
    same!(read_at(file, offset, 8).map_err(failed)?, b"from mem", "what was written to mem, in the block");
    file.write_all_at(b"to block", offset).map_err(failed)?;
    same!(vm.mem(FREE, 8)?, b"to block", "what was written to the block, in mem");
    file.write_all_at(&before.to_le_bytes(), offset).map_err(failed)
}

/// Four readers of one counter that the guest drives through the borders of its bytes: a torn value is too large
/// once, and the next one goes back. On a busy host a reader may see too little of it, and looks again.
fn concurrent(vm: &Vm) -> Checked {
    let begun = Instant::now();
    loop {
        let fewest = watched(vm)?;
        if fewest > 2 {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < vm.patience,
            "a reader saw only {fewest} values of a counter that the guest drove up"
        );
    }
}

/// Has the guest drive its counter up under four readers, and returns how many values that one saw who saw the fewest.
fn watched(vm: &Vm) -> Result<u64, String> {
    let _quiet = vm.quiet()?;
    let before = vm.counter(0, Counter::Cr8Writes)?;
    let n = vm.rounds(Duration::from_millis(150))?.min(1 << 32);
    let seq = vm.begin(0, Op::WriteCr8, &[n, 0])?;
    let (stop, begun) = (AtomicBool::new(false), Instant::now());
    let found: Vec<Result<u64, String>> = thread::scope(|scope| {
        let readers: Vec<_> = (0..4_u64)
            .map(|reader| {
                let (stop, mem) = (&stop, vm.mailbox.bytes());
                scope.spawn(move || watch(mem, reader % 2 == 0, before, stop))
            })
            .collect();
        let mut done = Ok(false);
        while done == Ok(false) && begun.elapsed() < vm.patience {
            done = vm.done(0, seq);
            thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
        let ended =
            readers.into_iter().map(|reader| reader.join().unwrap_or_else(|_| Err("a reader died".into())));
        ended.collect()
    });
    vm.finish(0, Op::WriteCr8, seq)?;
    let last = vm.counter(0, Counter::Cr8Writes)?;
    same!(last.wrapping_sub(before), n, "CR8 writes that the guest counted");
    let seen: Vec<u64> = found.into_iter().collect::<Result<_, _>>()?;
    Ok(seen.into_iter().min().unwrap_or(0))
}

/// Reads the counter until told to stop, alone or within all counters, and returns how many values it saw.
fn watch(mem: &File, alone: bool, first: u64, stop: &AtomicBool) -> Result<u64, String> {
    let (mut last, mut values) = (first, 0);
    let (at, len) = match alone {
        true => (counter_of(0, Counter::Cr8Writes), 8),
        false => (counter_of(0, Counter::Heartbeat), COUNTERS_SIZE as usize),
    };
    let place = (counter_of(0, Counter::Cr8Writes) - at) as usize;
    while !stop.load(Ordering::Relaxed) {
        let bytes = read_at(mem, at, len).map_err(|error| format!("read mem: {error}"))?;
        let word =
            bytes.get(place..).and_then(|rest| rest.first_chunk::<8>()).ok_or("a short read of mem")?;
        let value = u64::from_le_bytes(*word);
        ensure!(value >= last, "the counter went back from {last:#x} to {value:#x}");
        values += u64::from(value > last);
        last = value;
    }
    Ok(values)
}
