//! Single steps, counted in the guest's own code.

use std::time::Duration;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction};
use vmtree_guest::layout;
use vmtree_guest::mailbox::{Counter, Op, Site};

use super::errno::{EBUSY, EINVAL, ERANGE};
use crate::order::{CATCHABLE, Masked, Quiet};
use crate::regs::Regs;
use crate::vm::Paused;
use crate::{Check, Checked, Vm};

const STEP: &[&str] = &["step", "registers"];

pub const CHECKS: &[Check] = &[
    Check {
        name: "step-counts",
        needs: STEP,
        about: "step N of a known loop executes N instructions, each vCPU",
        run: counts,
    },
    Check {
        name: "step-follows-code",
        needs: STEP,
        about: "each step goes to an instruction that the code allows",
        run: follows_code,
    },
    Check {
        name: "step-sti",
        needs: STEP,
        about: "a step of sti executes it, and at most the one instruction in its shadow",
        run: sti,
    },
    Check {
        name: "step-heartbeat",
        needs: STEP,
        about: "the guest's heartbeat counts the rounds that steps executed",
        run: heartbeat,
    },
    Check {
        name: "step-others-stand",
        needs: STEP,
        about: "the other vCPUs stand still under steps",
        run: others_stand,
    },
    Check {
        name: "step-refusals",
        needs: STEP,
        about: "no step while running, none of a bad count, and nothing moves",
        run: refusals,
    },
];

/// The bytes of dec r12; jne follows.
const DEC: u64 = 3;

/// A vCPU in the spin loop with all its interrupts held back, and the VM paused. Fields are undone in this order.
struct Spinning<'a> {
    paused: Paused<'a>,
    seq: u64,
    top: u64,
    _masked: Masked<'a>,
    _quiet: Quiet<'a>,
}

fn spinning(vm: &Vm, vcpu: u64) -> Result<Spinning<'_>, String> {
    let quiet = vm.quiet()?;
    let top = vm.mailbox.site(Site::Spin).map_err(|error| error.to_string())?;
    let masked = vm.masked(vcpu)?;
    let seq = vm.begin(vcpu, Op::Spin, &[vm.rounds(CATCHABLE)?])?;
    let (paused, _) = vm.catch(vcpu, "in its loop", |regs| {
        ensure!(!vm.done(vcpu, seq)?, "the order was over too soon");
        Ok([top, top + DEC].contains(&regs.get("rip")?))
    })?;
    Ok(Spinning { paused, seq, top, _masked: masked, _quiet: quiet })
}

/// How many instructions of the loop lie between two states.
fn executed(from: &Regs, to: &Regs, top: u64) -> Result<u64, String> {
    // A round is dec and jne; at jne the round's dec is done.
    let ahead = |regs: &Regs| -> Result<u64, String> {
        let rip = regs.get("rip")?;
        ensure!([top, top + DEC].contains(&rip), "rip {rip:#x} left the loop at {top:#x}");
        Ok(2 * regs.get("r12")? + u64::from(rip == top + DEC))
    };
    Ok(ahead(from)?.wrapping_sub(ahead(to)?))
}

fn counts(vm: &Vm) -> Checked {
    for vcpu in 0..vm.vcpus {
        let spin = spinning(vm, vcpu)?;
        let most = vm.step_count(1000)?;
        let mut before = vm.regs(vcpu)?;
        for count in [1, 1, 1, 2, 3, 100.min(most), most] {
            vm.step(vcpu, count)?;
            let after = vm.regs(vcpu)?;
            same!(
                executed(&before, &after, spin.top)?,
                count,
                "instructions that 'step {count}' of vCPU {vcpu} executed"
            );
            if let Some(flags) = after.find("rflags") {
                same!(flags & 0x100, 0, "TF in rflags after a step");
            }
            for name in ["rsp", "r14", "r15", "rbx", "cr3"] {
                same!(after.find(name), before.find(name), "{name} after 'step {count}' of vCPU {vcpu}");
            }
            before = after;
        }
        same!(vm.text("state")?, "paused\n", "state after steps");
        vm.leave(spin.paused, vcpu, Op::Spin, spin.seq)?;
    }
    Ok(())
}

/// A vCPU that polls for orders without a pause: its idle loop, with no interrupt and no hlt.
fn polling(vm: &Vm) -> Result<(Paused<'_>, Masked<'_>, Quiet<'_>), String> {
    let quiet = vm.quiet()?;
    let masked = vm.masked(0)?;
    let paused = vm.pause()?;
    Ok((paused, masked, quiet))
}

/// The instruction at an address of the kernel, where gva = gpa.
fn instruction(vm: &Vm, rip: u64) -> Result<Instruction, String> {
    let bytes = vm.mem(rip, 15)?;
    let decoded = Decoder::with_ip(64, &bytes, rip, DecoderOptions::NONE).decode();
    ensure!(decoded.code() != Code::INVALID, "no instruction at {rip:#x}: {bytes:x?}");
    Ok(decoded)
}

/// The addresses that may follow an instruction.
fn successors(vm: &Vm, instruction: &Instruction, regs: &Regs) -> Result<Vec<u64>, String> {
    let (next, target) = (instruction.next_ip(), instruction.near_branch_target());
    Ok(match instruction.flow_control() {
        FlowControl::Next => vec![next],
        FlowControl::ConditionalBranch => vec![next, target],
        FlowControl::UnconditionalBranch | FlowControl::Call => vec![target],
        FlowControl::Return => vec![vm.word(regs.get("rsp")?)?],
        _ => return Err(format!("{:?} is not in the polling loop", instruction.mnemonic())),
    })
}

