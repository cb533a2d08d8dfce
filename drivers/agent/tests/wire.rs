//! The bytes: whatever can be said comes out as it went in, and whatever comes in harms nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use vmtree_agent::frame::{HEADER, Splitter};
use vmtree_agent::{
    Action, Code, Event, Hello, Inject, Kind, Offer, Reg, Rule, Subject, ToAgent, ToClient, Verdict, Wanted,
    Watch, Way,
};

fn one<T: Copy + std::fmt::Debug + 'static>(all: &'static [T]) -> impl Strategy<Value = T> {
    proptest::sample::select(all)
}

fn registers() -> impl Strategy<Value = Vec<(Reg, u64)>> {
    proptest::collection::vec((one(Reg::ALL), any::<u64>()), 0..40)
}

fn inject() -> impl Strategy<Value = Inject> {
    prop_oneof![
        (any::<u64>(), any::<u32>()).prop_map(|(address, error)| Inject::PageFault { address, error }),
        (any::<u8>(), any::<Option<u32>>()).prop_map(|(vector, error)| Inject::Exception { vector, error }),
        any::<u8>().prop_map(|vector| Inject::Interrupt { vector }),
        Just(Inject::Nmi),
    ]
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Continue),
        Just(Verdict::Deny),
        Just(Verdict::Step),
        any::<u128>().prop_map(Verdict::Value),
        registers().prop_map(Verdict::Set),
        inject().prop_map(Verdict::Inject),
    ]
}

prop_compose! {
    fn watch()(
        kind in one(Kind::ALL), way in proptest::option::of(one(Way::ALL)), vcpu in proptest::option::of(0..u32::MAX),
        index in any::<Option<u32>>(), hold in any::<bool>(),
    ) -> Watch {
        Watch { kind, way, vcpu, index, hold }
    }
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let rule = (0..1000u64, 1..1000u64, 0..8u8, any::<bool>());
    (proptest::collection::vec(watch(), 0..20), proptest::collection::vec(rule, 0..20)).prop_map(
        |(watches, gaps)| {
            let mut at = 0;
            let rules = gaps
                .into_iter()
                .map(|(gap, length, access, hold)| {
                    let start = at + gap;
                    at = start + length;
                    Rule { frames: start..at, access, hold }
                })
                .collect();
            Wanted { watches, rules }
        },
    )
}

fn to_agent() -> impl Strategy<Value = ToAgent> {
    prop_oneof![
        any::<u16>().prop_map(|version| ToAgent::Hello { version }),
        (any::<u32>(), wanted()).prop_map(|(id, wanted)| ToAgent::Watch { id, wanted }),
        (any::<u32>(), any::<u64>(), verdict()).prop_map(|(id, seq, verdict)| ToAgent::Answer {
            id,
            seq,
            verdict
        }),
        any::<(u32, u64)>().prop_map(|(id, seq)| ToAgent::Read { id, seq }),
        (any::<u32>(), any::<u64>(), registers()).prop_map(|(id, seq, registers)| ToAgent::Write {
            id,
            seq,
            registers
        }),
        Just(ToAgent::Beat),
    ]
}

prop_compose! {
    fn event()(
        kind in one(Kind::ALL), way in one(Way::ALL), (seq, vcpu, flags, rip, cr3) in any::<(u64, u32, u16, u64, u64)>(),
        (index, extra, a, b, cpl) in any::<(u32, u32, u64, u64, u8)>(),
    ) -> Event {
        Event { seq, vcpu, kind, way, flags, rip, cr3, index, extra, a, b, cpl }
    }
}

fn offer() -> impl Strategy<Value = Offer> {
    let subject =
        prop_oneof![one(Way::ALL).prop_map(Subject::Seen), one(Action::ALL).prop_map(Subject::Takes)];
    (one(Kind::ALL), subject, proptest::option::of(".{0,40}")).prop_map(|(kind, subject, missing)| Offer {
        kind,
        subject,
        missing,
    })
}

fn to_client() -> impl Strategy<Value = ToClient> {
    prop_oneof![
        (any::<u16>(), any::<u32>(), ".{0,40}", proptest::collection::vec(offer(), 0..40)).prop_map(
            |(version, vcpus, name, offers)| ToClient::Hello {
                version,
                hello: Hello { name, vcpus, offers }
            }
        ),
        ".{0,200}".prop_map(|why| ToClient::Refused { why }),
        event().prop_map(ToClient::Event),
        (any::<u32>(), one(Code::ALL), ".{0,200}").prop_map(|(id, code, why)| ToClient::Done {
            id,
            code,
            why
        }),
        (any::<u32>(), registers()).prop_map(|(id, registers)| ToClient::Registers { id, registers }),
        Just(ToClient::Beat),
    ]
}

/// All frames of a stream that comes in pieces of `piece` bytes.
fn frames(bytes: &[u8], piece: usize) -> Vec<(u16, Vec<u8>)> {
    let mut splitter = Splitter::default();
    let mut found = Vec::new();
    for piece in bytes.chunks(piece) {
        splitter.add(piece);
        while let Ok(Some((kind, body))) = splitter.frame() {
            found.push((kind, body.to_vec()));
        }
    }
    found
}

proptest! {
    #[test]
    fn what_is_said_to_an_agent_arrives(messages in proptest::collection::vec(to_agent(), 0..6), piece in 1..200usize) {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| message.encode(&mut bytes));
        let found: Vec<_> =
            frames(&bytes, piece).iter().map(|(kind, body)| ToAgent::decode(*kind, body).unwrap()).collect();
        prop_assert_eq!(found, messages);
    }

    #[test]
    fn what_an_agent_says_arrives(messages in proptest::collection::vec(to_client(), 0..6), piece in 1..200usize) {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| message.encode(&mut bytes));
        let found: Vec<_> =
            frames(&bytes, piece).iter().map(|(kind, body)| ToClient::decode(*kind, body).unwrap()).collect();
        prop_assert_eq!(found, messages);
    }

    #[test]
    fn a_damaged_message_is_refused_or_is_another_one(message in to_agent(), at in any::<usize>(), byte in any::<u8>()) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let at = at % bytes.len();
        bytes[at] = byte;
        for (kind, body) in frames(&bytes, 1000) {
            if let Ok(other) = ToAgent::decode(kind, &body) {
                let mut again = Vec::new();
                other.encode(&mut again);
                prop_assert!(again.len() <= bytes.len());
            }
        }
    }

    #[test]
    fn garbage_is_refused_and_asks_for_no_memory(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for (kind, body) in frames(&bytes, 64) {
            let _ = (ToAgent::decode(kind, &body), ToClient::decode(kind, &body));
        }
        for kind in 0..140 {
            let _ = (ToAgent::decode(kind, &bytes), ToClient::decode(kind, &bytes));
        }
    }

    #[test]
    fn a_short_message_is_refused(message in to_agent(), cut in 1..20usize) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let body = &bytes[HEADER..];
        prop_assume!(body.len() >= cut);
        let kind = u16::from_le_bytes([bytes[4], bytes[5]]);
        prop_assert!(ToAgent::decode(kind, &body[..body.len() - cut]).is_err());
    }
}

#[test]
fn the_sizes_are_those_of_the_documentation() {
    let mut bytes = Vec::new();
    ToClient::Event(Event::new(Kind::Cr3, Way::To, 1)).encode(&mut bytes);
    assert_eq!(bytes.len(), HEADER + vmtree_agent::EVENT_BYTES);
    assert_eq!(&bytes[..8], [72, 0, 0, 0, 131, 0, 0, 0]);
}
