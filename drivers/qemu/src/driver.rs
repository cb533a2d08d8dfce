//! The driver: opened by a SOURCE, it offers memory, and says what is missing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::Value;
use vmtree_api::events::{EventSource, Injection};
use vmtree_api::views::Views;
use vmtree_api::{
    Arch, Driver, Error, ErrorKind, Execution, Facts, Host, Memory, Missing, Registers, Result, Source,
};

use crate::agent::{self, Armed, Events};
use crate::control::Control;
use crate::debts::Debts;
use crate::execution::Vm;
use crate::find::{self, Found};
use crate::gdb::folder;
use crate::keeper::Keeper;
use crate::memory::GuestMemory;
use crate::qmp::Qmp;
use crate::registers::{self, Access};
use crate::source::Target;
use crate::verify::verify;
use crate::watch::{self, Watch};

const OP: &str = "open qemu";

struct Qemu {
    facts: Facts,
    memory: Arc<GuestMemory>,
    /// Dropped before the rest: it lets go of what it holds, so that QEMU can be stopped and let go on.
    events: std::result::Result<Armed<Vm>, Missing>,
    /// Dropped, it stops waiting for QEMU's end.
    _watch: Watch,
    registers: Arc<Access>,
    /// Dropped, it gives back what is paused.
    execution: Vm,
}

/// Opens the QEMU that `source` names: `qemu:/path/to/qmp.sock`, `qemu:name=NAME` or `qemu:pid=PID`.
///
/// Its monitor is asked for the layout of memory and let go again: a QMP server serves one client at a time.
///
/// # Errors
/// [`ErrorKind::Invalid`] for a target or an option that makes no sense, [`ErrorKind::NotFound`] if there is no such
/// QEMU, [`ErrorKind::Busy`] if another client holds its monitor, [`ErrorKind::Denied`] if its memory is closed to
/// us, [`ErrorKind::Unsupported`] if its guest is no x86-64 one or it has no QMP socket.
pub fn open(mut source: Source, host: Arc<dyn Host>) -> Result<Box<dyn Driver>> {
    let target = Target::parse(&source.target)?;
    let agent = source.take("agent");
    source.finish(&["agent"])?;
    let Found { pid, qmp } = find::connect(&target)?;
    // QEMU answers after this, so the process that is opened here is the one that answers.
    let process = watch::open(pid)?;
    let mut facts = facts(&qmp, pid)?;
    let ended = Arc::new(AtomicBool::new(false));
    let memory = Arc::new(GuestMemory::new(pid, Arc::clone(&ended)));
    memory.refresh(&qmp)?;
    verify(&qmp, &*memory)?;
    facts.extra.push(("memory", memory.ways()));
    let debts = Debts::new(pid, Arc::clone(&host));
    let control = Arc::new(Control::new(qmp, Arc::clone(&ended), debts)?);
    folder::sweep();
    let with_gdb = registers::can_have_gdb(&*control.lock().settle()?)?;
    let kvm = facts.extra.contains(&("accelerator", "kvm".to_owned()));
    let agent = agent::find(
        pid,
        agent.as_deref().map(Path::new),
        &facts,
        Arc::clone(&memory) as Arc<dyn Memory>,
        Arc::clone(&ended),
    )?;
    facts.extra.push(("agent", told(&agent)));
    if agent.as_ref().is_err_and(|missing| missing.cure.is_some()) {
        facts.extra.push(("agent_libvirt", agent::Plugin::for_vm(facts.name.as_deref()).libvirt()));
    }
    let holds = agent.as_ref().ok().map(|agent| Arc::clone(agent.holds()));
    control.lock().holds.clone_from(&holds);
    let registers = Arc::new(Access::new(Arc::clone(&control), pid, with_gdb, kvm).with(holds));
    let mut keeper = Keeper::new(pid, &control, Arc::clone(&memory), Arc::clone(&ended), Arc::clone(&host));
    let watch = Watch::start(process, ended, host, move || keeper.tick())?;
    let execution = || Vm(Arc::clone(&control), Arc::clone(&registers));
    let events = agent.map(|events| Armed::new(events, execution()));
    let execution = execution();
    Ok(Box::new(Qemu { events, facts, memory, _watch: watch, registers, execution }))
}

fn facts(qmp: &Qmp, pid: u32) -> Result<Facts> {
    let ask = |command| qmp.execute(command, Value::Null);
    let text =
        |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let arch = text(&ask("query-target")?, "/arch").unwrap_or_default();
    if arch != "x86_64" {
        let why = format!("process {pid} emulates '{arch}'; only x86_64 guests can be opened");
        return Err(Error::new(ErrorKind::Unsupported, OP, why));
    }
    let vcpus = ask("query-cpus-fast")?.as_array().and_then(|list| u32::try_from(list.len()).ok());
    let mut extra = vec![("pid", pid.to_string()), ("qmp", qmp.path().display().to_string())];
    let version = ask("query-version")?;
    let number = |part: &str| version.pointer(&format!("/qemu/{part}")).and_then(Value::as_u64);
    if let (Some(major), Some(minor), Some(micro)) = (number("major"), number("minor"), number("micro")) {
        extra.push(("qemu", format!("{major}.{minor}.{micro}")));
    }
    extra.extend(accelerator(qmp)?.map(|accelerator| ("accelerator", accelerator.to_owned())));
    Ok(Facts { driver: "qemu", name: text(&ask("query-name")?, "/name"), arch: Arch::X86_64, vcpus, extra })
}

/// `None` where it is neither KVM nor TCG.
fn accelerator(qmp: &Qmp) -> Result<Option<&'static str>> {
    let kvm = qmp.execute("query-kvm", Value::Null)?;
    if kvm.pointer("/enabled").and_then(Value::as_bool) == Some(true) {
        return Ok(Some("kvm"));
    }
    // Only TCG has a translator to tell of.
    Ok(qmp.human("info jit")?.contains("Translation buffer").then_some("tcg"))
}

impl Driver for Qemu {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory(&self) -> &dyn Memory {
        &*self.memory
    }

    fn registers(&self) -> std::result::Result<&dyn Registers, Missing> {
        Ok(&*self.registers)
    }

    fn execution(&self) -> std::result::Result<&dyn Execution, Missing> {
        Ok(&self.execution)
    }

    fn events(&self) -> std::result::Result<&dyn EventSource, Missing> {
        self.events.as_ref().map(|events| events as &dyn EventSource).map_err(Clone::clone)
    }

    fn views(&self) -> std::result::Result<&dyn Views, Missing> {
        Err(Missing::new(
            "stock QEMU has one view of memory and no permissions on it that can be set from outside",
        ))
    }

    fn injection(&self) -> std::result::Result<&dyn Injection, Missing> {
        Err(match &self.events {
            Ok(_) => Missing::new("QEMU's plugin interface injects only into a vCPU that waits at an event")
                .cure("answer an event with 'SEQ inject ...'"),
            Err(missing) => missing.clone(),
        })
    }
}

/// The agent in the words of `info`.
fn told(agent: &std::result::Result<Events, Missing>) -> String {
    match agent {
        Ok(agent) => agent.name(),
        Err(missing) => format!("no: {missing}"),
    }
}
