//! What can be wrong with the argument, the socket and the peer.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmtree_agent::client::Client;
use vmtree_agent::{Kind, Line, Socket, ToAgent, VERSION};
use vmtree_guest::mailbox::Op;

use crate::lab::{LONG, Lab, at_least, command, library, release, soon, wanted, watch};

/// What QEMU says when it ends at once with this plugin argument.
fn refused(folder: &std::path::Path, args: &str) -> String {
    let mut qemu = command(folder, 1, Some(args)).spawn().unwrap();
    let start = Instant::now();
    while qemu.try_wait().unwrap().is_none() {
        if start.elapsed() > LONG {
            qemu.kill().unwrap();
            panic!("QEMU started with {args}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut said = String::new();
    qemu.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(!qemu.wait().unwrap().success());
    eprintln!("{said}");
    said
}

#[test]
fn a_wrong_argument_or_socket_ends_qemu_with_the_cure() {
    let folder = tempfile::tempdir().unwrap();
    if !at_least((10, 0)) {
        assert!(library().is_file());
        if release() >= (7, 0) {
            assert!(refused(folder.path(), ",socket=/tmp/never").contains("QEMU 10.0 or later"));
        }
        return;
    }
    for (args, says) in [
        ("", "socket=PATH"),
        (",sokcet=/tmp/x", "'sokcet=/tmp/x'"),
        (",socket=/no/such/folder/agent", "a folder that is there"),
        (",socket=/etc/passwd", "is no socket"),
    ] {
        let said = refused(folder.path(), args);
        assert!(said.contains(says) && said.contains("libvmtree_qemu.so"), "{said}");
    }
    let taken = folder.path().join("taken");
    let _listener = UnixListener::bind(&taken).unwrap();
    assert!(refused(folder.path(), &format!(",socket={}", taken.display())).contains("is taken"));
}

#[test]
fn a_socket_that_a_killed_qemu_left_is_taken_over_and_an_orderly_end_removes_it() {
    if !at_least((10, 0)) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent");
    drop(UnixListener::bind(&path).unwrap());
    let mut qemu = command(folder.path(), 1, Some(&format!(",socket={}", path.display()))).spawn().unwrap();
    soon("it serves", || Socket::connect(&path).is_ok_and(|line| Client::open(Arc::new(line)).is_ok()));
    let mut qmp = UnixStream::connect(folder.path().join("qmp")).unwrap();
    qmp.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"quit\"}\n").unwrap();
    assert!(qemu.wait().unwrap().success());
    assert!(!path.exists());
}

#[test]
fn a_peer_that_speaks_garbage_or_stops_reading_or_answering_does_not_stop_the_guest() {
    if !at_least((10, 0)) {
        return;
    }
    let lab = Lab::start(2, true);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0, 0, 0, 0, 9, 0, 0, 0]] {
        // While the one before it is let go of, the next one is refused before it has written all.
        let mut peer = UnixStream::connect(lab.socket()).unwrap();
        soon("it is listened to", || {
            peer = UnixStream::connect(lab.socket()).unwrap();
            peer.write_all(garbage).is_ok()
        });
        let mut said = Vec::new();
        // It may be reset with some of the garbage unread.
        let _ = peer.read_to_end(&mut said);
    }
    // Says hello, wants everything held, and then neither reads nor writes.
    let mut deaf = Socket::connect(&lab.socket()).unwrap();
    let mut bytes = Vec::new();
    ToAgent::Hello { version: VERSION }.encode(&mut bytes);
    let wanted = wanted([watch(Kind::Cr3, true), watch(Kind::Cpuid, false), watch(Kind::Io, false)]);
    ToAgent::Watch { id: 1, wanted }.encode(&mut bytes);
    soon("it is served", || {
        // While the last one is let go of, the next one is refused: it reads so much that it knows.
        deaf = Socket::connect(&lab.socket()).unwrap();
        let mut header = [0; 8];
        let heard = deaf.send(&bytes).and_then(|()| deaf.receive(&mut header, LONG));
        // A hello of the agent's.
        heard.is_ok_and(|count| count == 8) && header[4..6] == [129, 0]
    });
    std::thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    let seq = lab.mailbox.post(0, Op::WriteCr3, &[5]).unwrap();
    lab.mailbox.order(1, Op::Cpuid, &[20_000, 0, 0], LONG).unwrap();
    lab.mailbox.outcome(0, Op::WriteCr3, seq, LONG).unwrap();
    eprintln!("the guest went on after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(15));
    lab.client();
}
