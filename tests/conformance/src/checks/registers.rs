//! Registers of a paused vCPU: three ways to the same values, and writes that all take or none.

use std::fs;

use vmtree_guest::layout;
use vmtree_guest::mailbox::header;

use super::errno::{EINVAL, EOPNOTSUPP, ERANGE};
use crate::regs::Regs;
use crate::vm::read_at;
use crate::{Check, Checked, Vm};

const PAUSED: &[&str] = &["registers", "pause"];

pub const CHECKS: &[Check] = &[
    Check {
        name: "registers-plausible",
        needs: PAUSED,
        about: "rip, rsp and cr3 of paused vCPUs are the guest's",
        run: plausible,
    },
    Check {
        name: "registers-three-ways",
        needs: PAUSED,
        about: "regs/NAME, regs/all and regs/raw say the same",
        run: three_ways,
    },
    Check {
        name: "registers-write",
        needs: PAUSED,
        about: "several set together are read back, and restored",
        run: write,
    },
    Check {
        name: "registers-bad-values",
        needs: PAUSED,
        about: "a set with one bad value changes nothing",
        run: bad_values,
    },
    Check {
        name: "registers-read-only",
        needs: PAUSED,
        about: "a register without write permission refuses a write",
        run: read_only,
    },
];

/// CR3 of the kernel's thread and of a vCPU's processes.
pub fn own_cr3(vm: &Vm, vcpu: u64) -> Result<[u64; 3], String> {
    let process = |n| vm.mailbox.process_cr3(vcpu, n).map_err(|error| error.to_string());
    Ok([vm.header(header::KERNEL_CR3)?, process(0)?, process(1)?])
}

/// Whether an address lies in the guest's own code.
fn is_code(gva: u64) -> bool {
    let user = [layout::USER_TEXT, layout::USER_SELF, layout::USER_CODE].contains(&(gva & !0xfff));
    user || (layout::TEXT64..layout::USER_IMAGE).contains(&gva)
}

/// What holds at every instant of a running guest.
pub fn consistent(vm: &Vm, vcpu: u64, regs: &Regs) -> Checked {
    let (rip, rsp) = (regs.get("rip")?, regs.get("rsp")?);
    ensure!(is_code(rip), "rip {rip:#x} of vCPU {vcpu} is not in the guest's code");
    let user = rip >= layout::USER_BASE;
    if let Some(selector) = regs.find("cs.sel") {
        same!(selector & 3 == 3, user, "cs.sel {selector:#x} says ring 3, against rip {rip:#x}");
    }
    let own_stack = (layout::VCPU_AREAS + layout::AREA * vcpu
        ..=layout::VCPU_AREAS + layout::AREA * (vcpu + 1))
        .contains(&rsp);
    let user_stack = (layout::USER_STACK..=layout::USER_STACK + 0x1000).contains(&rsp);
    // A system call enters the kernel on the user's stack.
    ensure!(
        user_stack || own_stack && !user,
        "rsp {rsp:#x} of vCPU {vcpu} at rip {rip:#x} is on no stack of its own"
    );
    if let Some(cr3) = regs.find("cr3") {
        let own = own_cr3(vm, vcpu)?;
        ensure!(own.contains(&cr3), "cr3 {cr3:#x} of vCPU {vcpu} is none of {own:x?}");
        ensure!(!user || cr3 != own[0], "ring 3 of vCPU {vcpu} runs on the kernel's cr3");
    }
    if let Some(efer) = regs.find("efer") {
        // SCE, LME, LMA and NXE (Intel SDM volume 3A, 2.2.1).
        same!(efer & 0xd01, 0xd01, "efer of vCPU {vcpu}");
    }
    if let Some(cr0) = regs.find("cr0") {
        same!(cr0 & 0x8000_0001, 0x8000_0001, "PG and PE in cr0 of vCPU {vcpu}");
    }
    Ok(())
}

