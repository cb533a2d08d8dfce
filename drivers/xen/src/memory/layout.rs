//! Where the domain's memory lies: what Xen has at each frame, and the devices that it plays itself.

use std::collections::VecDeque;
use std::io::Result;
use std::ops::Range;

use vmtree_api::{Gpa, PAGE_SIZE, Region, RegionKind};

use crate::hypervisor::Frames;

/// Frames that are asked for at once.
const STEP: u64 = 1024;
/// Xen's toolstack puts pages of its own below 4 GiB, far above the guest's memory (tools/libs/guest).
const SPECIAL: Range<u64> = 0xf_c000..0x10_0000;

/// Devices that Xen plays (XEN_X86_EMU_*), and where their registers lie: VGA, I/O APIC, HPET, local APIC.
const DEVICES: &[(u32, Range<u64>)] = &[
    (1 << 6, 0xa_0000..0xc_0000),
    (1 << 4, 0xfec0_0000..0xfec0_1000),
    (1 << 1, 0xfed0_0000..0xfed0_1000),
    (1, 0xfee0_0000..0xfee0_1000),
];

/// Pages of a domain that lie at none of its frames, at most: event rings, what device models share.
const ELSEWHERE: u64 = 256;

/// How far a range is looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Look {
    /// All of it.
    Whole,
    /// Up to where nothing is any more; the rest later.
    ToHole,
    /// That rest.
    Hole,
}

/// The runs of frames up to `highest`, or of those that the guest itself tells of, that have memory. What most likely has memory is looked at first, and a large hole only
/// where many of the domain's pages are still to be found.
///
/// # Errors
/// As Xen says.
pub fn scan(frames: &dyn Frames, highest: u64, pages: u64) -> Result<Vec<Range<u64>>> {
    let end = highest.saturating_add(1);
    let cut = |range: Range<u64>| range.start.min(end)..range.end.min(end);
    let mut parts = match frames.told()? {
        Some(end) => VecDeque::from([(0..end, Look::Whole)]),
        None => VecDeque::from([
            (cut(0..SPECIAL.start), Look::ToHole),
            (cut(SPECIAL), Look::Whole),
            (cut(SPECIAL.end..end), Look::ToHole),
        ]),
    };
    let mut found = Vec::new();
    let mut left = pages;
    while let Some((part, look)) = parts.pop_front() {
        let enough = if look == Look::Hole { ELSEWHERE } else { 0 };
        let mut first = part.start;
        while first < part.end && left > enough {
            let asked: Vec<u64> = (first..part.end.min(first + STEP)).collect();
            let mut there = vec![false; asked.len()];
            frames.present(&asked, &mut there)?;
            for (frame, _) in asked.iter().zip(&there).filter(|(_, there)| **there) {
                add(&mut found, *frame);
                left = left.saturating_sub(1);
            }
            first += there.len() as u64;
            if look == Look::ToHole && !there.contains(&true) {
                parts.push_back((first..part.end, Look::Hole));
                break;
            }
        }
    }
    found.sort_by_key(|run| run.start);
    Ok(join(found))
}

fn add(found: &mut Vec<Range<u64>>, frame: u64) {
    match found.last_mut() {
        Some(last) if last.end == frame => last.end = frame + 1,
        _ => found.push(frame..frame + 1),
    }
}

/// Runs that touch become one.
fn join(runs: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => joined.push(run),
        }
    }
    joined
}

