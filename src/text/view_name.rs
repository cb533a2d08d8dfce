//! Names of SLAT views: `[A-Za-z0-9_-]{1,32}`.

use vmtree_api::{Result, ViewId};

use super::{invalid, quoted};

const OP: &str = "read view name";

/// The name of the default view, [`ViewId`] 0.
pub const DEFAULT: &str = "0";

/// The longest name in bytes.
pub const LONGEST: usize = 32;

/// Whether `name` can be the name of a view.
#[must_use]
pub fn is_valid(name: &str) -> bool {
    (1..=LONGEST).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// Checks that `name` can be the name of a view.
///
/// # Errors
/// [`vmtree_api::ErrorKind::Invalid`] for any other name.
pub fn check(name: &str) -> Result<()> {
    if is_valid(name) {
        return Ok(());
    }
    let form = format!("write 1 to {LONGEST} letters, digits, '_' and '-'");
    Err(invalid(OP, format!("{} can't name a view: {form}", quoted(name))))
}

/// Finds the view called `name`; `view_of` knows all but the default one.
pub(super) fn find(op: &'static str, name: &str, view_of: &dyn Fn(&str) -> Option<ViewId>) -> Result<ViewId> {
    check(name)?;
    if name == DEFAULT {
        return Ok(ViewId(0));
    }
    view_of(name).ok_or_else(|| {
        let why = format!("there is no view {}: mkdir views/{name} makes it", quoted(name));
        vmtree_api::Error::new(vmtree_api::ErrorKind::Invalid, op, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmtree_api::ErrorKind;

    #[test]
    fn names_are_short_and_plain() {
        for name in ["0", "hooks", "A-b_9", "-", &"x".repeat(32)] {
            assert!(check(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a b", "a,b", "ä", "a\n", &"x".repeat(33)] {
            let error = check(name).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.why().contains("1 to 32"), "{error}");
            assert!(!error.to_string().contains(char::is_control));
        }
    }

    #[test]
    fn the_default_view_is_always_there() {
        let none = |_: &str| None;
        assert_eq!(find(OP, "0", &none).unwrap(), ViewId(0));
        assert_eq!(find(OP, "hooks", &none).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(find(OP, "hooks", &|_| Some(ViewId(3))).unwrap(), ViewId(3));
        assert_eq!(find(OP, "a b", &|_| Some(ViewId(3))).unwrap_err().kind(), ErrorKind::Invalid);
    }

    proptest! {
        #[test]
        fn exactly_the_contract_s_names_pass(good in "[A-Za-z0-9_-]{1,32}", any: String) {
            prop_assert!(is_valid(&good));
            let expected = (1..=32).contains(&any.len())
                && any.chars().all(|char| char.is_ascii_alphanumeric() || "_-".contains(char));
            prop_assert_eq!(check(&any).is_ok(), expected);
        }
    }
}
