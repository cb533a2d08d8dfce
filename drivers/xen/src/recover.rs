//! What a killed daemon of ours left behind: its ring with vCPUs that wait in it, views, rights, pages, pauses.

use std::ops::Range;

use vmtree_api::undo::entry;
use vmtree_api::x86::Reg;
use vmtree_api::{RegValue, Result};

use crate::again::again;
use crate::error::{is, number, refused};
use crate::events::answers::out::Out;
use crate::events::wire::{Response, flag};
use crate::hypervisor::Hypervisor;
use crate::injection::wake_halted;
use crate::registers::records::{Records, kind};
use crate::registers::{convert, msrs};
use crate::views::rules::ALL;
use crate::world::note;

const OP: &str = "recover";

/// A write that a vCPU was held at, which Xen forgets with the ring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Write {
    vcpu: u32,
    what: What,
    value: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum What {
    Register(Reg),
    Msr(u32),
}

/// The number of the domain that a note is of.
#[must_use]
pub fn domid(text: &str) -> Option<u32> {
    let names = [note::PAUSED, note::STILL, note::RING, note::VIEWS, note::PAGES, note::RIGHTS];
    names.iter().find_map(|name| entry(text, name)?.split(' ').next()?.parse().ok())
}

/// An entry without the domain's number.
fn noted<'a>(text: &'a str, name: &str) -> Option<Vec<&'a str>> {
    Some(entry(text, name)?.split(' ').skip(1).collect())
}

fn numbers(words: &[&str]) -> Vec<u64> {
    words.iter().filter_map(|word| word.parse().ok()).collect()
}

/// `1:cr3=0x1000` or `0:0xc0000082=0x1000`.
fn write(word: &str) -> Option<Write> {
    let (vcpu, rest) = word.split_once(':')?;
    let (what, value) = rest.split_once('=')?;
    let what = match what {
        "cr0" => What::Register(Reg::Cr0),
        "cr3" => What::Register(Reg::Cr3),
        "cr4" => What::Register(Reg::Cr4),
        index => What::Msr(vmtree_api::number::parse_bits(index, 32).ok()? as u32),
    };
    Some(Write { vcpu: vcpu.parse().ok()?, what, value: vmtree_api::number::parse(value).ok()? })
}

/// Undoes what a note tells of; what is undone already stays so.
///
/// # Errors
/// Xen could not be told. All else is undone.
pub fn undo(xen: &mut dyn Hypervisor, text: &str) -> Result<()> {
    let told = |error| refused(OP, "Xen does not tell of the domain", error);
    let Some(info) = xen.info().map_err(told)?.filter(|info| !info.dying) else { return Ok(()) };
    let mut result = Ok(());
    let mut done = |what: &str, outcome: std::io::Result<()>| match outcome {
        Err(error) if !is(&error, number::EINVAL) && result.is_ok() => result = Err(refused(OP, what, error)),
        _ => {}
    };
    // Until all is as it was.
    done("the domain can't be paused", again(|| xen.pause()));
    match noted(text, note::VIEWS).as_deref().and_then(<[&str]>::first) {
        Some(&"on") => done("alternate views stay on", again(|| xen.set_views(false))),
        // As it was when we came.
        Some(_) => done("vCPUs stay on an alternate view", again(|| xen.switch(0))),
        None => {}
    }
    let rights = match noted(text, note::RIGHTS).map(|words| numbers(&words)).as_deref() {
        Some([start, end]) => *start..*end,
        _ => 0..0,
    };
    if let Some(words) = noted(text, note::RING) {
        let writes: Vec<Write> = words.iter().filter_map(|word| write(word)).collect();
        let outs: Vec<Out> = words.iter().filter_map(|word| word.parse().ok()).collect();
        done("the event ring stays taken", free_ring(xen, info.vcpus, &writes, &outs, rights));
    }
    if let Some([first, count, max]) = noted(text, note::PAGES).map(|words| numbers(&words)).as_deref() {
        let frames: Vec<u64> = (*first..first.saturating_add((*count).min(1 << 20))).collect();
        done("our pages stay in the domain", again(|| xen.remove(&frames)));
        done("the domain may have more pages than before", again(|| xen.set_max(*max)));
    }
    for vcpu in numbers(&noted(text, note::STILL).unwrap_or_default()) {
        done("a vCPU stays paused", again(|| xen.unpause_vcpu(vcpu as u32)));
    }
    done("the domain stays paused", again(|| xen.unpause()));
    let pauses = numbers(&noted(text, note::PAUSED).unwrap_or_default()).first().copied().unwrap_or(0);
    for _ in 0..pauses.min(256) {
        done("the domain stays paused", again(|| xen.unpause()));
    }
    result
}

