//! Control registers, MSRs, descriptor tables, CPUID, ports.

use iced_x86::code_asm::*;

use super::{Bench, CODE};

/// Runs code that should end in #GP(0) at its last instruction, `at` bytes in.
fn faults(name: &str, setup: impl FnOnce(&mut Bench), code: impl FnOnce(&mut CodeAssembler)) {
    let mut bench = Bench::new(|a| {
        code(a);
        a.hlt().unwrap();
    });
    bench.handler(13, 1, 0, |a| {
        a.pop(r15).unwrap();
        a.mov(r14d, 1).unwrap();
        a.hlt().unwrap();
    });
    setup(&mut bench);
    bench.regs().gpr[15] = 99;
    let (cr0_before, cr4_before) = (bench.regs().cr0, bench.regs().cr4);
    bench.run();
    assert_eq!((bench.regs().gpr[15], bench.regs().gpr[14]), (0, 1), "{name} is #GP(0)");
    assert_eq!((bench.regs().cr0, bench.regs().cr4), (cr0_before, cr4_before), "{name} changes nothing");
}

#[test]
fn control_registers_refuse_what_the_manual_refuses() {
    let none = |_: &mut Bench| ();
    let set = |value: u64| move |bench: &mut Bench| bench.regs().gpr[0] = value;
    faults("CR0 without PG", set(0x11), |a| a.mov(cr0, rax).unwrap());
    faults("CR0 bit 32", set(0x1_8000_0011), |a| a.mov(cr0, rax).unwrap());
    faults("CR0 NW without CD", set(0xa000_0011), |a| a.mov(cr0, rax).unwrap());
    faults("CR3 bit 52", set(1 << 52), |a| a.mov(cr3, rax).unwrap());
    faults("CR4 without PAE", set(0), |a| a.mov(cr4, rax).unwrap());
    faults("CR4 LA57", set(0x1020), |a| a.mov(cr4, rax).unwrap());
    faults("CR8 16", set(16), |a| a.mov(cr8, rax).unwrap());
    faults("DR7 bit 32", set(1 << 32), |a| a.mov(dr7, rax).unwrap());
    faults("LTR of nothing", set(0), |a| a.ltr(eax).unwrap());
    faults("an unknown MSR", none, |a| {
        a.mov(ecx, 0x1234).unwrap();
        a.rdmsr().unwrap();
    });
    for (index, low, high) in [
        (0xc000_0080_u32, 0_u32, 0_u32),
        (0xc000_0080, 0xd02, 0),
        (0xc000_0082, 0, 0x8000_0000),
        (0xc000_0100, 0, 0x0001_0000),
        (0x277, 2, 0),
        (0x1b, 0xfee0_0500, 0),
        (0x1a0, 2, 0),
        (0x9999, 0, 0),
    ] {
        faults(&format!("MSR {index:#x}"), none, |a| {
            a.mov(ecx, index).unwrap();
            a.mov(eax, low).unwrap();
            a.mov(edx, high).unwrap();
            a.wrmsr().unwrap();
        });
    }
}

#[test]
fn msrs_hold_what_is_written() {
    let mut bench = Bench::new(|a| {
        for (index, value) in [(0xc000_0102_u32, 0x1234), (0xc000_0101, 0x5678), (0xc000_0103, 77)] {
            a.mov(ecx, index).unwrap();
            a.mov(eax, value).unwrap();
            a.xor(edx, edx).unwrap();
            a.wrmsr().unwrap();
        }
        a.swapgs().unwrap();
        a.mov(ecx, 0xc000_0101_u32).unwrap();
        a.rdmsr().unwrap();
        a.mov(r15, rax).unwrap();
        a.rdtscp().unwrap();
        a.hlt().unwrap();
    });
    bench.run();
    assert_eq!((bench.regs().gpr[15], bench.regs().gpr[1]), (0x1234, 77));
    assert_eq!(bench.regs().kernel_gs_base, 0x5678);
    assert_eq!(bench.regs().gpr[0], 16 * 10, "1 a nanosecond, 10 an instruction");
}

#[test]
fn the_tsc_can_be_set() {
    let mut bench = Bench::new(|a| {
        a.mov(ecx, 0x10).unwrap();
        a.mov(eax, 5000).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        a.rdtsc().unwrap();
        a.hlt().unwrap();
    });
    bench.run();
    assert_eq!(bench.regs().gpr[0], 5010);
}

