//! Addresses and identifiers as types of their own: no operators, only checked methods.

use std::fmt;

/// The size of a page frame in bytes (Intel SDM volume 3, 4.5: the smallest translation of x86-64 paging).
pub const PAGE_SIZE: u64 = 4096;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `bytes` further on; `None` past 2^64.
            #[must_use]
            pub fn checked_add(self, bytes: u64) -> Option<Self> {
                self.0.checked_add(bytes).map(Self)
            }

            /// How far this address lies behind `base`; `None` if it lies before it.
            #[must_use]
            pub fn offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }

            /// The offset inside its page.
            #[must_use]
            pub fn page_offset(self) -> u64 {
                self.0 % PAGE_SIZE
            }

            /// The first address of its page.
            #[must_use]
            pub fn page_base(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// A guest-physical address, in bytes.
    Gpa
);
address!(
    /// A guest-virtual address, in bytes.
    Gva
);

impl Gpa {
    /// The frame that holds this address.
    #[must_use]
    pub fn gfn(self) -> Gfn {
        Gfn(self.0 / PAGE_SIZE)
    }
}

/// A guest frame number: a guest-physical address divided by [`PAGE_SIZE`].
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Gfn(pub u64);

impl Gfn {
    /// The address of the frame's first byte; `None` if it lies past 2^64.
    #[must_use]
    pub fn gpa(self) -> Option<Gpa> {
        self.0.checked_mul(PAGE_SIZE).map(Gpa)
    }
}

/// A vCPU, counted from 0 as the hypervisor counts it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct VcpuId(pub u32);

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A SLAT view. View 0 is the default view; it is always there.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ViewId(pub u32);

/// A set of rights to memory: any combination of read, write and execute.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Access(u8);

impl Access {
    /// No right at all.
    pub const NONE: Self = Self(0);
    /// Data reads.
    pub const READ: Self = Self(1);
    /// Data writes.
    pub const WRITE: Self = Self(2);
    /// Instruction fetches.
    pub const EXECUTE: Self = Self(4);
    /// Read, write and execute.
    pub const ALL: Self = Self(7);

    /// Every right that is in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all rights of `other` are in this set.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The rights of this set that are not in `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (right, letter) in [(Self::READ, 'r'), (Self::WRITE, 'w'), (Self::EXECUTE, 'x')] {
            write!(f, "{}", if self.contains(right) { letter } else { '-' })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_at_the_ends() {
        assert_eq!(Gpa(u64::MAX).checked_add(1), None);
        assert_eq!(Gpa(0x1fff).page_base(), Gpa(0x1000));
        assert_eq!(Gpa(0x1fff).page_offset(), 0xfff);
        assert_eq!(Gpa(0x1fff).gfn(), Gfn(1));
        assert_eq!(Gfn(u64::MAX).gpa(), None);
        assert_eq!(Gva(1).offset_from(Gva(2)), None);
    }

    #[test]
    fn access_prints_as_ls_does() {
        assert_eq!(Access::ALL.to_string(), "rwx");
        assert_eq!(Access::READ.union(Access::EXECUTE).to_string(), "r-x");
        assert_eq!(Access::ALL.without(Access::ALL).to_string(), "---");
    }
}
