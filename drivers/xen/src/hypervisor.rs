//! What the driver needs of Xen, as small traits: `sys` has them by Xen's libraries, the tests by a fake.
//!
//! All of it is used by one thread, but for [`Frames`] and the [`Bell`].

use std::io::Result;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::events::wire::Slot;

/// What Xen tells of a domain.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DomainInfo {
    /// Its number, which no later domain gets again before 32751 others.
    pub domid: u32,
    /// Hardware-virtualized: HVM or PVH. Else PV.
    pub hvm: bool,
    /// Being destroyed.
    pub dying: bool,
    /// Shut down or crashed: its vCPUs run no more.
    pub shutdown: bool,
    /// Paused by a tool.
    pub paused: bool,
    /// Its vCPUs, those that are off included.
    pub vcpus: u32,
    /// Its pages.
    pub pages: u64,
    /// How many it may have.
    pub max_pages: u64,
    /// Which devices Xen plays for it (XEN_X86_EMU_*).
    pub devices: u32,
    /// The frame of the page that it shares with Xen; the machine's frame of a PV domain.
    pub shared_info: u64,
}

/// How far a vCPU has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ran {
    /// It has halted.
    Halted,
    /// It is on a processor; one that is held may still be there for some microseconds.
    On,
    /// It stands still, after it has run for so many nanoseconds: they grow whenever it gets on.
    For(u64),
}

/// A whole domain and its vCPUs: what they are, and whether they run.
pub trait Domain {
    /// As it is now; `None` where there is no such domain.
    fn info(&self) -> Result<Option<DomainInfo>>;
    /// One more pause, counted by Xen.
    fn pause(&self) -> Result<()>;
    /// One pause less.
    fn unpause(&self) -> Result<()>;
    /// One more pause of a vCPU; the domain must be paused.
    fn pause_vcpu(&self, vcpu: u32) -> Result<()>;
    /// One pause of a vCPU less; the domain must be paused.
    fn unpause_vcpu(&self, vcpu: u32) -> Result<()>;
    /// Whether a vCPU stops behind each instruction.
    fn single_step(&self, vcpu: u32, on: bool) -> Result<()>;
    /// How far a vCPU has come.
    fn ran(&self, vcpu: u32) -> Result<Ran>;
}

/// What is injected by a vCPU's next entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Trap {
    /// Its vector.
    pub vector: u8,
    /// Its type (X86_ET_*).
    pub kind: u8,
    /// Its error code, where it has one.
    pub error: Option<u32>,
    /// The length of the instruction that raises it, for software interrupts.
    pub length: u8,
    /// CR2, for page faults.
    pub cr2: u64,
}

/// The state of vCPUs.
pub trait Context {
    /// All records of the domain at one instant (public/arch-x86/hvm/save.h).
    fn load(&self) -> Result<Vec<u8>>;
    /// Puts records in place.
    fn store(&self, records: &[u8]) -> Result<()>;
    /// One record of one vCPU, without its descriptor.
    fn record(&self, kind: u16, vcpu: u32, bytes: usize) -> Result<Vec<u8>>;
    /// Injects by the next entry of a vCPU.
    fn inject(&self, vcpu: u32, trap: Trap) -> Result<()>;
    /// Sends a message-signalled interrupt.
    fn message(&self, address: u64, data: u32) -> Result<()>;
    /// Makes an NMI pending.
    fn nmi(&self, vcpu: u32) -> Result<()>;
}

/// What Xen's monitor can be told to raise.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Intercept {
    /// Writes of a control register that change it.
    Control {
        /// Its number among VM_EVENT_X86_*.
        index: u16,
        /// Whether the vCPU waits for an answer.
        wait: bool,
    },
    /// A write of this MSR.
    Msr(u32),
    /// Single steps.
    Step,
    /// int3.
    Breakpoint,
    /// The hypercall that asks for an event.
    GuestRequest,
    /// CPUID.
    Cpuid,
    /// Loads and stores of descriptor-table registers.
    Descriptor,
    /// IN and OUT.
    Io,
    /// What Xen's emulator can't do.
    Unemulated,
}

/// The ring of events.
pub trait Monitor {
    /// Takes the domain's ring; EBUSY where somebody has it.
    fn take(&mut self) -> Result<()>;
    /// From now on writes of control registers and MSRs take place after their answer, until the ring is given back.
    fn hold_writes(&self) -> Result<()>;
    /// Gives the ring back, ours or that of a dead process. Xen then forgets all intercepts.
    fn give_back(&mut self) -> Result<()>;
    /// Arms or disarms; EEXIST where it is so already.
    fn set(&self, what: Intercept, on: bool) -> Result<()>;
    /// The next request.
    fn request(&mut self) -> Result<Option<Slot>>;
    /// Answers one.
    fn respond(&mut self, response: &Slot) -> Result<()>;
    /// Waits for requests, for the bell, or until the time is over.
    fn wait(&mut self, timeout: Duration) -> Result<()>;
}

