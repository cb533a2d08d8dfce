//! Reads a guest image: a statically linked ELF64 for x86-64, loaded to physical addresses.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use vmtree_api::{Error, ErrorKind, Result};

use crate::ram::Ram;
use crate::start;

const OP: &str = "load image";
/// The largest file that is read.
const LARGEST: u64 = 256 << 20;
/// The most program headers that are looked at.
const MOST_HEADERS: usize = 1024;
const PT_LOAD: u64 = 1;
/// The bytes of the ELF header.
const HEADER: usize = 64;

/// A piece of an image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Segment {
    /// Where it goes in physical memory.
    pub gpa: u64,
    /// Its bytes in the file.
    pub file: Range<usize>,
    /// Its length in memory; what the file does not give is zeros.
    pub bytes: u64,
}

/// What an image asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Image {
    /// Where every vCPU starts.
    pub entry: u64,
    /// What is loaded, in the file's order.
    pub segments: Vec<Segment>,
}

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::Invalid, OP, why))
}

/// The little-endian number of `bytes` bytes at `at`.
fn field(data: &[u8], at: usize, bytes: usize) -> Option<u64> {
    let field = data.get(at..at.checked_add(bytes)?)?;
    Some(field.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
}

/// Reads the headers of an ELF file (System V ABI, chapter 4 and 5). Looks at nothing outside `data`.
///
/// # Errors
/// [`ErrorKind::Invalid`]: what it is instead, or what is wrong with it.
pub fn parse(data: &[u8]) -> Result<Image> {
    if data.is_empty() {
        return refuse("the file is empty; an ELF64 executable for x86-64 is wanted");
    }
    if !data.starts_with(b"\x7fELF") {
        return refuse("the file is no ELF; an ELF64 executable for x86-64 is wanted");
    }
    let Some(header) = data.first_chunk::<HEADER>() else {
        return refuse("the file ends inside its ELF header");
    };
    let header = |at, bytes| field(header, at, bytes).unwrap_or(0);
    if header(4, 1) != 2 || header(5, 1) != 1 {
        return refuse("the file is no little-endian ELF64; build it for x86_64");
    }
    let (kind, machine) = (header(16, 2), header(18, 2));
    if machine != 62 {
        return refuse(format!("the file is for machine number {machine}, not for x86-64 (62)"));
    }
    if kind != 2 {
        return refuse(format!(
            "the file is of ELF type {kind}, not ET_EXEC (2); link it statically, without -pie"
        ));
    }
    let (entry, table, size, count) = (header(24, 8), header(32, 8), header(54, 2), header(56, 2));
    let count = count as usize;
    if count > MOST_HEADERS || count != 0 && size != 56 {
        return refuse(format!(
            "{count} program headers of {size} bytes are no sane table; 56 bytes each is right"
        ));
    }
    let segments = segments(data, table, count)?;
    if segments.is_empty() {
        return refuse("nothing is to be loaded: there is no PT_LOAD segment");
    }
    if !segments.iter().any(|segment| (segment.gpa..segment.gpa + segment.bytes).contains(&entry)) {
        return refuse(format!("the entry {entry:#x} lies in no segment"));
    }
    Ok(Image { entry, segments })
}

fn segments(data: &[u8], table: u64, count: usize) -> Result<Vec<Segment>> {
    let mut segments: Vec<Segment> = Vec::new();
    for index in 0..count {
        let at = usize::try_from(table).ok().and_then(|table| table.checked_add(index * 56));
        let read = |offset, bytes| field(data, at?.checked_add(offset)?, bytes);
        let (Some(kind), Some(offset), Some(gpa), Some(filled), Some(bytes)) =
            (read(0, 4), read(8, 8), read(24, 8), read(32, 8), read(40, 8))
        else {
            return refuse(format!("program header {index} lies past the end of the file"));
        };
        if kind != PT_LOAD || bytes == 0 {
            continue;
        }
        if filled > bytes {
            return refuse(format!("segment {index} has more bytes in the file than in memory"));
        }
        let file = usize::try_from(offset).ok().zip(usize::try_from(offset.saturating_add(filled)).ok());
        let Some((start, end)) = file.filter(|(_, end)| *end <= data.len()) else {
            return refuse(format!("segment {index} reaches past the end of the file"));
        };
        let Some(limit) = gpa.checked_add(bytes) else {
            return refuse(format!("segment {index} reaches past the end of the address space"));
        };
        let overlaps = |range: Range<u64>| gpa < range.end && range.start < limit;
        if overlaps(start::TABLES) {
            let Range { start, end } = start::TABLES;
            return refuse(format!("segment {index} lies over the start tables ({start:#x}-{end:#x})"));
        }
        if segments.iter().any(|other| overlaps(other.gpa..other.gpa + other.bytes)) {
            return refuse(format!("segment {index} lies over another one"));
        }
        segments.push(Segment { gpa, file: start..end, bytes });
    }
    Ok(segments)
}

/// Copies an image into RAM, which is all zeros.
///
/// # Errors
/// [`ErrorKind::Invalid`] for a segment outside RAM; nothing is copied then.
pub fn load(image: &Image, data: &[u8], ram: &Ram) -> Result<()> {
    for segment in &image.segments {
        if !ram.holds(segment.gpa, segment.bytes) {
            let end = segment.gpa.saturating_add(segment.bytes);
            let why = format!(
                "a segment at {:#x}-{end:#x} does not fit in RAM; give more by ram=SIZE",
                segment.gpa
            );
            return refuse(why);
        }
    }
    for segment in &image.segments {
        ram.store(segment.gpa, data.get(segment.file.clone()).unwrap_or_default());
    }
    Ok(())
}

/// Reads the file at `path`.
///
/// # Errors
/// The file can't be read, is none, or is too large.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let failed = |error: std::io::Error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            _ => ErrorKind::Io,
        };
        Error::new(kind, OP, format!("image={name} can't be read")).caused_by(error)
    };
    let about = std::fs::metadata(path).map_err(failed)?;
    if !about.is_file() {
        return refuse(format!("image={name} is no regular file"));
    }
    if about.len() > LARGEST {
        return refuse(format!("image={name} is larger than {} MiB", LARGEST >> 20));
    }
    let mut data = Vec::new();
    File::open(path).map_err(failed)?.take(LARGEST).read_to_end(&mut data).map_err(failed)?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An ELF with these program headers: type, offset, address, size in the file, size in memory.
    pub fn elf(entry: u64, headers: &[(u32, u64, u64, u64, u64)], body: &[u8]) -> Vec<u8> {
        let mut data = vec![0; 64];
        data[..6].copy_from_slice(b"\x7fELF\x02\x01");
        data[16..20].copy_from_slice(&[2, 0, 62, 0]);
        data[24..32].copy_from_slice(&entry.to_le_bytes());
        data[32] = 64;
        data[54] = 56;
        data[56] = headers.len() as u8;
        for (kind, offset, gpa, filled, bytes) in headers {
            data.extend(kind.to_le_bytes());
            data.extend(7_u32.to_le_bytes());
            for word in [offset, gpa, gpa, filled, bytes, &0x1000] {
                data.extend(word.to_le_bytes());
            }
        }
        data.resize(0x200, 0);
        data.extend(body);
        data
    }

    #[test]
    fn a_good_image_is_loaded_where_it_says() {
        let data = elf(0x10_0002, &[(1, 0x200, 0x10_0000, 4, 0x2000), (4, 0, 0, 0, 0)], b"code");
        let image = parse(&data).unwrap();
        assert_eq!(image.segments, [Segment { gpa: 0x10_0000, file: 0x200..0x204, bytes: 0x2000 }]);
        let ram = Ram::new(8 << 20).unwrap();
        load(&image, &data, &ram).unwrap();
        let mut back = [0; 5];
        assert!(ram.load(0x10_0000, &mut back));
        assert_eq!(&back, b"code\0");
    }

    #[test]
    fn each_lie_is_told_in_words() {
        let good = elf(0x10_0000, &[(1, 0x200, 0x10_0000, 4, 4)], b"code");
        let patched = |at: usize, bytes: &[u8]| {
            let mut data = good.clone();
            data[at..at + bytes.len()].copy_from_slice(bytes);
            data
        };
        let with = |header| elf(0x10_0000, &[header], b"code");
        let bad = [
            (Vec::new(), "empty"),
            (b"#!/bin/sh".to_vec(), "no ELF"),
            (good[..20].to_vec(), "ends inside"),
            (good[..60].to_vec(), "ends inside"),
            (good[..100].to_vec(), "past the end"),
            (patched(4, &[1]), "ELF64"),
            (patched(18, &[183]), "machine number 183"),
            (patched(16, &[3]), "-pie"),
            (patched(54, &[32]), "no sane table"),
            (patched(57, &[0xff]), "no sane table"),
            (patched(32, &[0xff; 8]), "past the end of the file"),
            (elf(0x10_0000, &[], b""), "no PT_LOAD"),
            (patched(24, &0x20_0000_u64.to_le_bytes()), "lies in no segment"),
            (with((1, 0x200, 0x10_0000, 5, 4)), "more bytes in the file"),
            (with((1, 0x200, 0x10_0000, 5, 5)), "past the end of the file"),
            (with((1, u64::MAX, 0x10_0000, 5, 5)), "past the end of the file"),
            (with((1, 0x200, u64::MAX, 4, 4)), "address space"),
            (with((1, 0x200, 0x7fff, 4, 4)), "start tables"),
            (
                elf(0x10_0000, &[(1, 0x200, 0x10_0000, 4, 4), (1, 0x200, 0x10_0003, 1, 1)], b"code"),
                "over another",
            ),
        ];
        for (data, told) in bad {
            let error = parse(&data).unwrap_err();
            assert!(error.to_string().contains(told), "{told}: {error}");
            assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn a_segment_outside_ram_is_refused_and_nothing_is_loaded() {
        let headers = [(1, 0x200, 0x10_0000, 4, 4), (1, 0x200, 0x5f_ffff, 2, 2)];
        let data = elf(0x10_0000, &headers, b"code");
        let ram = Ram::new(8 << 20).unwrap();
        let error = load(&parse(&data).unwrap(), &data, &ram).unwrap_err();
        assert!(error.to_string().contains("ram=SIZE"), "{error}");
        let mut back = [1; 4];
        ram.load(0x10_0000, &mut back);
        assert_eq!(back, [0; 4]);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        assert_eq!(read(Path::new("/nonexistent/guest.elf")).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(read(Path::new("/dev/zero")).unwrap_err().to_string().contains("no regular file"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(data: Vec<u8>, headed: bool) {
            let data = if headed { [&b"\x7fELF\x02\x01"[..], &data].concat() } else { data };
            let _ = parse(&data);
        }

        #[test]
        fn mutated_images_never_panic_and_what_is_accepted_loads(
            changes in proptest::collection::vec((0_usize..0x204, any::<u8>()), 0..8),
        ) {
            let mut data = elf(0x10_0000, &[(1, 0x200, 0x10_0000, 4, 0x1000), (1, 0x201, 0x20_0000, 2, 2)], b"code");
            for (at, value) in changes {
                data[at] = value;
            }
            if let Ok(image) = parse(&data) {
                let ram = Ram::new(8 << 20).unwrap();
                let _ = load(&image, &data, &ram);
            }
        }
    }
}
