//! A KVM-VMI host for a test: the endpoint as a process, and somebody between it and vmtree.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// The endpoint beside the `vmtree` of this build; `None` where it was not built (tests/labs/kvmi/lab.sh builds both).
pub fn program() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_BIN_EXE_vmtree")).with_file_name("vmtree-kvmi-endpoint");
    path.is_file().then_some(path)
}

/// The built-in machine behind KVMI, in a process of its own.
pub struct Endpoint {
    child: Child,
    /// A line here is QEMU's wish to stop the VM.
    pub wish: ChildStdin,
}

impl Endpoint {
    /// Starts it; it connects to `socket` once that is there.
    pub fn start(socket: &Path, machine: &str) -> Self {
        let mut command = Command::new(program().unwrap());
        command.arg(socket).args([machine, "lab"]).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let wish = child.stdin.take().unwrap();
        Self { child, wish }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is done with a message on its way.
pub type Meddle = Box<dyn FnMut(Vec<u8>) -> Option<Vec<u8>> + Send>;

/// Passes messages on between the endpoint, which connects to `near`, and vmtree, which listens at `far`. Each whole message of the
/// host goes through `meddle` with its number; `None` cuts the connection.
pub struct Between {
    pub passed: Arc<AtomicUsize>,
    closing: Arc<AtomicBool>,
    near: PathBuf,
}

impl Between {
    pub fn start(
        near: &Path,
        far: &Path,
        mut meddle: impl FnMut(usize, Vec<u8>) -> Option<Vec<u8>> + Send + 'static,
    ) -> Self {
        let listener = UnixListener::bind(near).unwrap();
        let (passed, closing) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, close, far) = (Arc::clone(&passed), Arc::clone(&closing), far.to_owned());
        thread::spawn(move || {
            for host in listener.incoming().flatten() {
                if close.load(Ordering::Acquire) {
                    return;
                }
                let Ok(tool) = reach(&far, &close) else { continue };
                let _ = pair(&host, &tool, &count, &mut meddle);
                for socket in [&host, &tool] {
                    let _ = socket.shutdown(std::net::Shutdown::Both);
                }
            }
        });
        Self { passed, closing, near: near.to_owned() }
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Release);
        let _ = UnixStream::connect(&self.near);
    }
}

fn reach(far: &Path, closing: &AtomicBool) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(far) {
            Ok(socket) => return Ok(socket),
            Err(error) if closing.load(Ordering::Acquire) => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// One message of the host: the handshake first, which begins with its size, then those of the protocol.
fn message(from: &mut UnixStream, first: bool) -> io::Result<Vec<u8>> {
    let mut head = vec![0; if first { 4 } else { 8 }];
    from.read_exact(&mut head)?;
    let size = if first {
        u32::from_ne_bytes(head[..4].try_into().unwrap()) as usize - 4
    } else {
        usize::from(u16::from_ne_bytes([head[2], head[3]]))
    };
    let at = head.len();
    head.resize(at + size, 0);
    from.read_exact(&mut head[at..])?;
    Ok(head)
}

fn pair(
    host: &UnixStream,
    tool: &UnixStream,
    count: &AtomicUsize,
    meddle: &mut impl FnMut(usize, Vec<u8>) -> Option<Vec<u8>>,
) -> io::Result<()> {
    let (mut back, mut to_host) = (tool.try_clone()?, host.try_clone()?);
    let up = thread::spawn(move || {
        let _ = io::copy(&mut back, &mut to_host);
        let _ = to_host.shutdown(std::net::Shutdown::Both);
    });
    let (mut from, mut to) = (host.try_clone()?, tool.try_clone()?);
    let mut first = true;
    while let Ok(whole) = message(&mut from, first) {
        first = false;
        let Some(bytes) = meddle(count.fetch_add(1, Ordering::AcqRel), whole) else { break };
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = tool.shutdown(std::net::Shutdown::Both);
    let _ = host.shutdown(std::net::Shutdown::Both);
    let _ = up.join();
    Ok(())
}
