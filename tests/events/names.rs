//! The names in `events`.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use crate::{errno, lab, wait_until};

#[test]
fn ls_shows_the_kinds_that_are_offered() {
    let Some(lab) = lab("names of kinds", "") else { return };
    let mut names: Vec<_> = fs::read_dir(lab.path("events"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["all", "cr3", "interrupt", "msr", "slat", "stats"]);
    // Looking arms nothing.
    assert!(lab.script.wanted().watches.is_empty());
    assert_eq!(errno(File::open(lab.path("events/cr0"))), libc::ENOENT);
    assert!(lab.last_error().contains("path=events/cr0 errno=ENOENT why=cr0: this driver does not have"));
    lab.end();
}

#[test]
fn any_order_of_parameters_is_the_same_file() {
    let Some(lab) = lab("order of parameters", "") else { return };
    let ino = |name: &str| fs::metadata(lab.path(name)).unwrap().ino();
    let one = File::open(lab.path("events/cr3,vcpu=0,dir=to")).unwrap();
    let inode = one.metadata().unwrap().ino();
    assert_eq!(ino("events/cr3,dir=to,vcpu=0"), inode);
    assert_eq!(ino("events/cr3,vcpu=0x0,dir=to,format=text"), inode);
    assert_ne!(ino("events/cr3,vcpu=1,dir=to"), inode);
    assert_eq!(ino("events/cr3,format=text"), ino("events/cr3"));
    assert_eq!(ino("events/slat,gpa=0x1000-0x3000"), ino("events/slat,gpa=4096-12288"));
    drop(one);
    lab.end();
}

#[test]
fn malformed_names_are_not_there_and_errors_tells_why() {
    let Some(lab) = lab("malformed names", "") else { return };
    for (name, words) in [
        ("cr3,", "''"),
        ("cr3,vcpu", "'vcpu'"),
        ("cr3,vcpu=", "'vcpu='"),
        ("cr3,vcpu=2", "vcpu"),
        ("cr3,vcpu=x", "'x'"),
        ("cr3,vcpu=0,vcpu=1", "second time"),
        ("cr3,colour=red", "'colour'"),
        ("cr3,dir=up", "'up'"),
        ("cr3,format=xml", "'xml'"),
        ("cr3,gpa=0-1", "'gpa'"),
        ("msr,index=0x100000000", "32 bits"),
        ("interrupt,vector=256", "8 bits"),
        ("slat,gpa=0x3000-0x1000", ""),
        ("slat,gpa=0x1000", ""),
        ("slat,access=rq", "'rq'"),
        ("slat,access=rr", "'rr'"),
        ("all,index=1", "'index'"),
        ("cr33,dir=to", "no kind 'cr33'"),
        ("stats,format=json", "no kind 'stats'"),
    ] {
        assert_eq!(errno(File::open(lab.path(&format!("events/{name}")))), libc::ENOENT, "{name}");
        let told = lab.last_error();
        assert!(told.contains(&format!(" path=events/{name} errno=ENOENT why=")), "{name}: {told}");
        assert!(told.contains(words), "{name}: {told}");
        // A shell that would make it finds the same reason.
        assert_eq!(errno(lab.control(&format!("events/{name}"))), libc::ENOENT, "{name}");
    }
    // A name that means nothing at all is no refusal.
    let before = lab.text("errors");
    assert_eq!(errno(File::open(lab.path("events/nosuch"))), libc::ENOENT);
    assert_eq!(lab.text("errors"), before);
    lab.end();
}

#[test]
fn names_that_nobody_uses_are_forgotten() {
    let Some(lab) = lab("forgotten names", "") else { return };
    let round = |round: u32| {
        for n in 0..10_000_u32 {
            let index = round * 10_000 + n;
            fs::metadata(lab.path(&format!("events/msr,index={index:#x}"))).unwrap();
        }
        wait_until("the names are forgotten", || lab.mounted.tree().filters() == 0);
    };
    round(0);
    round(1);
    // One that is open stays.
    let file = File::open(lab.path("events/msr,index=7")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(lab.mounted.tree().filters(), 1);
    drop(file);
    wait_until("it is forgotten once it is closed", || lab.mounted.tree().filters() == 0);
    lab.end();
}
