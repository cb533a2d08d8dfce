//! Bad input: refused, told in `errors`, and without effect.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;

use super::errno::{E2BIG, EINVAL, EOPNOTSUPP};
use crate::{Check, Checked, Vm};

pub const CHECKS: &[Check] = &[
    Check {
        name: "input-control",
        needs: &["pause"],
        about: "unknown verbs, half lines and bytes that are no text change nothing",
        run: control,
    },
    Check {
        name: "input-unsupported",
        needs: &[],
        about: "what the driver cannot do is refused with the reason",
        run: unsupported,
    },
    Check {
        name: "input-names",
        needs: &[],
        about: "files that are not there can't be opened or made",
        run: names,
    },
    Check {
        name: "input-truncation",
        needs: &[],
        about: "truncation and append leave mem as it is",
        run: truncation,
    },
    Check {
        name: "input-translate",
        needs: &["virtual_memory"],
        about: "a translate without a right address is no file",
        run: translate,
    },
];

fn control(vm: &Vm) -> Checked {
    let long = format!("pause{}", " ".repeat(128 << 10));
    for (data, errno) in [
        (&b"halt\n"[..], EINVAL),
        (b"pause halt\n", EINVAL),
        (b"pause pause now\n", EINVAL),
        (b"pause force\n", EINVAL),
        (b"PAUSE\n", EINVAL),
        (b"# pause\n", EINVAL),
        (b"\n", EINVAL),
        (b"pause\0", EINVAL),
        (b"pause \xff\n", EINVAL),
        (long.as_bytes(), E2BIG),
    ] {
        vm.refused("ctl", data, errno)?;
        same!(vm.text("state")?, "running\n", "state after a refused write to ctl");
    }
    Ok(())
}

fn unsupported(vm: &Vm) -> Checked {
    if vm.lacks("pause").is_some() {
        vm.refused("ctl", b"pause\n", EOPNOTSUPP)?;
    }
    // What takes no capability works all the same.
    vm.write("ctl", "flush\n")
}

fn names(vm: &Vm) -> Checked {
    for name in
        ["nosuch", "mem.nosuch", "vcpu/99", "vcpu/0/regs/nosuch", "vcpu/00", "ram/nosuch", "events/nosuch"]
    {
        let found = fs::symlink_metadata(vm.path(name)).err().map(|error| error.kind());
        same!(found, Some(std::io::ErrorKind::NotFound), "stat {name}");
        ensure!(File::create(vm.path(name)).is_err(), "{name} could be made");
    }
    for name in ["mem", "info", "capabilities"] {
        ensure!(fs::remove_file(vm.path(name)).is_err() && vm.path(name).exists(), "{name} could be removed");
    }
    Ok(())
}

fn truncation(vm: &Vm) -> Checked {
    let stat =
        || fs::metadata(vm.path("mem")).map(|file| file.size()).map_err(|error| format!("stat mem: {error}"));
    let (size, before) = (stat()?, vm.mem(0x10_0000, 0x2000)?);
    for len in [0, 1, size * 2] {
        vm.mailbox.bytes().set_len(len).map_err(|error| format!("truncate mem to {len}: {error}"))?;
        same!(stat()?, size, "the size of mem after a truncation");
    }
    drop(
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(vm.path("mem"))
            .map_err(|error| error.to_string())?,
    );
    same!(stat()?, size, "the size of mem after O_TRUNC");
    ensure!(vm.mem(0x10_0000, 0x2000)? == before, "truncation changed mem");
    Ok(())
}

fn translate(vm: &Vm) -> Checked {
    for name in [
        "translate",
        "translate,gva=",
        "translate,gva=zzz",
        "translate,gva=0x10000000000000000",
        "translate,gpa=0x1000",
        "translate,gva=1,gva=2",
    ] {
        let path = vm.path(&format!("vcpu/0/{name}"));
        ensure!(fs::read(&path).is_err(), "vcpu/0/{name} could be read");
    }
    Ok(())
}
