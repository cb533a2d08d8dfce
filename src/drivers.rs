//! The table of drivers: the one place that names them.

use std::sync::Arc;

use vmtree_api::{Check, Driver, Error, ErrorKind, Host, Listed, Result, Source};

use crate::text;

/// Opens the VM of a SOURCE; the host is told of its end.
pub type Open = fn(Source, Arc<dyn Host>) -> Result<Box<dyn Driver>>;

/// A driver, a row.
pub struct Entry {
    /// Its name in SOURCE.
    pub name: &'static str,
    /// What it reaches, in a few words.
    pub about: &'static str,
    /// A SOURCE as an example.
    pub example: &'static str,
    /// Opens a VM.
    pub open: Open,
    /// The running VMs that it finds on this host.
    pub list: fn() -> Vec<Listed>,
    /// What it needs of this host.
    pub checks: fn() -> Vec<Check>,
    /// Undoes what a killed daemon of ours did to the VM of a SOURCE, as the driver noted it with its host.
    pub recover: fn(&str, &str) -> Result<()>,
}

/// All drivers.
pub const DRIVERS: &[Entry] = &[
    Entry {
        name: "emu",
        about: "the built-in machine, no hypervisor at all",
        example: "emu:ram=256M,vcpus=4",
        open: vmtree_emu::open,
        list: Vec::new,
        checks: vmtree_emu::checks,
        recover: nothing_left,
    },
    Entry {
        name: "qemu",
        about: "stock QEMU, by QMP socket, name or pid",
        example: "qemu:/run/vm.qmp",
        open: vmtree_qemu::open,
        list: vmtree_qemu::list,
        checks: vmtree_qemu::checks,
        recover: vmtree_qemu::recover,
    },
    // Without its feature it says what to build it with.
    Entry {
        name: "kvmi",
        about: "KVM with the KVM-VMI patches, by the socket that QEMU connects to",
        example: "kvmi:/tmp/introspector",
        open: vmtree_kvmi::open,
        list: Vec::new,
        checks: vmtree_kvmi::checks,
        // The kernel undoes all once the connection is gone, and it goes with the daemon.
        recover: nothing_left,
    },
    #[cfg(feature = "xen")]
    Entry {
        name: "xen",
        about: "Xen domains, by name or number",
        example: "xen:domid=3",
        open: vmtree_xen::open,
        list: vmtree_xen::list,
        checks: vmtree_xen::checks,
        recover: vmtree_xen::recover,
    },
];

/// For drivers whose VM dies with the daemon.
fn nothing_left(_source: &str, _note: &str) -> Result<()> {
    Ok(())
}

/// The driver of this name.
///
/// # Errors
/// There is none; the known ones are named.
pub fn find(name: &str) -> Result<&'static Entry> {
    DRIVERS.iter().find(|entry| entry.name == name).ok_or_else(|| {
        let known: Vec<&str> = DRIVERS.iter().map(|entry| entry.name).collect();
        let why = format!("there is no driver '{name}'; this vmtree has: {}", known.join(", "));
        Error::new(ErrorKind::Invalid, "read SOURCE", why)
    })
}

/// Opens the VM that `source` names.
///
/// # Errors
/// As the driver says.
pub fn open(source: &str, host: Arc<dyn Host>) -> Result<Box<dyn Driver>> {
    let source = text::source::parse(source)?;
    (find(&source.driver)?.open)(source, host)
}

/// Undoes what a killed daemon did to the VM that `source` names, as its driver noted it.
///
/// # Errors
/// As the driver says.
pub fn recover(source: &str, note: &str) -> Result<()> {
    let parsed = text::source::parse(source)?;
    (find(&parsed.driver)?.recover)(source, note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_examples_are_read_by_their_driver() {
        for (index, entry) in DRIVERS.iter().enumerate() {
            assert!(DRIVERS[..index].iter().all(|other| other.name != entry.name));
            assert_eq!(text::source::parse(entry.example).unwrap().driver, entry.name);
            assert!(!entry.about.is_empty());
        }
    }

    #[test]
    fn an_unknown_driver_is_refused_with_the_known_ones() {
        let error = find("vmware").err().unwrap().to_string();
        assert!(error.contains("'vmware'") && error.contains("emu"), "{error}");
    }
}
