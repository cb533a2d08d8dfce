//! The event that a watched instruction is.

use vmtree_agent::{Event, Kind, Reg, Way, flag};

use crate::decode::{Op, Site};
use crate::tracked::Tracked;
use crate::vcpu::{Vcpu, cpl};

/// The address of the instruction at a site. The register is that of the block's beginning, which is less than two pages
/// away; the place in the page is the site's.
pub fn rip(cpu: &dyn Vcpu, site: Site) -> u64 {
    let near = cpu.get(Reg::Rip);
    // In real mode a site's place counts from the segment's base.
    let base = if cpu.get(Reg::Cr0) & 1 == 0 { cpu.get(Reg::Cs) << 4 } else { 0 };
    let ahead = u64::from(site.offset).wrapping_sub(near.wrapping_add(base)) & 0xfff;
    near.wrapping_add(ahead)
}

/// The general register of this number.
pub fn gpr(number: u8) -> Option<Reg> {
    Reg::try_from(number).ok().filter(|_| number < 16)
}

fn gpr_value(cpu: &dyn Vcpu, number: u8) -> u64 {
    gpr(number).map_or(0, |reg| cpu.get(reg))
}

/// EDX:EAX.
pub fn pair(cpu: &dyn Vcpu) -> u64 {
    cpu.get(Reg::Rdx) << 32 | cpu.get(Reg::Rax) & 0xffff_ffff
}

/// The control register of this number, as a kind and a register.
pub fn control(number: u8) -> Option<(Kind, Reg)> {
    match number {
        0 => Some((Kind::Cr0, Reg::Cr0)),
        3 => Some((Kind::Cr3, Reg::Cr3)),
        4 => Some((Kind::Cr4, Reg::Cr4)),
        8 => Some((Kind::Cr8, Reg::Cr8)),
        _ => None,
    }
}

/// The kind of event that a site can be.
pub fn kind(site: Site) -> Option<Kind> {
    Some(match site.op {
        Op::Fetch | Op::Access => Kind::Slat,
        Op::Step => Kind::SingleStep,
        Op::MovToCr | Op::MovFromCr => control(site.number)?.0,
        Op::Clts | Op::Lmsw | Op::Smsw => Kind::Cr0,
        Op::MovToDr | Op::MovFromDr => Kind::Dr,
        Op::Wrmsr | Op::Rdmsr => Kind::Msr,
        Op::Xsetbv => Kind::Xcr0,
        Op::Int3 => Kind::Breakpoint,
        Op::Cpuid => Kind::Cpuid,
        Op::In | Op::Out | Op::StringIn | Op::StringOut => Kind::Io,
        Op::Hypercall => Kind::GuestRequest,
        Op::Lgdt | Op::Lidt | Op::Lldt | Op::Ltr | Op::Sgdt | Op::Sidt | Op::Sldt | Op::Str => {
            Kind::Descriptor
        }
    })
}

/// Whether the processor would refuse the instruction before it does anything: then nothing happens to tell of.
fn refused(cpu: &dyn Vcpu, op: Op) -> bool {
    let level = cpl(cpu);
    match op {
        Op::MovToCr | Op::MovFromCr | Op::Clts | Op::Lmsw | Op::MovToDr | Op::MovFromDr => level != 0,
        Op::Wrmsr | Op::Rdmsr | Op::Xsetbv | Op::Lgdt | Op::Lidt | Op::Lldt | Op::Ltr => level != 0,
        // CR4.UMIP.
        Op::Smsw | Op::Sgdt | Op::Sidt | Op::Sldt | Op::Str => level != 0 && cpu.get(Reg::Cr4) >> 11 & 1 == 1,
        // IOPL. That a task may have single ports beside it is not looked at.
        Op::In | Op::Out | Op::StringIn | Op::StringOut => u64::from(level) > cpu.get(Reg::Rflags) >> 12 & 3,
        Op::Fetch | Op::Step | Op::Access | Op::Int3 | Op::Cpuid | Op::Hypercall => false,
    }
}

/// The event that an instruction at `rip` is about to be; `None` where the processor refuses it.
pub fn event(cpu: &dyn Vcpu, tracked: &Tracked, site: Site, rip: u64) -> Option<Event> {
    if refused(cpu, site.op) {
        return None;
    }
    let mut event = Event::new(kind(site)?, Way::Once, cpu.number());
    (event.rip, event.cr3, event.cpl) = (rip, cpu.get(Reg::Cr3), cpl(cpu));
    match site.op {
        Op::MovToCr | Op::Clts | Op::Lmsw => to_control(cpu, site, &mut event),
        Op::MovFromCr => from(&mut event, cpu.get(control(site.number)?.1)),
        Op::Smsw => {
            from(&mut event, cpu.get(Reg::Cr0));
            event.flags |= flag::PART;
        }
        Op::MovToDr => {
            event.index = u32::from(site.number);
            to(
                &mut event,
                tracked.dr.get(usize::from(site.number)).copied().unwrap_or(0),
                gpr_value(cpu, site.gpr),
            );
        }
        Op::Wrmsr => {
            event.index = cpu.get(Reg::Rcx) as u32;
            let old = msr(cpu, tracked, event.index);
            to(&mut event, old, pair(cpu));
        }
        Op::Xsetbv => to(&mut event, tracked.xcr0, pair(cpu)),
        Op::Int3 => {
            event.index = 1;
            if let Some(gpa) = cpu.translate(rip) {
                (event.a, event.flags) = (gpa, event.flags | flag::GPA);
            }
        }
        Op::Cpuid => (event.index, event.extra) = (cpu.get(Reg::Rax) as u32, cpu.get(Reg::Rcx) as u32),
        Op::In | Op::Out | Op::StringIn | Op::StringOut => port(cpu, site, &mut event),
        Op::Lgdt | Op::Lidt | Op::Lldt | Op::Ltr | Op::Sgdt | Op::Sidt | Op::Sldt | Op::Str => {
            table(site.op, &mut event)
        }
        Op::Fetch => fetch(cpu, rip, &mut event),
        Op::Step | Op::Hypercall => {}
        // Reads of what the interface doesn't show, and what has a callback of its own.
        Op::MovFromDr | Op::Rdmsr | Op::Access => return None,
    }
    Some(event)
}

