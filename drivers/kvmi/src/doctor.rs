//! What the driver needs of the host, for `vmtree doctor`.

use vmtree_api::{Check, Missing};

/// Why there is nothing without the feature.
#[cfg(not(feature = "libkvmi"))]
pub const WITHOUT: &str = "this vmtree was built without libkvmi";
/// What to do about it.
#[cfg(not(feature = "libkvmi"))]
pub const CURE: &str = "install libclang-dev, pkg-config and libkvmi from its source, and build with --features kvmi (docs/kvmi.md)";

/// libkvmi. Whether a KVM-VMI kernel runs, only a guest that connects tells.
#[must_use]
pub fn checks() -> Vec<Check> {
    vec![Check { what: "libkvmi".to_owned(), found: found() }]
}

#[cfg(not(feature = "libkvmi"))]
fn found() -> Result<String, Missing> {
    Err(Missing::new(WITHOUT).cure(CURE))
}

#[cfg(feature = "libkvmi")]
fn found() -> Result<String, Missing> {
    crate::sys::loaded()
        .map(|()| "loaded; the guest's host needs the kernel and QEMU of KVM-VMI".to_owned())
        .map_err(|why| {
            Missing::new(format!("libkvmi.so is not to be had: {why}"))
                .cure("put its folder into LD_LIBRARY_PATH, or run ldconfig after its installation")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_has_its_cure() {
        for check in checks() {
            if let Err(missing) = check.found {
                assert!(missing.cure.is_some(), "{missing}");
            }
        }
    }
}
