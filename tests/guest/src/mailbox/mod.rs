//! The mailbox: how a test and the guest talk. Every field is a little-endian 64-bit word, at an offset from [`MAILBOX`].
//!
//! | offset | what |
//! |---|---|
//! | 0x000 | header: [`MAGIC`], then the words of [`header`] |
//! | 0x200 | CR3 of each process: vCPU v has processes 2v and 2v+1 |
//! | 0x280 | the crash record: see [`crash`] |
//! | 0x400 | an order slot a vCPU, [`SLOT_SIZE`] bytes each: see [`slot`] |
//! | 0x800 | [`Site`]: the address of the one instruction that performs an order |
//! | 0x7000 | the counters of each vCPU, [`COUNTERS_SIZE`] bytes each: see [`Counter`] |

mod words;

pub use words::{Counter, Op, Site};

/// The gpa of the mailbox page.
pub const MAILBOX: u64 = 0x20_0000;
/// The first word, written last at boot: when it is there, the header is valid.
pub const MAGIC: [u8; 8] = *b"VMTREEGU";
/// The version of this layout.
pub const VERSION: u64 = 2;
/// The most vCPUs that take part. Others halt at once with interrupts off.
pub const MAX_VCPUS: u64 = 8;
/// Processes a vCPU.
pub const PROCESSES: u64 = 2;
/// The bytes of the greeting that the guest compares and answers.
pub const GREETING_SIZE: u64 = 64;
/// The greeting as the guest is loaded, without its NUL.
pub const GREETING_TEXT: &str = "hello from the guest";

/// Where the [`Site`] words start in the mailbox.
pub const SITES: u64 = 0x800;
/// Where the CR3 values of the processes start in the mailbox.
pub const PROCESS_CR3: u64 = 0x200;
/// Where the order slots start in the mailbox.
pub const SLOTS: u64 = 0x400;
/// The bytes of one order slot.
pub const SLOT_SIZE: u64 = 0x80;
/// Where the counters start: a page of their own, behind the pages that orders touch.
pub const COUNTERS: u64 = 0x7000;
/// The bytes of one vCPU's counters.
pub const COUNTERS_SIZE: u64 = 0x200;

/// Offsets of the header's words in the mailbox.
pub mod header {
    /// [`super::MAGIC`].
    pub const MAGIC: u64 = 0x00;
    /// [`super::VERSION`].
    pub const VERSION: u64 = 0x08;
    /// How many vCPUs take part.
    pub const VCPUS: u64 = 0x10;
    /// How many of them have reached their idle loop.
    pub const ONLINE: u64 = 0x18;
    /// One of [`super::state`].
    pub const STATE: u64 = 0x20;
    /// 1 while the background traffic runs, 0 when it is quiet.
    pub const BACKGROUND: u64 = 0x28;
    /// How the guest was started: one of [`super::boot`].
    pub const BOOT: u64 = 0x30;
    /// How often the greeting was seen changed, and answered.
    pub const GREETING_SEEN: u64 = 0x38;
    /// The value of the LSTAR MSR: the system call entry.
    pub const LSTAR: u64 = 0x40;
    /// The CR3 of the kernel thread of every vCPU.
    pub const KERNEL_CR3: u64 = 0x48;
    /// The gpa of the greeting page.
    pub const GREETING: u64 = 0x50;
    /// The gpa of the reply page: the answer to the greeting.
    pub const REPLY: u64 = 0x58;
    /// The gpa (and kernel gva) of a data page that only orders touch.
    pub const DATA: u64 = 0x60;
    /// The gpa (and kernel gva) of a page with a small function that only orders call.
    pub const CODE: u64 = 0x68;
    /// The gpa (and kernel gva) of a page that only orders write.
    pub const SCRATCH: u64 = 0x70;
    /// A kernel gva that is never mapped.
    pub const GUARD: u64 = 0x78;
    /// The gva of the data page in every process (user, writable, no execute).
    pub const USER_DATA: u64 = 0x80;
    /// The gva of the code page in every process (user, read-only, executable).
    pub const USER_CODE: u64 = 0x88;
    /// A gva that is mapped in every process for the kernel only.
    pub const USER_SUPERVISOR: u64 = 0x90;
    /// A user gva that is never mapped.
    pub const USER_UNMAPPED: u64 = 0x98;
    /// The gva of the first of the four pages that are mapped on their first touch.
    pub const USER_LAZY: u64 = 0xa0;
    /// The first gva of a process: its code.
    pub const USER_TEXT: u64 = 0xa8;
    /// The first gpa of the kernel's code.
    pub const TEXT: u64 = 0xb0;
    /// The gpa after the kernel's code.
    pub const TEXT_END: u64 = 0xb8;
    /// The vector of the timer.
    pub const TIMER_VECTOR: u64 = 0xc0;
    /// The vector of the inter-processor interrupt.
    pub const IPI_VECTOR: u64 = 0xc8;
    /// The vector of [`super::Op::SoftInterrupt`].
    pub const SOFT_VECTOR: u64 = 0xd0;
    /// The count of the local APIC's timer (divided by 16) between two ticks.
    pub const TICK_COUNT: u64 = 0xd8;
}

