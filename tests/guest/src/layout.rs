//! Every address of the guest, in one table. Kernel addresses are gpa and gva at once: the kernel is mapped one to one.

/// The 32-bit code: the PVH entry and the way of all vCPUs from protected to long mode.
pub const TEXT32: u64 = 0x10_0000;
/// The 64-bit kernel: starts with the entry points below.
pub const TEXT64: u64 = 0x10_1000;
/// The ELF entry: every vCPU starts here in long mode with its number in RDI and the number of vCPUs in RSI.
pub const ENTRY: u64 = TEXT64;
/// Where 32-bit code enters long mode, with the address to go on at in EBP.
pub const LANDING: u64 = TEXT64 + 0x10;
/// Where the first vCPU goes on after PVH.
pub const PVH_FIRST: u64 = TEXT64 + 0x20;
/// Where the other vCPUs go on after the start-up IPI.
pub const PVH_OTHER: u64 = TEXT64 + 0x30;
/// The gates of all 256 vectors, [`STUB_SIZE`] bytes each.
pub const STUBS: u64 = TEXT64 + 0x40;
/// The bytes of one gate's code.
pub const STUB_SIZE: u64 = 16;
/// The ring 3 program: two pages, mapped in every process at [`USER_TEXT`].
pub const USER_IMAGE: u64 = 0x11_0000;
/// The bytes of the ring 3 program's pages.
pub const USER_IMAGE_SIZE: u64 = 0x1000;
/// The end of the first segment.
pub const TEXT_END: u64 = USER_IMAGE + USER_IMAGE_SIZE;

/// The greeting: NUL-terminated text.
pub const GREETING: u64 = 0x20_1000;
/// The answer to the greeting.
pub const REPLY: u64 = 0x20_2000;
/// A page that only orders read and write.
pub const DATA: u64 = 0x20_3000;
/// A page with a small function that only orders call.
pub const CODE: u64 = 0x20_4000;
/// A page that only orders write.
pub const SCRATCH: u64 = 0x20_5000;
/// Words for the start of the vCPUs, zero in the file.
pub const BOOT: u64 = 0x20_6000;
/// The end of the part of the second segment that is in the file.
pub const DATA_END: u64 = 0x20_7000;
/// The counters of the mailbox: a page, zeroed at the start.
pub const COUNTERS: u64 = crate::mailbox::MAILBOX + crate::mailbox::COUNTERS;
/// The page tables of the way to long mode after PVH: 6 pages.
pub const BOOT_TABLES: u64 = 0x20_8000;
/// A kernel page that is not mapped.
pub const GUARD: u64 = 0x20_f000;

/// The kernel's PML4, then its PDPT, its page table for [2 MiB, 4 MiB), then [`KERNEL_GIB`] page directories.
pub const KERNEL_PML4: u64 = 0x21_0000;
/// The kernel's PDPT.
pub const KERNEL_PDPT: u64 = KERNEL_PML4 + 0x1000;
/// The page table of [2 MiB, 4 MiB).
pub const KERNEL_PT: u64 = KERNEL_PML4 + 0x2000;
/// The kernel's page directories.
pub const KERNEL_PDS: u64 = KERNEL_PML4 + 0x3000;
/// GiB that the kernel maps one to one.
pub const KERNEL_GIB: u64 = 8;

/// The areas of the processes: [`AREA`] bytes each.
pub const PROCESS_AREAS: u64 = 0x28_0000;
/// The areas of the vCPUs: [`AREA`] bytes each and aligned, so that a stack pointer tells whose it is.
pub const VCPU_AREAS: u64 = 0x38_0000;
/// The bytes of one area.
pub const AREA: u64 = 0x1_0000;
/// The end of all that the guest uses.
pub const END: u64 = 0x40_0000;

/// The words of [`BOOT`].
pub mod boot {
    /// 1 when the first vCPU has set up what all share.
    pub const READY: u64 = super::BOOT;
    /// How many other vCPUs came after the start-up IPI.
    pub const ARRIVED: u64 = super::BOOT + 8;
    /// How many vCPUs there are, for those that came by the start-up IPI; 0 until known.
    pub const VCPUS: u64 = super::BOOT + 16;
    /// One of `mailbox::boot`; 0 for a direct start.
    pub const HOW: u64 = super::BOOT + 24;
    /// 256 bytes: 1 where a vCPU with this local APIC's id came by the start-up IPI.
    pub const PRESENT: u64 = super::BOOT + 0x100;
}

/// Where the real-mode code of the other vCPUs is copied: below 1 MiB, page aligned.
pub const REAL_MODE: u64 = 0x8000;

