//! The agent inside QEMU (drivers/qemu-plugin): events and verdicts, and the registers of held vCPUs.

mod events;
mod find;
mod held;
mod line;
mod offers;
mod regs;
mod session;
mod wanted;

pub use find::{Place, Plugin, place};
pub use held::Holds;
pub use regs::is_had;
pub use session::Agent;

use vmtree_agent::Code;
use vmtree_agent::client::Failure;
use vmtree_api::{Error, ErrorKind};

/// What a failure of the agent is to a caller of the driver.
fn error(op: &'static str, failure: Failure) -> Error {
    match failure {
        Failure::Gone(why) => gone(op, &why),
        Failure::Refused(refusal) => {
            let kind = match refusal.code {
                Code::Ok | Code::Invalid => ErrorKind::Invalid,
                Code::Unsupported => ErrorKind::Unsupported,
                Code::NotFound => ErrorKind::NotFound,
                Code::Busy => ErrorKind::Busy,
                Code::Stale => ErrorKind::Stale,
                Code::TimedOut => ErrorKind::TimedOut,
            };
            Error::new(kind, op, crate::said::said(&refusal.why))
        }
    }
}

/// Nothing more comes from the agent.
fn gone(op: &'static str, why: &str) -> Error {
    let why = crate::said::said(why);
    Error::new(ErrorKind::Gone, op, format!("the agent in QEMU does not serve us any more: {why}; unmount and mount anew"))
}

