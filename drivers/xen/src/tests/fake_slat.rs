//! Its views, rights and pages.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Result;
use std::ops::Range;
use std::sync::Arc;

use super::fake::{Fake, Shared, errno};
use crate::error::number::{EBUSY, EINVAL, EOPNOTSUPP};
use crate::hypervisor::{Bell, Pages, Probe, Slat};

impl Probe for Fake {
    fn events(&self) -> Result<u32> {
        Ok(self.0.state.lock().events)
    }

    fn views(&self) -> Result<bool> {
        let state = self.0.state.lock();
        if state.altp2m { Ok(state.views) } else { errno(EOPNOTSUPP) }
    }

    fn rights(&self) -> Result<()> {
        Ok(())
    }

    fn bell(&self) -> Arc<dyn Bell> {
        Arc::new(FakeBell(Arc::clone(&self.0)))
    }
}

impl Slat for Fake {
    fn set_views(&self, on: bool) -> Result<()> {
        let mut state = if on { self.call()? } else { self.undo()? };
        state.views = on;
        state.made = BTreeSet::from([0]);
        (state.access, state.shown, state.on) = (BTreeMap::new(), BTreeMap::new(), 0);
        Ok(())
    }

    fn create(&self, access: u8) -> Result<u16> {
        let mut state = self.call()?;
        assert!(state.views);
        let free = (1..10).find(|view| !state.made.contains(view));
        let Some(view) = free else { return errno(EINVAL) };
        state.made.insert(view);
        state.default.insert(view, access);
        Ok(view)
    }

    fn destroy(&self, view: u16) -> Result<()> {
        let mut state = self.call()?;
        if state.on == view {
            return errno(EBUSY);
        }
        assert!(state.made.remove(&view));
        state.access.retain(|(of, _), _| *of != view);
        state.shown.retain(|(of, _), _| *of != view);
        Ok(())
    }

    fn switch(&self, view: u16) -> Result<()> {
        let mut state = self.call()?;
        assert!(state.made.contains(&view));
        state.on = view;
        Ok(())
    }

    fn set_access(&self, view: u16, frames: Range<u64>, access: u8) -> Result<()> {
        let mut state = if access == 7 { self.undo()? } else { self.call()? };
        assert!(state.made.contains(&view), "no view {view}");
        for frame in frames {
            state.access.insert((view, frame), access);
        }
        Ok(())
    }

    fn change(&self, view: u16, frame: u64, to: Option<u64>) -> Result<()> {
        let mut state = self.call()?;
        assert!(state.made.contains(&view) && view != 0);
        match to {
            Some(to) => state.shown.insert((view, frame), to),
            None => state.shown.remove(&(view, frame)),
        };
        state.access.remove(&(view, frame));
        Ok(())
    }
}

impl Pages for Fake {
    fn add(&self, frame: u64) -> Result<()> {
        let mut state = self.call()?;
        assert!(state.added.insert(frame));
        Ok(())
    }

    fn remove(&self, frames: &[u64]) -> Result<()> {
        let mut state = self.undo()?;
        frames.iter().for_each(|frame| assert!(state.added.remove(frame)));
        Ok(())
    }

    fn set_max(&self, pages: u64) -> Result<()> {
        self.undo()?.max = pages;
        Ok(())
    }

    fn highest(&self) -> Result<u64> {
        Ok(0xff)
    }
}

pub struct FakeBell(pub Arc<Shared>);

impl Bell for FakeBell {
    fn ring(&self) {
        self.0.state.lock().rung = true;
        self.0.changed.notify_all();
    }
}
