//! What the driver asks of libkvmi, as small traits: the real one is in `sys`, tests have one of their own.

use std::time::Duration;

/// Why something was not done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// The hypervisor refused it with this errno; the connection stands.
    Errno(i32),
    /// The connection is gone, and why.
    Gone(String),
}

/// What a call comes to.
pub type Answer<T> = Result<T, Refusal>;

/// The errno numbers that KVMI uses (Linux).
#[allow(missing_docs, reason = "the constants bear errno's names")]
pub mod errno {
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const EAGAIN: i32 = 11;
    pub const ENOMEM: i32 = 12;
    pub const EBUSY: i32 = 16;
    pub const EINVAL: i32 = 22;
    pub const ENOSYS: i32 = 38;
    pub const EOPNOTSUPP: i32 = 95;
}

/// The order of KVM's `struct kvm_regs`: RAX RBX RCX RDX RSI RDI RSP RBP R8..R15 RIP RFLAGS.
pub type General = [u64; 18];

/// A segment register as KVM has it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[allow(missing_docs, reason = "the fields bear the names of struct kvm_segment")]
pub struct RawSegment {
    pub base: u64,
    pub limit: u32,
    pub selector: u16,
    pub kind: u8,
    pub present: u8,
    pub dpl: u8,
    pub db: u8,
    pub s: u8,
    pub l: u8,
    pub g: u8,
    pub avl: u8,
    pub unusable: u8,
}

/// The registers of a vCPU as KVM has them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Raw {
    /// `struct kvm_regs`.
    pub general: General,
    /// CS DS ES FS GS SS TR LDTR.
    pub segments: [RawSegment; 8],
    /// Base and limit of GDTR and IDTR.
    pub tables: [(u64, u16); 2],
    /// CR0 CR2 CR3 CR4 CR8 EFER and the APIC's base.
    pub control: [u64; 7],
    /// MSRs by index.
    pub msrs: Vec<(u32, u64)>,
}

/// What happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(missing_docs, reason = "the fields bear the protocol's names")]
pub enum Kind {
    Cr { cr: u16, old: u64, new: u64 },
    Msr { msr: u32, old: u64, new: u64 },
    Breakpoint { gpa: u64, len: u8 },
    Fault { gva: u64, gpa: u64, access: u8 },
    Descriptor { table: u8, write: bool },
    Cpuid { leaf: u32, subleaf: u32, len: u8 },
    SingleStep,
    Pause,
    Unhook,
    Other(u8),
}

/// An event, as the hypervisor tells of it. Its vCPU stands until it is answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Told {
    /// The number of the message, by which it is answered.
    pub seq: u32,
    /// The vCPU.
    pub vcpu: u16,
    /// The view that it runs on.
    pub view: u16,
    /// Its registers.
    pub raw: Raw,
    /// What happened.
    pub kind: Kind,
}

/// An answer to an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reply {
    /// It takes place.
    Continue,
    /// The write of a control register or an MSR takes place with this value.
    Value(u64),
    /// The guest goes on at RIP: the instruction is tried anew.
    Retry,
}

/// What can be switched on for a vCPU.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Control {
    /// A kind of event.
    Event(u8),
    /// Writes of a control register; its kind of event is on too.
    Cr(u8),
    /// Writes of an MSR; its kind of event is on too.
    Msr(u32),
    /// An event after each instruction.
    Step,
}

/// The numbers of the kinds of event.
#[allow(missing_docs, reason = "the constants bear the protocol's names")]
pub mod kind {
    pub const UNHOOK: u8 = 0;
    pub const CR: u8 = 1;
    pub const MSR: u8 = 2;
    pub const BREAKPOINT: u8 = 4;
    pub const PF: u8 = 6;
    pub const DESCRIPTOR: u8 = 8;
    pub const PAUSE: u8 = 10;
    pub const SINGLESTEP: u8 = 11;
    pub const CPUID: u8 = 13;
}

