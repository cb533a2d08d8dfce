//! Parameters that ride in file names: `BASE,key=value,...`.

use vmtree_api::Result;

use super::{invalid, is_key, number_of, quoted, setting};

const OP: &str = "read file name";

/// A file name taken apart.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Params {
    /// The name before the first comma; not empty.
    pub base: String,
    /// The parameters in the order written; each key once, no empty value.
    pub pairs: Vec<(String, String)>,
}

impl Params {
    /// The name with its keys sorted: the same for every order of the parameters.
    #[must_use]
    pub fn canonical(&self) -> String {
        let mut pairs: Vec<_> = self.pairs.iter().collect();
        pairs.sort();
        let mut name = self.base.clone();
        for (key, value) in pairs {
            for piece in [",", key, "=", value] {
                name.push_str(piece);
            }
        }
        name
    }
}

/// Takes a file name apart. A name without a comma has no parameters.
///
/// # Errors
/// [`vmtree_api::ErrorKind::Invalid`] naming the parameter that is wrong.
pub fn split(name: &str) -> Result<Params> {
    let mut parts = name.split(',');
    let base = parts.next().unwrap_or_default();
    if base.is_empty() {
        return Err(invalid(OP, format!("{} has no name before its parameters", quoted(name))));
    }
    let mut pairs: Vec<(String, String)> = Vec::new();
    for part in parts {
        let (key, value) = setting(OP, part, "NAME,key=value")?;
        if !is_key(key) || value.is_empty() {
            return Err(invalid(OP, format!("{} is no parameter: write key=value", quoted(part))));
        }
        if pairs.iter().any(|(known, _)| known == key) {
            return Err(invalid(
                OP,
                format!("{} sets a parameter a second time: name each once", quoted(part)),
            ));
        }
        pairs.push((key.to_owned(), value.to_owned()));
    }
    Ok(Params { base: base.to_owned(), pairs })
}

/// The address of `translate,gva=ADDR`; `None` for a name with another base.
///
/// # Errors
/// [`vmtree_api::ErrorKind::Invalid`] for a `translate` without exactly one `gva=`, or with a bad number;
/// `OutOfRange` for an address of more than 64 bits.
pub fn parse_translate(name: &str) -> Result<Option<u64>> {
    const FORM: &str = "write translate,gva=0xffff800000000000";
    if name.split(',').next() != Some("translate") {
        return Ok(None);
    }
    let params = split(name)?;
    if let Some((key, _)) = params.pairs.iter().find(|(key, _)| key != "gva") {
        return Err(invalid(OP, format!("translate has no parameter {}: {FORM}", quoted(key))));
    }
    match params.pairs.first() {
        Some((key, value)) => number_of(OP, key, value, 64).map(Some),
        None => Err(invalid(OP, format!("translate needs an address: {FORM}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmtree_api::ErrorKind;

    #[test]
    fn any_order_is_the_same_file() {
        let one = split("cr3,vcpu=0,dir=to").unwrap();
        assert_eq!((one.base.as_str(), one.pairs.len()), ("cr3", 2));
        assert_eq!(one.canonical(), "cr3,dir=to,vcpu=0");
        assert_eq!(split("cr3,dir=to,vcpu=0").unwrap().canonical(), one.canonical());
        assert_eq!(split("slat,gpa=0x1000-0x3000").unwrap().canonical(), "slat,gpa=0x1000-0x3000");
        assert_eq!(split("state").unwrap().canonical(), "state");
    }

    #[test]
    fn refuses_bad_parameters_by_name() {
        for (name, named) in [
            ("", "''"),
            (",a=b", "',a=b'"),
            ("cr3,", "''"),
            ("cr3,dir", "'dir'"),
            ("cr3,=to", "'=to'"),
            ("cr3,dir=", "'dir='"),
            ("cr3,Dir=to", "'Dir=to'"),
            ("cr3,dir=to,dir=to", "'dir=to'"),
        ] {
            let error = split(name).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.why().contains(named), "{error}");
        }
    }

    #[test]
    fn reads_the_address_to_translate() {
        assert_eq!(parse_translate("translate,gva=0x7f00").unwrap(), Some(0x7f00));
        for other in ["", "state", "translated,gva=1", "cr3,,", "Translate,gva=1"] {
            assert_eq!(parse_translate(other).unwrap(), None, "{other}");
        }
        for bad in ["translate", "translate,", "translate,gva=", "translate,gpa=1", "translate,gva=1,cr3=2"] {
            assert_eq!(parse_translate(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
        let far = parse_translate("translate,gva=0x10000000000000000").unwrap_err();
        assert_eq!(far.kind(), ErrorKind::OutOfRange);
    }

    proptest! {
        #[test]
        fn names_read_back_in_any_order(
            base in "[^,]{1,8}",
            pairs in prop::collection::btree_map("[a-z][a-z0-9_]{0,6}", "[^,]{1,8}", 0..6),
            turn in 0usize..6,
        ) {
            let mut pairs: Vec<_> = pairs.into_iter().collect();
            let sorted = Params { base: base.clone(), pairs: pairs.clone() }.canonical();
            let steps = turn % pairs.len().max(1);
            pairs.rotate_left(steps);
            let text = pairs.iter().fold(base.clone(), |text, (key, value)| format!("{text},{key}={value}"));
            let parsed = split(&text).unwrap();
            prop_assert_eq!(&parsed, &Params { base, pairs });
            prop_assert_eq!(parsed.canonical(), sorted);
        }

        #[test]
        fn every_address_reads_back(gva: u64) {
            prop_assert_eq!(parse_translate(&format!("translate,gva={gva:#x}")).unwrap(), Some(gva));
        }

        #[test]
        fn never_panics(name: String, near in "(translate)?[,=gva0-9x]{0,16}") {
            for name in [&name, &near] {
                if let Ok(params) = split(name) {
                    let canonical = params.canonical();
                    prop_assert_eq!(split(&canonical).unwrap().canonical(), canonical);
                }
                let _ = parse_translate(name);
            }
        }
    }
}
