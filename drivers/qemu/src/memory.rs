//! Guest memory: through the file of a shared backend, else through the memory of the QEMU process.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use rustix::io::Errno;
use vmtree_api::{Block, BlockRef, Error, ErrorKind, Gpa, Memory, MemoryMap, Region, RegionKind, Result};

use crate::backing::{self, Backing, Ground, Vma};
use crate::layout::{self, Container, Layout, Piece};
use crate::qmp::Qmp;
use crate::sys;

const READ: &str = "read memory";
const WRITE: &str = "write memory";

/// The memory of a QEMU process.
pub struct GuestMemory {
    pid: u32,
    ended: Arc<AtomicBool>,
    state: RwLock<Arc<State>>,
}

/// One layout and the ways into it.
#[derive(Default)]
struct State {
    layout: Layout,
    map: Arc<MemoryMap>,
    /// One for each container.
    stores: Vec<Arc<Store>>,
}

/// A container and how its bytes are had.
struct Store {
    base: u64,
    /// The name of its block, a plain file name.
    name: Arc<str>,
    bytes: u64,
    backing: Option<Backing>,
    /// What QEMU had mapped there.
    ground: Vec<Ground>,
}

impl GuestMemory {
    /// The memory of process `pid`, still without a layout; `ended` is set when the process has ended.
    #[must_use]
    pub fn new(pid: u32, ended: Arc<AtomicBool>) -> Self {
        Self { pid, ended, state: RwLock::default() }
    }

    /// Reads the layout again. If it has changed, the map's generation grows.
    ///
    /// # Errors
    /// Those of [`layout::read`]; then the layout is as it was.
    pub fn refresh(&self, qmp: &Qmp) -> Result<()> {
        self.take(layout::read(qmp)?);
        Ok(())
    }

    /// The same with one look only: a layout that changes at this moment is left for the next time. Returns whether
    /// it was read.
    ///
    /// # Errors
    /// Those of [`layout::look`].
    pub fn refresh_once(&self, qmp: &Qmp) -> Result<bool> {
        let layout = layout::look(qmp)?;
        Ok(layout.map(|layout| self.take(layout)).is_some())
    }

    fn take(&self, layout: Layout) {
        let vmas = backing::mappings(self.pid);
        let old = self.state();
        let stays =
            |(container, store): (&Container, &Arc<Store>)| store.ground == backing::ground(&vmas, container);
        if old.layout == layout && layout.containers.iter().zip(&old.stores).all(stays) {
            return;
        }
        let stores = self.stores(&layout, &vmas);
        self.replace(old.map.generation() + 1, layout, stores);
    }

    /// Takes out of the map what QEMU has unmapped or replaced since the layout was read, and returns whether there
    /// was such. Needs no monitor.
    pub fn prune(&self) -> bool {
        let vmas = backing::mappings(self.pid);
        // None are shown of a process that has ended.
        if vmas.is_empty() {
            return false;
        }
        let old = self.state();
        let lost =
            |(container, store): (&Container, &Arc<Store>)| store.ground != backing::ground(&vmas, container);
        let lost: Vec<bool> = old.layout.containers.iter().zip(&old.stores).map(lost).collect();
        if !lost.contains(&true) {
            return false;
        }
        let mut layout = old.layout.clone();
        let is_lost = |piece: &Piece| piece.at.is_some_and(|(index, _)| lost.get(index) == Some(&true));
        let before = layout.pieces.len();
        layout.pieces.retain(|piece| !is_lost(piece));
        if layout.pieces.len() == before {
            return false;
        }
        self.replace(old.map.generation() + 1, layout, old.stores.clone());
        true
    }

    fn replace(&self, generation: u64, layout: Layout, stores: Vec<Arc<Store>>) {
        let regions = layout.pieces.iter().map(|piece| region(piece, &stores)).collect();
        let map = Arc::new(MemoryMap::new(generation, regions));
        *self.state.write() = Arc::new(State { layout, map, stores });
    }

    fn stores(&self, layout: &Layout, vmas: &[Vma]) -> Vec<Arc<Store>> {
        let mut taken = BTreeSet::new();
        let store = |container: &Container| {
            let backing = backing::find(self.pid, vmas, container);
            let name = file_name(layout::plain_id(&container.name), &mut taken);
            let ground = backing::ground(vmas, container);
            let Container { base, bytes, .. } = *container;
            Arc::new(Store { base, name: name.into(), bytes, backing, ground })
        };
        layout.containers.iter().map(store).collect()
    }