fn follows_code(vm: &Vm) -> Checked {
    let _polling = polling(vm)?;
    let steps = vm.single_steps(100)?;
    let mut regs = vm.regs(0)?;
    for n in 0..steps {
        let rip = regs.get("rip")?;
        let instruction = instruction(vm, rip)?;
        let mut allowed = successors(vm, &instruction, &regs)?;
        if instruction.code() == Code::Sti {
            allowed.extend(behind_shadow(vm, &instruction, &regs)?);
        }
        vm.step(0, 1)?;
        regs = vm.regs(0)?;
        let at = regs.get("rip")?;
        ensure!(
            allowed.contains(&at),
            "step {n} went from {rip:#x} ({:?}) to {at:#x}, allowed: {allowed:x?}",
            instruction.mnemonic()
        );
    }
    Ok(())
}

/// The addresses that follow the instruction behind an sti. Interrupts are held back until that one is done (Intel SDM
/// volume 2B, STI), and some machines hold the trap of a single step back too: KVM over an emulated SVM, where
/// KVM_GUESTDBG_SINGLESTEP is TF in the guest.
fn behind_shadow(vm: &Vm, sti: &Instruction, regs: &Regs) -> Result<Vec<u64>, String> {
    successors(vm, &instruction(vm, sti.next_ip())?, regs)
}

/// One or the other, but each time the same.
fn sti(vm: &Vm) -> Checked {
    let _polling = polling(vm)?;
    let (mut alone, mut both) = (0, 0);
    for _ in 0..vm.single_steps(400)?.max(60) {
        let regs = vm.regs(0)?;
        let at = instruction(vm, regs.get("rip")?)?;
        vm.step(0, 1)?;
        if at.code() != Code::Sti {
            continue;
        }
        let (rip, behind) = (vm.regs(0)?.get("rip")?, behind_shadow(vm, &at, &regs)?);
        if rip == at.next_ip() {
            alone += 1;
        } else {
            ensure!(behind.contains(&rip), "a step of sti at {:#x} went to {rip:#x}", at.ip());
            both += 1;
        }
        if alone + both == 5 {
            break;
        }
    }
    ensure!(alone + both > 0, "the polling loop has no sti");
    ensure!(
        alone == 0 || both == 0,
        "of {} steps of sti, {both} took the next instruction too",
        alone + both
    );
    Ok(())
}

fn heartbeat(vm: &Vm) -> Checked {
    let _polling = polling(vm)?;
    let most = vm.step_count(100_000)?;
    let beats = || vm.counter(0, Counter::Heartbeat);
    // To the instruction behind the counting, by single steps, and once around.
    let beat_next = || -> Result<u64, String> {
        let before = beats()?;
        for steps in 1..=200 {
            vm.step(0, 1)?;
            if beats()? != before {
                return Ok(steps);
            }
        }
        Err("200 steps of the polling loop counted no heartbeat".to_owned())
    };
    beat_next()?;
    let around = beat_next()?;
    let (mut all, start, rip) = (0, beats()?, vm.regs(0)?.get("rip")?);
    ensure!((layout::TEXT64..layout::USER_IMAGE).contains(&rip), "rip {rip:#x} is not in the kernel");
    for rounds in [1, 10, 50] {
        let rounds = rounds.min(most / around).max(1);
        let before = beats()?;
        vm.step(0, rounds * around)?;
        same!(
            beats()?.wrapping_sub(before),
            rounds,
            "heartbeats in {rounds} rounds of {around} instructions"
        );
        same!(vm.regs(0)?.get("rip")?, rip, "rip after whole rounds");
        all += rounds;
    }
    same!(beats()?.wrapping_sub(start), all, "heartbeats in all");
    Ok(())
}

fn others_stand(vm: &Vm) -> Checked {
    let spin = spinning(vm, 0)?;
    let most = vm.step_count(500)?;
    let others = || (1..vm.vcpus).map(|vcpu| Ok((vm.counters(vcpu)?, vm.regs(vcpu)?.without("tsc"))));
    let before = others().collect::<Result<Vec<_>, String>>()?;
    for count in [1, 10, most] {
        vm.step(0, count)?;
    }
    std::thread::sleep(Duration::from_millis(30));
    for (vcpu, (after, before)) in
        (1..).zip(others().collect::<Result<Vec<_>, String>>()?.iter().zip(&before))
    {
        let moved = after.0.since(&before.0);
        ensure!(moved.is_empty(), "counters of vCPU {vcpu} moved while vCPU 0 was stepped: {moved:?}");
        ensure!(
            after.1 == before.1,
            "vCPU {vcpu} moved while vCPU 0 was stepped: {}",
            after.1.differences(&before.1)
        );
    }
    vm.leave(spin.paused, 0, Op::Spin, spin.seq)
}

fn refusals(vm: &Vm) -> Checked {
    vm.refused("vcpu/0/ctl", b"step\n", EBUSY)?;
    vm.refused("vcpu/0/ctl", b"step 10\n", EBUSY)?;
    same!(vm.text("state")?, "running\n", "state after a refused step");
    let _paused = vm.pause()?;
    let before = vm.regs(0)?.without("tsc");
    for (text, errno) in [
        ("step 0", ERANGE),
        ("step 0xffffffffffffffff", ERANGE),
        ("step 99999999999999999999", ERANGE),
        ("step x", EINVAL),
        ("step 1 2", EINVAL),
        ("step step", EINVAL),
        ("walk", EINVAL),
        ("", EINVAL),
    ] {
        if !text.is_empty() {
            vm.refused("vcpu/0/ctl", text.as_bytes(), errno)?;
        }
        let after = vm.regs(0)?.without("tsc");
        ensure!(after == before, "'{text}' was refused but changed {}", after.differences(&before));
    }
    Ok(())
}
