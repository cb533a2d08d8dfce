//! What the guest must count and answer for each order, wherever it runs: one table for the built-in machine, QEMU and
//! every other monitor. The background is quiet meanwhile; ticks and rounds of the idle loop go on and are not compared.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::client::{Bytes, Error, Mailbox, Outcome};
use crate::layout;
use crate::mailbox::{Counter, MAILBOX, Op, Site, header};

const KERNEL_GS_BASE: u64 = 0xc000_0102;
const LSTAR: u64 = 0xc000_0082;
/// What the data page holds from its byte 0x10 on: each byte is its offset.
const DATA_WORDS: [(u64, u64); 4] = [(1, 0x10), (2, 0x1110), (4, 0x1312_1110), (8, 0x1716_1514_1312_1110)];
/// What the function in the code page returns.
const ANSWER: u64 = 0x600d_c0de;
/// What an order in ring 3 costs besides: to the process, and back by a system call.
const TRIP: [(Counter, u64); 3] = [(Counter::Switches, 2), (Counter::Cr3Writes, 2), (Counter::Syscalls, 1)];

/// How an order ends.
#[derive(Clone, Copy, Debug)]
enum Ends {
    /// Done; the results don't matter.
    Done,
    /// Done, with this first result.
    With(u64),
    /// By an exception: vector and error code; CR2 and RIP where they matter.
    Faulted(u64, u64, Option<u64>, Option<u64>),
    /// Refused.
    Refused,
}

/// An order and what must come of it.
#[derive(Clone, Debug)]
pub struct Case {
    vcpu: u64,
    op: Op,
    args: Vec<u64>,
    ends: Ends,
    /// The vCPU whose counters are compared.
    watched: u64,
    counts: BTreeMap<Counter, u64>,
}

impl Case {
    fn new(vcpu: u64, op: Op, args: &[u64], ends: Ends, counts: &[(Counter, u64)]) -> Self {
        let args = args.to_vec();
        let mut case = Self { vcpu, op, args, ends, watched: vcpu, counts: BTreeMap::new() };
        let in_ring_3 = (Op::UserRead..=Op::UserSpin).contains(&op);
        let trip = if in_ring_3 { &TRIP[..] } else { &[] };
        for &(counter, more) in counts.iter().chain(trip) {
            *case.counts.entry(counter).or_default() += more;
        }
        case
    }

    /// The same, with the counters of another vCPU.
    fn watched(mut self, vcpu: u64) -> Self {
        self.watched = vcpu;
        self
    }

    /// What is ordered.
    #[must_use]
    pub fn op(&self) -> Op {
        self.op
    }

    /// Gives the order and compares. The background is quiet.
    ///
    /// # Errors
    /// What is not as it should be, or why the guest gave no answer.
    pub fn check<B: Bytes>(&self, mailbox: &Mailbox<B>, patience: Duration) -> Result<(), String> {
        let told = |why: String| format!("vCPU {}, {} {:x?}: {why}", self.vcpu, self.op.name(), self.args);
        let before = mailbox.counters(self.watched).map_err(|error| told(error.to_string()))?;
        let outcome = match mailbox.order(self.vcpu, self.op, &self.args, patience) {
            Err(Error::Unknown(_)) => None,
            Err(error) => return Err(told(error.to_string())),
            Ok(outcome) => Some(outcome),
        };
        if !self.ends_so(outcome) {
            return Err(told(format!("{outcome:x?} and not {:x?}", self.ends)));
        }
        let after = mailbox.counters(self.watched).map_err(|error| told(error.to_string()))?;
        let mut counted = after.since(&before);
        counted.retain(|counter, _| !matches!(counter, Counter::Ticks | Counter::Heartbeat));
        let mut wanted = self.counts.clone();
        if self.watched == self.vcpu {
            wanted.insert(Counter::Orders, 1);
        }
        if counted == wanted { Ok(()) } else { Err(told(format!("counted {counted:?} and not {wanted:?}"))) }
    }

    fn ends_so(&self, outcome: Option<Outcome>) -> bool {
        match (self.ends, outcome) {
            (Ends::Done, Some(Outcome::Done(_))) | (Ends::Refused, None) => true,
            (Ends::With(wanted), Some(Outcome::Done([found, ..]))) => wanted == found,
            (Ends::Faulted(v, e, cr2s, rips), Some(Outcome::Faulted { vector, error, cr2, rip })) => {
                (v, e) == (vector, error) && cr2s.is_none_or(|a| a == cr2) && rips.is_none_or(|a| a == rip)
            }
            _ => false,
        }
    }
}

