//! Virtual memory through the page tables that the guest built, and its own account of them.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vmtree_guest::layout;
use vmtree_guest::mailbox::{Op, header};

use super::errno::EIO;
use super::registers::own_cr3;
use crate::order::{CATCHABLE, Quiet};
use crate::vm::{Paused, read_at};
use crate::{Check, Checked, Vm};

const NEEDS: &[&str] = &["virtual_memory", "pause"];

pub const CHECKS: &[Check] = &[
    Check {
        name: "virtual-process",
        needs: NEEDS,
        about: "vmem of a process is mem at the gpa of each of its pages",
        run: process,
    },
    Check {
        name: "virtual-translate",
        needs: NEEDS,
        about: "translate gives the guest's mapping: gpa, size and rights",
        run: translate,
    },
    Check {
        name: "virtual-unmapped",
        needs: NEEDS,
        about: "pages that are not mapped are told so and read short or not at all",
        run: unmapped,
    },
    Check {
        name: "virtual-write",
        needs: NEEDS,
        about: "what is written to vmem is in mem, and the guest reads it",
        run: write,
    },
    Check {
        name: "virtual-kernel",
        needs: &["virtual_memory"],
        about: "the kernel's addresses are its gpas, of a running vCPU too",
        run: kernel,
    },
];

/// A vCPU paused in ring 3 of its first process, and its order there.
struct InProcess<'a> {
    paused: Paused<'a>,
    seq: u64,
    _quiet: Quiet<'a>,
}

fn in_process(vm: &Vm, vcpu: u64) -> Result<InProcess<'_>, String> {
    let quiet = vm.quiet()?;
    let own = own_cr3(vm, vcpu)?;
    let seq = vm.begin(vcpu, Op::UserSpin, &[vm.rounds(CATCHABLE)?])?;
    let (paused, _) = vm.catch(vcpu, "in its first process", |regs| {
        ensure!(!vm.done(vcpu, seq)?, "the order was over too soon");
        Ok(regs.get("rip")? >= layout::USER_BASE && regs.get("cr3")? == own[1])
    })?;
    Ok(InProcess { paused, seq, _quiet: quiet })
}

impl InProcess<'_> {
    fn end(self, vm: &Vm, vcpu: u64) -> Checked {
        vm.leave(self.paused, vcpu, Op::UserSpin, self.seq)
    }
}

/// The file, opened to read and write.
fn vmem(vm: &Vm, vcpu: u64) -> Result<File, String> {
    let path = format!("vcpu/{vcpu}/vmem");
    File::options()
        .read(true)
        .write(true)
        .open(vm.path(&path))
        .map_err(|error| format!("open {path}: {error}"))
}

fn read(file: &File, gva: u64, len: usize) -> Result<Vec<u8>, String> {
    read_at(file, gva, len).map_err(|error| format!("read vmem at {gva:#x}: {error}"))
}

