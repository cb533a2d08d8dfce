//! Orders that read and write system registers: control, debug, XCR0, descriptor tables; and vmcall.

use iced_x86::code_asm::*;

use super::kit::{Emit, arg, count, own, place, repeat, result};
use super::labels::Labels;
use super::orders::site;
use crate::layout::{selector, vcpu};
use crate::mailbox::{Counter, Site, slot};

/// The body for the number that an argument names: one of several alike.
type Numbered<'a> = (u32, &'a dyn Fn(&mut CodeAssembler, &mut Labels) -> Emit);

/// One loop for each number, chosen by the second argument.
fn by_number(a: &mut CodeAssembler, l: &mut Labels, bodies: &[Numbered]) -> Emit {
    a.mov(eax, dword_ptr(rbx + slot::ARGS as i32 + 8))?;
    for (number, body) in bodies {
        let mut next = a.create_label();
        a.cmp(eax, *number)?;
        a.jne(next)?;
        repeat(a, |a| body(a, l))?;
        a.jmp(l.order_done)?;
        place(a, &mut next)?;
    }
    a.jmp(l.order_unknown)
}

/// `Op::ReadCr`.
pub fn read_cr(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let read = |register: AsmRegisterCr, at: Site, counter: Counter| {
        move |a: &mut CodeAssembler, l: &mut Labels| {
            site(a, l, at)?;
            a.mov(rax, register)?;
            count(a, counter)?;
            a.mov(result(0), rax)
        }
    };
    by_number(
        a,
        l,
        &[
            (0, &read(cr0, Site::ReadCr0, Counter::Cr0Reads)),
            (3, &read(cr3, Site::ReadCr3, Counter::Cr3Reads)),
            (4, &read(cr4, Site::ReadCr4, Counter::Cr4Reads)),
        ],
    )
}

/// `Op::Clts`.
pub fn clts(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    repeat(a, |a| {
        site(a, l, Site::Clts)?;
        a.clts()?;
        count(a, Counter::Cr0Writes)
    })
}

/// `Op::Lmsw`.
pub fn lmsw(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    a.mov(rax, arg(1))?;
    repeat(a, |a| {
        site(a, l, Site::Lmsw)?;
        a.lmsw(ax)?;
        count(a, Counter::Cr0Writes)
    })
}

const DEBUG_REGISTERS: [(AsmRegisterDr, Site, Site); 8] = [
    (dr0, Site::WriteDr0, Site::ReadDr0),
    (dr1, Site::WriteDr1, Site::ReadDr1),
    (dr2, Site::WriteDr2, Site::ReadDr2),
    (dr3, Site::WriteDr3, Site::ReadDr3),
    (dr4, Site::WriteDr4, Site::ReadDr4),
    (dr5, Site::WriteDr5, Site::ReadDr5),
    (dr6, Site::WriteDr6, Site::ReadDr6),
    (dr7, Site::WriteDr7, Site::ReadDr7),
];

/// `Op::WriteDr`.
pub fn write_dr(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    a.mov(r8, arg(2))?;
    let writes = DEBUG_REGISTERS.map(|(register, at, _)| {
        move |a: &mut CodeAssembler, l: &mut Labels| {
            site(a, l, at)?;
            a.mov(register, r8)?;
            count(a, Counter::DrWrites)
        }
    });
    let numbered: Vec<Numbered> = (0..).zip(&writes).map(|(n, body)| (n, body as _)).collect();
    by_number(a, l, &numbered)
}

/// `Op::ReadDr`.
pub fn read_dr(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let reads = DEBUG_REGISTERS.map(|(register, _, at)| {
        move |a: &mut CodeAssembler, l: &mut Labels| {
            site(a, l, at)?;
            a.mov(rax, register)?;
            count(a, Counter::DrReads)?;
            a.mov(result(0), rax)
        }
    });
    let numbered: Vec<Numbered> = (0..).zip(&reads).map(|(n, body)| (n, body as _)).collect();
    by_number(a, l, &numbered)
}

/// `Op::WriteXcr0`.
pub fn write_xcr0(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    a.xor(ecx, ecx)?;
    a.mov(rax, arg(1))?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 32)?;
    repeat(a, |a| {
        site(a, l, Site::WriteXcr0)?;
        a.xsetbv()?;
        count(a, Counter::Xcr0Writes)
    })
}

