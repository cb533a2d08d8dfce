//! The page walk through the vCPU's view: entries, A and D, and the SLAT permissions of all that is touched.

use vmtree_api::events::Detail;
use vmtree_api::x86::{Fault, PagingMode, Walk, walk};
use vmtree_api::{Gpa, Gva};

use super::bits::canonical;
use super::grants::{Answer, Asked, Asker, Key};
use super::linear::Linear;
use super::mmu::{Slot, Use, Want, error_code, permitted};
use super::{Cpu, Exception};

const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const GLOBAL: u64 = 1 << 8;

/// In a place: it is no place, but the number of the grant that has the data.
pub const GRANTED: u64 = 1 << 62;

/// An access to be made.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// The linear address.
    pub address: u64,
    /// How many bytes, inside one page.
    pub bytes: usize,
    /// What for.
    pub want: Want,
}

/// A touch of physical memory.
#[derive(Clone, Copy, Debug)]
struct Touch {
    gpa: u64,
    what: Use,
    walk: bool,
    bytes: usize,
}

/// What SLAT makes of a touch.
struct Touched {
    place: u64,
    answer: Answer,
    /// Whether it needed no permission.
    free: bool,
}

impl Linear<'_> {
    /// Walks the tables for an address that the TLB has not, or not for this.
    ///
    /// # Errors
    /// #PF, #GP for an address that is not canonical, or [`Exception::STOPPED`].
    #[cold]
    pub fn walk(&mut self, cpu: &Cpu, attempt: Attempt) -> Result<u64, Exception> {
        let Attempt { address, want, .. } = attempt;
        if !canonical(address) {
            return Err(Exception::protection(0));
        }
        let mut clean = true;
        let found = self.tables(cpu, attempt, &mut clean)?;
        let error = error_code(&cpu.regs, want.paging, want.mode);
        let found = match found {
            Ok(found) => found,
            Err(Fault::NonCanonical) => return Err(Exception::protection(0)),
            Err(Fault::NotPresent(_)) => return Err(Exception::page(address, error)),
            Err(Fault::Reserved(_)) => return Err(Exception::page(address, error | 0b1001)),
        };
        let rights = Use::bits(found.rights);
        if !permitted(&cpu.regs, (rights, found.user), want) {
            return Err(Exception::page(address, error | 1));
        }
        let (dirty, global) = self.set_used(cpu, attempt, &found, &mut clean)?;
        let spot = self.world.slat.spot(self.trap.view, found.gpa.0);
        if clean && !self.trap.careful {
            let user = found.user;
            let page = address & !0xfff;
            self.tlb.insert(Slot {
                page,
                frame: spot.frame,
                rights,
                slat: Use::bits(spot.rights),
                user,
                dirty,
                global,
            });
        }
        let touch = Touch { gpa: found.gpa.0, what: want.slat, walk: false, bytes: attempt.bytes };
        let touched = self.touch(cpu, attempt, touch)?;
        match touched.answer {
            Answer::Drop | Answer::Data(_) => Ok(self.granted(touch.key(), touched.place)),
            Answer::Pass | Answer::Raise(_) => Ok(touched.place),
        }
    }

    fn tables(
        &mut self,
        cpu: &Cpu,
        attempt: Attempt,
        clean: &mut bool,
    ) -> Result<Result<Walk, Fault>, Exception> {
        walk(&PagingMode::from(&cpu.regs), Gva(attempt.address), |gpa| {
            let touch = Touch { gpa: gpa.0, what: Use::Read, walk: true, bytes: 8 };
            let touched = self.touch(cpu, attempt, touch)?;
            *clean &= touched.free;
            Ok(match touched.answer {
                Answer::Data(value) => value as u64,
                _ => self.world.entry(self.vcpu, touched.place),
            })
        })
    }

    /// Sets A in all entries, and D in the last one for a write. Tells D and G of that one.
    fn set_used(
        &mut self,
        cpu: &Cpu,
        attempt: Attempt,
        found: &Walk,
        clean: &mut bool,
    ) -> Result<(bool, bool), Exception> {
        let leaf = found.entries().len().saturating_sub(1);
        let mut last = (false, false);
        for (index, entry) in found.entries().iter().enumerate() {
            let wants_dirty = index == leaf && attempt.want.paging == Use::Write;
            let bits = if wants_dirty { ACCESSED | DIRTY } else { ACCESSED };
            if entry.value & bits != bits {
                let touch = Touch { gpa: entry.gpa.0, what: Use::Write, walk: true, bytes: 8 };
                let touched = self.touch(cpu, attempt, touch)?;
                *clean &= touched.free;
                match touched.answer {
                    Answer::Data(value) => {
                        self.world.write(self.vcpu, touched.place, &(value as u64).to_le_bytes());
                    }
                    Answer::Drop => {}
                    Answer::Pass | Answer::Raise(_) => self.world.mark(self.vcpu, touched.place, bits),
                }
            }
            if index == leaf {
                last = (wants_dirty || entry.value & DIRTY != 0, entry.value & GLOBAL != 0);
            }
        }
        Ok(last)
    }

    /// Whether the view permits a touch, and where it leads.
    fn touch(&mut self, cpu: &Cpu, attempt: Attempt, touch: Touch) -> Result<Touched, Exception> {
        let spot = self.world.slat.spot(self.trap.view, touch.gpa);
        let place = spot.frame | touch.gpa & 0xfff;
        let free = spot.rights.contains(touch.what.access());
        if free && self.trap.grants.is_empty() {
            return Ok(Touched { place, answer: Answer::Pass, free });
        }
        let detail = Detail::Slat {
            access: touch.what.access(),
            gpa: Gpa(touch.gpa),
            gva: Some(Gva(attempt.address)),
            page_walk: touch.walk,
        };
        let Want { paging, mode, .. } = attempt.want;
        let lacked = if touch.walk { paging } else { touch.what };
        let error = 1 | error_code(&cpu.regs, lacked, mode);
        let fault = (touch.what != Use::Write).then(|| Exception::page(attempt.address, error));
        let asked = Asked { key: touch.key(), detail, bytes: touch.bytes, fault };
        let by = Asker { vcpu: self.vcpu, cpu, world: self.world };
        let answer = self.trap.ask(&by, asked, (!free).then_some(spot.hold))?;
        Ok(Touched { place, answer, free: free && answer == Answer::Pass })
    }

    /// The number of the grant with this key, as a place; the grant learns where the access would have gone.
    fn granted(&mut self, key: Key, place: u64) -> u64 {
        let found = self.trap.grants.iter_mut().enumerate().find(|(_, grant)| grant.key == key);
        found.map_or(place, |(index, grant)| {
            grant.place = place;
            GRANTED | index as u64
        })
    }

    /// Reads where the answer has the data.
    #[cold]
    pub fn read_granted(&mut self, at: u64, buf: &mut [u8]) {
        let Some(grant) = self.trap.grants.get((at & !GRANTED) as usize) else { return };
        match grant.answer {
            Answer::Data(value) => {
                buf.fill(0);
                buf.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
            }
            _ => self.world.read(self.vcpu, grant.place, buf),
        }
    }

    /// Writes what the answer has instead of these bytes, or nothing.
    #[cold]
    pub fn write_granted(&mut self, at: u64, bytes: usize) {
        let Some(grant) = self.trap.grants.get((at & !GRANTED) as usize) else { return };
        if let Answer::Data(value) = grant.answer
            && let Some(data) = value.to_le_bytes().get(..bytes)
        {
            self.world.write(self.vcpu, grant.place, data);
        }
    }
}

impl Touch {
    fn key(&self) -> Key {
        Key::Slat(Gpa(self.gpa), self.what.way(), self.walk)
    }
}
