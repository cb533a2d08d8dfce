//! What an agent can do, row by row, and why it can't do the rest.

use crate::code::{Reader, Result, Write};
use crate::{Action, Kind, Malformed, Way};

/// What a row is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Subject {
    /// Whether a kind is seen in a way.
    Seen(Way),
    /// Whether a held event of a kind takes an action.
    Takes(Action),
}

/// A row: one thing of a kind, with the reason where it is not there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Offer {
    /// The kind.
    pub kind: Kind,
    /// What of it.
    pub subject: Subject,
    /// `None` where it is there; else why not.
    pub missing: Option<String>,
}

/// The fewest bytes of a row.
const ROW_BYTES: usize = 6;

impl Offer {
    pub(crate) fn encode_all(offers: &[Self], out: &mut Vec<u8>) {
        out.u32(offers.len() as u32);
        for offer in offers {
            let (subject, number) = match offer.subject {
                Subject::Seen(way) => (0, way as u8),
                Subject::Takes(action) => (1, action as u8),
            };
            out.u8(offer.kind as u8);
            out.u8(subject);
            out.u8(number);
            out.u8(u8::from(offer.missing.is_none()));
            out.text(offer.missing.as_deref().unwrap_or_default());
        }
    }

    pub(crate) fn decode_all(bytes: &mut Reader) -> Result<Vec<Self>> {
        (0..bytes.rows(ROW_BYTES)?).map(|_| Self::decode(bytes)).collect()
    }

    fn decode(bytes: &mut Reader) -> Result<Self> {
        let kind = Kind::try_from(bytes.u8()?)?;
        let (subject, number) = (bytes.u8()?, bytes.u8()?);
        let subject = match subject {
            0 => Subject::Seen(Way::try_from(number)?),
            1 => Subject::Takes(Action::try_from(number)?),
            _ => return Err(Malformed("an offer is of no known sort")),
        };
        let there = bytes.u8()? == 1;
        let why = bytes.text()?;
        Ok(Self { kind, subject, missing: Some(why).filter(|_| !there) })
    }
}