/// All cases for a guest of at least two vCPUs, in their order: some use what those before left. It asks the guest's CPUID.
///
/// # Errors
/// The header can't be read, or the guest does not answer.
pub fn cases<B: Bytes>(mailbox: &Mailbox<B>, patience: Duration) -> Result<Vec<Case>, Error> {
    let mut all = Vec::new();
    for vcpu in [0, 1] {
        all.extend(control_registers(mailbox, vcpu)?);
        all.extend(msrs_and_debug_registers(mailbox, vcpu)?);
        all.extend(interrupts(vcpu));
        all.extend(tables(mailbox, vcpu)?);
        all.push(request(mailbox, vcpu, patience)?);
        if has_xsave(mailbox, patience)? {
            all.extend(extended_states(vcpu));
        }
        all.extend(memory(mailbox, vcpu)?);
        all.extend(faults(mailbox, vcpu)?);
        all.extend(ring_3(mailbox, vcpu)?);
        all.extend(faults_in_ring_3(mailbox, vcpu)?);
    }
    Ok(all)
}

fn control_registers<B: Bytes>(mailbox: &Mailbox<B>, vcpu: u64) -> Result<Vec<Case>, Error> {
    let (kernel, process) = (mailbox.header(header::KERNEL_CR3)?, mailbox.process_cr3(vcpu, 1)?);
    let case = |op, args: &[u64], ends, counts: &[_]| Case::new(vcpu, op, args, ends, counts);
    let flips = |op, n, mask, last| {
        let [reads, writes] = match op {
            Op::WriteCr0 => [Counter::Cr0Reads, Counter::Cr0Writes],
            _ => [Counter::Cr4Reads, Counter::Cr4Writes],
        };
        case(op, &[n, mask], Ends::With(last), &[(reads, n), (writes, n)])
    };
    Ok(vec![
        case(Op::Nop, &[], Ends::Done, &[]),
        case(Op::WriteCr3, &[40], Ends::With(process), &[(Counter::Cr3Writes, 40)]),
        case(Op::WriteCr3, &[3, kernel], Ends::With(kernel), &[(Counter::Cr3Writes, 3)]),
        // AM off and on again.
        flips(Op::WriteCr0, 1, 1 << 18, 0x8001_0033),
        flips(Op::WriteCr0, 3, 1 << 18, 0x8005_0033),
        flips(Op::WriteCr4, 5, 0, 0x620),
        case(Op::ReadCr, &[4, 0], Ends::With(0x8005_0033), &[(Counter::Cr0Reads, 4)]),
        case(Op::ReadCr, &[2, 3], Ends::With(kernel), &[(Counter::Cr3Reads, 2)]),
        case(Op::ReadCr, &[3, 4], Ends::With(0x620), &[(Counter::Cr4Reads, 3)]),
        case(Op::ReadCr, &[1, 2], Ends::Refused, &[]),
        // TS on by a move and by lmsw, off by clts.
        flips(Op::WriteCr0, 1, 1 << 3, 0x8005_003b),
        case(Op::Clts, &[2], Ends::Done, &[(Counter::Cr0Writes, 2)]),
        case(Op::ReadCr, &[1, 0], Ends::With(0x8005_0033), &[(Counter::Cr0Reads, 1)]),
        case(Op::Lmsw, &[2, 0xb], Ends::Done, &[(Counter::Cr0Writes, 2)]),
        case(Op::ReadCr, &[1, 0], Ends::With(0x8005_003b), &[(Counter::Cr0Reads, 1)]),
        case(Op::Lmsw, &[1, 0x3], Ends::Done, &[(Counter::Cr0Writes, 1)]),
        case(Op::ReadCr, &[1, 0], Ends::With(0x8005_0033), &[(Counter::Cr0Reads, 1)]),
        case(Op::WriteCr8, &[7, 5], Ends::Done, &[(Counter::Cr8Writes, 7)]),
        case(Op::ReadCr8, &[2], Ends::With(5), &[(Counter::Cr8Reads, 2)]),
        // No tick comes now, but the vCPU still takes orders.
        case(Op::WriteCr8, &[1, 15], Ends::Done, &[(Counter::Cr8Writes, 1)]),
        case(Op::WriteCr8, &[1, 0], Ends::Done, &[(Counter::Cr8Writes, 1)]),
        case(Op::Invlpg, &[4, MAILBOX], Ends::Done, &[(Counter::Invlpgs, 4)]),
    ])
}

