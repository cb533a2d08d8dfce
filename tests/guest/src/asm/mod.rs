//! The guest's code, a part a file.

mod accesses;
mod entry;
mod greeting;
mod idle;
mod interrupts;
mod kit;
mod labels;
mod orders;
mod paging;
mod process;
mod pvh;
mod syscalls;
mod system;
mod user;
mod waits;

use iced_x86::code_asm::{CodeAssembler, CodeAssemblerResult};
use iced_x86::{BlockEncoderOptions, IcedError};

use crate::layout;

/// 64-bit code of ring 0, present, accessed.
const KERNEL_CODE: u64 = 0x00af_9b00_0000_ffff;
/// 32-bit code of ring 0, for the PVH way.
const KERNEL_CODE32: u64 = 0x00cf_9b00_0000_ffff;
/// Data of ring 0.
const KERNEL_DATA: u64 = 0x00cf_9300_0000_ffff;
/// 32-bit code of ring 3: it only holds the place that SYSRET's selectors leave.
const USER_CODE32: u64 = 0x00cf_fb00_0000_ffff;
/// Data of ring 3.
const USER_DATA: u64 = 0x00cf_f300_0000_ffff;
/// 64-bit code of ring 3.
const USER_CODE: u64 = 0x00af_fb00_0000_ffff;

/// Indices of the MSRs in use (Intel SDM volume 4).
mod msr {
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const FMASK: u32 = 0xc000_0084;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
}

/// A run of code in the image.
#[derive(Clone, Debug)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// The gpa of its first byte.
    pub gpa: u64,
    /// The gva that it is assembled for.
    pub gva: u64,
    /// 16, 32 or 64.
    pub bits: u32,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How many of them are instructions; tables follow.
    pub code: usize,
}

/// The assembled guest.
pub struct Code {
    /// Its parts, by gpa.
    pub parts: Vec<Part>,
    /// Names of kernel addresses.
    pub symbols: Vec<(&'static str, u64)>,
}

/// Assembles all parts.
pub fn assemble() -> Result<Code, IcedError> {
    let start = pvh::assemble()?;
    let base = layout::STUBS + 256 * layout::STUB_SIZE;
    let (kernel, labels) = kernel(base, &start.real_mode)?;
    let mut symbols = Vec::new();
    for (name, label) in labels.named() {
        symbols.push((name, kernel.label_ip(&label)?));
    }
    let head = head(&kernel, &labels)?;
    let kernel = kernel.inner.code_buffer;
    let kernel_code = kernel.len() - start.real_mode.len();
    let user = user::assemble()?;
    let parts = vec![
        part("start", layout::TEXT32, 32, start.page, start.code),
        whole("head", layout::TEXT64, head),
        part("kernel", base, 64, kernel, kernel_code),
        Part { gva: layout::USER_TEXT, ..whole("user", layout::USER_IMAGE, user) },
    ];
    Ok(Code { parts, symbols })
}

fn part(name: &'static str, gpa: u64, bits: u32, bytes: Vec<u8>, code: usize) -> Part {
    Part { name, gpa, gva: gpa, bits, bytes, code }
}

fn whole(name: &'static str, gpa: u64, bytes: Vec<u8>) -> Part {
    let code = bytes.len();
    part(name, gpa, 64, bytes, code)
}

/// The 64-bit kernel at `base`.
fn kernel(base: u64, real_mode: &[u8]) -> Result<(CodeAssemblerResult, labels::Labels), IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut l = labels::Labels::new(&mut a);
    entry::emit(&mut a, &mut l)?;
    paging::kernel_tables(&mut a, &mut l)?;
    paging::process_tables(&mut a, &mut l)?;
    paging::map_lazy(&mut a, &mut l)?;
    paging::unmap_lazy(&mut a, &mut l)?;
    interrupts::emit(&mut a, &mut l)?;
    interrupts::own_inbox(&mut a, &mut l)?;
    syscalls::emit(&mut a, &mut l)?;
    process::emit(&mut a, &mut l)?;
    idle::emit(&mut a, &mut l)?;
    orders::emit(&mut a, &mut l)?;
    pvh::emit(&mut a, &mut l, real_mode)?;
    let code = a.assemble_options(base, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    Ok((code, l))
}

/// What stands at fixed addresses before the kernel: the ways in, and the gates of all vectors.
fn head(kernel: &CodeAssemblerResult, l: &labels::Labels) -> Result<Vec<u8>, IcedError> {
    let mut bytes = Vec::new();
    let ways = [
        (layout::ENTRY, l.entry),
        (layout::LANDING, l.pvh_landing),
        (layout::PVH_FIRST, l.pvh_first),
        (layout::PVH_OTHER, l.pvh_other),
    ];
    for (address, label) in ways {
        let mut a = CodeAssembler::new(64)?;
        a.jmp(kernel.label_ip(&label)?)?;
        pad(&mut bytes, a.assemble(address)?);
    }
    let (common, on_stack) = (kernel.label_ip(&l.common)?, kernel.label_ip(&l.on_stack)?);
    for vector in 0..256 {
        pad(&mut bytes, interrupts::gate(vector, common, on_stack)?);
    }
    Ok(bytes)
}

/// Appends code, filled up to 16 bytes with nop.
fn pad(bytes: &mut Vec<u8>, mut code: Vec<u8>) {
    code.resize(layout::STUB_SIZE as usize, 0x90);
    bytes.extend(code);
}
