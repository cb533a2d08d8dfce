//! Events, answers, rules and views, over a hypervisor that only exists here.

use std::sync::Arc;
use std::time::Duration;

use vmtree_api::events::{EventKind, Held, Inject, Verdict, Wanted, Watch};
use vmtree_api::views::{Remap, Rule};
use vmtree_api::x86::Reg;
use vmtree_api::{Access, Driver, ErrorKind, Gfn, Gva, NoHost, RegValue, VcpuId, ViewId};

use super::fake::Shared;
use super::slots::{flags, request, view, word};
use super::{frames, opening};
use crate::driver::open_domain;
use crate::events::wire::{flag, reason};
use crate::hypervisor::Intercept;

const RIP: usize = 640;

pub fn open(xen: &Arc<Shared>) -> Box<dyn Driver> {
    open_domain(opening(xen, frames(), None), Arc::new(NoHost)).unwrap()
}

fn watch(kind: EventKind, hold: bool) -> Watch {
    Watch { kind, way: None, vcpu: None, index: None, hold }
}

fn wants(watches: Vec<Watch>) -> Wanted {
    Wanted { watches, rules: Vec::new() }
}

fn next(driver: &dyn Driver) -> Held {
    driver.events().unwrap().next(Duration::from_secs(5)).unwrap().expect("an event")
}

fn nothing(driver: &dyn Driver) {
    assert!(driver.events().unwrap().next(Duration::from_millis(30)).unwrap().is_none());
}

#[test]
fn the_ring_is_there_while_something_is_wanted() {
    let xen = Shared::new(2);
    let driver = open(&xen);
    let events = driver.events().unwrap();
    assert!(!xen.state.lock().ring);
    events.watch(&wants(vec![watch(EventKind::Cr3, false), watch(EventKind::Cpuid, false)])).unwrap();
    let wanted = [Intercept::Control { index: 1, wait: false }, Intercept::Cpuid];
    assert_eq!(xen.state.lock().set.iter().copied().collect::<Vec<_>>(), wanted);
    assert!(xen.state.lock().ring && !xen.state.lock().holds_writes);
    events.watch(&wants(vec![watch(EventKind::Cr3, true)])).unwrap();
    assert!(xen.state.lock().set.contains(&Intercept::Control { index: 1, wait: true }));
    assert!(xen.state.lock().holds_writes);
    events.watch(&Wanted::default()).unwrap();
    assert!(!xen.state.lock().ring);
    drop(driver);
    xen.is_clean();
}

#[test]
fn a_flood_that_nobody_reads_any_more_stops_nobody() {
    let xen = Shared::new(1);
    let driver = open(&xen);
    driver.events().unwrap().watch(&wants(vec![watch(EventKind::Cpuid, false)])).unwrap();
    let many = crate::events::queue::Queue::MOST + 3;
    for _ in 0..many {
        xen.ask(request(reason::CPUID, 0, None, &[2, 0], 0x1000));
    }
    // It stands still until there is room again.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(xen.state.lock().responses.len(), many - 3);
    driver.events().unwrap().watch(&Wanted::default()).unwrap();
    xen.answers(many);
    drop(driver);
    xen.is_clean();
}

#[test]
fn a_ring_of_somebody_else_is_told_with_its_cure() {
    let xen = Shared::new(1);
    xen.state.lock().busy = true;
    let driver = open(&xen);
    let error = driver.events().unwrap().watch(&wants(vec![watch(EventKind::Cpuid, true)])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.why().contains("ring=take"), "{error}");
}

#[test]
fn what_is_only_watched_goes_on_at_once() {
    let xen = Shared::new(2);
    let driver = open(&xen);
    driver.events().unwrap().watch(&wants(vec![watch(EventKind::Cpuid, false)])).unwrap();
    xen.ask(request(reason::CPUID, 1, None, &[2 | 7 << 32, 0], 0x1000));
    let answers = xen.answers(1);
    assert_eq!(flags(&answers[0]), flag::VCPU_PAUSED | flag::SET_REGISTERS);
    assert_eq!(word(&answers[0], 208), 0x1002);
    let held = next(&*driver);
    assert!(!held.waits() && held.event().vcpu == VcpuId(1));
}