/// Offsets in the area of a vCPU.
pub mod vcpu {
    /// The GDT.
    pub const GDT: u64 = 0x1000;
    /// The TSS.
    pub const TSS: u64 = 0x1100;
    /// The IDT.
    pub const IDT: u64 = 0x2000;
    /// The top of the kernel thread's stack.
    pub const STACK: u64 = 0x7000;
    /// The top of the first process's kernel stack; the second's is one page further.
    pub const PROCESS_STACK: u64 = 0x8000;
    /// The top of the double fault stack (IST 1).
    pub const IST_DOUBLE: u64 = 0xa000;
    /// The top of the NMI stack (IST 2).
    pub const IST_NMI: u64 = 0xb000;
    /// The top of the debug exception stack (IST 3).
    pub const IST_DEBUG: u64 = 0xc000;
}

/// Offsets in the first page of a vCPU's area: what the kernel knows of the vCPU.
pub mod percpu {
    /// The vCPU's number.
    pub const NUMBER: i32 = 0x08;
    /// The address of its counters in the mailbox.
    pub const COUNTERS: i32 = 0x10;
    /// The address of its order slot in the mailbox.
    pub const SLOT: i32 = 0x18;
    /// The kernel stack for the next system call.
    pub const KERNEL_RSP: i32 = 0x20;
    /// The user's stack pointer during the first instructions of a system call.
    pub const USER_RSP: i32 = 0x28;
    /// The context that runs: 0 is the kernel thread, 1 and 2 are the processes.
    pub const CURRENT: i32 = 0x30;
    /// Bit n: context n has work to do.
    pub const RUNNABLE: i32 = 0x38;
    /// 1 while the kernel thread must not be switched away.
    pub const BUSY: i32 = 0x40;
    /// Where the kernel thread goes on after a fault, 0 if it expects none.
    pub const FIXUP: i32 = 0x48;
    /// Its stack pointer then.
    pub const FIXUP_RSP: i32 = 0x50;
    /// The last fault that met a fixup: vector, error code, CR2, RIP.
    pub const FAULT: i32 = 0x58;
    /// The contexts, [`CONTEXT_SIZE`] bytes each.
    pub const CONTEXTS: i32 = 0x80;
    /// The bytes of one context.
    pub const CONTEXT_SIZE: i32 = 0x20;
    /// The value last written to CR8.
    pub const CR8: i32 = 0xe0;
    /// The tick of the last background traffic.
    pub const TRAFFIC_TICK: i32 = 0xe8;
    /// Faults retried since the last tick.
    pub const RETRIES: i32 = 0xf0;
    /// Its local APIC's id, in bits 31:24.
    pub const APIC_ID: i32 = 0xf8;
}

/// Offsets in a context.
pub mod context {
    /// The address of the saved registers, on its kernel stack.
    pub const RSP: i32 = 0x00;
    /// Its CR3.
    pub const CR3: i32 = 0x08;
    /// The top of its kernel stack.
    pub const RSP0: i32 = 0x10;
    /// The kernel's address of the process's inbox.
    pub const INBOX: i32 = 0x18;
}

/// Offsets in the saved registers of a context: 15 general registers, then what the gate or the CPU pushed.
pub mod frame {
    /// RAX.
    pub const RAX: i32 = 14 * 8;
    /// The vector, or [`SYSCALL`].
    pub const VECTOR: i32 = 15 * 8;
    /// The error code, or 0.
    pub const ERROR: i32 = 16 * 8;
    /// RIP.
    pub const RIP: i32 = 17 * 8;
    /// CS.
    pub const CS: i32 = 18 * 8;
    /// RFLAGS.
    pub const RFLAGS: i32 = 19 * 8;
    /// RSP.
    pub const RSP: i32 = 20 * 8;
    /// The vector that stands for a system call.
    pub const SYSCALL: i32 = 0x100;
}

/// Offsets in the area of a process.
pub mod process {
    /// The PML4.
    pub const PML4: u64 = 0x0000;
    /// The PDPT of the user half.
    pub const PDPT: u64 = 0x1000;
    /// The page directory of the user half.
    pub const PD: u64 = 0x2000;
    /// The page table of the user half.
    pub const PT: u64 = 0x3000;
    /// The inbox page.
    pub const INBOX: u64 = 0x4000;
    /// The stack page.
    pub const STACK: u64 = 0x5000;
    /// The page that the process writes code to.
    pub const CODE: u64 = 0x6000;
    /// The four pages that are mapped on their first touch.
    pub const LAZY: u64 = 0x7000;
    /// The end of what is zeroed at the start.
    pub const END: u64 = 0xb000;
}

/// Offsets in a process's inbox page.
pub mod inbox {
    /// The ordered operation, 0 if none.
    pub const OP: i32 = 0x00;
    /// Its four arguments.
    pub const ARGS: i32 = 0x08;
    /// Its result.
    pub const RESULT: i32 = 0x28;
    /// Where the process goes on after a fault, 0 if it expects none.
    pub const FIXUP: i32 = 0x30;
    /// Its stack pointer then.
    pub const FIXUP_RSP: i32 = 0x38;
    /// The fault that met the fixup: vector (0 if none), error code, CR2, RIP.
    pub const FAULT: i32 = 0x40;
    /// The process's number, 2 a vCPU.
    pub const NUMBER: i32 = 0x60;
    /// The process's rounds.
    pub const ROUND: i32 = 0x68;
    /// The greeting as last seen.
    pub const GREETING: i32 = 0x100;
}

