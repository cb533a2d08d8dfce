use super::*;
use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;
use vmtree_api::events::{EventSource, Injection};
use vmtree_api::views::Views;
use vmtree_api::{
    Arch, Block, Error, ErrorKind, Execution, Facts, Memory, Missing, Region, RegionKind, Registers, Result,
};

/// A VM whose memory is a table of bytes. `limit` is the most that one call does, `lends` whether it has a mapping.
struct Machine {
    facts: Facts,
    map: Arc<MemoryMap>,
    bytes: Mutex<BTreeMap<u64, u8>>,
    limit: usize,
    lends: bool,
    reads: Mutex<u64>,
    /// Where the guest's memory begins in the machine, if it is paravirtual.
    machine: Option<u64>,
}

const LAYOUT: &[(u64, u64, RegionKind)] = &[
    (0, 0x3000, RegionKind::Ram),
    (0x3000, 0x3800, RegionKind::Rom),
    (0x5000, 0x6000, RegionKind::Mmio),
    (0x8000, 0x9000, RegionKind::Ram),
];
const END: u64 = 0x9000;

fn machine(limit: usize, lends: bool) -> Arc<Machine> {
    let regions = LAYOUT.iter().map(|(start, end, kind)| Region {
        start: Gpa(*start),
        end: Gpa(*end),
        kind: *kind,
        block: None,
    });
    let facts = Facts { driver: "test", name: None, arch: Arch::X86_64, vcpus: None, extra: Vec::new() };
    let map = Arc::new(MemoryMap::new(1, regions.collect()));
    let (bytes, reads) = (Mutex::default(), Mutex::default());
    Arc::new(Machine { facts, map, bytes, limit, lends, reads, machine: None })
}

impl Machine {
    /// The bytes asked for, after the check that the caller has split the range.
    fn checked(&self, gpa: Gpa, bytes: usize) -> Result<Vec<u8>> {
        let inside = match self.map.at(gpa) {
            Span::Region(region) => region.holds_data() && gpa.0 + bytes as u64 <= region.end.0,
            Span::Hole(_) => false,
        };
        assert!(inside, "{gpa} + {bytes} is not inside one region that holds data");
        let table = self.bytes.lock();
        Ok((gpa.0..gpa.0 + bytes as u64).map(|at| table.get(&at).copied().unwrap_or(pattern(at))).collect())
    }
}

fn pattern(at: u64) -> u8 {
    (at % 251) as u8 | 1
}

impl Memory for Machine {
    fn map(&self) -> Arc<MemoryMap> {
        self.map.clone()
    }
    fn blocks(&self) -> Vec<Block> {
        Vec::new()
    }
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<usize> {
        *self.reads.lock() += 1;
        let bytes = self.checked(gpa, buf.len())?;
        let done = buf.len().min(self.limit);
        if done == 0 && !buf.is_empty() {
            return Err(Error::new(ErrorKind::Io, "read", "broken"));
        }
        buf[..done].copy_from_slice(&bytes[..done]);
        Ok(done)
    }
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<usize> {
        self.checked(gpa, data.len())?;
        let done = data.len().min(self.limit);
        if done == 0 && !data.is_empty() {
            return Err(Error::new(ErrorKind::Io, "write", "broken"));
        }
        self.bytes.lock().extend((gpa.0..).zip(data[..done].iter().copied()));
        Ok(done)
    }
    fn lend(&self, gpa: Gpa, bytes: usize, take: &mut dyn FnMut(&[u8])) -> Result<bool> {
        if self.lends {
            take(&self.checked(gpa, bytes)?);
        }
        Ok(self.lends)
    }
    fn machine(&self) -> Option<&dyn MachineMemory> {
        self.machine.map(|_| self as &dyn MachineMemory)
    }
}

impl MachineMemory for Machine {
    fn gpa(&self, machine: Gpa) -> Result<Gpa> {
        let gpa = self.machine.and_then(|start| machine.0.checked_sub(start));
        gpa.map(Gpa).ok_or_else(|| Error::new(ErrorKind::NotFound, "find", "none of the guest's"))
    }
}

impl Driver for Machine {
    fn facts(&self) -> &Facts {
        &self.facts
    }
    fn memory(&self) -> &dyn Memory {
        self
    }
    fn registers(&self) -> std::result::Result<&dyn Registers, Missing> {
        Err(Missing::new("none"))
    }
    fn execution(&self) -> std::result::Result<&dyn Execution, Missing> {
        Err(Missing::new("none"))
    }
    fn events(&self) -> std::result::Result<&dyn EventSource, Missing> {
        Err(Missing::new("none"))
    }
    fn views(&self) -> std::result::Result<&dyn Views, Missing> {
        Err(Missing::new("none"))
    }
    fn injection(&self) -> std::result::Result<&dyn Injection, Missing> {
        Err(Missing::new("none"))
    }
}

fn memory(machine: &Arc<Machine>, cache_ms: u64, holes: Holes) -> GuestMemory {
    GuestMemory::new(machine.clone(), PageCache::new(1 << 20, Duration::from_millis(cache_ms)), holes)
}

fn read(memory: &GuestMemory, offset: u64, len: usize) -> FsResult<Vec<u8>> {
    let mut calls = Vec::new();
    memory.read(offset, len, &mut |bytes| calls.push(bytes.to_vec()))?;
    assert_eq!(calls.len(), 1, "taken exactly once");
    Ok(calls.remove(0))
}

/// What a reader must see, from the layout alone.
fn expected(offset: u64, len: usize) -> Vec<u8> {
    let holds = |at| LAYOUT.iter().any(|(s, e, k)| (*s..*e).contains(&at) && *k != RegionKind::Mmio);
    let end = offset.saturating_add(len as u64).min(END);
    (offset..end.max(offset)).map(|at| if holds(at) { pattern(at) } else { 0 }).collect()
}

