//! The VM is left as it was found, also by what fails, and by peers that misbehave.

use super::*;

#[path = "../../../tests/labs/qemu/lab.rs"]
mod lab;

fn control(vm: &lab::Vm) -> Control {
    let qmp = Qmp::connect(std::path::Path::new(&vm.qmp())).unwrap();
    Control::new(qmp, Arc::default(), Debts::default()).unwrap()
}

fn idle() -> Option<(lab::Vm, Control)> {
    lab::have_qemu().then(|| {
        let vm = lab::Vm::start(&["-accel", "tcg", "-m", "64M"]);
        let control = control(&vm);
        (vm, control)
    })
}

fn state(vm: &mut lab::Vm) -> String {
    vm.human("info status").trim().replace("VM status: ", "")
}

#[test]
fn the_vm_stands_still_inside_and_is_left_as_it_was_found() {
    let Some((mut vm, control)) = idle() else { return };
    for found in ["running", "paused"] {
        assert_eq!(state(&mut vm), found);
        let inside = control.while_stopped(|stopped| {
            assert_eq!(stopped.was_running(), found == "running");
            stopped.qmp().human("info status")
        });
        assert!(inside.unwrap().contains("paused"));
        assert_eq!(state(&mut vm), found);
        let refused = Error::new(ErrorKind::Invalid, "test", "refused");
        assert!(control.while_stopped(|_| Err::<(), _>(refused)).is_err());
        assert_eq!(state(&mut vm), found);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            control.while_stopped(|_| -> Result<()> { panic!("on purpose") })
        }));
        assert!(panicked.is_err());
        assert_eq!(state(&mut vm), found);
        vm.human("stop");
    }
}

#[test]
fn what_others_do_inside_stands() {
    let Some((mut vm, control)) = idle() else { return };
    let mut inside = |lines: &[&str]| {
        control
            .while_stopped(|_| {
                lines.iter().for_each(|line| drop(vm.human(line)));
                Ok(())
            })
            .unwrap();
        state(&mut vm)
    };
    assert_eq!(inside(&["cont"]), "running");
    assert_eq!(inside(&["cont", "stop"]), "paused");
    assert_eq!(inside(&["cont"]), "running");
}

#[test]
fn runs_and_stops_of_our_own_are_not_taken_for_those_of_others() {
    let Some((mut vm, control)) = idle() else { return };
    for found in ["running", "paused"] {
        let step = |stopped: &mut Stopped<'_>| {
            // What a gdbstub does in a step, ended by a run.
            stopped.stepping(|qmp| {
                for command in ["cont", "stop", "cont"] {
                    qmp.execute(command, Value::Null)?;
                }
                Ok(())
            })?;
            assert!(stopped.qmp().human("info status")?.contains("paused"));
            Ok(())
        };
        control.while_stopped(step).unwrap();
        assert_eq!(state(&mut vm), found);
        vm.human("stop");
    }
}
