//! The driver of a PV domain: memory, registers, and what it lacks.

use std::sync::Arc;

use vmtree_api::x86::{Reg, Segment};
use vmtree_api::{Driver, ErrorKind, Gpa, NoHost, RegValue, VcpuId};

use super::Ram;
use super::fake::Shared;
use super::fake_pv::EXTENDED;
use super::opening;
use super::pv_tables::{LEAF, M2p, OWN, SHARED, field, guest, machine, pv};
use crate::driver::open_domain;
use crate::hypervisor::Frames;
use crate::pv::context::BYTES;
use crate::registers::records::put;

/// A context of the kernel's: RFLAGS, CR0, CR3, CR4, CS of Xen's, FS of the GDT, whose frame is the guest's 5.
fn context() -> Vec<u8> {
    let mut context = vec![0; BYTES];
    let words = [
        (512, 4),
        (664, 0x202),
        (656, 0xe033),
        (704, 0x1b),
        (4832, machine(5)),
        (4960, 512),
        (4984, 0x8005_0033),
        (5008, 0x81_0000),
        (5016, 0x660),
        (5144, 0x7000),
        (5152, 0x8000),
    ];
    words.iter().for_each(|(at, word)| put(&mut context, *at, &u64::to_le_bytes(*word)));
    context
}

struct Guest {
    xen: Arc<Shared>,
    ram: Arc<Ram>,
    m2p: Arc<M2p>,
}

fn domain() -> Guest {
    let xen = Shared::new(2);
    xen.state.lock().contexts = vec![context(), Vec::new()];
    xen.state.lock().extended = EXTENDED.to_vec();
    let (ram, m2p) = guest(true);
    Guest { xen, ram, m2p }
}

impl Guest {
    fn try_open(&self) -> vmtree_api::Result<Box<dyn Driver>> {
        let ram = Arc::clone(&self.ram) as Arc<dyn Frames>;
        open_domain(opening(&self.xen, ram, Some(pv(Arc::clone(&self.m2p)))), Arc::new(NoHost))
    }

    fn open(&self) -> Box<dyn Driver> {
        self.try_open().unwrap()
    }
}

fn reads(driver: &dyn Driver, gpa: u64) -> [u8; 4] {
    let mut bytes = [0; 4];
    assert_eq!(driver.memory().read(Gpa(gpa), &mut bytes).unwrap(), 4);
    bytes
}

#[test]
fn memory_is_the_guests_own_frames_as_they_are_now() {
    let guest = domain();
    let driver = guest.open();
    let memory = driver.memory();
    assert_eq!((memory.map().ram_bytes(), memory.map().ram_end()), (OWN << 12, OWN << 12));
    // Across two frames that lie apart.
    assert_eq!(memory.write(Gpa(0x4fff), b"ab").unwrap(), 2);
    assert_eq!(guest.ram.word(machine(5), 0) as u8, b'b');
    assert_eq!(guest.ram.word(machine(4), 511) >> 56, u64::from(b'a'));
    assert_eq!(reads(&*driver, 0x5000), *b"b\0\0\0");
    // The guest gives frame 5 other memory, of which nobody is told.
    guest.ram.set(machine(20), 0, 0x6e65_7721);
    guest.ram.set(LEAF, 5, machine(20));
    assert_eq!(reads(&*driver, 0x5000), *b"!wen");
    guest.ram.set(LEAF, 5, u64::MAX);
    assert_eq!(memory.read(Gpa(0x5000), &mut [0]).unwrap_err().kind(), ErrorKind::NotFound);
    drop(driver);
    guest.xen.is_clean();
    assert_eq!(guest.ram.alive(), 0);
}

#[test]
fn page_tables_can_be_read_and_not_written() {
    let guest = domain();
    let driver = guest.open();
    guest.ram.tables.lock().insert(machine(5));
    assert_eq!(reads(&*driver, 0x5000), [0; 4]);
    let error = driver.memory().write(Gpa(0x5000), &[1]).unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.why().contains("page tables"), "{error}");
    assert_eq!(driver.memory().write(Gpa(0x4ffe), &[7; 4]).unwrap(), 2);
    assert_eq!(guest.ram.word(machine(5), 0), 0);
    assert_eq!(driver.memory().write(Gpa(0x4000), &[]).unwrap(), 0);
    drop(driver);
    guest.xen.is_clean();
}

#[test]
fn addresses_of_the_machine_lead_back() {
    let guest = domain();
    let driver = guest.open();
    let machine_memory = driver.memory().machine().unwrap();
    assert_eq!(machine_memory.gpa(Gpa(machine(9) << 12 | 0x123)).unwrap(), Gpa(0x9123));
    // A table of the guest's that does not agree with its other one.
    guest.m2p.0.lock().insert(machine(9), 8);
    guest.m2p.0.lock().insert(machine(10), u64::MAX);
    for lost in [machine(9), machine(10), 0x5000, u64::MAX >> 12] {
        assert_eq!(machine_memory.gpa(Gpa(lost << 12)).unwrap_err().kind(), ErrorKind::NotFound, "{lost:#x}");
    }
}

