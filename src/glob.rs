//! Patterns of key names as Redis reads them. Pure, so that the runbook can be checked with the very rules by which keys
//! are deleted.

/// Whether a key matches a pattern as in `SCAN MATCH`, by the server's own rules: `*`, `?`,
/// `[abc]`, `[^abc]`, `[a-z]`, and `\` before a character that is meant as it is.
#[must_use]
pub fn glob_matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where the last `*` was, and what of the name it has swallowed so far. To go back to the
    // last one alone is enough, and keeps `*a*a*a*b` from taking for ever.
    let mut star: Option<(usize, usize)> = None;
    loop {
        match step(&pattern[p..], name.get(n).copied()) {
            Step::Star => {
                p += 1;
                star = Some((p, n));
            }
            Step::Matched(length) => {
                p += length;
                n += 1;
            }
            Step::Both => return true,
            Step::No => match star {
                Some((after, swallowed)) if swallowed < name.len() => {
                    star = Some((after, swallowed + 1));
                    (p, n) = (after, swallowed + 1);
                }
                _ => return false,
            },
        }
    }
}

enum Step {
    /// A `*` comes next.
    Star,
    /// The next pattern element, of this length, matches the next character.
    Matched(usize),
    /// Both are at their end.
    Both,
    /// It does not match.
    No,
}

fn step(pattern: &[u8], next: Option<u8>) -> Step {
    let Some(c) = next else {
        return match pattern.first() {
            None => Step::Both,
            Some(b'*') => Step::Star,
            Some(_) => Step::No,
        };
    };
    let (matches, length) = match pattern {
        [] => (false, 0),
        [b'*', ..] => return Step::Star,
        [b'?', ..] => (true, 1),
        [b'[', set @ ..] => {
            let (found, length) = class(set, c);
            (found, 1 + length)
        }
        [b'\\', literal, ..] => (*literal == c, 2),
        [literal, ..] => (*literal == c, 1),
    };
    if matches { Step::Matched(length) } else { Step::No }
}

/// Whether `c` is in the class whose inside starts at `set`, and the length up to behind its
/// `]`. A class that is not closed ends with the pattern, as in the server.
fn class(set: &[u8], c: u8) -> (bool, usize) {
    let negated = set.first() == Some(&b'^');
    let mut i = usize::from(negated);
    let mut found = false;
    loop {
        match &set[i..] {
            [] => break,
            [b']', ..] => {
                i += 1;
                break;
            }
            [b'\\', literal, ..] => {
                found |= *literal == c;
                i += 2;
            }
            [from, b'-', to, ..] => {
                found |= (*from.min(to)..=*from.max(to)).contains(&c);
                i += 3;
            }
            [literal, ..] => {
                found |= *literal == c;
                i += 1;
            }
        }
    }
    (found != negated, i)
}

/// Whether a pattern matches some name that begins with `prefix`, whatever comes behind it.
///
/// ```
/// # use drctl::glob::glob_matches_after;
/// assert!(glob_matches_after(b"s*", b"session:"));
/// assert!(glob_matches_after(b"*:tmp", b"session:"));
/// assert!(!glob_matches_after(b"cache:*", b"session:"));
/// ```
#[must_use]
pub fn glob_matches_after(pattern: &[u8], prefix: &[u8]) -> bool {
    // What matches the prefix alone goes on with the rest of the pattern, for which there is a name.
    let mut end = 0;
    loop {
        if glob_matches(&pattern[..end], prefix) {
            return true;
        }
        if end == pattern.len() {
            return false;
        }
        end += element(&pattern[end..]);
    }
}

/// The literal characters of a pattern: what a name must have, whatever else it has.
#[must_use]
pub fn glob_literals(pattern: &[u8]) -> Vec<u8> {
    let mut literals = Vec::new();
    let mut rest = pattern;
    while let Some(first) = rest.first() {
        match (first, rest.get(1)) {
            (b'*' | b'?' | b'[', _) => {}
            (b'\\', Some(escaped)) => literals.push(*escaped),
            (literal, _) => literals.push(*literal),
        }
        rest = &rest[element(rest)..];
    }
    literals
}

/// The length of the element that a pattern, which is not empty, begins with.
fn element(pattern: &[u8]) -> usize {
    let length = match pattern {
        [b'[', set @ ..] => 1 + class(set, 0).1,
        [b'\\', _, ..] => 2,
        _ => 1,
    };
    length.min(pattern.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_prefix_is_reached_by_what_can_go_on_from_it() {
        for (pattern, matches) in [
            ("*", true),
            ("session:*", true),
            ("session:?", true),
            ("ses*", true),
            ("*:tmp", true),
            ("s[a-z]*[0-9]", true),
            ("session:", true),
            (r"session\:*", true),
            ("session", false),
            ("sessions:*", false),
            ("cv:*", false),
            ("[^s]*", false),
            ("[a-z]:*", false),
        ] {
            assert_eq!(
                glob_matches_after(pattern.as_bytes(), b"session:"),
                matches,
                "{pattern}"
            );
        }
    }

    #[test]
    fn literals_are_what_stands_for_itself() {
        for (pattern, literals) in [
            ("*", ""),
            ("?*", ""),
            ("[a-z]*", ""),
            ("cv:*", "cv:"),
            (r"\**", "*"),
        ] {
            assert_eq!(
                glob_literals(pattern.as_bytes()),
                literals.as_bytes(),
                "{pattern}"
            );
        }
    }

    proptest! {
        /// No key of a session escapes: what matches one is told of its prefix.
        #[test]
        fn what_matches_a_name_matches_after_its_beginnings(
            pattern in r"[ab*?\[\]\\^-]{0,8}", name in "[ab*?-]{0,6}", cut in 0_usize..7
        ) {
            if glob_matches(pattern.as_bytes(), name.as_bytes()) {
                let prefix = &name.as_bytes()[..cut.min(name.len())];
                prop_assert!(glob_matches_after(pattern.as_bytes(), prefix), "{pattern} {name} {cut}");
            }
        }
    }
}
