//! IN and OUT, where one answer to Xen is not enough.

use std::sync::Arc;
use std::time::Duration;

use vmtree_api::events::{Detail, EventKind, Held, Verdict, Wanted, Watch};
use vmtree_api::x86::Reg;
use vmtree_api::{Driver, ErrorKind, Gpa, RegValue, VcpuId};

use super::events::open;
use super::fake::Shared;
use super::slots::{flags, request, word};
use crate::events::wire::{Slot, flag, reason};

const AX: usize = 512;
const RIP: usize = 640;
const RSI: u64 = 0x3000;
/// RAX as the guest has it, and as it is behind an OUT of one byte of another value.
pub const RAX: u64 = 0x1122_3344_5566_7788;
pub const SENT: u64 = 0x1122_3344_5566_77aa;
/// RFLAGS, with RF.
const RESUMED: u64 = 0x1_0002;

fn open_watching(xen: &Arc<Shared>) -> Box<dyn Driver> {
    watching(open(xen))
}

fn watching(driver: Box<dyn Driver>) -> Box<dyn Driver> {
    let watch = Watch { kind: EventKind::Io, way: None, vcpu: None, index: None, hold: true };
    driver.events().unwrap().watch(&Wanted { watches: vec![watch], rules: Vec::new() }).unwrap();
    // out dx, al; in al, dx; outsb
    driver.memory().write(Gpa(0x1000), &[0xee, 0xec, 0x6e]).unwrap();
    driver.memory().write(Gpa(RSI), &[0x5a]).unwrap();
    driver
}

