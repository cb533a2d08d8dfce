//! What the callbacks do.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmtree_agent::{Event, Kind, Reg, Verdict, Way, flag};

use crate::act::Delivered;
use crate::armed::Baked;
use crate::decode::{self, Op, Site};
use crate::plugin::{Plugin, plugin};
use crate::sys::{Access, Block, Cpu, Instruction};
use crate::vcpu::Shown;
use crate::{act, flags, interrupts, sense};

/// A block is translated: its watched instructions get callbacks.
pub fn translated(block: &Block) {
    let Some(plugin) = plugin() else { return };
    let baked = plugin.baked();
    // In a translation, QEMU shows the registers of the vCPU that wants it.
    let cpu = Cpu::translating();
    let mut bits = None;
    let mut page = None;
    let mut behind = Behind { block, looked_at: 0, sets: false };
    for (index, instruction) in block.instructions().enumerate() {
        let mut buf = [0; 16];
        let bytes = instruction.bytes(&mut buf);
        let address = instruction.address();
        // Callbacks come in this order: an instruction is fetched before it does anything.
        if *baked != Baked::default() {
            let bits = *bits.get_or_insert_with(|| interrupts::bits(&cpu));
            let of = |op| Site { split: behind.flags(index, bits), ..Site::plain(op, address, bytes.len()) };
            bake(&baked, &cpu, &instruction, address, of, &mut page);
        }
        if decode::may_be_watched(bytes) {
            let bits = *bits.get_or_insert_with(|| interrupts::bits(&cpu));
            if let Some(site) = decode::site(bytes, bits, address) {
                instruction.watch(Site { split: behind.flags(index, bits), ..site }.pack());
            }
        }
    }
}

/// Whether an instruction of a block is behind one that sets flags. Most blocks are never asked.
struct Behind<'a> {
    block: &'a Block<'a>,
    looked_at: usize,
    sets: bool,
}

impl Behind<'_> {
    fn flags(&mut self, index: usize, bits: u32) -> bool {
        let unseen = self.block.instructions().take(index).skip(self.looked_at);
        self.sets = self.sets || unseen.into_iter().any(|code| flags::sets(code.bytes(&mut [0; 16]), bits));
        self.looked_at = index;
        self.sets
    }
}

/// The callbacks that an instruction has only while something wants them. `page` is the last one that was translated.
fn bake(
    baked: &Baked,
    cpu: &Cpu,
    code: &Instruction,
    address: u64,
    mut site: impl FnMut(Op) -> Site,
    page: &mut Option<(u64, Option<u64>)>,
) {
    if !baked.fetch.is_empty() {
        let virtual_page = address >> 12;
        let known = page.filter(|(known, _)| *known == virtual_page);
        let (_, gpa) = known.unwrap_or_else(|| (virtual_page, cpu.translate(address)));
        *page = Some((virtual_page, gpa));
        if gpa.is_some_and(|gpa| baked.fetches(gpa >> 12)) {
            code.watch(site(Op::Fetch).pack());
        }
    }
    if baked.step {
        code.watch(site(Op::Step).pack());
    }
    if baked.access {
        code.watch_memory(site(Op::Access).pack());
    }
}

/// A watched instruction is about to be executed. Where the vCPU is to go on instead, if elsewhere.
pub fn executed(cpu: &mut Cpu, packed: u64) -> Option<u64> {
    let (plugin, site) = (plugin()?, Site::unpack(packed)?);
    come_by(plugin);
    let kind = sense::kind(site)?;
    let tracks = matches!(site.op, Op::MovToDr | Op::Wrmsr | Op::Xsetbv | Op::Lidt);
    let wanted = plugin.wants(kind);
    if !tracks && !wanted {
        return None;
    }
    let rip = sense::rip(cpu, site);
    let mut moved = None;
    if wanted {
        let event = plugin.tracked(cpu.vcpu, |tracked| sense::event(cpu, tracked, site, rip)).flatten();
        moved = event.and_then(|event| raise(plugin, cpu, site, event));
    }
    // What was denied, or done with another value, is not done.
    if tracks && moved.is_none() {
        plugin.tracked(cpu.vcpu, |tracked| sense::track(cpu, tracked, site, rip));
    }
    moved
}

