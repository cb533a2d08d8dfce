//! THE table of registers: which of them QEMU gives, and by which way. docs/qemu.md shows it.

use vmtree_api::x86::{REGISTERS, Reg};
use vmtree_api::{RegId, RegOffer};

/// A register that QEMU gives.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Which.
    pub reg: Reg,
    /// Its name in the gdbstub, which reads and writes it.
    pub gdb: Option<&'static str>,
    /// Whether the monitor shows it, by `info registers`.
    pub shown: bool,
}

impl Row {
    /// Whether KVM shares it of a running vCPU: `struct kvm_sync_regs` has neither debug registers nor MSRs but EFER.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        use Reg::{Dr0, Dr1, Dr2, Dr3, Dr6, Dr7, KernelGsBase};
        !matches!(self.reg, Dr0 | Dr1 | Dr2 | Dr3 | Dr6 | Dr7 | KernelGsBase)
    }
}

const fn both(reg: Reg, name: &'static str) -> Row {
    Row { reg, gdb: Some(name), shown: true }
}

const fn gdb(reg: Reg, name: &'static str) -> Row {
    Row { reg, gdb: Some(name), shown: false }
}

const fn shown(reg: Reg) -> Row {
    Row { reg, gdb: None, shown: true }
}

/// In the architecture's order. Segments have a hidden part that only the monitor shows, so they are not written.
pub const TABLE: &[Row] = &[
    both(Reg::Rax, "rax"),
    both(Reg::Rcx, "rcx"),
    both(Reg::Rdx, "rdx"),
    both(Reg::Rbx, "rbx"),
    both(Reg::Rsp, "rsp"),
    both(Reg::Rbp, "rbp"),
    both(Reg::Rsi, "rsi"),
    both(Reg::Rdi, "rdi"),
    both(Reg::R8, "r8"),
    both(Reg::R9, "r9"),
    both(Reg::R10, "r10"),
    both(Reg::R11, "r11"),
    both(Reg::R12, "r12"),
    both(Reg::R13, "r13"),
    both(Reg::R14, "r14"),
    both(Reg::R15, "r15"),
    both(Reg::Rip, "rip"),
    both(Reg::Rflags, "eflags"),
    both(Reg::Cr0, "cr0"),
    both(Reg::Cr2, "cr2"),
    both(Reg::Cr3, "cr3"),
    both(Reg::Cr4, "cr4"),
    gdb(Reg::Cr8, "cr8"),
    shown(Reg::Dr0),
    shown(Reg::Dr1),
    shown(Reg::Dr2),
    shown(Reg::Dr3),
    shown(Reg::Dr6),
    shown(Reg::Dr7),
    both(Reg::Efer, "efer"),
    shown(Reg::Es),
    shown(Reg::Cs),
    shown(Reg::Ss),
    shown(Reg::Ds),
    shown(Reg::Fs),
    shown(Reg::Gs),
    shown(Reg::Ldtr),
    shown(Reg::Tr),
    shown(Reg::Gdtr),
    shown(Reg::Idtr),
    gdb(Reg::KernelGsBase, "k_gs_base"),
];

/// What is offered, with the gdbstub or, where somebody else has it, without.
#[must_use]
pub fn offers(with_gdb: bool) -> Vec<RegOffer> {
    let rows = TABLE.iter().filter(|row| with_gdb || row.shown);
    rows.map(|row| RegOffer { id: row.reg.id(), writable: with_gdb && row.gdb.is_some() }).collect()
}

/// The row of a register.
#[must_use]
pub fn row(id: RegId) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.reg.id() == id)
}

/// The name of a register.
#[must_use]
pub fn name(reg: Reg) -> &'static str {
    REGISTERS.get(usize::from(reg.id().0)).map_or("?", |def| def.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_in_order_and_each_has_a_way() {
        let ids: Vec<u16> = TABLE.iter().map(|row| row.reg.id().0).collect();
        assert!(ids.is_sorted_by(|one, next| one < next));
        assert!(TABLE.iter().all(|row| row.shown || row.gdb.is_some()));
    }

    #[test]
    fn without_gdb_nothing_is_writable() {
        assert!(offers(false).iter().all(|offer| !offer.writable));
        let writable = offers(true).iter().filter(|offer| offer.writable).count();
        assert_eq!((offers(true).len(), offers(false).len(), writable), (41, 39, 25));
    }

    #[test]
    fn the_docs_show_this_table() {
        let docs = include_str!("../../../../docs/qemu.md");
        for row in TABLE {
            let name = name(row.reg);
            let line =
                docs.lines().find(|line| line.starts_with("| ") && line.contains(&format!("`{name}`")));
            let line = line.unwrap_or_else(|| panic!("docs/qemu.md has no row for {name}"));
            let columns: Vec<&str> = line.split('|').map(str::trim).collect();
            let ways = match (row.gdb.is_some(), row.shown) {
                (true, true) => ["gdb, monitor", "gdb"],
                (true, false) => ["gdb", "gdb"],
                _ => ["monitor", "-"],
            };
            assert_eq!(columns[2..4], ways, "{name}");
            assert_eq!(columns[4], if row.is_shared() { "sync" } else { "-" }, "{name}");
        }
    }
}
