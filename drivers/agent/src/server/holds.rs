//! The vCPUs that stand still, and what their own threads are asked meanwhile.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::Refusal;
use crate::inlet::TURN;
use crate::lock::lock;
use crate::{Code, Event, Reg, Verdict};

/// The registers of a held vCPU, reached from its own thread.
pub trait Registers {
    /// All that can be read.
    fn read(&mut self) -> Vec<(Reg, u64)>;

    /// Sets some: all or none.
    ///
    /// # Errors
    /// One of them can't be written, or not to that value.
    fn write(&mut self, registers: &[(Reg, u64)]) -> Result<(), Refusal>;
}

/// What a held vCPU's thread is asked.
#[derive(Debug)]
pub(super) enum Order {
    Answer(Verdict),
    Read(u32),
    Write(u32, Vec<(Reg, u64)>),
}

/// One vCPU's place. A vCPU is held at most once at a time.
#[derive(Default)]
pub(super) struct Hold {
    orders: Mutex<Inbox>,
    arrived: Condvar,
}

#[derive(Default)]
struct Inbox {
    event: Option<Event>,
    orders: VecDeque<Order>,
    /// A verdict has come: no more orders are taken.
    answered: bool,
}

#[derive(Default)]
pub(super) struct Holds {
    /// By vCPU.
    open: Mutex<HashMap<u32, Arc<Hold>>>,
    /// How many there were.
    so_far: AtomicU64,
}

impl Holds {
    pub fn open(&self, vcpu: u32) -> Arc<Hold> {
        let hold = Arc::new(Hold::default());
        lock(&self.open).insert(vcpu, hold.clone());
        self.so_far.fetch_add(1, Ordering::Relaxed);
        hold
    }

    /// How many vCPUs were held until now.
    pub fn so_far(&self) -> u64 {
        self.so_far.load(Ordering::Relaxed)
    }

    /// The event has its number, and can be answered from now on.
    pub fn number(&self, hold: &Arc<Hold>, event: &Event) {
        lock(&hold.orders).event = Some(*event);
    }

    pub fn close(&self, hold: &Arc<Hold>) {
        lock(&self.open).retain(|_, open| !Arc::ptr_eq(open, hold));
    }

    /// The held event of this number.
    pub fn event(&self, seq: u64) -> Option<(Arc<Hold>, Event)> {
        let open = lock(&self.open);
        open.values().find_map(|hold| {
            let inbox = lock(&hold.orders);
            let event = inbox.event.filter(|event| event.seq == seq && !inbox.answered)?;
            Some((hold.clone(), event))
        })
    }

    /// Everything continues.
    pub fn release(&self) {
        for hold in lock(&self.open).values() {
            // One that has its verdict already is on its way.
            let _ = hold.order(Order::Answer(Verdict::Continue));
        }
    }
}

impl Hold {
    /// Gives the vCPU's thread something to do.
    ///
    /// # Errors
    /// It has its verdict already.
    pub fn order(&self, order: Order) -> Result<(), Refusal> {
        let mut inbox = lock(&self.orders);
        if inbox.answered {
            return Err(Refusal::new(Code::Stale, "the event is answered already"));
        }
        inbox.answered = matches!(order, Order::Answer(_));
        inbox.orders.push_back(order);
        self.arrived.notify_one();
        Ok(())
    }

    /// Serves orders until the verdict. `read` reads what comes for all, unless the question that it is given says no or
    /// somebody else reads already, of which it tells by false.
    pub fn wait(
        &self,
        registers: &mut dyn Registers,
        finish: impl Fn(u32, Result<Option<Vec<(Reg, u64)>>, Refusal>),
        read: impl Fn(&dyn Fn() -> bool) -> bool,
    ) -> Verdict {
        loop {
            match self.next(&read) {
                Order::Answer(verdict) => return verdict,
                Order::Read(id) => finish(id, Ok(Some(registers.read()))),
                Order::Write(id, values) => finish(id, registers.write(&values).map(|()| None)),
            }
        }
    }

    fn next(&self, read: impl Fn(&dyn Fn() -> bool) -> bool) -> Order {
        loop {
            if let Some(order) = lock(&self.orders).orders.pop_front() {
                return order;
            }
            if !read(&|| lock(&self.orders).orders.is_empty()) {
                let inbox = lock(&self.orders);
                let waits = |inbox: &mut Inbox| inbox.orders.is_empty();
                let _ = self.arrived.wait_timeout_while(inbox, TURN, waits);
            }
        }
    }
}
