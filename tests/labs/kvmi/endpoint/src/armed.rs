//! What an introspector has armed, and what the built-in machine is told to watch for that.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use vmtree_api::events::{EventKind, Wanted, Watch, Way};
use vmtree_api::views::Rule;
use vmtree_api::{Access, Gfn, VcpuId, ViewId};

use crate::wire::event;

/// What is armed on one vCPU.
#[derive(Clone, Debug, Default)]
pub struct Vcpu {
    /// A bit for each kind of event that is on.
    pub events: u32,
    /// A bit for each control register.
    pub crs: u32,
    /// MSRs by index.
    pub msrs: BTreeSet<u32>,
    /// Whether each instruction is told of.
    pub step: bool,
}

impl Vcpu {
    /// Whether a kind of event is on.
    #[must_use]
    pub fn has(&self, kind: u8) -> bool {
        self.events >> kind & 1 == 1
    }

    fn watches(&self, vcpu: u32) -> Vec<Watch> {
        let watch = |kind, way, index| Watch { kind, way, vcpu: Some(VcpuId(vcpu)), index, hold: true };
        let mut all = Vec::new();
        if self.has(event::CR) {
            let crs = [(0, EventKind::Cr0), (3, EventKind::Cr3), (4, EventKind::Cr4)];
            let on = crs.iter().filter(|(number, _)| self.crs >> number & 1 == 1);
            all.extend(on.map(|(_, kind)| watch(*kind, Some(Way::To), None)));
        }
        if self.has(event::MSR) {
            all.extend(self.msrs.iter().map(|msr| watch(EventKind::Msr, Some(Way::To), Some(*msr))));
        }
        let whole = [
            (event::BREAKPOINT, EventKind::Breakpoint),
            (event::DESCRIPTOR, EventKind::Descriptor),
            (event::CPUID, EventKind::Cpuid),
        ];
        all.extend(whole.iter().filter(|(on, _)| self.has(*on)).map(|(_, kind)| watch(*kind, None, None)));
        if self.step {
            // Interrupts are seen to be put off: KVM injects none while it steps.
            all.push(watch(EventKind::SingleStep, None, None));
            all.push(watch(EventKind::Interrupt, None, None));
        }
        all
    }
}

/// Permissions that are not all, as ranges that don't overlap: by view and first frame.
#[derive(Clone, Debug, Default)]
pub struct Permissions(BTreeMap<(u32, u64), (u64, Access)>);

impl Permissions {
    /// Sets the rights of one frame.
    pub fn set(&mut self, view: u32, gfn: u64, access: Access) {
        self.cut(view, gfn);
        self.cut(view, gfn + 1);
        self.0.remove(&(view, gfn));
        if access == Access::ALL {
            return;
        }
        let mut range = gfn..gfn + 1;
        let before = self.0.range(..(view, gfn)).next_back();
        if let Some((&(of, start), &(end, same))) = before
            && (of, end, same) == (view, gfn, access)
        {
            self.0.remove(&(of, start));
            range.start = start;
        }
        if let Some(&(end, same)) = self.0.get(&(view, gfn + 1))
            && same == access
        {
            self.0.remove(&(view, gfn + 1));
            range.end = end;
        }
        self.0.insert((view, range.start), (range.end, access));
    }

    /// Sees to it that no range goes across the border before `gfn`.
    fn cut(&mut self, view: u32, gfn: u64) {
        let before = self.0.range(..(view, gfn)).next_back();
        if let Some((&(of, start), &(end, access))) = before
            && of == view
            && end > gfn
        {
            self.0.insert((view, start), (gfn, access));
            self.0.insert((view, gfn), (end, access));
        }
    }

    /// Forgets a view.
    pub fn forget(&mut self, view: u32) {
        self.0.retain(|(of, _), _| *of != view);
    }

    /// As rules that hold.
    fn rules(&self) -> Vec<Rule> {
        let rule = |(&(view, start), &(end, access)): (&(u32, u64), &(u64, Access))| {
            let frames: Range<Gfn> = Gfn(start)..Gfn(end);
            Rule { view: ViewId(view), frames, access, hold: true }
        };
        self.0.iter().map(rule).collect()
    }
}

/// All that the machine has to watch.
#[must_use]
pub fn wanted<'a>(vcpus: impl Iterator<Item = &'a Vcpu>, permissions: &Permissions) -> Wanted {
    let mut wanted = Wanted::default();
    let mut faults = false;
    for (number, vcpu) in (0..).zip(vcpus) {
        wanted.watches.extend(vcpu.watches(number));
        faults |= vcpu.has(event::PF);
    }
    if faults {
        wanted.rules = permissions.rules();
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_are_the_frames_that_were_set(sets in prop::collection::vec((0u32..2, 0u64..20, 0u8..8), 0..60)) {
            let mut permissions = Permissions::default();
            let mut model = BTreeMap::new();
            for (view, gfn, bits) in sets {
                let access = [Access::READ, Access::WRITE, Access::EXECUTE].iter().enumerate()
                    .filter(|(n, _)| bits >> n & 1 == 1).fold(Access::NONE, |all, (_, one)| all.union(*one));
                permissions.set(view, gfn, access);
                model.insert((view, gfn), access);
            }
            model.retain(|_, access| *access != Access::ALL);
            let mut found = BTreeMap::new();
            for rule in permissions.rules() {
                for gfn in rule.frames.start.0..rule.frames.end.0 {
                    prop_assert!(found.insert((rule.view.0, gfn), rule.access).is_none());
                }
            }
            prop_assert_eq!(found, model);
        }
    }

    #[test]
    fn neighbours_with_the_same_rights_are_one_range() {
        let mut permissions = Permissions::default();
        (5..5000).for_each(|gfn| permissions.set(0, gfn, Access::READ));
        assert_eq!(permissions.rules().len(), 1);
    }

    #[test]
    fn a_register_is_watched_where_its_kind_and_itself_are_on() {
        let mut vcpu = Vcpu { events: 1 << event::CR, ..Vcpu::default() };
        assert!(wanted([&vcpu].into_iter(), &Permissions::default()).watches.is_empty());
        vcpu.crs = 1 << 3;
        let watches = wanted([&vcpu].into_iter(), &Permissions::default()).watches;
        assert_eq!((watches.len(), watches[0].kind), (1, EventKind::Cr3));
    }
}
