//! The event files: their names, their opening, and `events/stats`.

use vmtree_api::events::EventKind;

use super::interned::EventFilter;
use super::place::{self, Leaf, Place};
use super::row::offered;
use super::{Ctx, Tree};
use crate::error::{FsError, FsResult};
use crate::events::filter::{Filter, Format};
use crate::events::{EventFile, Mode};
use crate::text::event_name;

/// The item of the file `all`, past those of the kinds.
const ALL: u32 = EventKind::ALL.len() as u32;

fn kind_of(item: u32) -> Option<EventKind> {
    EventKind::ALL.get(item as usize).copied()
}

fn item_of(kind: Option<EventKind>) -> u32 {
    let at = kind.and_then(|kind| EventKind::ALL.iter().position(|known| *known == kind));
    at.map_or(ALL, |at| at as u32)
}

impl Tree {
    /// The items of the event files that ls shows.
    pub(super) fn events_offered(&self) -> impl Iterator<Item = u32> {
        (0..=ALL).filter(|item| kind_of(*item).is_none_or(|kind| offered(self.driver(), kind).is_ok()))
    }

    /// What `name` is in `events`; `place` has one of its two rows: the one of plain names, and the one of names with
    /// parameters. A name with parameters is held until [`Tree::forget`].
    pub(super) fn event_named(&self, place: Place, name: &str) -> FsResult<Option<Place>> {
        if name == "stats" {
            return Ok(None);
        }
        let no_entry = |why: String| FsError::NoEntry(why);
        let Some((filter, format)) = event_name::parse(name, self.driver.facts().vcpus.unwrap_or(0))
            .map_err(|error| no_entry(error.to_string()))?
        else {
            return Ok(None);
        };
        if let Some(kind) = filter.kind {
            offered(self.driver(), kind).map_err(|missing| no_entry(format!("{name}: {missing}")))?;
        }
        let item = item_of(filter.kind);
        let plain = filter == Filter { kind: filter.kind, ..Filter::default() } && format == Format::Text;
        Ok(match (place::leaf(place.row), plain) {
            (Leaf::EachEvent, true) => Some(Place { item, ..place }),
            (Leaf::EventParams, false) => {
                Some(Place { item, param: self.filters.hold((filter, format)), ..place })
            }
            _ => None,
        })
    }

    /// The kernel forgets `count` lookups of a name.
    pub fn forget(&self, place: Place, count: u64) {
        if place::leaf(place.row) == Leaf::EventParams {
            self.filters.release(place.param, count);
        }
    }

    /// How many names with parameters are known.
    #[must_use]
    pub fn filters(&self) -> usize {
        self.filters.len()
    }

    fn filter_of(&self, place: Place) -> Option<EventFilter> {
        match place::leaf(place.row) {
            Leaf::EventParams => self.filters.get(place.param),
            _ => Some((Filter { kind: kind_of(place.item), ..Filter::default() }, Format::Text)),
        }
    }

    /// The name of an event file.
    pub(super) fn event_name(&self, place: Place) -> String {
        match place::leaf(place.row) {
            Leaf::EventParams => match self.filter_of(place) {
                Some((filter, format)) => event_name::print(&filter, format),
                None => String::new(),
            },
            _ => kind_of(place.item).map_or("all", EventKind::name).to_owned(),
        }
    }

    /// Opens an event file, which arms what it is of. May wait for a hypervisor.
    ///
    /// # Errors
    /// Somebody else controls such events, the driver has no such event, or arming failed.
    pub fn open_events(&self, ctx: &Ctx<'_>, mode: Mode) -> FsResult<EventFile> {
        let gone = || FsError::NoEntry("this event file was forgotten: open it by its name".to_owned());
        let (filter, format) = self.filter_of(ctx.place).ok_or_else(gone)?;
        self.hub.open(filter, format, mode, ctx.cancel)
    }
}

/// The file `events/stats`.
pub fn stats(ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
    Ok(ctx.tree.hub.stats().into_bytes())
}
