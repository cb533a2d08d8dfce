//! Whatever goes wrong with the gdbstub, the VM is left as it was found, and registers are set all or none.

use std::sync::Arc;

use vmtree_api::x86::Reg;
use vmtree_api::{Cancel, ErrorKind, RegValue, Registers, RunState, VcpuId};

use super::Access;
use super::fake::{Fake, Fault};
use crate::control::Control;
use crate::debts::Debts;
use crate::execution::Vm;
use crate::qmp::Qmp;

const FAULTS: [Fault; 6] =
    [Fault::Garbage, Fault::Half, Fault::HangUp, Fault::Refusal, Fault::Nonsense, Fault::Unknown];

fn open(fake: &Fake) -> Vm {
    let qmp = Qmp::connect(&fake.folder.path().join("qmp")).unwrap();
    let control = Arc::new(Control::new(qmp, Arc::default(), Debts::default()).unwrap());
    let registers = Access::new(Arc::clone(&control), std::process::id(), true, false);
    Vm(control, Arc::new(registers))
}

fn changes() -> Vec<(vmtree_api::RegId, RegValue)> {
    [(Reg::Rax, 1), (Reg::R14, 2), (Reg::Cr2, 3), (Reg::Rflags, 0x202)]
        .map(|(reg, value)| (reg.id(), RegValue::Word(value)))
        .to_vec()
}

/// Makes each packet of `act` go wrong in each way, on a running VM and on a paused one.
fn each_packet_fails(
    faults: &[Fault],
    act: impl Fn(&Vm) -> vmtree_api::Result<()>,
    check: impl Fn(&Fake, bool),
) {
    let most = {
        let fake = Fake::start();
        fake.machine.lock().stopped = true;
        act(&open(&fake)).unwrap();
        fake.machine.lock().packets
    };
    assert!(most > 5, "{most} packets");
    for &fault in faults {
        for stopped in [false, true] {
            for nth in 1..=most {
                let fake = Fake::start();
                let vm = open(&fake);
                fake.machine.lock().stopped = stopped;
                fake.machine.lock().fault = Some((nth, fault));
                let result = act(&vm);
                assert_eq!(fake.machine.lock().stopped, stopped, "{fault:?} at packet {nth}: {result:?}");
                check(&fake, result.is_ok());
                // The failure is over: the next try works.
                fake.machine.lock().fault = None;
                fake.machine.lock().stopped = true;
                act(&vm).unwrap_or_else(|error| panic!("{fault:?} at packet {nth}, then {error}"));
                assert!(fake.machine.lock().stopped);
            }
        }
    }
}

#[test]
fn a_read_that_fails_anywhere_leaves_the_vm_as_it_was() {
    let read = |vm: &Vm| vm.1.read(VcpuId(0)).map(drop);
    each_packet_fails(&FAULTS, read, |_, _| {});
}

#[test]
fn a_write_that_fails_anywhere_changes_nothing() {
    let before = Fake::start().machine.lock().registers.clone();
    let write = |vm: &Vm| vm.1.write(VcpuId(0), &changes());
    each_packet_fails(&FAULTS, write, |fake, done| {
        let now = fake.machine.lock().registers.clone();
        assert_eq!(now == before, !done);
    });
}

#[test]
fn silence_ends_and_changes_nothing() {
    let before = Fake::start().machine.lock().registers.clone();
    for nth in [1, 5, 8, 10, 12] {
        let fake = Fake::start();
        let vm = open(&fake);
        fake.machine.lock().fault = Some((nth, Fault::Silence));
        assert_eq!(vm.1.write(VcpuId(0), &changes()).unwrap_err().kind(), ErrorKind::TimedOut, "{nth}");
        assert!(!fake.machine.lock().stopped);
        assert_eq!(fake.machine.lock().registers, before);
    }
}

#[test]
fn a_step_that_fails_anywhere_leaves_the_vm_paused() {
    use vmtree_api::Execution;
    let fake = Fake::start();
    assert_eq!(open(&fake).step(VcpuId(0), 1, &Cancel::default()).unwrap_err().kind(), ErrorKind::Busy);
    assert!(!fake.machine.lock().stopped);
    for fault in FAULTS {
        for nth in 1..=12 {
            let fake = Fake::start();
            let vm = open(&fake);
            fake.machine.lock().stopped = true;
            fake.machine.lock().fault = Some((nth, fault));
            assert!(vm.step(VcpuId(0), 5, &Cancel::default()).is_err(), "{fault:?} at packet {nth}");
            assert_eq!(vm.state().unwrap(), RunState::Paused);
            assert_eq!(vm.step(VcpuId(0), 130, &Cancel::default()).unwrap(), 130);
        }
    }
}

#[test]
fn a_value_that_is_dropped_silently_is_an_error_and_all_is_put_back() {
    let fake = Fake::start();
    let vm = open(&fake);
    let before = fake.machine.lock().registers.clone();
    // r14
    fake.machine.lock().stuck = vec![14];
    let error = vm.1.write(VcpuId(0), &changes()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("r14"), "{error}");
    assert_eq!(fake.machine.lock().registers, before);
    assert!(!fake.machine.lock().stopped);
}

#[test]
fn nothing_of_ours_stays_when_the_driver_is_dropped() {
    let fake = Fake::start();
    let vm = open(&fake);
    vm.1.read(VcpuId(0)).unwrap();
    let open = vm.1.inner.door.lock().is_open();
    assert!(open);
    drop(vm);
    let qmp = Qmp::connect(&fake.folder.path().join("qmp")).unwrap();
    assert!(crate::gdb::door::taken(&qmp).unwrap().is_none());
    assert!(!fake.machine.lock().stopped);
}
