//! The undo journal: what would have to be undone if the daemon died now. It lives in memory that the daemon
//! shares with its guardians, and each entry is written before the act it tells of.
//!
//! Layout of the file: an 8-byte magic number with the version, then one slot a kind, `SLOT_BYTES` apart: a
//! valid flag (4 bytes), the payload's length (4 bytes, little-endian), the payload. The flag is written last and
//! cleared first, so a reader never sees half an entry. What a driver notes has two slots, which are written in turn:
//! the one with the larger number (8 bytes, in the place of the flag; then the length) counts. So a note is replaced at once.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::MemfdFlags;

use super::mounts::{Mark, MountId};

const MAGIC: [u8; 8] = *b"vmtreeJ\x01";
/// Room for an entry: two paths of PATH_MAX (4096) bytes and a little.
const SLOT_BYTES: u64 = 16384;
const LARGEST: usize = SLOT_BYTES as usize - 8;
/// The first of the two slots of a driver's note.
const NOTES: u64 = 4;
/// The number of a note and its length.
const NOTE_HEADER: usize = 16;

/// What an entry tells of. Its number is that of its slot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u64)]
enum Slot {
    Mounting = 1,
    Mounted = 2,
    Vm = 3,
}

/// What a driver did to its VM that would outlive the daemon.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Owed {
    /// The VM, as the user wrote it.
    pub source: String,
    /// The directory that relative paths in it start from.
    pub directory: PathBuf,
    /// What to undo, in the driver's own words.
    pub note: String,
}

/// The journal, in the daemon or in a guardian.
#[derive(Debug)]
pub struct Journal {
    file: File,
    /// The number of the last note.
    notes: Mutex<u64>,
}

impl Journal {
    /// An empty journal.
    ///
    /// # Errors
    /// No memory.
    pub fn create() -> io::Result<Self> {
        let file = File::from(rustix::fs::memfd_create("vmtree-journal", MemfdFlags::CLOEXEC)?);
        file.write_all_at(&MAGIC, 0)?;
        Ok(Self { file, notes: Mutex::default() })
    }

    /// The journal that a daemon handed over.
    ///
    /// # Errors
    /// The file is no journal of this version.
    pub fn open(file: File) -> io::Result<Self> {
        let mut magic = [0; MAGIC.len()];
        file.read_exact_at(&mut magic, 0)?;
        if magic != MAGIC {
            return Err(io::Error::other("not an undo journal of this version of vmtree"));
        }
        Ok(Self { file, notes: Mutex::default() })
    }