/// The regions of a map: memory at these frames but for `ours`, which the guest knows nothing of, and devices.
#[must_use]
pub fn regions(runs: &[Range<u64>], ours: &[u64], devices: u32) -> Vec<Region> {
    let region =
        |range: Range<u64>, kind| Region { start: Gpa(range.start), end: Gpa(range.end), kind, block: None };
    let played = DEVICES.iter().filter(|(device, _)| devices & device != 0);
    let mut regions: Vec<Region> = played.map(|(_, range)| region(range.clone(), RegionKind::Mmio)).collect();
    for run in runs {
        let mut start = run.start;
        let mut inside: Vec<u64> = ours.iter().copied().filter(|frame| run.contains(frame)).collect();
        inside.sort_unstable();
        for end in inside.into_iter().chain([run.end]) {
            if start < end {
                regions.push(region(start * PAGE_SIZE..end * PAGE_SIZE, RegionKind::Ram));
            }
            start = end + 1;
        }
    }
    regions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::Mapped;
    use proptest::prelude::*;
    use std::sync::Mutex;

    /// Frames with memory, and how many were asked for.
    struct Set(Vec<Range<u64>>, Mutex<u64>);

    impl Frames for Set {
        fn map(&self, _frames: &[u64]) -> Result<(Box<dyn Mapped>, Vec<bool>)> {
            Err(std::io::Error::other("nothing is mapped here"))
        }

        fn map_to_write(&self, frames: &[u64]) -> Result<(Box<dyn Mapped>, Vec<bool>)> {
            self.map(frames)
        }

        fn alive(&self) -> bool {
            true
        }

        fn present(&self, frames: &[u64], there: &mut [bool]) -> Result<()> {
            *self.1.lock().unwrap() += there.len() as u64;
            for (frame, there) in frames.iter().zip(there) {
                *there = self.0.iter().any(|run| run.contains(frame));
            }
            Ok(())
        }

        fn told(&self) -> Result<Option<u64>> {
            Ok(None)
        }
    }

    fn pages(runs: &[Range<u64>]) -> u64 {
        runs.iter().map(|run| run.end - run.start).sum()
    }

    #[test]
    fn a_small_guest_is_found_without_its_hole() {
        let runs = vec![0..0x4000, 0xf_c000..0xf_c001, 0xf_eff8..0xf_f000];
        let set = Set(runs.clone(), Mutex::default());
        assert_eq!(scan(&set, 0xf_efff, pages(&runs)).unwrap(), runs);
        assert!(*set.1.lock().unwrap() < 0x9000);
        // Nor for a page that is nowhere to be found.
        assert_eq!(scan(&set, 0xf_efff, pages(&runs) + 1).unwrap(), runs);
        assert!(*set.1.lock().unwrap() < 0x12000);
    }

    proptest! {
        #[test]
        fn all_runs_are_found(gaps in proptest::collection::vec((1_u64..1500, 1_u64..1500), 1..5), high: bool) {
            let mut at = if high { 0x10_0000 } else { 0 };
            let mut runs = Vec::new();
            for (gap, length) in gaps {
                runs.push(at + gap..at + gap + length);
                at += gap + length;
            }
            let set = Set(runs.clone(), Mutex::default());
            let found = scan(&set, at, pages(&runs)).unwrap();
            // Some pages behind a hole may be missed, and nothing else.
            prop_assert!(pages(&runs) - pages(&found) <= ELSEWHERE);
            prop_assert!(found.iter().all(|run| runs.iter().any(|all| all.start == run.start && run.end <= all.end)));
            prop_assert_eq!(scan(&set, at, pages(&runs) + 2 * ELSEWHERE).unwrap(), runs);
        }

        #[test]
        fn regions_are_the_runs_without_ours(ours in proptest::collection::vec(0_u64..40, 0..10)) {
            let regions = regions(&[3..10, 20..31], &ours, 0);
            for frame in 0..40_u64 {
                let inside = regions.iter().any(|region| region.start.0 <= frame << 12 && frame << 12 < region.end.0);
                let wanted = ((3..10).contains(&frame) || (20..31).contains(&frame)) && !ours.contains(&frame);
                prop_assert_eq!(inside, wanted, "frame {}", frame);
            }
        }
    }

    #[test]
    fn devices_are_those_that_xen_plays() {
        let regions = regions(&[0..0x10, 0x20..0x30], &[], 1);
        let device = regions.iter().find(|region| region.kind == RegionKind::Mmio).unwrap();
        assert_eq!((device.start, regions.len()), (Gpa(0xfee0_0000), 3));
    }
}
