//! Controllers: who may be one, what they answer, and every way in which a held vCPU is let go.

use std::sync::mpsc;

use super::*;
use crate::text::access::AccessChange;
use mock::{cr3, msr, slat};
use vmtree_api::Gfn;
use vmtree_api::events::{Action, Verdict, Wanted};
use vmtree_api::{Access, VcpuId};

#[test]
fn one_file_at_a_time_controls_an_event() {
    let mount = mount();
    let vcpu = |vcpu| Filter { vcpu: Some(VcpuId(vcpu)), ..Filter::of(EventKind::Cr3) };
    let zero = mount.try_open(vcpu(0), Mode::Control).unwrap();
    let one = mount.try_open(vcpu(1), Mode::Control).unwrap();
    let begun = Instant::now();
    assert_eq!(errno(mount.try_open(vcpu(0), Mode::Control)), Errno::EBUSY);
    assert!(begun.elapsed() >= Duration::from_millis(100), "a release may be under way");
    assert_eq!(errno(mount.try_open(Filter::default(), Mode::Control)), Errno::EBUSY);
    let cancel = Cancel::default();
    cancel.raise();
    let killed = mount.hub.open(vcpu(0), Format::Text, Mode::Control, &cancel);
    assert_eq!(errno(killed), Errno::EINTR);
    mount.try_open(vcpu(0), Mode::Observe).unwrap();
    // One instruction can read and write, but none fetches what it reads.
    let access = |access| Filter { access: Some(access), ..Filter::of(EventKind::Slat) };
    let write = mount.try_open(access(Access::WRITE), Mode::Control).unwrap();
    assert_eq!(errno(mount.try_open(access(Access::READ), Mode::Control)), Errno::EBUSY);
    mount.try_open(access(Access::EXECUTE), Mode::Control).unwrap();
    drop(write);
    // A release while another waits for it.
    let (ready, begun) = std::sync::mpsc::channel();
    let closing = std::thread::spawn(move || {
        ready.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        drop(zero);
    });
    begun.recv().unwrap();
    let again = mount.try_open(vcpu(0), Mode::Control).unwrap();
    closing.join().unwrap();
    mount.mock.raise(cr3(1, 1));
    assert_eq!(next(&one), (1, true));
    assert!(!again.readable(None));
}

#[test]
fn a_held_vcpu_waits_for_its_own_file_alone() {
    let mount = mount();
    let observer = mount.open(EventKind::Cr3, Mode::Observe);
    let file = mount.open(EventKind::Cr3, Mode::Control);
    let other = mount.open(EventKind::Msr, Mode::Control);
    mount.mock.raise(cr3(2, 5));
    assert_eq!(next(&file), (1, true));
    assert_eq!(next(&observer), (1, false), "held for its controller alone");
    assert_eq!((mount.hub.held(VcpuId(2)), mount.hub.held(VcpuId(0))), (Some(1), None));
    assert_eq!(errno(other.write(b"1 continue")), Errno::ESTALE);
    assert_eq!(errno(file.write(b"2 continue")), Errno::ESTALE);
    assert_eq!(errno(file.write(b"1 nonsense")), Errno::EINVAL);
    assert_eq!(errno(file.write(b"1 value=0x10000000000000000")), Errno::ERANGE);
    assert!(mount.mock.verdicts().is_empty());
    file.write(b"1 deny\n").unwrap();
    assert_eq!(errno(file.write(b"1 continue")), Errno::ESTALE);
    assert_eq!(mount.mock.verdicts(), [Verdict::Deny]);
    assert_eq!(mount.hub.held(VcpuId(2)), None);
    assert_eq!(mount.stat(EventKind::Cr3, "answered"), 1);
}

#[test]
fn several_vcpus_are_answered_in_any_order_and_checked_together() {
    let mount = mount();
    let all = mount.try_open(Filter::default(), Mode::Control).unwrap();
    mount.mock.raise(cr3(0, 1));
    mount.mock.raise(msr(1, 2));
    mount.mock.raise(cr3(1, 3));
    assert_eq!(items(&all, 3).len(), 3);
    assert_eq!(mount.hub.held(VcpuId(1)), Some(2));
    // The second is a read of an MSR, which can't be denied: nothing is carried out.
    assert_eq!(errno(all.write(b"1 continue\n2 deny\n")), Errno::EINVAL);
    let twice = [(1, Verdict::Continue), (1, Verdict::Continue)];
    assert_eq!(errno(all.answer(&twice)), Errno::ESTALE);
    assert_eq!(errno(all.write(b"1 continue\n9 continue\n")), Errno::ESTALE);
    assert!(mount.mock.verdicts().is_empty());
    all.write(b"3 deny\n2 value=9\n").unwrap();
    all.write(b"1 step view=v7").unwrap();
    let verdicts = [Verdict::Deny, Verdict::Value(9), Verdict::Step(Some(ViewId(7)))];
    assert_eq!(mount.mock.verdicts(), verdicts);
}

