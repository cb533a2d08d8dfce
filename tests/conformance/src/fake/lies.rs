//! What each check is told falsely, and whether it passes without.

use std::fs;
use std::os::unix::fs::FileExt;

use vmtree_guest::layout;
use vmtree_guest::mailbox::{Counter, MAILBOX, counter_of, header};

use super::Fake;
use crate::checks;

/// A check, and what makes the fake wrong for it. `None`: plain files are wrong enough, as they refuse nothing and
/// don't stop or step any guest.
type Lie = (&'static str, Option<fn(&mut Fake)>);

fn tear(fake: &mut Fake) {
    // A counter that goes back behind the guest's back.
    let mem = fake.mem.try_clone().unwrap();
    std::thread::spawn(move || {
        for n in 0..2000_u64 {
            let _ = mem.write_all_at(&(n % 2 * 0x1ff).to_le_bytes(), counter_of(0, Counter::Cr8Writes));
            std::thread::sleep(std::time::Duration::from_micros(500));
        }
    });
}

/// Files of their own instead of one shared: what is written to one is not in the other.
fn part_ram(fake: &mut Fake) {
    let copy = fs::read(fake.path("mem")).unwrap();
    fs::remove_file(fake.path("ram/all")).unwrap();
    fs::write(fake.path("ram/all"), copy).unwrap();
}

fn wrong_mailbox(fake: &mut Fake, offset: u64, value: u64) {
    fake.mem.write_all_at(&value.to_le_bytes(), MAILBOX + offset).unwrap();
}

const LIES: &[Lie] = &[
    ("tree-matches-capabilities", Some(|fake| fs::remove_file(fake.path("vcpu/0/msr")).unwrap())),
    ("tree-vcpus", Some(|fake| fake.change("info", "vcpus 1", "vcpus 2"))),
    ("memory-sizes", Some(|fake| fake.mem.set_len(super::RAM + 1).unwrap())),
    ("memory-fresh", Some(Fake::kill)),
    ("memory-greeting", Some(|fake| wrong_mailbox(fake, header::GREETING, layout::SCRATCH))),
    ("memory-image", Some(|fake| fake.mem.write_all_at(b"x", layout::TEXT64 + 0x1234).unwrap())),
    ("memory-blocks", Some(part_ram)),
    ("memory-concurrent", Some(tear)),
    ("memory-holes", None),
    ("memory-seek", Some(|fake| fake.change("mem.map", "-0x0000000000800000", "-0x0000000000700000"))),
    ("memory-ordered-accesses", Some(|fake| wrong_mailbox(fake, header::SCRATCH, layout::GUARD))),
    ("memory-ordered-copies", Some(Fake::kill)),
    ("memory-user", Some(|fake| wrong_mailbox(fake, header::DATA, layout::SCRATCH))),
    ("memory-counts", Some(tear)),
    (
        "registers-plausible",
        Some(|fake| fake.change("vcpu/0/regs/all", "rsp=0x0000000000386", "rsp=0x0000000000486")),
    ),
    ("registers-three-ways", Some(|fake| fake.change("vcpu/0/regs/rbx", "1\n", "2\n"))),
    ("registers-write", None),
    ("registers-bad-values", None),
    ("registers-read-only", Some(read_only)),
    (
        "registers-guest-reads",
        Some(|fake| fake.change("vcpu/0/regs/all", "lstar=0x0000000000103000", "lstar=0x0000000000103008")),
    ),
    ("registers-guest-writes", None),
    ("registers-guest-sees-ours", None),
    ("registers-fault-address", None),
    ("msrs-by-index", None),
    ("msrs-bad-input", None),
    ("registers-one-instant", Some(|fake| fake.change("vcpu/0/regs/all", "cs.sel=0x0008", "cs.sel=0x002b"))),
    ("registers-count-down", None),
    ("pause-stops-all", None),
    ("pause-twice", None),
    ("pause-memory", Some(|fake| wrong_mailbox(fake, header::SCRATCH, layout::GUARD))),
    ("pause-at-registers", None),
    ("pause-keeps-counts", Some(tear)),
    ("pause-keeps-ticks", Some(Fake::kill)),
    ("step-counts", None),
    ("step-follows-code", None),
    ("step-sti", None),
    ("step-heartbeat", None),
    ("step-others-stand", None),
    ("step-refusals", None),
    ("virtual-process", None),
    ("virtual-translate", None),
    ("virtual-unmapped", None),
    ("virtual-write", None),
    ("virtual-kernel", None),
    ("input-control", None),
    (
        "input-unsupported",
        Some(|fake| fake.change("capabilities", "pause yes", "pause no: this is a fake one")),
    ),
    ("input-names", None),
    ("input-truncation", None),
    ("input-translate", Some(|fake| fake.put("vcpu/0/translate,gva=zzz", ""))),
    // Plain files are no pipes, and hold nobody: tests/lies.rs of the workspace lies to these.
    ("events-observe", None),
    ("events-filters", None),
    ("events-formats", None),
    ("events-all", None),
    ("events-interrupt-types", None),
    ("events-singlestep", None),
    ("events-listed", None),
    ("events-names", None),
    ("events-modes", None),
    ("events-wait", None),
    ("events-blocking", None),
    ("events-whole-records", None),
    ("events-stats", None),
    ("control-continue", None),
    ("control-deny", None),
    ("control-value", None),
    ("control-cpuid-value", None),
    ("control-set", None),
    ("control-step", None),
    ("control-inject", None),
    ("control-refusals", None),
    ("held-stale", None),
    ("held-overlap", None),
    ("held-timeout", None),
    ("held-close", None),
    ("held-reverse", None),
    ("held-two-kinds", None),
    ("held-others-run", None),
    ("held-pause", None),
    ("held-registers", None),
    ("watched-progress", None),
    ("slat-watch", None),
    ("slat-page-walk", None),
    ("slat-write-answers", None),
    ("slat-read-answers", None),
    ("slat-execute-answers", None),
    ("slat-rules", None),
    ("slat-walls", None),
    ("slat-refusals", None),
    ("slat-large-rule", None),
    ("views-made", None),
    ("views-switch", None),
    ("views-copy", None),
    ("views-frame", None),
    ("views-mem", None),
    ("views-page-walk", None),
    ("views-refusals", None),
    ("views-rules", None),
    ("views-by-answer", None),
    ("views-hidden-hook", None),
    ("inject-exceptions", None),
    ("inject-interrupt", None),
    ("inject-pending", None),
    ("inject-nmi", None),
    ("inject-refusals", None),
    ("inject-by-answer", None),
];

/// Registers as a driver shows them that can only read: a plain file takes the write all the same.
fn read_only(fake: &mut Fake) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(fake.path("vcpu/0/regs/rax"), fs::Permissions::from_mode(0o444)).unwrap();
}

