//! A host whose drivers' notes go into the undo journal.

use std::env;
use std::sync::Arc;

use vmtree_api::{Error, ErrorKind, Host, Result};

use super::journal::Journal;

/// The host, and the journal of its driver's notes.
#[derive(Debug)]
pub struct Noting<H> {
    host: H,
    journal: Arc<Journal>,
}

impl<H: Host> Noting<H> {
    /// A host for the driver that `source` opens, called before relative paths in it mean something else.
    ///
    /// # Errors
    /// The current directory is gone, or the journal can't be written.
    pub fn new(host: H, source: &str, journal: Arc<Journal>) -> std::io::Result<Self> {
        journal.vm(source, &env::current_dir()?)?;
        Ok(Self { host, journal })
    }
}

impl<H: Host> Host for Noting<H> {
    fn ended(&self, why: &str) {
        self.host.ended(why);
    }

    fn note(&self, undo: &str) -> Result<()> {
        self.journal.note(undo).map_err(|error| {
            Error::new(ErrorKind::Io, "note what to undo", "the undo journal can't be written")
                .caused_by(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtree_api::NoHost;
    use vmtree_api::undo::Undo;

    #[test]
    fn what_a_driver_notes_is_in_the_journal_until_it_is_done() {
        let journal = Arc::new(Journal::create().unwrap());
        let host = Arc::new(Noting::new(NoHost, "qemu:x", journal.clone()).unwrap());
        let undo = Undo::new(host);
        undo.note("stopped", "7").unwrap();
        let owed = journal.read_owed().unwrap().unwrap();
        assert_eq!((owed.source.as_str(), owed.note.as_str()), ("qemu:x", "stopped 7\n"));
        assert_eq!(owed.directory, env::current_dir().unwrap());
        undo.note("ring", &"x".repeat(1 << 20)).unwrap_err();
        assert_eq!(journal.read_owed().unwrap(), Some(owed));
        undo.done("stopped");
        assert_eq!(journal.read_owed().unwrap(), None);
    }
}