/// The values of [`header::STATE`].
pub mod state {
    /// vCPUs are still arriving.
    pub const BOOTING: u64 = 0;
    /// All vCPUs run and take orders.
    pub const RUNNING: u64 = 1;
    /// A vCPU met an exception it could not get past: see [`super::crash`].
    pub const CRASHED: u64 = 2;
}

/// The values of [`header::BOOT`].
pub mod boot {
    /// At the ELF entry, in long mode.
    pub const DIRECT: u64 = 1;
    /// At the PVH entry, in protected mode.
    pub const PVH: u64 = 2;
}

/// Offsets of the crash record's words in the mailbox, valid in [`state::CRASHED`].
pub mod crash {
    /// The vCPU that crashed.
    pub const VCPU: u64 = 0x280;
    /// The vector of the exception.
    pub const VECTOR: u64 = 0x288;
    /// Its error code, or 0.
    pub const ERROR: u64 = 0x290;
    /// CR2 then.
    pub const CR2: u64 = 0x298;
    /// RIP then.
    pub const RIP: u64 = 0x2a0;
}

/// Offsets of an order slot's words in the slot.
pub mod slot {
    /// Written last by the test: a number that differs from [`ACK`] is a new order.
    pub const SEQ: u64 = 0x00;
    /// One of [`super::Op`].
    pub const OP: u64 = 0x08;
    /// Four arguments.
    pub const ARGS: u64 = 0x10;
    /// The guest stores the sequence number here before it performs the order.
    pub const BEGUN: u64 = 0x30;
    /// The guest stores the sequence number here when the order is done, after status and results.
    pub const ACK: u64 = 0x38;
    /// One of [`super::status`].
    pub const STATUS: u64 = 0x40;
    /// Four results.
    pub const RESULTS: u64 = 0x48;
    /// The value of [`super::header::BACKGROUND`] that the vCPU's idle loop saw last; [`STOPPED`] when it stopped.
    pub const BACKGROUND_SEEN: u64 = 0x68;
    /// What [`BACKGROUND_SEEN`] says of a vCPU that was ordered to stop.
    pub const STOPPED: u64 = 2;
}

/// The values of [`slot::STATUS`].
pub mod status {
    /// Performed.
    pub const DONE: u64 = 0;
    /// An exception ended it. The results are vector, error code, CR2 and RIP.
    pub const FAULTED: u64 = 1;
    /// No such order, or an argument that the order does not know. Nothing was done.
    pub const UNKNOWN: u64 = 2;
    /// The other vCPU did not react in time.
    pub const TIMED_OUT: u64 = 3;
}

/// The gpa of the order slot of a vCPU.
#[must_use]
pub const fn slot_of(vcpu: u64) -> u64 {
    MAILBOX + SLOTS + vcpu * SLOT_SIZE
}

/// The gpa of a counter of a vCPU.
#[must_use]
pub const fn counter_of(vcpu: u64, counter: Counter) -> u64 {
    MAILBOX + COUNTERS + vcpu * COUNTERS_SIZE + 8 * counter as u64
}

/// The gpa of the word that holds the address of a site.
#[must_use]
pub const fn site_of(site: Site) -> u64 {
    MAILBOX + SITES + 8 * site as u64
}

/// The gpa of the word that holds the CR3 of a process.
#[must_use]
pub const fn process_cr3_of(vcpu: u64, process: u64) -> u64 {
    MAILBOX + PROCESS_CR3 + 8 * (vcpu * PROCESSES + process)
}
