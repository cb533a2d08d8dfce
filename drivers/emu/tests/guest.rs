//! The built-in guest on the built-in machine: it starts, counts, and does what it is told through its mailbox.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use vmtree_api::{Driver, NoHost, Source};
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

#[test]
fn it_does_what_it_is_told() {
    let (_driver, mailbox) = start(2);
    mailbox.background(false, SOON).unwrap();
    let before = mailbox.counters(1).unwrap();
    let orders: [(Op, &[u64]); 11] = [
        (Op::WriteCr3, &[40, 0]),
        (Op::WriteCr8, &[3, 0]),
        (Op::ReadMsr, &[1, 0xc000_0080]),
        (Op::WriteDr, &[2, 0, 0x1234]),
        (Op::Int3, &[5]),
        (Op::SoftInterrupt, &[6]),
        (Op::Hlt, &[2]),
        (Op::Ipi, &[3, 0]),
        (Op::UserSyscall, &[7]),
        (Op::UserLazy, &[8]),
        (Op::UserSelfModify, &[9]),
    ];
    for (op, args) in orders {
        let outcome = mailbox.order(1, op, args, SOON).unwrap();
        assert!(matches!(outcome, Outcome::Done(_)), "{op:?}: {outcome:?}");
    }
    let after = mailbox.counters(1).unwrap();
    assert_eq!(after.get(Counter::SelfModifiedWrong), 0);
    let counted = after.since(&before);
    assert_eq!(counted.get(&Counter::SoftInterrupts), Some(&6), "{counted:?}");
    assert_eq!(counted.get(&Counter::SelfModified), Some(&9), "{counted:?}");
    let Outcome::Faulted { vector, error, cr2, .. } =
        mailbox.order(1, Op::Read, &[1, vmtree_guest::layout::GUARD, 8], SOON).unwrap()
    else {
        panic!("the guard page can be read")
    };
    assert_eq!((vector, error, cr2), (14, 0, vmtree_guest::layout::GUARD));
    let efer = mailbox.order(0, Op::ReadMsr, &[1, 0xc000_0080], SOON).unwrap();
    assert!(matches!(efer, Outcome::Done([0xd01, ..])), "{efer:?}");
}
