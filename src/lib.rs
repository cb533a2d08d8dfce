//! vmtree mounts a virtual machine as a directory tree.

pub mod cli;
pub mod daemon;
pub mod drivers;
pub mod fuse;
pub mod guardian;
pub mod mount;
pub mod text;
pub mod tree;
