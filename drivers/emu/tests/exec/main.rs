//! The instructions of the built-in machine: against the host CPU, under faults, and by rules worked out by hand.
//!
//! The forms under test are not listed one by one: every encoding that iced knows of the mnemonics in `forms.rs`
//! is built with registers, memory in several addressing modes, LOCK and REP where they are allowed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod faults;
mod forms;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod host_cpu;
mod machine;
mod random;
mod rules;
mod scene;
mod sequences;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod sys;