#[test]
fn a_write_is_held_and_each_answer_does_what_it_says() {
    let xen = Shared::new(1);
    let driver = open(&xen);
    driver.events().unwrap().watch(&wants(vec![watch(EventKind::Cr3, true)])).unwrap();
    let ask = || xen.ask(request(reason::WRITE_CTRLREG, 0, None, &[1, 0x2000, 0x1000], 0x1000));
    ask();
    let held = next(&*driver);
    assert!(held.waits());
    held.answer(&Verdict::Continue).unwrap();
    ask();
    next(&*driver).answer(&Verdict::Deny).unwrap();
    ask();
    next(&*driver).answer(&Verdict::Value(0x3000)).unwrap();
    let answers = xen.answers(3);
    let seen: Vec<u32> = answers.iter().map(|answer| flags(answer) & !flag::VCPU_PAUSED).collect();
    assert_eq!(seen, [0, flag::DENY, flag::DENY]);
    assert_eq!(xen.register(0, 672), 0x3000);
    // The fault is at the instruction, which Xen has gone past.
    ask();
    let fault = Inject::PageFault { address: Gva(0x7000), error: 2 };
    next(&*driver).answer(&Verdict::Inject(fault)).unwrap();
    let answer = xen.answers(4)[3];
    assert_eq!(flags(&answer), flag::VCPU_PAUSED | flag::DENY | flag::SET_REGISTERS);
    assert_eq!(word(&answer, 208), 0x1000);
    assert_eq!(xen.state.lock().injected[0].1.cr2, 0x7000);
}

#[test]
fn registers_of_a_held_vcpu_are_those_of_the_event() {
    let xen = Shared::new(1);
    let driver = open(&xen);
    let regs = driver.registers().unwrap();
    regs.write(VcpuId(0), &[(Reg::Rip.id(), RegValue::Word(0x1003))]).unwrap();
    driver.events().unwrap().watch(&wants(vec![watch(EventKind::Cr3, true)])).unwrap();
    xen.ask(request(reason::WRITE_CTRLREG, 0, None, &[1, 0x2000, 0x1000], 0x1000));
    let held = next(&*driver);
    let rip = || regs.read(VcpuId(0)).unwrap().get(Reg::Rip.id());
    assert_eq!(rip(), Some(RegValue::Word(0x1000)));
    regs.write(VcpuId(0), &[(Reg::Rip.id(), RegValue::Word(0x5000))]).unwrap();
    assert_eq!(rip(), Some(RegValue::Word(0x5000)));
    // The write is dropped, as the vCPU does something else now.
    held.answer(&Verdict::Continue).unwrap();
    assert_eq!(flags(&xen.answers(1)[0]), flag::VCPU_PAUSED | flag::DENY);
    assert_eq!(xen.register(0, RIP), 0x5000);
}

#[test]
fn a_dropped_event_and_a_second_answer() {
    let xen = Shared::new(1);
    let driver = open(&xen);
    driver.events().unwrap().watch(&wants(vec![watch(EventKind::Breakpoint, true)])).unwrap();
    xen.ask(request(reason::SOFTWARE_BREAKPOINT, 0, None, &[1, 0, 1 | 6 << 32], 0x1000));
    drop(next(&*driver));
    let answers = xen.answers(1);
    assert_eq!(flags(&answers[0]), flag::VCPU_PAUSED);
    let (vcpu, trap) = xen.state.lock().injected[0];
    assert_eq!((vcpu, trap.vector, trap.kind, trap.length), (0, 3, 6, 1));
    xen.state.lock().injected.clear();
    xen.ask(request(reason::SOFTWARE_BREAKPOINT, 0, None, &[1, 0, 1 | 6 << 32], 0x1000));
    let refused = next(&*driver).answer(&Verdict::Value(1)).unwrap_err();
    refused.held.unwrap().answer(&Verdict::Deny).unwrap();
    assert_eq!(word(&xen.answers(2)[1], 208), 0x1001);
    assert!(xen.state.lock().injected.is_empty());
}

#[test]
fn what_is_unknown_is_answered() {
    let xen = Shared::new(1);
    let driver = open(&xen);
    driver.events().unwrap().watch(&wants(vec![watch(EventKind::Cpuid, true)])).unwrap();
    xen.ask(request(99, 0, None, &[], 0x1000));
    xen.ask(request(reason::WRITE_CTRLREG, 0, None, &[77, 0, 0], 0x1000));
    // Nobody asked for this one any more.
    xen.ask(request(reason::MOV_TO_MSR, 0, None, &[0xc000_0080, 0, 1], 0x1000));
    let answers = xen.answers(3);
    assert!(answers.iter().all(|answer| flags(answer) == flag::VCPU_PAUSED));
    nothing(&*driver);
}

