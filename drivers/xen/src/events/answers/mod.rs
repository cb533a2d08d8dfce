//! What each verdict does, by one table, and the ways to do what Xen itself can't: instructions without their writes, with
//! other data, or behind more than one rule.

mod answer;
pub mod code;
pub mod dry;
mod emulate;
mod guarded;
pub mod out;
pub mod ports;
pub mod table;
#[cfg(test)]
mod table_tests;
mod touched;
pub mod unemulated;
