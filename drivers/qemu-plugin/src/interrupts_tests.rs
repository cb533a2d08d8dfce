//! Tests of deliveries on a vCPU that is made up.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// Registers, and memory from 0 on of which the rest is not mapped.
#[derive(Default)]
pub struct Fake {
    pub regs: HashMap<Reg, u64>,
    pub memory: Vec<u8>,
}

impl Vcpu for Fake {
    fn number(&self) -> u32 {
        3
    }

    fn get(&self, reg: Reg) -> u64 {
        self.regs.get(&reg).copied().unwrap_or(0)
    }

    fn set(&mut self, reg: Reg, value: u64) -> bool {
        self.regs.insert(reg, value);
        true
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> bool {
        let at = usize::try_from(address).unwrap_or(usize::MAX);
        let found = self.memory.get(at..at.saturating_add(buf.len()));
        found.is_some_and(|found| {
            buf.copy_from_slice(found);
            true
        })
    }

    fn write(&mut self, _: u64, _: &[u8]) -> bool {
        false
    }

    fn translate(&self, _: u64) -> Option<u64> {
        None
    }
}

/// Where things lie.
const IDT: usize = 0x1000;
const CODE: usize = 0x3000;
const STACK: usize = 0x4000;
const LMA: u64 = 1 << 10;

/// A vCPU in a mode, with the handler of each of these vectors.
pub fn fake(mode: Mode, handlers: &[(u8, u64)]) -> (Fake, Tracked) {
    let mut fake = Fake { memory: vec![0; 0x5000], ..Fake::default() };
    fake.regs.insert(Reg::Cr0, u64::from(mode != Mode::Real));
    fake.regs.insert(Reg::Efer, if mode == Mode::Long { LMA } else { 0 });
    for (vector, handler) in handlers {
        let [a, b, c, d, e, f, g, h] = handler.to_le_bytes();
        let gate = [a, b, 8, 0, 0, 0x8e, c, d, e, f, g, h, 0, 0, 0, 0];
        let (at, gate) = match mode {
            Mode::Real => (usize::from(*vector) * 4, vec![a & 0xf, 0, a >> 4 | b << 4, b >> 4]),
            Mode::Protected => (IDT + usize::from(*vector) * 8, gate[..8].to_vec()),
            Mode::Long => (IDT + usize::from(*vector) * 16, gate.to_vec()),
        };
        fake.memory[at..at + gate.len()].copy_from_slice(&gate);
    }
    let mut tracked = Tracked::default();
    tracked.idt = (mode != Mode::Real).then_some((IDT as u64, 0xfff));
    (fake, tracked)
}

impl Fake {
    /// What a delivery pushes, and the instruction that it came from.
    fn delivered(&mut self, mode: Mode, error: Option<u32>, code: &[u8]) {
        let words = error.into_iter().map(u64::from).chain([CODE as u64, 0x33, 0x202, 0x7000, 0x2b]);
        let bytes: Vec<u8> = match mode {
            Mode::Long => words.flat_map(u64::to_le_bytes).collect(),
            // From segment 0x200.
            Mode::Real => {
                [CODE as u16 - 0x2000, 0x200, 2, 0, 0, 0].into_iter().flat_map(u16::to_le_bytes).collect()
            }
            Mode::Protected => words.flat_map(|word| (word as u32).to_le_bytes()).collect(),
        };
        let rsp = STACK - bytes.len();
        self.memory[rsp..STACK].copy_from_slice(&bytes);
        self.memory[CODE..CODE + code.len()].copy_from_slice(code);
        self.regs.insert(Reg::Rsp, rsp as u64);
    }
}

/// A row: what it is for QEMU, the handler, the error code on the stack, the code at its origin; the vector and the type.
type Row<'a> = (Delivery, u64, Option<u32>, &'a [u8], Option<u8>, u32);

