//! The greeting: the first process notices that someone changed it, and answers.

use iced_x86::code_asm::*;

use super::accesses::copy_bytes;
use super::kit::{Emit, place};
use super::user::{User, call_kernel};
use crate::layout::{self, inbox, syscall};
use crate::mailbox::GREETING_SIZE;

/// `greeting`: compares the greeting with its last copy; when it differs, copies it, writes it in capitals to the
/// reply page, and tells the kernel. XMM0 is used by this process alone on its vCPU, so no switch saves it.
pub fn emit(a: &mut CodeAssembler, u: &mut User) -> Emit {
    let mut end = a.create_label();
    place(a, &mut u.greeting)?;
    a.mov(rsi, layout::USER_GREETING)?;
    a.lea(rdi, byte_ptr(rbx + inbox::GREETING))?;
    a.mov(ecx, (GREETING_SIZE / 8) as u32)?;
    a.repe().cmpsq()?;
    a.je(end)?;
    a.mov(rsi, layout::USER_GREETING)?;
    a.lea(rdi, byte_ptr(rbx + inbox::GREETING))?;
    a.mov(ecx, GREETING_SIZE as u32)?;
    copy_bytes(a)?;
    capitals(a)?;
    call_kernel(a, syscall::ANSWERED)?;
    place(a, &mut end)?;
    a.ret()
}

/// From the copy to the reply page: a to z become A to Z.
fn capitals(a: &mut CodeAssembler) -> Emit {
    let (mut top, mut keep) = (a.create_label(), a.create_label());
    a.lea(rsi, byte_ptr(rbx + inbox::GREETING))?;
    a.mov(rdi, layout::USER_REPLY)?;
    a.mov(ecx, GREETING_SIZE as u32)?;
    place(a, &mut top)?;
    a.lodsb()?;
    a.cmp(al, i32::from(b'a'))?;
    a.jb(keep)?;
    a.cmp(al, i32::from(b'z'))?;
    a.ja(keep)?;
    a.sub(al, 0x20)?;
    place(a, &mut keep)?;
    a.stosb()?;
    a.dec(ecx)?;
    a.jne(top)
}
