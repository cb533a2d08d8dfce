//! A QMP server that sends these bytes, whatever it is asked, and hangs up: the client gets its answer or one line of
//! error, and its events.

#![no_main]

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use vmtree_fuzz::checked;
use vmtree_qemu::fuzz::Qmp;

/// What a server has said when it has been greeted and has taken the capabilities.
const HELLO: &str = "{\"QMP\": {}}\n{\"return\": {}, \"id\": 1}\n";

fn client(first: &[u8], rest: &[u8]) {
    let Ok((ours, mut theirs)) = UnixStream::pair() else { return };
    let sent = theirs.write_all(first).and_then(|()| theirs.write_all(rest));
    if sent.and_then(|()| theirs.shutdown(Shutdown::Write)).is_err() {
        return;
    }
    let Some(qmp) = checked(Qmp::over(ours, Path::new("/qmp"))) else { return };
    for _ in 0..3 {
        checked(qmp.execute("query-status", Value::Null));
        checked(qmp.human("info mtree -f"));
    }
    checked(qmp.events());
}

fuzz_target!(|data: &[u8]| {
    client(&[], data);
    client(HELLO.as_bytes(), data);
});
