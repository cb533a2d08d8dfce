//! Values over ranges of numbers: memory for the ranges, not for what is in them.

use std::collections::BTreeMap;
use std::ops::Range;

/// A value over each of some ranges that neither overlap nor, where their values are equal, touch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Intervals<T>(BTreeMap<u64, (u64, T)>);

impl<T> Default for Intervals<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Copy + Eq> Intervals<T> {
    /// The ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (Range<u64>, T)> {
        self.0.iter().map(|(start, (end, value))| (*start..*end, *value))
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The value at a number.
    pub fn get(&self, at: u64) -> Option<T> {
        let (_, (end, value)) = self.0.range(..=at).next_back()?;
        (at < *end).then_some(*value)
    }

    /// Replaces all values over `range` by what `change` makes of them; `None` is no value.
    pub fn update(&mut self, range: Range<u64>, change: impl Fn(Option<T>) -> Option<T>) {
        if range.is_empty() {
            return;
        }
        let mut at = range.start;
        for (part, value) in self.cut(&range) {
            self.put(at..part.start, change(None));
            at = part.end;
            self.put(part, change(Some(value)));
        }
        self.put(at..range.end, change(None));
        // What lies behind may continue the last value.
        if let Some((end, value)) = self.0.remove(&range.end) {
            self.put(range.end..end, Some(value));
        }
    }

    /// Takes out what lies within `range`, splitting at its ends.
    fn cut(&mut self, range: &Range<u64>) -> Vec<(Range<u64>, T)> {
        let before = self.0.range(..range.start).next_back();
        let first =
            before.filter(|(_, (end, _))| *end > range.start).map_or(range.start, |(start, _)| *start);
        let starts: Vec<u64> = self.0.range(first..range.end).map(|(start, _)| *start).collect();
        let mut parts = Vec::with_capacity(starts.len());
        for start in starts {
            let Some((end, value)) = self.0.remove(&start) else { continue };
            if start < range.start {
                self.0.insert(start, (range.start, value));
            }
            if end > range.end {
                self.0.insert(range.end, (end, value));
            }
            parts.push((start.max(range.start)..end.min(range.end), value));
        }
        parts
    }

    /// Adds a value over a range that has none, behind all ranges that it might continue.
    fn put(&mut self, range: Range<u64>, value: Option<T>) {
        let (false, Some(value)) = (range.is_empty(), value) else { return };
        if let Some((_, (end, before))) = self.0.range_mut(..range.start).next_back()
            && *end == range.start
            && *before == value
        {
            *end = range.end;
            return;
        }
        self.0.insert(range.start, (range.end, value));
    }
}
