//! The target description: which registers a stub has, their numbers and where they stand in a `g` packet.
//!
//! It is XML of a fixed shape: elements that matter have no text in them. What can't be understood is passed over, and a
//! register that is missed then is missed by name.

/// A register of the stub.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Register {
    /// Its name in the description.
    pub name: String,
    /// Its number for `p` and `P`.
    pub number: u32,
    /// How many bytes it has.
    pub bytes: usize,
    /// Its offset in a `g` packet, in bytes.
    pub offset: usize,
}

/// The registers, in the order of their numbers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Layout(Vec<Register>);

impl Layout {
    /// The layout that these documents describe: they are taken in the order in which they were included.
    #[must_use]
    pub fn new(documents: &[String]) -> Self {
        let mut found: Vec<(u32, String, usize)> = Vec::new();
        let mut next = 0_u32;
        for document in documents {
            let plain = without_comments(document);
            for element in elements(&plain, "reg") {
                let (Some(name), Some(bits)) = (attribute(element, "name"), attribute(element, "bitsize"))
                else {
                    continue;
                };
                let number = attribute(element, "regnum").and_then(|text| text.parse().ok()).unwrap_or(next);
                next = number.saturating_add(1);
                // Larger than any register that there is: no sum of them overflows.
                let bits = bits.parse::<u16>().unwrap_or(0);
                found.push((number, name.to_owned(), usize::from(bits.div_ceil(8))));
            }
        }
        found.sort_by_key(|(number, ..)| *number);
        let mut offset = 0;
        let register = |(number, name, bytes)| {
            offset += bytes;
            Register { name, number, bytes, offset: offset - bytes }
        };
        Self(found.into_iter().map(register).collect())
    }

    /// All of them.
    #[must_use]
    pub fn registers(&self) -> &[Register] {
        &self.0
    }

    /// The register called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Register> {
        self.0.iter().find(|register| register.name == name)
    }
}

/// The documents that `document` includes, in order; those whose names are no plain file names are passed over.
#[must_use]
pub fn includes(document: &str) -> Vec<String> {
    let plain = without_comments(document);
    elements(&plain, "xi:include")
        .filter_map(|element| attribute(element, "href"))
        // A colon would end the name in a request.
        .filter(|name| name.chars().all(|char| char.is_ascii_graphic() && char != ':'))
        .map(str::to_owned)
        .collect()
}

/// QEMU's descriptions have registers inside comments, which have no numbers.
fn without_comments(mut text: &str) -> String {
    let mut plain = String::new();
    while let Some((before, rest)) = text.split_once("<!--") {
        plain.push_str(before);
        text = rest.split_once("-->").map_or("", |(_, after)| after);
    }
    plain.push_str(text);
    plain
}

/// The inside of each tag `<name ...>`.
fn elements<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    text.split('<').filter_map(move |piece| {
        let tag = piece.split('>').next()?;
        let inside = tag.strip_prefix(name)?;
        inside.starts_with(char::is_whitespace).then_some(inside)
    })
}

/// The value of the attribute `name` of a tag.
fn attribute<'a>(mut inside: &'a str, name: &str) -> Option<&'a str> {
    loop {
        let (key, rest) = inside.split_once('=')?;
        let rest = rest.trim_start();
        let quote = rest.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
        let (value, after) = rest.get(1..)?.split_once(quote)?;
        if key.trim() == name {
            return Some(value);
        }
        inside = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TARGET: &str = r#"<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>
        <architecture>i386:x86-64</architecture><xi:include href="i386-64bit.xml"/>
        <!-- <xi:include href="none.xml"/> --><xi:include href='extra.xml'/></target>"#;
    const CORE: &str = r#"<feature name="org.gnu.gdb.i386.core">
        <flags id="x64_eflags" size="4"><field name="" start="22" end="31"/></flags>
        <reg name="rax" bitsize="64" type="int64"/>
        <!-- <reg name="gone" bitsize="64"/>
        --><reg bitsize="32" name='eflags' type="x64_eflags"/>
        <reg name="st0" bitsize="80"/></feature>"#;

    #[test]
    fn numbers_registers_past_comments_and_includes() {
        assert_eq!(includes(TARGET), ["i386-64bit.xml", "extra.xml"]);
        assert_eq!(includes("<xi:include href=\"a:b\"/><xi:include href=\"a\u{7}\"/>"), [""; 0]);
        let extra = r#"<reg name="far" bitsize="64" regnum="40"/><reg name="next" bitsize="8"/>"#;
        let layout = Layout::new(&[CORE.to_owned(), extra.to_owned()]);
        let register = |name: &str| {
            let register = layout.get(name)?;
            Some((register.number, register.bytes, register.offset))
        };
        assert_eq!(register("rax"), Some((0, 8, 0)));
        assert_eq!(register("eflags"), Some((1, 4, 8)));
        assert_eq!(register("st0"), Some((2, 10, 12)));
        assert_eq!(register("far"), Some((40, 8, 22)));
        assert_eq!(register("next"), Some((41, 1, 30)));
        assert_eq!(register("gone"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text: String, tags in r#"(<!--|-->|<reg|<xi:include| name="[a-z]{0,3}"| bitsize="[0-9]{0,6}"| regnum="[0-9]{0,11}"|>|=|"){0,20}"#) {
            for text in [&text, &tags] {
                let _ = includes(text);
                let _ = Layout::new(&[text.clone(), text.clone()]);
            }
        }
    }
}
