//! What a PV guest keeps: the page that it shares with Xen, the tables that its frames are found by, and a vCPU's context.

#![no_main]

use std::io::{Error, Result};
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vmtree_api::RegValue;
use vmtree_api::x86::Reg;
use vmtree_xen::hypervisor::{Frames, Mapped};
use vmtree_xen::pv::frames::PvFrames;
use vmtree_xen::pv::root::FIELDS;
use vmtree_xen::pv::{context, segments};

const PAGES: usize = 8;
const PAGE: usize = 4096;

/// A machine of a few frames, of which the first is shared.
struct Machine(Arc<Vec<[u8; PAGE]>>);

struct Pages(Arc<Vec<[u8; PAGE]>>, Vec<u64>);

impl Mapped for Pages {
    fn read(&self, page: usize, offset: usize, buf: &mut [u8]) {
        buf.copy_from_slice(&self.0[self.1[page] as usize][offset..][..buf.len()]);
    }

    fn write(&self, _page: usize, _offset: usize, _data: &[u8]) {}

    fn moved(&self, _page: usize) -> bool {
        false
    }

    fn machine(&self, _page: usize) -> Option<u64> {
        None
    }
}

impl Frames for Machine {
    fn map(&self, frames: &[u64]) -> Result<(Box<dyn Mapped>, Vec<bool>)> {
        let there = frames.iter().map(|frame| *frame < PAGES as u64).collect();
        Ok((Box::new(Pages(Arc::clone(&self.0), frames.to_vec())), there))
    }

    fn map_to_write(&self, frames: &[u64]) -> Result<(Box<dyn Mapped>, Vec<bool>)> {
        self.map(frames)
    }

    fn present(&self, frames: &[u64], there: &mut [bool]) -> Result<()> {
        frames.iter().zip(there).for_each(|(frame, there)| *there = *frame < PAGES as u64);
        Ok(())
    }

    fn alive(&self) -> bool {
        true
    }

    fn told(&self) -> Result<Option<u64>> {
        Err(Error::other("not asked"))
    }
}

// Six fields of the shared page, then words: a byte for the page, two for the place in it, eight for the value.
fuzz_target!(|data: &[u8]| {
    let Some((fields, words)) = data.split_at_checked(48) else { return };
    let mut pages = vec![[0; PAGE]; PAGES];
    pages[0][FIELDS..FIELDS + 48].copy_from_slice(fields);
    for word in words.chunks_exact(11) {
        let index = usize::from(u16::from_le_bytes([word[1], word[2]])) % (PAGE / 8);
        pages[usize::from(word[0]) % PAGES][index * 8..][..8].copy_from_slice(&word[3..]);
    }
    let frames = PvFrames::new(Arc::new(Machine(Arc::new(pages))), 0);
    let asked: Vec<u64> = (0..600).chain([1 << 18, 1 << 27, u64::MAX]).collect();
    let mut there = vec![false; asked.len()];
    let _ = (frames.told(), frames.present(&asked, &mut there));
    if let Ok((mapped, found)) = frames.map(&asked) {
        assert_eq!(found, there);
        for (page, _) in found.iter().enumerate().filter(|(_, found)| **found) {
            assert!(mapped.machine(page).is_some_and(|machine| machine < PAGES as u64) && !mapped.moved(page));
            mapped.read(page, PAGE - 8, &mut [0; 8]);
        }
    }
    let mut context = data.to_vec();
    let regs = context::all(&context);
    let _ = (context::descriptor(&context, regs.cs.selector), segments::segment(regs.cs.selector, regs.cr3));
    context::set(&mut context, Reg::Rip, RegValue::Word(regs.rip));
});