proptest! {
    #[test]
    fn any_range_reads_as_the_layout_says(
        offset in prop_oneof![0..0xa000_u64, Just(u64::MAX), Just(i64::MAX as u64)],
        len in 0..0x9000_usize,
        lends: bool,
        cache_ms in prop_oneof![Just(0), Just(60_000_u64)],
    ) {
        let machine = machine(usize::MAX, lends);
        let memory = memory(&machine, cache_ms, Holes::Zero);
        for _ in 0..2 {
            prop_assert_eq!(read(&memory, offset, len).unwrap(), expected(offset, len));
        }
    }

    #[test]
    fn any_write_changes_what_it_says_and_nothing_else(
        offset in 0..0xa000_u64,
        data in proptest::collection::vec(any::<u8>(), 1..0x4000),
        cache_ms in prop_oneof![Just(0), Just(60_000_u64)],
    ) {
        let machine = machine(usize::MAX, false);
        let memory = memory(&machine, cache_ms, Holes::Zero);
        read(&memory, 0, END as usize).unwrap();
        let written = memory.write(offset, &data);
        let mut wanted = expected(0, END as usize);
        if let Ok(count) = written {
            prop_assert!(count > 0);
            let start = offset as usize;
            wanted[start..start + count].copy_from_slice(&data[..count]);
        }
        prop_assert_eq!(read(&memory, 0, END as usize).unwrap(), wanted);
    }
}

#[test]
fn a_write_stops_at_a_hole_and_one_that_begins_in_it_is_refused() {
    let machine = machine(usize::MAX, false);
    let memory = memory(&machine, 0, Holes::Zero);
    assert_eq!(memory.write(0x3700, &[9; 0x1000]).unwrap(), 0x100);
    for nowhere in [0x4000, 0x5000, END, u64::MAX] {
        assert!(matches!(memory.write(nowhere, &[1]), Err(FsError::NoMemory(_))), "{nowhere:#x}");
    }
    assert_eq!(memory.write(0x4000, &[]).unwrap(), 0);
}

#[test]
fn holes_can_be_errors() {
    let memory = memory(&machine(usize::MAX, true), 0, Holes::Error);
    assert_eq!(read(&memory, 0x3000, 0x2000).unwrap().len(), 0x800);
    assert!(matches!(read(&memory, 0x5000, 8), Err(FsError::NoMemory(_))));
}

#[test]
fn what_a_driver_can_do_in_part_is_told_in_part() {
    let memory_of = |limit| memory(&machine(limit, false), 0, Holes::Zero);
    assert_eq!(read(&memory_of(100), 0, 0x200).unwrap(), expected(0, 100));
    assert_eq!(memory_of(100).write(0, &[1; 0x200]).unwrap(), 100);
    assert!(read(&memory_of(0), 0, 8).is_err());
    assert!(memory_of(0).write(0, &[1; 8]).is_err());
}

#[test]
fn copies_are_used_while_our_pause_holds_and_never_after() {
    let machine = machine(usize::MAX, false);
    let memory = memory(&machine, 0, Holes::Zero);
    memory.cache().set_paused(true);
    read(&memory, 0x10, 0x1800).unwrap();
    let asked = *machine.reads.lock();
    read(&memory, 0x20, 0x1000).unwrap();
    assert_eq!(*machine.reads.lock(), asked, "served from copies");
    machine.bytes.lock().insert(0x20, 0xee);
    memory.cache().set_paused(false);
    assert_eq!(read(&memory, 0x20, 1).unwrap(), [0xee]);
}

#[test]
fn seeks_follow_the_map() {
    let memory = memory(&machine(usize::MAX, true), 0, Holes::Zero);
    let seek = |offset, data| memory.seek(offset, data).ok();
    assert_eq!(seek(0, true), Some(0));
    assert_eq!(seek(0, false), Some(0x3800));
    assert_eq!(seek(0x3800, true), Some(0x8000));
    assert_eq!(seek(0x5000, false), Some(0x5000));
    assert_eq!(seek(0x8fff, false), Some(END));
    assert_eq!((seek(END, true), seek(END, false)), (None, None));
}

#[test]
fn a_paravirtual_guests_tables_hold_the_machines_addresses() {
    const START: u64 = 0x10_0000;
    let mut guest = Arc::into_inner(machine(usize::MAX, false)).unwrap();
    guest.machine = Some(START);
    // A table a level, one below the other in one page, and a page that is not the guest's.
    for (at, entry) in
        [(0, START + 0x1007), (0x1000, START + 0x2007), (0x2000, START + 0x1007), (0x1008, 0x5007)]
    {
        guest.bytes.lock().extend((at..).zip(u64::to_le_bytes(entry)));
    }
    let memory = memory(&Arc::new(guest), 0, Holes::Zero);
    let mode = vmtree_api::x86::PagingMode { cr0: 1 << 31, cr3: START, cr4: 1 << 5, efer: 0 };
    let space = crate::memory::VirtualMemory::new(&memory, mode);
    let found = space.translate(vmtree_api::Gva(0x123)).unwrap().unwrap();
    assert_eq!((found.gpa, found.entries().len()), (Gpa(0x2123), 4));
    assert!(space.translate(vmtree_api::Gva(0x1000)).is_err(), "that is another domain's");
    assert_eq!(space.write(vmtree_api::Gva(0x800), &[7]).unwrap(), 1);
    assert_eq!(read(&memory, 0x2800, 1).unwrap(), [7]);
}
