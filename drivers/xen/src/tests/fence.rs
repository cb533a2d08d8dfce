//! One vCPU of several steps on a Xen that can't pause single ones.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vmtree_api::events::{EventKind, Verdict, Wanted, Watch};
use vmtree_api::views::Remap;
use vmtree_api::{Cancel, Driver, ErrorKind, Gfn, Host, Result, VcpuId, ViewId};

use super::events::open;
use super::fake::{Fake, Shared};
use super::slots::{flags, request, view};
use super::undo::Keeper;
use super::{frames, opening};
use crate::driver::open_domain;
use crate::events::wire::{flag, reason};
use crate::recover;
use crate::registers::records::{Records, kind};

/// What a fetch is to Xen: its frame, offset, address and flags.
const FETCH: [u64; 4] = [5, 0, 0x5000, 0x44];
/// Where RFLAGS is in a vCPU's record.
const RFLAGS: usize = 648;

/// Three vCPUs, of which the last has halted.
fn several() -> (Arc<Shared>, Box<dyn Driver>) {
    let xen = Shared::new(3);
    {
        let mut state = xen.state.lock();
        state.gdbsx = false;
        state.ran.extend([(0, 1), (1, 1)]);
    }
    let driver = open(&xen);
    (xen, driver)
}

/// Steps of vCPU 0, while Xen does what the test says.
pub fn stepping(driver: &dyn Driver, count: u64, xens: impl FnOnce() + Send) -> Result<u64> {
    let execution = driver.execution().unwrap();
    let _pause = execution.pause().unwrap();
    thread::scope(|scope| {
        scope.spawn(xens);
        execution.step(VcpuId(0), count, &Cancel::default())
    })
}

/// The view that all vCPUs were put on.
fn no_fetch(xen: &Shared) -> u16 {
    for _ in 0..500 {
        let state = xen.state.lock();
        if state.on != 0 && state.pauses == 0 {
            return state.on;
        }
        drop(state);
        thread::sleep(Duration::from_millis(10));
    }
    panic!("the domain does not run");
}

fn fetch(xen: &Shared, vcpu: u32, view: u16) {
    xen.ask(request(reason::MEM_ACCESS, vcpu, Some(view), &FETCH, 0x1000));
}

/// The processor sets RF where it stops a vCPU.
fn set_resume(xen: &Shared, vcpu: u32) {
    let mut state = xen.state.lock();
    let mut records = Records::parse(state.records.clone()).unwrap();
    records.get_mut(kind::CPU, vcpu).unwrap()[RFLAGS + 2] |= 1;
    state.records = records.part_all();
}

fn vcpu(slot: &crate::events::wire::Slot) -> u8 {
    slot[12]
}

#[test]
fn the_others_stop_where_nothing_is_executed() {
    let (xen, driver) = several();
    let xens = || {
        let on = no_fetch(&xen);
        assert_eq!(xen.state.lock().default.get(&on), Some(&3), "nothing is executed there");
        let stepped = xen.state.lock().stepping.iter().copied().collect::<Vec<_>>();
        assert_eq!(stepped, [0, 1], "nothing is injected into those that have not halted");
        set_resume(&xen, 1);
        fetch(&xen, 1, on);
        fetch(&xen, 0, on);
        let answer = xen.answers(1)[0];
        let wanted = (0, 0, flag::VCPU_PAUSED | flag::ALTERNATE_P2M);
        assert_eq!((vcpu(&answer), view(&answer), flags(&answer)), wanted, "the first is the one that steps");
        xen.ask(request(reason::SINGLESTEP, 0, Some(0), &[1], 0x1001));
        xen.answers(2);
        assert!(xen.state.lock().waiting == 1, "the other one waits");
        xen.ask(request(reason::SINGLESTEP, 0, Some(0), &[1], 0x1002));
        let last: Vec<(u8, u16)> = xen.answers(4)[2..].iter().map(|slot| (vcpu(slot), view(slot))).collect();
        assert_eq!(last, [(1, 0), (0, 0)]);
    };
    assert_eq!(stepping(&*driver, 2, xens).unwrap(), 2);
    assert!(xen.state.lock().stepping.is_empty());
    assert_eq!(xen.state.lock().on, 0);
    assert_eq!(xen.register(1, RFLAGS), 2);
    drop(driver);
    xen.is_clean();
}