fn run(fake: &Fake, name: &str) -> crate::Checked {
    (checks().find(|check| check.name == name).unwrap().run)(&fake.vm())
}

#[test]
fn every_check_has_its_lie() {
    let named: Vec<&str> = LIES.iter().map(|(name, _)| *name).collect();
    assert_eq!(named, checks().map(|check| check.name).collect::<Vec<_>>());
}

#[test]
fn every_check_fails_when_it_is_lied_to() {
    let mut believed = Vec::new();
    for (name, lie) in LIES {
        let mut fake = Fake::new();
        lie.iter().for_each(|lie| lie(&mut fake));
        match run(&fake, name) {
            Ok(()) => believed.push(*name),
            Err(why) => println!("{name}: {why}"),
        }
    }
    assert!(believed.is_empty(), "these believed the lie: {believed:?}");
}

#[test]
fn what_plain_files_can_satisfy_passes_without_a_lie() {
    // Seeks of a plain file follow its filesystem, and a fake guest has no second place where it could be.
    const CANNOT: [&str; 3] = ["memory-seek", "registers-one-instant", "pause-keeps-ticks"];
    let mut failed = Vec::new();
    for (name, _) in LIES.iter().filter(|(name, lie)| lie.is_some() && !CANNOT.contains(name)) {
        // The host may be busy.
        let mut fake = Fake::new();
        fake.patience = std::time::Duration::from_secs(20);
        if let Err(why) = run(&fake, name) {
            failed.push(format!("{name}: {why}"));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn every_check_is_described_with_what_it_needs() {
    let docs = include_str!("../../../../docs/conformance.md");
    for check in checks() {
        let row = format!("| {} | {} |", check.name, check.needs.join(", ")).replace("|  |", "| |");
        assert!(docs.contains(&row), "docs/conformance.md has no row '{row}'");
        assert!(!check.about.is_empty());
    }
}
