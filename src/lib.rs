//! vmtree mounts a virtual machine as a directory tree.
//!
//! One way in, one way down: `fuse -> tree -> {memory, events, text} -> drivers/api <- drivers/*`.

pub mod cli;
pub mod daemon;
pub mod drivers;
pub mod error;
pub mod events;
pub mod fuse;
pub mod guardian;
pub mod jobs;
pub mod memory;
pub mod mount;
pub mod text;
pub mod tree;
