//! The bytes of KVMI's messages: numbers in the host's order, one after the other.

use std::io::{self, Read};

/// The most that follows a header: two pages with it.
pub const MOST: usize = 8192 - 8;

/// The names of the messages, by number (version 1 of the protocol, as libkvmi 1.1 numbers them).
#[allow(missing_docs, reason = "the constants bear the protocol's names")]
pub mod id {
    pub const EVENT_REPLY: u16 = 0;
    pub const EVENT: u16 = 1;
    pub const GET_VERSION: u16 = 2;
    pub const CHECK_COMMAND: u16 = 3;
    pub const CHECK_EVENT: u16 = 4;
    pub const GET_GUEST_INFO: u16 = 5;
    pub const PAUSE_VCPU: u16 = 7;
    pub const CONTROL_VM_EVENTS: u16 = 8;
    pub const CONTROL_EVENTS: u16 = 9;
    pub const CONTROL_CR: u16 = 10;
    pub const CONTROL_MSR: u16 = 11;
    pub const GET_REGISTERS: u16 = 13;
    pub const SET_REGISTERS: u16 = 14;
    pub const READ_PHYSICAL: u16 = 17;
    pub const WRITE_PHYSICAL: u16 = 18;
    pub const INJECT_EXCEPTION: u16 = 19;
    pub const SET_PAGE_ACCESS: u16 = 21;
    pub const CONTROL_CMD_RESPONSE: u16 = 27;
    pub const GET_MAX_GFN: u16 = 29;
    pub const SWITCH_EPT_VIEW: u16 = 32;
    pub const GET_EPT_VIEW: u16 = 34;
    pub const TRANSLATE_GVA: u16 = 35;
    pub const GET_XCR: u16 = 37;
    pub const ALLOC_GFN: u16 = 41;
    pub const FREE_GFN: u16 = 42;
    pub const CREATE_EPT_VIEW: u16 = 43;
    pub const DESTROY_EPT_VIEW: u16 = 44;
    pub const CHANGE_GFN: u16 = 60;
    pub const CONTROL_SINGLESTEP: u16 = 63;
}

/// The kinds of event, by number.
#[allow(missing_docs, reason = "the constants bear the protocol's names")]
pub mod event {
    pub const UNHOOK: u8 = 0;
    pub const CR: u8 = 1;
    pub const MSR: u8 = 2;
    pub const BREAKPOINT: u8 = 4;
    pub const PF: u8 = 6;
    pub const TRAP: u8 = 7;
    pub const DESCRIPTOR: u8 = 8;
    pub const PAUSE_VCPU: u8 = 10;
    pub const SINGLESTEP: u8 = 11;
    pub const CPUID: u8 = 13;
}

/// What is done with the instruction of an event.
#[allow(missing_docs, reason = "the constants bear the protocol's names")]
pub mod action {
    pub const CONTINUE: u8 = 0;
    pub const RETRY: u8 = 1;
}

/// Error numbers of the protocol, negative in an answer.
#[allow(missing_docs, reason = "the constants bear the protocol's names")]
pub mod error {
    pub const NOENT: i32 = -2;
    pub const AGAIN: i32 = -11;
    pub const NOMEM: i32 = -12;
    pub const BUSY: i32 = -16;
    pub const INVAL: i32 = -22;
    pub const OPNOTSUPP: i32 = -95;
    pub const NOSYS: i32 = -1000;
}

/// A message without its header's size.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// Which.
    pub id: u16,
    /// Its number.
    pub seq: u32,
    /// What follows the header.
    pub data: Vec<u8>,
}

impl Message {
    /// Reads one.
    ///
    /// # Errors
    /// The peer is gone, or sends more than a message can have.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut header = [0; 8];
        from.read_exact(&mut header)?;
        let [i0, i1, s0, s1, n0, n1, n2, n3] = header;
        let size = usize::from(u16::from_ne_bytes([s0, s1]));
        if size > MOST {
            return Err(io::Error::other(format!("a message of {size} bytes; {MOST} are the most")));
        }
        let mut data = vec![0; size];
        from.read_exact(&mut data)?;
        Ok(Self { id: u16::from_ne_bytes([i0, i1]), seq: u32::from_ne_bytes([n0, n1, n2, n3]), data })
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(8 + self.data.len());
        all.extend(self.id.to_ne_bytes());
        all.extend((self.data.len() as u16).to_ne_bytes());
        all.extend(self.seq.to_ne_bytes());
        all.extend(&self.data);
        all
    }
}

/// A message has not the size that it should have: the connection is closed, as KVM does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BadSize;

/// Reads numbers one after the other.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `bytes` bytes.
    ///
    /// # Errors
    /// There are not as many.
    pub fn take(&mut self, bytes: usize) -> Result<&'a [u8], BadSize> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(BadSize)?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next number, of so many bytes.
    ///
    /// # Errors
    /// As [`Fields::take`].
    pub fn number(&mut self, bytes: usize) -> Result<u64, BadSize> {
        let mut whole = [0; 8];
        whole.get_mut(..bytes).ok_or(BadSize)?.copy_from_slice(self.take(bytes)?);
        Ok(u64::from_le_bytes(whole))
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// There is something.
    pub fn end(self) -> Result<(), BadSize> {
        if self.0.is_empty() { Ok(()) } else { Err(BadSize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_are_read_as_they_were_written(id: u16, seq: u32, data in prop::collection::vec(any::<u8>(), 0..200)) {
            let message = Message { id, seq, data };
            prop_assert_eq!(Message::read(&mut message.bytes().as_slice()).unwrap(), message);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Message::read(&mut bytes.as_slice());
            let mut fields = Fields(&bytes);
            while fields.number(4).is_ok() {}
        }
    }

    #[test]
    fn fields_are_taken_whole_or_not_at_all() {
        let mut fields = Fields(&[1, 0, 2]);
        assert_eq!((fields.number(2), fields.number(2), fields.number(1)), (Ok(1), Err(BadSize), Ok(2)));
        assert_eq!(Fields(&[1]).end(), Err(BadSize));
    }
}
