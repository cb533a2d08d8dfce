//! SLAT views: made, filled, switched to, and what the guest then sees.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use vmtree_guest::layout::{self, process};
use vmtree_guest::mailbox::{Op, header};

use super::errno::{EBUSY, EEXIST, EINVAL, ENOENT};
use crate::{Check, Checked, Vm};

const VIEWS: &[&str] = &["views"];

pub const CHECKS: &[Check] = &[
    Check {
        name: "views-made",
        needs: VIEWS,
        about: "mkdir makes a view with its files, rmdir removes it; bad, known and used names are refused",
        run: made,
    },
    Check {
        name: "views-switch",
        needs: VIEWS,
        about: "all vCPUs or one on a view; the files tell, and the guest works on as before",
        run: switch,
    },
    Check {
        name: "views-copy",
        needs: VIEWS,
        about: "a private copy: who runs on the view has it, all others have the guest's own frame",
        run: copy,
    },
    Check {
        name: "views-frame",
        needs: VIEWS,
        about: "a frame that shows another frame of the guest",
        run: frame,
    },
    Check {
        name: "views-mem",
        needs: VIEWS,
        about: "views/NAME/mem is mem, but for what the view shows differently",
        run: mem,
    },
    Check {
        name: "views-page-walk",
        needs: VIEWS,
        about: "the guest's page walks go through the view too",
        run: page_walk,
    },
    Check {
        name: "views-refusals",
        needs: VIEWS,
        about: "bad remaps are refused whole, and the default view shows nothing else",
        run: refusals,
    },
];

/// A view of this suite's own; dropping it puts all vCPUs on the default view and removes it.
pub struct View<'a> {
    vm: &'a Vm,
    name: &'static str,
}

impl<'a> View<'a> {
    pub fn make(vm: &'a Vm, name: &'static str) -> Result<Self, String> {
        fs::create_dir(vm.path(&format!("views/{name}")))
            .map_err(|error| format!("mkdir views/{name}: {error}"))?;
        Ok(Self { vm, name })
    }

    pub fn file(&self, name: &str) -> String {
        format!("views/{}/{name}", self.name)
    }

    pub fn remap(&self, text: &str) -> Checked {
        self.vm.write(&self.file("remap"), &format!("{text}\n"))
    }

    fn mem(&self) -> Result<File, String> {
        let file = File::options().read(true).write(true).open(self.vm.path(&self.file("mem")));
        file.map_err(|error| format!("open {}: {error}", self.file("mem")))
    }

