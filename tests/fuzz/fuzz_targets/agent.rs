//! The agent's protocol, both ways: a stream of frames, cut into reads as its first byte says. What is a message goes out
//! again and comes back the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmtree_agent::frame::Splitter;
use vmtree_agent::{ToAgent, ToClient};

fn message(kind: u16, body: &[u8]) {
    let mut again = Vec::new();
    if let Ok(message) = ToAgent::decode(kind, body) {
        message.encode(&mut again);
        assert_eq!(ToAgent::decode(kind, &again[8..]), Ok(message));
    } else if let Ok(message) = ToClient::decode(kind, body) {
        message.encode(&mut again);
        // A text of more than 1000 bytes is cut.
        if again.len() == body.len() + 8 {
            assert_eq!(ToClient::decode(kind, &again[8..]), Ok(message));
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((first, stream)) = data.split_first() else { return };
    let mut splitter = Splitter::default();
    for piece in stream.chunks(usize::from(*first).max(1)) {
        splitter.add(piece);
        while let Ok(Some((kind, body))) = splitter.frame() {
            message(kind, body);
        }
    }
    // Without the frame around it, so that a body need not have its own length in front.
    message(u16::from(*first), stream);
});
