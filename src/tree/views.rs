//! SLAT views: their names, making and removing them, and `view`, which switches.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use vmtree_api::views::Remap;
use vmtree_api::{Error, ErrorKind, Gfn, VcpuId, ViewId};

use super::{Ctx, Place, Tree};
use crate::error::{Errno, FsError, FsResult};
use crate::events::ViewNames;
use crate::text;

/// The default view, which is always there.
pub const DEFAULT: ViewId = ViewId(0);
const DEFAULT_NAME: &str = "0";
/// Its item.
pub const DEFAULT_ITEM: u32 = 0;

/// A view.
#[derive(Clone, Debug)]
pub struct View {
    /// Its number as an item of places: never used again, so an open file of a view that is gone is of no other.
    pub item: u32,
    /// The driver's number.
    pub id: ViewId,
    /// Its name.
    pub name: Arc<str>,
    /// What it shows differently.
    pub remaps: BTreeMap<Gfn, Remap>,
}

struct Known {
    views: Vec<View>,
    next: u32,
}

/// The views of one mount, the default view first.
pub struct ViewTable {
    known: Mutex<Known>,
    /// Held through each change, driver calls included.
    changing: Mutex<()>,
}

impl Default for ViewTable {
    fn default() -> Self {
        let view =
            View { item: DEFAULT_ITEM, id: DEFAULT, name: DEFAULT_NAME.into(), remaps: BTreeMap::new() };
        Self { known: Mutex::new(Known { views: vec![view], next: 1 }), changing: Mutex::default() }
    }
}

impl ViewTable {
    /// All of them.
    pub fn all(&self) -> Vec<View> {
        self.known.lock().views.clone()
    }

    fn search(&self, wanted: impl Fn(&View) -> bool) -> Option<View> {
        self.known.lock().views.iter().find(|view| wanted(view)).cloned()
    }

    /// The view of this name.
    pub fn named(&self, name: &str) -> Option<View> {
        self.search(|view| &*view.name == name)
    }

    /// The name of a view of the driver's.
    pub fn name_of(&self, id: ViewId) -> Option<Arc<str>> {
        self.search(|view| view.id == id).map(|view| view.name)
    }

    /// The view that a place is of.
    ///
    /// # Errors
    /// It was removed.
    pub fn at(&self, place: Place) -> FsResult<View> {
        let gone = || FsError::NoEntry("this view was removed".to_owned());
        self.search(|view| view.item == place.item).ok_or_else(gone)
    }

    /// Keeps other changes out.
    pub fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
    }

    /// Notes what a view shows differently.
    pub fn set_remaps(&self, item: u32, remaps: BTreeMap<Gfn, Remap>) {
        if let Some(view) = self.known.lock().views.iter_mut().find(|view| view.item == item) {
            view.remaps = remaps;
        }
    }

    fn add(&self, id: ViewId, name: &str) -> FsResult<u32> {
        let mut known = self.known.lock();
        let item = known.next;
        let used_up = || Error::new(ErrorKind::NoSpace, "make view", "this mount has made 2^32 views");
        known.next = known.next.checked_add(1).ok_or_else(used_up)?;
        known.views.push(View { item, id, name: name.into(), remaps: BTreeMap::new() });
        Ok(item)
    }

    fn remove(&self, item: u32) {
        self.known.lock().views.retain(|view| view.item != item);
    }
}

impl ViewNames for ViewTable {
    fn find(&self, name: &str) -> Option<ViewId> {
        self.named(name).map(|view| view.id)
    }

    fn name(&self, view: ViewId) -> Option<String> {
        self.name_of(view).map(|name| name.to_string())
    }
}

impl Tree {
    /// The view that a word of a text names.
    ///
    /// # Errors
    /// There is none of that name.
    pub(super) fn view_named(&self, name: &str) -> FsResult<View> {
        text::view_name::check(name)?;
        let none = || {
            let why = format!("there is no view {name}: mkdir views/{name} makes it");
            Error::new(ErrorKind::Invalid, "view", why)
        };
        Ok(self.views.named(name).ok_or_else(none)?)
    }

    /// Whether a place is the directory that views are made in.
    #[must_use]
    pub fn holds_views(&self, place: Place) -> bool {
        super::table::row(place.row).path == "views" && self.driver.views().is_ok()
    }

