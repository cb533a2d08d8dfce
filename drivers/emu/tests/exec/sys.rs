//! Runs bytes on the host CPU with registers of our choice.
//!
//! A page of code loads all registers from the state beside it (by RIP-relative accesses, so that no register is
//! needed for that), runs the bytes, and stores the registers. RSP is the test's own meanwhile. A signal that the
//! bytes raise goes on at the storing part.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::machine::{DATA_LEN, Layout};

/// What the code page loads and stores; the offsets are used by `program`.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct State {
    pub xmm: [u128; 16],
    pub gpr: [u64; 16],
    pub rflags: u64,
    pub mxcsr: u64,
    pub host_rsp: u64,
    pub host_mxcsr: u64,
}

const XMM: usize = 0;
const GPR: usize = 256;
const RFLAGS: usize = GPR + 128;
const MXCSR: usize = RFLAGS + 8;
const HOST_RSP: usize = RFLAGS + 16;
const HOST_MXCSR: usize = RFLAGS + 24;

const PAGE: usize = 4096;
/// Where the tested bytes lie in the code page.
const BYTES: usize = 1024;
const RSP: usize = 4;

/// One test at a time: the signal handler is the process's.
static IN_USE: Mutex<()> = Mutex::new(());
static CODE: AtomicU64 = AtomicU64::new(0);
static AFTER: AtomicU64 = AtomicU64::new(0);
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// The code page, the state and the data.
pub struct Host {
    base: *mut u8,
    entry: usize,
    _alone: MutexGuard<'static, ()>,
}

impl Host {
    pub fn new() -> Self {
        let alone = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        let rights = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        // SAFETY: A new mapping at a place of the kernel's choice touches no memory in use.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), 3 * PAGE, rights, kind, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "no memory that is writable and executable");
        handle_signals();
        Self { base: base.cast(), entry: 0, _alone: alone }
    }

    pub fn layout(&self) -> Layout {
        let base = self.base as u64;
        Layout { code: base + BYTES as u64, data: base + 2 * PAGE as u64 }
    }

    /// Makes `bytes` the tested ones.
    pub fn load(&mut self, bytes: &[u8]) {
        let before = program(true, BYTES);
        let after = program(false, BYTES + bytes.len());
        self.entry = BYTES - before.len();
        let whole = [before.as_slice(), bytes, &after].concat();
        assert!(self.entry + whole.len() < PAGE);
        let to = self.base.wrapping_add(self.entry);
        // SAFETY: The copy ends in the first page of the mapping, which nothing borrows.
        unsafe { std::ptr::copy_nonoverlapping(whole.as_ptr(), to, whole.len()) };
        CODE.store(self.base as u64, Ordering::SeqCst);
        AFTER.store(self.base as u64 + (BYTES + bytes.len()) as u64, Ordering::SeqCst);
    }