fn check(mode: Mode, handlers: &[(u8, u64)], rows: &[Row<'_>]) {
    for (delivery, to, error, code, vector, kind) in rows {
        let (mut fake, mut tracked) = fake(mode, handlers);
        fake.delivered(mode, *error, code);
        // Once as it is found, once as it is known.
        for _ in 0..2 {
            let event = event(&fake, &mut tracked, *delivery, CODE as u64, *to);
            let found = (event.flags & flag::NO_VECTOR == 0).then_some(event.index as u8);
            let told = (event.flags & flag::ERROR != 0).then_some(event.extra);
            assert_eq!(
                (found, event.index >> 8, told),
                (*vector, *kind, *error),
                "{mode:?} {to:#x} {code:x?}"
            );
            assert_eq!(index(&event), vector.map_or(u32::MAX, u32::from));
            assert_eq!(
                (event.rip, event.vcpu),
                (CODE as u64 - if mode == Mode::Real { 0x2000 } else { 0 }, 3)
            );
            assert_eq!(event.cpl, if mode == Mode::Real { 0 } else { 3 });
        }
    }
}

#[test]
fn each_delivery_counts_once() {
    let mut seen = Deliveries::default();
    // Raised, then delivered; the place of the first is not exact.
    assert_eq!(seen.see(2, 7, 7), None);
    assert_eq!(seen.see(1, 9, 100), Some(Delivery::Exception));
    // From outside.
    assert_eq!(seen.see(1, 7, 100), Some(Delivery::Interrupt));
    // Told both ways after its delivery.
    assert_eq!(seen.see(2, 8, 100), Some(Delivery::Exception));
    assert_eq!(seen.see(1, 8, 100), None);
    assert_eq!(seen.see(1, 8, 100), Some(Delivery::Interrupt));
}

#[test]
fn a_vector_is_found_by_its_handler_in_every_mode() {
    use Delivery::{Exception, Interrupt};
    let handlers = [(2, 0x110), (3, 0x120), (13, 0x130), (14, 0x140), (0x20, 0x150), (0x80, 0x160)];
    let rows: &[Row<'_>] = &[
        (Exception, 0x140, Some(6), &[0x90], Some(14), 2),
        (Exception, 0x130, Some(0x402), &[0xcd, 0x80], Some(13), 2),
        (Exception, 0x120, None, &[0xcc], Some(3), 5),
        (Exception, 0x160, None, &[0xcd, 0x80], Some(0x80), 3),
        (Interrupt, 0x150, None, &[0x90], Some(0x20), 0),
        (Interrupt, 0x110, None, &[0x90], Some(2), 1),
        // Raised, and lost.
        (Exception, 0x150, None, &[0x90], Some(0x20), 0),
    ];
    check(Mode::Long, &handlers, rows);
    check(Mode::Protected, &handlers, rows);
    let real: &[Row<'_>] = &[
        (Exception, 0x120, None, &[0xcd, 3], Some(3), 3),
        (Exception, 0x160, None, &[0xcd, 0x80], Some(0x80), 3),
        // That of the timer, before the interrupt controller is set up.
        (Interrupt, 0x130, None, &[0x90], Some(13), 0),
    ];
    check(Mode::Real, &handlers, real);
}

#[test]
fn a_delivery_whose_vector_is_not_known_is_told_without_it() {
    use Delivery::{Exception, Interrupt};
    let shared =
        [(8, 0x110), (13, 0x110), (6, 0x110), (0x20, 0x110), (0x21, 0x120), (0x22, 0x120), (9, 0x120)];
    let rows: &[Row<'_>] = &[
        // No such handler.
        (Exception, 0x999, Some(4), &[0x90], None, 2),
        (Exception, 0x999, None, &[0xcc], None, 5),
        (Interrupt, 0x999, None, &[0x90], None, 0),
        // One of several: what else is seen may leave one alone.
        (Exception, 0x110, Some(0), &[0x90], None, 2),
        (Exception, 0x110, None, &[0x90], Some(6), 2),
        (Interrupt, 0x110, None, &[0x90], Some(0x20), 0),
        (Exception, 0x120, None, &[0xcd, 0x22], Some(0x22), 3),
        (Interrupt, 0x120, None, &[0x90], None, 0),
        (Exception, 0x120, None, &[0x90], Some(9), 2),
    ];
    check(Mode::Long, &shared, rows);
    // A table that nobody saw loaded.
    let (mut fake, _) = fake(Mode::Long, &[(14, 0x140)]);
    fake.delivered(Mode::Long, Some(2), &[0x90]);
    let event = event(&fake, &mut Tracked::default(), Delivery::Exception, CODE as u64, 0x140);
    assert_eq!((event.index, event.extra), (2 << 8, 2));
    assert_eq!(event.flags, flag::NO_VECTOR | flag::ERROR);
}

#[test]
fn a_table_is_read_as_lidt_reads_it() {
    let table = [0xff, 3, 0x78, 0x56, 0x34, 0x12, 0xff, 0xff, 0xff, 0xff];
    let rows: &[(Mode, &[u8], u64)] = &[
        // lidt [0x4800]; in real mode with cs: before it, and there of 16 or 32 bits.
        (Mode::Long, &[0x0f, 0x01, 0x1c, 0x25, 0, 0x48, 0, 0], 0xffff_ffff_1234_5678),
        (Mode::Protected, &[0x0f, 0x01, 0x1d, 0, 0x48, 0, 0], 0x1234_5678),
        (Mode::Real, &[0x2e, 0x0f, 0x01, 0x1e, 0, 0x28], 0x34_5678),
        (Mode::Real, &[0x66, 0x2e, 0x0f, 0x01, 0x1e, 0, 0x28], 0x1234_5678),
    ];
    for (mode, code, base) in rows {
        let (mut fake, _) = fake(*mode, &[]);
        fake.regs.insert(Reg::Cs, 0x200);
        fake.memory[CODE..CODE + code.len()].copy_from_slice(code);
        fake.memory[0x4800..0x480a].copy_from_slice(&table);
        let rip = CODE as u64 - if *mode == Mode::Real { 0x2000 } else { 0 };
        assert_eq!(loaded_table(&fake, rip), Some((*base, 0x3ff)), "{mode:?} {code:x?}");
    }
}

proptest! {
    #[test]
    fn any_guest_is_told_of_without_harm(
        regs in proptest::collection::vec(any::<(u8, u64)>(), 0..8),
        memory in proptest::collection::vec(any::<u8>(), 0..600),
        idt in any::<Option<(u64, u16)>>(),
        (from, to, exception) in any::<(u64, u64, bool)>(),
    ) {
        let mut fake = Fake { memory, ..Fake::default() };
        fake.regs.extend(regs.into_iter().filter_map(|(reg, value)| Some((Reg::try_from(reg % 40).ok()?, value))));
        let mut tracked = Tracked::default();
        tracked.idt = idt.map(|(base, limit)| (if exception { base } else { base & 0xff }, limit));
        let delivery = if exception { Delivery::Exception } else { Delivery::Interrupt };
        let event = event(&fake, &mut tracked, delivery, from, to);
        prop_assert!(event.index >> 8 < 6);
        prop_assert!(event.flags & flag::NO_VECTOR == 0 || event.index & 0xff == 0);
    }
}
