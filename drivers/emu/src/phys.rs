//! What lies behind the vCPUs: RAM, their local APICs, ports and the clock. Every guest access to physical memory
//! comes through here, page walks too, with the place that the vCPU's view has for it.

use std::sync::Arc;

use crate::apic::{Apic, Command, Destination, Signal};
use crate::events::armed::Armed;
use crate::events::queue::Queue;
use crate::ram::{APIC_BASE, APIC_BYTES, Ram};
use crate::slat::Slat;

/// The virtual time that an instruction takes, in ns.
pub const INSTRUCTION_NS: u64 = 10;

/// The machine around its vCPUs.
#[derive(Debug)]
pub struct World {
    /// All RAM.
    pub ram: Arc<Ram>,
    /// The local APIC of each vCPU.
    pub apics: Vec<Apic>,
    /// The views.
    pub slat: Slat,
    /// What is watched.
    pub armed: Armed,
    /// Where events go.
    pub queue: Arc<Queue>,
    /// Virtual time in ns.
    now: u64,
    /// When the first timer fires, in ns; `u64::MAX` for never.
    next: u64,
    /// The line that the guest is writing to its debug port.
    line: Vec<u8>,
}

/// What a physical address leads to.
enum Place {
    /// RAM, or nothing.
    Memory,
    /// The vCPU's own APIC, at this offset.
    Apic(u64),
}

impl World {
    /// A world at time 0.
    #[must_use]
    pub fn new(ram: Arc<Ram>, vcpus: u32) -> Self {
        let apics = (0..vcpus).map(|id| Apic::new(id as u8)).collect();
        let slat = Slat::new(vmtree_api::Memory::map(&*ram).ram_bytes() >> 12);
        let (armed, queue) = (Armed::default(), Arc::default());
        Self { ram, apics, slat, armed, queue, now: 0, next: u64::MAX, line: Vec::new() }
    }

    /// Virtual time in ns.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Time passes; timers whose time has come fire.
    pub fn advance(&mut self, ns: u64) {
        self.now = self.now.saturating_add(ns);
        if self.now >= self.next {
            let now = self.now;
            self.apics.iter_mut().for_each(|apic| apic.tick(now));
            self.plan();
        }
    }

    fn plan(&mut self) {
        self.next = self.apics.iter().filter_map(Apic::deadline).min().unwrap_or(u64::MAX);
    }

    /// What vCPU `vcpu` finds at `gpa`. Callers stay inside one page.
    fn place(&self, vcpu: usize, gpa: u64) -> Place {
        match gpa.checked_sub(APIC_BASE) {
            Some(offset) if offset < APIC_BYTES && self.apics.get(vcpu).is_some_and(Apic::present) => {
                Place::Apic(offset)
            }
            _ => Place::Memory,
        }
    }

    /// Reads inside one page. Where nothing is, all bits are ones.
    pub fn read(&mut self, vcpu: usize, gpa: u64, buf: &mut [u8]) {
        match self.place(vcpu, gpa) {
            Place::Memory if self.ram.load(gpa, buf) => {}
            Place::Memory if self.slat.load(gpa, buf) => {}
            Place::Memory => buf.fill(0xff),
            Place::Apic(offset) => self.read_apic(vcpu, offset, buf),
        }
    }

    /// Writes inside one page. Where nothing is, it is lost.
    pub fn write(&mut self, vcpu: usize, gpa: u64, data: &[u8]) {
        match self.place(vcpu, gpa) {
            Place::Memory => {
                let _ = self.ram.store(gpa, data) || self.slat.store(gpa, data);
            }
            Place::Apic(offset) => self.write_apic(vcpu, offset, data),
        }
    }

    /// Reads a page-table entry for the walk of `vcpu`.
    #[must_use]
    pub fn entry(&self, vcpu: usize, gpa: u64) -> u64 {
        let mut bytes = [0xff; 8];
        if matches!(self.place(vcpu, gpa), Place::Memory) {
            let _ = self.ram.load(gpa, &mut bytes) || self.slat.load(gpa, &mut bytes);
        }
        u64::from_le_bytes(bytes)
    }

    /// Sets accessed and dirty bits in a page-table entry.
    pub fn mark(&mut self, vcpu: usize, gpa: u64, bits: u64) {
        if matches!(self.place(vcpu, gpa), Place::Memory) && !self.ram.set_bits(gpa, bits) {
            let value = self.entry(vcpu, gpa) | bits;
            self.slat.store(gpa, &value.to_le_bytes());
        }
    }

    /// Registers are 4 bytes wide at multiples of 16; other shapes get the bytes of the register below them.
    fn read_apic(&mut self, vcpu: usize, offset: u64, buf: &mut [u8]) {
        let Some(apic) = self.apics.get(vcpu) else { return };
        let value = u64::from(apic.read(offset & !3, self.now)) >> (8 * (offset & 3));
        let bytes = value.to_le_bytes();
        for (to, from) in buf.iter_mut().zip(bytes.iter().chain(std::iter::repeat(&0))) {
            *to = *from;
        }
    }

    /// Writes of another shape than 4 aligned bytes are ignored (11.4.1 leaves them undefined).
    fn write_apic(&mut self, vcpu: usize, offset: u64, data: &[u8]) {
        let (Ok(bytes), true) = (<[u8; 4]>::try_from(data), offset.is_multiple_of(4)) else { return };
        let now = self.now;
        let Some(apic) = self.apics.get_mut(vcpu) else { return };
        let command = apic.write(offset, u32::from_le_bytes(bytes), now);
        if let Some(command) = command {
            self.send(vcpu, command);
        }
        self.plan();
    }

    fn send(&mut self, from: usize, command: Command) {
        let all = self.apics.iter_mut().enumerate().filter(|(index, apic)| match command.to {
            Destination::Myself => *index == from,
            Destination::All | Destination::Physical(0xff) => true,
            Destination::Others => *index != from,
            Destination::Physical(id) => *index == usize::from(id),
            Destination::Logical(to) => apic.logically(to),
        });
        let mut meant = all.map(|(_, apic)| apic);
        match command.what {
            Signal::Fixed(vector) => meant.for_each(|apic| apic.raise(vector)),
            // Of equals, the first.
            Signal::Lowest(vector) => {
                if let Some(apic) =
                    meant.by_ref().filter(|apic| apic.enabled()).min_by_key(|apic| apic.ppr() >> 4)
                {
                    apic.raise(vector);
                }
            }
            Signal::Nmi => meant.for_each(|apic| apic.nmi = true),
        }
    }

    /// Reads a port. No port of this machine has anything to say but the debug port, which names itself.
    #[must_use]
    pub fn port_in(&self, port: u16) -> u32 {
        // 0xe9 reads 0xe9: how guests find out that it is there. 0x3fd: the serial line's sender is empty.
        match port {
            0xe9 => 0xe9,
            0x3fd => 0x60,
            _ => u32::MAX,
        }
    }

    /// Writes a port: a byte for the debug port or the serial line goes to the log, line by line.
    pub fn port_out(&mut self, port: u16, value: u32) {
        if !matches!(port, 0xe9 | 0x3f8) {
            return;
        }
        match value as u8 {
            b'\n' => {
                log::debug!("guest: {}", String::from_utf8_lossy(&self.line).escape_debug());
                self.line.clear();
            }
            b'\r' => {}
            byte => self.line.push(byte),
        }
        if self.line.len() >= 200 {
            self.port_out(port, u32::from(b'\n'));
        }
    }
}
