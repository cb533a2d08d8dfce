//! `vmtree info`.

use std::sync::Arc;

use vmtree_api::NoHost;

use super::{Failure, print};
use crate::drivers;
use crate::tree::{capabilities, info};

/// Opens the VM, tells what is known of it and what can be done with it, and lets go of it.
pub fn run(source: &str) -> Result<(), Failure> {
    let driver = drivers::open(source, Arc::new(NoHost))?;
    let text = info::of_vm(&*driver, source) + &capabilities::of_driver(&*driver);
    print(&text)
}