    fn word(&self, gpa: u64) -> Result<u64, String> {
        let mut bytes = [0; 8];
        let read = self.mem()?.read_exact_at(&mut bytes, gpa);
        read.map_err(|error| format!("read {} at {gpa:#x}: {error}", self.file("mem")))?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub fn put(&self, gpa: u64, bytes: &[u8]) -> Checked {
        let wrote = self.mem()?.write_all_at(bytes, gpa);
        wrote.map_err(|error| format!("write {} at {gpa:#x}: {error}", self.file("mem")))
    }

    /// Puts a vCPU on it.
    pub fn enter(&self, vcpu: u64) -> Checked {
        self.vm.write(&format!("vcpu/{vcpu}/view"), &format!("{}\n", self.name))
    }

    fn remove(&self) -> Result<(), std::io::Error> {
        fs::remove_dir(self.vm.path(&format!("views/{}", self.name)))
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        let _ = self.vm.write("view", "0\n");
        let _ = self.remove();
    }
}

fn errno(result: std::io::Result<()>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn made(vm: &Vm) -> Checked {
    let mkdir = |name: &str| errno(fs::create_dir(vm.path(&format!("views/{name}"))));
    let rmdir = |name: &str| errno(fs::remove_dir(vm.path(&format!("views/{name}"))));
    same!(vm.text("view")?, "0\n", "the view of all vCPUs");
    let view = View::make(vm, "conf-1")?;
    for file in ["access", "remap", "mem"] {
        ensure!(vm.path(&view.file(file)).exists(), "{} is missing", view.file(file));
    }
    ensure!(vm.path("views/0/access").exists(), "views/0/access is missing");
    same!(
        vm.text(&view.file("access"))? + &vm.text(&view.file("remap"))?,
        "",
        "access and remap of a new view"
    );
    for name in ["conf-1", "0"] {
        same!(mkdir(name), Some(EEXIST.0), "the errno of mkdir views/{name}, which is there");
    }
    for name in
        ["a b", "a.b", "", "ä", "0123456789012345678901234567890123"].iter().filter(|name| !name.is_empty())
    {
        ensure!(mkdir(name).is_some(), "mkdir views/'{name}' made a view");
    }
    same!(rmdir("0"), Some(EBUSY.0), "the errno of rmdir views/0");
    same!(rmdir("none"), Some(ENOENT.0), "the errno of rmdir views/none");
    view.enter(0)?;
    same!(errno(view.remove()), Some(EBUSY.0), "the errno of rmdir of a view that a vCPU runs on");
    vm.write("view", "0\n")?;
    same!(errno(view.remove()), None, "the errno of rmdir of a view");
    ensure!(!vm.path("views/conf-1").exists(), "views/conf-1 is there after rmdir");
    vm.refused("view", b"conf-1\n", EINVAL)
}

fn switch(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let view = View::make(vm, "conf")?;
    let tell = |text: &str| -> Checked {
        same!(vm.text("view")?, format!("{text}\n"), "view");
        Ok(())
    };
    view.enter(0)?;
    same!(vm.text("vcpu/0/view")?, "conf\n", "vcpu/0/view");
    tell(if vm.vcpus > 1 { "mixed" } else { "conf" })?;
    vm.write("view", "conf\n")?;
    tell("conf")?;
    for vcpu in 0..vm.vcpus {
        let before = vm.counters(vcpu)?;
        vm.order(vcpu, Op::WriteCr8, &[5, 0])?;
        vm.order(vcpu, Op::UserSyscall, &[3])?;
        let counted = vm.worked(vcpu, &before)?;
        vm.write(&format!("vcpu/{vcpu}/view"), "0\n")?;
        let before = vm.counters(vcpu)?;
        vm.order(vcpu, Op::WriteCr8, &[5, 0])?;
        vm.order(vcpu, Op::UserSyscall, &[3])?;
        same!(counted, vm.worked(vcpu, &before)?, "counts of vCPU {vcpu} on a view, and on the default view");
    }
    tell("0")
}

fn copy(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let at = vm.header(header::SCRATCH)? + 0xc0;
    let read = |vcpu| vm.order(vcpu, Op::Read, &[1, at, 8]);
    let write = |vcpu, value| vm.order(vcpu, Op::Write, &[1, at, value, 8]).map(drop);
    write(0, 0x11)?;
    let view = View::make(vm, "conf")?;
    view.remap(&format!("{:#x} copy", at & !0xfff))?;
    ensure!(
        vm.text(&view.file("remap"))?.contains(" copy"),
        "remap shows no copy: {}",
        vm.text(&view.file("remap"))?
    );
    same!(view.word(at)?, 0x11, "a copy begins with what its frame held");
    view.put(at, &0x22_u64.to_le_bytes())?;
    same!(vm.word(at)?, 0x11, "mem after a write of views/conf/mem");
    same!(read(0)?, 0x11, "what vCPU 0 reads on the default view");
    view.enter(0)?;
    same!(read(0)?, 0x22, "what vCPU 0 reads on the view");
    write(0, 0x33)?;
    same!(
        [view.word(at)?, vm.word(at)?],
        [0x33, 0x11],
        "views/conf/mem and mem after vCPU 0 wrote on the view"
    );
    if vm.vcpus > 1 {
        same!(read(1)?, 0x11, "what vCPU 1 reads on the default view");
        write(1, 0x44)?;
        same!(
            [read(0)?, read(1)?],
            [0x33, 0x44],
            "what vCPU 0 reads on the view, and vCPU 1 on the default view"
        );
    }
    let own = vm.word(at)?;
    view.remap(&format!("{:#x} -", at & !0xfff))?;
    same!([read(0)?, view.word(at)?], [own, own], "on the view, after the copy was taken back");
    same!(vm.text(&view.file("remap"))?, "", "remap after the copy was taken back");
    Ok(())
}

fn frame(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let (scratch, data) = (vm.header(header::SCRATCH)?, vm.header(header::DATA)?);
    let (last, at) = (vm.vcpus - 1, 0x30);
    vm.order(0, Op::Write, &[1, scratch + at, 0x77, 8])?;
    let view = View::make(vm, "conf")?;
    view.remap(&format!("{scratch:#x} {data:#x}"))?;
    view.enter(last)?;
    let wanted = vm.word(data + at)?;
    same!(view.word(scratch + at)?, wanted, "views/conf/mem where another frame is shown");
    same!(
        vm.order(last, Op::Read, &[1, scratch + at, 8])?,
        wanted,
        "what the guest reads where another frame is shown"
    );
    vm.order(last, Op::Write, &[1, scratch + 0x900, 0x99, 8])?;
    same!(vm.word(data + 0x900)?, 0x99, "the other frame, after the guest wrote where it is shown");
    same!(vm.word(scratch + at)?, 0x77, "the guest's own frame meanwhile");
    Ok(())
}

fn mem(vm: &Vm) -> Checked {
    let view = View::make(vm, "conf")?;
    let size =
        |name: &str| fs::metadata(vm.path(name)).map(|file| file.size()).map_err(|error| error.to_string());
    same!(size(&view.file("mem"))?, size("mem")?, "the size of views/conf/mem, against mem");
    let (code, mem) = (vm.header(header::CODE)?, view.mem()?);
    view.remap(&format!("{code:#x} copy"))?;
    view.put(code + 0x800, b"hidden")?;
    let mut theirs = vec![0; 0x3000];
    mem.read_exact_at(&mut theirs, code - 0x1000).map_err(|error| format!("read views/conf/mem: {error}"))?;
    let ours = vm.mem(code - 0x1000, 0x3000)?;
    let differ: Vec<usize> = (0..0x3000).filter(|at| ours.get(*at) != theirs.get(*at)).collect();
    same!(
        differ,
        (0x1800..0x1806).collect::<Vec<_>>(),
        "where views/conf/mem and mem differ, from the page before the copy"
    );
    Ok(())
}

/// A copy of the process's page table in which its data page lies elsewhere.
fn page_walk(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let vcpu = vm.vcpus - 1;
    let table = layout::PROCESS_AREAS + 2 * vcpu * layout::AREA + process::PT;
    let (gva, scratch) = (vm.header(header::USER_DATA)?, vm.header(header::SCRATCH)?);
    let entry = table + ((gva - layout::USER_BASE) >> 12) * 8;
    vm.order(0, Op::Write, &[1, scratch + 0x50, 0xabcd, 8])?;
    let own = vm.order(vcpu, Op::UserRead, &[1, gva + 0x50, 8])?;
    let view = View::make(vm, "conf")?;
    view.remap(&format!("{table:#x} copy"))?;
    let bits = vm.word(entry)? & 0xfff0_0000_0000_0fff;
    view.put(entry, &(bits | scratch).to_le_bytes())?;
    view.enter(vcpu)?;
    let read = vm.order(vcpu, Op::UserRead, &[1, gva + 0x50, 8])?;
    same!(read, 0xabcd, "what ring 3 reads by a page table that the view shows");
    vm.write("view", "0\n")?;
    same!(
        vm.order(vcpu, Op::UserRead, &[1, gva + 0x50, 8])?,
        own,
        "what ring 3 reads on the default view again"
    );
    Ok(())
}

fn refusals(vm: &Vm) -> Checked {
    let view = View::make(vm, "conf")?;
    let scratch = vm.header(header::SCRATCH)?;
    let hole = vm.map()?.last().map_or(0, |region| region.range.end) + (1 << 30);
    for bad in ["0x1234 copy", "copy", "0x1000", "0x1000 copies", "0x1000 0x2001", &format!("{hole:#x} copy")]
    {
        let text = format!("{scratch:#x} copy\n{bad}\n");
        ensure!(vm.try_write(&view.file("remap"), text.as_bytes()).is_err(), "'{bad}' was taken");
        same!(vm.text(&view.file("remap"))?, "", "remap after '{bad}' was refused");
    }
    ensure!(vm.try_write("views/0/remap", b"0x1000 copy\n").is_err(), "the default view took a remap");
    ensure!(
        vm.try_write("view", b"conf conf\n").is_err() && vm.try_write("view", b"\n").is_err(),
        "view took a bad line"
    );
    Ok(())
}
