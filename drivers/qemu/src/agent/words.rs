//! The agent's words and vmtree's, each as the other's.

use vmtree_agent as agent;
use vmtree_agent::flag;
use vmtree_agent::server::Refusal;
use vmtree_api::events::{
    Action, DescriptorTable, Detail, Event, EventKind, Inject, InterruptType, Move, Verdict, Wanted, Way,
};
use vmtree_api::{Access, Arch, Error, ErrorKind, Gpa, Gva, RegId, RegValue, Result, VcpuId, ViewId};

use crate::said::said;

/// The kinds, in both orders.
const KINDS: [(agent::Kind, EventKind); 15] = [
    (agent::Kind::Cr0, EventKind::Cr0),
    (agent::Kind::Cr3, EventKind::Cr3),
    (agent::Kind::Cr4, EventKind::Cr4),
    (agent::Kind::Cr8, EventKind::Cr8),
    (agent::Kind::Xcr0, EventKind::Xcr0),
    (agent::Kind::Dr, EventKind::Dr),
    (agent::Kind::Msr, EventKind::Msr),
    (agent::Kind::Interrupt, EventKind::Interrupt),
    (agent::Kind::Breakpoint, EventKind::Breakpoint),
    (agent::Kind::SingleStep, EventKind::SingleStep),
    (agent::Kind::Slat, EventKind::Slat),
    (agent::Kind::Cpuid, EventKind::Cpuid),
    (agent::Kind::Io, EventKind::Io),
    (agent::Kind::Descriptor, EventKind::Descriptor),
    (agent::Kind::GuestRequest, EventKind::GuestRequest),
];

const WAYS: [(agent::Way, Way); 6] = [
    (agent::Way::Once, Way::Once),
    (agent::Way::To, Way::To),
    (agent::Way::From, Way::From),
    (agent::Way::Read, Way::Read),
    (agent::Way::Write, Way::Write),
    (agent::Way::Execute, Way::Execute),
];

const ACTIONS: [(agent::Action, Action); 6] = [
    (agent::Action::Continue, Action::Continue),
    (agent::Action::Deny, Action::Deny),
    (agent::Action::Value, Action::Value),
    (agent::Action::Set, Action::Set),
    (agent::Action::Step, Action::Step),
    (agent::Action::Inject, Action::Inject),
];

pub fn kind(kind: agent::Kind) -> EventKind {
    KINDS.iter().find(|row| row.0 == kind).map_or(EventKind::GuestRequest, |row| row.1)
}

pub fn agent_kind(kind: EventKind) -> agent::Kind {
    KINDS.iter().find(|row| row.1 == kind).map_or(agent::Kind::GuestRequest, |row| row.0)
}

fn way(way: agent::Way) -> Way {
    WAYS.iter().find(|row| row.0 == way).map_or(Way::Once, |row| row.1)
}

pub fn agent_way(way: Way) -> agent::Way {
    WAYS.iter().find(|row| row.1 == way).map_or(agent::Way::Once, |row| row.0)
}

pub fn action(action: agent::Action) -> Action {
    ACTIONS.iter().find(|row| row.0 == action).map_or(Action::Continue, |row| row.1)
}

/// What is wanted, for the agent.
///
/// # Errors
/// [`ErrorKind::NotFound`] for a rule of another view than the one there is.
pub fn wanted(wanted: &Wanted) -> Result<agent::Wanted> {
    if let Some(rule) = wanted.rules.iter().find(|rule| rule.view != ViewId(0)) {
        let why = format!("QEMU has no view {}: it has one view of memory", rule.view.0);
        return Err(Error::new(ErrorKind::NotFound, "watch", why));
    }
    let watches = wanted.watches.iter().map(|watch| agent::Watch {
        kind: agent_kind(watch.kind),
        way: watch.way.map(agent_way),
        vcpu: watch.vcpu.map(|vcpu| vcpu.0),
        index: watch.index,
        hold: watch.hold,
    });
    let rules = wanted.rules.iter().map(|rule| agent::Rule {
        frames: rule.frames.start.0..rule.frames.end.0,
        access: [(Access::READ, 1), (Access::WRITE, 2), (Access::EXECUTE, 4)]
            .into_iter()
            .filter(|(right, _)| rule.access.contains(*right))
            .fold(0, |all, (_, bit)| all | bit),
        hold: rule.hold,
    });
    Ok(agent::Wanted { watches: watches.collect(), rules: rules.collect() })
}

