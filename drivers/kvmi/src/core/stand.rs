//! vCPUs that stand: pauses, which are asked for and told of by an event each, and steps.

use vmtree_api::{Error, ErrorKind, Result};

use super::{Core, Stepping, Stop, Why};
use crate::port::Reply;

impl Core {
    /// Whether a vCPU has to stand.
    pub(super) fn needed(&self, index: usize) -> bool {
        self.pauses > 0 || self.vcpus.get(index).is_some_and(|vcpu| vcpu.stands > 0)
    }

    /// How many pauses are held.
    #[must_use]
    pub fn pauses(&self) -> u64 {
        self.pauses
    }

    /// Asks all vCPUs to stand, and returns the epoch of this pause. They stand once [`Core::all_stand`] says so.
    ///
    /// # Errors
    /// The VM runs on.
    pub fn pause(&mut self) -> Result<u64> {
        self.pauses += 1;
        if let Err(error) = self.ask() {
            self.pauses -= 1;
            self.release();
            return Err(error);
        }
        Ok(self.epoch)
    }

    fn must_be_asked(&self, index: usize) -> bool {
        let stands = |stop: &Stop| matches!(stop.why, Why::Pause | Why::Stepped);
        self.vcpus.get(index).is_some_and(|vcpu| !vcpu.pausing && !vcpu.at.as_ref().is_some_and(stands))
    }

    fn ask(&mut self) -> Result<()> {
        const OP: &str = "pause";
        let asked: Vec<usize> = (0..self.vcpus.len()).filter(|index| self.must_be_asked(*index)).collect();
        if asked.len() == self.vcpus.len() {
            let answer = self.port.pause_all();
            self.done(OP, answer)?;
        } else {
            for index in &asked {
                let answer = self.port.pause(*index as u16);
                self.done(OP, answer)?;
            }
        }
        for index in asked {
            if let Some(vcpu) = self.vcpu(index) {
                vcpu.pausing = true;
            }
        }
        Ok(())
    }

    /// Asks one vCPU to stand, until [`Core::unstand`].
    ///
    /// # Errors
    /// It runs on.
    pub fn stand(&mut self, index: usize) -> Result<()> {
        if self.must_be_asked(index) && self.vcpus.get(index).is_some_and(|vcpu| vcpu.at.is_none()) {
            let answer = self.port.pause(index as u16);
            self.done("stop a vCPU", answer)?;
            if let Some(vcpu) = self.vcpu(index) {
                vcpu.pausing = true;
            }
        }
        if let Some(vcpu) = self.vcpu(index) {
            vcpu.stands += 1;
        }
        Ok(())
    }

    /// Ends one [`Core::stand`].
    pub fn unstand(&mut self, index: usize) {
        if let Some(vcpu) = self.vcpu(index) {
            vcpu.stands = vcpu.stands.saturating_sub(1);
        }
        self.release();
    }

    /// Whether a vCPU stands, for whatever reason.
    #[must_use]
    pub fn stands(&self, index: usize) -> bool {
        self.vcpus.get(index).is_some_and(|vcpu| vcpu.at.is_some())
    }

    /// Whether all of them do.
    #[must_use]
    pub fn all_stand(&self) -> bool {
        self.vcpus.iter().all(|vcpu| vcpu.at.is_some())
    }

    /// Ends a pause of this epoch.
    pub fn resume(&mut self, epoch: u64) {
        if self.epoch == epoch {
            self.pauses = self.pauses.saturating_sub(1);
            self.release();
        }
    }

    /// Ends all pauses.
    pub fn force_resume(&mut self) {
        self.epoch += 1;
        self.pauses = 0;
        self.release();
    }

    /// Lets go the vCPUs that need not stand any more.
    fn release(&mut self) {
        for index in 0..self.vcpus.len() {
            let stands = |stop: &Stop| matches!(stop.why, Why::Pause | Why::Stepped);
            let standing = self.vcpus.get(index).and_then(|vcpu| vcpu.at.as_ref()).is_some_and(stands);
            if standing && !self.needed(index) {
                self.let_go(index, Reply::Continue);
            }
        }
    }

    /// Lets a vCPU of a paused VM do one instruction; [`Core::has_stepped`] tells when it is done.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] unless it stands for a pause.
    pub fn step(&mut self, index: usize) -> Result<()> {
        const OP: &str = "step";
        let busy = |why: String| Err(Error::new(ErrorKind::Busy, OP, why));
        if self.pauses == 0 {
            return busy("pause first".to_owned());
        }
        match self.vcpus.get(index).and_then(|vcpu| vcpu.at.as_ref()).map(|stop| stop.why) {
            Some(Why::Pause | Why::Stepped) => {}
            Some(_) => return busy(format!("vCPU {index} is held at an event; answer that first")),
            None => return busy(format!("vCPU {index} does not stand yet")),
        }
        self.start_stepping(index)?;
        if let Some(vcpu) = self.vcpu(index) {
            vcpu.stepping = Some(Stepping::Counted);
        }
        self.go(index, Reply::Continue)
    }

    /// Whether the step is done.
    #[must_use]
    pub fn has_stepped(&self, index: usize) -> bool {
        self.vcpus.get(index).is_some_and(|vcpu| {
            vcpu.stepping.is_none() && vcpu.at.as_ref().is_some_and(|stop| stop.why == Why::Stepped)
        })
    }

    /// The steps of a vCPU are over, also one that does not come to an end.
    ///
    /// # Errors
    /// The hypervisor's.
    pub fn end_steps(&mut self, index: usize) -> Result<()> {
        let Some(vcpu) = self.vcpu(index) else { return Ok(()) };
        let under_way = vcpu.stepping == Some(Stepping::Counted);
        if under_way {
            vcpu.stepping = None;
        }
        self.stop_stepping(index)?;
        if under_way && !self.stands(index) && self.needed(index) {
            self.ask()?;
        }
        Ok(())
    }
}
