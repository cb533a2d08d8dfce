//! `info mtree -f`: the flat view of the physical address space.

use super::hex;

/// What QEMU calls a range (memory_region_type in system/memory.c).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RangeKind {
    /// `ram`, also non-volatile.
    Ram,
    /// `rom`, and `romd`: flash that reads as memory.
    Rom,
    /// `i/o`, and `ramd`: the memory of a device that is passed through.
    Device,
}

/// A line of the flat view.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Range {
    /// The first address.
    pub start: u64,
    /// The last address, included.
    pub last: u64,
    /// Its kind.
    pub kind: RangeKind,
    /// The name of its memory region.
    pub name: String,
    /// The offset of `start` in that memory region.
    pub offset: u64,
}

/// The ranges of the address space that vCPUs and devices see, in QEMU's order; `None` if `text` has none.
#[must_use]
pub fn parse(text: &str) -> Option<Vec<Range>> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| *line == "Root memory region: system")?;
    Some(lines.take_while(|line| !line.is_empty()).filter_map(range).collect())
}

/// `START-LAST (prio N, KIND): NAME[ @OFFSET][ ACCELERATOR]`
fn range(line: &str) -> Option<Range> {
    let (addresses, rest) = line.split_once(" (prio ")?;
    let (start, last) = addresses.split_once('-')?;
    let (start, last) = (hex(start)?, hex(last)?);
    let (rights, name) = rest.split_once("): ")?;
    let (_, kind) = rights.split_once(", ")?;
    let kind = match kind.strip_prefix("nv-").unwrap_or(kind) {
        "ram" => RangeKind::Ram,
        "rom" | "romd" => RangeKind::Rom,
        _ => RangeKind::Device,
    };
    let (name, offset) = name_and_offset(name)?;
    (start <= last).then(|| Range { start, last, kind, name: name.to_owned(), offset })
}

/// A name may hold blanks. Behind it stand the offset, unless it is 0, and the accelerators that map the range.
fn name_and_offset(text: &str) -> Option<(&str, u64)> {
    if let Some((name, rest)) = text.rsplit_once(" @") {
        let digits = rest.split(' ').next().unwrap_or(rest);
        return Some((name, hex(digits)?));
    }
    let accelerators = [" KVM", " HVF", " MSHV", " NVMM", " WHPX"];
    let name = accelerators.iter().find_map(|suffix| text.strip_suffix(suffix)).unwrap_or(text);
    Some((name, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// QEMU 7.2, shortened.
    const TEXT: &str = "FlatView #0\r\n AS \"I/O\", root: io\r\n Root memory region: io\r\n  \
        0000000000000000-0000000000000007 (prio 0, i/o): dma-chan\r\n\r\nFlatView #1\r\n AS \"memory\", root: system\r\n \
        Root memory region: system\r\n  \
        0000000000000000-000000000009ffff (prio 0, ram): m0 KVM\r\n  \
        00000000000f0000-00000000000fffff (prio 0, rom): m0 @00000000000f0000 KVM\r\n  \
        00000000febf0400-00000000febf041f (prio 0, i/o): vga ioports remapped\r\n  \
        00000000ffc00000-00000000ffffffff (prio 0, romd): system.flash0\r\n  \
        0000000100000000-000000013fffffff (prio 0, nv-ram): d1 @0000000000001000\r\n\r\n\
        FlatView #2\r\n Root memory region: memory\r\n  \
        0000000000000000-00000000000bffff (prio 0, ram): pc.ram\r\n";

    #[test]
    fn reads_the_block_of_system_memory_alone() {
        let range = |start, last, kind, name: &str, offset| Range {
            start,
            last,
            kind,
            name: name.to_owned(),
            offset,
        };
        assert_eq!(
            parse(TEXT).unwrap(),
            [
                range(0, 0x9_ffff, RangeKind::Ram, "m0", 0),
                range(0xf_0000, 0xf_ffff, RangeKind::Rom, "m0", 0xf_0000),
                range(0xfebf_0400, 0xfebf_041f, RangeKind::Device, "vga ioports remapped", 0),
                range(0xffc0_0000, 0xffff_ffff, RangeKind::Rom, "system.flash0", 0),
                range(0x1_0000_0000, 0x1_3fff_ffff, RangeKind::Ram, "d1", 0x1000),
            ]
        );
    }

    #[test]
    fn no_system_memory_is_none() {
        assert_eq!(parse(""), None);
        assert_eq!(parse("Root memory region: io\n 0-1 (prio 0, ram): x\n"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text: String, line in "[-0-9a-f @():,a-z]{0,80}") {
            let _ = parse(&text);
            let _ = parse(&format!("Root memory region: system\n{line}\n{text}"));
        }

        #[test]
        fn reads_back_a_line(start: u64, bytes: u64, offset in 1u64.., name in "[a-z./][a-z./ -]{0,20}[a-z]") {
            let last = start.saturating_add(bytes);
            let text = format!("Root memory region: system\n  {start:016x}-{last:016x} (prio 0, ram): {name} @{offset:016x}\n");
            let kind = RangeKind::Ram;
            prop_assert_eq!(parse(&text).unwrap(), [Range { start, last, kind, name, offset }]);
        }
    }
}
