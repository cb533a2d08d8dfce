//! What lies between the RAM: how it reads, refuses writes, and is skipped by seeks.

use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::errno::EIO;
use crate::map::data;
use crate::{Check, Checked, Vm};

pub const CHECKS: &[Check] = &[
    Check {
        name: "memory-holes",
        needs: &[],
        about: "holes read as info says, refuse writes and cut those that reach in",
        run: holes,
    },
    Check {
        name: "memory-seek",
        needs: &[],
        about: "a walk by SEEK_DATA and SEEK_HOLE gives mem.map",
        run: walk,
    },
];

/// Addresses where nothing lies, each the first behind a region with data, or the last before one.
fn edges(vm: &Vm) -> Result<Vec<u64>, String> {
    let runs = data(&vm.map()?, u64::MAX);
    let mut edges: Vec<u64> = runs
        .windows(2)
        .filter_map(|pair| Some((pair.first()?.end, pair.get(1)?.start - 1)))
        .flat_map(|(first, last)| [first, last])
        .collect();
    edges.extend(runs.last().map(|run| run.end));
    Ok(edges)
}

fn holes(vm: &Vm) -> Checked {
    let zeros = vm.fact("holes")? == "zero";
    let map = vm.map()?;
    let end = map.iter().filter(|region| region.is_ram()).map(|region| region.range.end).max().unwrap_or(0);
    for gpa in edges(vm)? {
        match vm.mailbox.bytes().read_at(&mut [0xee; 1], gpa) {
            _ if gpa >= end => same!(vm.mem(gpa, 1)?.len(), 0, "bytes read past the end of mem"),
            Ok(got) if zeros => same!((got, vm.mem(gpa, 1)?), (1, vec![0]), "a hole at {gpa:#x}"),
            Err(error) if !zeros => same!(error.raw_os_error(), Some(EIO.0), "a read of a hole at {gpa:#x}"),
            other => return Err(format!("a read of the hole at {gpa:#x} gave {other:?}")),
        }
        let error = vm.mailbox.bytes().write_at(b"x", gpa).err().and_then(|error| error.raw_os_error());
        same!(error, Some(EIO.0), "the errno of a write to the hole at {gpa:#x}");
        let errors = vm.text("errors")?;
        ensure!(
            errors.lines().last().is_some_and(|line| line.contains("path=mem errno=EIO why=")),
            "errors does not tell of the write at {gpa:#x}"
        );
    }
    // Across into a hole: what lies before it is written (with what it had), and the count is short.
    let ends = map.iter().filter(|region| region.is_ram()).map(|region| region.range.end);
    for gpa in ends.filter(|gpa| map.iter().all(|region| region.range.start != *gpa)) {
        let mut bytes = vm.mem(gpa - 8, 8)?;
        bytes.extend(b"nowhere!");
        let done = vm.mailbox.bytes().write_at(&bytes, gpa - 8);
        same!(done.map_err(|error| error.to_string())?, 8, "bytes written across {gpa:#x} into a hole");
    }
    Ok(())
}

fn walk(vm: &Vm) -> Checked {
    let mem = vm.mailbox.bytes();
    let size = mem.metadata().map_err(|error| format!("stat mem: {error}"))?.len();
    let (mut at, mut found) = (0, Vec::new());
    loop {
        let start = match seek(mem, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(format!("SEEK_DATA from {at:#x}: {error}")),
        };
        at = seek(mem, SeekFrom::Hole(start))
            .map_err(|error| format!("SEEK_HOLE from {start:#x}: {error}"))?;
        ensure!(at > start, "SEEK_HOLE from {start:#x} gave {at:#x}");
        found.push(start..at);
    }
    same!(found, data(&vm.map()?, size), "the data that seeks find");
    Ok(())
}