    /// Runs the tested bytes on `state` and `data`. A signal they raised is returned; the state is then that at
    /// the instruction which raised it.
    pub fn run(&mut self, state: &mut State, data: &mut [u8]) -> Option<i32> {
        assert_eq!(data.len(), DATA_LEN);
        let place = self.base.wrapping_add(PAGE).cast::<State>();
        let memory = self.base.wrapping_add(2 * PAGE);
        SIGNAL.store(0, Ordering::SeqCst);
        // SAFETY: The second page is ours, aligned and large enough.
        unsafe { place.write(state.clone()) };
        // SAFETY: The third page is ours, and `data` is shorter.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), memory, DATA_LEN) };
        let entry = self.base.wrapping_add(self.entry);
        // SAFETY: `load` put a function of the C calling convention there: it keeps what a callee must keep, and
        // the tested bytes reach the third page only.
        let enter = unsafe { std::mem::transmute::<*mut u8, extern "C" fn()>(entry) };
        enter();
        // SAFETY: As for the write above; the code stored plain numbers.
        *state = unsafe { place.read() };
        // SAFETY: As for the copy above.
        unsafe { std::ptr::copy_nonoverlapping(memory, data.as_mut_ptr(), DATA_LEN) };
        Some(SIGNAL.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours, and nothing refers to it any more.
        unsafe { libc::munmap(self.base.cast(), 3 * PAGE) };
    }
}

/// The code before the tested bytes, which ends at `at`, or that after them, which starts there.
fn program(before: bool, at: usize) -> Vec<u8> {
    let mut parts: Vec<(Vec<u8>, Option<usize>)> = Vec::new();
    let gpr = |opcode: u8, number: usize, to: usize| {
        (vec![0x48 | (number as u8 >> 3) << 2, opcode, 5 | (number as u8 & 7) << 3], Some(to))
    };
    let xmm = |opcode: u8, number: usize| {
        let bytes = vec![0x40 | (number as u8 >> 3) << 2, 0x0f, opcode, 5 | (number as u8 & 7) << 3];
        (bytes, Some(XMM + number * 16))
    };
    if before {
        // push rbx, rbp, r12 to r15; mov [host_rsp], rsp; stmxcsr [host_mxcsr]; ldmxcsr [mxcsr]
        parts.push((vec![0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57], None));
        parts.push(gpr(0x89, RSP, HOST_RSP));
        parts.push((vec![0x0f, 0xae, 0x1d], Some(HOST_MXCSR)));
        parts.push((vec![0x0f, 0xae, 0x15], Some(MXCSR)));
        parts.extend((0..16).map(|number| xmm(0x10, number)));
        // push [rflags]; popfq
        parts.push((vec![0xff, 0x35], Some(RFLAGS)));
        parts.push((vec![0x9d], None));
        parts.extend((0..16).map(|number| gpr(0x8b, number, GPR + number * 8)));
    } else {
        parts.push(gpr(0x89, RSP, GPR + RSP * 8));
        parts.push(gpr(0x8b, RSP, HOST_RSP));
        // pushfq; pop [rflags]; cld
        parts.push((vec![0x9c], None));
        parts.push((vec![0x8f, 0x05], Some(RFLAGS)));
        parts.push((vec![0xfc], None));
        parts.extend(
            (0..16).filter(|number| *number != RSP).map(|number| gpr(0x89, number, GPR + number * 8)),
        );
        parts.extend((0..16).map(|number| xmm(0x11, number)));
        parts.push((vec![0x0f, 0xae, 0x1d], Some(MXCSR)));
        parts.push((vec![0x0f, 0xae, 0x15], Some(HOST_MXCSR)));
        // pop r15 to r12, rbp, rbx; ret
        parts.push((vec![0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3], None));
    }
    let len: usize = parts.iter().map(|(bytes, to)| bytes.len() + if to.is_some() { 4 } else { 0 }).sum();
    let start = if before { at - len } else { at };
    let mut program = Vec::new();
    for (bytes, to) in parts {
        program.extend(bytes);
        if let Some(to) = to {
            let next = start + program.len() + 4;
            program.extend(((PAGE + to) as i32 - next as i32).to_le_bytes());
        }
    }
    program
}

/// Lets `on_signal` handle what the tested bytes can raise, on a stack of its own.
fn handle_signals() {
    let stack = Box::leak(vec![0u8; 64 << 10].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: The stack is never freed.
    let set = unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) };
    assert_eq!(set, 0);
    for signal in [libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP] {
        // SAFETY: All zeros is a valid sigaction: no handler, no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: The action is initialized, and its handler uses atomics and its arguments only.
        let set = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        assert_eq!(set, 0);
    }
}

/// Notes a signal of the tested bytes and goes on behind them. Any other one ends the process, as it would have.
extern "C" fn on_signal(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: The kernel passes a context that is valid while the handler runs, and nobody else uses it.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let rip = &mut registers[libc::REG_RIP as usize];
    let code = CODE.load(Ordering::SeqCst);
    if code == 0 || !(code..code + PAGE as u64).contains(&(*rip as u64)) {
        // SAFETY: Resetting a handler is allowed in one; the instruction then raises the signal again.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    SIGNAL.store(signal, Ordering::SeqCst);
    *rip = AFTER.load(Ordering::SeqCst) as i64;
}
