//! What a peer says, for an error's words.

/// The most characters of it that are shown.
const LIMIT: usize = 200;

/// `text` on one line, without control characters, cut short if it is long.
#[must_use]
pub fn said(text: &str) -> String {
    let plain = |char: char| if char.is_control() { ' ' } else { char };
    let text = text.trim();
    let more = if text.chars().nth(LIMIT).is_some() { "..." } else { "" };
    text.chars().take(LIMIT).map(plain).chain(more.chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_is_one_short_line() {
        assert_eq!(said("no\r\nsuch\x1b[0m thing\r\n"), "no  such [0m thing");
        assert_eq!(said(&"x".repeat(1000)).len(), LIMIT + 3);
    }

    proptest! {
        #[test]
        fn whatever_it_is(text: String) {
            prop_assert!(!said(&text).contains(char::is_control));
            prop_assert!(said(&text).chars().count() <= LIMIT + 3);
        }
    }
}
