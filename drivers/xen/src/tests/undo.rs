//! Whatever fails, and whenever we are killed, nothing of ours is left in the domain.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use vmtree_api::events::{EventKind, Wanted, Watch};
use vmtree_api::views::{Remap, Rule};
use vmtree_api::x86::Reg;
use vmtree_api::{Access, Cancel, Driver, Gfn, Host, RegValue, VcpuId, ViewId};

use super::events::open;
use super::fake::{Fake, Shared};
use super::ports::{RAX, SENT, out, put, sent_on};
use super::slots::{flags, request};
use super::{frames, opening};
use crate::driver::open_domain;
use crate::events::wire::{flag, reason};
use crate::recover;

fn busy(driver: &dyn Driver) {
    let rules = vec![Rule { view: ViewId(0), frames: Gfn(5)..Gfn(6), access: Access::READ, hold: true }];
    let watches = [EventKind::Cr3, EventKind::Msr, EventKind::SingleStep].map(|kind| Watch {
        kind,
        way: None,
        vcpu: None,
        index: None,
        hold: true,
    });
    let _ = driver.events().unwrap().watch(&Wanted { watches: watches.to_vec(), rules });
    let views = driver.views().unwrap();
    if let Ok(made) = views.create() {
        let _ = views.remap(made, Gfn(5), Remap::Copy);
        let _ = views.switch(Some(VcpuId(1)), made);
        let _ = views.switch(None, made);
    }
    let pause = driver.execution().unwrap().pause();
    let _ = driver.registers().unwrap().write(VcpuId(0), &[(Reg::Rax.id(), RegValue::Word(7))]);
    let cancel = Cancel::default();
    cancel.raise();
    let _ = driver.execution().unwrap().step(VcpuId(0), 3, &cancel);
    drop(pause);
}

#[test]
fn whichever_call_fails_nothing_is_left() {
    for fails in 0..80 {
        let xen = Shared::new(2);
        let driver = open(&xen);
        xen.state.lock().fails_in = Some(fails);
        busy(&*driver);
        xen.state.lock().fails_in = None;
        drop(driver);
        xen.is_clean();
    }
}

/// Keeps the last note.
#[derive(Default)]
pub struct Keeper(pub Mutex<String>);

impl Host for Keeper {
    fn ended(&self, _why: &str) {}

    fn note(&self, undo: &str) -> vmtree_api::Result<()> {
        *self.0.lock() = undo.to_owned();
        Ok(())
    }
}

#[test]
fn what_a_killed_daemon_left_is_undone() {
    let xen = Shared::new(2);
    let keeper = Arc::new(Keeper::default());
    let driver = open_domain(opening(&xen, frames(), None), Arc::clone(&keeper) as Arc<dyn Host>).unwrap();
    busy(&*driver);
    let pause = driver.execution().unwrap().pause().unwrap();
    xen.ask(request(reason::WRITE_CTRLREG, 1, Some(0), &[1, 0x2000, 0x1000], 0x1000));
    let held = driver.events().unwrap().next(Duration::from_secs(5)).unwrap().unwrap();
    let note = keeper.0.lock().clone();
    assert!(note.contains("1:cr3=0x2000"), "{note}");
    assert_eq!(recover::domid(&note), Some(3));
    // A process that is killed drops nothing.
    let answered = xen.state.lock().responses.len();
    std::mem::forget((driver, pause, held));
    xen.state.lock().killed = true;
    recover::undo(&mut Fake(Arc::clone(&xen)), &note).unwrap();
    xen.is_clean();
    assert_eq!(xen.register(1, 672), 0x2000, "the write that was held");
    let told = xen.answers(answered + 2);
    assert!(told[answered..].iter().all(|answer| flags(answer) == flag::VCPU_PAUSED));
    recover::undo(&mut Fake(xen), "").unwrap();
}

#[test]
fn a_killed_daemon_leaves_no_rax_of_its_own_at_an_out() {
    // Xen has not begun; the vCPU is at its OUT once more; it is in an interrupt's handler.
    for (came, rax, rip) in [(0xfff, RAX, 0x1000), (0x1000, RAX, 0x1001), (0x5000, SENT, 0x5000)] {
        let xen = Shared::new(1);
        let keeper = Arc::new(Keeper::default());
        let host = Arc::clone(&keeper) as Arc<dyn Host>;
        let (driver, _) = sent_on(&xen, open_domain(opening(&xen, frames(), None), host).unwrap());
        let note = keeper.0.lock().clone();
        assert!(note.contains(&format!("0:out=0x1000,0x1001,0x0,{SENT:#x},{RAX:#x}")), "{note}");
        put(&*driver, Reg::Rip, came);
        std::mem::forget(driver);
        xen.state.lock().killed = true;
        recover::undo(&mut Fake(Arc::clone(&xen)), &note).unwrap();
        assert_eq!((xen.register(0, 512), xen.register(0, 640)), (rax, rip), "{came:#x}");
        xen.is_clean();
    }
}

#[test]
fn an_out_that_has_come_back_is_noted_no_more() {
    let xen = Shared::new(1);
    let keeper = Arc::new(Keeper::default());
    let host = Arc::clone(&keeper) as Arc<dyn Host>;
    let (driver, _) = sent_on(&xen, open_domain(opening(&xen, frames(), None), host).unwrap());
    xen.ask(out(SENT));
    xen.answers(2);
    driver.registers().unwrap().read(VcpuId(0)).unwrap();
    let note = keeper.0.lock().clone();
    assert!(note.contains("ring") && !note.contains("out="), "{note}");
    drop(driver);
    xen.is_clean();
}