#[test]
fn what_the_driver_refuses_stays_held_and_what_came_before_it_stands() {
    let mount = mount();
    let file = mount.open(EventKind::Cr3, Mode::Control);
    (0..3).for_each(|vcpu| mount.mock.raise(cr3(vcpu, 1)));
    items(&file, 3);
    mount.mock.state().refuses = vec![Action::Deny];
    assert_eq!(errno(file.write(b"1 continue\n2 deny\n3 continue\n")), Errno::EINVAL);
    assert_eq!(mount.mock.verdicts(), [Verdict::Continue]);
    assert_eq!((mount.hub.held(VcpuId(1)), mount.hub.held(VcpuId(2))), (Some(2), Some(3)));
    assert_eq!(mount.stat(EventKind::Cr3, "answered"), 1);
    file.write(b"3 continue\n2 continue\n").unwrap();
    assert_eq!(mount.mock.verdicts().len(), 3);
}

#[test]
fn an_answer_too_late_is_stale_and_the_vcpu_went_on() {
    let mount = mount_of(Mock::new(), Duration::from_millis(60));
    let file = mount.open(EventKind::Cr3, Mode::Control);
    let begun = Instant::now();
    mount.mock.raise(cr3(0, 1));
    until("the time-out", || mount.stat(EventKind::Cr3, "timed_out") == 1);
    assert!(begun.elapsed() >= Duration::from_millis(60));
    until("the answer", || mount.mock.verdicts() == [Verdict::Continue]);
    assert_eq!(errno(file.write(b"1 deny")), Errno::ESTALE);
    assert_eq!(next(&file), (1, false), "it is told, but waits no more");
    assert_eq!(mount.hub.held(VcpuId(0)), None);
}

#[test]
fn a_held_vcpu_is_let_go_in_time_also_where_nothing_is_armed_any_more() {
    let mount = mount_of(Mock::new(), Duration::from_millis(300));
    let file = mount.open(EventKind::Slat, Mode::Control);
    let frames = Gfn(1)..Gfn(2);
    let rule = AccessChange::Set { frames, access: Access::READ, deny: false };
    mount.hub.set_access(ViewId(0), &[rule]).unwrap();
    mount.mock.raise(slat(0x1000, Access::WRITE));
    assert_eq!(next(&file), (1, true));
    mount.hub.set_access(ViewId(0), &[AccessChange::Reset]).unwrap();
    assert_eq!(mount.mock.wanted(), Wanted::default());
    until("the time-out", || mount.stat(EventKind::Slat, "timed_out") == 1);
    until("the answer", || mount.mock.verdicts() == [Verdict::Continue]);
}

#[test]
fn an_event_that_comes_as_its_kind_is_disarmed_is_let_go() {
    let mount = mount();
    let file = mount.open(EventKind::Cr3, Mode::Control);
    let (missed, wait) = mpsc::channel();
    let (release, released) = mpsc::channel();
    mount.mock.state().missed = Some(Box::new(move || {
        missed.send(()).unwrap();
        released.recv().unwrap();
    }));
    // The driver has said that there is nothing, but the pump has not heard it yet.
    wait.recv_timeout(LONG).unwrap();
    mount.mock.raise(cr3(0, 1));
    drop(file);
    assert_eq!(mount.mock.wanted(), Wanted::default());
    release.send(()).unwrap();
    until("the answer", || mount.mock.verdicts() == [Verdict::Continue]);
}

#[test]
fn every_end_of_a_controller_lets_go() {
    type End = fn(&Mount, EventFile);
    let ends: [End; 3] = [|_, file| file.close(), |_, file| drop(file), |mount, _file| mount.hub.end(false)];
    for end in ends {
        let mount = mount();
        let file = mount.open(EventKind::Cr3, Mode::Control);
        (0..4).for_each(|vcpu| mount.mock.raise(cr3(vcpu, 1)));
        until("all", || mount.hub.held(VcpuId(3)).is_some());
        end(&mount, file);
        assert_eq!(mount.mock.verdicts(), vec![Verdict::Continue; 4]);
        assert_eq!(mount.hub.held(VcpuId(0)), None);
        // One that the driver raised before it was told.
        mount.mock.raise(cr3(0, 2));
        until("a late one", || mount.mock.verdicts().len() == 5 || mount.mock.wanted().watches.is_empty());
    }
}

