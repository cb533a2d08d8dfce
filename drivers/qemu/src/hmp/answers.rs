//! `gpa2hva` and `xp`: one address, one answer.

use super::hex;

/// Where a byte of the guest lies in QEMU's address space.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostAddress {
    /// The name of the memory region it belongs to.
    pub region: String,
    /// The host-virtual address.
    pub hva: u64,
}

/// Reads the answer to `gpa2hva`: `Host virtual address for 0x0 (pc.ram) is 0x7f...`.
#[must_use]
pub fn host_address(text: &str) -> Option<HostAddress> {
    let (_, rest) = text.trim().strip_prefix("Host virtual address for ")?.split_once(" (")?;
    let (region, hva) = rest.rsplit_once(") is ")?;
    Some(HostAddress { region: region.to_owned(), hva: hex(hva)? })
}

/// Reads the answer to `xp /1gx ADDRESS`: `00000000000f0000: 0x...`.
#[must_use]
pub fn examined(text: &str) -> Option<u64> {
    let (_, value) = text.trim().split_once(": ")?;
    hex(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_answers() {
        let text = "Host virtual address for 0xf0000 (pc.ram) is 0x7f56fbef0000\r\n";
        let address = HostAddress { region: "pc.ram".to_owned(), hva: 0x7f56_fbef_0000 };
        assert_eq!(host_address(text), Some(address));
        assert_eq!(host_address("Memory at address 0xa0000 is not RAM\r\n"), None);
        assert_eq!(examined("00000000000f0000: 0x5f5e5b20c4832443\r\n"), Some(0x5f5e_5b20_c483_2443));
        assert_eq!(examined(" 000000ffffff0000: Cannot access memory\r\n"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = host_address(&text);
            let _ = host_address(&format!("Host virtual address for {text}"));
            let _ = examined(&text);
        }
    }
}
