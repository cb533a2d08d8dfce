//! The registers of an x86-64 vCPU, in one table: name, shape and place in the struct.

use crate::{RegDef, RegId, RegShape, RegValue};

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// The base address in bytes.
    pub base: u64,
    /// The limit in bytes, granularity applied.
    pub limit: u32,
    /// Access rights as bits 8-23 of the descriptor's second word, which is the format of VMX: bits 0-3 type,
    /// 4 S, 5-6 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G (Intel SDM volume 3C, table 25-2). P clear: unusable.
    pub attr: u16,
}

/// A descriptor-table register.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Table {
    /// The base address in bytes.
    pub base: u64,
    /// The limit in bytes: the offset of the last valid byte.
    pub limit: u16,
}

macro_rules! registers {
    ($($variant:ident $name:literal $shape:ident $(($bits:literal))? = $field:ident $([$index:literal])?);+ $(;)?) => {
        registers!(@enum $($variant $name)+);

        /// Every register: the order of `regs/all`, of `regs/raw` and of [`RegId`].
        pub const REGISTERS: &[RegDef] = &[
            $(RegDef { name: $name, shape: RegShape::$shape $(($bits))? }),+
        ];

        registers!(@get $($variant $shape ($field $([$index])?))+);
        registers!(@set $($variant $shape ($field $([$index])?))+);
    };
    (@enum $($variant:ident $name:literal)+) => {
        /// A register of [`REGISTERS`].
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[repr(u16)]
        pub enum Reg { $(#[doc = $name] $variant),+ }

        impl Reg {
            const ALL: &[Self] = &[$(Self::$variant),+];
        }
    };
    (@get $($variant:ident $shape:ident ($($place:tt)+))+) => {
        impl Registers {
            /// The value of one register.
            #[must_use]
            pub fn get(&self, reg: Reg) -> RegValue {
                match reg { $(Reg::$variant => RegValue::$shape(self.$($place)+)),+ }
            }
        }
    };
    (@set $($variant:ident $shape:ident ($($place:tt)+))+) => {
        impl Registers {
            /// Sets one register; a value of another shape changes nothing.
            pub fn set(&mut self, reg: Reg, value: RegValue) {
                match (reg, value) {
                    $((Reg::$variant, RegValue::$shape(value)) => self.$($place)+ = value,)+
                    _ => {}
                }
            }
        }
    };
}

registers! {
    Rax "rax" Word(64) = gpr[0];
    Rcx "rcx" Word(64) = gpr[1];
    Rdx "rdx" Word(64) = gpr[2];
    Rbx "rbx" Word(64) = gpr[3];
    Rsp "rsp" Word(64) = gpr[4];
    Rbp "rbp" Word(64) = gpr[5];
    Rsi "rsi" Word(64) = gpr[6];
    Rdi "rdi" Word(64) = gpr[7];
    R8 "r8" Word(64) = gpr[8];
    R9 "r9" Word(64) = gpr[9];
    R10 "r10" Word(64) = gpr[10];
    R11 "r11" Word(64) = gpr[11];
    R12 "r12" Word(64) = gpr[12];
    R13 "r13" Word(64) = gpr[13];
    R14 "r14" Word(64) = gpr[14];
    R15 "r15" Word(64) = gpr[15];
    Rip "rip" Word(64) = rip;
    Rflags "rflags" Word(64) = rflags;
    Cr0 "cr0" Word(64) = cr0;
    Cr2 "cr2" Word(64) = cr2;
    Cr3 "cr3" Word(64) = cr3;
    Cr4 "cr4" Word(64) = cr4;
    Cr8 "cr8" Word(64) = cr8;
    Xcr0 "xcr0" Word(64) = xcr0;
    Dr0 "dr0" Word(64) = dr[0];
    Dr1 "dr1" Word(64) = dr[1];
    Dr2 "dr2" Word(64) = dr[2];
    Dr3 "dr3" Word(64) = dr[3];
    Dr6 "dr6" Word(64) = dr[6];
    Dr7 "dr7" Word(64) = dr[7];
    Efer "efer" Word(64) = efer;
    Es "es" Segment = es;
    Cs "cs" Segment = cs;
    Ss "ss" Segment = ss;
    Ds "ds" Segment = ds;
    Fs "fs" Segment = fs;
    Gs "gs" Segment = gs;
    Ldtr "ldtr" Segment = ldtr;
    Tr "tr" Segment = tr;
    Gdtr "gdtr" Table = gdtr;
    Idtr "idtr" Table = idtr;
    Star "star" Word(64) = star;
    Lstar "lstar" Word(64) = lstar;
    Cstar "cstar" Word(64) = cstar;
    Fmask "fmask" Word(64) = fmask;
    KernelGsBase "kernel_gs_base" Word(64) = kernel_gs_base;
    SysenterCs "sysenter_cs" Word(64) = sysenter_cs;
    SysenterEsp "sysenter_esp" Word(64) = sysenter_esp;
    SysenterEip "sysenter_eip" Word(64) = sysenter_eip;
    Pat "pat" Word(64) = pat;
    ApicBase "apic_base" Word(64) = apic_base;
    Tsc "tsc" Word(64) = tsc;
    TscAux "tsc_aux" Word(64) = tsc_aux;
}

impl Reg {
    /// The register with this id.
    #[must_use]
    pub fn from_id(id: RegId) -> Option<Self> {
        Self::ALL.get(usize::from(id.0)).copied()
    }

    /// Its id.
    #[must_use]
    pub fn id(self) -> RegId {
        RegId(self as u16)
    }
}

/// All registers of one vCPU. General registers are in encoding order (Intel SDM volume 2, table 2-2).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[allow(missing_docs, reason = "the fields bear the manual's names")]
pub struct Registers {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    /// The task priority, 0 to 15.
    pub cr8: u64,
    pub xcr0: u64,
    /// DR0 to DR3, DR6 and DR7 at their numbers; 4 and 5 are not used.
    pub dr: [u64; 8],
    pub efer: u64,
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: Table,
    pub idtr: Table,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub apic_base: u64,
    pub tsc: u64,
    pub tsc_aux: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arch, ErrorKind, RegisterSet};

    #[test]
    fn every_register_has_a_place_of_its_own() {
        let mut set = RegisterSet::new(Arch::X86_64);
        for (index, def) in REGISTERS.iter().enumerate() {
            let number = index as u64 + 1;
            let value = match def.shape {
                RegShape::Word(_) => RegValue::Word(number),
                RegShape::Segment => RegValue::Segment(Segment { base: number, ..Segment::default() }),
                RegShape::Table => RegValue::Table(Table { base: number, limit: 1 }),
            };
            set.set(RegId(index as u16), value).unwrap();
        }
        for (index, def) in REGISTERS.iter().enumerate() {
            let id = Arch::X86_64.register(def.name).unwrap();
            assert_eq!(id.0 as usize, index, "names are unique");
            let (RegValue::Word(base)
            | RegValue::Segment(Segment { base, .. })
            | RegValue::Table(Table { base, .. })) = set.get(id).unwrap();
            assert_eq!(base, index as u64 + 1, "{}", def.name);
        }
    }

    #[test]
    fn a_value_of_another_shape_is_refused() {
        let mut set = RegisterSet::new(Arch::X86_64);
        let error = set.set(Reg::Cs.id(), RegValue::Word(1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert_eq!(set.set(RegId(999), RegValue::Word(1)).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
