//! The built-in guest on the built-in machine: it starts, counts, and does what it is told through its mailbox.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use vmtree_api::{Driver, NoHost, Source};
use vmtree_guest::cases::cases;
use vmtree_guest::mailbox::{Counter, Op};
use vmtree_guest::{Mailbox, Outcome};

const SOON: Duration = Duration::from_secs(20);

fn start(vcpus: u32) -> (Box<dyn Driver>, Mailbox<File>) {
    let options = vec![("vcpus".to_owned(), vcpus.to_string())];
    let driver = vmtree_emu::open(Source::new("emu", "", options), Arc::new(NoHost)).unwrap();
    let low = driver.memory().blocks().into_iter().find(|block| &*block.name == "low").unwrap();
    let mailbox = Mailbox::new(low.file.try_clone().unwrap());
    mailbox.wait_running(SOON).unwrap();
    (driver, mailbox)
}

#[test]
fn it_runs_on_all_vcpus() {
    for vcpus in [1, 2, 4] {
        let (_driver, mailbox) = start(vcpus);
        for vcpu in 0..u64::from(vcpus) {
            let before = mailbox.counters(vcpu).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            let counted = mailbox.counters(vcpu).unwrap().since(&before);
            assert!(!counted.is_empty(), "vCPU {vcpu} of {vcpus}");
        }
    }
}

/// The same table as in QEMU (tests/guest/tests/qemu.rs): it keeps the built-in machine honest.
#[test]
fn each_order_counts_and_ends_as_the_table_says() {
    let (_driver, mailbox) = start(2);
    mailbox.background(false, SOON).unwrap();
    let cases = cases(&mailbox, SOON).unwrap();
    for op in Op::ALL.iter().filter(|op| !matches!(op, Op::Background | Op::Stop)) {
        assert!(cases.iter().any(|case| case.op() == *op), "{} is not in the table", op.name());
    }
    for case in cases {
        case.check(&mailbox, SOON).unwrap();
    }
    for vcpu in 0..2 {
        assert_eq!(mailbox.counters(vcpu).unwrap().get(Counter::SelfModifiedWrong), 0);
    }
    let efer = mailbox.order(0, Op::ReadMsr, &[1, 0xc000_0080], SOON).unwrap();
    assert!(matches!(efer, Outcome::Done([0xd01, ..])), "{efer:?}");
}