/// Ends a wait from any thread.
pub trait Bell: Send + Sync {
    /// The wait that runs, or the next one.
    fn ring(&self);
}

/// What this domain can be asked for.
pub trait Probe {
    /// The events that it can raise: a bit each (XEN_DOMCTL_MONITOR_EVENT_*).
    fn events(&self) -> Result<u32>;
    /// Whether alternate views are on; fails where the domain can't have them.
    fn views(&self) -> Result<bool>;
    /// Fails where the domain's frames have no rights that could be taken.
    fn rights(&self) -> Result<()>;
    /// What ends a [`Monitor::wait`].
    fn bell(&self) -> Arc<dyn Bell>;
}

/// Second-level translation: permissions and alternate views.
pub trait Slat {
    /// Turns alternate views on, or off, which drops all.
    fn set_views(&self, on: bool) -> Result<()>;
    /// A view with these rights (XENMEM_access_*) on all frames; EINVAL where there is none left.
    fn create(&self, access: u8) -> Result<u16>;
    /// Removes one; EBUSY while a vCPU is on it.
    fn destroy(&self, view: u16) -> Result<()>;
    /// Puts all vCPUs on one.
    fn switch(&self, view: u16) -> Result<()>;
    /// Sets the rights (XENMEM_access_*) of a range of frames. View 0 is for domains without alternate views.
    fn set_access(&self, view: u16, frames: Range<u64>, access: u8) -> Result<()>;
    /// What a view shows at a frame: another one, or its own again.
    fn change(&self, view: u16, frame: u64, to: Option<u64>) -> Result<()>;
}

/// The domain's pages.
pub trait Pages {
    /// Adds a page at a frame.
    fn add(&self, frame: u64) -> Result<()>;
    /// Takes the pages at these frames away.
    fn remove(&self, frames: &[u64]) -> Result<()>;
    /// Sets how many pages the domain may have.
    fn set_max(&self, pages: u64) -> Result<()>;
    /// The highest frame that has something.
    fn highest(&self) -> Result<u64>;
}

/// The state of a paravirtual domain's vCPUs.
pub trait Paravirtual {
    /// The bytes of a word of the guest: 8, or 4.
    fn width(&self) -> Result<u32>;
    /// A vCPU's context (public/arch-x86/xen.h, struct vcpu_guest_context); ENODATA where the guest has not started it.
    fn context(&self, vcpu: u32) -> Result<Vec<u8>>;
    /// Puts a context in place. What it has of the extended state is the part of SSE, and Xen resets all else.
    fn set_context(&self, vcpu: u32, context: &[u8]) -> Result<()>;
    /// A vCPU's extended state; empty where the machine has none.
    fn extended(&self, vcpu: u32) -> Result<Vec<u8>>;
    /// Puts that in place.
    fn set_extended(&self, vcpu: u32, state: &[u8]) -> Result<()>;
}

/// All of Xen that one domain needs.
pub trait Hypervisor: Domain + Context + Monitor + Probe + Slat + Pages + Paravirtual {}

impl<T: Domain + Context + Monitor + Probe + Slat + Pages + Paravirtual> Hypervisor for T {}

/// Xen's table of the machine's frames: which one each is of its domain's (machine-to-physical); used by any thread.
pub trait MachineTable: Send + Sync {
    /// What the table says, which a paravirtual domain writes of its own frames.
    fn own(&self, machine: u64) -> Result<u64>;
}

/// Frames mapped into this process; dropped, they are unmapped.
pub trait Mapped: Send + Sync {
    /// Copies from a page of the mapping.
    fn read(&self, page: usize, offset: usize, buf: &mut [u8]);
    /// Copies into a page of a mapping that can be written.
    fn write(&self, page: usize, offset: usize, data: &[u8]);
    /// Whether a PV guest has other memory at a page's frame by now. Of other guests that can't be seen.
    fn moved(&self, page: usize) -> bool;
    /// The machine's frame of a page, where the guest itself says it.
    fn machine(&self, page: usize) -> Option<u64>;
}

/// The way to the domain's memory; used by any thread.
pub trait Frames: Send + Sync {
    /// Maps frames side by side, and tells of each whether it is there. Those of a PV domain can be read alone: a page that
    /// anybody has mapped to write can't become a page table, which the guest does not expect.
    fn map(&self, frames: &[u64]) -> Result<(Box<dyn Mapped>, Vec<bool>)>;
    /// The same to be written; of a PV domain while it stands still. Its page tables and descriptor tables are not there then.
    fn map_to_write(&self, frames: &[u64]) -> Result<(Box<dyn Mapped>, Vec<bool>)>;
    /// Of each of the frames whether memory is there.
    fn present(&self, frames: &[u64], there: &mut [bool]) -> Result<()>;
    /// Whether the domain is there, and is not being destroyed.
    fn alive(&self) -> bool;
    /// How many frames a PV guest says it has, `None` of others; EBUSY where it has not said it yet.
    fn told(&self) -> Result<Option<u64>>;
}
