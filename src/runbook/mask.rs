//! Which source lines may be shown beside a problem. Somebody who writes a password where a reference belongs should not
//! find it in a log because of our error message.
//!
//! This works on the text alone, as it must also hold for a file that is not YAML. It rather hides too much: without a
//! snippet a problem still has its line and column.

/// Parts of words by which a key says that its value is a secret, common slips of the pen among them.
const SECRET_WORDS: [&str; 10] = [
    "pass",
    "pasw",
    "psw",
    "pwd",
    "secret",
    "token",
    "credential",
    "authorization",
    "api-key",
    "api_key",
];

/// Whole keys below which an address stands that is as good as a password.
const SECRET_KEYS: [&str; 2] = ["webhook", "ping"];

/// Each line as it may be shown; `None` is a line that may hold nothing but a secret.
pub(super) fn showable(text: &str) -> Vec<Option<String>> {
    let mut below: Option<Below> = None;
    let mut lines = Vec::new();
    for line in text.lines() {
        if let Some(secret) = &mut below {
            match secret.holds(line) {
                Holds::Yes => {
                    lines.push(None);
                    continue;
                }
                Holds::Comment => {}
                Holds::No => below = None,
            }
        }
        let (shown, value) = without_secrets(line);
        if let Some(value) = value {
            below = Some(Below::new(line, value));
        }
        lines.push(Some(shown));
    }
    lines
}

/// Whether a line belongs to the value of a secret key above it.
enum Holds {
    Yes,
    No,
    /// A comment: it may be shown, and the value may go on behind it.
    Comment,
}

/// What may follow below a secret key.
struct Below {
    /// Where the key's line begins, without the dashes of a list.
    column: usize,
    /// Brackets and quotes that the line has left open.
    open: Open,
    /// The key has no value yet.
    is_waiting: bool,
}

impl Below {
    fn new(line: &str, value: &str) -> Self {
        let column = line
            .find(|c: char| !c.is_whitespace() && c != '-')
            .unwrap_or(line.len());
        let mut open = Open::default();
        open.read(line);
        let value = value.trim_start();
        Self {
            column,
            open,
            is_waiting: value.is_empty() || value.starts_with(['|', '>', '&', '!', '#']),
        }
    }

    fn holds(&mut self, line: &str) -> Holds {
        if self.open.is_open() {
            self.open.read(line);
            return Holds::Yes;
        }
        let trimmed = line.trim_start();
        if trimmed.is_empty() {
            return Holds::Yes;
        }
        let space = line.get(..line.len() - trimmed.len()).unwrap_or_default();
        let is_deeper = space.len() > self.column || space.contains('\t');
        // A list may stand as far left as its key, and so does the value of a key that begins with `?`.
        let is_beside = space.len() == self.column && trimmed.starts_with(['-', ':']);
        if is_deeper || is_beside {
            self.is_waiting = false;
            self.open.read(line);
            return Holds::Yes;
        }
        if trimmed.starts_with('#') {
            return Holds::Comment;
        }
        // A value that is not indented as it must be, which is what the problem will be about.
        if self.is_waiting && !trimmed.contains(':') {
            self.is_waiting = false;
            return Holds::Yes;
        }
        Holds::No
    }
}

/// Brackets and quotes, as far as they go on to the next line.
#[derive(Default)]
struct Open {
    quote: Option<char>,
    depth: usize,
}

impl Open {
    fn is_open(&self) -> bool {
        self.quote.is_some() || self.depth > 0
    }

    fn read(&mut self, line: &str) {
        let mut before = ' ';
        let mut chars = line.chars();
        while let Some(c) = chars.next() {
            // Inside a word a quote or a bracket is a character like any other.
            let begins = before.is_whitespace() || "[{,:".contains(before);
            match (self.quote, c) {
                (Some('"'), '\\') => {
                    let _ = chars.next();
                }
                (Some(quote), _) if quote == c => self.quote = None,
                (None, '"' | '\'') if begins => self.quote = Some(c),
                (None, '[' | '{') if begins || self.depth > 0 => self.depth += 1,
                (None, ']' | '}') => self.depth = self.depth.saturating_sub(1),
                (None, '#') if before.is_whitespace() => return,
                _ => {}
            }
            before = c;
        }
    }
}