/// The first gva of a process, the second entry of the PML4.
pub const USER_BASE: u64 = 0x80_0000_0000;
/// The program.
pub const USER_TEXT: u64 = USER_BASE;
/// The inbox page: writable, no execute.
pub const USER_INBOX: u64 = USER_BASE + 0x1_0000;
/// The stack page; its top is a page further.
pub const USER_STACK: u64 = USER_BASE + 0x2_0000;
/// The page that the process writes code to and executes.
pub const USER_SELF: u64 = USER_BASE + 0x3_0000;
/// The first of the pages that are mapped on their first touch.
pub const USER_LAZY: u64 = USER_BASE + 0x4_0000;
/// How many of them.
pub const LAZY_PAGES: u64 = 4;
/// The greeting page, read-only.
pub const USER_GREETING: u64 = USER_BASE + 0x5_0000;
/// The reply page.
pub const USER_REPLY: u64 = USER_BASE + 0x5_1000;
/// The code page of the orders, executable.
pub const USER_CODE: u64 = USER_BASE + 0x6_0000;
/// The data page of the orders.
pub const USER_DATA: u64 = USER_BASE + 0x6_1000;
/// A page for the kernel only.
pub const USER_SUPERVISOR: u64 = USER_BASE + 0x7_0000;
/// A page that is never mapped.
pub const USER_UNMAPPED: u64 = USER_BASE + 0x8_0000;

/// Segment selectors.
pub mod selector {
    /// Kernel code, 64-bit.
    pub const KERNEL_CODE: u32 = 0x08;
    /// Kernel data.
    pub const KERNEL_DATA: u32 = 0x10;
    /// Code, 32-bit, in the GDT of the PVH way only.
    pub const CODE32: u32 = 0x18;
    /// User data, with RPL 3.
    pub const USER_DATA: u32 = 0x23;
    /// User code, with RPL 3.
    pub const USER_CODE: u32 = 0x2b;
    /// The TSS.
    pub const TSS: u32 = 0x30;
}

/// Interrupt vectors. The timer's and the IPI's classes are the highest, so that most values of CR8 let them through.
pub mod vector {
    /// The software interrupt of an order.
    pub const SOFT: u64 = 0x81;
    /// The timer.
    pub const TIMER: u64 = 0xe0;
    /// The inter-processor interrupt.
    pub const IPI: u64 = 0xe1;
    /// The spurious interrupt.
    pub const SPURIOUS: u64 = 0xff;
}

/// System calls, by number in RAX.
pub mod syscall {
    /// Gives the vCPU away until the next tick; unmaps the lazy pages.
    pub const YIELD: u32 = 0;
    /// Only counts.
    pub const COUNT: u32 = 1;
    /// Unmaps the lazy pages.
    pub const UNMAP: u32 = 2;
    /// Ends an ordered operation.
    pub const DONE: u32 = 3;
    /// Tells that the greeting was answered.
    pub const ANSWERED: u32 = 4;
    /// Tells that written code gave the right result.
    pub const RIGHT: u32 = 5;
    /// Tells that written code gave a wrong result.
    pub const WRONG: u32 = 6;
}

/// The local APIC's registers (Intel SDM volume 3A, 11.4.1).
pub mod apic {
    /// Where they are.
    pub const BASE: u64 = 0xfee0_0000;
    /// The APIC id, in bits 31:24.
    pub const ID: u64 = BASE + 0x20;
    /// End of interrupt.
    pub const EOI: u64 = BASE + 0xb0;
    /// Spurious vector and enable.
    pub const SPURIOUS: u64 = BASE + 0xf0;
    /// Interrupt command, low half.
    pub const ICR: u64 = BASE + 0x300;
    /// Interrupt command, high half: the destination in bits 31:24.
    pub const ICR_HIGH: u64 = BASE + 0x310;
    /// The timer's vector and mode.
    pub const TIMER: u64 = BASE + 0x320;
    /// The LINT0 pin's vector and mode.
    pub const LINT0: u64 = BASE + 0x350;
    /// The timer's initial count.
    pub const INITIAL: u64 = BASE + 0x380;
    /// The timer's current count.
    pub const CURRENT: u64 = BASE + 0x390;
    /// The timer's divider.
    pub const DIVIDE: u64 = BASE + 0x3e0;
    /// The count of 10 ms with the divider at 16, where the timer's clock is 1 GHz (QEMU, KVM).
    pub const TICK: u32 = 625_000;
    /// The same for Xen, where that clock is 100 MHz.
    pub const TICK_OF_XEN: u32 = TICK / 10;
}
