//! The closed sets of the protocol, each a number of one byte.

use crate::Malformed;

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident, $wrong:literal, { $($(#[$row_doc:meta])* $row:ident = $number:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[repr(u8)]
        pub enum $name { $($(#[$row_doc])* $row = $number,)+ }

        impl $name {
            /// All of them, in order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$row,)+];
        }

        impl TryFrom<u8> for $name {
            type Error = Malformed;

            fn try_from(number: u8) -> Result<Self, Malformed> {
                match number {
                    $($number => Ok(Self::$row),)+
                    _ => Err(Malformed($wrong)),
                }
            }
        }
    };
}

numbered!(
    /// A kind of event, by the name of its file.
    #[allow(missing_docs, reason = "the variants bear the names of the event files")]
    Kind, "there is no such kind of event", {
        Cr0 = 0, Cr3 = 1, Cr4 = 2, Cr8 = 3, Xcr0 = 4, Dr = 5, Msr = 6, Interrupt = 7, Breakpoint = 8, SingleStep = 9,
        Slat = 10, Cpuid = 11, Io = 12, Descriptor = 13, GuestRequest = 14,
    }
);

numbered!(
    /// A way in which a kind of event happens.
    Way, "there is no such way of an event", {
        /// It has no direction.
        Once = 0,
        /// To the register or port.
        To = 1,
        /// From the register or port.
        From = 2,
        /// A data read.
        Read = 3,
        /// A data write.
        Write = 4,
        /// An instruction fetch.
        Execute = 5,
    }
);

numbered!(
    /// What can be answered to a held event.
    #[allow(missing_docs, reason = "the variants bear the words of an answer")]
    Action, "there is no such action", {
        Continue = 0, Deny = 1, Value = 2, Set = 3, Step = 4, Inject = 5,
    }
);

numbered!(
    /// What became of a request.
    Code, "there is no such result", {
        /// It was done.
        Ok = 0,
        /// It makes no sense.
        Invalid = 1,
        /// This agent can't do it.
        Unsupported = 2,
        /// What it names is not there.
        NotFound = 3,
        /// Another client or request is in the way.
        Busy = 4,
        /// The event is no longer held.
        Stale = 5,
        /// It was not done in time.
        TimedOut = 6,
    }
);

numbered!(
    /// A register of an x86-64 vCPU. The first sixteen have the numbers that instructions have for them.
    #[allow(missing_docs, reason = "the variants bear the manual's names")]
    Reg, "there is no such register", {
        Rax = 0, Rcx = 1, Rdx = 2, Rbx = 3, Rsp = 4, Rbp = 5, Rsi = 6, Rdi = 7, R8 = 8, R9 = 9, R10 = 10, R11 = 11, R12 = 12,
        R13 = 13, R14 = 14, R15 = 15, Rip = 16, Rflags = 17, Cr0 = 18, Cr2 = 19, Cr3 = 20, Cr4 = 21, Cr8 = 22, Efer = 23,
        Cs = 24, Ss = 25, Ds = 26, Es = 27, Fs = 28, Gs = 29, FsBase = 30, GsBase = 31, KernelGsBase = 32,
    }
);
