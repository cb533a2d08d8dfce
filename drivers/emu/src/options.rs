//! The options of an `emu:` source.

use std::path::PathBuf;

use vmtree_api::{Error, ErrorKind, Result, Source, number};

use crate::ram::GRAIN;

const OP: &str = "open emu";
const KNOWN: &[&str] = &["ram", "vcpus", "image", "seed"];
/// The smallest RAM: start tables, stacks and a small guest.
const LEAST: u64 = 8 << 20;
/// The largest RAM: what lies above 4 GiB stays inside the identity map of the start state.
const MOST: u64 = 256 << 30;

/// What kind of machine is wanted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// RAM in bytes.
    pub ram: u64,
    /// How many vCPUs.
    pub vcpus: u32,
    /// The image to start; the built-in guest where there is none.
    pub image: Option<PathBuf>,
    /// Decides the lengths of the vCPUs' turns.
    pub seed: u64,
}

impl Options {
    /// Takes a source apart.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] or [`ErrorKind::OutOfRange`], naming the option and what it takes.
    pub fn take(mut source: Source) -> Result<Self> {
        if !source.target.is_empty() {
            let why = format!("'{}' is no option; write emu:ram=64M,vcpus=2 or just emu:", source.target);
            return Err(Error::new(ErrorKind::Invalid, OP, why));
        }
        let ram = source.take_size("ram", 64 << 20)?;
        if !(LEAST..=MOST).contains(&ram) || !ram.is_multiple_of(GRAIN) {
            let why = format!("ram={ram:#x} won't do: it is 8M to 256G and a multiple of 2M");
            return Err(Error::new(ErrorKind::OutOfRange, OP, why));
        }
        let vcpus = count(&mut source, "vcpus", 2)?;
        if !(1..=64).contains(&vcpus) {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                OP,
                format!("vcpus={vcpus} won't do: it is 1 to 64"),
            ));
        }
        let image = source.take("image").map(PathBuf::from);
        if image.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err(Error::new(ErrorKind::Invalid, OP, "image= names no file; write image=FILE"));
        }
        let seed = count(&mut source, "seed", 0)?;
        source.finish(KNOWN)?;
        Ok(Self { ram, vcpus: vcpus as u32, image, seed })
    }
}

/// Takes a plain number; a size suffix makes no sense here.
fn count(source: &mut Source, key: &str, default: u64) -> Result<u64> {
    let Some(text) = source.take(key) else { return Ok(default) };
    number::parse(&text)
        .map_err(|error| Error::new(error.kind(), OP, format!("{key}={text}: {}", error.why())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(target: &str, options: &[(&str, &str)]) -> Result<Options> {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Options::take(Source::new("emu", target, options))
    }

    #[test]
    fn defaults_and_all_options() {
        let defaults = Options { ram: 64 << 20, vcpus: 2, image: None, seed: 0 };
        assert_eq!(take("", &[]).unwrap(), defaults);
        let all = [("ram", "256M"), ("vcpus", "4"), ("image", "/a.elf"), ("seed", "0x7")];
        let wanted = Options { ram: 256 << 20, vcpus: 4, image: Some("/a.elf".into()), seed: 7 };
        assert_eq!(take("", &all).unwrap(), wanted);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let bad = [
            ("ram", "6M", "8M"),
            ("ram", "9M", "multiple of 2M"),
            ("ram", "1T", "256G"),
            ("ram", "much", "ram=much"),
            ("vcpus", "0", "1 to 64"),
            ("vcpus", "65", "1 to 64"),
            ("vcpus", "1K", "vcpus=1K"),
            ("seed", "-1", "seed=-1"),
            ("image", "", "image=FILE"),
            ("cpus", "2", "'cpus'"),
        ];
        for (key, value, told) in bad {
            let error = take("", &[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(told), "{key}={value}: {error}");
        }
        assert!(take("guest.elf", &[]).unwrap_err().to_string().contains("'guest.elf'"));
    }
}
