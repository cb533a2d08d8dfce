//! The local APIC of one vCPU, in xAPIC mode (Intel SDM volume 3A, chapter 11).

/// One count of the timer before its divider, in ns: its clock is 100 MHz, as CPUID leaf 0x15 says.
const COUNT_NS: u64 = 10;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const SVR_ENABLE: u32 = 1 << 8;

/// Where the registers lie (table 11-1).
mod at {
    pub const ID: u64 = 0x20;
    pub const VERSION: u64 = 0x30;
    pub const TPR: u64 = 0x80;
    pub const PPR: u64 = 0xa0;
    pub const EOI: u64 = 0xb0;
    pub const LDR: u64 = 0xd0;
    pub const DFR: u64 = 0xe0;
    pub const SVR: u64 = 0xf0;
    pub const ISR: u64 = 0x100;
    pub const IRR: u64 = 0x200;
    pub const ICR_LOW: u64 = 0x300;
    pub const ICR_HIGH: u64 = 0x310;
    pub const LVT_TIMER: u64 = 0x320;
    pub const LVT_LAST: u64 = 0x370;
    pub const INITIAL: u64 = 0x380;
    pub const CURRENT: u64 = 0x390;
    pub const DIVIDE: u64 = 0x3e0;
}

/// A set of vectors.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Vectors([u64; 4]);

impl Vectors {
    fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] |= 1 << (vector & 63);
    }

    fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] &= !(1 << (vector & 63));
    }

    fn highest(&self) -> Option<u8> {
        let (index, word) = self.0.iter().enumerate().rev().find(|(_, word)| **word != 0)?;
        Some((index as u32 * 64 + word.ilog2()) as u8)
    }

    /// The 32 vectors that the register at `offset` shows; registers lie 16 bytes apart.
    fn shown(&self, offset: u64) -> u32 {
        let index = (offset >> 4 & 7) as usize;
        (self.0[index / 2] >> (32 * (index % 2))) as u32
    }
}

/// What a write to the interrupt command register asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Command {
    /// Whom it is for.
    pub to: Destination,
    /// What they get.
    pub what: Signal,
}

/// Whom an interprocessor interrupt is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Destination {
    /// The sender.
    Myself,
    /// Every vCPU.
    All,
    /// Every vCPU but the sender.
    Others,
    /// The one with this APIC id; 0xff is every one.
    Physical(u8),
    /// Those that this logical address matches.
    Logical(u8),
}

/// What an interprocessor interrupt brings.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Signal {
    /// An interrupt.
    Fixed(u8),
    /// An interrupt for one of them: the one with the lowest priority.
    Lowest(u8),
    /// A non-maskable interrupt.
    Nmi,
}

/// A local APIC.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Apic {
    id: u8,
    tpr: u8,
    svr: u32,
    ldr: u32,
    dfr: u32,
    isr: Vectors,
    irr: Vectors,
    icr: [u32; 2],
    /// Timer, thermal, performance, LINT0, LINT1, error.
    lvt: [u32; 6],
    divide: u32,
    initial: u32,
    /// When the timer fires next, in ns.
    deadline: Option<u64>,
    present: bool,
    /// An NMI waits.
    pub nmi: bool,
    ready: Option<u8>,
}

impl Apic {
    /// The state after power-up (11.4.7.1).
    #[must_use]
    pub fn new(id: u8) -> Self {
        Self {
            id,
            tpr: 0,
            svr: 0xff,
            ldr: 0,
            dfr: u32::MAX,
            isr: Vectors::default(),
            irr: Vectors::default(),
            icr: [0; 2],
            lvt: [MASKED; 6],
            divide: 0,
            initial: 0,
            deadline: None,
            present: true,
            nmi: false,
            ready: None,
        }
    }

    /// IA32_APIC_BASE.EN: whether it is there at all.
    #[must_use]
    pub fn present(&self) -> bool {
        self.present
    }

    /// Switches it off, or on again in its first state (11.4.3).
    pub fn set_present(&mut self, present: bool) {
        if present != self.present {
            *self = Self { present, nmi: self.nmi, ..Self::new(self.id) };
        }
    }

    /// The task priority, which is CR8 and more.
    #[must_use]
    pub fn tpr(&self) -> u8 {
        self.tpr
    }

