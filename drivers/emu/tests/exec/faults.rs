//! An access that faults leaves everything as it was.

use vmtree_emu::cpu::exec::{Done, execute};
use vmtree_emu::cpu::{Cpu, Exception};

use crate::machine::{LAYOUT, Memory, REFUSED, decode, state};
use crate::random::Random;
use crate::{forms, scene, sequences};

/// Runs the instruction at RIP with its first access refused, then its second, and so on until none is left. Returns
/// how many there were.
fn refuse_each(cpu: &mut Cpu, memory: &mut Memory, code: &[u8]) -> Result<usize, Exception> {
    let ins = decode(code, LAYOUT.code, cpu.regs.rip);
    for accesses in 0.. {
        let (mut tried, mut touched) = (cpu.clone(), memory.clone());
        touched.refuse = Some(accesses);
        let outcome = execute(&mut tried, &mut touched, &ins);
        if outcome == Err(REFUSED) {
            assert_eq!(state(&tried), state(cpu), "{:?} {code:02x?}, access {accesses}", ins.code());
            assert_eq!(touched.bytes, memory.bytes, "{:?} {code:02x?}, access {accesses}", ins.code());
            continue;
        }
        if let Err(exception) = outcome {
            assert_eq!(state(&tried), state(cpu), "{:?} {code:02x?}", ins.code());
            assert_eq!(touched.bytes, memory.bytes, "{:?} {code:02x?}", ins.code());
            return Err(exception);
        }
        assert_ne!(outcome, Ok(Done::NotHere));
        (*cpu, *memory) = (tried, Memory { refuse: None, ..touched });
        return Ok(accesses);
    }
    Ok(0)
}

#[test]
fn a_refused_access_changes_nothing() {
    let mut with_memory = 0;
    for form in forms::all(LAYOUT) {
        let mut random = Random(form.seed);
        let mut most = 0;
        for _ in 0..24 {
            let (mut cpu, mut memory) = scene::fitting(&form, LAYOUT, &mut random);
            most = most.max(refuse_each(&mut cpu, &mut memory, &form.bytes).unwrap_or(0));
        }
        with_memory += usize::from(most > 0);
    }
    assert!(with_memory > 400, "only {with_memory} forms touched memory");
}

#[test]
fn a_refused_stack_access_changes_nothing() {
    let mut random = Random(7);
    let mut accesses = 0;
    for (name, code) in sequences::all() {
        for _ in 0..24 {
            let (mut cpu, mut memory) = sequences::scene(LAYOUT, &mut random);
            let mut steps = 0;
            while cpu.regs.rip != LAYOUT.code + code.len() as u64 {
                steps += 1;
                assert!(steps < 1000, "{name} does not end");
                accesses += refuse_each(&mut cpu, &mut memory, &code).expect(&name);
            }
        }
    }
    assert!(accesses > 1000);
}
