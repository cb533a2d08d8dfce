//! The file behind a container of guest RAM, where QEMU maps one shared.

use std::fs::{self, File, Metadata, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::layout::Container;
use crate::sys::Mapping;

/// A mapping of the process, as /proc/PID/maps shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Vma {
    start: u64,
    end: u64,
    shared: bool,
    offset: u64,
    device: (u32, u32),
    inode: u64,
    path: String,
}

/// A file whose pages are the guest's memory.
#[derive(Debug)]
pub struct Backing {
    /// The file, open for reading and writing.
    pub file: Arc<File>,
    /// Where the container begins in the file.
    pub offset: u64,
    /// The container, mapped; `None` where the file can't be.
    pub mapping: Option<Mapping>,
    /// Whether the file has no path: a memfd.
    pub memfd: bool,
}

/// Reads the mappings of a process; none where that is not allowed.
#[must_use]
pub fn mappings(pid: u32) -> Vec<Vma> {
    // A path in it may hold any bytes.
    let text = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().filter_map(parse_vma).collect()
}

/// What lies under a range of the process's memory: enough to notice that it has been replaced or taken away.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ground {
    bytes: u64,
    shared: bool,
    device: (u32, u32),
    inode: u64,
    /// The offset in the file of the range's first byte; 0 where there is no file.
    offset: u64,
}

/// What lies under `container`, piece by piece; less than its whole length where a part is not mapped.
#[must_use]
pub fn ground(vmas: &[Vma], container: &Container) -> Vec<Ground> {
    let end = container.base.saturating_add(container.bytes);
    let mut pieces: Vec<Ground> = Vec::new();
    let mut reached = container.base;
    for vma in vmas {
        let (from, to) = (vma.start.max(reached), vma.end.min(end));
        if from >= to {
            continue;
        }
        if from > reached {
            break;
        }
        let offset = if vma.inode == 0 { 0 } else { vma.offset.saturating_add(from - vma.start) };
        let Vma { shared, device, inode, .. } = *vma;
        let next = Ground { bytes: to - from, shared, device, inode, offset };
        match pieces.last_mut() {
            // The kernel splits and joins mappings by what they are advised to be.
            Some(last) if last.is_followed_by(&next) => last.bytes += next.bytes,
            _ => pieces.push(next),
        }
        reached = to;
    }
    pieces
}

impl Ground {
    fn is_followed_by(&self, next: &Self) -> bool {
        let linear = self.inode == 0 || self.offset.checked_add(self.bytes) == Some(next.offset);
        let same = (self.shared, self.device, self.inode) == (next.shared, next.device, next.inode);
        same && linear
    }
}

/// The mappings that may be RAM that a device brings: aligned as QEMU aligns RAM. Where they change, memory may have
/// been plugged in or out.
#[must_use]
pub fn large(vmas: &[Vma]) -> Vec<(u64, u64)> {
    const ALIGNMENT: u64 = 2 << 20;
    let large = vmas.iter().filter(|vma| vma.start % ALIGNMENT == 0 && vma.end - vma.start >= ALIGNMENT);
    large.map(|vma| (vma.start, vma.end)).collect()
}

/// `START-END rwxs OFFSET MAJOR:MINOR INODE PATH` (proc_pid_maps(5)).
fn parse_vma(line: &str) -> Option<Vma> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let rights = words.next()?;
    let offset = hex(words.next()?)?;
    let (major, minor) = words.next()?.split_once(':')?;
    let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = words.next()?.parse().ok()?;
    let (start, end) = (hex(start)?, hex(end)?);
    if start >= end {
        return None;
    }
    let path = words.next().unwrap_or_default().trim_start().to_owned();
    Some(Vma { start, end, shared: rights.ends_with('s'), offset, device, inode, path })
}

/// Opens the file behind `container`; `None` where it is not one shared file from end to end, or we may not open it.
#[must_use]
pub fn find(pid: u32, vmas: &[Vma], container: &Container) -> Option<Backing> {
    let first = covering(vmas, container)?;
    let offset = first.offset.checked_add(container.base.checked_sub(first.start)?)?;
    let file = open(pid, first)?;
    // A mapping of more than the file holds would fault; QEMU makes none.
    let long_enough = file.metadata().ok()?.len() >= offset.checked_add(container.bytes)?;
    if !long_enough {
        return None;
    }
    let mapping = Mapping::new(&file, offset, container.bytes).ok();
    Some(Backing { file: Arc::new(file), offset, mapping, memfd: first.path.starts_with("/memfd:") })
}

