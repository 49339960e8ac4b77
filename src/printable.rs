//! Text of others (an application's log, a server's message, a file's name) on its way to a terminal, which would obey it.

/// A control character, or one that makes the text around it read in another order (Unicode's bidirectional controls).
#[must_use]
pub fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The character, or a dot in the place of one that would be obeyed.
#[must_use]
pub fn visible(c: char) -> char {
    if is_control(c) { '·' } else { c }
}

/// What drctl's own styling consists of.
const STYLES: [&str; 5] = ["\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"];
const RESET: &str = "\x1b[0m";

/// The text with its line breaks and tabs, and with the few styles that drctl uses itself if it is `styled`. Those can be
/// another's as well, and colour a word then: that hides nothing, and ends with the line.
#[must_use]
pub fn text(raw: &str, styled: bool) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    let mut open = false;
    while let Some(c) = rest.chars().next() {
        let style = [RESET]
            .iter()
            .chain(&STYLES)
            .find(|s| styled && rest.starts_with(**s));
        if let Some(style) = style {
            out.push_str(style);
            open = *style != RESET;
            rest = rest.get(style.len()..).unwrap_or_default();
            continue;
        }
        if c == '\n' && std::mem::take(&mut open) {
            out.push_str(RESET);
        }
        out.push(if matches!(c, '\n' | '\t') { c } else { visible(c) });
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
    }
    if open {
        out.push_str(RESET);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_that_others_have_written() {
        for (raw, shown) in [
            ("path=\x1b]52;c;eA==\x07\x1b[2K", "path=·]52;c;eA==··[2K"),
            ("\x1b[8mhidden\x1b[30m\r pass", "·[8mhidden·[30m· pass"),
            ("\u{9b}2J\u{7f}\0", "·2J··"),
            ("a\u{202e}b\u{2066}c", "a·b·c"),
            ("two\n\tlines, né", "two\n\tlines, né"),
        ] {
            assert_eq!(text(raw, true), shown);
            assert_eq!(text(raw, false), shown);
        }
    }

    #[test]
    fn styles_of_drctl_are_kept_and_end_with_the_line() {
        let style = |s: console::Style| s.force_styling(true);
        for own in [
            style(console::Style::new().red().bold()),
            style(console::Style::new().green().bold()),
            style(console::Style::new().yellow()),
            style(console::Style::new().dim()),
        ] {
            let styled = own.apply_to("pass").to_string();
            assert_eq!(text(&styled, true), styled);
            assert!(!text(&styled, false).contains('\x1b'));
        }
        assert_eq!(text("\x1b[31mERROR\nnext", true), "\x1b[31mERROR\x1b[0m\nnext");
        assert_eq!(text("\x1b[31mERROR", true), "\x1b[31mERROR\x1b[0m");
    }
}
