//! SLAT permissions: traps by event files and by `views/0/access`, walls, and answers to what they raise.

use std::time::Instant;

use vmtree_guest::Outcome;
use vmtree_guest::layout;
use vmtree_guest::mailbox::{Op, Site, header};

use super::errno::EINVAL;
use super::event_files::stat;
use crate::acts::Order;
use crate::event::{Fields, number};
use crate::map::hex;
use crate::{Check, Checked, Vm};

pub const CHECKS: &[Check] = &[
    Check {
        name: "slat-watch",
        needs: &["event slat r", "event slat w", "event slat x"],
        about: "an event file with gpa= and access= sees these accesses alone, each completed once",
        run: watch,
    },
    Check {
        name: "slat-page-walk",
        needs: &["event slat r", "event slat ptwalk"],
        about: "the vCPU's own reads of a page table are told as such, with the address that it translates",
        run: page_walk,
    },
    Check {
        name: "slat-write-answers",
        needs: &["event slat w", "event slat deny", "event slat value", "event slat inject"],
        about: "a held write: continue, deny, value= and inject, by what memory then has",
        run: write_answers,
    },
    Check {
        name: "slat-read-answers",
        needs: &["event slat r", "event slat value", "event slat inject"],
        about: "a held read: continue, value= and inject, by what the guest then has",
        run: read_answers,
    },
    Check {
        name: "slat-execute-answers",
        needs: &["event slat x", "event slat set", "event slat inject"],
        about: "a held fetch: continue, set rip= and inject, by what the guest then has",
        run: execute_answers,
    },
    Check {
        name: "slat-rules",
        needs: &["event slat w"],
        about: "a rule in access traps, counts what nobody decides as unattended, stays, and goes by reset",
        run: rules,
    },
    Check {
        name: "slat-walls",
        needs: &["event slat r", "event slat w", "event slat x", "event slat deny"],
        about: "behind deny writes are dropped, and reads and fetches get a page fault",
        run: walls,
    },
    Check {
        name: "slat-refusals",
        needs: &["event slat w"],
        about: "rules on holes, with rights that no hardware has, or unaligned, are refused whole",
        run: refusals,
    },
    Check {
        name: "slat-large-rule",
        needs: &["event slat w"],
        about: "a rule over all RAM is set, seen and taken back",
        run: large,
    },
];

/// The permissions of the default view.
pub const ACCESS: &str = "views/0/access";

/// Takes back the rules of the default view, also when a check fails.
pub struct Rules<'a>(pub &'a Vm);

impl Drop for Rules<'_> {
    fn drop(&mut self) {
        let _ = self.0.write(ACCESS, "reset\n");
    }
}

/// The page of an address as a range of text.
pub fn page(gpa: u64) -> String {
    let start = gpa & !0xfff;
    format!("{start:#x}-{:#x}", start + 0x1000)
}

fn site(vm: &Vm, site: Site) -> Result<u64, String> {
    vm.mailbox.site(site).map_err(|error| error.to_string())
}

/// What a record of an access tells.
fn access(kind: &str, gpa: u64, rip: u64) -> Fields {
    vec![
        ("kind", "slat".to_owned()),
        ("access", kind.to_owned()),
        ("gpa", number(gpa)),
        ("gva", number(gpa)),
        ("ptwalk", number(0)),
        ("rip", number(rip)),
    ]
}

