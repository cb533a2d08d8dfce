//! A place in the tree: a row of the table, and which vCPU, register, block, view or kind of event it is of.

use super::table::TABLE;

/// A file or directory of the tree.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Place {
    /// The row in the table.
    pub row: u16,
    /// The vCPU, where the row is of each vCPU; else 0.
    pub vcpu: u16,
    /// The register, block, view or kind of event, where the row is of each or below one; else 0.
    pub item: u32,
    /// The parameter that rides in the name, where the row has one; else 0.
    pub param: u64,
}

impl Place {
    /// The directory that everything is in.
    pub const ROOT: Self = Self { row: 0, vcpu: 0, item: 0, param: 0 };
}

/// What the last part of a row's path stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Leaf {
    /// Just this name.
    Name(&'static str),
    /// A file for each vCPU.
    EachVcpu,
    /// A file for each register offered.
    EachReg,
    /// A file for each block of RAM.
    EachBlock,
    /// A directory for each view.
    EachView,
    /// A file for each kind of event offered, and `all`.
    EachEvent,
    /// An event file with parameters in its name, which readdir does not list.
    EventParams,
    /// `translate` with its address, which readdir does not list.
    Translate,
}

/// The last part of a row's path.
#[must_use]
pub fn leaf(row: u16) -> Leaf {
    let path = TABLE.get(usize::from(row)).map_or("", |row| row.path);
    match path.rsplit_once('/').map_or(path, |(_, last)| last) {
        "{vcpu}" => Leaf::EachVcpu,
        "{reg}" => Leaf::EachReg,
        "{block}" => Leaf::EachBlock,
        "{view}" => Leaf::EachView,
        "{event}" => Leaf::EachEvent,
        "{event params}" => Leaf::EventParams,
        name if name.contains('{') => Leaf::Translate,
        name => Leaf::Name(name),
    }
}

/// The rows directly below a row.
pub fn children(row: u16) -> impl Iterator<Item = u16> {
    let above = TABLE.get(usize::from(row)).map_or("", |row| row.path);
    TABLE.iter().enumerate().filter_map(move |(index, below)| {
        let parent = below.path.rsplit_once('/').map_or("", |(parent, _)| parent);
        (parent == above && !below.path.is_empty()).then_some(index as u16)
    })
}

/// The row above a row; the root is above itself.
#[must_use]
pub fn parent(row: u16) -> u16 {
    let path = TABLE.get(usize::from(row)).map_or("", |row| row.path);
    let above = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    TABLE.iter().position(|row| row.path == above).unwrap_or(0) as u16
}
