//! Random operations on views, permissions and memory through a real mount, and by the guest itself, against a simple
//! reference: what each vCPU reads, what is raised, and what the files show. `VMTREE_SEED` repeats a run, `VMTREE_MODEL`
//! says how many operations.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod guest;
#[path = "../kills/random.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod random;
mod reference;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use common::live::Live;
use guest::Guest;
use random::{Random, seed, setting};
use reference::*;

const VCPUS: u64 = 2;
const SEEDS: u64 = 4;
const OPERATIONS: u64 = 500;
const NAMES: &[&str] = &["a", "b", "c", "d"];
/// The rights that hardware has.
const RIGHTS: &[&str] = &["---", "r--", "rw-", "r-x", "--x", "rwx"];

struct Play<'a> {
    live: &'a Live,
    guest: Guest<'a>,
    random: Random,
    reference: Reference,
    /// The event files of `reference.asked`.
    files: Vec<File>,
    number: u32,
    log: Vec<String>,
}

/// Whether it was refused with this error, where it was to be.
fn refused(result: io::Result<()>, errno: i32) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(errno));
}

impl Play<'_> {
    fn frame(&mut self) -> usize {
        self.random.below(FRAMES as u64) as usize
    }

    fn frames(&mut self) -> std::ops::Range<usize> {
        let first = self.frame();
        first..first + 1 + self.random.below((FRAMES - first) as u64) as usize
    }

    fn any_view(&mut self) -> String {
        let names: Vec<String> = self.reference.views.keys().cloned().collect();
        self.random.pick(&names)
    }

    fn new_word(&mut self) -> u64 {
        self.number += 1;
        word(self.number)
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        self.live.write(name, text).map(drop)
    }

    fn note(&mut self, what: String) {
        self.log.push(what);
    }

    fn make(&mut self) {
        let name = self.random.pick(NAMES);
        self.note(format!("mkdir {name}"));
        let made = fs::create_dir(self.live.path(&format!("views/{name}")));
        if self.reference.views.contains_key(name) {
            return refused(made, libc::EEXIST);
        }
        made.unwrap();
        self.reference.views.insert(name.to_owned(), View::default());
    }

    fn remove(&mut self) {
        let name = self.any_view();
        self.note(format!("rmdir {name}"));
        let removed = fs::remove_dir(self.live.path(&format!("views/{name}")));
        if name == "0" || self.reference.current.contains(&name) {
            return refused(removed, libc::EBUSY);
        }
        removed.unwrap();
        self.reference.views.remove(&name);
    }

    fn switch(&mut self) {
        let name = self.any_view();
        let vcpu = self.random.below(VCPUS + 1);
        self.note(format!("switch {vcpu} to {name}"));
        if vcpu == VCPUS {
            self.write("view", &name).unwrap();
            self.reference.current.fill(name);
        } else {
            self.write(&format!("vcpu/{vcpu}/view"), &name).unwrap();
            self.reference.current[vcpu as usize] = name;
        }
    }

    fn remap(&mut self) {
        let (name, frame, other) = (self.any_view(), self.frame(), self.frame());
        let copy = Shown::Copy(self.reference.read(&name, frame));
        let (word, shown) = match self.random.below(5) {
            0 => ("-".to_owned(), None),
            1 | 2 => (format!("{:#x}", gpa(other)), Some(Shown::Frame(other)).filter(|_| other != frame)),
            _ => ("copy".to_owned(), Some(copy)),
        };
        // A bad line takes all before it back.
        let bad = self.random.once_in(4);
        let text = format!("{:#x} {word}\n{}", gpa(frame), if bad { "0x100000000000 copy" } else { "" });
        self.note(format!("remap {name}: {text:?}"));
        let written = self.write(&format!("views/{name}/remap"), &text);
        if name == "0" {
            return refused(written, libc::ENOENT);
        }
        if bad {
            return refused(written, libc::EIO);
        }
        written.unwrap();
        let view = self.reference.view(&name);
        match shown {
            Some(shown) => view.shown.insert(frame, shown),
            None => view.shown.remove(&frame),
        };
    }

    fn permit(&mut self) {
        let (name, mut text) = (self.any_view(), String::new());
        let mut rules = self.reference.views[&name].rules.clone();
        if self.random.once_in(5) {
            text += "reset\n";
            rules.clear();
        }
        for _ in 0..1 + self.random.below(2) {
            let (frames, rights) = (self.frames(), self.random.pick(RIGHTS));
            let deny = self.random.once_in(3);
            let word = if deny { " deny" } else { "" };
            text += &format!("{:#x}-{:#x} {rights}{word}\n", gpa(frames.start), gpa(frames.end));
            for frame in frames {
                match rights {
                    "rwx" => rules.remove(&frame),
                    _ => rules.insert(frame, Set { rights, deny }),
                };
            }
        }
        let bad = self.random.once_in(5);
        if bad {
            text += &format!("{:#x}-{:#x} -w-\n", gpa(0), gpa(1));
        }
        self.note(format!("access {name}: {text:?}"));
        let written = self.write(&format!("views/{name}/access"), &text);
        if bad {
            return refused(written, libc::EINVAL);
        }
        written.unwrap();
        self.reference.view(&name).rules = rules;
    }

    /// Opens an event file that is a rule, or closes one.
    fn ask(&mut self) {
        if self.files.len() > 2 || (!self.files.is_empty() && self.random.once_in(2)) {
            let at = self.random.below(self.files.len() as u64) as usize;
            self.note(format!("close {:?}", self.reference.asked[at]));
            drop(self.files.remove(at));
            self.reference.asked.remove(at);
            // close(2) returns before the file system hears of it.
            let wanted = self.reference.access("0", true);
            return common::wait_until("it is disarmed", || self.shown("0", true) == wanted);
        }
        let (frames, accesses) = (self.frames(), self.random.pick(&["r", "w", "x", "rw", "wx", "rwx"]));
        let name =
            format!("events/slat,gpa={:#x}-{:#x},access={accesses}", gpa(frames.start), gpa(frames.end));
        self.note(format!("open {name}"));
        self.files.push(File::open(self.live.path(&name)).unwrap());
        self.reference.asked.push(Asked { frames, accesses });
    }

    /// Writes from outside, through a view or the default view's memory.
    fn poke(&mut self) {
        let (frame, word) = (self.frame(), self.new_word());
        let view = self.any_view();
        let name = if self.random.once_in(4) { "mem".to_owned() } else { format!("views/{view}/mem") };
        self.note(format!("write {name} frame {frame}: {word:#x}"));
        self.live.open(&name).write_all_at(&word.to_le_bytes(), gpa(frame)).unwrap();
        self.reference.write(if name == "mem" { "0" } else { &view }, frame, word);
    }

    fn play(&mut self) {
        match self.random.below(30) {
            0..3 => self.make(),
            3 => self.remove(),
            4..7 => self.switch(),
            7..11 => self.remap(),
            11..14 => self.permit(),
            14 | 15 => self.ask(),
            16..19 => self.poke(),
            19..26 => self.access(None),
            _ => {
                let verdict = self.random.below(5);
                self.access(Some(verdict));
            }
        }
    }

    /// The rules that `access` shows, frame by frame.
    fn shown(&self, view: &str, of_files: bool) -> BTreeMap<usize, (String, bool)> {
        let mut all = BTreeMap::new();
        for line in self.live.text(&format!("views/{view}/access")).lines() {
            if line.ends_with(" # event") != of_files {
                continue;
            }
            let words: Vec<&str> = line.trim_end_matches(" # event").split(' ').collect();
            let (start, end) = words[0].split_once('-').unwrap();
            let [start, end] =
                [start, end].map(|text| u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap());
            for frame in (start - FIRST) / 4096..(end - FIRST) / 4096 {
                let deny = words.get(2).is_some_and(|word| *word == "deny");
                let before = all.insert(frame as usize, (words[1].to_owned(), deny));
                assert_eq!(before, None, "one rule a frame: {line}");
            }
        }
        all
    }

    /// All that the files show is what the reference says.
    fn compare(&self) {
        let of = &self.reference;
        let mut names: Vec<_> = fs::read_dir(self.live.path("views"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        assert!(names.iter().eq(of.views.keys()), "{names:?}");
        assert_eq!(self.live.text("view"), format!("{}\n", of.common()));
        for (vcpu, view) in of.current.iter().enumerate() {
            assert_eq!(self.live.text(&format!("vcpu/{vcpu}/view")), format!("{view}\n"));
        }
        for view in of.views.keys() {
            for of_files in [false, true] {
                assert_eq!(self.shown(view, of_files), of.access(view, of_files), "access of {view}");
            }
            if view != "0" {
                assert_eq!(self.live.text(&format!("views/{view}/remap")), of.remap(view));
            }
            let bytes = self.live.read_at(&format!("views/{view}/mem"), FIRST, 4096 * FRAMES).unwrap();
            for frame in 0..FRAMES {
                let at = 4096 * frame;
                let word = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
                assert_eq!(word, of.read(view, frame), "view {view}, frame {frame}");
            }
        }
    }
}

fn run(seed: u64, part: u64) {
    let test = "views and permissions against a reference";
    let Some(live) = Live::mount(test, &format!("emu:ram=64M,vcpus={VCPUS}"), "reply_timeout=60") else {
        return;
    };
    let guest = Guest::new(&live);
    let reference = Reference::new(VCPUS as usize);
    for frame in 0..FRAMES {
        live.open("mem").write_all_at(&reference.memory[frame].to_le_bytes(), gpa(frame)).unwrap();
    }
    let random = Random::new(seed, part);
    let mut play =
        Play { live: &live, guest, random, reference, files: Vec::new(), number: 100, log: Vec::new() };
    for _ in 0..setting("VMTREE_MODEL", OPERATIONS) {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            play.play();
            play.compare();
        }));
        if let Err(panic) = done {
            let from = play.log.len().saturating_sub(30);
            println!("part {part}, the last operations:\n{}", play.log[from..].join("\n"));
            std::panic::resume_unwind(panic);
        }
    }
    let Guest { raised, unattended, .. } = play.guest;
    assert!(raised > 0 && unattended > 0, "nothing was violated");
    println!("part {part}: {raised} violations, {unattended} of them unattended");
}

#[test]
fn views_and_permissions_are_what_a_simple_reference_says() {
    let (seed, begun) = (seed("model"), Instant::now());
    // Each waits for its guest most of the time.
    std::thread::scope(|scope| {
        (0..SEEDS).for_each(|part| drop(scope.spawn(move || run(seed, part))));
    });
    println!("{SEEDS} runs in {:?}", begun.elapsed());
}
