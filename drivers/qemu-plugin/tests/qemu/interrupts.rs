//! Interrupts and exceptions, against the guest's counts.

use vmtree_agent::{Event, Kind, flag};
use vmtree_guest::mailbox::{Counter, Op, header};

use crate::lab::{LONG, Lab, all, at_least, wanted, watch};

fn vectors(events: &[Event], vector: u64) -> Vec<Event> {
    events
        .iter()
        .filter(|event| event.vcpu == 1 && u64::from(event.index & 0xff) == vector)
        .copied()
        .collect()
}

fn kind(event: &Event) -> u32 {
    event.index >> 8
}

#[test]
fn each_delivery_is_told_once_with_its_vector_type_and_error_code() {
    if !at_least((10, 2)) {
        return;
    }
    let lab = Lab::start(2, true);
    let client = lab.client();
    client.watch(&wanted([watch(Kind::Interrupt, false)])).unwrap();
    let word = |offset| lab.mailbox.header(offset).unwrap();
    let before = lab.mailbox.counters(1).unwrap();
    lab.mailbox.order(1, Op::UserLazy, &[4], LONG).unwrap();
    lab.mailbox.order(1, Op::Int3, &[7], LONG).unwrap();
    lab.mailbox.order(1, Op::SoftInterrupt, &[5], LONG).unwrap();
    for _ in 0..6 {
        lab.mailbox.order(0, Op::Ipi, &[1, 1], LONG).unwrap();
    }
    let counted = lab.mailbox.counters(1).unwrap().since(&before);
    let count = |counter| usize::try_from(counted.get(&counter).copied().unwrap_or(0)).unwrap();
    // The clock goes on: only what came until now.
    client.watch(&wanted([])).unwrap();
    let events = all(&client);
    let (faults, traps) = (vectors(&events, 14), vectors(&events, 3));
    let (soft, ipis) =
        (vectors(&events, word(header::SOFT_VECTOR)), vectors(&events, word(header::IPI_VECTOR)));
    assert_eq!(faults.len(), count(Counter::PageFaults), "{faults:x?} {counted:?}");
    assert!(faults.len() >= 4, "{faults:x?} {counted:?}");
    assert!(faults.iter().all(|event| kind(event) == 2 && event.flags & flag::CR2 != 0), "{faults:x?}");
    let lazy = word(header::USER_LAZY);
    assert!(faults.iter().all(|event| (lazy..lazy + 0x4000).contains(&event.b)), "{faults:x?}");
    assert!(faults.iter().all(|event| event.flags & flag::ERROR != 0 && event.extra & 4 == 4), "{faults:x?}");
    assert_eq!((traps.len(), count(Counter::Breakpoints)), (7, 7));
    assert!(traps.iter().all(|event| kind(event) == 5), "{traps:x?}");
    assert_eq!((soft.len(), count(Counter::SoftInterrupts)), (5, 5));
    assert!(soft.iter().all(|event| kind(event) == 3), "{soft:x?}");
    assert_eq!((ipis.len(), count(Counter::Ipis)), (6, 6));
    assert!(ipis.iter().all(|event| kind(event) == 0), "{ipis:x?}");
    let ticks = vectors(&events, word(header::TIMER_VECTOR)).len();
    assert!(ticks >= count(Counter::Ticks), "{ticks}");
}