/// An event, or why it can't be one.
///
/// # Errors
/// [`ErrorKind::Protocol`]: the agent says what no processor does.
pub fn event(event: &agent::Event) -> Result<Event> {
    let impossible = || {
        let why = format!("it tells of a {:?} that no processor does", event.kind);
        Error::new(ErrorKind::Protocol, "take event", why)
    };
    let told = Event {
        vcpu: VcpuId(event.vcpu),
        view: ViewId(0),
        kind: kind(event.kind),
        rip: event.rip,
        cr3: event.cr3,
        detail: detail(event).ok_or_else(impossible)?,
    };
    // The detail says the way too.
    let way = way(event.way);
    let happens = told.way() == way && told.kind.ways().contains(&way);
    if happens { Ok(told) } else { Err(impossible()) }
}

fn detail(event: &agent::Event) -> Option<Detail> {
    use agent::Kind;
    let has = |bit: u16| event.flags & bit != 0;
    let gpa = has(flag::GPA).then_some(Gpa(event.a));
    let access = match event.way {
        agent::Way::To => Move::To { old: event.a, new: event.b },
        _ => Move::From { value: event.a },
    };
    Some(match event.kind {
        Kind::Cr0 | Kind::Cr3 | Kind::Cr4 | Kind::Cr8 | Kind::Xcr0 => Detail::Control(access),
        Kind::Dr => Detail::Debug { reg: u8::try_from(event.index).ok()?, access },
        Kind::Msr => Detail::Msr { index: event.index, access },
        Kind::Interrupt => Detail::Interrupt {
            vector: (!has(flag::NO_VECTOR)).then_some(event.index as u8),
            kind: interrupt_type(event.index >> 8)?,
            error: has(flag::ERROR).then_some(event.extra),
            cr2: has(flag::CR2).then_some(event.b),
        },
        Kind::Breakpoint => Detail::Breakpoint { gpa, len: u8::try_from(event.index).ok()? },
        Kind::SingleStep => Detail::SingleStep,
        Kind::Slat => Detail::Slat {
            access: match event.way {
                agent::Way::Read => Access::READ,
                agent::Way::Write => Access::WRITE,
                agent::Way::Execute => Access::EXECUTE,
                _ => return None,
            },
            gpa: gpa?,
            gva: has(flag::GVA).then_some(Gva(event.b)),
            page_walk: has(flag::PAGE_WALK),
        },
        Kind::Cpuid => Detail::Cpuid { leaf: event.index, subleaf: event.extra },
        Kind::Io => Detail::Io {
            port: u16::try_from(event.index).ok()?,
            bytes: u8::try_from(event.extra).ok()?,
            value: (event.way == agent::Way::To).then_some(event.a as u32),
        },
        Kind::Descriptor => Detail::Descriptor {
            table: match event.index {
                0 => DescriptorTable::Gdtr,
                1 => DescriptorTable::Idtr,
                2 => DescriptorTable::Ldtr,
                3 => DescriptorTable::Tr,
                _ => return None,
            },
            way: way(event.way),
        },
        Kind::GuestRequest => Detail::GuestRequest,
    })
}

fn interrupt_type(number: u32) -> Option<InterruptType> {
    Some(match number {
        0 => InterruptType::External,
        1 => InterruptType::Nmi,
        2 => InterruptType::HardwareException,
        3 => InterruptType::SoftwareInterrupt,
        4 => InterruptType::PrivilegedSoftwareException,
        5 => InterruptType::SoftwareException,
        _ => return None,
    })
}

