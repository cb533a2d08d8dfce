//! `info ramblock`: the containers of host memory behind RAM and ROM.

use super::hex;

/// A RAMBlock.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RamBlock {
    /// Its id: the name of its memory region, behind the path of the device that owns it, if one does.
    pub id: String,
    /// How much of it is used, in bytes.
    pub used: u64,
    /// Its host-virtual address; QEMU shows it since 8.0.
    pub hva: Option<u64>,
}

impl RamBlock {
    /// Whether it belongs to the memory region `name`.
    #[must_use]
    pub fn is_of(&self, name: &str) -> bool {
        self.id == name || self.id.strip_suffix(name).is_some_and(|owner| owner.ends_with('/'))
    }
}

/// The blocks in QEMU's order. A line is `NAME PSIZE OFFSET USED TOTAL[ HVA RIGHTS]`.
#[must_use]
pub fn parse(text: &str) -> Vec<RamBlock> {
    text.lines().filter_map(block).collect()
}

fn block(line: &str) -> Option<RamBlock> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let first = words.iter().position(|word| word.starts_with("0x"))?;
    // The page size is two words: `4 KiB`.
    let id = words.get(..first.checked_sub(2)?)?.join(" ");
    let used = hex(words.get(first + 1)?)?;
    (!id.is_empty()).then_some(RamBlock { id, used, hva: words.get(first + 3).and_then(|word| hex(word)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_old_and_new_columns() {
        let text = "              Block Name    PSize              Offset               Used              Total\r\n\
            \x20                 pc.ram    4 KiB  0x0000000000000000 0x0000000020000000 0x0000000020000000\r\n\
            \x20  0000:00:02.0/vga.vram    2 MiB  0x0000000020080000 0x0000000001000000 0x0000000002000000 0x00007f1 rw\r\n";
        let block = |id: &str, used, hva| RamBlock { id: id.to_owned(), used, hva };
        let vram = block("0000:00:02.0/vga.vram", 0x100_0000, Some(0x7f1));
        assert_eq!(parse(text), [block("pc.ram", 0x2000_0000, None), vram]);
    }

    #[test]
    fn a_block_belongs_to_its_region_with_or_without_an_owner() {
        let block = |id: &str| RamBlock { id: id.to_owned(), used: 1, hva: None };
        assert!(block("vga.vram").is_of("vga.vram") && block("0000:00:02.0/vga.vram").is_of("vga.vram"));
        assert!(!block("my-vga.vram").is_of("vga.vram"));
    }

    proptest! {
        #[test]
        fn never_panics(text: String, line in "[ 0-9a-fxKMiB]{0,80}") {
            let _ = parse(&text);
            let _ = parse(&line);
        }
    }
}
