//! What is wanted of the driver: the union of what is open and set.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use vmtree_api::events::{Action, EventKind, EventOffer, Wanted, Watch, Way};
use vmtree_api::{Access, Gpa, Missing, ViewId};

use super::filter::{Filter, Mode};
use super::intervals::Intervals;
use super::rules::{self, Asked, Rules};
use crate::error::{FsError, FsResult};

#[derive(Default)]
struct Users {
    observe: usize,
    control: usize,
}

/// What is open, what is set, and what the driver was told of it. Its lock is held across [`watch`] calls, so that the
/// driver is told in order.
///
/// [`watch`]: vmtree_api::events::EventSource::watch
pub struct Arming {
    files: HashMap<Filter, Users>,
    /// The rules that were set.
    pub rules: Arc<Rules>,
    /// The views that there are.
    pub views: BTreeSet<ViewId>,
    /// What the driver was told.
    pub armed: Wanted,
}

impl Default for Arming {
    fn default() -> Self {
        Self {
            files: HashMap::new(),
            rules: Arc::default(),
            views: BTreeSet::from([ViewId::default()]),
            armed: Wanted::default(),
        }
    }
}

impl Arming {
    /// Adds an open file. Returns whether it is the first of its name and mode.
    pub fn add(&mut self, filter: &Filter, mode: Mode) -> bool {
        let users = self.files.entry(filter.clone()).or_default();
        let count = users.of(mode);
        *count += 1;
        *count == 1
    }

    /// Takes an open file away. Returns whether it was the last of its name and mode.
    pub fn remove(&mut self, filter: &Filter, mode: Mode) -> bool {
        let Some(users) = self.files.get_mut(filter) else { return false };
        let count = users.of(mode);
        *count = count.saturating_sub(1);
        let last = *count == 0;
        if users.observe + users.control == 0 {
            self.files.remove(filter);
        }
        last
    }

    /// What is wanted now.
    pub fn wanted(&self, offers: &[EventOffer]) -> Wanted {
        let asked = self.asked(offers);
        let held = self.held_anywhere(offers);
        let rules = self.views.iter().flat_map(|view| self.rules.wanted(*view, &asked, held)).collect();
        Wanted { watches: self.watches(offers), rules }
    }

    /// The rules that open event files are.
    pub fn asked(&self, offers: &[EventOffer]) -> Intervals<Asked> {
        let mut asked = Intervals::default();
        for (filter, users) in &self.files {
            if let (Some(EventKind::Slat), Some(gpa)) = (filter.kind, &filter.gpa) {
                rules::ask(&mut asked, gpa, accesses(filter, offers), users.control > 0);
            }
        }
        asked
    }

    /// The accesses that some controller holds wherever a rule raises them.
    fn held_anywhere(&self, offers: &[EventOffer]) -> Access {
        let slat = |filter: &Filter| filter.kind.is_none_or(|kind| kind == EventKind::Slat);
        let files = self.files.iter().filter(|(filter, users)| users.control > 0 && slat(filter));
        let everywhere = files.filter(|(filter, _)| filter.gpa.is_none());
        everywhere.fold(Access::NONE, |held, (filter, _)| held.union(accesses(filter, offers)))
    }

    fn watches(&self, offers: &[EventOffer]) -> Vec<Watch> {
        let mut watches = HashMap::new();
        for (filter, users) in &self.files {
            for offer in offers.iter().filter(|offer| of_file(offer, filter)) {
                for way in watched_ways(offer, filter.way) {
                    let hold = watches.entry((offer.kind, way, filter.vcpu, filter.index)).or_insert(false);
                    *hold |= users.control > 0;
                }
            }
        }
        let watch = |((kind, way, vcpu, index), hold)| Watch { kind, way, vcpu, index, hold };
        let mut watches: Vec<Watch> = watches.into_iter().map(watch).collect();
        // In one order, so that what is the same looks the same.
        watches.sort_by_key(|watch| (watch.kind, watch.way.map(Way::name), watch.vcpu, watch.index));
        watches
    }
}

impl Users {
    fn of(&mut self, mode: Mode) -> &mut usize {
        match mode {
            Mode::Observe => &mut self.observe,
            Mode::Control => &mut self.control,
        }
    }
}

fn of_file(offer: &EventOffer, filter: &Filter) -> bool {
    offer.kind != EventKind::Slat && filter.kind.is_none_or(|kind| kind == offer.kind)
}

