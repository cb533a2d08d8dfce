//! The two forms of a target: `NAME` and `domid=3`.

use vmtree_api::{Error, ErrorKind, Result};

const OP: &str = "read SOURCE";
const FORMS: &str = "write xen:NAME or xen:domid=NUMBER; 'vmtree list' shows the domains";

/// Numbers from here on are not domains (DOMID_FIRST_RESERVED).
const RESERVED: u32 = 0x7ff0;

/// Which domain is meant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// The one of this name.
    Name(String),
    /// The one of this number.
    Domid(u32),
}

impl Target {
    /// Reads the text between `xen:` and the first comma.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an empty name and for what is no number of a guest.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |why: String| Error::new(ErrorKind::Invalid, OP, format!("{why}; {FORMS}"));
        let Some(number) = text.strip_prefix("domid=") else {
            return match text {
                "" => Err(invalid("'xen:' names no domain".to_owned())),
                name if name.contains(['\0', '\n', '/']) => {
                    Err(invalid("a domain's name has no NUL, line break or slash".to_owned()))
                }
                name => Ok(Self::Name(name.to_owned())),
            };
        };
        match number.parse::<u32>() {
            Ok(0) => Err(invalid("domain 0 is the host itself".to_owned())),
            Ok(domid) if domid < RESERVED && number.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok(Self::Domid(domid))
            }
            _ => Err(invalid(format!("'domid={number}' is no domain's number (1 to {})", RESERVED - 1))),
        }
    }

    /// Picks the domain among these, by number and name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::Invalid`] if a name means several.
    pub fn pick(&self, domains: &[(u32, Option<String>)]) -> Result<u32> {
        let none = |what: String| {
            Err(Error::new(
                ErrorKind::NotFound,
                "find the domain",
                format!("there is no domain {what}; 'vmtree list' shows them"),
            ))
        };
        match self {
            Self::Domid(domid) if domains.iter().any(|(number, _)| number == domid) => Ok(*domid),
            Self::Domid(domid) => none(domid.to_string()),
            Self::Name(name) => {
                let named: Vec<u32> = domains
                    .iter()
                    .filter(|(domid, its)| *domid != 0 && its.as_ref() == Some(name))
                    .map(|(domid, _)| *domid)
                    .collect();
                match named[..] {
                    [domid] => Ok(domid),
                    [] => none(format!("'{name}'")),
                    _ => {
                        let all: Vec<String> = named.iter().map(|domid| format!("domid={domid}")).collect();
                        let why = format!(
                            "the name '{name}' means several domains; write xen: and one of {}",
                            all.join(", ")
                        );
                        Err(Error::new(ErrorKind::Invalid, "find the domain", why))
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_each_form() {
        assert_eq!(Target::parse("win10").unwrap(), Target::Name("win10".into()));
        assert_eq!(Target::parse("domid=3").unwrap(), Target::Domid(3));
        for bad in ["", "domid=", "domid=0", "domid=+3", "domid=-1", "domid=40000", "a/b", "a\nb"] {
            let error = Target::parse(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad:?}");
            assert!(error.why().contains("vmtree list"), "{error}");
        }
    }

    #[test]
    fn a_name_must_mean_one_domain() {
        let named = |domid, name: &str| (domid, Some(name.to_owned()));
        let domains = [named(0, "Domain-0"), named(1, "a"), named(2, "b"), named(5, "b"), (6, None)];
        assert_eq!(Target::Name("a".into()).pick(&domains).unwrap(), 1);
        assert_eq!(Target::Domid(6).pick(&domains).unwrap(), 6);
        let several = Target::Name("b".into()).pick(&domains).unwrap_err();
        assert!(several.why().contains("domid=2, domid=5"), "{several}");
        for none in [Target::Name("c".into()), Target::Domid(3), Target::Name("Domain-0".into())] {
            assert_eq!(none.pick(&domains).unwrap_err().kind(), ErrorKind::NotFound);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = Target::parse(&text);
        }
    }
}
