//! What is watched, and whether an event is.

use vmtree_api::events::{EventKind, Watch, Way};

/// The interceptions of all kinds but slat.
#[derive(Debug, Default)]
pub struct Armed {
    /// A bit for each kind that is watched.
    kinds: u32,
    /// Whether steps are watched.
    pub steps: bool,
    watches: Vec<Watch>,
}

impl Armed {
    /// Armed for these.
    #[must_use]
    pub fn new(watches: &[Watch]) -> Self {
        let kinds = watches.iter().fold(0, |kinds, watch| kinds | 1 << watch.kind as u32);
        let steps = kinds & 1 << EventKind::SingleStep as u32 != 0;
        Self { kinds, steps, watches: watches.to_vec() }
    }

    /// Whether any watch is of this kind.
    #[must_use]
    pub fn has(&self, kind: EventKind) -> bool {
        self.kinds & 1 << kind as u32 != 0
    }

    /// Whether an event is watched, and if so, whether it is held.
    #[must_use]
    pub fn matching(&self, kind: EventKind, way: Way, vcpu: usize, index: u32) -> Option<bool> {
        let matches = |watch: &&Watch| {
            watch.kind == kind
                && watch.way.is_none_or(|wanted| wanted == way)
                && watch.vcpu.is_none_or(|wanted| wanted.0 as usize == vcpu)
                && watch.index.is_none_or(|wanted| wanted == index)
        };
        self.watches.iter().filter(matches).map(|watch| watch.hold).reduce(|a, b| a || b)
    }
}
