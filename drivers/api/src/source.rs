//! A SOURCE as the user wrote it, `DRIVER:TARGET[,key=value...]`, taken apart.

use crate::{Error, ErrorKind, Result, number};

const OP: &str = "read SOURCE";

/// A SOURCE in parts. A driver takes the options it knows and then calls [`Source::finish`], which refuses the rest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Source {
    /// The part before the first colon.
    pub driver: String,
    /// What follows it up to the first option.
    pub target: String,
    options: Vec<(String, String)>,
}

impl Source {
    /// A source from its parts; `options` in the order written.
    #[must_use]
    pub fn new(driver: &str, target: &str, options: Vec<(String, String)>) -> Self {
        Self { driver: driver.to_owned(), target: target.to_owned(), options }
    }

    /// Takes the value of the option `key` out of the source.
    pub fn take(&mut self, key: &str) -> Option<String> {
        let index = self.options.iter().position(|(name, _)| name == key)?;
        Some(self.options.remove(index).1)
    }

    /// Takes the number `key` out of the source, or `default` where it is not given.
    ///
    /// # Errors
    /// As [`number::parse_size`], naming the option.
    pub fn take_size(&mut self, key: &str, default: u64) -> Result<u64> {
        match self.take(key) {
            None => Ok(default),
            Some(text) => number::parse_size(&text)
                .map_err(|error| Error::new(error.kind(), OP, format!("{key}={text}: {}", error.why()))),
        }
    }

    /// Refuses what no `take` has taken.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] naming the first option left over and the ones this driver knows.
    pub fn finish(self, known: &[&str]) -> Result<()> {
        let Some((key, _)) = self.options.first() else { return Ok(()) };
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let driver = &self.driver;
        // A key may be as long as a command line; its beginning is enough to know it by.
        let key: String = key.chars().take(48).collect();
        let why = format!("the {driver} driver has no option '{key}'; it has: {known}");
        Err(Error::new(ErrorKind::Invalid, OP, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_once_and_the_rest_is_refused_by_name() {
        let options = vec![("ram".to_owned(), "1M".to_owned()), ("rma".to_owned(), "2".to_owned())];
        let mut source = Source::new("emu", "", options);
        assert_eq!(source.take_size("ram", 7).unwrap(), 1 << 20);
        assert_eq!(source.take_size("ram", 7).unwrap(), 7);
        let error = source.finish(&["ram", "vcpus"]).unwrap_err();
        assert!(error.to_string().contains("'rma'") && error.to_string().contains("ram, vcpus"));
    }
}
