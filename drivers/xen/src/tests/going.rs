//! vCPUs go on: those that halt while they are stepped, and all the others while one floods us.

use std::time::Duration;

use vmtree_api::VcpuId;
use vmtree_api::events::{EventKind, Wanted, Watch};

use super::events::open;
use super::fake::{Fake, Shared};
use super::slots::request;
use crate::events::wire::reason;
use crate::recover;

/// The local APIC's timer.
const TIMER: usize = 0x320;

fn steps(vcpu: u32) -> Wanted {
    let watch =
        Watch { kind: EventKind::SingleStep, way: None, vcpu: Some(VcpuId(vcpu)), index: None, hold: true };
    Wanted { watches: vec![watch], rules: Vec::new() }
}

/// The vectors of the messages that were sent.
fn messages(xen: &Shared) -> Vec<u8> {
    let state = xen.state.lock();
    state.injected.iter().filter(|(vcpu, _)| *vcpu == u32::MAX).map(|(_, trap)| trap.vector).collect()
}

#[test]
fn a_vcpu_that_halts_while_it_is_stepped_is_woken_by_its_timer() {
    let xen = Shared::new(2);
    xen.set_apic(1, TIMER, 0xec);
    xen.state.lock().ran = [(0, 5), (1, 5)].into();
    let driver = open(&xen);
    let events = driver.events().unwrap();
    events.watch(&steps(1)).unwrap();
    events.watch(&Wanted::default()).unwrap();
    assert!(messages(&xen).is_empty(), "it was not halted");
    events.watch(&steps(1)).unwrap();
    xen.state.lock().ran.remove(&1);
    events.watch(&Wanted::default()).unwrap();
    assert_eq!(messages(&xen)[0], 0xec, "stepped no more, it is woken");
    xen.state.lock().injected.clear();
    events.watch(&steps(1)).unwrap();
    for _ in 0..500 {
        if !messages(&xen).is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(messages(&xen)[0], 0xec, "while it is stepped, too");
    drop(driver);
    xen.is_clean();
}

#[test]
fn a_timer_that_is_masked_wakes_nobody() {
    let xen = Shared::new(1);
    let driver = open(&xen);
    let events = driver.events().unwrap();
    for timer in [0x1_00ec, 0xf] {
        xen.set_apic(0, TIMER, timer);
        events.watch(&steps(0)).unwrap();
        events.watch(&Wanted::default()).unwrap();
    }
    assert!(messages(&xen).is_empty());
}

#[test]
fn who_was_stepped_by_a_killed_daemon_is_woken() {
    let xen = Shared::new(1);
    xen.set_apic(0, TIMER, 0xec);
    xen.state.lock().busy = true;
    recover::free_ring(&mut Fake(xen.clone()), 1, &[], &[], 0..0).unwrap();
    assert_eq!(messages(&xen), [0xec]);
}

#[test]
fn a_flood_leaves_a_turn_to_others() {
    let xen = Shared::new(1);
    let driver = open(&xen);
    driver.events().unwrap().watch(&steps(0)).unwrap();
    // Nobody wants these, so none of them waits for room.
    xen.state.lock().flood = Some(request(reason::CPUID, 0, None, &[2, 0], 0x1000));
    xen.answers(1);
    std::thread::scope(|scope| {
        let read = scope.spawn(|| driver.registers().unwrap().read(VcpuId(0)).map(drop));
        for _ in 0..500 {
            if read.is_finished() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let served = read.is_finished();
        if !served {
            xen.state.lock().flood = None;
        }
        assert!(served, "a flood keeps all else waiting");
        read.join().unwrap().unwrap();
    });
    driver.events().unwrap().watch(&Wanted::default()).unwrap();
    drop(driver);
    xen.is_clean();
}
