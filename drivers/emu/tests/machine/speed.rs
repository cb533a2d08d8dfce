//! How many instructions a CPU second executes. Run by hand: `cargo test -p vmtree-emu --test machine speed -- --ignored
//! --nocapture`.

use std::time::Duration;

use iced_x86::code_asm::*;
use vmtree_api::events::{EventKind, Wanted, Watch};
use vmtree_api::views::Rule;
use vmtree_api::{Access, Driver, Gfn, ViewId};

use super::bench::{V0, open, regs};

/// CPU time of the machine's thread, in ns.
fn spent() -> u64 {
    let mut ns = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let named =
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "vmtree-emu");
        if named {
            let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap();
            ns += text.split(' ').next().unwrap().parse::<u64>().unwrap();
        }
    }
    ns
}

/// Loads, stores, a call and arithmetic, for ever.
pub fn mixed(a: &mut CodeAssembler) {
    let (mut again, mut routine) = (a.create_label(), a.create_label());
    a.mov(rbx, 0x20_0000_u64).unwrap();
    a.set_label(&mut again).unwrap();
    a.mov(rcx, qword_ptr(rbx)).unwrap();
    a.add(rcx, rax).unwrap();
    a.mov(qword_ptr(rbx + 8), rcx).unwrap();
    a.add(qword_ptr(rbx + 0x1000), 1).unwrap();
    a.call(routine).unwrap();
    a.jmp(again).unwrap();
    a.set_label(&mut routine).unwrap();
    a.push(rcx).unwrap();
    a.inc(rax).unwrap();
    a.cmp(rax, rcx).unwrap();
    a.pop(rcx).unwrap();
    a.ret().unwrap();
}

/// Million instructions a CPU second: the best of several short runs.
pub fn rate(driver: &dyn Driver) -> f64 {
    let one = || {
        let (time, tsc) = (spent(), regs(driver, V0).tsc);
        std::thread::sleep(Duration::from_millis(150));
        let done = (regs(driver, V0).tsc - tsc) / 10;
        done as f64 * 1e3 / (spent() - time) as f64
    };
    (0..20).map(|_| one()).fold(0.0, f64::max)
}

#[test]
#[ignore = "a measurement"]
fn speed_with_nothing_armed() {
    let driver = open(1, mixed);
    eprintln!("nothing armed: {:.2} million instructions a CPU second", rate(&*driver));
}

#[test]
#[ignore = "a measurement"]
fn speed_with_something_armed_that_does_not_happen() {
    let driver = open(1, mixed);
    let events = driver.events().unwrap();
    let plain = rate(&*driver);
    let watch = Watch { kind: EventKind::Cr3, way: None, vcpu: None, index: None, hold: true };
    events.watch(&Wanted { watches: vec![watch], rules: Vec::new() }).unwrap();
    let watched = rate(&*driver);
    let rule = |frames, access| Rule { view: ViewId(0), frames, access, hold: true };
    let wanted = |rule| Wanted { watches: Vec::new(), rules: vec![rule] };
    events.watch(&wanted(rule(Gfn(0x500)..Gfn(0x501), Access::NONE))).unwrap();
    let page = rate(&*driver);
    events.watch(&wanted(rule(Gfn(0x400)..Gfn(0x600), Access::READ))).unwrap();
    let range = rate(&*driver);
    eprintln!(
        "million instructions a CPU second: {plain:.2}, with cr3 {watched:.2}, a page {page:.2}, 2 MiB {range:.2}"
    );
}
