//! Names: from a directory and a name to a place, and back.

use std::sync::Arc;

use vmtree_api::Missing;

use super::place::{self, Leaf, Place};
use super::row::Shape;
use super::table::row;
use super::{Tree, views};
use crate::error::{FsError, FsResult};
use crate::text::name;

/// A name of a directory and what it stands for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Named {
    /// The name.
    pub name: String,
    /// What it stands for.
    pub place: Place,
    /// Whether that is a directory.
    pub dir: bool,
}

impl Tree {
    /// Finds `name` in a directory.
    ///
    /// # Errors
    /// [`FsError::NoEntry`] with the reason, which is empty for a name that means nothing here.
    pub fn child(&self, dir: Place, name: &str) -> FsResult<Place> {
        if !matches!(row(dir.row).shape, Shape::Dir) {
            return Err(FsError::NotADirectory);
        }
        for below in place::children(dir.row) {
            let Some(place) = self.matches(dir, below, name)? else { continue };
            return match self.has(place) {
                Ok(()) => Ok(place),
                Err(missing) => Err(FsError::NoEntry(format!("{name}: {missing}"))),
            };
        }
        Err(FsError::NoEntry(String::new()))
    }

    /// Whether a place of the table is there.
    fn has(&self, place: Place) -> Result<(), Missing> {
        row(place.row).need.met(self.driver())?;
        match row(place.row).path {
            "views/{view}/remap" if place.item == views::DEFAULT_ITEM => {
                Err(Missing::new("the default view shows the guest's own frames").cure("mkdir views/NAME"))
            }
            _ => Ok(()),
        }
    }

    /// What `name` is under the row `below`, if it is one of its names.
    fn matches(&self, dir: Place, below: u16, name: &str) -> FsResult<Option<Place>> {
        let place = Place { row: below, ..dir };
        Ok(match place::leaf(below) {
            Leaf::Name(known) => (known == name).then_some(place),
            Leaf::EachVcpu => {
                self.vcpus().find(|vcpu| vcpu.to_string() == name).map(|vcpu| Place { vcpu, ..place })
            }
            Leaf::EachReg => self
                .driver()
                .facts()
                .arch
                .register(name)
                .filter(|id| self.offered().any(|offered| offered == id.0))
                .map(|id| Place { item: u32::from(id.0), ..place }),
            Leaf::EachBlock => {
                let blocks = self.driver().memory().blocks();
                let found = blocks.iter().find(|block| &*block.name == name);
                found.map(|block| Place { item: self.block_item(&block.name), ..place })
            }
            Leaf::EachView => self.views.named(name).map(|view| Place { item: view.item, ..place }),
            Leaf::EachEvent | Leaf::EventParams => self.event_named(place, name)?,
            Leaf::Translate => name::parse_translate(name)
                .map_err(|error| FsError::NoEntry(error.to_string()))?
                .map(|param| Place { param, ..place }),
        })
    }

    /// All names of a directory that ls shows, in the order of the table.
    ///
    /// # Errors
    /// [`FsError::NotADirectory`].
    pub fn children(&self, dir: Place) -> FsResult<Vec<Named>> {
        if !matches!(row(dir.row).shape, Shape::Dir) {
            return Err(FsError::NotADirectory);
        }
        let mut all = Vec::new();
        for below in place::children(dir.row) {
            let place = Place { row: below, ..dir };
            if self.has(place).is_err() {
                continue;
            }
            let is_dir = matches!(row(below).shape, Shape::Dir);
            let mut add = |name: String, place| all.push(Named { name, place, dir: is_dir });
            match place::leaf(below) {
                Leaf::Name(name) => add(name.to_owned(), place),
                Leaf::EachVcpu => {
                    self.vcpus().for_each(|vcpu| add(vcpu.to_string(), Place { vcpu, ..place }))
                }
                Leaf::EachReg => {
                    for item in self.offered().map(u32::from) {
                        add(self.name_of(Place { item, ..place }), Place { item, ..place });
                    }
                }
                Leaf::EachBlock => {
                    for block in self.driver().memory().blocks() {
                        add(block.name.to_string(), Place { item: self.block_item(&block.name), ..place });
                    }
                }
                Leaf::EachView => {
                    let all = self.views.all().into_iter();
                    all.for_each(|view| add(view.name.to_string(), Place { item: view.item, ..place }));
                }
                Leaf::EachEvent => {
                    for item in self.events_offered() {
                        add(self.name_of(Place { item, ..place }), Place { item, ..place });
                    }
                }
                Leaf::EventParams | Leaf::Translate => {}
            }
        }
        Ok(all)
    }

    /// The directory that a place is in.
    #[must_use]
    pub fn parent(&self, place: Place) -> Place {
        let above = place::parent(place.row);
        let path = row(above).path;
        let vcpu = if path.contains("{vcpu}") { place.vcpu } else { 0 };
        // Of all that items stand for, only a view is a directory.
        let item = if path.contains("{view}") { place.item } else { 0 };
        Place { row: above, vcpu, item, param: 0 }
    }

    /// The path of a place, from the mountpoint on; empty for the root.
    #[must_use]
    pub fn path(&self, place: Place) -> String {
        if place.row == 0 {
            return String::new();
        }
        let above = self.path(self.parent(place));
        let name = self.name_of(place);
        if above.is_empty() { name } else { format!("{above}/{name}") }
    }

    fn name_of(&self, place: Place) -> String {
        match place::leaf(place.row) {
            Leaf::Name(name) => name.to_owned(),
            Leaf::EachVcpu => place.vcpu.to_string(),
            Leaf::EachReg => {
                let registers = self.driver().facts().arch.registers();
                registers.get(place.item as usize).map_or(String::new(), |def| def.name.to_owned())
            }
            Leaf::EachBlock => self.block_name(place).map_or(String::new(), |name| name.to_string()),
            Leaf::EachView => {
                self.views.at(place).map_or_else(|_| "(removed)".to_owned(), |view| view.name.to_string())
            }
            Leaf::EachEvent | Leaf::EventParams => self.event_name(place),
            Leaf::Translate => format!("translate,gva={:#x}", place.param),
        }
    }

    /// Whether a place has a parameter in its name, so that nothing about the name may be cached.
    #[must_use]
    pub fn has_parameter(&self, place: Place) -> bool {
        matches!(place::leaf(place.row), Leaf::EventParams | Leaf::Translate)
    }

    /// The number of a block, the same for as long as the mount lives.
    fn block_item(&self, name: &Arc<str>) -> u32 {
        let mut known = self.blocks.lock();
        let item = known.iter().position(|known| known == name).unwrap_or_else(|| {
            known.push(name.clone());
            known.len() - 1
        });
        item as u32
    }

    /// The name of the block that a place is of.
    pub(super) fn block_name(&self, place: Place) -> Option<Arc<str>> {
        self.blocks.lock().get(place.item as usize).cloned()
    }

    fn vcpus(&self) -> impl Iterator<Item = u16> {
        0..self.driver().facts().vcpus.unwrap_or(0).min(u32::from(u16::MAX)) as u16
    }

    fn offered(&self) -> impl Iterator<Item = u16> {
        let offers = self.driver().registers().map(|registers| registers.offers()).unwrap_or_default();
        offers.iter().map(|offer| offer.id.0)
    }
}