fn rule(view: u32, frames: std::ops::Range<u64>, access: Access, hold: bool) -> Rule {
    Rule { view: ViewId(view), frames: Gfn(frames.start)..Gfn(frames.end), access, hold }
}

#[test]
fn an_access_is_carried_out_on_the_view_with_all_rights() {
    let xen = Shared::new(2);
    let driver = open(&xen);
    let events = driver.events().unwrap();
    let read = Access::READ.union(Access::EXECUTE);
    events.watch(&Wanted { watches: vec![], rules: vec![rule(0, 5..7, read, false)] }).unwrap();
    let base = xen.state.lock().on;
    assert_ne!(base, 0, "rules are not on Xen's own view");
    assert_eq!(xen.state.lock().access.get(&(base, 6)), Some(&5));
    let access = request(reason::MEM_ACCESS, 1, Some(base), &[6, 8, 0x6008, 2 | 8], 0x1000);
    xen.ask(access);
    let answer = xen.answers(1)[0];
    assert_eq!(flags(&answer), flag::VCPU_PAUSED | flag::ALTERNATE_P2M | flag::FAST_SINGLESTEP);
    assert_eq!((view(&answer), word(&answer, 24) as u16), (0, base));
    let event = *next(&*driver).event();
    assert_eq!((event.kind, event.view), (EventKind::Slat, ViewId(0)));
    // In the middle of that step, another event: the vCPU belongs to the view with the rule.
    events
        .watch(&Wanted {
            watches: vec![watch(EventKind::Cpuid, true)],
            rules: vec![rule(0, 5..7, read, false)],
        })
        .unwrap();
    xen.ask(access);
    xen.ask(request(reason::CPUID, 1, Some(0), &[2, 0], 0x1000));
    assert_eq!(next(&*driver).event().kind, EventKind::Slat);
    let held = next(&*driver);
    assert_eq!(held.event().view, ViewId(0));
    held.answer(&Verdict::Continue).unwrap();
    let answer = xen.answers(3)[2];
    assert_eq!(view(&answer), base);
    events.watch(&Wanted::default()).unwrap();
    drop(driver);
    xen.is_clean();
}

#[test]
fn a_write_is_denied_or_replaced_by_the_emulator() {
    let xen = Shared::new(1);
    let driver = open(&xen);
    let events = driver.events().unwrap();
    events.watch(&Wanted { watches: vec![], rules: vec![rule(0, 5..6, Access::READ, true)] }).unwrap();
    let base = xen.state.lock().on;
    // mov [rdi], al
    driver.memory().write(vmtree_api::Gpa(0x1000), &[0x88, 0x07]).unwrap();
    let ask = || xen.ask(request(reason::MEM_ACCESS, 0, Some(base), &[5, 8, 0x5008, 2 | 8], 0x1000));
    let dry = flag::VCPU_PAUSED | flag::EMULATE | flag::EMULATE_NOWRITE;
    ask();
    next(&*driver).answer(&Verdict::Deny).unwrap();
    assert_eq!(flags(&xen.answers(1)[0]), dry);
    ask();
    let refused = next(&*driver).answer(&Verdict::Value(0x1ff)).unwrap_err();
    assert_eq!(refused.error.kind(), ErrorKind::OutOfRange);
    refused.held.unwrap().answer(&Verdict::Value(0xaa)).unwrap();
    assert_eq!(flags(&xen.answers(2)[1]), dry);
    let mut byte = [0];
    driver.memory().read(vmtree_api::Gpa(0x5008), &mut byte).unwrap();
    assert_eq!(byte, [0xaa]);
}

