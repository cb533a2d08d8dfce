//! The built-in machine: an x86-64 machine in software.

pub mod cpu;