    /// How the RAM of each container is had, for `info`.
    #[must_use]
    pub fn ways(&self) -> String {
        let state = self.state();
        let ram = |index: usize| {
            let of =
                |piece: &Piece| piece.kind == RegionKind::Ram && piece.at.is_some_and(|(at, _)| at == index);
            state.layout.pieces.iter().any(of)
        };
        let stores = state.stores.iter().enumerate().filter(|(index, _)| ram(*index));
        let ways = stores.map(|(_, store)| match &store.backing {
            Some(backing) if backing.memfd => format!("{} shared memfd", store.name),
            Some(_) => format!("{} shared file", store.name),
            None => format!("{} process_vm_readv", store.name),
        });
        ways.collect::<Vec<_>>().join(", ")
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read())
    }

    fn gone(&self, op: &'static str) -> Error {
        Error::new(ErrorKind::Gone, op, format!("QEMU process {} exited or its VM moved away", self.pid))
    }

    fn check_alive(&self, op: &'static str) -> Result<()> {
        if self.ended.load(Ordering::Acquire) { Err(self.gone(op)) } else { Ok(()) }
    }

    fn failed(&self, op: &'static str, gpa: Gpa, error: io::Error) -> Error {
        let pid = self.pid;
        match Errno::from_io_error(&error) {
            Some(Errno::SRCH) => self.gone(op),
            Some(Errno::PERM) => {
                let why = format!(
                    "the memory of process {pid} is closed to us; run vmtree as root or with CAP_SYS_PTRACE, \
                     or as QEMU's user with kernel.yama.ptrace_scope=0"
                );
                Error::new(ErrorKind::Denied, op, why)
            }
            _ => Error::new(ErrorKind::Io, op, format!("QEMU does not let {gpa} be had")).caused_by(error),
        }
    }
}

impl State {
    /// The stores that the map leads to.
    fn shown(&self) -> impl Iterator<Item = &Arc<Store>> {
        let used = |index| self.layout.pieces.iter().any(|piece| piece.at.is_some_and(|(at, _)| at == index));
        self.stores.iter().enumerate().filter(move |(index, _)| used(*index)).map(|(_, store)| store)
    }

    /// Where `bytes` from `gpa` on lie; they must be in one piece that holds data.
    fn locate(&self, op: &'static str, gpa: Gpa, bytes: usize) -> Result<(&Arc<Store>, u64)> {
        let pieces = &self.layout.pieces;
        let piece = pieces
            .get(pieces.partition_point(|piece| piece.end <= gpa.0))
            .filter(|piece| piece.start <= gpa.0);
        let inside = |piece: &&Piece| gpa.0.checked_add(bytes as u64).is_some_and(|end| end <= piece.end);
        let found = piece.filter(inside).and_then(|piece| {
            let (index, offset) = piece.at?;
            Some((self.stores.get(index)?, offset.checked_add(gpa.0 - piece.start)?))
        });
        found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, op, format!("no memory of {bytes} bytes at {gpa}"))
        })
    }
}

fn region(piece: &Piece, stores: &[Arc<Store>]) -> Region {
    let block = piece.at.and_then(|(index, offset)| {
        let store = stores.get(index).filter(|store| store.is_block())?;
        Some(BlockRef { name: Arc::clone(&store.name), offset })
    });
    Region { start: Gpa(piece.start), end: Gpa(piece.end), kind: piece.kind, block }
}

/// Makes a memory region's name a plain file name that is not yet in `taken`.
fn file_name(name: &str, taken: &mut BTreeSet<String>) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '-');
    let mut base: String = name.chars().map(|char| if plain(char) { char } else { '_' }).collect();
    if base.is_empty() || base.starts_with('.') {
        base.insert(0, '_');
    }
    let numbered = |number| if number == 1 { base.clone() } else { format!("{base}-{number}") };
    // One of `taken.len() + 1` different names is free.
    let name = (1..=taken.len() + 1).map(numbered).find(|name| !taken.contains(name)).unwrap_or(base.clone());
    taken.insert(name.clone());
    name
}

impl Store {
    /// A file that begins before its container is not shown: who knows whose bytes those are.
    fn is_block(&self) -> bool {
        self.backing.as_ref().is_some_and(|backing| backing.offset == 0)
    }

    /// Copies from the file, which can't raise SIGBUS as a mapping of it could.
    fn read(&self, pid: u32, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        match &self.backing {
            Some(backing) => backing.file.read_at(buf, backing.offset + offset),
            None => sys::read_process(pid, self.base + offset, buf),
        }
    }

    fn write(&self, pid: u32, offset: u64, data: &[u8]) -> io::Result<usize> {
        match &self.backing {
            None => sys::write_process(pid, self.base + offset, data),
            // hugetlbfs has no write(2).
            Some(backing) => match backing.file.write_at(data, backing.offset + offset) {
                Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                    sys::write_process(pid, self.base + offset, data)
                }
                result => result,
            },
        }
    }
}

