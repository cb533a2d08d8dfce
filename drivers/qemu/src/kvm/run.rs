//! One instant of a vCPU out of the page that KVM shares.
//!
//! KVM writes the registers as the last thing before KVM_RUN returns to QEMU: `regs`, then `sregs`, then `events` with
//! its flags, which are never 0 (store_regs in Linux's arch/x86/kvm/x86.c). We set the flags to 0, kick the vCPU, and
//! copy as soon as they are set. KVM may write again only after QEMU has taken its lock, called KVM_RUN and the vCPU has
//! entered and left the guest, so a copy that ends soon enough is of one instant; a later one is thrown away.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vmtree_api::x86::bits::EFER_LMA;
use vmtree_api::x86::{Registers, Segment, Table};

use super::find::FIELDS;
use crate::sys::run::RunPage;

/// Places in `struct kvm_run` (linux/kvm.h), in words of 64 bits.
const VALID: usize = 288 / 8;
const REGS: usize = 304 / 8;
const SREGS: usize = REGS + 18;
/// `sipi_vector`, which is 0, and `flags`.
const DONE: usize = (304 + 144 + 312 + 16) / 8;

/// The words that are copied: `kvm_regs` and `kvm_sregs` up to `efer`.
const COPIED: usize = 18 + 24 + 4 + 6;

/// From the last look that saw nothing to the copy's end. Under load, when we lose the processor in between, it is longer.
const SOON: Duration = Duration::from_micros(2);

/// The time between two kicks of a vCPU that doesn't answer: two that come at once count as one.
const AGAIN: Duration = Duration::from_millis(2);

/// How long a vCPU is waited for without sleep: it may want the processor that we are on.
const SPIN: Duration = Duration::from_micros(200);

type Image = [u64; COPIED];

/// The page of a vCPU.
#[derive(Debug)]
pub struct Run {
    page: RunPage,
}

impl Run {
    /// That page.
    #[must_use]
    pub fn new(page: RunPage) -> Self {
        Self { page }
    }

    /// The registers at one instant after this call; `None` if the vCPU does not leave the guest by `kick` until
    /// `deadline`, or its registers are no whole.
    pub fn read(&self, kick: impl Fn() -> io::Result<()>, deadline: Instant) -> Option<Registers> {
        // Only for as long as we read: it costs the vCPU at each exit.
        let asked = Asked::new(&self.page.words()[VALID]);
        let image = instant(self.page.words(), kick, deadline);
        drop(asked);
        image.map(|image| registers(&image))
    }
}

/// KVM is asked to write the registers, until this is dropped.
struct Asked<'a>(&'a AtomicU64);

