//! Machines to test: opened with code that is assembled here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use iced_x86::code_asm::*;
use vmtree_api::{Driver, Gpa, Host, NoHost, RegisterSet, Source, VcpuId};

/// Where the code lies.
pub const CODE: u64 = 0x10_0000;
/// The first vCPU.
pub const V0: VcpuId = VcpuId(0);

/// A file with an ELF around this code; removed when dropped.
struct Image(std::path::PathBuf);

impl Image {
    fn new(code: impl FnOnce(&mut CodeAssembler)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut assembler = CodeAssembler::new(64).unwrap();
        code(&mut assembler);
        let body = assembler.assemble(CODE).unwrap();
        let mut data = vec![0; 64];
        data[..6].copy_from_slice(b"\x7fELF\x02\x01");
        data[16..20].copy_from_slice(&[2, 0, 62, 0]);
        data[24..32].copy_from_slice(&CODE.to_le_bytes());
        data[32] = 64;
        data[54] = 56;
        data[56] = 1;
        data.extend(1_u32.to_le_bytes());
        data.extend(7_u32.to_le_bytes());
        for word in [0x78, CODE, CODE, body.len() as u64, body.len() as u64, 16] {
            data.extend(word.to_le_bytes());
        }
        data.extend(body);
        let name = format!("vmtree-emu-{}-{}.elf", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, data).unwrap();
        Self(path)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

pub fn open_with(host: Arc<dyn Host>, vcpus: u32, code: impl FnOnce(&mut CodeAssembler)) -> Box<dyn Driver> {
    let image = Image::new(code);
    let options =
        [("ram", "8M".to_owned()), ("vcpus", vcpus.to_string()), ("image", image.0.display().to_string())];
    let options = options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    vmtree_emu::open(Source::new("emu", "", options), host).unwrap()
}

pub fn open(vcpus: u32, code: impl FnOnce(&mut CodeAssembler)) -> Box<dyn Driver> {
    open_with(Arc::new(NoHost), vcpus, code)
}

/// Counts in RAX and in memory, for ever.
pub fn count(a: &mut CodeAssembler) {
    let mut again = a.create_label();
    a.mov(rbx, 0x20_0000_u64).unwrap();
    a.set_label(&mut again).unwrap();
    a.inc(rax).unwrap();
    a.mov(qword_ptr(rbx), rax).unwrap();
    a.jmp(again).unwrap();
}

pub fn regs(driver: &dyn Driver, vcpu: VcpuId) -> vmtree_api::x86::Registers {
    let RegisterSet::X86_64(regs) = driver.registers().unwrap().read(vcpu).unwrap() else { panic!() };
    *regs
}

pub fn word(driver: &dyn Driver, gpa: u64) -> u64 {
    let mut bytes = [0; 8];
    driver.memory().read(Gpa(gpa), &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}