/// Frees the ring of a dead process, and the vCPUs that wait in it; the domain is paused. The writes are done that they
/// were held at, those at an OUT of another value get their RAX back, and these frames get all rights, which takes a ring too.
///
/// # Errors
/// As Xen says.
pub fn free_ring(
    xen: &mut dyn Hypervisor,
    vcpus: u32,
    writes: &[Write],
    outs: &[Out],
    rights: Range<u64>,
) -> std::io::Result<()> {
    match again(|| xen.give_back()) {
        Err(error) if !is(&error, number::EINVAL) => return Err(error),
        _ => {}
    }
    for vcpu in 0..vcpus {
        // Where it is off already that is no error.
        let _ = again(|| xen.single_step(vcpu, false));
        if let Err(error) = wake_halted(&*xen, vcpu) {
            log::warn!("vCPU {vcpu} may have lost its timer: {error}");
        }
    }
    for write in writes {
        if let Err(error) = put(xen, write) {
            log::error!("a write of vCPU {} is lost: {error}", write.vcpu);
        }
    }
    for out in outs {
        if let Err(error) = out.end(xen) {
            log::error!("RAX of vCPU {} is lost: {error}", out.vcpu);
        }
    }
    // Xen counts who waits by vCPU: an answer in any ring lets them go.
    again(|| xen.take())?;
    if let Err(error) = again(|| xen.set_access(0, rights.clone(), ALL)) {
        log::error!("frames stay without rights: {error}");
    }
    for vcpu in 0..vcpus {
        let response = Response { flags: flag::VCPU_PAUSED, vcpu, ..Response::default() }.slot();
        again(|| xen.respond(&response))?;
    }
    again(|| xen.give_back())
}

fn put(xen: &dyn Hypervisor, write: &Write) -> Result<()> {
    let failed = |error| refused(OP, "Xen does not take the vCPU's state", error);
    let mut records = Records::parse(xen.load().map_err(failed)?)?;
    let kinds = match write.what {
        What::Register(reg) => {
            convert::set(&mut records, write.vcpu, reg, RegValue::Word(write.value & !(1 << 63)));
            vec![kind::CPU]
        }
        What::Msr(index) => match msrs::set(&mut records, write.vcpu, index, write.value) {
            Some(msrs::Write::Register(reg, value)) => {
                convert::set(&mut records, write.vcpu, reg, value);
                vec![convert::record(convert::place(reg))]
            }
            Some(msrs::Write::Record(kind)) => vec![kind],
            None => Vec::new(),
        },
    };
    xen.store(&records.part(write.vcpu, &kinds)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn notes_are_read() {
        let text = "paused 7 1\nring 7 ours 0:cr3=0x1000 1:0xc0000082=0x2\nstill 7 1 2\n";
        assert_eq!(domid(text), Some(7));
        assert_eq!(numbers(&noted(text, note::STILL).unwrap()), [1, 2]);
        let writes: Vec<Write> =
            noted(text, note::RING).unwrap().iter().filter_map(|word| write(word)).collect();
        let cr3 = Write { vcpu: 0, what: What::Register(Reg::Cr3), value: 0x1000 };
        let lstar = Write { vcpu: 1, what: What::Msr(0xc000_0082), value: 2 };
        assert_eq!(writes, [cr3, lstar]);
        let out = Out { vcpu: 1, at: 0x1000, past: 0x1001, rsp: 0x8000, value: 7, rax: 9 };
        assert_eq!((out.to_string().parse(), write(&out.to_string())), (Ok(out), None));
        assert_eq!((domid(""), noted("", note::RING)), (None, None));
    }

    proptest! {
        #[test]
        fn any_note_is_read(text: String, word: String) {
            let _ = (domid(&text), noted(&text, note::RING), write(&word), word.parse::<Out>());
        }
    }
}
