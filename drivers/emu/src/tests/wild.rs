//! Guests that are anything at all: random instructions, tables and registers, on the whole machine.

use std::sync::atomic::AtomicU64;

use super::{Bench, CODE, GDT, HANDLERS, IDT, TSS, USER};
use crate::cpu::check;
use crate::machine::Went;
use crate::ram::APIC_BASE;

/// Starts of instructions that reach far into the machine; random bytes rarely are one.
const STARTS: [&[u8]; 46] = [
    &[0x0f, 0x05],             // syscall
    &[0x48, 0x0f, 0x07],       // sysretq
    &[0x48, 0xcf],             // iretq
    &[0xcf],                   // iretd
    &[0x66, 0xcf],             // iret
    &[0x48, 0xcb],             // retfq
    &[0xca],                   // retf n
    &[0x48, 0xff, 0x2b],       // jmp m16:64 [rbx]
    &[0xcc],                   // int3
    &[0xcd],                   // int n
    &[0xf1],                   // int1
    &[0x0f, 0x01, 0x13],       // lgdt [rbx]
    &[0x0f, 0x01, 0x1b],       // lidt [rbx]
    &[0x0f, 0x01, 0x03],       // sgdt [rbx]
    &[0x0f, 0x00, 0xd8],       // ltr ax
    &[0x0f, 0x00, 0xd0],       // lldt ax
    &[0x8e],                   // mov sreg
    &[0x8c],                   // mov from sreg
    &[0x0f, 0x20],             // mov from cr
    &[0x0f, 0x22],             // mov to cr
    &[0x0f, 0x21],             // mov from dr
    &[0x0f, 0x23],             // mov to dr
    &[0x0f, 0x30],             // wrmsr
    &[0x0f, 0x32],             // rdmsr
    &[0x0f, 0xa2],             // cpuid
    &[0x0f, 0x01, 0xf8],       // swapgs
    &[0x0f, 0x01, 0x3b],       // invlpg [rbx]
    &[0x0f, 0x01, 0xca],       // clac
    &[0xf4],                   // hlt
    &[0xfb],                   // sti
    &[0xfa],                   // cli
    &[0x9d],                   // popf
    &[0x9c],                   // pushf
    &[0xe6],                   // out
    &[0xec],                   // in
    &[0xf3, 0xa4],             // rep movsb
    &[0xf3, 0xab],             // rep stosd
    &[0xf2, 0xae],             // repne scasb
    &[0xf3, 0xa6],             // repe cmpsb
    &[0x0f, 0xa1],             // pop fs
    &[0xf3, 0x48, 0x0f, 0xae], // rdfsbase and its like
    &[0x89, 0x07],             // mov [rdi], eax
    &[0x8b, 0x07],             // mov eax, [rdi]
    &[0x48, 0xf7],             // div and its like
    &[0xf0, 0x48, 0x0f, 0xc7], // cmpxchg16b
    &[0xf3, 0x90],             // pause
];

/// Numbers that look like chance: SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.next().is_multiple_of(many)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.next() as usize % from.len()]
    }

    /// A number that often means something: an address in use, an MSR, a small or any number.
    fn word(&mut self) -> u64 {
        let near = [CODE, USER, HANDLERS, GDT, IDT, TSS, 0x1000, 0x3000, APIC_BASE, 0x60_0000, 1 << 47, 0];
        match self.next() % 5 {
            0 => self.pick(&near).wrapping_add(self.next() % 0x1000),
            1 => self.pick(&near).wrapping_sub(self.next() % 0x20),
            2 => self.pick(&[0x10, 0x1b, 0x1a0, 0x277, 0xc000_0080, 0xc000_0081, 0xc000_0082, 0xc000_0102]),
            3 => self.next() % 0x100,
            _ => self.next() >> (self.next() & 63),
        }
    }
}

/// A page of instructions, most of them whole.
fn code(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < 0x1000 {
        if random.one_in(2) {
            bytes.extend(random.pick(&STARTS));
        }
        let more = random.next() as usize % 5;
        bytes.extend(random.next().to_le_bytes().iter().take(more));
    }
    bytes
}

pub fn wild(seed: u64) -> Bench {
    let mut random = Random(seed);
    let mut bench = Bench::many(2, seed, |a| a.nop().unwrap());
    bench.user(|a| a.nop().unwrap());
    for at in [CODE, USER, HANDLERS] {
        assert!(bench.state.world.ram.store(at, &code(&mut random)));
    }
    for vector in 0..=255 {
        let at = HANDLERS + random.next() % 0x1000;
        let (ist, kind) = (random.pick(&[0, 0, 1, 7]), random.pick(&[0x8e, 0xee, 0xef, 0x8f]));
        bench.gate(vector, at, ist, kind);
    }
    // A few words of the tables are anything.
    for _ in 0..random.next() % 6 {
        let table = random.pick(&[IDT, GDT, TSS, 0x1000, 0x2000, 0x3000, 0x3008]);
        let value = random.word();
        bench.put(table + random.next() % 0x40 / 8 * 8, value);
    }
    for index in 0..2 {
        let regs = &mut bench.state.vcpus[index].cpu.regs;
        regs.gpr = std::array::from_fn(|_| random.word());
        regs.gpr[4] = 0x8_0000 - random.next() % 0x100;
        regs.rflags |= random.next() & 0x4_7fd5;
        regs.star = 0x0010_0008_0000_0000;
        regs.lstar = HANDLERS + random.next() % 0x1000;
        regs.cr4 |= random.next() & (3 << 20 | 1 << 16);
    }
    if random.one_in(2) {
        bench.enter_user();
    }
    bench
}

#[test]
fn no_guest_breaks_the_machine() {
    let rounds = std::env::var("VMTREE_WILD").ok().and_then(|text| text.parse().ok()).unwrap_or(3000);
    let (mut died, mut slept, mut longest) = (0, 0, 0);
    for seed in 0..rounds {
        let mut bench = wild(seed);
        // Someone wants in all the time: each call runs the least there is.
        let arrived = AtomicU64::new(1);
        for _ in 0..20 {
            let went = bench.state.go(&arrived);
            for vcpu in &bench.state.vcpus {
                let regs = vcpu.snapshot(&bench.state.world);
                assert_eq!(check::segments(&regs), Ok(()), "seed {seed}");
                assert_eq!(check::rflags(regs.rflags), Ok(regs.rflags), "seed {seed}");
                assert_eq!(check::cr0(regs.cr0), Ok(regs.cr0), "seed {seed}");
                assert_eq!(check::cr4(regs.cr4), Ok(regs.cr4), "seed {seed}");
                assert_eq!(check::cr8(regs.cr8), Ok(regs.cr8), "seed {seed}");
                assert_eq!(check::efer(regs.efer, regs.efer), Ok(regs.efer), "seed {seed}");
            }
            match went {
                Went::Called => {}
                Went::Dead(_) => {
                    died += 1;
                    break;
                }
                Went::Idle => match bench.state.wakes(0).or(bench.state.wakes(1)) {
                    Some(time) => bench.state.skip(time),
                    None => {
                        slept += 1;
                        break;
                    }
                },
            }
        }
        longest = longest.max(bench.state.world.now());
    }
    // All kinds of ends come about, so the guests are no dull ones.
    eprintln!("of {rounds} guests {died} died, {slept} fell asleep; the longest ran for {longest} ns");
    assert!(died > 0 && slept > 0 && died + slept < rounds && longest > 50_000);
}
