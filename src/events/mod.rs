//! Hardware events on their way from a driver to open files: records, filters, and who gets what.
//!
//! `driver -> pump -> hub -> {rings, controllers} -> open files`. A driver's events come one by one to the pump, a
//! thread that lives while something is armed. Each event is numbered and goes to one ring a kind, from which any number
//! of observers read, and to the queue of the one file that controls it, if there is one.

mod arm;
mod control;
mod file;
pub mod filter;
mod hub;
mod intervals;
mod pump;
mod queue;
pub mod record;
mod ring;
mod rules;
mod show;
mod stats;
mod stream;
mod taken;
mod wake;

pub use file::{EventFile, Taken};
pub use filter::Mode;
pub use hub::{Clock, Hub};
pub use show::ViewNames;
pub use wake::Waker;

#[cfg(test)]
mod tests;