    /// Makes a view.
    ///
    /// # Errors
    /// The name is bad or taken, the hardware has no more, or the mount is read-only.
    pub fn make_view(&self, ctx: &Ctx<'_>, name: &str) -> FsResult<Place> {
        self.check_writable()?;
        text::view_name::check(name)?;
        let _changing = self.views.change();
        if self.views.named(name).is_some() {
            return Err(FsError::Exists(format!("there is a view of the name {name} already")));
        }
        let id = self.hub.make_view()?;
        let item = self.views.add(id, name).inspect_err(|_| self.drop_view(id, name))?;
        let row = super::place::children(ctx.place.row).next().unwrap_or_default();
        Ok(Place { row, item, ..ctx.place })
    }

    /// Removes a view.
    ///
    /// # Errors
    /// It is the default view, a vCPU runs on it, there is none of that name, or the mount is read-only.
    pub fn remove_view(&self, _ctx: &Ctx<'_>, name: &str) -> FsResult<()> {
        self.check_writable()?;
        let _changing = self.views.change();
        let Some(view) = self.views.named(name) else {
            return Err(FsError::NoEntry(format!("there is no view {name}")));
        };
        if view.id == DEFAULT {
            let why = "views/0 is the default view, which is always there";
            return Err(Error::new(ErrorKind::Busy, "remove view", why).into());
        }
        if let Some(vcpu) = self.runs_on(&view)? {
            let why = format!("vCPU {vcpu} runs on {name}; switch it first: echo 0 > view");
            return Err(Error::new(ErrorKind::Busy, "remove view", why).into());
        }
        self.hub.remove_view(view.id)?;
        self.views.remove(view.item);
        Ok(())
    }

    /// The first vCPU that runs on a view.
    fn runs_on(&self, view: &View) -> FsResult<Option<VcpuId>> {
        let views = self.driver.views()?;
        for vcpu in (0..self.driver.facts().vcpus.unwrap_or(0)).map(VcpuId) {
            if views.current(vcpu)? == view.id {
                return Ok(Some(vcpu));
            }
        }
        Ok(None)
    }

    /// Puts all vCPUs back on the default view and removes all others.
    pub(super) fn undo_views(&self) {
        let Ok(views) = self.driver.views() else { return };
        let _changing = self.views.change();
        let made: Vec<View> = self.views.all().into_iter().filter(|view| view.id != DEFAULT).collect();
        if made.is_empty() {
            return;
        }
        twice("the default view could not be put back", || Ok(views.switch(None, DEFAULT)?));
        for view in made {
            self.drop_view(view.id, &view.name);
            self.views.remove(view.item);
        }
    }

    fn drop_view(&self, id: ViewId, name: &str) {
        twice(&format!("views/{name} could not be removed"), || self.hub.remove_view(id));
    }
}

/// Takes something back, where there is nobody who would try again.
fn twice(what: &str, undo: impl Fn() -> FsResult<()>) {
    for _ in 0..2 {
        match undo() {
            Err(error) if error.errno() != Errno::ENODEV => log::warn!("{what}: {error}"),
            _ => return,
        }
    }
}

/// The vCPUs that a file `view` is of.
fn vcpus(ctx: &Ctx<'_>) -> Vec<VcpuId> {
    match super::table::row(ctx.place.row).path.contains("{vcpu}") {
        true => vec![ctx.vcpu()],
        false => (0..ctx.tree.driver.facts().vcpus.unwrap_or(0)).map(VcpuId).collect(),
    }
}

/// The view they run on, or `mixed`.
pub fn show(ctx: &Ctx<'_>) -> FsResult<Vec<u8>> {
    let views = ctx.tree.driver.views()?;
    let mut all = vcpus(ctx).into_iter().map(|vcpu| views.current(vcpu));
    let first = all.next().transpose()?.unwrap_or(DEFAULT);
    for other in all {
        if other? != first {
            return Ok(b"mixed\n".to_vec());
        }
    }
    // A view that somebody else made has no name here.
    let name = ctx.tree.views.name_of(first).map_or_else(|| format!("#{}", first.0), |name| name.to_string());
    Ok(format!("{name}\n").into_bytes())
}

/// The length of what it shows, which takes no call that waits.
pub fn len(ctx: &Ctx<'_>) -> u64 {
    show(ctx).map_or(0, |text| text.len() as u64)
}

/// Switches them to the view written.
pub fn store(ctx: &Ctx<'_>, data: &[u8]) -> FsResult<()> {
    let mut words = text::words(text::text_of(data)?);
    let (Some(name), None) = (words.next(), words.next()) else {
        return Err(Error::new(ErrorKind::Invalid, "switch view", "write the name of one view").into());
    };
    let _changing = ctx.tree.views.change();
    let view = ctx.tree.view_named(name)?;
    let one = super::table::row(ctx.place.row).path.contains("{vcpu}").then(|| ctx.vcpu());
    Ok(ctx.tree.driver.views()?.switch(one, view.id)?)
}