/// `Op::ReadXcr0`.
pub fn read_xcr0(a: &mut CodeAssembler, _: &mut Labels) -> Emit {
    a.xor(ecx, ecx)?;
    repeat(a, |a| {
        a.xgetbv()?;
        a.mov(dword_ptr(rbx + slot::RESULTS as i32), eax)?;
        a.mov(dword_ptr(rbx + slot::RESULTS as i32 + 4), edx)
    })
}

/// `Op::LoadTable`.
pub fn load_table(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    a.mov(r8, arg(2))?;
    let own_table = |base: u64, at: Site, load: fn(&mut CodeAssembler) -> Emit| {
        move |a: &mut CodeAssembler, l: &mut Labels| {
            a.sub(rsp, 16)?;
            a.lea(rax, own(base as i32))?;
            a.mov(word_ptr(rsp + 6), r8w)?;
            a.mov(qword_ptr(rsp + 8), rax)?;
            site(a, l, at)?;
            load(a)?;
            a.add(rsp, 16)?;
            count(a, Counter::TableLoads)
        }
    };
    let ldt = |a: &mut CodeAssembler, l: &mut Labels| {
        site(a, l, Site::Lldt)?;
        a.lldt(r8w)?;
        count(a, Counter::TableLoads)
    };
    let task = |a: &mut CodeAssembler, l: &mut Labels| {
        // From busy to available: bit 1 of the type (Intel SDM volume 3A, 8.2.3).
        let kind = byte_ptr(r14 + (vcpu::GDT + u64::from(selector::TSS)) as i32 + 5);
        a.mov(kind, 0x89)?;
        site(a, l, Site::Ltr)?;
        a.ltr(r8w)?;
        count(a, Counter::TableLoads)
    };
    by_number(
        a,
        l,
        &[
            (0, &own_table(vcpu::GDT, Site::Lgdt, |a| a.lgdt(ptr(rsp + 6)))),
            (1, &own_table(vcpu::IDT, Site::Lidt, |a| a.lidt(ptr(rsp + 6)))),
            (2, &ldt),
            (3, &task),
        ],
    )
}

/// `Op::StoreTable`.
pub fn store_table(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    let table = |at: Site, store: fn(&mut CodeAssembler) -> Emit| {
        move |a: &mut CodeAssembler, l: &mut Labels| {
            a.sub(rsp, 16)?;
            a.mov(qword_ptr(rsp), 0)?;
            site(a, l, at)?;
            store(a)?;
            count(a, Counter::TableStores)?;
            a.mov(rax, qword_ptr(rsp + 8))?;
            a.mov(result(0), rax)?;
            a.mov(ax, word_ptr(rsp + 6))?;
            a.mov(word_ptr(rbx + slot::RESULTS as i32 + 8), ax)?;
            a.add(rsp, 16)
        }
    };
    let selector = |at: Site, store: fn(&mut CodeAssembler) -> Emit| {
        move |a: &mut CodeAssembler, l: &mut Labels| {
            a.xor(eax, eax)?;
            site(a, l, at)?;
            store(a)?;
            count(a, Counter::TableStores)?;
            a.mov(result(0), rax)
        }
    };
    by_number(
        a,
        l,
        &[
            (0, &table(Site::Sgdt, |a| a.sgdt(ptr(rsp + 6)))),
            (1, &table(Site::Sidt, |a| a.sidt(ptr(rsp + 6)))),
            (2, &selector(Site::Sldt, |a| a.sldt(eax))),
            (3, &selector(Site::Str, |a| a.str(eax))),
        ],
    )
}

/// `Op::Vmcall`. RBX is the request's too, so the slot is kept in R8.
pub fn vmcall(a: &mut CodeAssembler, l: &mut Labels) -> Emit {
    a.mov(r8, rbx)?;
    repeat(a, |a| {
        a.mov(rax, qword_ptr(r8 + slot::ARGS as i32 + 8))?;
        a.mov(rcx, qword_ptr(r8 + slot::ARGS as i32 + 24))?;
        a.mov(rbx, qword_ptr(r8 + slot::ARGS as i32 + 16))?;
        site(a, l, Site::Vmcall)?;
        a.vmcall()?;
        a.mov(rbx, r8)?;
        count(a, Counter::Vmcalls)?;
        a.mov(result(0), rax)
    })
}