/// The mapping that the container begins in, if it and its successors map one file shared and in one piece.
fn covering<'a>(vmas: &'a [Vma], container: &Container) -> Option<&'a Vma> {
    let end = container.base.checked_add(container.bytes)?;
    let index = vmas.iter().position(|vma| vma.start <= container.base && container.base < vma.end)?;
    let first = vmas.get(index)?;
    let mut reached = first.start;
    for vma in vmas.get(index..)? {
        let linear = vma.offset.checked_sub(first.offset) == vma.start.checked_sub(first.start);
        let same = vma.shared && vma.inode != 0 && (vma.device, vma.inode) == (first.device, first.inode);
        if !(same && linear && vma.start == reached) {
            return None;
        }
        reached = vma.end;
        if reached >= end {
            return Some(first);
        }
    }
    None
}

/// Opens the file of a mapping: through a descriptor of the process, else through the mapping itself (which needs
/// CAP_CHECKPOINT_RESTORE), else by its path.
fn open(pid: u32, vma: &Vma) -> Option<File> {
    let descriptors =
        fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    let mapped = PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end));
    let named = PathBuf::from(format!("/proc/{pid}/root{}", vma.path));
    descriptors.chain([mapped, named]).find_map(|path| {
        // Looked at before it is opened: to open some files, as a tape or a FIFO, has effects.
        is_of(vma, &fs::metadata(&path).ok()?).then_some(())?;
        let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
        is_of(vma, &file.metadata().ok()?).then_some(file)
    })
}

fn is_of(vma: &Vma, metadata: &Metadata) -> bool {
    let device = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
    metadata.is_file() && metadata.ino() == vma.inode && device == vma.device
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vmas(text: &str) -> Vec<Vma> {
        text.lines().filter_map(parse_vma).collect()
    }

    fn container(base: u64, bytes: u64) -> Container {
        Container { name: "m".to_owned(), base, bytes }
    }

    #[test]
    fn one_shared_file_from_end_to_end_is_found() {
        let vmas = vmas(
            "1000-3000 rw-s 00002000 00:01 5                          /memfd:m (deleted)\n\
             3000-4000 r--s 00004000 00:01 5                          /memfd:m (deleted)\n\
             4000-5000 rw-p 00000000 00:00 0\n\
             6000-8000 rw-p 00000000 fe:00 9                          /a b\n\
             8000-9000 rw-s 00000000 00:01 5                          /memfd:m (deleted)\n\
             9000-a000 rw-s 00000000 00:01 6                          /memfd:n (deleted)\n",
        );
        assert_eq!(vmas.len(), 6);
        let covers = |base, bytes| covering(&vmas, &container(base, bytes)).is_some();
        assert!(covers(0x1000, 0x3000) && covers(0x2000, 0x1000));
        assert!(!covers(0x1000, 0x3001), "private memory behind it");
        assert!(!covers(0x6000, 0x1000), "private");
        assert!(!covers(0x8000, 0x2000), "two files");
        assert!(!covers(0, 1) && !covers(u64::MAX, 1) && !covers(0x5000, 1));
        assert_eq!(vmas[3].path, "/a b");
    }

    #[test]
    fn the_ground_changes_with_what_is_mapped_and_not_with_how_it_is_split() {
        let whole = vmas("1000-5000 rw-s 00002000 00:01 5 /m\n5000-9000 rw-p 00000000 00:00 0\n");
        let split = vmas(
            "1000-2000 rw-s 00002000 00:01 5 /m\n2000-5000 r--s 00003000 00:01 5 /m\n\
             5000-6000 rw-p 00000000 00:00 0\n6000-9000 rw-p 00000000 00:00 0\n",
        );
        let at = container(0x1800, 0x6000);
        assert_eq!(ground(&whole, &at), ground(&split, &at));
        assert_eq!(ground(&whole, &at).iter().map(|ground| ground.bytes).sum::<u64>(), 0x6000);
        let others = [
            "1000-5000 rw-s 00002000 00:01 6 /m\n5000-9000 rw-p 00000000 00:00 0\n",
            "1000-5000 rw-s 00003000 00:01 5 /m\n5000-9000 rw-p 00000000 00:00 0\n",
            "1000-5000 rw-s 00002000 00:01 5 /m\n6000-9000 rw-p 00000000 00:00 0\n",
            "1000-5000 rw-s 00002000 00:01 5 /m\n",
            "",
        ];
        for other in others {
            assert_ne!(ground(&whole, &at), ground(&vmas(other), &at), "{other}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(line in "[0-9a-f]{0,4}-[0-9a-f]{0,20} [rwxps-]{0,4} [0-9a-f]{0,20} [0-9:]{0,6} [0-9]{0,3}", text: String, base: u64, bytes: u64) {
            let mut parsed = vmas(&format!("{line}\n{line}\n{text}"));
            parsed.extend(vmas(&text));
            let _ = covering(&parsed, &container(base, bytes));
            let _ = (ground(&parsed, &container(base, bytes)), large(&parsed));
        }
    }
}
