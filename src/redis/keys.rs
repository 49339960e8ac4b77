//! Names of keys, and the pattern a name was made by.

use std::borrow::Cow;

pub use crate::glob::glob_matches;

/// A key's name. Any bytes.
pub type Key = Vec<u8>;

/// Length from which a word of letters and digits is taken for an identifier.
const LONG_WORD: usize = 20;

/// The pattern that a key's name was made by: in each part between colons, numbers, UUIDs,
/// hexadecimal digests and random words become `*`. It matches the name in the sense of
/// [`glob_matches`], and it holds no session id or other secret that the name holds.
///
/// ```
/// # use drctl::redis::pattern_of;
/// assert_eq!(pattern_of(b"user:1234:profile"), "user:*:profile");
/// assert_eq!(pattern_of(b"session:0d8f3b7e-5c0a-4f53-9f3c-0a4f2f1f9a11"), "session:*");
/// assert_eq!(pattern_of(b"sessions:all"), "sessions:all");
/// ```
#[must_use]
pub fn pattern_of(key: &[u8]) -> String {
    let parts: Vec<Cow<'_, str>> = key.split(|b| *b == b':').map(pattern_of_part).collect();
    parts.join(":")
}

fn pattern_of_part(part: &[u8]) -> Cow<'_, str> {
    if is_identifier(part) {
        return Cow::Borrowed("*");
    }
    let mut pattern = String::with_capacity(part.len());
    for &b in part {
        match b {
            b'0'..=b'9' if pattern.ends_with('*') && !pattern.ends_with("\\*") => {}
            b'0'..=b'9' => pattern.push('*'),
            b'*' | b'?' | b'[' | b'\\' => {
                pattern.push('\\');
                pattern.push(char::from(b));
            }
            b' '..=b'~' => pattern.push(char::from(b)),
            // Binary or not ASCII: one byte, whichever.
            _ => pattern.push('?'),
        }
    }
    Cow::Owned(pattern)
}

/// A UUID, a digest, or a random word: nothing that a person has chosen.
fn is_identifier(part: &[u8]) -> bool {
    let has = |test: fn(&u8) -> bool| part.iter().any(test);
    let all = |test: fn(&u8) -> bool| part.iter().all(test);
    let digits = has(u8::is_ascii_digit);
    let hex = all(|b| b.is_ascii_hexdigit() || *b == b'-');
    let word = all(|b| b.is_ascii_alphanumeric() || b"-_+/=.".contains(b));
    let mixed_case = has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase);
    (part.len() >= 8 && hex && digits)
        || (part.len() >= LONG_WORD && hex)
        || (part.len() >= LONG_WORD && word && (digits || mixed_case))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_as_in_the_server() {
        for (pattern, name, matches) in [
            ("*", "", true),
            ("*", "cv:1", true),
            ("", "", true),
            ("", "a", false),
            ("cv:*", "cv:1", true),
            ("cv:*", "cv:", true),
            ("cv:*", "cvs:1", false),
            ("cv:*", "xcv:1", false),
            ("*:1", "a:b:1", true),
            ("h?llo", "hallo", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hello", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-c]llo", "hdllo", false),
            (r"h\*llo", "h*llo", true),
            (r"h\*llo", "hello", false),
            (r"[\]]", "]", true),
            (r"[\-a]", "-", true),
            ("[a", "a", true),
            (r"\", r"\", true),
            ("a**b*", "axxb", true),
            ("*a*b*c", "xaxbxbc", true),
            ("*a*b*c", "xaxbxb", false),
            (r"\a", r"\", false),
            ("?", "", false),
            ("[]", "]", false),
            ("[^]", "x", true),
        ] {
            assert_eq!(
                glob_matches(pattern.as_bytes(), name.as_bytes()),
                matches,
                "{pattern} {name}"
            );
        }
        // Exponential in a matcher that tries every star again.
        assert!(!glob_matches(
            "*a".repeat(30).as_bytes(),
            "a".repeat(29).as_bytes()
        ));
    }

    #[test]
    fn a_name_tells_its_pattern() {
        for (name, pattern) in [
            ("cv:9f86d081884c7d659a2feaa0c55ad015", "cv:*"),
            ("cv:deadbeef", "cv:deadbeef"),
            ("user:42:cart", "user:*:cart"),
            ("order42", "order*"),
            ("day:2026-01-02", "day:*"),
            ("t:1.5", "t:*.*"),
            ("sess:AbCdEfGhIjKlMnOpQrStUv", "sess:*"),
            ("a*b[1]", r"a\*b\[*]"),
            ("plain", "plain"),
            ("", ""),
            ("a*1", r"a\**"),
        ] {
            assert_eq!(pattern_of(name.as_bytes()), pattern, "{name}");
        }
        assert_eq!(pattern_of(b"x:\xff\xfe"), "x:??");
    }

    proptest! {
        #[test]
        fn a_pattern_matches_the_name_it_was_made_of(key in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(glob_matches(pattern_of(&key).as_bytes(), &key));
        }

        #[test]
        fn a_pattern_of_any_kind_is_decided(
            pattern in r"[ab*?\[\]\\^-]{0,12}", name in "[ab]{0,12}"
        ) {
            // Neither panics nor runs away.
            let _ = glob_matches(pattern.as_bytes(), name.as_bytes());
        }
    }
}
