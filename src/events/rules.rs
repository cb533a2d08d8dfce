//! SLAT permissions: those that were set, those that open event files are, and what they come to together.

use std::collections::BTreeMap;
use std::ops::Range;

use vmtree_api::views::Rule;
use vmtree_api::{Access, Error, ErrorKind, Gfn, Gpa, PAGE_SIZE, ViewId};

use super::intervals::Intervals;
use crate::error::FsResult;
use crate::text::access::{AccessChange, AccessLine};

/// What was set over a range of frames.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Set {
    access: Access,
    deny: bool,
}

/// What open event files ask for over a range of frames.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Asked {
    access: Access,
    hold: bool,
}

/// The rules that were set, by view.
#[derive(Clone, Debug, Default)]
pub struct Rules(BTreeMap<ViewId, Intervals<Set>>);

impl Rules {
    /// Makes changes to a view's rules, in their order.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for rights that no hardware has, and for no frames. Some changes may have been made.
    pub fn change(&mut self, view: ViewId, changes: &[AccessChange]) -> FsResult<()> {
        let rules = self.0.entry(view).or_default();
        for change in changes {
            match change {
                AccessChange::Reset => *rules = Intervals::default(),
                AccessChange::Set { frames, access, deny } => {
                    check(frames, *access)?;
                    let set = Set { access: *access, deny: *deny };
                    // With all rights there is nothing to violate.
                    let set = (*access != Access::ALL).then_some(set);
                    rules.update(frames.start.0..frames.end.0, |_| set);
                }
            }
        }
        if rules.len() == 0 {
            self.0.remove(&view);
        }
        Ok(())
    }

    /// Forgets a view.
    pub fn forget(&mut self, view: ViewId) {
        self.0.remove(&view);
    }

    /// Whether this access does not take place: it violates a rule that is a wall.
    pub fn deny(&self, view: ViewId, gfn: Gfn, access: Access) -> bool {
        let set = self.0.get(&view).and_then(|rules| rules.get(gfn.0));
        set.is_some_and(|set| set.deny && !set.access.contains(access))
    }

    /// The rules of a view, for its `access` file.
    pub fn lines(&self, view: ViewId) -> impl Iterator<Item = AccessLine> {
        let rules = self.0.get(&view).into_iter().flat_map(Intervals::iter);
        rules.map(|(range, Set { access, deny })| AccessLine {
            frames: frames(range),
            access,
            deny,
            event: false,
        })
    }

    /// What a view's rules come to: its own, and those that event files ask for. `held` are the accesses that some
    /// controller wants to hold wherever a rule raises them.
    pub fn wanted(&self, view: ViewId, asked: &Intervals<Asked>, held: Access) -> Vec<Rule> {
        let mut all = Intervals::<Asked>::default();
        for (range, Set { access, deny }) in self.0.get(&view).into_iter().flat_map(Intervals::iter) {
            let hold = deny || holds(held, access);
            all.update(range, |_| Some(Asked { access, hold }));
        }
        for (range, asked) in asked.iter() {
            all.update(range, |set| Some(both(set, asked, held)));
        }
        let rule = |(range, Asked { access, hold })| Rule { view, frames: frames(range), access, hold };
        all.iter().map(rule).collect()
    }
}

/// Whether one of these accesses violates the rule.
fn holds(accesses: Access, rule: Access) -> bool {
    accesses.without(rule) != Access::NONE
}

/// What both rules come to: the rights that both leave.
fn both(one: Option<Asked>, other: Asked, held: Access) -> Asked {
    let (access, hold) = one.map_or((Access::ALL, false), |one| (one.access, one.hold));
    let access = access.without(Access::ALL.without(other.access));
    Asked { access, hold: hold || other.hold || holds(held, access) }
}

/// Adds what an event file asks for: to see these accesses at these addresses.
pub fn ask(asked: &mut Intervals<Asked>, gpa: &Range<Gpa>, accesses: Access, hold: bool) {
    let end = gpa.end.0.div_ceil(PAGE_SIZE);
    let wanted = Asked { access: leave(accesses), hold };
    asked.update(gpa.start.gfn().0..end, |before| Some(both(before, wanted, Access::NONE)));
}

/// The rights that are left where these accesses are trapped: no hardware has write without read (Intel SDM volume 3C,
/// 29.3.3.1), so whoever traps reads traps writes.
fn leave(accesses: Access) -> Access {
    let rights = Access::ALL.without(accesses);
    if rights.contains(Access::READ) { rights } else { rights.without(Access::WRITE) }
}

/// The rules of event files, for any view's `access` file.
pub fn asked_lines(asked: &Intervals<Asked>) -> Vec<AccessLine> {
    let line = |(range, Asked { access, .. })| AccessLine {
        frames: frames(range),
        access,
        deny: false,
        event: true,
    };
    asked.iter().map(line).collect()
}

fn frames(range: Range<u64>) -> Range<Gfn> {
    Gfn(range.start)..Gfn(range.end)
}

fn check(frames: &Range<Gfn>, access: Access) -> FsResult<()> {
    let why = if frames.is_empty() {
        format!("no frames from {:#x} to {:#x}", frames.start.0, frames.end.0)
    } else if access.contains(Access::WRITE) && !access.contains(Access::READ) {
        format!("{access}: no hardware has write without read; give r as well, or take w away")
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Invalid, "set access", why).into())
}
