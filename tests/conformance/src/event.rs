//! Records of event files, as they are documented in docs/formats.md.

use std::collections::BTreeMap;

/// A record: its fields by name. Numbers are kept as `0x` and digits, whatever way they were written.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Record(BTreeMap<String, String>);

/// Fields that a record is to have, with their values as [`Record`] keeps them.
pub type Fields = Vec<(&'static str, String)>;

/// A number as [`Record`] keeps it.
pub fn number(value: u64) -> String {
    format!("{value:#x}")
}

fn parse(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn kept(text: &str) -> String {
    parse(text).map_or_else(|| text.to_owned(), number)
}

impl Record {
    fn add(&mut self, name: &str, value: &str) -> Result<(), String> {
        ensure!(!name.is_empty(), "a field without a name, of value '{value}'");
        ensure!(self.0.insert(name.to_owned(), kept(value)).is_none(), "{name} stands twice in a record");
        Ok(())
    }

    /// A line of `key=value` words.
    pub fn of_text(line: &str) -> Result<Self, String> {
        let mut record = Self::default();
        for word in line.split(' ') {
            let (name, value) = word.split_once('=').ok_or_else(|| format!("'{word}' in '{line}'"))?;
            record.add(name, value)?;
        }
        Ok(record)
    }

    /// A JSON object without objects or lists in it.
    pub fn of_json(line: &str) -> Result<Self, String> {
        let wrong = || format!("no flat JSON object: '{line}'");
        let inside = line.strip_prefix('{').and_then(|line| line.strip_suffix('}')).ok_or_else(wrong)?;
        let mut record = Self::default();
        for pair in inside.split(',') {
            let (name, value) = pair.split_once(':').ok_or_else(wrong)?;
            let name =
                name.trim().strip_prefix('"').and_then(|name| name.strip_suffix('"')).ok_or_else(wrong)?;
            let value = value.trim();
            let text = value.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
            let value = match (text, value) {
                (Some(text), _) => text,
                (None, "false") => "0",
                (None, "true") => "1",
                (None, _) if value.parse::<u64>().is_ok() => value,
                _ => return Err(format!("'{value}' is no JSON value in '{line}'")),
            };
            record.add(name, value)?;
        }
        Ok(record)
    }

    /// Fields as they are kept.
    pub fn of_fields(fields: &[(&'static str, String)]) -> Result<Self, String> {
        let mut record = Self::default();
        fields.iter().try_for_each(|(name, value)| record.add(name, value))?;
        Ok(record)
    }

    /// A field.
    pub fn find(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A field that must be there.
    pub fn word(&self, name: &str) -> Result<&str, String> {
        self.find(name).ok_or_else(|| format!("no {name}= in {self:?}"))
    }

    /// A number that must be there.
    pub fn get(&self, name: &str) -> Result<u64, String> {
        parse(self.word(name)?).ok_or_else(|| format!("{name}= is no number in {self:?}"))
    }

    /// Its number among all events.
    pub fn seq(&self) -> Result<u64, String> {
        self.get("seq")
    }

    /// Whether its fields are these, as far as they are named.
    pub fn has(&self, fields: &[(&'static str, String)]) -> bool {
        fields.iter().all(|(name, value)| self.find(name) == Some(value))
    }

    /// Fails unless its fields are these.
    pub fn check(&self, what: &str, fields: &[(&'static str, String)]) -> Result<(), String> {
        for (name, value) in fields {
            ensure!(self.find(name) == Some(value), "{what}: wanted {name}={value}, in {self:?}");
        }
        Ok(())
    }

    /// Fields that differ, or are in one only.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let names: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        let differ = names.into_iter().filter(|name| self.0.get(*name) != other.0.get(*name));
        differ.map(|name| format!("{name}: {:?} and {:?}", self.0.get(name), other.0.get(name))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_of_one_record_are_equal() {
        let text = Record::of_text("seq=12 kind=cr3 dir=to rip=0x0000000000001000 new=0x5 held=1").unwrap();
        let json = r#"{"seq":12,"kind":"cr3","dir":"to","rip":"0x1000","new":5,"held":true}"#;
        assert_eq!(Record::of_json(json).unwrap(), text);
        assert_eq!(text.get("rip").unwrap(), 0x1000);
        assert!(text.has(&[("kind", "cr3".to_owned()), ("new", number(5))]));
        assert!(!text.has(&[("old", number(5))]));
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for line in ["", "seq", "seq=1  vcpu=0", "seq=1 seq=2", "=5"] {
            assert!(Record::of_text(line).is_err(), "{line}");
        }
        for line in ["", "{}", "{\"seq\":}", "{seq:1}", "{\"seq\":1", "{\"a\":[1]}"] {
            assert!(Record::of_json(line).is_err(), "{line}");
        }
    }
}