#[test]
fn the_guest_sets_up_its_own_tables() {
    let mut bench = Bench::new(|a| {
        a.mov(rbx, 0x20_0000_u64).unwrap();
        a.lgdt(ptr(rbx)).unwrap();
        a.lidt(ptr(rbx + 0x10)).unwrap();
        a.mov(eax, 0x28).unwrap();
        a.ltr(eax).unwrap();
        a.str(r15w).unwrap();
        a.sgdt(ptr(rbx + 0x20)).unwrap();
        a.mov(eax, 0x10).unwrap();
        a.mov(ds, eax).unwrap();
        a.mov(r14d, ds).unwrap();
        a.xor(eax, eax).unwrap();
        a.mov(es, eax).unwrap();
        a.hlt().unwrap();
    });
    bench.put(0x20_0000, 0xa000 << 16 | 0x37);
    bench.put(0x20_0010, 0x9000 << 16 | 0xfff);
    bench.regs().gdtr = Default::default();
    bench.regs().tr = Default::default();
    bench.run();
    let regs = bench.regs().clone();
    assert_eq!((regs.gdtr.base, regs.gdtr.limit), (0xa000, 0x37));
    assert_eq!((regs.idtr.base, regs.idtr.limit), (0x9000, 0xfff));
    assert_eq!((regs.tr.base, regs.tr.limit, regs.tr.attr, regs.gpr[15]), (0xb000, 0x67, 0x8b, 0x28));
    assert_eq!(bench.word(0xa028) >> 40 & 0xff, 0x8b, "the TSS is busy");
    assert_eq!((regs.ds.attr, regs.gpr[14], regs.es.attr), (0xc093, 0x10, 0));
    assert_eq!(bench.word(0x20_0020), 0xa000 << 16 | 0x37);
}

#[test]
fn cpuid_tells_the_vendor_and_the_vcpu() {
    let mut bench = Bench::new(|a| {
        a.xor(eax, eax).unwrap();
        a.cpuid().unwrap();
        a.mov(r15d, ebx).unwrap();
        a.mov(eax, 0x8000_0008_u32).unwrap();
        a.cpuid().unwrap();
        a.hlt().unwrap();
    });
    bench.run();
    assert_eq!(bench.regs().gpr[15], u64::from(u32::from_le_bytes(*b"VMTR")));
    assert_eq!(bench.regs().gpr[0], 0x3034);
}

#[test]
fn ports_without_a_device_read_ones() {
    let mut bench = Bench::new(|a| {
        a.mov(edx, 0x1234).unwrap();
        a.in_(eax, dx).unwrap();
        a.mov(r15, rax).unwrap();
        a.mov(al, b'x' as i32).unwrap();
        a.out(0xe9, al).unwrap();
        a.hlt().unwrap();
    });
    bench.run();
    assert_eq!(bench.regs().gpr[15], 0xffff_ffff);
}

#[test]
fn what_is_no_instruction_is_undefined() {
    // UD2; a locked MOV; VMLAUNCH; SYSENTER; AVX; MONITOR.
    for bytes in [
        &[0x0f, 0x0b][..],
        &[0xf0, 0x89, 0x00],
        &[0x0f, 0x01, 0xc2],
        &[0x0f, 0x34],
        &[0xc5, 0xf8, 0x77],
        &[0x0f, 0x01, 0xc8],
    ] {
        let mut bench = Bench::new(|_| ());
        assert!(bench.state.world.ram.store(CODE, bytes));
        bench.handler(6, 1, 0, |a| {
            a.pop(r15).unwrap();
            a.hlt().unwrap();
        });
        bench.run();
        assert_eq!(bench.regs().gpr[15], CODE, "{bytes:x?}");
    }
}

#[test]
fn debug_registers_are_guarded_by_gd() {
    let mut bench = Bench::new(|a| {
        a.mov(eax, 0x1234).unwrap();
        a.mov(dr0, rax).unwrap();
        a.mov(r14, dr0).unwrap();
        a.mov(eax, 0x2400).unwrap();
        a.mov(dr7, rax).unwrap();
        a.mov(dr1, rax).unwrap();
        a.hlt().unwrap();
    });
    bench.handler(1, 0, 0, |a| {
        a.mov(r15, dr6).unwrap();
        a.hlt().unwrap();
    });
    bench.run();
    assert_eq!((bench.regs().gpr[14], bench.regs().gpr[15]), (0x1234, 0xffff_2ff0), "BD");
    assert_eq!((bench.regs().dr[1], bench.regs().dr[7]), (0, 0x400));
}
