//! The tree itself: what is there, and what `capabilities` says of the rest.

use crate::{Check, Checked, Vm};

pub const CHECKS: &[Check] = &[
    Check {
        name: "tree-matches-capabilities",
        needs: &[],
        about: "a file is there exactly where its capability says yes",
        run: matches,
    },
    Check {
        name: "tree-vcpus",
        needs: &["registers"],
        about: "a folder for each vCPU that the guest counted",
        run: vcpus,
    },
];

/// A file or folder of each capability.
const FILES: &[(&str, &[&str])] = &[
    ("memory", &["mem", "mem.map", "info", "errors", "README"]),
    ("ram_files", &["ram"]),
    ("registers", &["vcpu/0/regs/all", "vcpu/0/regs/raw", "vcpu/0/regs/rip"]),
    ("msrs", &["vcpu/0/msr"]),
    ("pause", &["state", "vcpu/0/state"]),
    ("step", &["vcpu/0/ctl"]),
    ("virtual_memory", &["vcpu/0/vmem"]),
];

fn matches(vm: &Vm) -> Checked {
    for (capability, files) in FILES {
        for file in *files {
            let (offered, there) = (vm.offers(capability), vm.path(file).exists());
            same!(there, offered, "{file} is there, against the line '{capability}' of capabilities");
        }
        if let Some(reason) = vm.lacks(capability) {
            ensure!(
                reason.split_whitespace().count() > 2,
                "capabilities says no more of {capability} than '{reason}'"
            );
        }
    }
    Ok(())
}

fn vcpus(vm: &Vm) -> Checked {
    let told: u64 = vm.fact("vcpus")?.parse().map_err(|error| format!("vcpus of info: {error}"))?;
    // No more than 8 take part in the guest.
    same!(vm.vcpus, told.min(8), "vCPUs that the guest counted, against info");
    for vcpu in 0..told {
        ensure!(vm.path(&format!("vcpu/{vcpu}/regs")).is_dir(), "vcpu/{vcpu}/regs is missing");
    }
    ensure!(!vm.path(&format!("vcpu/{told}")).exists(), "vcpu/{told} is there, of {told}");
    Ok(())
}
