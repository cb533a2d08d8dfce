//! `mem.map`, as it is documented in docs/formats.md.

use std::ops::Range;

/// A line of `mem.map`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Region {
    /// The addresses.
    pub range: Range<u64>,
    /// `ram`, `rom` or `mmio`.
    pub kind: String,
    /// The file of the block behind it, and the offset there.
    pub block: Option<(String, u64)>,
}

/// A number as the mount writes it: 0x and digits.
pub fn hex(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").ok_or_else(|| format!("'{text}' does not begin with 0x"))?;
    u64::from_str_radix(digits, 16).map_err(|error| format!("'{text}': {error}"))
}

fn region(line: &str) -> Result<Region, String> {
    let mut words = line.split_whitespace();
    let (range, kind) = (words.next().unwrap_or(""), words.next().unwrap_or("").to_owned());
    let (start, end) = range.split_once('-').ok_or_else(|| format!("no range in '{line}'"))?;
    let block = match words.next() {
        None => None,
        Some(word) => {
            let (file, offset) = word.rsplit_once('@').ok_or_else(|| format!("no @ in '{word}'"))?;
            Some((file.to_owned(), hex(offset)?))
        }
    };
    ensure!(["ram", "rom", "mmio"].contains(&kind.as_str()), "'{kind}' is no kind: {line}");
    ensure!(words.next().is_none(), "more words than there should be: {line}");
    let range = hex(start)?..hex(end)?;
    ensure!(range.start < range.end, "an empty region: {line}");
    Ok(Region { range, kind, block })
}

/// All regions; they ascend and don't overlap.
pub fn parse(text: &str) -> Result<Vec<Region>, String> {
    let regions = text.lines().map(region).collect::<Result<Vec<_>, _>>()?;
    for pair in regions.windows(2) {
        let [low, high] = pair else { continue };
        ensure!(low.range.end <= high.range.start, "mem.map does not ascend: {low:x?}, {high:x?}");
    }
    Ok(regions)
}

impl Region {
    /// Its bytes.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether it is RAM.
    pub fn is_ram(&self) -> bool {
        self.kind == "ram"
    }
}

/// The runs of `regions` that hold data below `end`, each as long as it goes.
pub fn data(regions: &[Region], end: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for region in regions.iter().filter(|region| region.kind != "mmio" && region.range.start < end) {
        let range = region.range.start..region.range.end.min(end);
        match runs.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => runs.push(range),
        }
    }
    runs
}