fn msrs_and_debug_registers<B: Bytes>(mailbox: &Mailbox<B>, vcpu: u64) -> Result<Vec<Case>, Error> {
    let case = |op, args: &[u64], ends, counts: &[_]| Case::new(vcpu, op, args, ends, counts);
    let (lstar, value) = (mailbox.header(header::LSTAR)?, 0xffff_8000_1234_5678);
    let mut all = vec![
        case(Op::WriteMsr, &[9, KERNEL_GS_BASE, value], Ends::Done, &[(Counter::MsrWrites, 9)]),
        case(Op::ReadMsr, &[2, KERNEL_GS_BASE], Ends::With(value), &[(Counter::MsrReads, 2)]),
        case(Op::ReadMsr, &[1, LSTAR], Ends::With(lstar), &[(Counter::MsrReads, 1)]),
        case(Op::WriteDr, &[1, 8, 0], Ends::Refused, &[]),
        case(Op::ReadDr, &[1, 8], Ends::Refused, &[]),
    ];
    // DE is clear: 4 and 5 are 6 and 7.
    let values = [(0, 0x20_3000), (1, 1), (2, 2), (3, u64::MAX), (4, 0xffff_0ff1), (6, 0xffff_0ff0)];
    for (number, value) in values.into_iter().chain([(5, 0x401), (7, 0x400)]) {
        all.push(case(Op::WriteDr, &[6, number, value], Ends::Done, &[(Counter::DrWrites, 6)]));
        all.push(case(Op::ReadDr, &[1, number], Ends::With(value), &[(Counter::DrReads, 1)]));
    }
    Ok(all)
}

fn interrupts(vcpu: u64) -> Vec<Case> {
    let case = |op, args: &[u64], counts: &[_]| Case::new(vcpu, op, args, Ends::Done, counts);
    vec![
        case(Op::Int3, &[11], &[(Counter::Breakpoints, 11)]),
        case(Op::SoftInterrupt, &[12], &[(Counter::SoftInterrupts, 12)]),
        case(Op::Cpuid, &[2, 0], &[(Counter::Cpuids, 2)]),
        case(Op::Out, &[3, 0x80, 0xa5, 1], &[(Counter::Outs, 3)]),
        case(Op::In, &[2, 0x80, 1], &[(Counter::Ins, 2)]),
        Case::new(vcpu, Op::Out, &[1, 0x80, 0, 3], Ends::Refused, &[]),
        case(Op::Nmi, &[3, vcpu], &[(Counter::Nmis, 3)]),
        case(Op::Nmi, &[4, 1 - vcpu], &[(Counter::Nmis, 4)]).watched(1 - vcpu),
        case(Op::Ipi, &[5, vcpu], &[(Counter::Ipis, 5)]),
        case(Op::Ipi, &[6, 1 - vcpu], &[(Counter::Ipis, 6)]).watched(1 - vcpu),
        case(Op::Ipi, &[6, 1 - vcpu], &[]),
        case(Op::Hlt, &[4], &[]),
        case(Op::Spin, &[100_000], &[]),
        Case::new(vcpu, Op::ClosedSpin, &[100_000], Ends::With(0), &[]),
    ]
}

/// A request that nobody watches: #UD where the machine answers none, else always the same answer.
fn request<B: Bytes>(mailbox: &Mailbox<B>, vcpu: u64, patience: Duration) -> Result<Case, Error> {
    let args = [2, 1, 2, 3];
    let (ends, counted) = match mailbox.order(vcpu, Op::Vmcall, &args, patience)? {
        Outcome::Done([answer, ..]) => (Ends::With(answer), (Counter::Vmcalls, 2)),
        _ => (Ends::Faulted(6, 0, None, Some(mailbox.site(Site::Vmcall)?)), (Counter::InvalidOpcodes, 1)),
    };
    Ok(Case::new(vcpu, Op::Vmcall, &args, ends, &[counted]))
}

/// Whether the guest's CPU has XSAVE: CPUID leaf 1, ECX bit 26 (Intel SDM volume 2A, CPUID).
fn has_xsave<B: Bytes>(mailbox: &Mailbox<B>, patience: Duration) -> Result<bool, Error> {
    let outcome = mailbox.order(0, Op::Cpuid, &[1, 1], patience)?;
    Ok(matches!(outcome, Outcome::Done([_, _, ecx, _]) if ecx >> 26 & 1 == 1))
}

