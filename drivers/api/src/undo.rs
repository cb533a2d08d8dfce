//! What must be undone if this process is killed: a driver notes it with its host before the act.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Host, NoHost, Result};

/// What a driver would have to undo, by name. All that stands in it reaches the host as one note, a line each, so that
/// acts of different kinds (a stopped VM, an event ring that is taken, permissions that are set) don't disturb each other.
pub struct Undo {
    host: Arc<dyn Host>,
    entries: Mutex<BTreeMap<&'static str, String>>,
}

impl Undo {
    /// An empty book, kept by `host`.
    #[must_use]
    pub fn new(host: Arc<dyn Host>) -> Self {
        Self { host, entries: Mutex::default() }
    }

    /// Notes that `what` is about to be done; `how` is what the undoing has to know, without line breaks. It takes the
    /// place of an entry of that name.
    ///
    /// # Errors
    /// It could not be noted: `what` must not be done. The book is as before.
    pub fn note(&self, what: &'static str, how: &str) -> Result<()> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let how = how.replace(['\n', '\r'], " ");
        if entries.get(what) == Some(&how) {
            return Ok(());
        }
        let before = entries.insert(what, how);
        self.host.note(&text(&entries)).inspect_err(|_| {
            match before {
                Some(before) => entries.insert(what, before),
                None => entries.remove(what),
            };
        })
    }

    /// Notes that `what` is undone, if it stands here.
    pub fn done(&self, what: &str) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.remove(what).is_some() {
            // An entry too much is undone once more: whoever undoes looks first.
            let _ = self.host.note(&text(&entries));
        }
    }
}

impl Default for Undo {
    /// A book that nobody reads.
    fn default() -> Self {
        Self::new(Arc::new(NoHost))
    }
}

fn text(entries: &BTreeMap<&'static str, String>) -> String {
    let mut text = String::new();
    for (what, how) in entries {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{what} {how}");
    }
    text
}

/// The entry `what` of a note as a host keeps it.
#[must_use]
pub fn entry<'a>(note: &'a str, what: &str) -> Option<&'a str> {
    note.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, ErrorKind};
    use proptest::prelude::*;

    /// Keeps the last note, or refuses all.
    #[derive(Default)]
    struct Keeper(Mutex<String>, bool);

    impl Host for Keeper {
        fn ended(&self, _why: &str) {}

        fn note(&self, undo: &str) -> Result<()> {
            if self.1 {
                return Err(Error::new(ErrorKind::Io, "note", "full"));
            }
            *self.0.lock().unwrap() = undo.to_owned();
            Ok(())
        }
    }

    #[test]
    fn entries_come_and_go_without_disturbing_each_other() {
        let host = Arc::new(Keeper::default());
        let undo = Undo::new(host.clone());
        let kept = || host.0.lock().unwrap().clone();
        undo.note("stopped", "by us").unwrap();
        undo.note("ring", "3").unwrap();
        undo.note("stopped", "at\n7").unwrap();
        assert_eq!((entry(&kept(), "stopped"), entry(&kept(), "ring")), (Some("at 7"), Some("3")));
        assert_eq!(entry(&kept(), "stop"), None);
        undo.done("stopped");
        undo.done("stopped");
        assert_eq!((entry(&kept(), "stopped"), entry(&kept(), "ring")), (None, Some("3")));
        undo.done("ring");
        assert_eq!(kept(), "");
    }

    #[test]
    fn what_can_not_be_noted_does_not_stand_in_the_book() {
        let host = Arc::new(Keeper(Mutex::default(), true));
        let undo = Undo::new(host);
        assert!(undo.note("stopped", "x").is_err());
        assert!(undo.entries.lock().unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn any_note_is_read(note: String, what: String) {
            let _ = entry(&note, &what);
        }
    }
}
