//! vmtree mounts a virtual machine as a directory tree.

pub mod text;
