//! Views, permissions and injection, as files.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use vmtree_api::events::Inject;
use vmtree_api::{Gva, VcpuId, ViewId};

use crate::{Lab, errno, lab};

#[test]
fn views_are_made_and_removed_as_directories() {
    let Some(lab) = lab("mkdir and rmdir", "") else { return };
    let list = |lab: &Lab| {
        let mut names: Vec<_> = fs::read_dir(lab.path("views"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    };
    assert_eq!(list(&lab), ["0"]);
    fs::create_dir(lab.path("views/hooks")).unwrap();
    fs::create_dir(lab.path("views/B-2_x")).unwrap();
    assert_eq!(list(&lab), ["0", "B-2_x", "hooks"]);
    assert_eq!(errno(fs::create_dir(lab.path("views/hooks"))), libc::EEXIST);
    assert_eq!(errno(fs::create_dir(lab.path("views/0"))), libc::EEXIST);
    for bad in ["a b", "a,b", "\u{e4}", "x.y", &"x".repeat(33)] {
        assert_eq!(errno(fs::create_dir(lab.path(&format!("views/{bad}")))), libc::EINVAL, "{bad}");
        assert!(lab.last_error().contains("errno=EINVAL"), "{}", lab.last_error());
    }
    fs::create_dir(lab.path(&format!("views/{}", "x".repeat(32)))).unwrap();
    assert_eq!(errno(fs::create_dir(lab.path("views/more"))), libc::ENOSPC);
    assert!(lab.last_error().contains("path=views/more errno=ENOSPC"), "{}", lab.last_error());
    // In use, and the one that is always there.
    lab.write("vcpu/1/view", "hooks\n").unwrap();
    assert_eq!(errno(fs::remove_dir(lab.path("views/hooks"))), libc::EBUSY);
    assert_eq!(errno(fs::remove_dir(lab.path("views/0"))), libc::EBUSY);
    assert_eq!(errno(fs::remove_dir(lab.path("views/nosuch"))), libc::ENOENT);
    assert_eq!(errno(fs::remove_dir(lab.path("views"))), libc::EPERM);
    assert_eq!(errno(fs::create_dir(lab.path("views/hooks/x"))), libc::EPERM);
    lab.write("view", "0").unwrap();
    let open = File::open(lab.path("views/hooks/remap")).unwrap();
    fs::remove_dir(lab.path("views/hooks")).unwrap();
    assert_eq!(list(&lab).len(), 3);
    // A new one of the same name, and of the driver's same number, is another.
    fs::create_dir(lab.path("views/hooks")).unwrap();
    assert_eq!(errno(open.read_at(&mut [0; 16], 0)), libc::ENOENT);
    assert!(lab.last_error().contains("removed"), "{}", lab.last_error());
    assert_eq!(lab.text("views/hooks/remap"), "");
    drop(open);
    let script = lab.script.clone();
    lab.write("view", "hooks").unwrap();
    lab.end();
    // What the mount made is gone with it.
    assert_eq!((script.views(), script.view(0)), (vec![], ViewId(0)));
}

#[test]
fn a_read_only_mount_keeps_its_views_also_where_the_kernel_would_let_it_change_them() {
    let Some(lab) = lab("views of a read-only mount", "ro") else { return };
    assert_eq!(errno(fs::create_dir(lab.path("views/hooks"))), libc::EROFS);
    // Without the helper, so by the kernel alone.
    let remount = Command::new("mount").args(["-i", "-o", "remount,rw"]).arg(lab.path(".")).status();
    if !remount.is_ok_and(|status| status.success()) {
        println!("skipped: a remount needs root");
        return lab.end();
    }
    assert_eq!(errno(fs::create_dir(lab.path("views/hooks"))), libc::EROFS);
    assert!(lab.last_error().contains("path=views/hooks errno=EROFS"), "{}", lab.last_error());
    assert_eq!(errno(fs::remove_dir(lab.path("views/0"))), libc::EROFS);
    assert_eq!(lab.script.views(), vec![]);
    lab.end();
}

#[test]
fn view_tells_and_switches() {
    let Some(lab) = lab("switch views", "") else { return };
    fs::create_dir(lab.path("views/hooks")).unwrap();
    assert_eq!(lab.text("view"), "0\n");
    lab.write("vcpu/1/view", "hooks").unwrap();
    assert_eq!((lab.text("view"), lab.text("vcpu/0/view")), ("mixed\n".to_owned(), "0\n".to_owned()));
    assert_eq!(lab.text("vcpu/1/view"), "hooks\n");
    lab.write("view", "hooks\n").unwrap();
    assert_eq!(lab.text("view"), "hooks\n");
    for bad in ["nosuch", "mixed", "hooks 0", "#", "a b", "../0"] {
        assert_eq!(errno(lab.write("view", bad)), libc::EINVAL, "{bad}");
        assert!(lab.last_error().contains("path=view errno=EINVAL"), "{}", lab.last_error());
        assert_eq!(lab.text("view"), "hooks\n");
    }
    lab.end();
}

/// The first RAM of the small machine that the guest does not use.
const FREE: u64 = 0x80_0000;

#[test]
fn a_view_shows_other_frames() {
    let Some(lab) = lab("remap", "") else { return };
    let mem = lab.control("mem").unwrap();
    mem.write_all_at(&[0x11; 4096], FREE).unwrap();
    mem.write_all_at(&[0x22; 4096], FREE + 0x1000).unwrap();
    fs::create_dir(lab.path("views/hooks")).unwrap();
    assert_eq!(errno(File::open(lab.path("views/0/remap"))), libc::ENOENT);
    assert!(lab.last_error().contains("default view"), "{}", lab.last_error());
    lab.write("views/hooks/remap", "0x800000 copy\n0x801000 0x800000\n").unwrap();
    let shown = "0x0000000000800000 copy\n0x0000000000801000 0x0000000000800000\n";
    assert_eq!(lab.text("views/hooks/remap"), shown);
    let view = lab.control("views/hooks/mem").unwrap();
    view.write_all_at(b"hidden", FREE + 0xffd).unwrap();
    let mut buf = [0; 8];
    // One read over the border of two frames, each from where the view has it: the copy's end, then the guest's frame
    // at 0x800000, into which the write's second half went.
    view.read_exact_at(&mut buf, FREE + 0xffc).unwrap();
    assert_eq!(&buf, b"\x11hidden\x11");
    mem.read_exact_at(&mut buf, FREE).unwrap();
    assert_eq!(&buf, b"den\x11\x11\x11\x11\x11");
    mem.read_exact_at(&mut buf, FREE + 0xffc).unwrap();
    assert_eq!(buf, [0x11, 0x11, 0x11, 0x11, 0x22, 0x22, 0x22, 0x22]);
    // Bad text, a hole, and a frame twice change nothing, not even the copy that is there.
    for (bad, code) in [
        ("0x800000 -\n0x100000000000 copy", libc::EIO),
        ("0x800000 -\n0x801000 junk", libc::EINVAL),
        ("0x800001 copy", libc::EINVAL),
        ("0x800000", libc::EINVAL),
        ("copy", libc::EINVAL),
    ] {
        assert_eq!(errno(lab.write("views/hooks/remap", bad)), code, "{bad}");
        assert_eq!(lab.text("views/hooks/remap"), shown, "{bad}");
        view.read_exact_at(&mut buf, FREE + 0xffc).unwrap();
        assert_eq!(&buf[..4], b"\x11hid", "{bad}");
    }
    lab.write("views/hooks/remap", "0x800000 -").unwrap();
    assert_eq!(lab.text("views/hooks/remap"), "0x0000000000801000 0x0000000000800000\n");
    // Its size, its holes and its end are those of mem.
    assert_eq!(view.metadata().unwrap().len(), mem.metadata().unwrap().len());
    assert_eq!(errno(view.write_at(b"x", 0xc000_0000)), libc::EIO);
    drop((mem, view));
    lab.end();
}

#[test]
fn permissions_are_set_all_or_nothing_and_event_files_are_rules() {
    let Some(lab) = lab("access", "") else { return };
    lab.write("views/0/access", "0x1000-0x3000 r-x\n0x5000-0x6000 r-- deny\n").unwrap();
    let shown = lab.text("views/0/access");
    assert!(shown.contains("1000-0x0000000000003000 r-x\n") && shown.contains("6000 r-- deny\n"), "{shown}");
    assert_eq!(lab.script.wanted().rules.len(), 2);
    for bad in [
        "0x1000-0x2000",
        "0x1000-0x2000 rwz",
        "0x1001-0x2000 r--",
        "0x2000-0x1000 r--",
        "junk",
        "#",
        "0x1000-0x2000 -w-",
    ] {
        assert_eq!(errno(lab.write("views/0/access", bad)), libc::EINVAL, "{bad}");
        assert!(lab.last_error().contains("path=views/0/access errno=EINVAL"), "{}", lab.last_error());
        assert_eq!(lab.text("views/0/access"), shown, "{bad}");
    }
    let file = File::open(lab.path("events/slat,gpa=0x9000-0xa000,access=w")).unwrap();
    assert!(
        lab.text("views/0/access")
            .lines()
            .any(|line| line.contains("9000-0x000000000000a000") && line.contains("# event"))
    );
    assert_eq!(lab.script.wanted().rules.len(), 3);
    drop(file);
    lab.write("views/0/access", "reset").unwrap();
    crate::wait_until("no rules", || lab.script.wanted().rules.is_empty());
    assert_eq!(lab.text("views/0/access"), "");
    let script = lab.script.clone();
    lab.write("views/0/access", "0x1000-0x3000 r-x").unwrap();
    lab.end();
    assert!(script.wanted().rules.is_empty());
}

#[test]
fn injection_is_a_write() {
    let Some(lab) = lab("inject", "") else { return };
    lab.write("vcpu/1/inject", "pf 0x7f001000 err=0x4\n").unwrap();
    lab.write("vcpu/0/inject", "nmi").unwrap();
    let wanted =
        [(VcpuId(1), Inject::PageFault { address: Gva(0x7f00_1000), error: 4 }), (VcpuId(0), Inject::Nmi)];
    assert_eq!(lab.script.injected(), wanted);
    for bad in ["pf", "pf 0x1000", "exception 40", "nmi nmi", "interrupt", "shutdown", "#"] {
        let code = errno(lab.write("vcpu/0/inject", bad));
        assert!([libc::EINVAL, libc::ERANGE].contains(&code), "{bad}: {code}");
        assert!(lab.last_error().contains("path=vcpu/0/inject"), "{}", lab.last_error());
    }
    assert_eq!(lab.script.injected().len(), 2);
    lab.end();
}

#[test]
fn a_read_only_mount_observes_and_changes_nothing() {
    let Some(lab) = lab("read-only", "ro") else { return };
    let file = File::open(lab.path("events/cr3")).unwrap();
    lab.script.wait_watches(1);
    assert_eq!(errno(lab.control("events/cr3")), libc::EROFS);
    assert_eq!(errno(fs::create_dir(lab.path("views/hooks"))), libc::EROFS);
    for name in ["view", "vcpu/0/view", "vcpu/0/inject", "views/0/access", "views/0/mem"] {
        assert_eq!(errno(fs::File::options().write(true).open(lab.path(name))), libc::EROFS, "{name}");
    }
    let told = lab.text("capabilities");
    for line in [
        "event cr3 to yes",
        "event slat w yes",
        "event slat ptwalk yes",
        "event io to no: this test sees none",
        "event cr3 deny no: this mount is read-only",
        "views no: this mount is read-only",
    ] {
        assert!(told.lines().any(|told| told.starts_with(line)), "{line}: {told}");
    }
    assert!(told.lines().all(|line| !line.starts_with("injection yes")));
    // What is never seen has no answers.
    assert!(told.lines().all(|line| !line.starts_with("event io deny")), "{told}");
    drop(file);
    lab.end();
}