    /// The file to hand to a guardian.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn share(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// A lock that one process holds at a time: who has it undoes. `None` if another holds it and `wait` is false.
    ///
    /// # Errors
    /// /proc is not there.
    pub fn lock(&self, wait: bool) -> io::Result<Option<File>> {
        // A lock belongs to an open file; the descriptors of daemon and guardians share one, so open it anew.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        if wait {
            file.lock()?;
        } else if file.try_lock().is_err() {
            return Ok(None);
        }
        Ok(Some(file))
    }

    /// Notes that a mount at `path` is about to be made.
    ///
    /// # Errors
    /// The entry does not fit or could not be written.
    pub fn mounting(&self, path: &Path) -> io::Result<()> {
        self.write(Slot::Mounting, path.as_os_str().as_bytes())
    }

    /// Notes the mount that was made.
    ///
    /// # Errors
    /// As [`Journal::mounting`].
    pub fn mounted(&self, mark: &Mark) -> io::Result<()> {
        // 0 is never given as an id (statx(2)).
        let Mark { id, unique, path } = mark;
        let numbers = format!("{} {} {} ", id.id, id.device, unique.unwrap_or(0));
        self.write(Slot::Mounted, &[numbers.as_bytes(), path.as_os_str().as_bytes()].concat())?;
        self.clear(Slot::Mounting)
    }

    /// Notes that no mount of ours is left.
    ///
    /// # Errors
    /// The entry could not be written.
    pub fn unmounted(&self) -> io::Result<()> {
        self.clear(Slot::Mounting)?;
        self.clear(Slot::Mounted)
    }

    /// Notes which VM the driver's notes are about.
    ///
    /// # Errors
    /// As [`Journal::mounting`].
    pub fn vm(&self, source: &str, directory: &Path) -> io::Result<()> {
        self.write(Slot::Vm, &[source.as_bytes(), b"\0", directory.as_os_str().as_bytes()].concat())
    }

    /// Keeps what a driver says is to be undone, in the place of what it said before; empty: nothing.
    ///
    /// # Errors
    /// It does not fit or could not be written; what was kept before stands.
    pub fn note(&self, note: &str) -> io::Result<()> {
        let mut number = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if note.len() > SLOT_BYTES as usize - NOTE_HEADER {
            return Err(io::Error::other("what a driver has to undo is too long for the undo journal"));
        }
        let next = *number + 1;
        let at = (NOTES + next % 2) * SLOT_BYTES;
        if !note.is_empty() {
            self.file.write_all_at(note.as_bytes(), at + NOTE_HEADER as u64)?;
        }
        // Until here the slot has an older number than the other one, which counts.
        self.file.write_all_at(&(note.len() as u64).to_le_bytes(), at + 8)?;
        self.file.write_all_at(&next.to_le_bytes(), at)?;
        *number = next;
        Ok(())
    }

    /// The path where a mount was about to be made.
    ///
    /// # Errors
    /// The journal could not be read.
    pub fn read_mounting(&self) -> io::Result<Option<PathBuf>> {
        Ok(self.read(Slot::Mounting)?.map(into_path))
    }

    /// The mount that was made.
    ///
    /// # Errors
    /// The journal could not be read.
    pub fn read_mounted(&self) -> io::Result<Option<Mark>> {
        let Some(payload) = self.read(Slot::Mounted)? else { return Ok(None) };
        parse_mark(&payload).map(Some).ok_or_else(|| io::Error::other("a spoilt entry in the undo journal"))
    }

    /// What the driver said last, unless that was nothing.
    ///
    /// # Errors
    /// The journal could not be read.
    pub fn read_owed(&self) -> io::Result<Option<Owed>> {
        let numbers = [self.read_u64(NOTES * SLOT_BYTES)?, self.read_u64((NOTES + 1) * SLOT_BYTES)?];
        let at = (NOTES + u64::from(numbers[1] > numbers[0])) * SLOT_BYTES;
        let bytes = self.read_u64(at + 8)? as usize;
        if bytes == 0 {
            return Ok(None);
        }
        let mut note = vec![0; bytes.min(SLOT_BYTES as usize - NOTE_HEADER)];
        self.file.read_exact_at(&mut note, at + NOTE_HEADER as u64)?;
        let note = String::from_utf8_lossy(&note).into_owned();
        let vm = self.read(Slot::Vm)?.unwrap_or_default();
        let mut parts = vm.splitn(2, |&byte| byte == 0);
        let source = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        let directory = into_path(parts.next().unwrap_or_default().to_vec());
        Ok(Some(Owed { source, directory, note }))
    }

    /// Forgets what the driver said, which is undone. Not for the daemon, whose driver may say more.
    ///
    /// # Errors
    /// The entry could not be written.
    pub fn undone(&self) -> io::Result<()> {
        for slot in [NOTES, NOTES + 1] {
            self.file.write_all_at(&[0; NOTE_HEADER], slot * SLOT_BYTES)?;
        }
        Ok(())
    }

    fn write(&self, slot: Slot, payload: &[u8]) -> io::Result<()> {
        if payload.len() > LARGEST {
            return Err(io::Error::other("the path is too long for the undo journal"));
        }
        let at = slot as u64 * SLOT_BYTES;
        self.clear(slot)?;
        self.file.write_all_at(&(payload.len() as u32).to_le_bytes(), at + 4)?;
        self.file.write_all_at(payload, at + 8)?;
        self.file.write_all_at(&1_u32.to_le_bytes(), at)
    }

    fn clear(&self, slot: Slot) -> io::Result<()> {
        self.file.write_all_at(&0_u32.to_le_bytes(), slot as u64 * SLOT_BYTES)
    }

    fn read(&self, slot: Slot) -> io::Result<Option<Vec<u8>>> {
        let at = slot as u64 * SLOT_BYTES;
        let valid = self.read_u32(at)?;
        if valid != 1 {
            return Ok(None);
        }
        let bytes = self.read_u32(at + 4)? as usize;
        let mut payload = vec![0; bytes.min(LARGEST)];
        self.file.read_exact_at(&mut payload, at + 8)?;
        Ok(Some(payload))
    }

    fn read_u32(&self, at: u64) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.read_word(at)?))
    }

    fn read_u64(&self, at: u64) -> io::Result<u64> {
        Ok(u64::from_le_bytes(self.read_word(at)?))
    }

    /// The bytes at `at`; zeros where nothing was ever written.
    fn read_word<const BYTES: usize>(&self, at: u64) -> io::Result<[u8; BYTES]> {
        let mut word = [0; BYTES];
        match self.file.read_exact_at(&mut word, at) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
            _ => Ok(word),
        }
    }
}