fn to(event: &mut Event, old: u64, new: u64) {
    (event.way, event.a, event.b) = (Way::To, old, new);
}

fn from(event: &mut Event, value: u64) {
    (event.way, event.a) = (Way::From, value);
}

fn to_control(cpu: &dyn Vcpu, site: Site, event: &mut Event) {
    const TS: u64 = 8;
    let cr0 = cpu.get(Reg::Cr0);
    match site.op {
        Op::Clts => to(event, cr0, cr0 & !TS),
        Op::Lmsw => to(event, cr0, lmsw(cpu, cr0, event.rip)),
        _ => {
            let old = control(site.number).map_or(0, |(_, reg)| cpu.get(reg));
            to(event, old, gpr_value(cpu, site.gpr));
        }
    }
}

/// What LMSW makes of CR0: bits 0 to 3, of which PE is never cleared (Intel SDM volume 2A, LMSW).
fn lmsw(cpu: &dyn Vcpu, cr0: u64, rip: u64) -> u64 {
    let word = operand(cpu, rip).map_or(0, |word| word & 0xf);
    cr0 & !0xe | word
}

/// The 16 bits that the instruction at `rip` reads.
fn operand(cpu: &dyn Vcpu, rip: u64) -> Option<u64> {
    let instruction = crate::interrupts::again(cpu, rip)?;
    if instruction.op0_kind() == iced_x86::OpKind::Register {
        return Some(gpr_value(cpu, instruction.op0_register().number() as u8));
    }
    let mut word = [0; 2];
    let address = crate::interrupts::address(cpu, &instruction)?;
    cpu.read(address, &mut word).then(|| u64::from(u16::from_le_bytes(word)))
}

/// The MSRs that the interface shows by register.
pub fn msr_register(index: u32) -> Option<Reg> {
    match index {
        0xc000_0080 => Some(Reg::Efer),
        0xc000_0100 => Some(Reg::FsBase),
        0xc000_0101 => Some(Reg::GsBase),
        0xc000_0102 => Some(Reg::KernelGsBase),
        _ => None,
    }
}

fn msr(cpu: &dyn Vcpu, tracked: &Tracked, index: u32) -> u64 {
    msr_register(index).map_or_else(|| tracked.msr(index), |reg| cpu.get(reg))
}

fn port(cpu: &dyn Vcpu, site: Site, event: &mut Event) {
    event.index = if site.dx { cpu.get(Reg::Rdx) as u32 & 0xffff } else { u32::from(site.gpr) };
    event.extra = u32::from(site.number);
    let mask = match site.number {
        1 => 0xff,
        2 => 0xffff,
        _ => 0xffff_ffff,
    };
    match site.op {
        Op::Out => (event.way, event.a) = (Way::To, cpu.get(Reg::Rax) & mask),
        Op::StringOut => {
            let mut data = [0; 4];
            let address = cpu.get(Reg::Rsi);
            let known =
                data.get_mut(..usize::from(site.number.min(4))).is_some_and(|data| cpu.read(address, data));
            let value = if known { u64::from(u32::from_le_bytes(data)) } else { 0 };
            (event.way, event.a, event.flags) = (Way::To, value, event.flags | flag::STRING);
        }
        Op::StringIn => (event.way, event.flags) = (Way::From, event.flags | flag::STRING),
        _ => event.way = Way::From,
    }
}

fn table(op: Op, event: &mut Event) {
    (event.index, event.way) = match op {
        Op::Lgdt => (0, Way::To),
        Op::Lidt => (1, Way::To),
        Op::Lldt => (2, Way::To),
        Op::Ltr => (3, Way::To),
        Op::Sgdt => (0, Way::From),
        Op::Sidt => (1, Way::From),
        Op::Sldt => (2, Way::From),
        _ => (3, Way::From),
    };
}

fn fetch(cpu: &dyn Vcpu, rip: u64, event: &mut Event) {
    (event.way, event.b, event.flags) = (Way::Execute, rip, event.flags | flag::GVA);
    if let Some(gpa) = cpu.translate(rip) {
        (event.a, event.flags) = (gpa, event.flags | flag::GPA);
    }
}

/// Keeps what this instruction is about to make of the registers that the interface doesn't show.
pub fn track(cpu: &dyn Vcpu, tracked: &mut Tracked, site: Site, rip: u64) {
    if refused(cpu, site.op) {
        return;
    }
    match site.op {
        Op::MovToDr => {
            if let Some(dr) = tracked.dr.get_mut(usize::from(site.number)) {
                *dr = gpr_value(cpu, site.gpr);
            }
        }
        Op::Wrmsr => tracked.set_msr(cpu.get(Reg::Rcx) as u32, pair(cpu)),
        Op::Xsetbv if cpu.get(Reg::Rcx) as u32 == 0 => tracked.xcr0 = pair(cpu),
        Op::Lidt => tracked.idt = crate::interrupts::loaded_table(cpu, rip).or(tracked.idt),
        _ => {}
    }
}