fn plausible(vm: &Vm) -> Checked {
    for _ in 0..10 {
        let paused = vm.pause()?;
        for vcpu in 0..vm.vcpus {
            consistent(vm, vcpu, &vm.regs(vcpu)?)?;
        }
        drop(paused);
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    Ok(())
}

fn names(vm: &Vm, vcpu: u64) -> Result<Vec<String>, String> {
    let folder =
        fs::read_dir(vm.path(&format!("vcpu/{vcpu}/regs"))).map_err(|error| format!("ls regs: {error}"))?;
    let names = folder.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<Result<_, _>>().map_err(|error| format!("ls regs: {error}"))?;
    Ok(names.into_iter().filter(|name| name != "all" && name != "raw").collect())
}

fn three_ways(vm: &Vm) -> Checked {
    let _paused = vm.pause()?;
    for vcpu in 0..vm.vcpus {
        let all = vm.regs(vcpu)?;
        let (mut listed, mut shown) = (names(vm, vcpu)?, all.names());
        listed.sort();
        shown.sort();
        same!(listed, shown, "the files of vcpu/{vcpu}/regs, against regs/all");
        for name in &listed {
            let path = format!("vcpu/{vcpu}/regs/{name}");
            let text = vm.text(&path)?;
            let size = fs::metadata(vm.path(&path)).map_err(|error| format!("stat {path}: {error}"))?.len();
            same!(size, text.len() as u64, "the size of {path}");
            // The time stamp may go on in a paused VM.
            if name != "tsc" {
                same!(Regs::parse_one(name, &text)?, all.part(name), "{path}, against regs/all");
            }
        }
        let path = format!("vcpu/{vcpu}/regs/raw");
        let raw = fs::File::open(vm.path(&path)).and_then(|file| read_at(&file, 0, 4096));
        let raw = Regs::parse_raw(&raw.map_err(|error| format!("read {path}: {error}"))?)?;
        let (raw, all, again) = (raw.without("tsc"), all.without("tsc"), vm.regs(vcpu)?.without("tsc"));
        ensure!(raw == all, "regs/raw and regs/all of vCPU {vcpu} differ: {}", raw.differences(&all));
        ensure!(again == all, "registers of the paused vCPU {vcpu} moved: {}", again.differences(&all));
    }
    Ok(())
}

fn write(vm: &Vm) -> Checked {
    let _paused = vm.pause()?;
    for vcpu in 0..vm.vcpus {
        let before = vm.regs(vcpu)?;
        let settable: Vec<&str> =
            ["rax", "rbx", "r14", "r15"].into_iter().filter(|name| vm.writable(vcpu, name)).collect();
        ensure!(!settable.is_empty(), "none of rax, rbx, r14 and r15 of vCPU {vcpu} can be written");
        let new = |name: &str| 0xfeed_0000_0000_0000 | u64::from(name.as_bytes()[1]) << 8 | vcpu;
        let setting =
            settable.iter().map(|name| format!("{name}={:#x}", new(name))).collect::<Vec<_>>().join(" ");
        let restore = settable.iter().map(|name| Ok(format!("{name}={:#x}", before.get(name)?)));
        let restore = restore.collect::<Result<Vec<_>, String>>()?.join(" ");
        vm.set(vcpu, &setting)?;
        let during = vm.regs(vcpu);
        vm.set(vcpu, &restore)?;
        let during = during?;
        for name in &settable {
            same!(during.get(name)?, new(name), "{name} of vCPU {vcpu} after '{setting}'");
        }
        let others =
            |regs: &Regs| settable.iter().fold(regs.clone().without("tsc"), |regs, name| regs.without(name));
        let (found, wanted) = (others(&during), others(&before));
        ensure!(found == wanted, "'{setting}' changed more: {}", found.differences(&wanted));
        let after = vm.regs(vcpu)?.without("tsc");
        let before = before.without("tsc");
        ensure!(after == before, "'{restore}' did not restore all: {}", after.differences(&before));
    }
    Ok(())
}

fn bad_values(vm: &Vm) -> Checked {
    let _paused = vm.pause()?;
    let vcpu = vm.vcpus - 1;
    let (all, one) = (format!("vcpu/{vcpu}/regs/all"), format!("vcpu/{vcpu}/regs/rax"));
    let before = vm.regs(vcpu)?.without("tsc");
    let bad: &[(&str, &str, (i32, &str))] = &[
        (&all, "rax=1 nosuch=2", EINVAL),
        (&all, "rax=1 rbx=", EINVAL),
        (&all, "rax=1 rax=2", EINVAL),
        (&all, "rax=1 rbx=0x10000000000000000", ERANGE),
        (&all, "rax=1 rip=0x8000000000000000", EINVAL),
        (&all, "rax", EINVAL),
        (&all, "\n", EINVAL),
        (&one, "zzz", EINVAL),
        (&one, "1 2", EINVAL),
        (&one, "0x10000000000000000", ERANGE),
    ];
    for (path, text, errno) in bad {
        vm.refused(path, text.as_bytes(), *errno)?;
        let after = vm.regs(vcpu)?.without("tsc");
        ensure!(after == before, "'{text}' was refused but changed {}", after.differences(&before));
    }
    Ok(())
}

fn read_only(vm: &Vm) -> Checked {
    let _paused = vm.pause()?;
    let before = vm.regs(0)?.without("tsc");
    for name in names(vm, 0)?.iter().filter(|name| !vm.writable(0, name)) {
        let value = before.part(name);
        let key = |field: &str| value.find(&format!("{name}.{field}"));
        let setting = match (value.find(name), key("base")) {
            (Some(word), _) => format!("{name}={word:#x}"),
            (None, Some(base)) => format!("{name}.base={base:#x}"),
            (None, None) => continue,
        };
        vm.refused("vcpu/0/regs/all", setting.as_bytes(), EOPNOTSUPP)?;
        let after = vm.regs(0)?.without("tsc");
        ensure!(after == before, "'{setting}' was refused but changed {}", after.differences(&before));
    }
    Ok(())
}