/// A kind of access, where, the order that does it, and what each record tells.
type Access = (&'static str, u64, Order, Vec<Fields>);

/// A read, a write and a call on pages that nothing else touches, with what each raises.
fn accesses(vm: &Vm) -> Result<[Access; 3], String> {
    let (at, code) = (vm.header(header::SCRATCH)? + 0x88, vm.header(header::CODE)?);
    let (read, write) = (site(vm, Site::Read8)?, site(vm, Site::Write8)?);
    // mov eax, imm32 has 5 bytes; then ret.
    let call = [access("x", code, code), access("x", code + 5, code + 5)];
    Ok([
        ("r", at, (Op::Read, vec![3, at, 8]), vec![access("r", at, read); 3]),
        ("w", at, (Op::Write, vec![3, at, 0x1234_5678, 8]), vec![access("w", at, write); 3]),
        ("x", code, (Op::Exec, vec![2, code]), [call.clone(), call].concat()),
    ])
}

fn watch(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    for vcpu in 0..vm.vcpus {
        for (kind, gpa, order, wanted) in accesses(vm)? {
            let mut pipe = vm.watch(&format!("events/slat,gpa={},access={kind}", page(gpa)))?;
            let watched = vm.outcome(vcpu, order.0, &order.1)?;
            let records = pipe.exactly(wanted.len())?;
            for (record, fields) in records.iter().zip(&wanted) {
                record.check(&format!("{kind} of vCPU {vcpu}"), fields)?;
                same!(record.get("vcpu")?, vcpu, "vcpu= of {record:?}");
            }
            drop(pipe);
            vm.until("the close disarms", || Ok(stat(vm, "slat", "armed")? == 0))?;
            same!(vm.outcome(vcpu, order.0, &order.1)?, watched, "{} alone, and watched", order.0.name());
            let mut pipe = vm.watch(&format!("events/slat,gpa={},access={kind}", page(gpa)))?;
            // Of the other accesses at the same place none is seen.
            for (other, .., (op, args), _) in accesses(vm)?.iter().filter(|(other, ..)| *other != kind) {
                vm.order(vcpu, *op, args)?;
                pipe.nothing().map_err(|why| format!("{other} with access={kind}: {why}"))?;
            }
        }
    }
    Ok(())
}

/// The table is one that maps the guest's data and not its code: an instruction whose fetch is stopped is carried out in one
/// piece, and its other accesses with it.
fn page_walk(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let vcpu = vm.vcpus - 1;
    // Its ticks make walks too, and where an event takes long, more than it ever comes to an end of.
    let _masked = vm.masked(vcpu)?;
    let (table, gva) = (layout::KERNEL_PT, vm.header(header::DATA)? + 0x10);
    let mut pipe = vm.control(&format!("events/slat,gpa={},access=rw,vcpu={vcpu}", page(table)))?;
    let order = (Op::Read, vec![1, gva, 8]);
    let (posted, begun) = (vm.post(vcpu, &order)?, Instant::now());
    // Held, because polling for orders makes more walks than an event file has room for.
    loop {
        let record = pipe.held()?;
        same!(record.get("ptwalk")?, 1, "ptwalk= of {record:?}");
        same!(record.get("gpa")? & !0xfff, table, "the page of gpa= of {record:?}");
        pipe.answer(&record, "continue")?;
        if record.get("gva")? == gva {
            break;
        }
        ensure!(begun.elapsed() < vm.patience, "no walk for {gva:#x} in {:?}", vm.patience);
    }
    drop(pipe);
    same!(vm.end(&posted)?, vm.outcome(vcpu, order.0, &order.1)?, "what is read, its walks held, and alone");
    Ok(())
}

/// Holds one access, answers it, and returns how the order ends.
fn answered(vm: &Vm, kind: &str, gpa: u64, order: &Order, answers: &[&str]) -> Result<Outcome, String> {
    let mut pipe = vm.control(&format!("events/slat,gpa={},access={kind}", page(gpa)))?;
    let posted = vm.post(0, order)?;
    for answer in answers {
        let record = pipe.held()?;
        if kind != "w" {
            pipe.refuses(&format!("{} deny", record.seq()?), EINVAL)?;
        }
        pipe.answer(&record, answer)?;
    }
    let outcome = vm.end(&posted)?;
    pipe.nothing()?;
    Ok(outcome)
}

const FAULT: &str = "inject pf 0x7f0000001000 err=0x2";

fn fault(rip: u64) -> Outcome {
    Outcome::Faulted { vector: 14, error: 2, cr2: 0x7f00_0000_1000, rip }
}

fn write_answers(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let at = vm.header(header::SCRATCH)? + 0x90;
    let order = (Op::Write, vec![1, at, 0x11, 8]);
    for (answer, left) in [("continue", 0x11), ("deny", 0x55), ("value=0x22", 0x22), (FAULT, 0x55)] {
        vm.order(0, Op::Write, &[1, at, 0x55, 8])?;
        let outcome = answered(vm, "w", at, &order, &[answer])?;
        same!(vm.word(at)?, left, "memory after a held write was answered with {answer}");
        same!(vm.order(0, Op::Read, &[1, at, 8])?, left, "what the guest reads after {answer}");
        match answer {
            FAULT => same!(outcome, fault(site(vm, Site::Write8)?), "how a write ended with {answer}"),
            _ => {
                ensure!(matches!(outcome, Outcome::Done(_)), "a write with {answer} ended with {outcome:x?}")
            }
        }
    }
    Ok(())
}

fn read_answers(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let at = vm.header(header::SCRATCH)? + 0x98;
    vm.order(0, Op::Write, &[1, at, 0x55, 8])?;
    let order = (Op::Read, vec![1, at, 8]);
    let wide = "value=0x8877665544332211";
    for (answer, got) in [("continue", 0x55), (wide, 0x8877_6655_4433_2211)] {
        let outcome = answered(vm, "r", at, &order, &[answer])?;
        ensure!(
            matches!(outcome, Outcome::Done([found, ..]) if found == got),
            "a read with {answer}: {outcome:x?}"
        );
        same!(vm.word(at)?, 0x55, "memory after a held read was answered with {answer}");
    }
    let outcome = answered(vm, "r", at, &order, &[FAULT])?;
    same!(outcome, fault(site(vm, Site::Read8)?), "how a read ended with {FAULT}");
    Ok(())
}

fn execute_answers(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let code = vm.header(header::CODE)?;
    let order = (Op::Exec, vec![1, code]);
    let skip = format!("set rax=0x77,rip={:#x}", code + 5);
    for (answers, got) in [(["continue", "continue"], 0x600d_c0de), ([skip.as_str(), "continue"], 0x77)] {
        let outcome = answered(vm, "x", code, &order, &answers)?;
        ensure!(
            matches!(outcome, Outcome::Done([found, ..]) if found == got),
            "a call with {answers:?}: {outcome:x?}"
        );
    }
    same!(answered(vm, "x", code, &order, &[FAULT])?, fault(code), "how a call ended with {FAULT}");
    Ok(())
}

/// The rules that `access` shows: first and last address, rights, the rest of the line.
fn shown(vm: &Vm) -> Result<Vec<(u64, u64, String, String)>, String> {
    let text = vm.text(ACCESS)?;
    let line = |line: &str| {
        let (range, rest) = line.split_once(' ').ok_or_else(|| format!("{ACCESS}: '{line}'"))?;
        let (start, end) = range.split_once('-').ok_or_else(|| format!("{ACCESS}: '{line}'"))?;
        let (rights, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        Ok((hex(start)?, hex(end)?, rights.to_owned(), rest.to_owned()))
    };
    text.lines().map(line).collect()
}

fn rules(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let _rules = Rules(vm);
    let at = vm.header(header::SCRATCH)? + 0xa0;
    let (start, unattended) = (at & !0xfff, stat(vm, "slat", "unattended")?);
    vm.write(ACCESS, &format!("{} r-x\n", page(at)))?;
    same!(shown(vm)?, vec![(start, start + 0x1000, "r-x".to_owned(), String::new())], "{ACCESS} with a rule");
    for value in [1, 2, 3] {
        vm.order(0, Op::Write, &[1, at, value, 8])?;
        same!(vm.word(at)?, value, "memory after a write that nobody decides");
    }
    vm.until("three unattended accesses", || Ok(stat(vm, "slat", "unattended")? == unattended + 3))?;
    // An event file without gpa= sees what rules raise.
    let mut pipe = vm.watch("events/slat")?;
    vm.order(0, Op::Write, &[2, at, 4, 8])?;
    for record in pipe.exactly(2)? {
        record.check("a write against a rule", &access("w", at, site(vm, Site::Write8)?))?;
    }
    drop(pipe);
    let open = vm.watch(&format!("events/slat,gpa={},access=w", page(at + 0x1000)))?;
    let marked = (start + 0x1000, start + 0x2000, "r-x".to_owned(), "# event".to_owned());
    ensure!(shown(vm)?.contains(&marked), "{ACCESS} has no {marked:x?}: {:x?}", shown(vm)?);
    drop(open);
    vm.write(ACCESS, &format!("{} rwx\n", page(at)))?;
    // The kernel tells of the file's close behind it.
    vm.until("no rule in access after rwx", || Ok(shown(vm)?.is_empty()))?;
    vm.write(ACCESS, &format!("{} r--\n", page(at)))?;
    vm.write(ACCESS, "reset\n")?;
    same!(shown(vm)?, Vec::new(), "{ACCESS} after reset");
    let before = stat(vm, "slat", "raised")?;
    vm.order(0, Op::Write, &[3, at, 4, 8])?;
    same!(stat(vm, "slat", "raised")?, before, "raised, with no rule left");
    Ok(())
}

fn walls(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    let _rules = Rules(vm);
    let (at, code) = (vm.header(header::SCRATCH)? + 0xa8, vm.header(header::CODE)?);
    vm.order(0, Op::Write, &[1, at, 0x55, 8])?;
    vm.write(ACCESS, &format!("{} r-- deny\n{} --- deny\n", page(at), page(code)))?;
    for vcpu in 0..vm.vcpus {
        vm.order(vcpu, Op::Write, &[2, at, 0x66, 8])?;
        same!(vm.word(at)?, 0x55, "memory behind a wall, after vCPU {vcpu} wrote to it");
        same!(
            vm.order(vcpu, Op::Read, &[1, at, 8])?,
            0x55,
            "what vCPU {vcpu} reads where only writes are denied"
        );
        // Present; a fetch is bit 4 (Intel SDM volume 3A, 4.7).
        let fetch = vm.outcome(vcpu, Op::Exec, &[1, code])?;
        let wanted = Outcome::Faulted { vector: 14, error: 0x11, cr2: code, rip: code };
        same!(fetch, wanted, "a call behind a wall, of vCPU {vcpu}");
        let read = vm.outcome(vcpu, Op::Read, &[1, code, 8])?;
        let wanted = Outcome::Faulted { vector: 14, error: 1, cr2: code, rip: site(vm, Site::Read8)? };
        same!(read, wanted, "a read behind a wall, of vCPU {vcpu}");
    }
    vm.write(ACCESS, "reset\n")?;
    same!(vm.order(0, Op::Exec, &[1, code])?, 0x600d_c0de, "a call after reset");
    Ok(())
}

fn refusals(vm: &Vm) -> Checked {
    let _rules = Rules(vm);
    let at = vm.header(header::SCRATCH)? & !0xfff;
    let hole = vm.map()?.last().map_or(0, |region| region.range.end) + (1 << 30);
    let good = format!("{} r-x", page(at));
    for bad in [
        format!("{} -w-", page(at)),
        format!("{} -wx", page(at)),
        format!("{} rwz", page(at)),
        format!("{} r-x allow", page(at)),
        format!("{:#x}-{:#x} r-x", at + 1, at + 0x1000),
        format!("{at:#x}-{at:#x} r-x"),
        format!("{:#x}-{at:#x} r-x", at + 0x1000),
        format!("{at:#x} r-x"),
        "reset now".to_owned(),
        format!("{} r-x", page(hole)),
    ] {
        let text = format!("{good}\n{bad}\n");
        ensure!(vm.try_write(ACCESS, text.as_bytes()).is_err(), "'{bad}' was taken");
        same!(shown(vm)?, Vec::new(), "{ACCESS} after '{bad}' was refused");
    }
    vm.refused(ACCESS, format!("{} -w-\n", page(at)).as_bytes(), EINVAL)
}

fn large(vm: &Vm) -> Checked {
    let _quiet = vm.quiet()?;
    // Where an event takes long, the ticks of a guest whose every write is one would leave it no time.
    let _masked = vm.masked(0)?;
    let _rules = Rules(vm);
    let regions = vm.map()?;
    let top = regions.iter().filter(|region| region.is_ram()).max_by_key(|region| region.bytes());
    let range = top.map(|region| region.range.clone()).ok_or("no RAM")?;
    let before = stat(vm, "slat", "unattended")?;
    vm.write(ACCESS, &format!("{:#x}-{:#x} r-x\n", range.start, range.end))?;
    let lines = shown(vm)?;
    same!(lines.len(), 1, "lines of {ACCESS} for one rule");
    if range.contains(&vm.header(header::SCRATCH)?) {
        vm.order(0, Op::Nop, &[])?;
        // An event that nobody waits for may be counted a moment later.
        vm.until("a write of the guest meets a rule over all RAM", || {
            Ok(stat(vm, "slat", "unattended")? > before)
        })?;
    }
    vm.write(ACCESS, "reset\n")?;
    same!(shown(vm)?, Vec::new(), "{ACCESS} after reset");
    Ok(())
}
