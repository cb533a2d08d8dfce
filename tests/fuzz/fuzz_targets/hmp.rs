//! What QEMU's human monitor prints: what parses keeps what its lines promise.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmtree_qemu::fuzz::{answers, mtree, ramblock, registers};

fuzz_target!(|text: &str| {
    for ranges in [mtree::parse(text), mtree::parse(&format!("Root memory region: system\n{text}"))] {
        for range in ranges.into_iter().flatten() {
            assert!(range.start <= range.last && !range.name.contains('\n'), "{range:?}");
        }
    }
    for block in ramblock::parse(text) {
        assert!(!block.id.is_empty() && block.is_of(&block.id), "{block:?}");
        assert!(text.lines().count() >= 1);
    }
    let shown = registers::parse(text);
    assert!(shown.len() <= text.lines().count());
    for vcpu in shown {
        assert!(!vcpu.found.is_empty());
        for (nth, reg) in vcpu.found.iter().enumerate() {
            assert_eq!(vcpu.get(*reg), Some(vcpu.registers.get(*reg)));
            assert!(!vcpu.found[..nth].contains(reg), "{reg:?} was found twice");
        }
    }
    if let Some(word) = answers::examined(text) {
        assert_eq!(answers::examined(&format!("0: {word:#018x}\r\n")), Some(word));
    }
    if let Some(address) = answers::host_address(text) {
        let again = format!("Host virtual address for 0x0 ({}) is {:#x}", address.region, address.hva);
        assert_eq!(answers::host_address(&again), Some(address));
    }
});
