//! vmtree mounts a virtual machine as a directory tree.
//!
//! One way in, one way down: `fuse -> tree -> {memory, text} -> drivers/api <- drivers/*`.

pub mod error;
pub mod fuse;
pub mod jobs;
pub mod memory;
pub mod text;
pub mod tree;