/// A line without what may be a secret in it; and, where a key says that its value is one, what stands behind that key.
fn without_secrets(line: &str) -> (String, Option<&str>) {
    // user:password@ in an address, before a word in it is taken for a key
    let shown = match (line.find("://"), line.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://…{}", &line[..scheme], &line[at..]),
        _ => line.to_owned(),
    };
    let value = secret_key(line).and_then(|(_, value, is_comment)| (!is_comment).then_some(value));
    let shown = match secret_key(&shown) {
        Some((name, rest, _)) if !rest.trim().is_empty() => format!("{name} …"),
        _ => shown,
    };
    (shown, value)
}

/// A line up to the key that says that its value is a secret, with its colon; what stands behind it; and whether all this
/// stands in a comment.
fn secret_key(line: &str) -> Option<(&str, &str, bool)> {
    let end = secret_name(line)?;
    let (name, rest) = line.split_at(end);
    let sign = rest.trim_start();
    let to = if sign.starts_with([':', '=']) {
        line.len() - sign.len() + 1
    } else {
        // A colon that was forgotten.
        end
    };
    let is_comment = name.trim_start().starts_with('#')
        || name
            .find(" #")
            .is_some_and(|at| !name[..at].contains(['"', '\'']));
    Some((&line[..to], &line[to..], is_comment))
}

/// Where the first word ends that names a secret.
fn secret_name(line: &str) -> Option<usize> {
    // Byte for byte as long as the line, unlike `to_lowercase`.
    let lower = line.to_ascii_lowercase();
    let in_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '"' | '\'');
    let part = SECRET_WORDS
        .iter()
        .filter_map(|word| lower.find(word).map(|at| at + word.len()))
        .min();
    let key = SECRET_KEYS
        .iter()
        .filter_map(|key| {
            let ends = lower.match_indices(key).map(|(at, _)| (at, at + key.len()));
            ends.filter(|&(at, end)| {
                let rest = lower[end..].trim_start_matches(['"', '\'']).trim_start();
                !lower[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '-'))
                    && rest.starts_with(':')
            })
            .map(|(_, end)| end)
            .next()
        })
        .min();
    let from = [part, key].into_iter().flatten().min()?;
    let rest = &line[from..];
    Some(from + rest.find(|c: char| !in_word(c)).unwrap_or(rest.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown of lines below each other, `-` for none.
    fn shown(text: &str) -> Vec<String> {
        showable(text)
            .into_iter()
            .map(|line| line.unwrap_or_else(|| "-".to_owned()))
            .collect()
    }

    #[test]
    fn a_value_is_hidden_wherever_it_stands() {
        for (text, expected) in [
            ("a: b\npassword: x # y", vec!["a: b", "password: …"]),
            ("  \"PassWord\" : x\n  a: b", vec!["  \"PassWord\" : …", "  a: b"]),
            (
                "password:\n  x\n\n  y\na: b",
                vec!["password:", "-", "-", "-", "a: b"],
            ),
            ("password: |\n  x\na: b", vec!["password: …", "-", "a: b"]),
            ("password:\n- x\na: b", vec!["password:", "-", "a: b"]),
            ("- password:\n    x\n  a: b", vec!["- password:", "-", "  a: b"]),
            ("password:\n\tx\na: b", vec!["password:", "-", "a: b"]),
            ("  password:\nx\na: b", vec!["  password:", "-", "a: b"]),
            ("  password: >-\nx\na: b", vec!["  password: …", "-", "a: b"]),
            ("? password\n: x\na: b", vec!["? password", "-", "a: b"]),
            ("password: \"x\ny\"\na: b", vec!["password: …", "-", "a: b"]),
            ("password: { env: x,\ny }\na: b", vec!["password: …", "-", "a: b"]),
            (
                "{ a: b, password:\nx }\na: b",
                vec!["{ a: b, password:", "-", "a: b"],
            ),
            ("password x\na: b", vec!["password …", "a: b"]),
            ("url: http://h/?token=x", vec!["url: http://h/?token= …"]),
            ("url: http://u:x@h/", vec!["url: http://…@h/"]),
            ("url: http://u:xSECRET@h/ # y", vec!["url: http://…@h/ # y"]),
            ("- ping:\n    url: x\n- a: b", vec!["- ping:", "-", "- a: b"]),
            ("- webhook: https://x", vec!["- webhook: …"]),
            ("shipping: x", vec!["shipping: x"]),
            ("# the password: x\n  a: b", vec!["# the password: …", "  a: b"]),
            ("a: b # password: x\n  c: d", vec!["a: b # password: …", "  c: d"]),
            ("password:\n# c\n  x", vec!["password:", "# c", "-"]),
            ("password: it's\na: b", vec!["password: …", "a: b"]),
        ] {
            assert_eq!(shown(text), expected, "{text:?}");
        }
    }
}