/// Of one byte at port 0x3f8: an IN, a string instruction; RAX, RFLAGS.
fn port(vcpu: u32, (input, string): (bool, bool), rax: u64, rflags: u64, rip: u64) -> Slot {
    let what = 1 | 0x3f8 << 32 | u64::from(input) << 48 | u64::from(string) << 56;
    let mut slot = request(reason::IO_INSTRUCTION, vcpu, None, &[what], rip);
    for (at, value) in [(56, rax), (72, 0x3f8), (104, RSI), (184, rflags)] {
        slot[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    slot
}

pub fn out(rax: u64) -> Slot {
    port(0, (false, false), rax, 2, 0x1000)
}

fn held(driver: &dyn Driver) -> Held {
    driver.events().unwrap().next(Duration::from_secs(5)).unwrap().expect("an event")
}

pub fn put(driver: &dyn Driver, reg: Reg, value: u64) {
    driver.registers().unwrap().write(VcpuId(0), &[(reg.id(), RegValue::Word(value))]).unwrap();
}

/// An OUT that was answered with another value; what Xen was told.
fn sent(xen: &Arc<Shared>) -> (Box<dyn Driver>, Slot) {
    sent_on(xen, open(xen))
}

/// The same of a domain that was opened otherwise.
pub fn sent_on(xen: &Arc<Shared>, driver: Box<dyn Driver>) -> (Box<dyn Driver>, Slot) {
    xen.state.lock().ran.insert(0, 5);
    let driver = watching(driver);
    put(&*driver, Reg::Rax, RAX);
    put(&*driver, Reg::Rip, 0x1000);
    xen.ask(out(RAX));
    let event = held(&*driver);
    let refused = event.answer(&Verdict::Value(0x100)).unwrap_err();
    assert_eq!(refused.error.kind(), ErrorKind::OutOfRange);
    refused.held.unwrap().answer(&Verdict::Value(0xaa)).unwrap();
    let answer = xen.answers(1)[0];
    (driver, answer)
}

#[test]
fn an_out_carries_another_value_and_rax_is_as_it_was() {
    let xen = Shared::new(2);
    let (driver, answer) = sent(&xen);
    let emulated = flag::VCPU_PAUSED | flag::EMULATE | flag::SET_EMUL_INSN_DATA;
    assert_eq!((flags(&answer), answer[8], answer[56]), (emulated, reason::SOFTWARE_BREAKPOINT as u8, 0xee));
    // In front of the guest's own.
    assert_eq!((xen.register(0, RIP), xen.register(0, AX)), (0xfff, SENT));
    // Nobody asks for events any more; Xen still tells of this one, to whichever vCPU it goes meanwhile.
    driver.events().unwrap().watch(&Wanted::default()).unwrap();
    assert!(xen.state.lock().ring && !xen.state.lock().set.is_empty());
    xen.ask(port(1, (false, false), SENT, 2, 0x1000));
    let answer = xen.answers(2)[1];
    assert_eq!(flags(&answer), flag::VCPU_PAUSED | flag::SET_REGISTERS);
    assert_eq!((word(&answer, 56), word(&answer, 208)), (RAX, 0x1001));
    drop(driver);
    xen.is_clean();
}

#[test]
fn another_out_meanwhile_is_an_event() {
    let xen = Shared::new(1);
    let (driver, _) = sent(&xen);
    xen.ask(port(0, (false, false), 7, 2, 0x1000));
    assert_eq!(held(&*driver).event().detail, Detail::Io { port: 0x3f8, bytes: 1, value: Some(7) });
    xen.ask(out(SENT));
    assert_eq!(word(&xen.answers(3)[2], 56), RAX);
    drop(driver);
    xen.is_clean();
}

#[test]
fn an_out_that_does_not_come_back_before_the_end_is_as_if_nobody_had_been_there() {
    for (came, rip) in [(0xfff, 0x1000), (0x1000, 0x1001)] {
        let xen = Shared::new(1);
        let (driver, _) = sent(&xen);
        put(&*driver, Reg::Rip, came);
        drop(driver);
        assert_eq!((xen.register(0, RIP), xen.register(0, AX)), (rip, RAX), "{came:#x}");
        xen.is_clean();
    }
}

#[test]
fn an_in_that_a_device_model_answers_is_told_once() {
    let xen = Shared::new(1);
    xen.state.lock().devices = 0xff;
    let driver = open_watching(&xen);
    let ask = |rax| xen.ask(port(0, (true, false), rax, 2, 0x1001));
    ask(0);
    held(&*driver).answer(&Verdict::Continue).unwrap();
    assert_eq!(flags(&xen.answers(1)[0]), flag::VCPU_PAUSED | flag::EMULATE | flag::SET_REGISTERS);
    assert!(xen.state.lock().stepping.contains(&0));
    // The device model has answered: no step has ended.
    ask(0x55);
    let answer = xen.answers(2)[1];
    assert_eq!((word(&answer, 56), word(&answer, 208)), (0x55, 0x1002));
    // Behind the answer.
    let stepped = || !xen.state.lock().stepping.is_empty();
    assert!((0..500).any(|_| !stepped() || {
        std::thread::sleep(Duration::from_millis(10));
        false
    }));
    // Xen itself had the answer, and the guest reads again.
    for nth in [3, 5] {
        ask(0);
        held(&*driver).answer(&Verdict::Continue).unwrap();
        xen.answers(nth);
        xen.ask(request(reason::SINGLESTEP, 0, None, &[1], 0x1004));
        xen.answers(nth + 1);
    }
    drop(driver);
    xen.is_clean();
}

#[test]
fn without_steps_rf_tells_of_an_in_that_it_is_done() {
    let xen = Shared::new(1);
    (xen.state.lock().devices, xen.state.lock().events) = (0xff, 0x3ffb);
    let driver = open_watching(&xen);
    let ask = |rax, rflags| xen.ask(port(0, (true, false), rax, rflags, 0x1001));
    ask(0, 2);
    held(&*driver).answer(&Verdict::Continue).unwrap();
    let answer = xen.answers(1)[0];
    assert_eq!(flags(&answer), flag::VCPU_PAUSED | flag::EMULATE | flag::SET_REGISTERS);
    assert_eq!((word(&answer, 184), word(&answer, 208)), (RESUMED, 0x1001));
    // The device model has answered.
    ask(0x55, RESUMED);
    let answer = xen.answers(2)[1];
    assert_eq!(flags(&answer), flag::VCPU_PAUSED | flag::SET_REGISTERS);
    assert_eq!((word(&answer, 56), word(&answer, 184), word(&answer, 208)), (0x55, 2, 0x1002));
    // Xen itself had the answer, and the guest reads again.
    for _ in 0..2 {
        ask(0, 2);
        held(&*driver).answer(&Verdict::Continue).unwrap();
    }
    assert_eq!(xen.answers(4).len(), 4);
    drop(driver);
    xen.is_clean();
}

#[test]
fn what_outs_writes_is_told_and_not_replaced() {
    let xen = Shared::new(1);
    let driver = open_watching(&xen);
    xen.ask(port(0, (false, true), RAX, 2, 0x1002));
    let event = held(&*driver);
    assert_eq!(event.event().detail, Detail::Io { port: 0x3f8, bytes: 1, value: Some(0x5a) });
    let refused = event.answer(&Verdict::Value(1)).unwrap_err();
    assert_eq!(refused.error.kind(), ErrorKind::Unsupported);
    drop(refused);
    assert_eq!(flags(&xen.answers(1)[0]), flag::VCPU_PAUSED | flag::EMULATE);
    drop(driver);
    xen.is_clean();
}