#[test]
fn a_wall_denies_whoever_says_continue() {
    let mount = mount();
    let set = |from, to, access, deny| AccessChange::Set { frames: Gfn(from)..Gfn(to), access, deny };
    let changes = [set(1, 3, Access::READ, true), set(5, 6, Access::NONE, false)];
    mount.hub.set_access(ViewId(0), &changes).unwrap();
    let write = |gpa| mount.mock.raise(slat(gpa, Access::WRITE));
    write(0x1000);
    write(0x5000);
    until("both", || mount.mock.verdicts().len() == 2);
    assert_eq!(mount.mock.verdicts(), [Verdict::Deny, Verdict::Continue]);
    assert_eq!(mount.stat(EventKind::Slat, "unattended"), 2);
    let file = mount.open(EventKind::Slat, Mode::Control);
    mount.mock.state().answers.clear();
    for answer in ["continue", "value=1"] {
        write(0x2fff);
        let (seq, held) = next(&file);
        assert!(held);
        file.write(format!("{seq} {answer}").as_bytes()).unwrap();
    }
    // A read is what the rule grants: another rule raised it.
    mount.mock.raise(slat(0x2000, Access::READ));
    let (seq, _) = next(&file);
    file.write(format!("{seq} continue").as_bytes()).unwrap();
    write(0x1000);
    assert!(next(&file).1);
    drop(file);
    let verdicts = [Verdict::Deny, Verdict::Value(1), Verdict::Continue, Verdict::Deny];
    assert_eq!(mount.mock.verdicts(), verdicts);
    assert_eq!(mount.stat(EventKind::Slat, "unattended"), 2);
}

#[test]
fn a_wall_that_can_not_be_one_lets_go() {
    let mount = mount();
    mount.mock.state().refuses = vec![Action::Deny];
    let wall = AccessChange::Set { frames: Gfn(0)..Gfn(9), access: Access::READ, deny: true };
    mount.hub.set_access(ViewId(0), &[wall]).unwrap();
    mount.mock.raise(slat(0, Access::WRITE));
    until("it", || mount.mock.verdicts() == [Verdict::Continue]);
}

#[test]
fn a_wall_is_asked_for_once_more_where_nobody_decides() {
    let mount = mount();
    let wall = AccessChange::Set { frames: Gfn(0)..Gfn(9), access: Access::READ, deny: true };
    mount.hub.set_access(ViewId(0), &[wall]).unwrap();
    mount.mock.state().refuses_once = Some(Action::Deny);
    mount.mock.raise(slat(0, Access::WRITE));
    until("it", || mount.mock.verdicts() == [Verdict::Deny]);
    // Who does decide is told.
    let file = mount.open(EventKind::Slat, Mode::Control);
    mount.mock.state().refuses_once = Some(Action::Deny);
    mount.mock.raise(slat(0, Access::WRITE));
    let (seq, _) = next(&file);
    assert_eq!(errno(file.write(format!("{seq} deny").as_bytes())), Errno::EINVAL);
    file.write(format!("{seq} deny").as_bytes()).unwrap();
    assert_eq!(mount.mock.verdicts(), [Verdict::Deny, Verdict::Deny]);
}

#[test]
fn an_event_that_does_not_wait_is_for_observers_alone() {
    let mount = mount();
    let controller = mount.open(EventKind::Cr3, Mode::Control);
    let observer = mount.open(EventKind::Cr3, Mode::Observe);
    mount.mock.tell([cr3(0, 1)]);
    assert_eq!(next(&observer), (1, false));
    assert!(!controller.readable(None));
    assert_eq!(errno(controller.write(b"1 continue")), Errno::ESTALE);
}

#[test]
fn the_vms_death_ends_what_is_held() {
    let mount = mount();
    let file = mount.open(EventKind::Cr3, Mode::Control);
    mount.mock.raise(cr3(0, 1));
    assert!(next(&file).1);
    mount.mock.die();
    until("the end", || file.ended());
    assert_eq!(errno(file.write(b"1 continue")), Errno::ENODEV);
    until("nothing held", || mount.hub.held(VcpuId(0)).is_none());
    assert!(mount.mock.verdicts().is_empty());
}
