//! An event on its way from the driver to where it belongs.

use std::time::Instant;

use vmtree_api::events::{Detail, Event, EventKind, Held};

use super::control::{Waiting, let_go};
use super::hub::Hub;
use super::record::Record;
use super::wake::{Waker, wake};

impl Hub {
    /// Takes an event from the driver to where it belongs.
    pub(super) fn taken(&self, held: Held) {
        let time = (self.clock)();
        let event = *held.event();
        let stats = self.stats.of(event.kind);
        stats.raised.add(1);
        let wall = self.wall(&event);
        let seq = self.stream.lock().number();
        let record = Record { seq, time, event };
        let mut wakers = Vec::new();
        if let Some(held) = self.controlled(held, &record, wall, &mut wakers) {
            let_go(held, wall);
        }
        self.stream.lock().publish(record, &mut wakers);
        wake(wakers);
    }

    /// Gives an event to the file that controls it. Hands it back where its vCPU is not to wait.
    fn controlled(&self, held: Held, record: &Record, wall: bool, wakers: &mut Vec<Waker>) -> Option<Held> {
        let mut control = self.control.lock();
        let Some(file) = control.controller(&record.event) else {
            if record.event.kind == EventKind::Slat {
                self.stats.of(EventKind::Slat).unattended.add(1);
            }
            return Some(held);
        };
        // It happened before the file was there: nothing that it could answer.
        if !held.waits() {
            return Some(held);
        }
        let deadline = Instant::now() + self.reply_timeout;
        control.hold(record.seq, Waiting::new(held, file.id, deadline, wall));
        file.queue.push(*record, &|seq| control.waits(seq), &self.stats, wakers);
        None
    }

    /// Whether a rule says that this does not take place.
    fn wall(&self, event: &Event) -> bool {
        let Detail::Slat { access, gpa, .. } = event.detail else { return false };
        let shown = self.shown.read();
        let mut rules = shown.coming.iter().chain([&shown.rules]);
        rules.any(|rules| rules.deny(event.view, gpa.gfn(), access))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.control.lock().deadline()
    }

    /// Lets go what no answer came for in time.
    pub(super) fn time_out(&self) {
        let late = self.control.lock().late(Instant::now());
        for waiting in late {
            self.stats.of(waiting.kind()).timed_out.add(1);
            waiting.let_go();
        }
    }
}
