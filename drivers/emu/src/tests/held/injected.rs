//! Injection: when it is taken, and in which order.

use iced_x86::code_asm::*;
use vmtree_api::events::{EventKind, Inject, Verdict};
use vmtree_api::{ErrorKind, Gva};

use super::super::{Bench, CODE};
use super::every;
use crate::cpu::Stepped;
use crate::injection::leave;

impl Bench {
    fn inject(&mut self, what: Inject) {
        what.check("inject").unwrap();
        leave(&mut self.state.vcpus[0].trap, what).unwrap();
    }

    /// Handlers that count the order of their calls in R15, a hex digit each.
    fn noting(&mut self) {
        for vector in [1, 2, 3, 6, 13, 14, 32, 64] {
            self.handler(vector, u64::from(vector == 13), 0, |a| {
                a.shl(r15, 8).unwrap();
                a.or(r15, i32::from(vector)).unwrap();
                if matches!(vector, 13 | 14) {
                    a.add(rsp, 8).unwrap();
                }
                a.iretq().unwrap();
            });
        }
    }
}

fn idling(a: &mut CodeAssembler) {
    a.nop().unwrap();
    a.nop().unwrap();
    a.nop().unwrap();
    a.hlt().unwrap();
}

#[test]
fn an_exception_comes_at_the_next_instruction_and_raises_no_event() {
    for (what, vector) in [
        (Inject::PageFault { address: Gva(0x1234_5678), error: 5 }, 14),
        (Inject::Exception { vector: 13, error: Some(0x18) }, 13),
        (Inject::Exception { vector: 6, error: None }, 6),
        (Inject::Exception { vector: 3, error: None }, 3),
    ] {
        let mut bench = Bench::watched(every(EventKind::Interrupt), idling);
        bench.noting();
        bench.state.step(0);
        bench.inject(what);
        assert_eq!(bench.state.step(0), Stepped::Ran);
        let error = u64::from(matches!(vector, 13 | 14)) * 8;
        let top = bench.regs().gpr[4];
        assert_eq!(bench.word(top + error), CODE + 1, "at the next instruction");
        bench.run();
        assert_eq!(bench.regs().gpr[15], vector);
        if vector == 14 {
            assert_eq!(bench.regs().cr2, 0x1234_5678);
        }
        assert!(bench.event().is_none());
    }
}

#[test]
fn an_interrupt_waits_for_if_and_a_shadow_and_wakes() {
    let mut bench = Bench::new(|a| {
        a.nop().unwrap();
        a.sti().unwrap();
        a.inc(r14).unwrap();
        a.inc(r14).unwrap();
        a.hlt().unwrap();
    });
    bench.noting();
    bench.inject(Inject::Interrupt { vector: 64 });
    while bench.regs().gpr[15] == 0 {
        assert_eq!(bench.state.step(0), Stepped::Ran);
    }
    assert_eq!(bench.regs().gpr[14], 1);
    bench.run();
    assert_eq!(bench.state.step(0), Stepped::Idle);
    for what in [Inject::Interrupt { vector: 64 }, Inject::Nmi, Inject::Exception { vector: 6, error: None }]
    {
        bench.inject(what);
        assert_eq!(bench.state.step(0), Stepped::Ran, "{what:?} wakes");
        bench.state.vcpus[0].activity = crate::cpu::vcpu::Activity::Halted;
        bench.regs().rflags |= 0x200;
        bench.state.vcpus[0].nmi_blocked = false;
    }
    // Interrupts off: it waits, and a second one is refused.
    bench.regs().rflags &= !0x200;
    bench.inject(Inject::Interrupt { vector: 64 });
    assert_eq!(bench.state.step(0), Stepped::Idle);
    let error = leave(&mut bench.state.vcpus[0].trap, Inject::Nmi).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
}

#[test]
fn priorities_are_the_manuals() {
    // An NMI comes before an interrupt; an exception before both.
    for (what, order) in [
        (Inject::Interrupt { vector: 64 }, 0x0240),
        (Inject::Exception { vector: 6, error: None }, 0x0602),
        (Inject::Nmi, 0x0220),
    ] {
        let mut bench = Bench::new(|a| {
            a.sti().unwrap();
            idling(a);
        });
        bench.noting();
        // Handlers run to their end before the next one: their gates clear IF, and an NMI is not nested.
        bench.state.step(0);
        bench.state.step(0);
        match what {
            Inject::Nmi => {
                bench.state.world.apics[0].write(0xf0, 0x1ff, 0);
                bench.state.world.apics[0].raise(32);
            }
            _ => bench.state.world.apics[0].nmi = true,
        }
        bench.inject(what);
        bench.run();
        let seen = bench.regs().gpr[15];
        // The handler of #UD is itself interrupted by the NMI before its first instruction.
        let expected = if order == 0x0602 { 0x0206 } else { order };
        assert_eq!(seen, expected, "{what:?}");
    }
}

#[test]
fn an_nmi_waits_while_one_is_handled() {
    let mut bench = Bench::new(|a| {
        idling(a);
        a.hlt().unwrap();
    });
    bench.noting();
    bench.state.vcpus[0].nmi_blocked = true;
    bench.inject(Inject::Nmi);
    bench.run();
    assert_eq!(bench.regs().gpr[15], 0);
    bench.state.vcpus[0].nmi_blocked = false;
    bench.run();
    assert_eq!(bench.regs().gpr[15], 2);
}

#[test]
fn a_fault_in_the_delivery_of_an_injected_one_is_a_double_fault() {
    let mut bench = Bench::new(idling);
    bench.handler(8, 1, 0, |a| {
        a.mov(r15d, 8).unwrap();
        a.hlt().unwrap();
    });
    // No gate for 13.
    bench.inject(Inject::Exception { vector: 13, error: Some(0) });
    bench.run();
    assert_eq!(bench.regs().gpr[15], 8);
}

#[test]
fn what_no_cpu_raises_is_refused() {
    for what in [
        Inject::Exception { vector: 32, error: None },
        Inject::Exception { vector: 2, error: None },
        Inject::Exception { vector: 13, error: None },
        Inject::Exception { vector: 6, error: Some(0) },
        Inject::PageFault { address: Gva(0), error: 1 << 16 },
    ] {
        let error = what.check("inject").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{what:?}");
        assert!(!error.to_string().contains('\n'));
    }
}

#[test]
fn a_verdict_leaves_an_interrupt_and_continues() {
    let mut bench = Bench::watched(every(EventKind::Cr3), |a| {
        a.sti().unwrap();
        a.mov(rax, 0x1008_u64).unwrap();
        a.mov(cr3, rax).unwrap();
        a.inc(rbx).unwrap();
    });
    bench.noting();
    bench.held();
    bench.answer(Verdict::Inject(Inject::Interrupt { vector: 64 }));
    assert_eq!(bench.state.step(0), Stepped::Ran);
    assert_eq!((bench.regs().cr3, bench.regs().gpr[15]), (0x1008, 0), "it continues first");
    bench.run();
    assert_eq!((bench.regs().gpr[15], bench.regs().gpr[3]), (64, 1));
    let mut bench = Bench::watched(every(EventKind::Cr3), |a| a.mov(cr3, rax).unwrap());
    bench.held();
    bench.inject(Inject::Interrupt { vector: 64 });
    bench.refused(Verdict::Inject(Inject::Nmi), ErrorKind::Busy);
}