/// With CR4.OSXSAVE on, and off again in the end.
fn extended_states(vcpu: u64) -> Vec<Case> {
    let case = |op, args: &[u64], ends, counts: &[_]| Case::new(vcpu, op, args, ends, counts);
    let flip = [(Counter::Cr4Reads, 1), (Counter::Cr4Writes, 1)];
    vec![
        case(Op::WriteCr4, &[1, 1 << 18], Ends::With(0x4_0620), &flip),
        case(Op::WriteXcr0, &[2, 3], Ends::Done, &[(Counter::Xcr0Writes, 2)]),
        case(Op::ReadXcr0, &[1], Ends::With(3), &[]),
        case(Op::WriteXcr0, &[1, 1], Ends::Done, &[(Counter::Xcr0Writes, 1)]),
        case(Op::ReadXcr0, &[1], Ends::With(1), &[]),
        // x87 can't be off.
        case(Op::WriteXcr0, &[1, 2], Ends::Faulted(13, 0, None, None), &[(Counter::GeneralProtections, 1)]),
        case(Op::WriteCr4, &[1, 1 << 18], Ends::With(0x620), &flip),
    ]
}

fn tables<B: Bytes>(mailbox: &Mailbox<B>, vcpu: u64) -> Result<Vec<Case>, Error> {
    let case = |op, args: &[u64], ends, counts: &[_]| Case::new(vcpu, op, args, ends, counts);
    let load =
        |n, table, value| case(Op::LoadTable, &[n, table, value], Ends::Done, &[(Counter::TableLoads, n)]);
    let store =
        |n, table, first| case(Op::StoreTable, &[n, table], Ends::With(first), &[(Counter::TableStores, n)]);
    let area = layout::VCPU_AREAS + vcpu * layout::AREA;
    let xsetbv = mailbox.site(Site::WriteXcr0)?;
    let undefined = |op, args: &[u64], rip| {
        let ends = Ends::Faulted(6, 0, None, rip);
        Case::new(vcpu, op, args, ends, &[(Counter::InvalidOpcodes, 1)])
    };
    Ok(vec![
        load(3, 0, 0x3f),
        store(2, 0, area + layout::vcpu::GDT),
        load(2, 1, 0xfff),
        store(3, 1, area + layout::vcpu::IDT),
        load(4, 2, 0),
        store(1, 2, 0),
        load(2, 3, 0x30),
        store(4, 3, 0x30),
        Case::new(vcpu, Op::LoadTable, &[1, 4, 0], Ends::Refused, &[]),
        Case::new(vcpu, Op::StoreTable, &[1, 4], Ends::Refused, &[]),
        // CR4.OSXSAVE is clear.
        undefined(Op::WriteXcr0, &[2, 1], Some(xsetbv)),
        undefined(Op::ReadXcr0, &[2], None),
    ])
}

fn memory<B: Bytes>(mailbox: &Mailbox<B>, vcpu: u64) -> Result<Vec<Case>, Error> {
    let of = |offset| mailbox.header(offset);
    let (data, code, scratch) = (of(header::DATA)?, of(header::CODE)?, of(header::SCRATCH)?);
    let case = |op, args: &[u64], ends| Case::new(vcpu, op, args, ends, &[]);
    let mut all = Vec::new();
    for (size, value) in DATA_WORDS {
        all.push(case(Op::Read, &[3, data + 0x10, size], Ends::With(value)));
        all.push(case(Op::Write, &[2, scratch + 8 * size, value, size], Ends::Done));
        all.push(case(Op::Read, &[1, scratch + 8 * size, size], Ends::With(value)));
    }
    all.push(case(Op::Exec, &[4, code], Ends::With(ANSWER)));
    all.push(case(Op::Fill, &[1, scratch, 0x5a, 0x100], Ends::Done));
    all.push(case(Op::Read, &[1, scratch + 0xf8, 8], Ends::With(0x5a5a_5a5a_5a5a_5a5a)));
    // By SSE and by single bytes, at an odd address.
    all.push(case(Op::Copy, &[1, scratch + 1, data, 100], Ends::Done));
    all.push(case(Op::Read, &[1, scratch + 17, 8], Ends::With(0x1716_1514_1312_1110)));
    all.push(case(Op::Read, &[1, scratch + 97, 8], Ends::With(0x5a5a_5a5a_6362_6160)));
    Ok(all)
}

