//! Results and defined flags against the host CPU: the same bytes on the same registers and memory.

use iced_x86::{Mnemonic, OpKind, RflagsBits};
use vmtree_emu::cpu::{Cpu, Exception};

use crate::forms::{self, Form};
use crate::machine::{Memory, run};
use crate::random::Random;
use crate::scene::{self, PLAIN_FLAGS};
use crate::sequences;
use crate::sys::{Host, State};

const SEED: u64 = 20_261_122;
/// Operand sets for each form.
const SETS: u64 = 400;

const CF: u64 = 1;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const OF: u64 = 1 << 11;

/// What differs after the bytes ran on both, and on what they ran.
struct Trial<'a> {
    cpu: &'a Cpu,
    bytes: &'a [u8],
    flags: u64,
    /// A register that is undefined if ZF comes out set.
    undefined_at_zero: Option<usize>,
}

impl Trial<'_> {
    /// Runs the bytes on both sides. `true` if they completed.
    fn agree(&self, host: &mut Host, memory: &Memory) -> Result<bool, String> {
        let (mut cpu, mut ours) = (self.cpu.clone(), memory.clone());
        let regs = &self.cpu.regs;
        let mut state = State {
            xmm: self.cpu.xmm,
            gpr: regs.gpr,
            rflags: regs.rflags,
            mxcsr: u64::from(self.cpu.mxcsr),
            ..State::default()
        };
        let mut theirs = memory.bytes.clone();
        let signal = host.run(&mut state, &mut theirs);
        let fault = run(&mut cpu, &mut ours, self.bytes, host.layout().code).err();
        if expected_signal(fault) != signal {
            return Err(format!("here {fault:?}, there signal {signal:?}"));
        }
        self.compare(&cpu, &state)?;
        if ours.bytes != theirs {
            let at = ours.bytes.iter().zip(&theirs).position(|(a, b)| a != b).unwrap();
            let (here, there) = (&ours.bytes[at..][..16.min(1024 - at)], &theirs[at..][..16.min(1024 - at)]);
            return Err(format!("memory at {at:#x}: here {here:02x?}, there {there:02x?}"));
        }
        Ok(signal.is_none())
    }

    fn compare(&self, cpu: &Cpu, state: &State) -> Result<(), String> {
        for (number, (here, there)) in cpu.regs.gpr.iter().zip(&state.gpr).enumerate() {
            let defined = self.undefined_at_zero != Some(number) || state.rflags & ZF == 0;
            if here != there && defined {
                return Err(format!("gpr {number}: here {here:#x}, there {there:#x}"));
            }
        }
        for (number, (here, there)) in cpu.xmm.iter().zip(&state.xmm).enumerate() {
            if here != there {
                return Err(format!("xmm {number}: here {here:#x}, there {there:#x}"));
            }
        }
        if (cpu.regs.rflags ^ state.rflags) & self.flags != 0 {
            let (here, there) = (cpu.regs.rflags & self.flags, state.rflags & self.flags);
            return Err(format!("rflags: here {here:#x}, there {there:#x} of {:#x}", self.flags));
        }
        if u64::from(cpu.mxcsr) != state.mxcsr {
            return Err(format!("mxcsr: here {:#x}, there {:#x}", cpu.mxcsr, state.mxcsr));
        }
        Ok(())
    }
}

fn expected_signal(fault: Option<Exception>) -> Option<i32> {
    fault.map(|exception| match exception.vector {
        0 => libc::SIGFPE,
        6 => libc::SIGILL,
        _ => libc::SIGSEGV,
    })
}

