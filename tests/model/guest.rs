//! What the guest does on its vCPUs, and the violations that it raises.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use vmtree_guest::mailbox::Op;
use vmtree_guest::{Mailbox, Outcome};

use crate::common::live::Live;
use crate::common::wait_until;
use crate::reference::{Violation, Way, gpa, returned};
use crate::{Play, VCPUS};

const PATIENCE: Duration = Duration::from_secs(20);

/// The guest, and an observer of all that it violates.
pub struct Guest<'a> {
    live: &'a Live,
    mailbox: Mailbox<File>,
    observer: File,
    /// The violations there were to be, since the mount began.
    pub raised: u64,
    /// Those that nobody controlled.
    pub unattended: u64,
    /// Those that were answered.
    answered: u64,
}

impl<'a> Guest<'a> {
    /// The guest with nothing going on but its ticks.
    pub fn new(live: &'a Live) -> Self {
        let mailbox = Mailbox::new(live.open("mem"));
        mailbox.wait_running(PATIENCE).unwrap();
        mailbox.background(false, PATIENCE).unwrap();
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let path = live.path("events/slat");
        let observer = File::options().read(true).custom_flags(flags).open(path).unwrap();
        Self { live, mailbox, observer, raised: 0, unattended: 0, answered: 0 }
    }

    /// The next `count` violations that the observer sees; more of them show the next time.
    fn seen(&mut self, count: usize) -> Vec<String> {
        let (mut text, mut buf) = (String::new(), [0; 4096]);
        wait_until("the observer sees what was raised", || {
            if let Ok(got) = self.observer.read(&mut buf) {
                text += str::from_utf8(&buf[..got]).unwrap();
            }
            text.lines().count() >= count
        });
        text.lines().map(|line| line.to_owned() + " ").collect()
    }

    /// The counts of slat in `events/stats` are right.
    fn compare_stats(&self) {
        let stats = self.live.text("events/stats");
        let line = stats.lines().find(|line| line.starts_with("slat ")).unwrap();
        let of =
            |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)).unwrap().parse().unwrap();
        let counts: [u64; 5] = ["raised=", "unattended=", "answered=", "lost=", "timed_out="].map(of);
        assert_eq!(counts, [self.raised, self.unattended, self.answered, 0, 0], "{line}");
    }
}

/// An order to the guest, as it goes on.
struct Access {
    vcpu: u64,
    frame: usize,
    way: Way,
    /// What is written.
    word: u64,
    /// The events that are to come: the view of each.
    events: Vec<String>,
}