/// Physical memory.
pub trait Guest {
    /// How many vCPUs there are.
    fn vcpus(&mut self) -> Answer<u32>;
    /// The highest frame, or the one behind it: releases of KVM-VMI differ.
    fn max_gfn(&mut self) -> Answer<u64>;
    /// Reads inside one page.
    fn read(&mut self, gpa: u64, buf: &mut [u8]) -> Answer<()>;
    /// Writes inside one page.
    fn write(&mut self, gpa: u64, data: &[u8]) -> Answer<()>;
    /// Sets the rights (1 read, 2 write, 4 execute) of frames that follow each other, in one view.
    fn access(&mut self, view: u16, gfns: std::ops::Range<u64>, rights: u8) -> Answer<()>;
    /// The gpa behind an address of a vCPU; all ones where there is none.
    fn translate(&mut self, vcpu: u16, gva: u64) -> Answer<u64>;
}

/// Registers, pauses and exceptions.
pub trait Vcpus {
    /// All registers at one instant, with these MSRs.
    fn registers(&mut self, vcpu: u16, msrs: &[u32]) -> Answer<Raw>;
    /// Extended control register 0.
    fn xcr0(&mut self, vcpu: u16) -> Answer<u64>;
    /// Sets the general registers, once the vCPU's event is answered; only while it waits for that.
    fn set_general(&mut self, vcpu: u16, general: &General) -> Answer<()>;
    /// Asks all vCPUs to stop; each tells of it by an event.
    fn pause_all(&mut self) -> Answer<()>;
    /// Asks one vCPU to stop.
    fn pause(&mut self, vcpu: u16) -> Answer<()>;
    /// Makes an exception pending.
    fn inject(&mut self, vcpu: u16, vector: u8, error: u32, address: u64) -> Answer<()>;
}

/// Events.
pub trait Events {
    /// Whether this host has a kind of event and lets us switch it on.
    fn has_event(&mut self, kind: u8) -> Answer<()>;
    /// Whether this host has single-step.
    fn has_step(&mut self) -> Answer<()>;
    /// Switches something on or off for a vCPU.
    fn control(&mut self, vcpu: u16, what: Control, on: bool) -> Answer<()>;
    /// Asks to be told before the VM is stopped or moved.
    fn tell_unhook(&mut self) -> Answer<()>;
    /// An event that is there already.
    fn next(&mut self) -> Answer<Option<Told>>;
    /// Lets the vCPU of an event go on.
    fn reply(&mut self, told: &Told, reply: Reply) -> Answer<()>;
}

/// EPT views.
pub trait Epts {
    /// Whether this host has views.
    fn has_views(&mut self) -> Answer<()>;
    /// Makes one.
    fn create(&mut self) -> Answer<u16>;
    /// Removes one.
    fn destroy(&mut self, view: u16) -> Answer<()>;
    /// Puts a vCPU on one.
    fn switch(&mut self, vcpu: u16, view: u16) -> Answer<()>;
    /// Shows another frame in the place of one.
    fn change(&mut self, view: u16, gfn: u64, to: u64) -> Answer<()>;
    /// Makes a frame outside the guest's map.
    fn alloc(&mut self, gfn: u64) -> Answer<()>;
    /// Takes such a frame away.
    fn free(&mut self, gfn: u64) -> Answer<()>;
}

/// The connection.
pub trait Line {
    /// Waits until something comes from the hypervisor, or [`Wake::wake`] is called, or the time is over.
    fn wait(&mut self, timeout: Duration);
    /// Ends it.
    fn close(&mut self);
}

/// Ends a [`Line::wait`] from another thread.
pub trait Wake: Send + Sync {
    /// Ends it, or the next one if none is under way.
    fn wake(&self);
}

/// All of it. It stays on the thread that made it.
pub trait Port: Guest + Vcpus + Events + Epts + Line {}

impl<T: Guest + Vcpus + Events + Epts + Line> Port for T {}
