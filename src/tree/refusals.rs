//! The last refusals, in words: the file `errors`.

use std::collections::VecDeque;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::Caller;
use crate::error::FsError;

/// How many are kept.
const KEPT: usize = 64;

/// A request that was refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    caller: Caller,
    line: String,
}

impl Refusal {
    /// A refusal that happens now.
    #[must_use]
    pub fn new(caller: Caller, path: &str, error: &FsError) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = format!(
            "t={}.{:06} uid={} pid={} path={} errno={:?} why={}",
            now.as_secs(),
            now.subsec_micros(),
            caller.uid,
            caller.pid,
            one_word(path),
            error.errno(),
            one_line(&error.to_string()),
        );
        Self { caller, line }
    }
}

/// A path as one word, its blanks as in /proc/self/mounts: what a caller names can't pass for a field of the line.
fn one_word(path: &str) -> String {
    one_line(path).replace(' ', "\\040")
}

/// A text that can't break the line it is put in, whatever a caller wrote.
fn one_line(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// The last [`KEPT`] refusals.
#[derive(Default)]
pub struct Refusals(Mutex<VecDeque<Refusal>>);

impl Refusals {
    /// Keeps one, and drops the oldest where there are too many.
    pub fn add(&self, refusal: Refusal) {
        log::info!("refused: {}", refusal.line);
        let mut kept = self.0.lock();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(refusal);
    }

    /// Those that `caller` may see, the oldest first: its own, or all for root.
    #[must_use]
    pub fn show(&self, caller: Caller) -> String {
        let mut text = String::new();
        for refusal in self.0.lock().iter() {
            if caller.uid == 0 || caller.uid == refusal.caller.uid {
                let _ = writeln!(text, "{}", refusal.line);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_and_shows_each_user_its_own() {
        let refusals = Refusals::default();
        for n in 0..KEPT + 3 {
            let caller = Caller { uid: (n % 2) as u32 * 1000, pid: n as u32 };
            refusals.add(Refusal::new(caller, "ctl", &FsError::TooLong(n)));
        }
        let lines = |uid| refusals.show(Caller { uid, pid: 1 }).lines().count();
        assert_eq!((lines(0), lines(1000), lines(7)), (KEPT, KEPT / 2, 0));
    }

    #[test]
    fn a_name_with_a_newline_stays_on_its_line() {
        let refusals = Refusals::default();
        let caller = Caller { uid: 0, pid: 1 };
        refusals.add(Refusal::new(caller, "a\nb errno=EIO", &FsError::NoEntry("no\x1b".to_owned())));
        let text = refusals.show(caller);
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains("path=a\\nb\\040errno=EIO errno=ENOENT why=no\\u{1b}"));
    }
}
