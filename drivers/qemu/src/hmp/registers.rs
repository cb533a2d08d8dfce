//! `info registers`: what QEMU shows of a vCPU (x86_cpu_dump_state in QEMU's target/i386/cpu-dump.c).

use vmtree_api::RegValue;
use vmtree_api::x86::{Reg, Registers, Segment, Table};

use super::hex;

/// A vCPU as shown.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Shown {
    /// Its number; QEMU before 8.0 shows none for a single vCPU.
    pub index: Option<u32>,
    /// Its registers; those that are not `found` are zero.
    pub registers: Registers,
    /// What was shown.
    pub found: Vec<Reg>,
    /// Whether it was shown with registers of 64 bits: else it runs 16- or 32-bit code, and only their lower halves are.
    pub wide: bool,
}

impl Shown {
    /// The value of a register that was shown.
    #[must_use]
    pub fn get(&self, reg: Reg) -> Option<RegValue> {
        self.found.contains(&reg).then(|| self.registers.get(reg))
    }

    fn set(&mut self, reg: Reg, value: RegValue) {
        // The first word counts: nothing is shown twice.
        if !self.found.contains(&reg) {
            self.registers.set(reg, value);
            self.found.push(reg);
        }
    }

    fn line(&mut self, line: &str) {
        let Some((name, rest)) = line.split_once('=') else { return };
        let name = name.trim();
        if let Some(reg) = segment_named(name) {
            if let Some(segment) = segment(rest) {
                self.set(reg, RegValue::Segment(segment));
            }
        } else if let Some(reg) = table_named(name) {
            if let Some(table) = table(rest) {
                self.set(reg, RegValue::Table(table));
            }
        } else {
            self.words(line);
        }
    }

    /// `NAME=HEX NAME=HEX ...`; `R8 =HEX` has a blank before the sign.
    fn words(&mut self, line: &str) {
        let line = line.replace(" =", "=");
        for (name, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
            let (Some(reg), Some(value)) = (word_named(name), hex(value)) else { continue };
            self.wide |= name == "RIP";
            self.set(reg, RegValue::Word(value));
        }
    }
}

/// The vCPUs in `text`, in QEMU's order.
#[must_use]
pub fn parse(text: &str) -> Vec<Shown> {
    let mut all: Vec<Shown> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(index) = line.strip_prefix("CPU#") {
            all.push(Shown { index: index.parse().ok(), ..Shown::default() });
        } else if let Some(shown) = all.last_mut() {
            shown.line(line);
        } else {
            let mut shown = Shown::default();
            shown.line(line);
            all.push(shown);
        }
    }
    all.retain(|shown| !shown.found.is_empty());
    all
}

fn segment_named(name: &str) -> Option<Reg> {
    Some(match name {
        "ES" => Reg::Es,
        "CS" => Reg::Cs,
        "SS" => Reg::Ss,
        "DS" => Reg::Ds,
        "FS" => Reg::Fs,
        "GS" => Reg::Gs,
        "LDT" => Reg::Ldtr,
        "TR" => Reg::Tr,
        _ => return None,
    })
}

fn table_named(name: &str) -> Option<Reg> {
    match name {
        "GDT" => Some(Reg::Gdtr),
        "IDT" => Some(Reg::Idtr),
        _ => None,
    }
}

fn word_named(name: &str) -> Option<Reg> {
    Some(match name {
        "RAX" | "EAX" => Reg::Rax,
        "RBX" | "EBX" => Reg::Rbx,
        "RCX" | "ECX" => Reg::Rcx,
        "RDX" | "EDX" => Reg::Rdx,
        "RSI" | "ESI" => Reg::Rsi,
        "RDI" | "EDI" => Reg::Rdi,
        "RBP" | "EBP" => Reg::Rbp,
        "RSP" | "ESP" => Reg::Rsp,
        "R8" => Reg::R8,
        "R9" => Reg::R9,
        "R10" => Reg::R10,
        "R11" => Reg::R11,
        "R12" => Reg::R12,
        "R13" => Reg::R13,
        "R14" => Reg::R14,
        "R15" => Reg::R15,
        "RIP" | "EIP" => Reg::Rip,
        "RFL" | "EFL" => Reg::Rflags,
        "CR0" => Reg::Cr0,
        "CR2" => Reg::Cr2,
        "CR3" => Reg::Cr3,
        "CR4" => Reg::Cr4,
        "DR0" => Reg::Dr0,
        "DR1" => Reg::Dr1,
        "DR2" => Reg::Dr2,
        "DR3" => Reg::Dr3,
        "DR6" => Reg::Dr6,
        "DR7" => Reg::Dr7,
        "EFER" => Reg::Efer,
        _ => return None,
    })
}

/// `SELECTOR BASE LIMIT FLAGS[ DPL=...]`: the limit in bytes, the flags as in the descriptor's second word.
fn segment(rest: &str) -> Option<Segment> {
    let mut fields = rest.split_whitespace().map(hex);
    let mut field = || fields.next().flatten();
    let (selector, base, limit, flags) = (field()?, field()?, field()?, field()?);
    Some(Segment {
        selector: u16::try_from(selector).ok()?,
        base,
        limit: u32::try_from(limit).ok()?,
        // Bits 8-15 and 20-23: those between are a part of the limit, which TCG leaves there.
        attr: u16::try_from(u32::try_from(flags).ok()? >> 8 & 0xf0ff).ok()?,
    })
}

