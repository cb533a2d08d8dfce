//! What views and permissions are to do, in plain maps.

use std::collections::BTreeMap;

/// The first of the frames that are played with: RAM that the guest maps one to one and does not use.
pub const FIRST: u64 = 0x80_0000;
/// How many there are.
pub const FRAMES: usize = 6;

/// The gpa of a frame.
pub fn gpa(frame: usize) -> u64 {
    FIRST + 0x1000 * frame as u64
}

/// A word of data that is code as well: mov eax, `number`; ret.
pub fn word(number: u32) -> u64 {
    0xb8 | u64::from(number) << 8 | 0xc3 << 40
}

/// What the code that a word is returns.
pub fn returned(word: u64) -> u64 {
    word >> 8 & 0xffff_ffff
}

/// What the guest does at a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    Read,
    Write,
    Execute,
}

impl Way {
    pub fn letter(self) -> char {
        match self {
            Self::Read => 'r',
            Self::Write => 'w',
            Self::Execute => 'x',
        }
    }

    /// The error code of the page fault that stands for it, in ring 0 (Intel SDM volume 3A, 4.7).
    pub fn error(self) -> u64 {
        match self {
            Self::Read => 1,
            Self::Write => 3,
            Self::Execute => 0x11,
        }
    }
}

/// A permission that was set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Set {
    /// As the file shows them.
    pub rights: &'static str,
    pub deny: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shown {
    Frame(usize),
    Copy(u64),
}

/// A view: what it shows differently, and its permissions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    pub shown: BTreeMap<usize, Shown>,
    pub rules: BTreeMap<usize, Set>,
}

/// An open event file that is a rule: its frames, and the accesses that it sees.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub frames: std::ops::Range<usize>,
    pub accesses: &'static str,
}

impl Asked {
    /// The rights that it leaves: without r there is no w.
    fn leaves(&self, letter: char) -> bool {
        let sees = |letter| self.accesses.contains(letter);
        !(sees(letter) || letter == 'w' && sees('r'))
    }
}

/// What a violation comes to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Violation {
    None,
    /// It is told, and takes place.
    Trap,
    /// It is told, and does not take place.
    Wall,
}

/// The whole state.
pub struct Reference {
    pub memory: [u64; FRAMES],
    pub views: BTreeMap<String, View>,
    /// The view of each vCPU.
    pub current: Vec<String>,
    pub asked: Vec<Asked>,
}

impl Reference {
    pub fn new(vcpus: usize) -> Self {
        let views = BTreeMap::from([("0".to_owned(), View::default())]);
        let memory = std::array::from_fn(|frame| word(frame as u32));
        Self { memory, views, current: vec!["0".to_owned(); vcpus], asked: Vec::new() }
    }

    pub fn view(&mut self, name: &str) -> &mut View {
        self.views.get_mut(name).unwrap()
    }

    pub fn read(&self, view: &str, frame: usize) -> u64 {
        match self.views[view].shown.get(&frame) {
            Some(Shown::Copy(word)) => *word,
            Some(Shown::Frame(other)) => self.memory[*other],
            None => self.memory[frame],
        }
    }

    pub fn write(&mut self, view: &str, frame: usize, word: u64) {
        match self.view(view).shown.get_mut(&frame) {
            Some(Shown::Copy(copy)) => *copy = word,
            Some(Shown::Frame(other)) => {
                let other = *other;
                self.memory[other] = word;
            }
            None => self.memory[frame] = word,
        }
    }

    /// What an access on a view violates.
    pub fn violation(&self, view: &str, frame: usize, way: Way) -> Violation {
        let letter = way.letter();
        let set = self.views[view].rules.get(&frame).filter(|set| !set.rights.contains(letter));
        let asked = self.asked.iter().any(|asked| asked.frames.contains(&frame) && !asked.leaves(letter));
        match set {
            Some(Set { deny: true, .. }) => Violation::Wall,
            Some(_) => Violation::Trap,
            None if asked => Violation::Trap,
            None => Violation::None,
        }
    }

    /// What `view` shows.
    pub fn common(&self) -> &str {
        let first = &self.current[0];
        if self.current.iter().all(|view| view == first) { first } else { "mixed" }
    }

    /// What `access` shows, frame by frame: the rights and whether they are a wall; of rules that were set, or of files.
    pub fn access(&self, view: &str, of_files: bool) -> BTreeMap<usize, (String, bool)> {
        if !of_files {
            let rules = self.views[view].rules.iter();
            return rules.map(|(frame, set)| (*frame, (set.rights.to_owned(), set.deny))).collect();
        }
        let mut all = BTreeMap::new();
        for frame in 0..FRAMES {
            let here: Vec<_> = self.asked.iter().filter(|asked| asked.frames.contains(&frame)).collect();
            let left = |letter: char| here.iter().all(|asked| asked.leaves(letter));
            let rights: String =
                "rwx".chars().map(|letter| if left(letter) { letter } else { '-' }).collect();
            if !here.is_empty() {
                all.insert(frame, (rights, false));
            }
        }
        all
    }

    /// What `remap` shows.
    pub fn remap(&self, view: &str) -> String {
        let line = |(frame, shown): (&usize, &Shown)| match shown {
            Shown::Copy(_) => format!("{:#018x} copy\n", gpa(*frame)),
            Shown::Frame(other) => format!("{:#018x} {:#018x}\n", gpa(*frame), gpa(*other)),
        };
        self.views[view].shown.iter().map(line).collect()
    }
}