/// A verdict, for the agent.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for what an agent has no words for: views, and registers that it doesn't know.
pub fn verdict(verdict: &Verdict) -> Result<agent::Verdict> {
    Ok(match verdict {
        Verdict::Continue => agent::Verdict::Continue,
        Verdict::Deny => agent::Verdict::Deny,
        Verdict::Value(value) => agent::Verdict::Value(*value),
        Verdict::Step(None | Some(ViewId(0))) => agent::Verdict::Step,
        Verdict::Step(Some(view)) | Verdict::View(view) => {
            let why = format!("QEMU has no view {}: it has one view of memory", view.0);
            return Err(Error::new(ErrorKind::Unsupported, "answer", why));
        }
        Verdict::Set(changes) => agent::Verdict::Set(changes.iter().map(register).collect::<Result<_>>()?),
        Verdict::Inject(what) => agent::Verdict::Inject(match *what {
            Inject::PageFault { address, error } => agent::Inject::PageFault { address: address.0, error },
            Inject::Exception { vector, error } => agent::Inject::Exception { vector, error },
            Inject::Interrupt { vector } => agent::Inject::Interrupt { vector },
            Inject::Nmi => agent::Inject::Nmi,
        }),
    })
}

/// The registers that an agent sets, by the names that they have in vmtree, in the order of [`agent::Reg::ALL`].
const NAMES: [&str; 24] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15", "rip", "rflags", "cr0", "cr2", "cr3", "cr4", "cr8", "efer",
];

/// A register with its value, for the agent.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for one that it has no word for.
pub fn register((id, value): &(RegId, RegValue)) -> Result<(agent::Reg, u64)> {
    let name = Arch::X86_64.registers().get(usize::from(id.0)).map_or("", |def| def.name);
    let place = NAMES.iter().position(|known| *known == name).or((name == "kernel_gs_base").then_some(32));
    match (place.and_then(|place| agent::Reg::ALL.get(place)), value) {
        (Some(reg), RegValue::Word(value)) => Ok((*reg, *value)),
        _ => {
            let why =
                format!("{name} can't be set in an answer through QEMU's plugin interface; use vcpu/N/regs");
            Err(Error::new(ErrorKind::Unsupported, "answer", why))
        }
    }
}

/// A register of the agent's; `None` for one that is no number here.
pub fn id(reg: agent::Reg) -> Option<RegId> {
    let name = match reg {
        agent::Reg::KernelGsBase => "kernel_gs_base",
        _ => NAMES.get(usize::from(reg as u8))?,
    };
    Arch::X86_64.register(name)
}

/// Why an agent refused something.
pub fn refusal(op: &'static str, refusal: &Refusal) -> Error {
    let kind = match refusal.code {
        agent::Code::Ok | agent::Code::Invalid => ErrorKind::Invalid,
        agent::Code::Unsupported => ErrorKind::Unsupported,
        agent::Code::NotFound => ErrorKind::NotFound,
        agent::Code::Busy => ErrorKind::Busy,
        agent::Code::Stale => ErrorKind::Stale,
        agent::Code::TimedOut => ErrorKind::TimedOut,
    };
    Error::new(kind, op, said(&refusal.why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_has_its_own_on_the_other_side() {
        for (one, other) in KINDS {
            assert_eq!((kind(one), agent_kind(other)), (other, one));
            assert_eq!(format!("{one:?}"), format!("{other:?}"));
        }
        for (one, other) in WAYS {
            assert_eq!((way(one), agent_way(other)), (other, one));
            assert_eq!(format!("{one:?}"), format!("{other:?}"));
        }
        for (one, other) in ACTIONS {
            assert_eq!(format!("{one:?}"), format!("{other:?}"));
        }
        for (name, reg) in NAMES.iter().zip(agent::Reg::ALL) {
            assert_eq!(format!("{reg:?}").to_lowercase(), *name);
            let id = Arch::X86_64.register(name).unwrap();
            assert_eq!(register(&(id, RegValue::Word(7))).unwrap(), (*reg, 7));
        }
        let id = Arch::X86_64.register("kernel_gs_base").unwrap();
        assert_eq!(register(&(id, RegValue::Word(7))).unwrap().0, agent::Reg::KernelGsBase);
    }
}