fn faults<B: Bytes>(mailbox: &Mailbox<B>, vcpu: u64) -> Result<Vec<Case>, Error> {
    let (guard, scratch) = (mailbox.header(header::GUARD)? + 8, mailbox.header(header::SCRATCH)?);
    let read = mailbox.site(Site::Read8)?;
    let page = |op, args: &[u64], error| {
        Case::new(vcpu, op, args, Ends::Faulted(14, error, Some(guard), None), &[(Counter::PageFaults, 1)])
    };
    let wild = Ends::Faulted(13, 0, None, Some(read));
    let undefined = Ends::Faulted(6, 0, None, Some(scratch));
    Ok(vec![
        page(Op::Read, &[1, guard, 8], 0),
        page(Op::Write, &[1, guard, 0, 8], 2),
        page(Op::Exec, &[1, guard], 0x10),
        Case::new(vcpu, Op::Read, &[3, 1 << 62, 8], wild, &[(Counter::GeneralProtections, 1)]),
        // UD2.
        Case::new(vcpu, Op::Write, &[1, scratch, 0x0b0f, 2], Ends::Done, &[]),
        Case::new(vcpu, Op::Exec, &[1, scratch], undefined, &[(Counter::InvalidOpcodes, 1)]),
    ])
}

fn ring_3<B: Bytes>(mailbox: &Mailbox<B>, vcpu: u64) -> Result<Vec<Case>, Error> {
    let of = |offset| mailbox.header(offset);
    let (user, data, code) = (of(header::USER_DATA)?, of(header::DATA)?, of(header::USER_CODE)?);
    let case = |op, args: &[u64], ends, counts: &[_]| Case::new(vcpu, op, args, ends, counts);
    let mut all = Vec::new();
    for (size, value) in DATA_WORDS {
        all.push(case(Op::UserRead, &[2, user + 0x10, size], Ends::With(value), &[]));
        all.push(case(Op::UserWrite, &[2, user + 0x800, value, size], Ends::Done, &[]));
        all.push(case(Op::Read, &[1, data + 0x800, size], Ends::With(value), &[]));
    }
    let lazy =
        [(Counter::Syscalls, 7), (Counter::PageFaults, 7), (Counter::LazyPages, 7), (Counter::Invlpgs, 28)];
    let modify = [(Counter::Syscalls, 6), (Counter::SelfModified, 6)];
    all.extend([
        case(Op::UserExec, &[3, code], Ends::With(ANSWER), &[]),
        case(Op::UserInt3, &[5], Ends::Done, &[(Counter::Breakpoints, 5)]),
        case(Op::UserSyscall, &[20], Ends::Done, &[(Counter::Syscalls, 20)]),
        case(Op::UserLazy, &[7], Ends::Done, &lazy),
        case(Op::UserSelfModify, &[6], Ends::Done, &modify),
        case(Op::UserSpin, &[100_000], Ends::Done, &[]),
    ]);
    Ok(all)
}

fn faults_in_ring_3<B: Bytes>(mailbox: &Mailbox<B>, vcpu: u64) -> Result<Vec<Case>, Error> {
    let of = |offset| mailbox.header(offset);
    let (unmapped, kernel) = (of(header::USER_UNMAPPED)?, of(header::USER_SUPERVISOR)?);
    let (code, data) = (of(header::USER_CODE)?, of(header::USER_DATA)?);
    let page = |op, args: &[u64], error| {
        let ends = Ends::Faulted(14, error, args.get(1).copied(), None);
        Case::new(vcpu, op, args, ends, &[(Counter::PageFaults, 1)])
    };
    let halt = Ends::Faulted(13, 0, None, Some(code + 0x100));
    Ok(vec![
        page(Op::UserRead, &[1, unmapped + 5, 1], 4),
        page(Op::UserWrite, &[1, unmapped, 0, 8], 6),
        page(Op::UserExec, &[1, unmapped], 0x14),
        page(Op::UserRead, &[1, kernel, 8], 5),
        page(Op::UserWrite, &[1, kernel, 0, 4], 7),
        page(Op::UserWrite, &[1, code, 0, 1], 7),
        page(Op::UserExec, &[1, data], 0x15),
        page(Op::UserRead, &[1, MAILBOX, 8], 5),
        // HLT, which ring 3 may not.
        Case::new(vcpu, Op::Write, &[1, of(header::CODE)? + 0x100, 0xf4, 1], Ends::Done, &[]),
        Case::new(vcpu, Op::UserExec, &[1, code + 0x100], halt, &[(Counter::GeneralProtections, 1)]),
    ])
}