#[test]
fn an_answer_to_one_that_stands_still_comes_after_the_steps() {
    let (xen, driver) = several();
    let watch = Watch { kind: EventKind::Cpuid, way: None, vcpu: None, index: None, hold: true };
    driver.events().unwrap().watch(&Wanted { watches: vec![watch], rules: Vec::new() }).unwrap();
    xen.ask(request(reason::CPUID, 1, Some(0), &[2, 0], 0x3000));
    let held = driver.events().unwrap().next(Duration::from_secs(5)).unwrap().unwrap();
    let xens = || {
        let on = no_fetch(&xen);
        held.answer(&Verdict::Continue).unwrap();
        assert!(xen.state.lock().responses.is_empty());
        fetch(&xen, 0, on);
        xen.answers(1);
        xen.ask(request(reason::SINGLESTEP, 0, Some(0), &[1], 0x1001));
        assert_eq!(xen.answers(3).iter().map(vcpu).collect::<Vec<_>>(), [0, 1, 0]);
    };
    assert_eq!(stepping(&*driver, 1, xens).unwrap(), 1);
    drop(driver);
    xen.is_clean();
}

#[test]
fn a_view_that_is_switched_meanwhile_is_where_it_goes() {
    let (xen, driver) = several();
    let views = driver.views().unwrap();
    let other = views.create().unwrap();
    let xens = || {
        let on = no_fetch(&xen);
        let theirs = *xen.state.lock().made.iter().find(|view| **view != 0 && **view != on).unwrap();
        driver.views().unwrap().switch(Some(VcpuId(1)), other).unwrap();
        for vcpu in [1, 0] {
            fetch(&xen, vcpu, on);
        }
        assert_eq!(view(&xen.answers(1)[0]), 0);
        xen.ask(request(reason::SINGLESTEP, 0, Some(0), &[1], 0x1001));
        let answers = xen.answers(3);
        let of_other = answers.iter().find(|slot| vcpu(slot) == 1).unwrap();
        assert_eq!(view(of_other), theirs);
    };
    assert_eq!(stepping(&*driver, 1, xens).unwrap(), 1);
    assert_eq!(driver.views().unwrap().current(VcpuId(1)).unwrap(), other);
    // The third has halted, and goes home when it next executes.
    let on = xen.state.lock().on;
    fetch(&xen, 2, on);
    assert_eq!(view(xen.answers(4).last().unwrap()), 0);
    drop(driver);
    xen.is_clean();
}

#[test]
fn where_a_view_shows_other_frames_it_is_refused() {
    let (xen, driver) = several();
    let views = driver.views().unwrap();
    let other = views.create().unwrap();
    views.remap(other, Gfn(5), Remap::Frame(Gfn(6))).unwrap();
    views.switch(None, other).unwrap();
    let error = stepping(&*driver, 1, || {}).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("put it on view 0"), "{error}");
    views.switch(None, ViewId(0)).unwrap();
    drop(driver);
    xen.is_clean();
}

#[test]
fn whatever_call_fails_nothing_is_left() {
    for nth in 0.. {
        let (xen, driver) = several();
        let execution = driver.execution().unwrap();
        let pause = execution.pause().unwrap();
        xen.state.lock().fails_in = Some(nth);
        xen.state.lock().strict = true;
        let cancel = Cancel::default();
        cancel.raise();
        let stepped = execution.step(VcpuId(0), 1, &cancel);
        let failed = xen.state.lock().fails_in.take().is_none();
        drop(pause);
        drop(driver);
        xen.is_clean();
        if !failed {
            assert!(stepped.is_ok() && nth > 20, "{nth} calls");
            return;
        }
    }
}

/// Also where alternate views were on before we came, and stay so.
#[test]
fn a_daemon_that_is_killed_meanwhile_leaves_nobody_behind() {
    for found in [false, true] {
        let xen = Shared::new(2);
        xen.state.lock().gdbsx = false;
        xen.state.lock().views = found;
        xen.state.lock().ran.extend([(0, 1), (1, 1)]);
        let keeper = Arc::new(Keeper::default());
        let host = Arc::clone(&keeper) as Arc<dyn Host>;
        // A process that is killed drops nothing.
        let driver: &'static dyn Driver =
            Box::leak(open_domain(opening(&xen, frames(), None), host).unwrap());
        let walker = thread::spawn(move || {
            let _pause = driver.execution().unwrap().pause().unwrap();
            driver.execution().unwrap().step(VcpuId(0), 1, &Cancel::default())
        });
        let on = no_fetch(&xen);
        fetch(&xen, 1, on);
        for _ in 0..500 {
            if xen.state.lock().waiting == 1 {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let note = keeper.0.lock().clone();
        xen.state.lock().killed = true;
        recover::undo(&mut Fake(Arc::clone(&xen)), &note).unwrap();
        assert_eq!(xen.answers(2).iter().map(vcpu).collect::<Vec<_>>(), [0, 1]);
        {
            let state = xen.state.lock();
            assert_eq!((state.on, state.pauses, state.ring, state.views), (0, 0, false, found));
            assert!(state.stepping.is_empty());
        }
        xen.state.lock().alive = false;
        assert_eq!(walker.join().unwrap().unwrap(), 0);
    }
}
