//! Thousands of open files and parked readers.

use super::super::ring::RECORDS;
use super::*;
use mock::cr3;
use vmtree_api::VcpuId;

#[test]
fn ten_thousand_files_are_armed_once_and_share_one_ring() {
    let mount = mount();
    let files: Vec<_> = (0..10_000).map(|_| mount.open(EventKind::Cr3, Mode::Observe)).collect();
    assert_eq!(mount.mock.state().watched.len(), 1);
    let calls = Arc::default();
    for file in &files {
        assert!(!file.readable(Some(counting(&calls))));
    }
    mount.mock.tell((0..RECORDS as u64).map(|new| cr3(0, new)));
    until("all", || mount.stat(EventKind::Cr3, "raised") == RECORDS as u64);
    until("all wakers", || calls.load(Ordering::SeqCst) == files.len());
    for file in files.iter().step_by(1000) {
        assert_eq!(items(file, RECORDS).len(), RECORDS);
    }
    // What an open file costs beside the ring: no copy of what it has not read, none of what it has.
    let file = size_of::<EventFile>() + size_of::<super::super::stream::Parked>();
    let ring = size_of::<super::super::record::Record>();
    assert!(file <= 640 && ring <= 104, "docs/architecture.md says less: {file}, {ring}");
    drop(files);
    assert!(mount.mock.wanted().watches.is_empty());
    assert_eq!(mount.mock.state().watched.len(), 2);
}

#[test]
fn many_readers_of_many_filters_each_get_their_own() {
    let mount = mount();
    let filter = |vcpu| Filter { vcpu: Some(VcpuId(vcpu)), ..Filter::of(EventKind::Cr3) };
    let files: Vec<_> = (0..400).map(|at| mount.try_open(filter(at % 4), Mode::Observe).unwrap()).collect();
    let threads: Vec<_> = files
        .into_iter()
        .map(|file| {
            std::thread::Builder::new().stack_size(64 << 10).spawn(move || items(&file, 25).len()).unwrap()
        })
        .collect();
    for round in 0..25 {
        mount.mock.tell((0..4).map(|vcpu| cr3(vcpu, round)));
    }
    for thread in threads {
        assert_eq!(thread.join().unwrap(), 25);
    }
}

#[test]
fn controllers_come_and_go_while_events_do() {
    let mount = mount();
    let mock = mount.mock.clone();
    let raised = 3000;
    let guest = std::thread::spawn(move || (0..raised).for_each(|new| mock.raise(cr3(new % 4, 1))));
    let mut answered = 0;
    while !guest.is_finished() || mount.mock.verdicts().len() < raised as usize {
        let file = mount.open(EventKind::Cr3, Mode::Control);
        for _ in 0..20 {
            let late = Instant::now() + Duration::from_millis(5);
            while !file.readable(None) && Instant::now() < late {
                std::thread::yield_now();
            }
            if !file.readable(None) {
                break;
            }
            if let (seq, true) = next(&file) {
                file.write(format!("{seq} deny").as_bytes()).unwrap();
                answered += 1;
            }
        }
        // Whatever it still holds goes with it.
    }
    guest.join().unwrap();
    let verdicts = mount.mock.verdicts();
    assert_eq!(verdicts.len(), raised as usize, "each vCPU was let go exactly once");
    let denied = verdicts.iter().filter(|verdict| **verdict == vmtree_api::events::Verdict::Deny).count();
    assert_eq!(denied, answered);
}