/// Calls `step` with how many bytes are done until `total` are, or until it makes no progress.
fn repeat(total: usize, mut step: impl FnMut(usize) -> io::Result<usize>) -> io::Result<usize> {
    let mut done = 0;
    while done < total {
        match step(done) {
            Ok(0) if done == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(0) => break,
            Ok(bytes) => done += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

impl Memory for GuestMemory {
    fn map(&self) -> Arc<MemoryMap> {
        Arc::clone(&self.state.read().map)
    }

    fn blocks(&self) -> Vec<Block> {
        let state = self.state();
        let shown = state.shown().filter(|store| store.is_block());
        let blocks = shown.filter_map(|store| {
            let file = Arc::clone(&store.backing.as_ref()?.file);
            Some(Block { name: Arc::clone(&store.name), bytes: store.bytes, file })
        });
        let mut blocks: Vec<Block> = blocks.collect();
        blocks.sort_by(|a, b| a.name.cmp(&b.name));
        blocks
    }

    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<usize> {
        self.check_alive(READ)?;
        let state = self.state();
        let total = buf.len();
        let (store, offset) = state.locate(READ, gpa, total)?;
        let step =
            |done: usize| store.read(self.pid, offset + done as u64, buf.get_mut(done..).unwrap_or_default());
        repeat(total, step).map_err(|error| self.failed(READ, gpa, error))
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<usize> {
        self.check_alive(WRITE)?;
        let state = self.state();
        let (store, offset) = state.locate(WRITE, gpa, data.len())?;
        let step =
            |done: usize| store.write(self.pid, offset + done as u64, data.get(done..).unwrap_or_default());
        repeat(data.len(), step).map_err(|error| self.failed(WRITE, gpa, error))
    }

    fn lend(&self, gpa: Gpa, bytes: usize, take: &mut dyn FnMut(&[u8])) -> Result<bool> {
        self.check_alive(READ)?;
        let state = self.state();
        let (store, offset) = state.locate(READ, gpa, bytes)?;
        let mapping = store.backing.as_ref().and_then(|backing| backing.mapping.as_ref());
        Ok(mapping.is_some_and(|mapping| mapping.lend(offset, bytes, take)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unmapped_or_replaced_leaves_the_map() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 << 20).unwrap();
        let map = |file: &std::fs::File| sys::Mapping::new(file, 0, 2 << 20).unwrap();
        let mappings = [map(&file), map(&file)];
        let base = |mapping: &sys::Mapping| {
            let mut base = 0;
            assert!(mapping.lend(0, 1, &mut |bytes| base = bytes.as_ptr() as u64));
            base
        };
        let container = |name: &str, base| Container { name: name.to_owned(), base, bytes: 2 << 20 };
        let piece = |index: usize| {
            let start = (index as u64) << 30;
            Piece { start, end: start + (2 << 20), kind: RegionKind::Ram, at: Some((index, 0)) }
        };
        let [kept, gone] = mappings;
        let layout = Layout {
            pieces: vec![piece(0), piece(1)],
            containers: vec![container("kept", base(&kept)), container("gone", base(&gone))],
        };
        let memory = GuestMemory::new(std::process::id(), Arc::default());
        memory.take(layout.clone());
        assert!(!memory.prune());
        assert_eq!((memory.map().regions().len(), memory.blocks().len()), (2, 2));
        drop(gone);
        assert!(memory.prune() && !memory.prune());
        assert_eq!(
            (memory.map().regions().len(), memory.blocks().len(), memory.map().generation()),
            (1, 1, 2)
        );
        assert_eq!(memory.read(Gpa(1 << 30), &mut [0; 8]).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(memory.read(Gpa(0), &mut [0; 8]).unwrap(), 8);
        // The monitor says that all is there: what is mapped there now is taken.
        memory.take(layout);
        assert_eq!((memory.map().regions().len(), memory.map().generation()), (2, 3));
    }

    #[test]
    fn names_become_plain_and_unique() {
        let mut taken = BTreeSet::new();
        let names = ["pc.ram", "a/b", "a b", "", "..", "pc.ram", "a_b-2"];
        let made: Vec<String> = names.iter().map(|name| file_name(name, &mut taken)).collect();
        assert_eq!(made, ["pc.ram", "a_b", "a_b-2", "_", "_..", "pc.ram-2", "a_b-2-2"]);
    }

    #[test]
    fn progress_is_counted_up_to_the_first_failure() {
        let steps = |results: Vec<io::Result<usize>>| {
            let mut results = results.into_iter();
            repeat(10, move |_| results.next().unwrap())
        };
        let error = |kind: io::ErrorKind| Err(io::Error::from(kind));
        assert_eq!(steps(vec![Ok(4), error(io::ErrorKind::Interrupted), Ok(6)]).unwrap(), 10);
        assert_eq!(steps(vec![Ok(4), error(io::ErrorKind::Other)]).unwrap(), 4);
        assert_eq!(steps(vec![Ok(4), Ok(0)]).unwrap(), 4);
        assert_eq!(steps(vec![Ok(0)]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(steps(vec![error(io::ErrorKind::Other)]).unwrap_err().kind(), io::ErrorKind::Other);
        assert_eq!(repeat(0, |_| Ok(0)).unwrap(), 0);
    }
}
