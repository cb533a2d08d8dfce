//! The built-in guest on the built-in machine: it starts, counts, and does what it is told through its mailbox.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use vmtree_api::{Driver, NoHost, Source};
use vmtree_guest::Mailbox;

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
