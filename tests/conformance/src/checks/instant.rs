//! Registers of a running vCPU are those of one instant.

use std::time::Duration;

use vmtree_guest::layout;
use vmtree_guest::mailbox::{Op, Site};

use super::registers::consistent;
use crate::{Check, Checked, Vm};

pub const CHECKS: &[Check] = &[
    Check {
        name: "registers-one-instant",
        needs: &["registers"],
        about: "rip, rsp, cs and cr3 of a running vCPU always fit together",
        run: one_instant,
    },
    Check {
        name: "registers-count-down",
        needs: &["registers"],
        about: "the register that a running loop counts down only goes down",
        run: count_down,
    },
];

/// A spin in ring 3 with ticks going on: samples lie in both rings.
fn one_instant(vm: &Vm) -> Checked {
    let samples = vm.looks(300)?;
    let n = vm.rounds(vm.worth_looking(Duration::from_millis(800))?)?;
    for vcpu in 0..vm.vcpus {
        let (mut kernel, mut user) = (0, 0);
        let seq = vm.begin(vcpu, Op::UserSpin, &[n])?;
        let mut spinning = true;
        for _ in 0..samples {
            let regs = vm.regs(vcpu)?;
            consistent(vm, vcpu, &regs)?;
            if regs.get("rip")? >= layout::USER_BASE {
                user += 1
            } else {
                kernel += 1
            }
            if spinning && user > 0 {
                spinning = !vm.done(vcpu, seq)?;
            }
        }
        vm.finish(vcpu, Op::UserSpin, seq)?;
        // The spin may have outlived all samples; the idle loop is in the kernel.
        for _ in 0..20 {
            let regs = vm.regs(vcpu)?;
            consistent(vm, vcpu, &regs)?;
            kernel += u32::from(regs.get("rip")? < layout::USER_BASE);
            std::thread::sleep(Duration::from_millis(1));
        }
        ensure!(user > 0, "no sample of vCPU {vcpu} was in ring 3 while it spun there");
        ensure!(kernel > 0, "no sample of vCPU {vcpu} was in the kernel, where it idles");
    }
    Ok(())
}

fn count_down(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let spin = vm.mailbox.site(Site::Spin).map_err(|error| error.to_string())?;
    let vcpu = vm.vcpus - 1;
    let _masked = vm.masked(vcpu)?;
    let n = vm.rounds(vm.worth_looking(Duration::from_millis(800))?)?;
    let seq = vm.begin(vcpu, Op::Spin, &[n])?;
    let (mut last, mut samples) = (n, 0);
    while !vm.done(vcpu, seq)? {
        let regs = vm.regs(vcpu)?;
        // dec r12 has 3 bytes, jne 2.
        if [spin, spin + 3].contains(&regs.get("rip")?) {
            let left = regs.get("r12")?;
            ensure!(left <= last, "r12 of the spinning vCPU {vcpu} went from {last:#x} to {left:#x}");
            samples += u32::from(left < last);
            last = left;
        }
    }
    vm.finish(vcpu, Op::Spin, seq)?;
    ensure!(samples > 1, "only {samples} samples of vCPU {vcpu} were in its loop");
    Ok(())
}
