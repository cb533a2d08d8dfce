//! The agent inside QEMU (drivers/qemu-plugin): events and verdicts, and the registers of held vCPUs.

mod armed;
mod check;
mod connect;
mod events;
mod held;
mod offers;
mod plugin;
mod regs;
mod words;

pub use armed::Armed;
pub use connect::find;
pub use events::Events;
pub use held::{Holds, Monitor};
pub use plugin::Plugin;
pub use regs::is_had;

use vmtree_agent::client::Failure;
use vmtree_api::{Error, ErrorKind};

use crate::said::said;

/// What a failure of the agent is to a caller of the driver.
fn error(op: &'static str, failure: Failure) -> Error {
    match failure {
        Failure::Gone(why) => gone(op, &why),
        Failure::Refused(refusal) => words::refusal(op, &refusal),
    }
}

/// Nothing more comes from the agent.
fn gone(op: &'static str, why: &str) -> Error {
    let why = format!("the agent in QEMU serves us no more: {}; unmount and mount anew", said(why));
    Error::new(ErrorKind::Gone, op, why)
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
