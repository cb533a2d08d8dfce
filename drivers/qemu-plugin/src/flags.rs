//! Where the arithmetic flags would be lost.
//!
//! QEMU keeps the last result instead of the flags, and which operation gave it only in its translator's head until the block
//! ends. An instruction of a block that is left in the middle, behind one that sets flags, would go on with the flags of some
//! earlier operation (seen with 11.1: CF of a `cmp` before a skipped `out`). So what leaves such a place is refused where
//! the flags are still used.

use iced_x86::{FlowControl, Instruction, OpKind, Register, RflagsBits};
use vmtree_agent::server::Refusal;
use vmtree_agent::{Code, Event, Inject, Kind, Reg, Verdict, flag};

use crate::decode::{Site, instruction};
use crate::interrupts::again;
use crate::vcpu::Vcpu;

const ARITHMETIC: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// How many instructions are looked at for one that uses the flags, in all directions together.
const REACH: usize = 64;

/// Whether an instruction sets some of the flags.
#[must_use]
pub fn sets(bytes: &[u8], bits: u32) -> bool {
    let code = instruction(bytes, bits, 0);
    // A 32-bit process under a 64-bit kernel has instructions that are others here: INC of a register is a prefix.
    code.is_invalid() || code.len() != bytes.len() || code.rflags_modified() & ARITHMETIC != 0
}

/// Whether the flags that are there at `start` are used by what can be executed from there on. Sure is only a no: where the
/// code ends in what can't be followed, they count as used. No convention hands flags over by a call or a return.
pub fn used(start: u64, read: &dyn Fn(u64) -> Option<Instruction>) -> bool {
    let mut paths = vec![(start, ARITHMETIC)];
    for _ in 0..REACH {
        let Some((at, there)) = paths.pop() else { return false };
        let Some(code) = read(at) else { return true };
        if code.is_invalid() || code.rflags_read() & there != 0 {
            return true;
        }
        let left = if may_keep(&code) { there } else { there & !code.rflags_modified() };
        if left == 0 {
            continue;
        }
        match code.flow_control() {
            FlowControl::Next => paths.push((code.next_ip(), left)),
            FlowControl::UnconditionalBranch if code.near_branch_target() != 0 => {
                paths.push((code.near_branch_target(), left));
            }
            FlowControl::ConditionalBranch => {
                paths.push((code.next_ip(), left));
                paths.push((code.near_branch_target(), left));
            }
            FlowControl::Call | FlowControl::IndirectCall | FlowControl::Return => {}
            _ => return true,
        }
    }
    true
}

/// Whether an instruction that sets flags keeps them all where its count is 0.
fn may_keep(code: &Instruction) -> bool {
    let counted = code.has_rep_prefix() || code.has_repe_prefix() || code.has_repne_prefix();
    counted
        || (0..code.op_count())
            .any(|op| code.op_register(op) == Register::CL && code.op_kind(op) == OpKind::Register && op > 0)
}

/// An event that is about to be held, with what its verdicts may do to the flags.
pub fn looked_at(cpu: &dyn Vcpu, site: Site, mut event: Event) -> Event {
    if !site.split {
        return event;
    }
    let used = |at| used(at, &|at| again(cpu, at));
    event.flags |= flag::FLAGS_LOST;
    for (at, bit) in [(event.rip, flag::FLAGS_USED), (site.after(event.rip), flag::FLAGS_USED_AFTER)] {
        event.flags |= if used(at) { bit } else { 0 };
    }
    event
}

/// Whether the flags outlive a verdict.
///
/// # Errors
/// They are used, and would be lost.
pub fn check(event: &Event, verdict: &Verdict) -> Result<(), Refusal> {
    let at_stake = match verdict {
        Verdict::Continue | Verdict::Step => 0,
        Verdict::Deny if event.kind == Kind::Slat => flag::FLAGS_USED,
        Verdict::Deny | Verdict::Value(_) => flag::FLAGS_USED_AFTER,
        Verdict::Inject(Inject::PageFault { .. }) => flag::FLAGS_USED,
        Verdict::Inject(_) => 0,
        Verdict::Set(registers) => {
            if registers.iter().any(|(reg, _)| *reg == Reg::Rip) {
                flag::FLAGS_LOST
            } else {
                0
            }
        }
    };
    if event.flags & at_stake == 0 { Ok(()) } else { Err(lost()) }
}

/// Why a vCPU can't leave this place.
pub fn lost() -> Refusal {
    let why = "the arithmetic flags are in use here, and QEMU would lose them: answer otherwise, or start QEMU with -accel tcg,one-insn-per-tb=on";
    Refusal::new(Code::Unsupported, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the flags are used by this code at 0x1000.
    fn is_used(code: &[u8]) -> bool {
        used(0x1000, &|at| {
            let offset = usize::try_from(at.checked_sub(0x1000)?).ok()?;
            code.get(offset..).filter(|code| !code.is_empty()).map(|code| instruction(code, 64, at))
        })
    }

    #[test]
    fn flags_are_used_by_what_reads_them_before_they_are_set() {
        // mov eax, ecx; jz +0; ret
        assert!(is_used(&[0x89, 0xc8, 0x74, 0x00, 0xc3]));
        // test eax, eax; jz +0; ret
        assert!(!is_used(&[0x85, 0xc0, 0x74, 0x00, 0xc3]));
        // inc eax keeps CF: adc uses it, a return does not.
        assert!(is_used(&[0xff, 0xc0, 0x11, 0xc0, 0xc3]));
        assert!(!is_used(&[0xff, 0xc0, 0xc3]));
        // pushfq
        assert!(is_used(&[0x9c]));
        // mov eax, ecx; jmp +1; pushfq; xor eax, eax
        assert!(!is_used(&[0x89, 0xc8, 0xeb, 0x01, 0x9c, 0x31, 0xc0]));
        // Both ways of a branch: inc eax; jz +2; xor eax, eax; ret | cmc, which is behind it.
        assert!(!is_used(&[0xff, 0xc0, 0x74, 0x02, 0x31, 0xc0, 0xc3]));
        assert!(is_used(&[0xff, 0xc0, 0x74, 0x03, 0x31, 0xc0, 0xc3, 0xf5]));
    }

    #[test]
    fn a_count_of_0_keeps_them() {
        // shl eax, cl; jc +0; ret | shl eax, 1; jc +0; ret | repe cmpsb; jz +0; ret
        assert!(is_used(&[0xd3, 0xe0, 0x72, 0x00, 0xc3]));
        assert!(!is_used(&[0xd1, 0xe0, 0x72, 0x00, 0xc3]));
        assert!(is_used(&[0xf3, 0xa6, 0x74, 0x00, 0xc3]));
        // dec ecx of 32-bit code.
        assert!(sets(&[0x49], 64) && sets(&[0x49], 32));
    }

    #[test]
    fn what_can_not_be_followed_counts_as_use() {
        // jmp rax; a loop to itself without a flag; no code at all.
        assert!(is_used(&[0xff, 0xe0]));
        assert!(is_used(&[0xeb, 0xfe]));
        assert!(is_used(&[0x90]));
        assert!(is_used(&[]));
    }

    #[test]
    fn instructions_that_set_flags_are_known() {
        assert!(sets(&[0x83, 0xf9, 2], 64) && sets(&[0xff, 0xc0], 64) && sets(&[0x9d], 64));
        assert!(!sets(&[0x89, 0xc8], 64) && !sets(&[0x9c], 64) && !sets(&[0x0f, 0xa2], 64));
    }
}
