//! `vmtree-kvmi-endpoint SOCKET [MACHINE] [NAME]`: starts the built-in machine (`vcpus=2,ram=64M`, as behind `emu:`) and connects it
//! to the introspector that listens at SOCKET, again whenever it goes, as QEMU's `reconnect=1` does. A line on its standard input
//! asks the introspector to let the VM go, as QEMU does before it stops or moves one.

use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, io, thread};

use vmtree_api::{Driver, NoHost, Source};
use vmtree_kvmi_endpoint::session;

fn machine(options: &str) -> vmtree_api::Result<Arc<dyn Driver>> {
    let pairs = options.split(',').filter_map(|part| part.split_once('='));
    let pairs = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Ok(Arc::from(vmtree_emu::open(Source::new("emu", "", pairs), Arc::new(NoHost))?))
}

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let Some(path) = arguments.next() else {
        eprintln!("usage: vmtree-kvmi-endpoint SOCKET [MACHINE] [NAME]");
        return ExitCode::from(2);
    };
    let driver = match machine(&arguments.next().unwrap_or_default()) {
        Ok(driver) => driver,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let name = arguments.next().unwrap_or_else(|| "lab".to_owned());
    let unhook = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&unhook);
    thread::spawn(move || io::stdin().lines().for_each(|_| asked.store(true, Ordering::Release)));
    loop {
        if driver.execution().is_ok_and(|execution| execution.state().is_err()) {
            eprintln!("the machine has ended");
            return ExitCode::FAILURE;
        }
        let connected = UnixStream::connect(&path).and_then(|mut socket| {
            session::handshake(&mut socket, &name)?;
            eprintln!("connected");
            session::serve(&driver, socket, &unhook)
        });
        match connected {
            Ok(()) => eprintln!("the introspector has gone"),
            Err(error) if matches!(error.raw_os_error(), Some(2 | 111)) => {}
            Err(error) => eprintln!("the connection ended: {error}"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}
