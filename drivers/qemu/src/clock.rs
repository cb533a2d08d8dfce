//! QEMU's clock of the guest, as the ACPI power management timer shows it: it stands still exactly while the VM does.
//! So two equal readings say that nobody has let the VM run in between.
//!
//! The timer is a counter of 24 bits at 3.579545 MHz (ACPI 6.5, 4.8.3.3; QEMU's hw/acpi/core.c takes it from
//! QEMU_CLOCK_VIRTUAL). Reading its port changes nothing. It is there once the firmware has put it somewhere.

use std::fmt;

use vmtree_api::Result;

use crate::qmp::Qmp;

/// The timer's name in `info mtree`.
const TIMER: &str = ": acpi-tmr";

/// The bits of the counter.
const BITS: u32 = 24;

/// A reading.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Clock {
    port: u16,
    ticks: u32,
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x} {:x}", self.port, self.ticks)
    }
}

impl Clock {
    /// Reads the clock; `None` where the VM has no such timer, or its firmware has not set it up.
    ///
    /// # Errors
    /// Those of [`Qmp::human`].
    pub fn read(qmp: &Qmp) -> Result<Option<Self>> {
        match port(&qmp.human("info mtree -f")?) {
            Some(port) => Self::at(qmp, port),
            None => Ok(None),
        }
    }

    /// Reads it anew where it was.
    ///
    /// # Errors
    /// Those of [`Qmp::human`].
    pub fn again(self, qmp: &Qmp) -> Result<Option<Self>> {
        Self::at(qmp, self.port)
    }

    fn at(qmp: &Qmp, port: u16) -> Result<Option<Self>> {
        let answer = qmp.human(&format!("i /wx {port:#x}"))?;
        Ok(ticks(&answer).map(|ticks| Self { port, ticks }))
    }

    /// Whether the VM has run between both readings. Not known, and false, where the timer has moved.
    #[must_use]
    pub fn differs(self, other: Self) -> bool {
        self.port == other.port && self.ticks != other.ticks
    }

    /// Reads what [`fmt::Display`] writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (port, ticks) = text.split_once(' ')?;
        let ticks = u32::from_str_radix(ticks, 16).ok()?;
        Some(Self { port: u16::from_str_radix(port, 16).ok()?, ticks })
    }
}

/// Finds the timer in the flat view of the I/O ports.
fn port(mtree: &str) -> Option<u16> {
    let line = mtree.lines().find(|line| line.trim_end().ends_with(TIMER))?;
    u16::from_str_radix(line.trim_start().split_once('-')?.0.trim_start_matches('0'), 16).ok()
}

/// Reads `portl[0x0608] = 0x00aac00a`. A port that nothing answers at has all bits set.
fn ticks(answer: &str) -> Option<u32> {
    let digits = answer.trim().rsplit_once("= 0x")?.1;
    u32::from_str_radix(digits, 16).ok().filter(|ticks| ticks >> BITS == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_qemu_says() {
        let view = "FlatView #1\n AS \"I/O\", root: io\n  0000000000000604-0000000000000605 (prio 0, i/o): acpi-cnt\r\n  \
                    0000000000000608-000000000000060b (prio 0, i/o): acpi-tmr\r\n";
        assert_eq!(port(view), Some(0x608));
        assert_eq!(port("  0000000000000604-0000000000000605 (prio 0, i/o): acpi-cnt"), None);
        assert_eq!(ticks("portl[0x0608] = 0x00aac00a\r\n"), Some(0xaa_c00a));
        assert_eq!(ticks("portl[0x0608] = 0xffffffff\r\n"), None);
        assert_eq!(ticks("unknown command: 'i'"), None);
    }

    #[test]
    fn only_two_readings_of_one_timer_tell_that_the_vm_ran() {
        let clock = |port, ticks| Clock { port, ticks };
        assert!(clock(1, 2).differs(clock(1, 3)));
        assert!(!clock(1, 2).differs(clock(1, 2)) && !clock(1, 2).differs(clock(2, 3)));
        assert_eq!(Clock::parse(&clock(0x608, 0xff_ffff).to_string()), Some(clock(0x608, 0xff_ffff)));
    }

    proptest! {
        #[test]
        fn never_panics(text: String, hex in "[0-9a-fx -]{0,20}") {
            let _ = (port(&text), ticks(&text), Clock::parse(&text));
            let _ = (port(&format!("{hex}{TIMER}")), ticks(&format!("= 0x{hex}")), Clock::parse(&hex));
        }
    }
}
