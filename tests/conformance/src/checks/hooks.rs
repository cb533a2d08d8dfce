//! Views with rules and verdicts: what hooks are made of.

use vmtree_guest::Outcome;
use vmtree_guest::mailbox::{Counter, Op, header};

use super::slat::page;
use super::views::View;
use crate::event::number;
use crate::{Check, Checked, Vm};

pub const CHECKS: &[Check] = &[
    Check {
        name: "views-rules",
        needs: &["views", "event slat w"],
        about: "a rule of a view is of those who run on it alone, and the record names the view",
        run: rules,
    },
    Check {
        name: "views-by-answer",
        needs: &["views", "event * view"],
        about: "view= in an answer puts the vCPU on that view",
        run: by_answer,
    },
    Check {
        name: "views-hidden-hook",
        needs: &["views", "event breakpoint step", "event slat step", "event slat r"],
        about: "int3 in a private copy is hit, stepped over on the clean frame, and never read by the guest",
        run: hidden_hook,
    },
];

fn rules(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let at = vm.header(header::SCRATCH)? + 0xd0;
    let view = View::make(vm, "conf")?;
    vm.write(&view.file("access"), &format!("{} r-x\n", page(at)))?;
    let mut pipe = vm.watch("events/slat")?;
    vm.order(0, Op::Write, &[2, at, 1, 8])?;
    pipe.nothing()?;
    view.enter(0)?;
    vm.order(0, Op::Write, &[2, at, 2, 8])?;
    for record in pipe.exactly(2)? {
        record.check(
            "a write on the view",
            &[("view", "conf".to_owned()), ("access", "w".to_owned()), ("gpa", number(at))],
        )?;
    }
    same!(
        vm.text("views/0/access")?.contains(&page(at)),
        false,
        "views/0/access has the rule of another view"
    );
    vm.write(&view.file("access"), "reset\n")?;
    vm.order(0, Op::Write, &[2, at, 3, 8])?;
    pipe.nothing()
}

fn by_answer(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let at = vm.header(header::SCRATCH)? + 0xe0;
    let acts = crate::acts::acts(vm, 0)?;
    let act = acts.into_iter().find(|act| vm.offers(&format!("event {} view", act.kind)));
    let act = act.ok_or("no act can be answered with view=")?.once();
    vm.order(0, Op::Write, &[1, at, 0x11, 8])?;
    let view = View::make(vm, "conf")?;
    view.remap(&format!("{:#x} copy", at & !0xfff))?;
    view.put(at, &0x22_u64.to_le_bytes())?;
    vm.prepare(&act)?;
    let mut pipe = vm.control(&super::control::file(&act))?;
    let stopped = super::control::stop(vm, &act, &mut pipe)?;
    pipe.answer(&stopped.record, "view=conf")?;
    vm.end(&stopped.posted)?;
    drop(pipe);
    same!(vm.text("vcpu/0/view")?, "conf\n", "vcpu/0/view after view=conf");
    same!(vm.order(0, Op::Read, &[1, at, 8])?, 0x22, "what the guest reads after view=conf");
    vm.write("vcpu/0/view", "0\n")?;
    vm.restore(&act)
}

fn hidden_hook(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let code = vm.header(header::CODE)?;
    let view = View::make(vm, "hooks")?;
    view.remap(&format!("{code:#x} copy"))?;
    view.put(code, &[0xcc])?;
    vm.write(&view.file("access"), &format!("{} --x\n", page(code)))?;
    vm.write("view", "hooks\n")?;
    let mut hits = vm.control("events/breakpoint")?;
    let mut reads = vm.control("events/slat,access=r")?;
    for vcpu in 0..vm.vcpus {
        let before = vm.counter(vcpu, Counter::Breakpoints)?;
        let posted = vm.post(vcpu, &(Op::Exec, vec![2, code]))?;
        for _ in 0..2 {
            let hit = hits.held()?;
            hit.check(
                "a hit of the hook",
                &[("rip", number(code)), ("vcpu", number(vcpu)), ("view", "hooks".to_owned())],
            )?;
            hits.answer(&hit, "step view=0")?;
        }
        let called = vm.end(&posted)?;
        ensure!(
            matches!(called, Outcome::Done([0x600d_c0de, ..])),
            "a call through the hook ended with {called:x?}"
        );
        same!(vm.counter(vcpu, Counter::Breakpoints)?, before, "breakpoints that the guest saw");
        let posted = vm.post(vcpu, &(Op::Read, vec![1, code, 1]))?;
        let read = reads.held()?;
        reads.answer(&read, "step view=0")?;
        let read = vm.end(&posted)?;
        ensure!(
            matches!(read, Outcome::Done([0xb8, ..])),
            "the guest's read of the hooked byte ended with {read:x?}"
        );
        same!(
            vm.text(&format!("vcpu/{vcpu}/view"))?,
            "hooks\n",
            "the view of vCPU {vcpu} after steps on another"
        );
    }
    Ok(())
}