#[test]
fn every_form_does_what_the_host_cpu_does() {
    let mut host = Host::new();
    let layout = host.layout();
    let forms = forms::all(layout);
    for mnemonic in forms::mnemonics() {
        assert!(forms.iter().any(|form| form.ins.mnemonic() == mnemonic), "no form of {mnemonic:?}");
    }
    let (mut failures, mut completed) = (Vec::new(), 0);
    for form in &forms {
        host.load(&form.bytes);
        let mut random = Random(SEED ^ form.seed);
        let mut done = 0;
        let failure = (0..SETS).find_map(|set| {
            let (cpu, memory) = scene::fitting(form, layout, &mut random);
            let trial = Trial {
                cpu: &cpu,
                bytes: &form.bytes,
                flags: defined_flags(form, &cpu),
                undefined_at_zero: scanned_into(form),
            };
            match trial.agree(&mut host, &memory) {
                Ok(completed) => done += u64::from(completed),
                Err(what) => return Some(format!("{form}, seed {SEED}, set {set}: {what}")),
            }
            None
        });
        // A form that always faults proves nothing of its results.
        assert!(failure.is_some() || done > SETS / 100, "{form} completed {done} times only");
        completed += done;
        failures.extend(failure);
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), forms.len(), failures.join("\n"));
    println!("{} forms, {completed} runs compared that completed", forms.len());
}

#[test]
fn stack_and_branches_do_what_the_host_cpu_does() {
    let mut host = Host::new();
    let layout = host.layout();
    for (name, bytes) in sequences::all() {
        host.load(&bytes);
        let mut random = Random(SEED);
        for set in 0..SETS {
            let (cpu, memory) = sequences::scene(layout, &mut random);
            let trial = Trial { cpu: &cpu, bytes: &bytes, flags: PLAIN_FLAGS, undefined_at_zero: None };
            match trial.agree(&mut host, &memory) {
                Ok(completed) => assert!(completed, "{name} faulted, set {set}"),
                Err(what) => panic!("{name} {bytes:02x?}, seed {SEED}, set {set}: {what}"),
            }
        }
    }
}

/// The destination of BSF and BSR, which the manual leaves undefined if the source is 0.
fn scanned_into(form: &Form) -> Option<usize> {
    let scans = matches!(form.ins.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr);
    scans.then(|| form.ins.op0_register().number())
}

/// The flags that the manual defines after this form on these operands.
fn defined_flags(form: &Form, cpu: &Cpu) -> u64 {
    use Mnemonic::{Rcl, Rcr, Rol, Ror, Sal, Sar, Shl, Shld, Shr, Shrd};
    let ins = &form.ins;
    let undefined = match ins.mnemonic() {
        Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr => after_shift(form, cpu, 1),
        Shld | Shrd => after_shift(form, cpu, 2),
        _ => undefined_flags(ins.rflags_undefined()),
    };
    PLAIN_FLAGS & !undefined
}

/// iced's table of what the manual says.
fn undefined_flags(bits: u32) -> u64 {
    let table = [
        (RflagsBits::OF, OF),
        (RflagsBits::SF, 1 << 7),
        (RflagsBits::ZF, 1 << 6),
        (RflagsBits::AF, AF),
        (RflagsBits::CF, CF),
        (RflagsBits::PF, 1 << 2),
    ];
    table.iter().filter(|(bit, _)| bits & bit != 0).fold(0, |all, (_, flag)| all | flag)
}

/// What a shift leaves undefined, which depends on its count (Intel SDM volume 2, SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR,
/// SHLD): nothing at 0; AF, but not of rotations; OF but at 1; CF of SHL and SHR that move out all bits.
fn after_shift(form: &Form, cpu: &Cpu, count_operand: u32) -> u64 {
    use Mnemonic::{Rcl, Rcr, Rol, Ror, Sal, Shl, Shr};
    let ins = &form.ins;
    let bits = scene::operand_bits(form);
    let count = match ins.op_kind(count_operand) {
        OpKind::Immediate8 => u64::from(ins.immediate8()),
        _ => cpu.regs.gpr[1],
    };
    let count = count as u32 & if bits == 64 { 63 } else { 31 };
    let rotates = matches!(ins.mnemonic(), Rol | Ror | Rcl | Rcr);
    let mut undefined = 0;
    if count != 0 && !rotates {
        undefined |= AF;
    }
    if count > 1 {
        undefined |= OF;
    }
    if count >= bits && matches!(ins.mnemonic(), Shl | Sal | Shr) {
        undefined |= CF;
    }
    undefined
}
