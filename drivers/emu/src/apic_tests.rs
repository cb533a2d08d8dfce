use super::*;
use proptest::prelude::*;

fn enabled() -> Apic {
    let mut apic = Apic::new(3);
    apic.write(at::SVR, 0x1ff, 0);
    apic
}

#[test]
fn the_highest_vector_above_the_priority_is_ready() {
    let mut apic = enabled();
    apic.raise(0x31);
    apic.raise(0x52);
    assert_eq!(apic.take(), Some(0x52));
    assert_eq!(apic.ready(), None, "0x31 waits for 0x52 to end");
    assert_eq!(apic.read(at::PPR, 0), 0x50);
    assert_eq!(apic.read(at::ISR + 0x20, 0), 1 << 0x12);
    apic.write(at::EOI, 0, 0);
    assert_eq!(apic.ready(), Some(0x31));
    apic.set_tpr(0x30);
    assert_eq!(apic.ready(), None, "class 3 is masked by class 3");
    apic.set_tpr(0x2f);
    assert_eq!(apic.take(), Some(0x31));
}

#[test]
fn a_disabled_apic_takes_nothing() {
    let mut apic = Apic::new(0);
    apic.raise(0x40);
    assert_eq!(apic.ready(), None);
    assert_eq!(apic.read(at::IRR + 0x20, 0), 0);
    apic.write(at::LVT_TIMER, 0x40, 0);
    assert_eq!(apic.read(at::LVT_TIMER, 0), 0x1_0040, "LVT entries stay masked");
}

#[test]
fn the_timer_counts_down_and_fires_once() {
    let mut apic = enabled();
    apic.write(at::LVT_TIMER, 0x40, 0);
    apic.write(at::DIVIDE, 0xb, 0);
    apic.write(at::INITIAL, 100, 1000);
    assert_eq!((apic.deadline(), apic.read(at::CURRENT, 1500)), (Some(2000), 50));
    apic.tick(1999);
    assert_eq!(apic.ready(), None);
    apic.tick(2000);
    assert_eq!((apic.ready(), apic.deadline(), apic.read(at::CURRENT, 2000)), (Some(0x40), None, 0));
}

#[test]
fn a_periodic_timer_goes_on() {
    let mut apic = enabled();
    apic.write(at::LVT_TIMER, 0x40 | PERIODIC, 0);
    apic.write(at::INITIAL, 100, 0);
    assert_eq!(apic.deadline(), Some(2000), "divide by 2 after reset");
    apic.tick(2000);
    assert_eq!((apic.take(), apic.deadline()), (Some(0x40), Some(4000)));
    apic.tick(9000);
    assert_eq!(apic.deadline(), Some(10_000));
}

#[test]
fn commands_say_whom_and_what() {
    let mut apic = enabled();
    let all = Command { to: Destination::Others, what: Signal::Fixed(0x41) };
    assert_eq!(apic.write(at::ICR_LOW, 0xc_4041, 0), Some(all));
    apic.write(at::ICR_HIGH, 0x0200_0000, 0);
    let one = Command { to: Destination::Physical(2), what: Signal::Nmi };
    assert_eq!(apic.write(at::ICR_LOW, 0x400, 0), Some(one));
    assert_eq!(apic.write(at::ICR_LOW, 0x4500, 0), None, "INIT is ignored");
    apic.write(at::LDR, 0x0400_0000, 0);
    assert!(apic.logically(0x0c) && !apic.logically(0x03));
}

proptest! {
    #[test]
    fn no_access_panics(steps in proptest::collection::vec((0_u64..0x1000, any::<u32>(), any::<u64>()), 0..50)) {
        let mut apic = enabled();
        for (offset, value, now) in steps {
            apic.write(offset & !3, value, now);
            apic.tick(now);
            let _ = apic.read(offset & !3, now);
            let _ = apic.take();
        }
    }
}
