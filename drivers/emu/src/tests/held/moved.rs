//! What was stopped is gone by the time of the answer: somebody has set RIP, or has put other code there.

use iced_x86::code_asm::*;
use vmtree_api::events::{EventKind, Inject, Verdict};
use vmtree_api::x86::Reg;
use vmtree_api::{ErrorKind, Gva, RegValue};

use super::super::{Bench, CODE};
use super::every;
use crate::registers;

/// Held at the first of two moves to CR3, of 3 bytes each; RIP is set to the second one from outside.
fn moved() -> Bench {
    let mut bench = Bench::watched(every(EventKind::Cr3), |a| {
        a.mov(cr3, rax).unwrap();
        a.mov(cr3, rax).unwrap();
    });
    bench.regs().gpr[0] = 0x1008;
    assert_eq!(bench.held().rip, CODE);
    let rip = (Reg::Rip.id(), RegValue::Word(CODE + 3));
    registers::set(&mut bench.state, 0, &[rip]).unwrap();
    bench
}

#[test]
fn an_answer_to_what_is_gone_is_none_to_the_next_instruction() {
    for verdict in [Verdict::Continue, Verdict::Deny, Verdict::Step(None), Verdict::Set(vec![])] {
        let mut bench = moved();
        bench.answer(verdict.clone());
        assert_eq!(bench.held().rip, CODE + 3, "{verdict:?}");
        bench.answer(Verdict::Continue);
        bench.run();
        assert_eq!(bench.regs().cr3, 0x1008, "{verdict:?}");
    }
}

#[test]
fn what_is_gone_takes_no_value() {
    let mut bench = moved();
    bench.refused(Verdict::Value(0x1010), ErrorKind::Invalid);
    bench.answer(Verdict::Continue);
    assert_eq!(bench.held().rip, CODE + 3);
}

#[test]
fn an_exception_comes_where_rip_is_now() {
    let fault = Verdict::Inject(Inject::PageFault { address: Gva(0x1234), error: 2 });
    let mut bench = moved();
    bench.handler(14, 0, 0, |a| a.hlt().unwrap());
    bench.answer(fault.clone());
    bench.run();
    let top = bench.regs().gpr[4];
    assert_eq!((bench.regs().cr2, bench.word(top), bench.word(top + 8)), (0x1234, 2, CODE + 3));

    // Whoever has set a breakpoint takes it away, and has the instruction there fault.
    let mut bench = Bench::watched(every(EventKind::Breakpoint), |a| a.int3().unwrap());
    bench.handler(14, 0, 0, |a| a.hlt().unwrap());
    bench.held();
    bench.code(CODE, |a| a.nop().unwrap());
    bench.answer(fault);
    bench.run();
    let top = bench.regs().gpr[4];
    assert_eq!((bench.regs().cr2, bench.word(top + 8)), (0x1234, CODE));
}
