//! The client against servers that misbehave.

use super::*;
use proptest::prelude::*;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};

const HELLO: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

/// A server that runs `serve` on its first client.
struct Fake {
    folder: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    fn start(serve: impl FnOnce(UnixStream) + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("qmp")).unwrap();
        let thread = thread::spawn(move || serve(listener.accept().unwrap().0));
        Self { folder, thread: Some(thread) }
    }

    /// Sends `answers` one after each line that comes in, the first at once.
    fn saying(answers: &'static [&'static str]) -> Self {
        Self::start(move |mut stream| {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            for answer in answers {
                stream.write_all(answer.as_bytes()).unwrap();
                stream.write_all(b"\r\n").unwrap();
                if !matches!(lines.next(), Some(Ok(_))) {
                    return;
                }
            }
        })
    }

    fn connect(&self) -> Result<Qmp> {
        Qmp::connect(&self.folder.path().join("qmp"))
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

fn kind<T>(result: Result<T>) -> ErrorKind {
    result.err().expect("an error").kind()
}

#[test]
fn a_command_gets_its_own_answer_past_events_and_late_answers() {
    let fake = Fake::saying(&[
        HELLO,
        r#"{"return": {}, "id": 1}"#,
        "{\"event\": \"STOP\"}\n{\"return\": 1, \"id\": 1}\n{\"return\": \"yes\", \"id\": 2}",
        r#"{"id": 3, "error": {"class": "CommandNotFound", "desc": "no such thing"}}"#,
        r#"{"id": 4, "error": {"class": "GenericError", "desc": "not now"}}"#,
    ]);
    let qmp = fake.connect().unwrap();
    assert_eq!(qmp.human("info name").unwrap(), "yes");
    let error = qmp.execute("x-new", Value::Null).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("x-new: no such thing"), "{error}");
    assert_eq!(kind(qmp.execute("stop", Value::Null)), ErrorKind::Invalid);
    assert_eq!(qmp.peer().unwrap(), Some(std::process::id()));
    drop(qmp);
}

#[test]
fn peers_that_speak_garbage_are_no_qmp_servers() {
    for garbage in
        ["SSH-2.0-OpenSSH", "{}", "[]", "\u{0}\u{1}\u{2}", r#"{"QMP": 1}"#, r#"{"return": {}, "id": 1}"#]
    {
        let fake = Fake::start(move |mut stream| {
            let _ = stream.write_all(format!("{garbage}\n").as_bytes());
        });
        assert_eq!(kind(fake.connect()), ErrorKind::Protocol, "{garbage}");
    }
}

#[test]
fn garbage_after_the_greeting_is_a_broken_protocol() {
    for answer in ["what?", r#"{"return": {}, "id": 7}"#, r#"{"return": {}}"#, HELLO, r#"{"id": 1}"#] {
        let fake = Fake::start(move |mut stream| {
            let _ = stream.write_all(format!("{HELLO}\n{answer}\n").as_bytes());
            let _ = stream.read(&mut [0; 1024]);
        });
        assert_eq!(kind(fake.connect()), ErrorKind::Protocol, "{answer}");
    }
}

#[test]
fn a_peer_that_stops_in_the_middle_of_a_line_is_told_apart_from_one_that_hangs_up() {
    let serve = |text: &'static str| {
        Fake::start(move |mut stream| {
            let _ = stream.write_all(format!("{HELLO}\n").as_bytes());
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(text.as_bytes());
        })
    };
    assert_eq!(kind(serve(r#"{"return": {"#).connect()), ErrorKind::Protocol);
    assert_eq!(kind(serve("").connect()), ErrorKind::Gone);
    assert_eq!(kind(Fake::start(drop).connect()), ErrorKind::Protocol);
}

#[test]
fn a_socket_that_does_not_greet_is_held_by_someone_else() {
    let fake = Fake::start(|mut stream| {
        let _ = stream.read(&mut [0; 1]);
    });
    let error = fake.connect().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("second one: -qmp unix:PATH"), "{error}");
}

#[test]
fn a_full_queue_does_not_hang_us() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let address = SocketAddrUnix::new(&path).unwrap();
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    assert_eq!(kind(Qmp::connect(&path)), ErrorKind::Busy);
}

#[test]
fn a_line_without_an_end_is_refused() {
    let fake = Fake::start(|mut stream| {
        let _ = stream.write_all(format!("{HELLO}\n").as_bytes());
        let block = vec![b'x'; 1 << 20];
        while stream.write_all(&block).is_ok() {}
    });
    assert_eq!(kind(fake.connect()), ErrorKind::Protocol);
}

#[test]
fn dead_sockets_are_told_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    assert_eq!(kind(Qmp::connect(&path)), ErrorKind::NotFound);
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(kind(Qmp::connect(&path)), ErrorKind::NotFound);
    assert_eq!(kind(Qmp::connect(folder.path())), ErrorKind::NotFound);
    assert_eq!(kind(Qmp::connect(Path::new(&"x".repeat(200)))), ErrorKind::Invalid);
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "[a-zA-Z]{0,8}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        "[a-z]{0,4}",
        Just("QMP".to_owned()),
        Just("return".to_owned()),
        Just("error".to_owned()),
        Just("event".to_owned()),
        Just("id".to_owned()),
        Just("class".to_owned()),
    ];
    leaf.prop_recursive(3, 16, 4, move |inner| {
        let object = prop::collection::btree_map(key.clone(), inner.clone(), 0..4);
        prop_oneof![
            object.prop_map(|fields| Value::Object(fields.into_iter().collect())),
            prop::collection::vec(inner, 0..4).prop_map(Value::from),
        ]
    })
}

proptest! {
    #[test]
    fn no_line_makes_us_panic(bytes: Vec<u8>, value in json_value()) {
        let _ = Message::parse(&bytes);
        if let Ok(Message::Answer { outcome: Err(refusal), .. }) = Message::parse(value.to_string().as_bytes()) {
            let _ = refusal.into_error("x");
        }
    }
}
