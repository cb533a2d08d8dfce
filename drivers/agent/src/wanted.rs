//! The set of what is wanted: declarative, the whole of it at once.

use std::ops::Range;

use crate::code::{Reader, Result, Write};
use crate::{Kind, Malformed, Way};

/// One wanted interception of any kind but slat. `None` matches all.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Watch {
    /// The kind.
    pub kind: Kind,
    /// In this way alone.
    pub way: Option<Way>,
    /// On this vCPU alone.
    pub vcpu: Option<u32>,
    /// This MSR, debug register, vector or port alone.
    pub index: Option<u32>,
    /// Whether the vCPU waits for a verdict.
    pub hold: bool,
}

/// Rights over frames of guest-physical memory: what is not allowed raises slat.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// The frames (gpa / 4096), end excluded.
    pub frames: Range<u64>,
    /// What is allowed: 1 read, 2 write, 4 execute.
    pub access: u8,
    /// Whether the vCPU waits for a verdict.
    pub hold: bool,
}

/// All that is wanted; the default is nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Wanted {
    /// The interceptions.
    pub watches: Vec<Watch>,
    /// The rules: ranges that don't overlap, in ascending order.
    pub rules: Vec<Rule>,
}

/// "Any" in a field of four bytes.
const ANY: u32 = u32::MAX;
const WATCH_BYTES: usize = 12;
const RULE_BYTES: usize = 24;

impl Wanted {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.u32(self.watches.len() as u32);
        for watch in &self.watches {
            out.u8(watch.kind as u8);
            out.u8(watch.way.map_or(u8::MAX, |way| way as u8));
            out.u8(u8::from(watch.hold));
            out.u8(u8::from(watch.index.is_some()));
            out.u32(watch.vcpu.unwrap_or(ANY));
            out.u32(watch.index.unwrap_or(0));
        }
        out.u32(self.rules.len() as u32);
        for rule in &self.rules {
            out.u64(rule.frames.start);
            out.u64(rule.frames.end);
            out.u8(rule.access);
            out.u8(u8::from(rule.hold));
            out.extend_from_slice(&[0; 6]);
        }
    }

    pub(crate) fn decode(bytes: &mut Reader) -> Result<Self> {
        let watches = (0..bytes.rows(WATCH_BYTES)?).map(|_| watch(bytes)).collect::<Result<_>>()?;
        let rules: Vec<Rule> = (0..bytes.rows(RULE_BYTES)?).map(|_| rule(bytes)).collect::<Result<_>>()?;
        let ordered =
            rules.iter().zip(rules.iter().skip(1)).all(|(one, next)| one.frames.end <= next.frames.start);
        if !ordered {
            return Err(Malformed("the rules overlap or are not in order"));
        }
        Ok(Self { watches, rules })
    }
}

fn boolean(number: u8) -> Result<bool> {
    match number {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed("a yes or no is neither")),
    }
}

fn watch(bytes: &mut Reader) -> Result<Watch> {
    let kind = Kind::try_from(bytes.u8()?)?;
    let way = match bytes.u8()? {
        u8::MAX => None,
        number => Some(Way::try_from(number)?),
    };
    let hold = boolean(bytes.u8()?)?;
    let indexed = boolean(bytes.u8()?)?;
    let vcpu = Some(bytes.u32()?).filter(|vcpu| *vcpu != ANY);
    let index = Some(bytes.u32()?).filter(|_| indexed);
    Ok(Watch { kind, way, vcpu, index, hold })
}

fn rule(bytes: &mut Reader) -> Result<Rule> {
    let frames = bytes.u64()?..bytes.u64()?;
    let (access, hold) = (bytes.u8()?, boolean(bytes.u8()?)?);
    bytes.bytes(6)?;
    if frames.is_empty() || frames.end > 1 << 52 || access > 7 {
        return Err(Malformed("a rule has no frames, or no such rights"));
    }
    Ok(Rule { frames, access, hold })
}