#[test]
fn registers_are_those_of_the_context() {
    let guest = domain();
    // 64-bit data of ring 3 with a base that counts for nothing.
    guest.ram.set(machine(5), 3, 0x00cf_f312_3456_ffff);
    let driver = guest.open();
    let registers = driver.registers().unwrap();
    let read = |reg: Reg| registers.read(VcpuId(0)).unwrap().get(reg.id()).unwrap();
    assert_eq!(read(Reg::Cr3), RegValue::Word(0x81_0000));
    let code = Segment { selector: 0xe033, base: 0, limit: u32::MAX, attr: 0xa0fb };
    assert_eq!(read(Reg::Cs), RegValue::Segment(code));
    let fs = Segment { selector: 0x1b, base: 0x7000, limit: u32::MAX, attr: 0xc0f3 };
    assert_eq!(read(Reg::Fs), RegValue::Segment(fs));
    let write = |reg: Reg, value| {
        registers.write(VcpuId(0), &[(Reg::Rax.id(), RegValue::Word(7)), (reg.id(), value)])
    };
    write(Reg::Fs, RegValue::Segment(Segment { base: 0x9000, ..fs })).unwrap();
    assert_eq!(read(Reg::Fs), RegValue::Segment(Segment { base: 0x9000, ..fs }));
    assert_eq!(read(Reg::Rax), RegValue::Word(7));
    assert_eq!(guest.xen.state.lock().extended, EXTENDED, "Xen resets it with the context");
    for (reg, value, kind) in [
        (Reg::Cr3, RegValue::Word(0), ErrorKind::Unsupported),
        (Reg::Fs, RegValue::Segment(code), ErrorKind::Unsupported),
        (Reg::Rip, RegValue::Word(1 << 47), ErrorKind::Invalid),
        // Xen leaves IF as it is.
        (Reg::Rflags, RegValue::Word(2), ErrorKind::Invalid),
        (Reg::Efer, RegValue::Word(0), ErrorKind::NotFound),
    ] {
        let all = [(Reg::Rax.id(), RegValue::Word(8)), (reg.id(), value)];
        assert_eq!(registers.write(VcpuId(0), &all).unwrap_err().kind(), kind, "{reg:?}");
        assert_eq!(read(Reg::Rax), RegValue::Word(7), "{reg:?}");
    }
    assert_eq!(registers.read(VcpuId(1)).unwrap_err().kind(), ErrorKind::Busy, "it is off");
    assert_eq!(registers.read(VcpuId(2)).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(guest.xen.state.lock().pauses, 0);
}

#[test]
fn whichever_call_fails_registers_are_set_or_not() {
    for fails in 0..12 {
        let guest = domain();
        let driver = guest.open();
        guest.xen.state.lock().fails_in = Some(fails);
        let registers = driver.registers().unwrap();
        let written = registers.write(VcpuId(0), &[(Reg::R15.id(), RegValue::Word(7))]);
        guest.xen.state.lock().fails_in = None;
        let wanted = RegValue::Word(if written.is_ok() { 7 } else { 0 });
        assert_eq!(registers.read(VcpuId(0)).unwrap().get(Reg::R15.id()).unwrap(), wanted, "call {fails}");
        assert_eq!(guest.xen.state.lock().extended, EXTENDED, "call {fails}");
        drop(driver);
        guest.xen.is_clean();
    }
}

#[test]
fn what_it_lacks_is_told_and_pauses_are_as_for_others() {
    let guest = domain();
    let driver = guest.open();
    let missing = [
        driver.events().err().unwrap(),
        driver.views().err().unwrap(),
        driver.injection().err().unwrap(),
        driver.registers().unwrap().msrs().err().unwrap(),
        driver.execution().unwrap().steps().unwrap_err(),
    ];
    for why in missing {
        assert!(why.to_string().contains("PV") && why.cure.is_some(), "{why}");
    }
    assert!(driver.facts().extra.contains(&("guest", "pv".to_owned())));
    let execution = driver.execution().unwrap();
    let step = execution.step(VcpuId(0), 1, &vmtree_api::Cancel::default());
    assert_eq!(step.unwrap_err().kind(), ErrorKind::Unsupported);
    let pause = execution.pause().unwrap();
    assert_eq!(guest.xen.state.lock().pauses, 1);
    driver.memory().write(Gpa(0), &[1]).unwrap();
    pause.resume().unwrap();
    drop(driver);
    guest.xen.is_clean();
}

#[test]
fn what_cant_be_opened_says_why() {
    let guest = domain();
    guest.ram.set(SHARED, field::CR3, 0);
    let error = guest.try_open().err().unwrap();
    assert!(error.kind() == ErrorKind::Busy && error.why().contains("starting"), "{error}");
    let guest = domain();
    guest.xen.state.lock().narrow = true;
    let error = guest.try_open().err().unwrap();
    assert!(error.kind() == ErrorKind::Unsupported && error.why().contains("32-bit"), "{error}");
}