#[test]
fn views_are_made_shown_switched_and_taken_back() {
    let xen = Shared::new(2);
    let driver = open(&xen);
    let views = driver.views().unwrap();
    driver.memory().write(vmtree_api::Gpa(0x5000), b"guest").unwrap();
    let made = views.create().unwrap();
    views.remap(made, Gfn(5), Remap::Copy).unwrap();
    views.write(made, vmtree_api::Gpa(0x5000), b"OURS!").unwrap();
    let mut buf = [0; 5];
    views.read(made, vmtree_api::Gpa(0x5000), &mut buf).unwrap();
    assert_eq!(&buf, b"OURS!");
    driver.memory().read(vmtree_api::Gpa(0x5000), &mut buf).unwrap();
    assert_eq!(&buf, b"guest");
    views.remap(made, Gfn(6), Remap::Frame(Gfn(7))).unwrap();
    views.switch(None, made).unwrap();
    assert_eq!((xen.state.lock().on, views.current(VcpuId(1)).unwrap()), (1, made));
    assert_eq!(views.destroy(made).unwrap_err().kind(), ErrorKind::Busy);
    views.switch(None, ViewId(0)).unwrap();
    for bad in
        [views.remap(made, Gfn(0x200), Remap::Copy), views.switch(None, ViewId(9)), views.destroy(ViewId(9))]
    {
        assert_eq!(bad.unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert_eq!(views.remap(ViewId(0), Gfn(5), Remap::Copy).unwrap_err().kind(), ErrorKind::Invalid);
    while views.create().is_ok() {}
    assert_eq!(views.create().unwrap_err().kind(), ErrorKind::NoSpace);
    drop(driver);
    xen.is_clean();
}

#[test]
fn one_vcpu_is_switched_by_its_next_event() {
    let xen = Shared::new(2);
    let driver = open(&xen);
    let views = driver.views().unwrap();
    let made = views.create().unwrap();
    views.switch(Some(VcpuId(1)), made).unwrap();
    assert_eq!((views.current(VcpuId(0)).unwrap(), views.current(VcpuId(1)).unwrap()), (ViewId(0), made));
    assert!(xen.state.lock().stepping.contains(&1));
    xen.ask(request(reason::SINGLESTEP, 1, Some(0), &[1], 0x1000));
    let answer = xen.answers(1)[0];
    assert_eq!((view(&answer), flags(&answer)), (1, flag::VCPU_PAUSED | flag::ALTERNATE_P2M));
    for _ in 0..100 {
        if xen.state.lock().stepping.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(xen.state.lock().stepping.is_empty());
    drop(driver);
    xen.is_clean();
}

#[test]
fn steps_are_counted_while_the_others_stand() {
    let xen = Shared::new(2);
    let driver = open(&xen);
    let execution = driver.execution().unwrap();
    let cancel = vmtree_api::Cancel::default();
    assert_eq!(execution.step(VcpuId(0), 1, &cancel).unwrap_err().kind(), ErrorKind::Busy);
    let pause = execution.pause().unwrap();
    let done = std::thread::scope(|scope| {
        let steps = scope.spawn(|| execution.step(VcpuId(0), 2, &cancel).unwrap());
        for answered in 0..2 {
            while xen.state.lock().pauses > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(xen.state.lock().still, [1]);
            xen.ask(request(reason::SINGLESTEP, 0, None, &[1], 0x1000 + answered));
            xen.answers(answered as usize + 1);
        }
        steps.join().unwrap()
    });
    assert_eq!(done, 2);
    assert_eq!(xen.state.lock().pauses, 1);
    assert!(xen.state.lock().still.is_empty());
    drop(pause);
    drop(driver);
    xen.is_clean();
}

#[test]
fn where_no_vcpu_can_be_paused_alone_several_step_by_views_or_not_at_all() {
    for (vcpus, altp2m, steps) in [(1, false, true), (2, false, false), (2, true, true)] {
        let xen = Shared::new(vcpus);
        xen.state.lock().gdbsx = false;
        xen.state.lock().altp2m = altp2m;
        let driver = open(&xen);
        let can = driver.execution().unwrap().steps();
        assert_eq!(can.is_ok(), steps);
        assert!(can.is_ok() || can.unwrap_err().to_string().contains("GDBSX"));
        drop(driver);
        xen.is_clean();
    }
}

#[test]
fn the_end_of_the_domain_ends_all() {
    let xen = Shared::new(1);
    let driver = open(&xen);
    driver.events().unwrap().watch(&wants(vec![watch(EventKind::Cpuid, true)])).unwrap();
    xen.state.lock().alive = false;
    let error = driver.events().unwrap().next(Duration::from_secs(5)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone);
    assert_eq!(driver.registers().unwrap().read(VcpuId(0)).unwrap_err().kind(), ErrorKind::Gone);
    assert_eq!(driver.memory().read(vmtree_api::Gpa(0), &mut [0]).unwrap_err().kind(), ErrorKind::Gone);
}