/// A page of a process: gva, gpa, rights, whether ring 3 may.
type Page = (u64, u64, &'static str, u8);

/// The pages of the vCPU's first process that are always there, and some of the kernel's.
fn pages(vm: &Vm, vcpu: u64) -> Result<Vec<Page>, String> {
    let area = layout::PROCESS_AREAS + 2 * vcpu * layout::AREA;
    let own = |offset| area + offset;
    Ok(vec![
        (vm.header(header::USER_TEXT)?, layout::USER_IMAGE, "r-x", 1),
        (vm.header(header::USER_DATA)?, vm.header(header::DATA)?, "rw-", 1),
        (vm.header(header::USER_CODE)?, vm.header(header::CODE)?, "r-x", 1),
        (vm.header(header::USER_SUPERVISOR)?, vm.header(header::DATA)?, "rw-", 0),
        (layout::USER_INBOX, own(layout::process::INBOX), "rw-", 1),
        (layout::USER_STACK, own(layout::process::STACK), "rw-", 1),
        (layout::USER_SELF, own(layout::process::CODE), "rwx", 1),
        (layout::USER_GREETING, vm.header(header::GREETING)?, "r--", 1),
        (vm.header(header::SCRATCH)?, vm.header(header::SCRATCH)?, "rwx", 0),
        (layout::TEXT64, layout::TEXT64, "rwx", 0),
    ])
}

fn process(vm: &Vm) -> Checked {
    for vcpu in 0..vm.vcpus {
        let inside = in_process(vm, vcpu)?;
        let file = vmem(vm, vcpu)?;
        for (gva, gpa, ..) in pages(vm, vcpu)? {
            for (at, len) in [(0, 0x1000), (0xff8, 8), (0x123, 1)] {
                let (found, wanted) = (read(&file, gva + at, len)?, vm.mem(gpa + at, len)?);
                ensure!(
                    found == wanted,
                    "vmem of vCPU {vcpu} at {:#x} is not mem at {:#x}",
                    gva + at,
                    gpa + at
                );
            }
        }
        inside.end(vm, vcpu)?;
    }
    Ok(())
}

fn translate(vm: &Vm) -> Checked {
    for vcpu in 0..vm.vcpus {
        let inside = in_process(vm, vcpu)?;
        for (gva, gpa, rights, user) in pages(vm, vcpu)? {
            // The kernel maps [2 MiB, 4 MiB) in small pages, all else of its own in large ones.
            let size = if gva < 2 << 20 { "0x200000" } else { "0x1000" };
            for at in [0, 0xabc] {
                let line = vm.text(&format!("vcpu/{vcpu}/translate,gva={:#x}", gva + at))?;
                let wanted = format!(
                    "gva={:#018x} gpa={:#018x} page_size={size} rights={rights} user={user}\n",
                    gva + at,
                    gpa + at
                );
                same!(line, wanted, "translate of vCPU {vcpu}");
            }
        }
        inside.end(vm, vcpu)?;
    }
    Ok(())
}

fn unmapped(vm: &Vm) -> Checked {
    let vcpu = vm.vcpus - 1;
    let inside = in_process(vm, vcpu)?;
    let file = vmem(vm, vcpu)?;
    let guard = vm.header(header::GUARD)?;
    for gva in [vm.header(header::USER_UNMAPPED)?, guard, guard + 0xfff, 1 << 46] {
        let line = vm.text(&format!("vcpu/{vcpu}/translate,gva={gva:#x}"))?;
        ensure!(
            line.starts_with(&format!("gva={gva:#018x} not mapped: ")),
            "translate of an unmapped address: {line}"
        );
        let code = read_at(&file, gva, 8).err().and_then(|error| error.raw_os_error());
        same!(code, Some(EIO.0), "the errno of a read of vmem at {gva:#x}");
        let code = file.write_at(b"x", gva).err().and_then(|error| error.raw_os_error());
        same!(code, Some(EIO.0), "the errno of a write of vmem at {gva:#x}");
    }
    let line = vm.text(&format!("vcpu/{vcpu}/translate,gva=0x800000000000"))?;
    ensure!(line.contains("not canonical"), "translate of an address that is not canonical: {line}");
    same!(read(&file, guard - 0x10, 0x20)?.len(), 0x10, "bytes of vmem read up to the unmapped page");
    inside.end(vm, vcpu)
}

fn write(vm: &Vm) -> Checked {
    let (data, gva) = (vm.header(header::DATA)?, vm.header(header::USER_DATA)?);
    for vcpu in 0..vm.vcpus {
        let inside = in_process(vm, vcpu)?;
        let value = 0x7777_0000_0000_0000 | vcpu;
        let before = vm.word(data + 0x80)?;
        let done = vmem(vm, vcpu)?.write_at(&value.to_le_bytes(), gva + 0x80);
        same!(done.map_err(|error| format!("write vmem: {error}"))?, 8, "bytes written to vmem");
        same!(vm.word(data + 0x80)?, value, "mem after a write of vmem");
        inside.end(vm, vcpu)?;
        same!(
            vm.order(vcpu, Op::UserRead, &[1, gva + 0x80, 8])?,
            value,
            "what ring 3 reads after a write of vmem"
        );
        vm.order(vcpu, Op::UserWrite, &[1, gva + 0x80, before, 8])?;
    }
    Ok(())
}

/// The kernel's part is the same in every address space, so no pause is needed.
fn kernel(vm: &Vm) -> Checked {
    for vcpu in 0..vm.vcpus {
        let file = vmem(vm, vcpu)?;
        for gva in [layout::TEXT64, vm.header(header::CODE)?, 0x40_0000] {
            ensure!(
                read(&file, gva, 0x1800)? == vm.mem(gva, 0x1800)?,
                "vmem of vCPU {vcpu} at {gva:#x} is not mem there"
            );
            let line = vm.text(&format!("vcpu/{vcpu}/translate,gva={gva:#x}"))?;
            ensure!(
                line.contains(&format!(" gpa={gva:#018x} ")),
                "translate of the kernel's {gva:#x}: {line}"
            );
        }
    }
    Ok(())
}