impl<'a> Asked<'a> {
    fn new(valid: &'a AtomicU64) -> Self {
        valid.store(u64::from(FIELDS), Ordering::SeqCst);
        Self(valid)
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

fn instant(words: &[AtomicU64], kick: impl Fn() -> io::Result<()>, deadline: Instant) -> Option<Image> {
    loop {
        words[DONE].store(0, Ordering::SeqCst);
        kick().ok()?;
        let asked = Instant::now();
        let (mut kicked, mut before) = (asked, asked);
        while words[DONE].load(Ordering::SeqCst) == 0 {
            before = Instant::now();
            if before > deadline {
                return None;
            }
            if before - kicked > AGAIN {
                kick().ok()?;
                kicked = before;
            }
            match before - asked > SPIN {
                // Seen late, it is asked for again: by then the vCPU has a processor.
                true => thread::sleep(SPIN),
                false => std::hint::spin_loop(),
            }
        }
        let (first, second) = (copy(words), copy(words));
        if before.elapsed() <= SOON && first == second {
            return Some(first);
        }
        if Instant::now() > deadline {
            return None;
        }
    }
}

fn copy(words: &[AtomicU64]) -> Image {
    let mut image = [0; COPIED];
    for (word, shared) in image.iter_mut().zip(&words[REGS..]) {
        *word = shared.load(Ordering::SeqCst);
    }
    image
}

fn registers(image: &Image) -> Registers {
    let mut regs = Registers::default();
    // kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8-r15 rip rflags, here by the processor's numbers.
    for (at, number) in [0, 3, 1, 2, 6, 7, 4, 5].into_iter().enumerate() {
        regs.gpr[number] = image[at];
    }
    regs.gpr[8..].copy_from_slice(&image[8..16]);
    (regs.rip, regs.rflags) = (image[16], image[17]);
    let at = |number: usize| segment(&image[SREGS - REGS + 3 * number..]);
    (regs.cs, regs.ds, regs.es, regs.fs) = (at(0), at(1), at(2), at(3));
    (regs.gs, regs.ss, regs.tr, regs.ldtr) = (at(4), at(5), at(6), at(7));
    let tables = &image[SREGS - REGS + 24..];
    regs.gdtr = Table { base: tables[0], limit: tables[1] as u16 };
    regs.idtr = Table { base: tables[2], limit: tables[3] as u16 };
    (regs.cr0, regs.cr2, regs.cr3, regs.cr4) = (tables[4], tables[5], tables[6], tables[7]);
    (regs.cr8, regs.efer) = (tables[8], tables[9]);
    if regs.efer & EFER_LMA == 0 || regs.cs.attr & 1 << 13 == 0 {
        narrow(&mut regs);
    }
    regs
}

/// kvm_segment: base, limit, selector, then a byte each of type, present, dpl, db, s, l, g, avl, unusable.
fn segment(words: &[u64]) -> Segment {
    let (second, third) = (words[1].to_le_bytes(), words[2].to_le_bytes());
    let bits = |value: u8, at: u32| u16::from(value) << at;
    let [present, dpl, db, s] = [second[7], third[0], third[1], third[2]];
    let [l, g, avl, unusable] = [third[3], third[4], third[5], third[6]];
    let present = if unusable == 0 { present } else { 0 };
    let attr = bits(second[6], 0) | bits(s, 4) | bits(dpl, 5) | bits(present, 7);
    Segment {
        selector: u16::from_le_bytes([second[4], second[5]]),
        base: words[0],
        limit: words[1] as u32,
        attr: attr | bits(avl, 12) | bits(l, 13) | bits(db, 14) | bits(g, 15),
    }
}

/// While a vCPU runs 16- or 32-bit code, QEMU's other ways show lower halves and no r8 to r15: the same register is the
/// same by each way.
fn narrow(regs: &mut Registers) {
    const LOW: u64 = 0xffff_ffff;
    regs.gpr[8..].fill(0);
    regs.gpr.iter_mut().for_each(|word| *word &= LOW);
    for word in [&mut regs.rip, &mut regs.gdtr.base, &mut regs.idtr.base] {
        *word &= LOW;
    }
    let Registers { es, cs, ss, ds, fs, gs, ldtr, tr, .. } = regs;
    for segment in [es, cs, ss, ds, fs, gs, ldtr, tr] {
        segment.base &= LOW;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page() -> Vec<AtomicU64> {
        (0..512).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn a_vcpu_that_answers_late_or_never_is_given_up_and_kicked_on() {
        let (words, kicks) = (page(), AtomicU64::new(0));
        let kick = || {
            kicks.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        assert_eq!(instant(&words, kick, Instant::now() + Duration::from_millis(20)), None);
        assert!((3..30).contains(&kicks.load(Ordering::SeqCst)), "{kicks:?}");
        let gone = || Err(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(instant(&words, gone, Instant::now() + Duration::from_secs(60)), None);
    }

    #[test]
    fn what_kvm_wrote_before_is_not_taken() {
        let words = page();
        words[REGS].store(1, Ordering::SeqCst);
        words[DONE].store(7 << 32, Ordering::SeqCst);
        let kick = || {
            words[REGS].store(2, Ordering::SeqCst);
            words[DONE].store(7 << 32, Ordering::SeqCst);
            Ok(())
        };
        let image = instant(&words, kick, Instant::now() + Duration::from_secs(10)).unwrap();
        assert_eq!(image[0], 2);
    }

    #[test]
    fn kvm_is_asked_only_while_we_read_also_when_reading_fails() {
        let valid = AtomicU64::new(0);
        let asked = Asked::new(&valid);
        assert_eq!(valid.load(Ordering::SeqCst), 7);
        drop(asked);
        assert_eq!(valid.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_segments_rights_are_those_of_its_descriptor() {
        // A busy TSS of 64 bits, and one that can't be used.
        let tss = [0xffff_8880_0039_1100, 0x8b_0030_0000_0067 | 1 << 56, 0];
        let expected = Segment { selector: 0x30, base: 0xffff_8880_0039_1100, limit: 0x67, attr: 0x8b };
        assert_eq!(segment(&[tss[0], 0x010b_0030_0000_0067, tss[2]]), expected);
        let code = [0, 0x010b_0008_ffff_ffff, 0x0000_0000_0101_0000 | 1 << 32];
        assert_eq!(segment(&code).attr, 0xa09b);
        assert_eq!(segment(&[0, 0x0100_0000_0000_0000, 1 << 48]).attr, 0);
    }

    proptest! {
        #[test]
        fn never_panics(words: Vec<u64>) {
            let mut image = [0; COPIED];
            image.iter_mut().zip(words).for_each(|(to, from)| *to = from);
            let _ = registers(&image);
        }
    }
}
