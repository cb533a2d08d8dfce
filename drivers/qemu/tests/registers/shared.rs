//! Snapshots beside a manager who pauses and resumes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use vmtree_api::{RunState, VcpuId};

use crate::bench::*;

#[test]
fn many_readers_share_snapshots_beside_a_manager_who_pauses_and_resumes() {
    let Some(mut lab) = boot(2, &[]) else { return };
    let done = AtomicBool::new(false);
    let driver = &*lab.driver;
    let (reads, failures) = thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|reader| {
                let done = &done;
                scope.spawn(move || {
                    let (mut reads, mut failures) = (0_u32, 0_u32);
                    while !done.load(Ordering::Relaxed) {
                        match driver.registers().unwrap().read(VcpuId(reader % 2)) {
                            Ok(_) => reads += 1,
                            Err(error) => {
                                println!("{error}");
                                failures += 1;
                            }
                        }
                    }
                    (reads, failures)
                })
            })
            .collect();
        let mut lost = 0;
        let mut wrong = None;
        for round in 0..300_u32 {
            let resumes = round % 2 == 1;
            let (word, expected) =
                if resumes { ("cont", "VM status: running") } else { ("stop", "VM status: paused") };
            lab.vm.human(word);
            sleep(Duration::from_millis(u64::from(round * 7919 % 5)));
            if round % 10 >= 2 {
                continue;
            }
            // A stop that comes while we hold the VM stopped is seen by nobody; the manager finds it running and says
            // it again. A snapshot may be under way when it should run.
            let deadline = Instant::now() + Duration::from_secs(5);
            while lab.vm.human("info status").trim() != expected {
                if Instant::now() > deadline {
                    wrong = Some(format!("round {round}: not {expected}"));
                    break;
                }
                if !resumes {
                    lost += 1;
                    lab.vm.human(word);
                }
            }
        }
        println!("{lost} stops said again");
        done.store(true, Ordering::Relaxed);
        let counts: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        assert_eq!(wrong, None);
        (counts.iter().map(|count| count.0).sum::<u32>(), counts.iter().map(|count| count.1).sum::<u32>())
    });
    println!("{reads} reads, {failures} failures");
    assert!(reads > 50);
    assert!(failures * 10 < reads, "{failures} failures");
    assert_eq!(lab.state(), RunState::Running, "as the manager left it");
    assert!(lab.beats(0) && lab.beats(1));
}
