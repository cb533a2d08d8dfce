//! A connection: messages in, answers and events out, until either side goes.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use vmtree_api::events::{EventKind, Held};
use vmtree_api::{Cancel, Driver, ErrorKind, VcpuId};

use crate::commands::Host;
use crate::raise;
use crate::reply::{self, Reply};
use crate::state::State;
use crate::wire::{Message, event, id};

/// A machine, and who introspects it.
pub struct Session {
    driver: Arc<dyn Driver>,
    state: Mutex<State>,
    out: Mutex<UnixStream>,
    closed: AtomicBool,
    unhook: Arc<AtomicBool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What QEMU says first: sizes, uuid, time of the start, name.
fn hello(name: &str) -> Vec<u8> {
    let mut all = 96u32.to_ne_bytes().to_vec();
    all.extend(*b"vmtree-lab-guest");
    all.extend([0; 4]);
    all.extend(0u64.to_ne_bytes());
    let mut field = [0; 64];
    let name = name.as_bytes();
    let bytes = name.len().min(63);
    if let (Some(to), Some(from)) = (field.get_mut(..bytes), name.get(..bytes)) {
        to.copy_from_slice(from);
    }
    all.extend(field);
    all
}

/// QEMU's side of the handshake.
///
/// # Errors
/// The other side goes, or says something else.
pub fn handshake(socket: &mut UnixStream, name: &str) -> io::Result<()> {
    socket.write_all(&hello(name))?;
    let mut size = [0; 4];
    socket.read_exact(&mut size)?;
    let size = u32::from_ne_bytes(size) as usize;
    if !(4..=65536).contains(&size) {
        return Err(io::Error::other(format!("an introspector's answer of {size} bytes")));
    }
    socket.read_exact(&mut vec![0; size - 4])
}

/// Serves one introspector until it goes, breaks the protocol, or the machine ends, and then undoes all that it did. Once
/// `unhook` is set, the introspector is told that QEMU wants to stop the VM.
///
/// # Errors
/// Why the connection ended; an introspector that closes it is none.
pub fn serve(driver: &Arc<dyn Driver>, mut socket: UnixStream, unhook: &Arc<AtomicBool>) -> io::Result<()> {
    let vcpus = driver.facts().vcpus.unwrap_or(1);
    let session = Arc::new(Session {
        driver: Arc::clone(driver),
        state: Mutex::new(State::new(vcpus)),
        out: Mutex::new(socket.try_clone()?),
        closed: AtomicBool::new(false),
        unhook: Arc::clone(unhook),
    });
    let events = {
        let session = Arc::clone(&session);
        thread::spawn(move || session.events())
    };
    let mut ended = Ok(());
    loop {
        match Message::read(&mut socket) {
            Ok(message) => {
                if let Err(why) = session.take(&message) {
                    ended = Err(io::Error::other(why));
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => {
                ended = Err(error);
                break;
            }
        }
    }
    session.closed.store(true, Ordering::Release);
    let _ = socket.shutdown(std::net::Shutdown::Both);
    // A thread that panicked has said so already.
    let _ = events.join();
    lock(&session.state).undo(&**driver);
    ended
}

impl Session {
    fn send(&self, message: &Message) {
        let sent = lock(&self.out).write_all(&message.bytes());
        if sent.is_err() {
            // The reader sees the end.
            let _ = lock(&self.out).shutdown(std::net::Shutdown::Both);
        }
    }

    /// Takes the machine's events.
    fn events(self: &Arc<Self>) {
        let Ok(source) = self.driver.events() else { return };
        while !self.closed.load(Ordering::Acquire) {
            if self.unhook.swap(false, Ordering::AcqRel) {
                let mut state = lock(&self.state);
                self.send(&unhook(&mut state));
            }
            match source.next(Duration::from_millis(20)) {
                Ok(Some(held)) => self.raised(held),
                Ok(None) => self.put_off(),
                Err(_) => {
                    let _ = lock(&self.out).shutdown(std::net::Shutdown::Both);
                    return;
                }
            }
        }
    }

    /// Delivers what waited for the end of single-step.
    fn put_off(&self) {
        let mut state = lock(&self.state);
        for (vcpu, number) in state.vcpus.iter_mut().zip(0..).filter(|(vcpu, _)| !vcpu.armed.step) {
            vcpu.put_off.deliver(&*self.driver, number);
        }
    }

    fn raised(self: &Arc<Self>, held: Held) {
        let mut state = lock(&self.state);
        let number = held.event().vcpu.0 as usize;
        let step = held.event().kind == EventKind::SingleStep;
        if step && state.vcpus.get_mut(number).is_some_and(|vcpu| vcpu.put_off.was_step()) {
            drop(held);
            // The others stand, so the instruction is still to be done by a step.
            if state.pause.is_some() {
                let session = Arc::clone(self);
                thread::spawn(move || session.step(number));
            }
            return;
        }
        if let Some(message) = raise::raised(&mut state, &*self.driver, held) {
            // With the lock held: no answer may come before the event.
            self.send(&message);
        }
    }

    /// Takes a message of the introspector.
    fn take(self: &Arc<Self>, message: &Message) -> Result<(), String> {
        let mut state = lock(&self.state);
        if message.id == id::EVENT_REPLY {
            let bad = || format!("an answer of {} bytes to an event", message.data.len());
            let reply = Reply::parse(&message.data).map_err(|_| bad())?;
            let number = reply.vcpu();
            reply::answered(&mut state, &*self.driver, message.seq, &reply).map_err(|wrong| wrong.0)?;
            self.go_on(&mut state, number);
            return Ok(());
        }
        if message.id == id::CONTROL_CMD_RESPONSE {
            return self.response(&mut state, message);
        }
        let done = Host { state: &mut state, driver: &*self.driver }.run(message);
        let Ok(done) = done else {
            return Err(format!("message {} has {} bytes", message.id, message.data.len()));
        };
        if state.silent && done.as_ref().is_ok_and(|data| !data.is_empty()) {
            return Err(format!("message {} asks for data while answers are off", message.id));
        }
        if !state.silent {
            self.send(&answer(message, done));
        }
        if message.id == id::CONTROL_SINGLESTEP {
            drop(state);
            self.put_off();
            return Ok(());
        }
        if message.id == id::PAUSE_VCPU {
            (0..state.vcpus.len()).for_each(|vcpu| self.go_on(&mut state, vcpu));
        }
        Ok(())
    }

    /// Answers on or off, from this message on or from the next.
    fn response(&self, state: &mut State, message: &Message) -> Result<(), String> {
        let [enable, now, ..] = message.data.as_slice() else {
            return Err("message 27 is too short".to_owned());
        };
        if message.data.len() != 8 || *enable > 1 || *now > 1 {
            return Err("message 27 makes no sense".to_owned());
        }
        let before = state.silent;
        state.silent = *enable == 0;
        let silent = if *now == 1 { state.silent } else { before };
        if !silent {
            self.send(&answer(message, Ok(Vec::new())));
        }
        Ok(())
    }

    /// Lets a vCPU go on with what it does next, if it waits for nothing.
    fn go_on(self: &Arc<Self>, state: &mut State, number: usize) {
        if let Some(message) = raise::next(state, &*self.driver, number) {
            self.send(&message);
            return;
        }
        if !state.paused() {
            // Dropped, the machine runs.
            state.pause = None;
            return;
        }
        let steps = state.vcpus.get(number).is_some_and(|vcpu| vcpu.at.is_none() && vcpu.armed.step);
        if steps && state.pause.is_some() {
            let session = Arc::clone(self);
            thread::spawn(move || session.step(number));
        }
    }

    /// One vCPU executes one instruction while the others stand.
    fn step(&self, number: usize) {
        let Ok(execution) = self.driver.execution() else { return };
        if let Err(error) = execution.step(VcpuId(number as u32), 1, &Cancel::default())
            && error.kind() != ErrorKind::Gone
        {
            eprintln!("vCPU {number} can't be stepped: {error}");
        }
    }
}

/// The answer to a command.
fn answer(message: &Message, done: Result<Vec<u8>, i32>) -> Message {
    let error = done.as_ref().err().copied().unwrap_or(0);
    let mut data = [error.to_ne_bytes(), [0; 4]].concat();
    data.extend(done.unwrap_or_default());
    Message { id: message.id, seq: message.seq, data }
}

/// What QEMU sends before it stops or moves a guest. It has no answer: the introspector closes the connection.
fn unhook(state: &mut State) -> Message {
    state.seq = state.seq.wrapping_add(1);
    let bytes = crate::layout::event(event::UNHOOK, 0, 0, &vmtree_api::x86::Registers::default());
    Message { id: id::EVENT, seq: state.seq, data: bytes }
}