fn parse_mark(payload: &[u8]) -> Option<Mark> {
    let mut parts = payload.splitn(4, |&byte| byte == b' ');
    let mut number = || std::str::from_utf8(parts.next()?).ok();
    let id = number()?.parse().ok()?;
    let device = number()?.to_owned();
    let unique = number()?.parse().ok().filter(|&unique| unique != 0);
    Some(Mark { id: MountId { id, device }, unique, path: into_path(parts.next()?.to_vec()) })
}

fn into_path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_seen_through_the_shared_file() {
        let journal = Journal::create().unwrap();
        let reader = Journal::open(journal.share().unwrap()).unwrap();
        assert_eq!(reader.read_mounting().unwrap(), None);
        journal.mounting(Path::new("/mnt/a b")).unwrap();
        assert_eq!(reader.read_mounting().unwrap().as_deref(), Some(Path::new("/mnt/a b")));
        let mark = super::super::mounts::nowhere();
        for mark in [Mark { unique: Some(9), ..mark.clone() }, mark] {
            journal.mounted(&mark).unwrap();
            assert_eq!((reader.read_mounting().unwrap(), reader.read_mounted().unwrap()), (None, Some(mark)));
        }
        journal.unmounted().unwrap();
        assert_eq!(reader.read_mounted().unwrap(), None);
    }

    #[test]
    fn the_last_note_counts_and_an_empty_one_is_none() {
        let journal = Journal::create().unwrap();
        let reader = Journal::open(journal.share().unwrap()).unwrap();
        journal.vm("qemu:vm.qmp", Path::new("/tmp")).unwrap();
        assert_eq!(reader.read_owed().unwrap(), None);
        for note in ["stopped", "stopped\nring", "x", "", "stopped", "", ""] {
            journal.note(note).unwrap();
            let owed = reader.read_owed().unwrap();
            assert_eq!(owed.as_ref().map_or("", |owed| &owed.note), note);
            if let Some(owed) = owed {
                assert_eq!(
                    (owed.source.as_str(), owed.directory.as_path()),
                    ("qemu:vm.qmp", Path::new("/tmp"))
                );
            }
        }
        journal.note("kept").unwrap();
        assert!(journal.note(&"x".repeat(SLOT_BYTES as usize)).is_err());
        assert_eq!(reader.read_owed().unwrap().unwrap().note, "kept");
        reader.undone().unwrap();
        assert_eq!(reader.read_owed().unwrap(), None);
    }

    #[test]
    fn a_note_that_is_cut_off_leaves_the_one_before() {
        let journal = Journal::create().unwrap();
        journal.note("first").unwrap();
        journal.note("second").unwrap();
        // The third was being written where the first stood.
        let at = (NOTES + 1) * SLOT_BYTES;
        journal.file.write_all_at(b"third of three", at + NOTE_HEADER as u64).unwrap();
        assert_eq!(journal.read_owed().unwrap().unwrap().note, "second");
    }

    #[test]
    fn one_holds_the_lock_at_a_time() {
        let journal = Journal::create().unwrap();
        let held = journal.lock(true).unwrap();
        assert!(held.is_some());
        assert!(journal.lock(false).unwrap().is_none());
        drop(held);
        assert!(journal.lock(false).unwrap().is_some());
    }

    #[test]
    fn other_files_and_too_long_entries_are_refused() {
        assert!(Journal::open(File::open("/dev/null").unwrap()).is_err());
        let long = "x".repeat(LARGEST + 1);
        let journal = Journal::create().unwrap();
        assert!(journal.mounting(Path::new(&long)).is_err());
        assert_eq!(journal.read_mounting().unwrap(), None);
    }
}