impl Play<'_> {
    /// The guest reads, writes or executes; with a controller that gives this verdict, or with none.
    pub fn access(&mut self, verdict: Option<u64>) {
        let vcpu = self.random.below(VCPUS);
        let frame = self.frame();
        let way = self.random.pick(&[Way::Read, Way::Write, Way::Execute]);
        let mut access = Access { vcpu, frame, way, word: self.new_word(), events: Vec::new() };
        let outcome = match verdict {
            None => self.unattended(&mut access),
            Some(verdict) => self.controlled(&mut access, verdict),
        };
        let Some((got, wanted)) = outcome else { return };
        self.note(format!("vCPU {vcpu} {way:?} frame {frame}: {} events", access.events.len()));
        let got = match (got, way) {
            (Outcome::Done(_), Way::Write) => Outcome::Done([0; 4]),
            (Outcome::Done([value, ..]), _) => Outcome::Done([value, 0, 0, 0]),
            (Outcome::Faulted { vector, error, cr2, .. }, _) => {
                Outcome::Faulted { vector, error, cr2, rip: 0 }
            }
            (other, _) => other,
        };
        assert_eq!(got, wanted, "vCPU {vcpu} {way:?} frame {frame}");
        let seen = self.guest.seen(access.events.len());
        assert_eq!(seen.len(), access.events.len(), "{seen:?}");
        for (record, view) in seen.iter().zip(&access.events) {
            let address = format!("{:#018x}", gpa(frame));
            // The second instruction that is fetched lies behind the first.
            let at = |name: &str| record.contains(&format!(" {name}={}", &address[..15]));
            let fields = [
                format!("vcpu={vcpu}"),
                format!("view={view}"),
                format!("access={}", way.letter()),
                "ptwalk=0".into(),
            ];
            assert!(fields.iter().all(|field| record.contains(&format!(" {field} "))), "{record} {fields:?}");
            assert!(at("gpa") && at("gva"), "{record} {address}");
        }
        self.guest.compare_stats();
    }

    fn post(&mut self, access: &Access) -> (Op, u64) {
        let (op, args) = match access.way {
            Way::Read => (Op::Read, vec![1, gpa(access.frame), 8]),
            Way::Write => (Op::Write, vec![1, gpa(access.frame), access.word, 8]),
            Way::Execute => (Op::Exec, vec![1, gpa(access.frame)]),
        };
        (op, self.guest.mailbox.post(access.vcpu, op, &args).unwrap())
    }

    fn outcome(&self, vcpu: u64, (op, seq): (Op, u64)) -> Outcome {
        self.guest.mailbox.outcome(vcpu, op, seq, PATIENCE).unwrap()
    }

    /// What an access comes to that takes place on a view.
    fn done(&mut self, view: &str, access: &Access) -> Outcome {
        let before = self.reference.read(view, access.frame);
        match access.way {
            Way::Read => Outcome::Done([before, 0, 0, 0]),
            Way::Execute => Outcome::Done([returned(before), 0, 0, 0]),
            Way::Write => {
                self.reference.write(view, access.frame, access.word);
                Outcome::Done([0; 4])
            }
        }
    }

    fn walled(access: &Access) -> Outcome {
        match access.way {
            Way::Write => Outcome::Done([0; 4]),
            way => Outcome::Faulted { vector: 14, error: way.error(), cr2: gpa(access.frame), rip: 0 },
        }
    }

    fn unattended(&mut self, access: &mut Access) -> Option<(Outcome, Outcome)> {
        let view = self.reference.current[access.vcpu as usize].clone();
        let posted = self.post(access);
        let got = self.outcome(access.vcpu, posted);
        let violation = self.reference.violation(&view, access.frame, access.way);
        let events = match (violation, access.way) {
            (Violation::None, _) => 0,
            // Two instructions, each with a fetch of its own.
            (Violation::Trap, Way::Execute) => 2,
            _ => 1,
        };
        access.events = vec![view.clone(); events];
        self.guest.raised += events as u64;
        self.guest.unattended += events as u64;
        let wanted =
            if violation == Violation::Wall { Self::walled(access) } else { self.done(&view, access) };
        Some((got, wanted))
    }

    /// A data access that somebody controls; nothing where it violates nothing.
    fn controlled(&mut self, access: &mut Access, verdict: u64) -> Option<(Outcome, Outcome)> {
        let view = self.reference.current[access.vcpu as usize].clone();
        let violation = self.reference.violation(&view, access.frame, access.way);
        if violation == Violation::None || access.way == Way::Execute {
            return None;
        }
        // A view on which it violates nothing.
        let free =
            |name: &&String| self.reference.violation(name, access.frame, access.way) == Violation::None;
        let free = self.reference.views.keys().find(free).cloned();
        let value = self.new_word();
        let (answer, wanted) = match (verdict, access.way, free) {
            (0, Way::Write, _) => ("deny".to_owned(), Outcome::Done([0; 4])),
            (1, Way::Write, _) => {
                self.reference.write(&view, access.frame, value);
                (format!("value={value:#x}"), Outcome::Done([0; 4]))
            }
            (1, _, _) => (format!("value={value:#x}"), Outcome::Done([value, 0, 0, 0])),
            (2, _, Some(free)) => (format!("step view={free}"), self.done(&free, access)),
            (3, _, Some(free)) => {
                self.reference.current[access.vcpu as usize] = free.clone();
                (format!("view={free}"), self.done(&free, access))
            }
            _ if violation == Violation::Wall => ("continue".to_owned(), Self::walled(access)),
            _ => ("continue".to_owned(), self.done(&view, access)),
        };
        self.note(format!("vCPU {} {:?} frame {}: {answer}", access.vcpu, access.way, access.frame));
        let got = self.answer(access, &answer);
        access.events = vec![view];
        self.guest.raised += 1;
        self.guest.answered += 1;
        Some((got, wanted))
    }

    /// Controls one order, whose event gets this answer.
    fn answer(&mut self, access: &Access, answer: &str) -> Outcome {
        let mut file = self.live.open("events/slat");
        let posted = self.post(access);
        let mut buf = [0; 4096];
        let got = file.read(&mut buf).unwrap();
        let record = str::from_utf8(&buf[..got]).unwrap();
        let seq = record.strip_prefix("seq=").unwrap().split(' ').next().unwrap();
        let state = self.live.text(&format!("vcpu/{}/state", access.vcpu));
        assert_eq!(state, format!("held {seq}\n"), "{record}");
        file.write_all(format!("{seq} {answer}\n").as_bytes()).unwrap();
        self.outcome(access.vcpu, posted)
    }
}