/// `BASE LIMIT`
fn table(rest: &str) -> Option<Table> {
    let mut fields = rest.split_whitespace().map(hex);
    let mut field = || fields.next().flatten();
    let (base, limit) = (field()?, field()?);
    Some(Table { base, limit: u16::try_from(limit).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// QEMU 7.2, shortened.
    const TEXT: &str = "\r\nCPU#0\r\n\
        EAX=000f49f6 EBX=00000000 ECX=000002ff EDX=00000001\r\n\
        ESI=00000000 EDI=00000000 EBP=00000000 ESP=00006c5c\r\n\
        EIP=000fd09a EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n\
        CS =0008 00000000 ffffffff 00cf9b00 DPL=0 CS32 [-RA]\r\n\
        GDT=     000f6180 00000037\r\n\
        CR0=00000011 CR2=00000000 CR3=00000000 CR4=00000000\r\n\r\n\
        CPU#1\r\n\
        RAX=0000000000000000 RBX=0000000000200480 RCX=00000000444d4163 RDX=0000000069746e65\r\n\
        R8 =0000000000000001 R9 =0000000000000002 R10=0000000000000003 R11=0000000000000004\r\n\
        RIP=0000000000103072 RFL=00000293 [--S-A-C] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n\
        CS =0008 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\r\n\
        GS =0010 ffff888000390000 00000000 00000000\r\n\
        TR =0030 0000000000391100 00000067 00008900 DPL=0 TSS64-avl\r\n\
        IDT=     0000000000392000 00000fff\r\n\
        CR0=80010033 CR2=0000008000040000 CR3=0000000000210000 CR4=00000620\r\n\
        DR0=0000000000203000 DR1=0000000000203008 DR2=0000000000204000 DR3=0000000000205000 \r\n\
        DR6=00000000ffff0ff0 DR7=0000000000000400\r\n\
        EFER=0000000000000d01\r\n\
        FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80\r\n";

    #[test]
    fn reads_both_widths() {
        let all = parse(TEXT);
        let [narrow, wide] = &all[..] else { panic!("{all:?}") };
        assert_eq!((narrow.index, narrow.wide, wide.index, wide.wide), (Some(0), false, Some(1), true));
        let regs = &narrow.registers;
        assert_eq!((regs.gpr[0], regs.rip, regs.rflags, regs.cr0), (0xf_49f6, 0xf_d09a, 2, 0x11));
        let code = Segment { selector: 8, base: 0, limit: 0xffff_ffff, attr: 0xc09b };
        assert_eq!((regs.cs, regs.gdtr), (code, Table { base: 0xf_6180, limit: 0x37 }));
        let regs = &wide.registers;
        assert_eq!((regs.gpr[8], regs.gpr[9], regs.gpr[10], regs.gpr[11]), (1, 2, 3, 4));
        assert_eq!(regs.cs.attr, 0xa09b);
        assert_eq!(regs.gs, Segment { selector: 0x10, base: 0xffff_8880_0039_0000, limit: 0, attr: 0 });
        assert_eq!(regs.tr, Segment { selector: 0x30, base: 0x39_1100, limit: 0x67, attr: 0x89 });
        assert_eq!((regs.dr[3], regs.dr[6], regs.dr[7]), (0x20_5000, 0xffff_0ff0, 0x400));
        assert_eq!((regs.cr2, regs.cr3, regs.efer), (0x80_0004_0000, 0x21_0000, 0xd01));
        assert_eq!(wide.get(Reg::Ldtr), None, "not shown is not zero");
    }

    #[test]
    fn a_single_vcpu_may_have_no_heading() {
        let text = TEXT.split_once("CPU#1").unwrap().1;
        let all = parse(text);
        assert_eq!((all.len(), all[0].index), (1, None));
    }

    #[test]
    fn what_does_not_fit_is_not_found() {
        let all = parse("CS =10008 0 ffffffff 00af9b00\nGDT= 0 10000\nRAX=+5\nTR =0 0 0\nRBX=1\n");
        assert_eq!(all[0].found, [Reg::Rbx]);
    }

    proptest! {
        #[test]
        fn never_panics(text: String, line in "(CPU#|CS =|GDT=|RAX=|=| |[0-9a-f]{0,20}|\n){0,20}") {
            let _ = parse(&text);
            let _ = parse(&line);
        }

        #[test]
        fn reads_back_what_is_shown(values: [u64; 4], selector: u16, limit: u32, flags: u32, size: u16) {
            let [r9, rip, base, table] = values;
            let text = format!(
                "CPU#7\r\nR8 =0 R9 ={r9:016x}\r\nRIP={rip:016x} RFL=00000002 [-------] CPL=3\r\n\
                 FS ={selector:04x} {base:016x} {limit:08x} {flags:08x} DPL=0 DS [-WA]\r\nIDT=     {table:016x} {size:08x}\r\n"
            );
            let all = parse(&text);
            prop_assert_eq!((all.len(), all[0].index, all[0].wide), (1, Some(7), true));
            let regs = &all[0].registers;
            prop_assert_eq!((regs.gpr[9], regs.rip), (r9, rip));
            let attr = (flags >> 8) as u16 & 0xf0ff;
            prop_assert_eq!(regs.fs, Segment { selector, base, limit, attr });
            prop_assert_eq!(regs.idtr, Table { base: table, limit: size });
        }
    }
}
