//! What is wanted, made ready to be asked at every event.

use std::ops::Range;

use vmtree_agent::{Event, Kind, Rule, Wanted, Watch, Way};

/// Rights, as in [`Rule::access`].
const READ: u8 = 1;
const WRITE: u8 = 2;
const EXECUTE: u8 = 4;

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Armed {
    watches: Vec<Watch>,
    rules: Vec<Rule>,
}

/// What has to be in the translation for what is wanted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Baked {
    /// The frames whose fetches are watched.
    pub fetch: Vec<Range<u64>>,
    /// Whether accesses to memory are.
    pub access: bool,
    /// Whether every instruction is.
    pub step: bool,
}

impl Baked {
    /// Whether fetches from this frame are watched.
    #[must_use]
    pub fn fetches(&self, frame: u64) -> bool {
        self.fetch.iter().any(|frames| frames.contains(&frame))
    }

    /// Whether all that `other` has is here too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let inside = |inner: &Range<u64>| {
            self.fetch.iter().any(|outer| outer.start <= inner.start && inner.end <= outer.end)
        };
        (self.step || !other.step) && (self.access || !other.access) && other.fetch.iter().all(inside)
    }
}

impl Armed {
    /// From what a client wants.
    #[must_use]
    pub fn new(wanted: &Wanted) -> Self {
        Self { watches: wanted.watches.clone(), rules: wanted.rules.clone() }
    }

    /// The kinds that are wanted, a bit each.
    #[must_use]
    pub fn kinds(&self) -> u32 {
        let slat = if self.rules.is_empty() { 0 } else { 1 << Kind::Slat as u32 };
        self.watches.iter().fold(slat, |kinds, watch| kinds | 1 << watch.kind as u32)
    }

    /// What has to be in the translation.
    #[must_use]
    pub fn baked(&self) -> Baked {
        let fetch =
            self.rules.iter().filter(|rule| rule.access & EXECUTE == 0).map(|rule| rule.frames.clone());
        Baked {
            fetch: fetch.collect(),
            access: self.rules.iter().any(|rule| rule.access & (READ | WRITE) != READ | WRITE),
            step: self.watches.iter().any(|watch| watch.kind == Kind::SingleStep),
        }
    }

    /// Whether an event is wanted, and then whether its vCPU waits.
    #[must_use]
    pub fn wants(&self, kind: Kind, way: Way, vcpu: u32, index: u32) -> Option<bool> {
        self.watches
            .iter()
            .filter(|watch| {
                watch.kind == kind
                    && watch.way.is_none_or(|wanted| wanted == way)
                    && watch.vcpu.is_none_or(|wanted| wanted == vcpu)
                    && watch.index.is_none_or(|wanted| wanted == index)
            })
            .map(|watch| watch.hold)
            .reduce(|one, other| one || other)
    }

    /// Whether an event is wanted, and then whether its vCPU waits.
    #[must_use]
    pub fn matches(&self, event: &Event) -> Option<bool> {
        match event.kind {
            Kind::Slat => self.violates(event.a >> 12, event.way),
            Kind::Interrupt => self.wants(event.kind, event.way, event.vcpu, crate::interrupts::index(event)),
            kind => self.wants(kind, event.way, event.vcpu, event.index),
        }
    }

    /// Whether an access to a frame violates a rule, and then whether its vCPU waits.
    #[must_use]
    pub fn violates(&self, frame: u64, way: Way) -> Option<bool> {
        let needed = match way {
            Way::Read => READ,
            Way::Write => WRITE,
            Way::Execute => EXECUTE,
            Way::Once | Way::To | Way::From => return None,
        };
        let after = self.rules.partition_point(|rule| rule.frames.end <= frame);
        let rule = self.rules.get(after).filter(|rule| rule.frames.contains(&frame))?;
        (rule.access & needed == 0).then_some(rule.hold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(kind: Kind, index: Option<u32>, hold: bool) -> Watch {
        Watch { kind, way: Some(Way::To), vcpu: None, index, hold }
    }

    #[test]
    fn an_event_is_held_where_one_of_its_watches_holds() {
        let watches = vec![
            watch(Kind::Msr, Some(7), false),
            watch(Kind::Msr, None, true),
            watch(Kind::Cr3, None, false),
        ];
        let armed = Armed::new(&Wanted { watches, rules: Vec::new() });
        assert_eq!(armed.wants(Kind::Msr, Way::To, 0, 7), Some(true));
        assert_eq!(armed.wants(Kind::Cr3, Way::To, 5, 0), Some(false));
        assert_eq!(armed.wants(Kind::Cr3, Way::From, 5, 0), None);
        assert_eq!(armed.kinds(), 1 << 6 | 1 << 1);
        assert_eq!(armed.baked(), Baked::default());
    }

    #[test]
    fn rules_are_found_by_frame() {
        let rule = |frames, access| Rule { frames, access, hold: access == 0 };
        let rules = vec![rule(2..4, READ | WRITE), rule(4..5, 0), rule(9..10, READ | EXECUTE)];
        let armed = Armed::new(&Wanted { watches: Vec::new(), rules });
        assert_eq!(armed.violates(1, Way::Execute), None);
        assert_eq!(armed.violates(3, Way::Execute), Some(false));
        assert_eq!(armed.violates(3, Way::Read), None);
        assert_eq!(armed.violates(4, Way::Read), Some(true));
        assert_eq!(armed.violates(9, Way::Write), Some(false));
        assert_eq!(armed.violates(10, Way::Write), None);
        let baked = armed.baked();
        assert!(baked.fetches(2) && baked.fetches(4) && !baked.fetches(9) && baked.access && !baked.step);
        let less = Baked { fetch: vec![2..3, 4..5], ..Baked::default() };
        assert!(baked.covers(&less) && baked.covers(&Baked::default()) && !less.covers(&baked));
        assert!(!baked.covers(&Baked { step: true, ..Baked::default() }));
        assert!(!baked.covers(&Baked { fetch: vec![1..3, 4..5], ..Baked::default() }));
    }
}
