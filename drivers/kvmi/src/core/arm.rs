//! From what is wanted to what is switched on: only the difference is sent, and a failure takes back what was sent.

use std::collections::BTreeSet;

use vmtree_api::Access;
use vmtree_api::events::{EventKind, Wanted, Watch, Way};
use vmtree_api::{Error, ErrorKind, Result};

use super::Core;
use crate::convert;
use crate::permissions::{self, Change};
use crate::port::{Control, kind};

const OP: &str = "watch";

/// The MSRs of a watch that names none: those of system calls, paging and the APIC.
pub const MSRS: &[u32] = &[
    0x1b,
    0x174,
    0x175,
    0x176,
    0x277,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102,
];

/// What a watch needs of a vCPU.
fn controls(watch: &Watch) -> Vec<Control> {
    let cr = |number| vec![Control::Event(kind::CR), Control::Cr(number)];
    match watch.kind {
        EventKind::Cr0 => cr(0),
        EventKind::Cr3 => cr(3),
        EventKind::Cr4 => cr(4),
        EventKind::Msr => {
            let one = watch.index.map(|index| vec![index]);
            let all = one.unwrap_or_else(|| MSRS.to_vec());
            [Control::Event(kind::MSR)].into_iter().chain(all.into_iter().map(Control::Msr)).collect()
        }
        EventKind::Breakpoint => vec![Control::Event(kind::BREAKPOINT)],
        EventKind::Cpuid => vec![Control::Event(kind::CPUID)],
        EventKind::Descriptor => vec![Control::Event(kind::DESCRIPTOR)],
        _ => Vec::new(),
    }
}

/// Whether KVMI has this.
fn check(watch: &Watch) -> Result<()> {
    let refuse = |kind, why: String| Err(Error::new(kind, OP, why));
    if watch.kind == EventKind::Slat {
        return refuse(ErrorKind::Invalid, "slat is watched by rules".to_owned());
    }
    if controls(watch).is_empty() {
        return refuse(ErrorKind::Unsupported, format!("KVMI has no {} events", watch.kind));
    }
    let reads = watch.way == Some(Way::From) && watch.kind != EventKind::Descriptor;
    if reads || watch.way.is_some_and(|way| !watch.kind.ways().contains(&way)) {
        return refuse(ErrorKind::Unsupported, format!("KVMI does not tell of {} this way", watch.kind));
    }
    Ok(())
}

/// A thing that was switched, as it is taken back.
enum Sent {
    Control(usize, Control, bool),
    Rights(Change),
}

impl Core {
    /// Replaces all that is wanted.
    ///
    /// # Errors
    /// As [`vmtree_api::events::EventSource::watch`]: what is wanted is as it was.
    pub fn watch(&mut self, wanted: &Wanted) -> Result<()> {
        for watch in &wanted.watches {
            check(watch)?;
            watch.vcpu.map_or(Ok(0), |vcpu| self.index(OP, vcpu))?;
        }
        for rule in &wanted.rules {
            permissions::check(rule, &self.map)?;
            self.known(OP, rule.view)?;
        }
        let targets: Vec<BTreeSet<Control>> =
            (0..self.vcpus.len()).map(|index| target(wanted, index)).collect();
        let mut sent = Vec::new();
        let changed = self.send(&targets, wanted, &mut sent);
        if let Err(error) = changed {
            self.take_back(sent);
            return Err(error);
        }
        for (vcpu, target) in self.vcpus.iter_mut().zip(targets) {
            vcpu.armed = target;
        }
        self.wanted = wanted.clone();
        Ok(())
    }

    /// Switches on what is new, sets the rights, and then switches off what is no longer wanted.
    fn send(&mut self, targets: &[BTreeSet<Control>], wanted: &Wanted, sent: &mut Vec<Sent>) -> Result<()> {
        for (index, target) in targets.iter().enumerate() {
            let now = self.vcpus.get(index).map(|vcpu| vcpu.armed.clone()).unwrap_or_default();
            for what in target.difference(&now) {
                self.switch(index, *what, true, sent)?;
            }
        }
        for change in permissions::changes(&self.wanted.rules, &wanted.rules) {
            self.rights(&change, change.new)?;
            sent.push(Sent::Rights(change));
        }
        for (index, target) in targets.iter().enumerate() {
            let now = self.vcpus.get(index).map(|vcpu| vcpu.armed.clone()).unwrap_or_default();
            for what in now.difference(target).collect::<Vec<_>>().into_iter().rev() {
                self.switch(index, *what, false, sent)?;
            }
        }
        Ok(())
    }

    fn switch(&mut self, index: usize, what: Control, on: bool, sent: &mut Vec<Sent>) -> Result<()> {
        let answer = self.port.control(index as u16, what, on);
        self.done(OP, answer)?;
        sent.push(Sent::Control(index, what, on));
        Ok(())
    }

    fn rights(&mut self, change: &Change, access: Access) -> Result<()> {
        let answer = self.port.access(change.view.0 as u16, change.frames.clone(), convert::bits(access));
        self.done(OP, answer)
    }

    fn take_back(&mut self, sent: Vec<Sent>) {
        for one in sent.into_iter().rev() {
            let taken = match one {
                Sent::Control(index, what, on) => {
                    let answer = self.port.control(index as u16, what, !on);
                    self.done(OP, answer)
                }
                Sent::Rights(change) => self.rights(&change, change.old),
            };
            if let Err(error) = taken {
                log::warn!("taking back what was armed: {error}");
            }
        }
    }
}

/// What one vCPU has to have switched on.
fn target(wanted: &Wanted, index: usize) -> BTreeSet<Control> {
    let mine = |watch: &&Watch| watch.vcpu.is_none_or(|vcpu| vcpu.0 as usize == index);
    let mut all: BTreeSet<Control> = wanted.watches.iter().filter(mine).flat_map(controls).collect();
    if !wanted.rules.is_empty() {
        all.insert(Control::Event(kind::PF));
    }
    all
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn a_watch_without_an_index_is_of_the_default_msrs() {
        let watch = Watch { kind: EventKind::Msr, way: Some(Way::To), vcpu: None, index: None, hold: true };
        assert_eq!(controls(&watch).len(), MSRS.len() + 1);
        assert!(check(&watch).is_ok());
        assert!(check(&Watch { way: Some(Way::From), ..watch.clone() }).is_err());
        assert!(check(&Watch { kind: EventKind::Io, way: None, ..watch }).is_err());
    }
}
