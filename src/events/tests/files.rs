//! Observers: what is armed for them, what they read, how they wait and end.

use super::*;
use mock::{cr3, msr, offer};
use vmtree_api::events::{Action, EventSource, Verdict, Wanted, Watch, Way};
use vmtree_api::{ErrorKind, Missing, VcpuId};

fn text(mount: &Mount, filter: Filter, format: Format) -> EventFile {
    mount.hub.open(filter, format, Mode::Observe, &Cancel::default()).unwrap()
}

fn bytes(file: &EventFile, max: usize) -> Vec<u8> {
    match file.read(max) {
        Taken::Data(data) => data,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_armed_is_the_union_of_what_is_open() {
    let mount = mount();
    let watch = |kind, vcpu, hold| Watch { kind, way: None, vcpu, index: None, hold };
    let one = mount.open(EventKind::Cr3, Mode::Observe);
    let same = mount.open(EventKind::Cr3, Mode::Observe);
    assert_eq!(mount.mock.wanted().watches, [watch(EventKind::Cr3, None, false)]);
    assert_eq!(mount.mock.state().watched.len(), 1, "what has not changed is not told");
    assert_eq!(mount.stat(EventKind::Cr3, "armed"), 1);
    let vcpu = Some(VcpuId(1));
    let filter = Filter { vcpu, ..Filter::of(EventKind::Msr) };
    let control = mount.try_open(filter, Mode::Control).unwrap();
    let both = [watch(EventKind::Cr3, None, false), watch(EventKind::Msr, vcpu, true)];
    assert_eq!(mount.mock.wanted().watches, both);
    drop(one);
    assert_eq!(mount.mock.wanted().watches, both);
    drop(same);
    assert_eq!(mount.mock.wanted().watches, both[1..]);
    control.close();
    assert_eq!(mount.mock.wanted(), Wanted::default());
    assert_eq!(mount.stat(EventKind::Msr, "armed"), 0);
    until("the end of the pump", || {
        let asked = mount.mock.state().asked;
        std::thread::sleep(Duration::from_millis(250));
        mount.mock.state().asked == asked
    });
    // And it starts again.
    let file = mount.open(EventKind::Cr3, Mode::Observe);
    mount.mock.tell([cr3(0, 1)]);
    assert_eq!(next(&file), (1, false));
}

#[test]
fn all_is_every_offered_kind_in_every_offered_way() {
    let mut cr4 = offer(EventKind::Cr4);
    cr4.ways[1].1 = Err(Missing::new("reads are not seen"));
    let mut cpuid = offer(EventKind::Cpuid);
    cpuid.ways[0].1 = Err(Missing::new("never seen"));
    let mount = mount_of(Mock::offering(vec![offer(EventKind::Cr3), cr4, cpuid]), LONG);
    let all = mount.try_open(Filter::default(), Mode::Observe).unwrap();
    let watch = |kind, way| Watch { kind, way, vcpu: None, index: None, hold: false };
    assert_eq!(
        mount.mock.wanted().watches,
        [watch(EventKind::Cr3, None), watch(EventKind::Cr4, Some(Way::To))]
    );
    let from = Filter { way: Some(Way::From), ..Filter::of(EventKind::Cr4) };
    let error = mount.try_open(from, Mode::Observe).err().unwrap();
    assert!(
        error.errno() == Errno::EOPNOTSUPP && error.to_string().contains("reads are not seen"),
        "{error}"
    );
    let missing = mount.try_open(Filter::of(EventKind::Cpuid), Mode::Observe);
    assert_eq!(errno(missing), Errno::EOPNOTSUPP);
    assert_eq!(errno(mount.try_open(Filter::of(EventKind::Io), Mode::Observe)), Errno::ENOENT);
    let vcpu = Filter { vcpu: Some(VcpuId(4)), ..Filter::of(EventKind::Cr3) };
    assert_eq!(errno(mount.try_open(vcpu, Mode::Observe)), Errno::ENOENT);
    assert_eq!(mount.mock.state().watched.len(), 1, "what was refused changed nothing");
    assert_eq!(mount.hub.stats().lines().count(), 3);
    mount.mock.tell([cr3(0, 1), cr3(1, 2)]);
    assert_eq!((next(&all), next(&all)), ((1, false), (2, false)));
}

#[test]
fn an_event_that_waits_is_answered_before_it_is_told() {
    let mount = mount();
    let file = mount.open(EventKind::Cr3, Mode::Observe);
    mount.mock.raise(cr3(0, 1));
    assert_eq!(next(&file), (1, false));
    assert_eq!(mount.mock.verdicts(), [Verdict::Continue]);
    assert_eq!(errno(file.write(b"1 continue\n")), Errno::EACCES);
}

#[test]
fn records_are_counted_and_filtered_for_each_reader() {
    let mount = mount();
    let all = mount.try_open(Filter::default(), Mode::Observe).unwrap();
    let one = mount
        .try_open(Filter { vcpu: Some(VcpuId(1)), ..Filter::of(EventKind::Cr3) }, Mode::Observe)
        .unwrap();
    mount.mock.tell([cr3(0, 1), msr(1, 2), cr3(1, 3)]);
    assert_eq!(items(&all, 3).len(), 3);
    assert_eq!(next(&one), (3, false));
    assert!(!one.readable(None));
    assert_eq!(mount.stat(EventKind::Cr3, "raised"), 2);
    assert_eq!(mount.stat(EventKind::Cr3, "delivered"), 3);
    assert_eq!(mount.stat(EventKind::Msr, "delivered"), 1);
}

#[test]
fn a_read_ends_inside_a_record_only_if_that_is_longer() {
    let mount = mount();
    for format in [Format::Text, Format::Json, Format::Binary] {
        let file = text(&mount, Filter::of(EventKind::Cr3), format);
        let whole = text(&mount, Filter::of(EventKind::Cr3), format);
        mount.mock.tell((0..3).map(|vcpu| cr3(vcpu, 1)));
        until("three", || {
            mount.stat(EventKind::Cr3, "raised").is_multiple_of(3)
                && file.readable(None)
                && whole.readable(None)
        });
        let all = bytes(&whole, 1 << 16);
        let one = all.len() / 3;
        // One and a half: one. Then pieces smaller than a record, then what is left of it, and the last.
        assert_eq!(bytes(&file, one * 3 / 2), all[..one]);
        assert_eq!(bytes(&file, 10), all[one..one + 10]);
        assert_eq!(bytes(&file, 20), all[one + 10..one + 30]);
        assert_eq!(bytes(&file, 1 << 16), all[one + 30..]);
        assert_eq!(file.read(10), Taken::Wait);
        assert_eq!(file.read(0), Taken::Data(Vec::new()));
    }
}

#[test]
fn a_parked_reader_is_woken_once_and_only_for_what_is_its_own() {
    let mount = mount();
    let file = mount
        .try_open(Filter { vcpu: Some(VcpuId(1)), ..Filter::of(EventKind::Cr3) }, Mode::Observe)
        .unwrap();
    let (before, calls) = (Arc::default(), Arc::default());
    assert_eq!(file.read(4096), Taken::Wait);
    assert!(!file.readable(Some(counting(&before))));
    assert!(!file.readable(Some(counting(&calls))), "a later waker takes the place of the one before");
    assert!(!file.readable(None), "a look without one leaves it");
    mount.mock.tell([cr3(0, 1)]);
    until("the other one", || mount.stat(EventKind::Cr3, "raised") == 1);
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    mount.mock.tell([cr3(1, 1), cr3(1, 2)]);
    until("the own one", || mount.stat(EventKind::Cr3, "raised") == 3 && calls.load(Ordering::SeqCst) == 1);
    assert_eq!((before.load(Ordering::SeqCst), calls.load(Ordering::SeqCst)), (0, 1));
    assert_eq!(items(&file, 2).len(), 2);
}

#[test]
fn the_end_wakes_all_and_what_is_left_can_be_read() {
    for gone in [false, true] {
        let mount = mount();
        let file = mount.open(EventKind::Cr3, Mode::Observe);
        let idle = mount.open(EventKind::Msr, Mode::Observe);
        let control = mount.open(EventKind::Cr0, Mode::Control);
        let calls = Arc::default();
        mount.mock.tell([cr3(0, 1)]);
        until("it", || file.readable(None));
        assert!(!idle.readable(Some(counting(&calls))) && !control.readable(Some(counting(&calls))));
        if gone {
            mount.mock.die();
        } else {
            mount.hub.end(false);
            assert_eq!(mount.mock.wanted(), Wanted::default());
        }
        until("the end", || calls.load(Ordering::SeqCst) == 2 && file.ended());
        assert_eq!(next(&file), (1, false));
        assert_eq!([file.read(9), idle.read(9), control.read(9)], [Taken::End, Taken::End, Taken::End]);
        assert!(idle.readable(None) && control.readable(None));
        assert_eq!(errno(mount.try_open(Filter::default(), Mode::Observe)), Errno::ENODEV);
        assert_eq!(errno(control.write(b"1 continue")), Errno::ENODEV);
    }
}

#[test]
fn a_driver_that_fails_to_arm_leaves_all_as_it_was() {
    let mount = mount();
    let before = mount.open(EventKind::Cr3, Mode::Observe);
    let wanted = mount.mock.wanted();
    mount.mock.state().fails = Some(ErrorKind::NoSpace);
    assert_eq!(errno(mount.try_open(Filter::of(EventKind::Msr), Mode::Control)), Errno::ENOSPC);
    assert_eq!(mount.stat(EventKind::Msr, "armed"), 0);
    // A close that can't disarm still closes, and the next change makes up for it.
    before.close();
    assert_eq!(before.read(9), Taken::End);
    assert_eq!(mount.mock.wanted(), wanted);
    mount.mock.state().fails = None;
    let msr = mount.open(EventKind::Msr, Mode::Control);
    assert_eq!(mount.mock.wanted().watches.len(), 1);
    drop(msr);
    assert_eq!(mount.mock.wanted(), Wanted::default());
}

#[test]
fn a_driver_that_lacks_an_action_says_so_and_holds_on() {
    let mut cr0 = offer(EventKind::Cr0);
    cr0.actions.retain(|(action, _)| *action != Action::Set);
    cr0.actions[1].1 = Err(Missing::new("nothing can be denied here"));
    let mount = mount_of(Mock::offering(vec![cr0]), LONG);
    assert_eq!(mount.mock.offers().len(), 1);
    let file = mount.open(EventKind::Cr0, Mode::Control);
    mount.mock.raise(vmtree_api::events::Event { kind: EventKind::Cr0, ..cr3(0, 1) });
    assert_eq!(next(&file), (1, true));
    let error = file.write(b"1 deny").err().unwrap();
    assert!(error.to_string().contains("nothing can be denied here"), "{error}");
    assert_eq!(errno(file.write(b"1 set rax=1")), Errno::EOPNOTSUPP);
    assert_eq!(mount.hub.held(VcpuId(0)), Some(1));
    file.write(b"1 value=0x11").unwrap();
    assert_eq!(mount.mock.verdicts(), [Verdict::Value(0x11)]);
}