/// Tells of an event, and has its verdict carried out where it is held.
fn raise(plugin: &Arc<Plugin>, cpu: &mut Cpu, site: Site, event: Event) -> Option<u64> {
    let armed = plugin.armed();
    let hold = armed.matches(&event)?;
    if !hold {
        plugin.agent.tell(event);
        return None;
    }
    drop(armed);
    let mut event = flags::looked_at(cpu, site, event);
    if interrupts::bits(cpu) != 64 {
        event.flags |= flag::NO_FAULT;
    }
    let mut shown = Shown::at(&event, cpu);
    let verdict = plugin.agent.hold(event, &mut shown);
    let moved = shown.moved;
    come_by(plugin);
    act::carry_out(cpu, site, &event, verdict, &plugin.faults).or(moved)
}

/// An instruction has accessed memory.
pub fn accessed(cpu: &mut Cpu, access: Access, packed: u64) {
    let Some(plugin) = plugin() else { return };
    if !plugin.wants(Kind::Slat) {
        return;
    }
    let Some((gva, gpa, write, bytes)) = cpu.access(access) else { return };
    let way = if write { Way::Write } else { Way::Read };
    let Some(hold) = plugin.armed().violates(gpa >> 12, way) else { return };
    let Some(site) = Site::unpack(packed) else { return };
    let mut event = Event::new(Kind::Slat, way, cpu.vcpu);
    (event.rip, event.cr3, event.cpl) = (sense::rip(cpu, site), cpu.get(Reg::Cr3), crate::vcpu::cpl(cpu));
    (event.a, event.b, event.extra, event.flags) = (gpa, gva, bytes, flag::GPA | flag::GVA);
    tell_or_wait(plugin, cpu, event, hold);
}

/// Tells of what has taken place; a held vCPU only continues.
fn tell_or_wait(plugin: &Arc<Plugin>, cpu: &mut Cpu, mut event: Event, hold: bool) {
    if hold {
        // An access may be in the middle of its instruction.
        event.flags |= flag::FLAGS_LOST;
        let mut shown = Shown::at(&event, cpu);
        // Only Continue passes the check of verdicts.
        let _: Verdict = plugin.agent.hold(event, &mut shown);
    } else {
        plugin.agent.tell(event);
    }
}

/// An interrupt or exception was delivered.
pub fn discontinued(cpu: &mut Cpu, kind: i32, from: u64, to: u64) {
    let Some(plugin) = plugin() else { return };
    come_by(plugin);
    let delivery = plugin.tracked(cpu.vcpu, |tracked| tracked.deliveries.see(kind, from, to)).flatten();
    let Some(delivery) = delivery else { return };
    let from = match plugin.faults.delivered(cpu, from) {
        Some(Delivered::Fault) => return,
        Some(Delivered::Interrupt { at }) => at,
        None => from,
    };
    if !plugin.wants(Kind::Interrupt) {
        return;
    }
    let event = plugin.tracked(cpu.vcpu, |tracked| interrupts::event(cpu, tracked, delivery, from, to));
    let Some(event) = event else { return };
    if let Some(hold) = plugin.armed().matches(&event) {
        tell_or_wait(plugin, cpu, event, hold);
    }
}

/// A vCPU starts.
pub fn started(cpu: &mut Cpu) {
    cpu.learn_registers();
    let Some(plugin) = plugin() else { return };
    plugin.flush.still(cpu.vcpu, false);
    plugin.start();
}

/// A vCPU stands still, or runs again.
pub fn idle(vcpu: u32, still: bool) {
    let Some(plugin) = plugin() else { return };
    plugin.flush.still(vcpu, still);
    if !still && !come_by(plugin) {
        plugin.flush.let_pass();
    }
}

/// On a vCPU's thread: does what waits for one. Whether something did.
fn come_by(plugin: &Arc<Plugin>) -> bool {
    let due = plugin.flush.due();
    if due {
        crate::sys::flush(plugin.id);
    }
    due
}

/// QEMU has dropped its translations and our callbacks.
pub fn flushed() {
    let Some(plugin) = plugin() else { return };
    crate::sys::register(plugin.id);
    plugin.flush.finished();
}

/// QEMU ends.
pub fn exiting() {
    let Some(plugin) = plugin() else { return };
    plugin.listener.remove();
    std::sync::atomic::fence(Ordering::SeqCst);
}