    /// Sets the task priority.
    pub fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
        self.refresh();
    }

    /// The vector that waits and that the priorities let through.
    #[must_use]
    pub fn ready(&self) -> Option<u8> {
        self.ready
    }

    /// When the timer fires next, in ns.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Whether it takes interrupts.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.present && self.svr & SVR_ENABLE != 0
    }

    /// The processor priority (11.8.3.1).
    #[must_use]
    pub fn ppr(&self) -> u8 {
        let serviced = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= serviced >> 4 { self.tpr } else { serviced & 0xf0 }
    }

    fn refresh(&mut self) {
        let ppr = self.ppr();
        let waiting = if self.enabled() { self.irr.highest() } else { None };
        self.ready = waiting.filter(|vector| vector >> 4 > ppr >> 4);
    }

    /// An interrupt arrives. Vectors below 16 are illegal and dropped.
    pub fn raise(&mut self, vector: u8) {
        if self.enabled() && vector >= 16 {
            self.irr.insert(vector);
            self.refresh();
        }
    }

    /// The vCPU takes the interrupt that is ready.
    pub fn take(&mut self) -> Option<u8> {
        let vector = self.ready?;
        self.irr.remove(vector);
        self.isr.insert(vector);
        self.refresh();
        Some(vector)
    }

    /// Takes an interrupt that was taken out of service again: it was not delivered after all.
    pub fn retire(&mut self, vector: u8) {
        self.isr.remove(vector);
        self.refresh();
    }

    /// Whether a logical destination is for this one (11.6.2.2): the flat model, or the cluster one.
    #[must_use]
    pub fn logically(&self, to: u8) -> bool {
        let logical = (self.ldr >> 24) as u8;
        match self.dfr >> 28 {
            0xf => logical & to != 0,
            0 => (to >> 4 == 0xf || logical >> 4 == to >> 4) && logical & to & 0xf != 0,
            _ => false,
        }
    }

    /// Reads the register at `offset`, a multiple of 4; `now` in ns. Reserved places read 0.
    #[must_use]
    pub fn read(&self, offset: u64, now: u64) -> u32 {
        match offset {
            at::ID => u32::from(self.id) << 24,
            // Version 0x14, the highest LVT entry is number 5.
            at::VERSION => 0x0005_0014,
            at::TPR => u32::from(self.tpr),
            at::PPR => u32::from(self.ppr()),
            at::LDR => self.ldr,
            at::DFR => self.dfr,
            at::SVR => self.svr,
            at::ISR..=0x170 if offset & 15 == 0 => self.isr.shown(offset),
            at::IRR..=0x270 if offset & 15 == 0 => self.irr.shown(offset),
            at::ICR_LOW => self.icr[0],
            at::ICR_HIGH => self.icr[1],
            at::LVT_TIMER..=at::LVT_LAST if offset & 15 == 0 => self.lvt[lvt(offset)],
            at::INITIAL => self.initial,
            at::CURRENT => self.current(now),
            at::DIVIDE => self.divide,
            _ => 0,
        }
    }

    /// Writes the register at `offset`, a multiple of 4. Reserved places ignore it.
    pub fn write(&mut self, offset: u64, value: u32, now: u64) -> Option<Command> {
        match offset {
            at::TPR => self.tpr = value as u8,
            at::EOI => {
                if let Some(vector) = self.isr.highest() {
                    self.isr.remove(vector);
                }
            }
            at::LDR => self.ldr = value & 0xff00_0000,
            at::DFR => self.dfr = value | 0x0fff_ffff,
            at::SVR => {
                self.svr = value & 0x1ff;
                if !self.enabled() {
                    self.lvt.iter_mut().for_each(|entry| *entry |= MASKED);
                }
            }
            at::ICR_LOW => {
                // Delivery status (bit 12) reads idle: what is sent arrives at once.
                self.icr[0] = value & 0x000c_cfff;
                return command(self.icr);
            }
            at::ICR_HIGH => self.icr[1] = value & 0xff00_0000,
            at::LVT_TIMER..=at::LVT_LAST if offset & 15 == 0 => {
                let masked = if self.enabled() { 0 } else { MASKED };
                self.lvt[lvt(offset)] = value & 0x0003_a7ff | masked;
            }
            at::INITIAL => {
                self.initial = value;
                self.start(now);
            }
            at::DIVIDE => {
                self.divide = value & 0xb;
                if self.deadline.is_some() {
                    self.start(now);
                }
            }
            _ => {}
        }
        self.refresh();
        None
    }

    /// The length of one count in ns: the divider's bits 0, 1 and 3 are 2, 4, ..., 128, 1 (figure 11-10).
    fn count_ns(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        COUNT_NS << ((code + 1) & 7)
    }

    fn start(&mut self, now: u64) {
        let length = u64::from(self.initial) * self.count_ns();
        self.deadline = (self.initial != 0).then(|| now.saturating_add(length));
    }

    fn current(&self, now: u64) -> u32 {
        self.deadline.map_or(0, |deadline| (deadline.saturating_sub(now).div_ceil(self.count_ns())) as u32)
    }

    /// Lets the timer fire where its time has come.
    pub fn tick(&mut self, now: u64) {
        let Some(deadline) = self.deadline.filter(|deadline| *deadline <= now) else { return };
        let entry = self.lvt[0];
        self.deadline = None;
        if entry & PERIODIC != 0 {
            // Rounds that were missed are one interrupt: IRR holds no count.
            let length = u64::from(self.initial) * self.count_ns();
            let rounds = (now - deadline) / length.max(1) + 1;
            self.deadline = Some(deadline.saturating_add(rounds.saturating_mul(length)));
        }
        if entry & MASKED == 0 {
            self.raise(entry as u8);
        }
    }

    /// Whether the timer runs and will raise an interrupt that the task priority lets through.
    #[must_use]
    pub fn can_interrupt(&self) -> bool {
        let entry = self.lvt[0];
        let heard = entry & MASKED == 0 && entry as u8 >> 4 > self.ppr() >> 4;
        self.deadline.is_some() && self.enabled() && heard
    }
}

fn lvt(offset: u64) -> usize {
    ((offset - at::LVT_TIMER) >> 4) as usize
}

/// What an ICR asks for; `None` for what this machine accepts and ignores: SMI, INIT, start-up (all vCPUs run).
fn command(icr: [u32; 2]) -> Option<Command> {
    let low = icr[0];
    let what = match low >> 8 & 7 {
        0 => Signal::Fixed(low as u8),
        1 => Signal::Lowest(low as u8),
        4 => Signal::Nmi,
        _ => return None,
    };
    let address = (icr[1] >> 24) as u8;
    let to = match (low >> 18 & 3, low >> 11 & 1) {
        (1, _) => Destination::Myself,
        (2, _) => Destination::All,
        (3, _) => Destination::Others,
        (_, 0) => Destination::Physical(address),
        _ => Destination::Logical(address),
    };
    Some(Command { to, what })
}

#[cfg(test)]
#[path = "apic_tests.rs"]
mod tests;
