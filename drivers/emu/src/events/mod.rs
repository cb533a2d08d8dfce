//! Events from outside: what is wanted, and what happened.

pub mod armed;
mod offers;
pub mod queue;
pub mod verdict;

use std::sync::{Arc, Weak};
use std::time::Duration;

use vmtree_api::events::{EventKind, EventOffer, EventSource, Held, Verdict, Wanted, Watch};
use vmtree_api::views::in_order;
use vmtree_api::{Error, ErrorKind, Result};

use crate::machine::{Machine, State};
use crate::slat;
use armed::Armed;
use queue::{Raised, Taken};

const WATCH: &str = "watch";

/// The events of a machine.
pub struct Events {
    machine: Arc<Machine>,
    queue: Arc<queue::Queue>,
    offers: Vec<EventOffer>,
}

impl Events {
    /// Of this machine.
    pub fn new(machine: Arc<Machine>) -> Self {
        let queue = machine.queue().clone();
        Self { machine, queue, offers: offers::all() }
    }
}

fn check(state: &State, watch: &Watch) -> Result<()> {
    if watch.kind == EventKind::Slat {
        let why = "slat is watched by rules: its events are of ranges of frames";
        return Err(Error::new(ErrorKind::Invalid, WATCH, why));
    }
    if let Some(way) = watch.way.filter(|way| !watch.kind.ways().contains(way)) {
        let why = format!("{} does not happen in the way \"{}\"", watch.kind, way.name());
        return Err(Error::new(ErrorKind::Unsupported, WATCH, why));
    }
    watch.vcpu.map_or(Ok(0), |vcpu| state.index(WATCH, vcpu)).map(drop)
}

/// Answers an event of the machine, if that is still there.
fn reply(machine: &Weak<Machine>, (vcpu, serial): (usize, u64), verdict: &Verdict) -> Result<()> {
    const OP: &str = "answer";
    let Some(machine) = machine.upgrade() else {
        return Err(Error::new(ErrorKind::Gone, OP, "the machine was closed"));
    };
    let mut visit = machine.visit(OP)?;
    verdict::answer(&mut visit, vcpu, serial, verdict)?;
    visit.changed();
    Ok(())
}

impl Events {
    fn held(&self, raised: Raised) -> Held {
        let Raised { event, serial } = raised;
        let Some(serial) = serial else { return Held::told(event) };
        let (machine, which) = (Arc::downgrade(&self.machine), (event.vcpu.0 as usize, serial));
        Held::new(event, move |verdict| reply(&machine, which, verdict))
    }
}

impl EventSource for Events {
    fn offers(&self) -> &[EventOffer] {
        &self.offers
    }

    fn watch(&self, wanted: &Wanted) -> Result<()> {
        let mut visit = self.machine.visit(WATCH)?;
        wanted.watches.iter().try_for_each(|watch| check(&visit, watch))?;
        for rule in &wanted.rules {
            visit.world.slat.known(WATCH, rule.view)?;
            slat::check(rule, &visit.world.ram)?;
        }
        in_order(&wanted.rules, "watch")?;
        visit.world.armed = Armed::new(&wanted.watches);
        visit.world.slat.set_rules(&wanted.rules);
        visit.vcpus.iter_mut().for_each(|vcpu| vcpu.tlb.flush());
        visit.changed();
        Ok(())
    }

    fn next(&self, timeout: Duration) -> Result<Option<Held>> {
        const OP: &str = "next event";
        match self.queue.take(timeout) {
            Taken::Event(raised, wake) => {
                if wake && let Ok(mut visit) = self.machine.visit(OP) {
                    visit.changed();
                }
                Ok(Some(self.held(raised)))
            }
            Taken::Nothing => Ok(None),
            Taken::Closed => {
                self.machine.visit(OP)?;
                Err(Error::new(ErrorKind::Gone, OP, "the machine was closed"))
            }
        }
    }
}