/// The ways to watch: `None` where every way of the kind is wanted and offered.
fn watched_ways(offer: &EventOffer, way: Option<Way>) -> Vec<Option<Way>> {
    let offered: Vec<Way> = offered_ways(offer).filter(|is| way.is_none_or(|way| way == *is)).collect();
    if way.is_none() && offered.len() == offer.kind.ways().len() {
        return vec![None];
    }
    offered.into_iter().map(Some).collect()
}

fn offered_ways(offer: &EventOffer) -> impl Iterator<Item = Way> {
    offer.ways.iter().filter(|(_, offered)| offered.is_ok()).map(|(way, _)| *way)
}

/// The accesses that a file of slat is of: those that its name says, or all that are seen.
fn accesses(filter: &Filter, offers: &[EventOffer]) -> Access {
    let offer = offers.iter().find(|offer| offer.kind == EventKind::Slat);
    let seen = offer.into_iter().flat_map(offered_ways).fold(Access::NONE, |all, way| all.union(right(way)));
    filter.access.unwrap_or(seen)
}

fn right(way: Way) -> Access {
    match way {
        Way::Read => Access::READ,
        Way::Write => Access::WRITE,
        Way::Execute => Access::EXECUTE,
        Way::Once | Way::To | Way::From => Access::NONE,
    }
}

/// The kinds that a file reads, if the driver has what its name says.
///
/// # Errors
/// [`FsError::NoEntry`] for a kind, way or vCPU that is not there, [`FsError::Missing`] for a way that the driver lacks.
pub fn kinds(filter: &Filter, offers: &[EventOffer], vcpus: Option<u32>) -> FsResult<Vec<EventKind>> {
    if let (Some(vcpu), Some(vcpus)) = (filter.vcpu, vcpus)
        && vcpu.0 >= vcpus
    {
        return Err(FsError::NoEntry(format!("no vCPU {vcpu}: there are {vcpus}, counted from 0")));
    }
    if filter.gpa.as_ref().is_some_and(Range::<Gpa>::is_empty) {
        return Err(FsError::NoEntry("gpa= has no addresses: its end is not above its start".to_owned()));
    }
    let Some(kind) = filter.kind else {
        let seen = offers.iter().filter(|offer| offered_ways(offer).next().is_some());
        return Ok(seen.map(|offer| offer.kind).collect());
    };
    let offer = offers.iter().find(|offer| offer.kind == kind);
    let offer = offer.ok_or_else(|| FsError::NoEntry(format!("this driver has no {kind} events")))?;
    let asked = |way: Way| match (filter.way, filter.access) {
        (Some(wanted), _) => way == wanted,
        (None, Some(access)) if kind == EventKind::Slat => access.contains(right(way)),
        _ => false,
    };
    if filter.way.is_some_and(|way| !kind.ways().contains(&way)) {
        return Err(FsError::NoEntry(format!("{kind} has no such direction")));
    }
    let lacks = |way: Way| offer.ways.iter().find(|(is, _)| *is == way).map(|(_, offered)| offered.clone());
    for way in kind.ways().iter().filter(|way| asked(**way)) {
        lacks(*way).unwrap_or_else(|| Err(Missing::new(format!("{kind} {} is not seen", way.name()))))?;
    }
    if offered_ways(offer).next().is_none() {
        let why = offer.ways.iter().find_map(|(_, offered)| offered.clone().err());
        return Err(why.unwrap_or_else(|| Missing::new(format!("{kind} is not seen"))).into());
    }
    Ok(vec![kind])
}

/// Whether the driver has rules at all, and walls if `deny`.
///
/// # Errors
/// [`FsError::Missing`], with its words where it has some.
pub fn rules_offered(offers: &[EventOffer], deny: bool) -> FsResult<()> {
    let none = |what: &str| Missing::new(format!("this driver has no {what}"));
    let offer = offers.iter().find(|offer| offer.kind == EventKind::Slat);
    let offer = offer.ok_or_else(|| none("slat events, and so no SLAT permissions"))?;
    if deny {
        let row = offer.actions.iter().find(|(action, _)| *action == Action::Deny);
        row.map_or_else(|| Err(none("deny for slat")), |(_, offered)| offered.clone())?;
    }
    Ok(())
}
