//! Held events, and the files that control them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use vmtree_api::events::{Action, Event, EventKind, EventOffer, Held, Verdict};
use vmtree_api::{Error, ErrorKind, Missing, VcpuId};

use super::filter::Filter;
use super::queue::Queue;
use super::stats::KINDS;
use crate::error::{FsError, FsResult};
use crate::text::verdict;

/// An open file that controls.
pub struct Controller {
    /// Its number among the open files.
    pub id: u64,
    /// What it controls.
    pub filter: Filter,
    /// Its records.
    pub queue: Queue,
}

/// An event whose vCPU waits.
pub struct Waiting {
    held: Held,
    /// The file whose answer it waits for.
    file: u64,
    deadline: Instant,
    /// Whether to continue means to deny it, as a rule says.
    wall: bool,
}

impl Waiting {
    /// An event that waits for this file's answer.
    pub fn new(held: Held, file: u64, deadline: Instant, wall: bool) -> Self {
        Self { held, file, deadline, wall }
    }

    /// Its kind.
    pub fn kind(&self) -> EventKind {
        self.held.event().kind
    }

    /// What would have happened had nobody watched.
    pub fn let_go(self) {
        let_go(self.held, self.wall);
    }

    /// Carries out a verdict.
    ///
    /// # Errors
    /// The driver's, with the event that waits on.
    pub fn answer(self, verdict: &Verdict) -> Result<(), Box<(Error, Option<Self>)>> {
        let Self { held, file, deadline, wall } = self;
        let verdict = if wall && *verdict == Verdict::Continue { &Verdict::Deny } else { verdict };
        held.answer(verdict).map_err(|refused| {
            let again = refused.held.map(|held| Self { held, file, deadline, wall });
            Box::new((refused.error, again))
        })
    }
}

/// Lets a vCPU go as if nobody had watched: a wall denies, else the event continues.
pub fn let_go(held: Held, wall: bool) {
    let verdict = if wall { Verdict::Deny } else { Verdict::Continue };
    let mut answered = held.answer(&verdict);
    if wall {
        // Nobody is there to decide otherwise: the driver is asked to do without what it lacks.
        answered = answered.or_else(|mut refused| match refused.held.take() {
            Some(held) => held.answer(&verdict),
            None => Err(refused),
        });
    }
    if let Err(refused) = answered
        && refused.error.kind() != ErrorKind::Gone
    {
        // The vCPU goes on as what was refused is dropped.
        log::warn!("an event could not be answered with {}: {}", verdict.action().name(), refused.error);
    }
}

/// Who controls, and what waits. Its lock is never held across a driver call.
#[derive(Default)]
pub struct Control {
    /// By kind; those of `all` last.
    files: [Vec<Arc<Controller>>; KINDS + 1],
    waiting: BTreeMap<u64, Waiting>,
    ended: bool,
}

impl Control {
    /// Whether some file controls an event that this one could control as well.
    pub fn overlaps(&self, filter: &Filter) -> bool {
        self.files.iter().flatten().any(|other| other.filter.overlaps(filter))
    }

    /// Adds a file.
    pub fn add(&mut self, file: Arc<Controller>) {
        self.list(&file.filter).push(file);
    }

    /// Takes a file out, with what waits for its answer.
    pub fn remove(&mut self, file: &Controller) -> Vec<Waiting> {
        self.list(&file.filter).retain(|other| other.id != file.id);
        self.take(|waiting| waiting.file == file.id)
    }

    fn list(&mut self, filter: &Filter) -> &mut Vec<Arc<Controller>> {
        &mut self.files[filter.kind.map_or(KINDS, |kind| kind as usize)]
    }

    /// The file that controls an event.
    pub fn controller(&self, event: &Event) -> Option<Arc<Controller>> {
        if self.ended {
            return None;
        }
        let files = self.files[event.kind as usize].iter().chain(&self.files[KINDS]);
        files.into_iter().find(|file| file.filter.matches(event)).cloned()
    }

    /// Keeps an event until it is answered.
    pub fn hold(&mut self, seq: u64, waiting: Waiting) {
        self.waiting.insert(seq, waiting);
    }

    /// Keeps an event whose answer was refused; hands it back where its file is no longer there.
    pub fn hold_again(&mut self, seq: u64, waiting: Waiting) -> Option<Waiting> {
        if self.ended || !self.files.iter().flatten().any(|file| file.id == waiting.file) {
            return Some(waiting);
        }
        self.hold(seq, waiting);
        None
    }

    /// Whether an event waits for an answer.
    pub fn waits(&self, seq: u64) -> bool {
        self.waiting.contains_key(&seq)
    }

    /// The first event that a vCPU waits at.
    pub fn held(&self, vcpu: VcpuId) -> Option<u64> {
        let found = self.waiting.iter().find(|(_, waiting)| waiting.held.event().vcpu == vcpu);
        found.map(|(seq, _)| *seq)
    }

    /// When the first event times out.
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.deadline).next()
    }

    /// Takes out what has timed out.
    pub fn late(&mut self, now: Instant) -> Vec<Waiting> {
        self.take(|waiting| waiting.deadline <= now)
    }

    fn take(&mut self, which: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        let seqs = self.waiting.iter().filter(|(_, waiting)| which(waiting)).map(|(seq, _)| *seq);
        let seqs: Vec<u64> = seqs.collect();
        seqs.iter().filter_map(|seq| self.waiting.remove(seq)).collect()
    }

    /// Takes out what a file answers, if all of it can be answered so.
    ///
    /// # Errors
    /// [`ErrorKind::Stale`] for a number that does not wait for this file, those of [`verdict::allowed`], and
    /// [`FsError::Missing`] for what the driver can't do. All wait on.
    pub fn answered(
        &mut self,
        file: u64,
        answers: &[(u64, Verdict)],
        offers: &[EventOffer],
    ) -> FsResult<Vec<Waiting>> {
        for (at, (seq, verdict)) in answers.iter().enumerate() {
            let waiting = self.waiting.get(seq).filter(|waiting| waiting.file == file);
            let twice = answers[..at].iter().any(|(before, _)| before == seq);
            let (Some(waiting), false) = (waiting, twice) else { return Err(stale(*seq)) };
            let event = waiting.held.event();
            verdict::allowed(verdict, event)?;
            offered(event.kind, verdict.action(), offers)?;
        }
        Ok(answers.iter().filter_map(|(seq, _)| self.waiting.remove(seq)).collect())
    }

    /// Nobody controls any more. Returns what waited, and whose reads end.
    pub fn end(&mut self) -> (Vec<Waiting>, Vec<Arc<Controller>>) {
        self.ended = true;
        let files = self.files.iter_mut().flat_map(|list| list.drain(..)).collect();
        (self.take(|_| true), files)
    }
}

fn stale(seq: u64) -> FsError {
    let why = format!("{seq} does not wait for this file's answer: unknown, answered or timed out");
    Error::new(ErrorKind::Stale, "answer", why).into()
}

/// Whether the driver takes this answer for this kind.
fn offered(kind: EventKind, action: Action, offers: &[EventOffer]) -> Result<(), Missing> {
    if action == Action::Continue {
        return Ok(());
    }
    let offer = offers.iter().find(|offer| offer.kind == kind);
    let row = offer.and_then(|offer| offer.actions.iter().find(|(offered, _)| *offered == action));
    let none = || Err(Missing::new(format!("this driver has no {} for {kind}", action.name())));
    row.map_or_else(none, |(_, offered)| offered.clone())
}
