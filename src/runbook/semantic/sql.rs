//! Where a statement of SQL ends, as far as that can be told without a server. The server is what makes sure of it when
//! the query runs; this tells it when the runbook is read.

use super::super::node::Node;
use super::super::problem::{Collector, DocumentPath, ProblemKind};

/// Words with which a query begins that only reads. It may write all the same (`with … delete`), which the server refuses.
const READING: [&str; 4] = ["select", "with", "table", "values"];

/// A validation is one query that reads.
pub(super) fn check(node: &Node, sql: &str, path: &DocumentPath, found: &mut Collector<'_>) {
    let mut add = |message: &str, suggestion: &str| {
        found.add(
            ProblemKind::BadValue,
            node.at,
            path,
            message,
            Some(suggestion.to_owned()),
        );
    };
    if !READING.contains(&first_word(sql).to_lowercase().as_str()) {
        add(
            "a validation is one query that only reads",
            "for example `select count(*) from orders where customer_id is null`",
        );
    } else if has_second_statement(sql) {
        add(
            "behind the `;` stands another statement: a validation is one query that only reads",
            "make two validations of it, or remove what stands behind the `;`",
        );
    }
}

/// A piece of SQL.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// White space or a comment.
    Blank,
    Semicolon,
    Other,
}

fn first_word(sql: &str) -> &str {
    pieces(sql)
        .find(|&(piece, text)| piece != Piece::Blank && text != "(")
        .map_or("", |(_, text)| text)
}

fn has_second_statement(sql: &str) -> bool {
    pieces(sql)
        .map(|(piece, _)| piece)
        .skip_while(|&piece| piece != Piece::Semicolon)
        .any(|piece| piece == Piece::Other)
}

fn pieces(sql: &str) -> impl Iterator<Item = (Piece, &str)> {
    let mut rest = sql;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let (piece, length) = next(rest, first);
        let (text, tail) = rest.split_at_checked(length).unwrap_or((rest, ""));
        rest = tail;
        Some((piece, text))
    })
}

/// The piece that a text begins with, and its length in bytes.
fn next(sql: &str, first: char) -> (Piece, usize) {
    let length = match first {
        ';' => return (Piece::Semicolon, 1),
        c if c.is_whitespace() => return (Piece::Blank, c.len_utf8()),
        '-' if sql.starts_with("--") => return (Piece::Blank, sql.find('\n').unwrap_or(sql.len())),
        '/' if sql.starts_with("/*") => return (Piece::Blank, comment(sql)),
        '\'' => quoted(sql, '\'', false),
        '"' => quoted(sql, '"', false),
        '$' => dollar_quoted(sql),
        c if in_name(c) => {
            let end = sql.find(|c: char| !in_name(c) && c != '$').unwrap_or(sql.len());
            let (name, behind) = sql.split_at(end);
            if name.eq_ignore_ascii_case("e") && behind.starts_with('\'') {
                end + quoted(behind, '\'', true)
            } else {
                end
            }
        }
        c => c.len_utf8(),
    };
    (Piece::Other, length)
}

fn in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii()
}

/// The length of a comment, which may hold others.
fn comment(sql: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(rest) = sql.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                break;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// The length of a text in quotes. A quote inside is doubled, which reads as two texts and comes to the same.
fn quoted(sql: &str, quote: char, has_escapes: bool) -> usize {
    let mut chars = sql.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if has_escapes && c == '\\' {
            let _ = chars.next();
        } else if c == quote {
            return at + 1;
        }
    }
    sql.len()
}

/// The length of `$$…$$` or `$name$…$name$`; of the dollar sign alone where none of them begins.
fn dollar_quoted(sql: &str) -> usize {
    let Some(end) = sql.get(1..).and_then(|rest| rest.find(|c: char| !in_name(c))) else {
        return 1;
    };
    let name = sql.get(1..=end).unwrap_or_default();
    let after = end + 2;
    let (Some(tag), Some(body)) = (sql.get(..after), sql.get(after..)) else {
        return 1;
    };
    if !tag.ends_with('$') || name.starts_with(|c: char| c.is_ascii_digit()) {
        return 1;
    }
    body.find(tag).map_or(sql.len(), |at| after + at + after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_stands_behind_comments_and_brackets() {
        for (sql, word) in [
            ("select 1", "select"),
            ("-- why\n/* and /* how */ */ ((select 1))", "select"),
            ("select/**/1", "select"),
            ("-- nothing", ""),
            ("", ""),
            ("'select'", "'select'"),
        ] {
            assert_eq!(first_word(sql), word, "{sql}");
        }
    }

    #[test]
    fn a_second_statement_is_found_behind_whatever_hides_it() {
        for (sql, has) in [
            ("select 1", false),
            ("select 1;", false),
            ("select 1; ; -- done\n/* ; x */", false),
            ("select ';x', \";y\", e'\\';z', $$;a$$, $b$;$$;$b$", false),
            ("select 'it''s; x'", false),
            ("select 1; commit; begin read write; drop table orders", true),
            ("select 1;drop table orders", true),
            ("select 1 -- ;\n; drop table orders", true),
            ("select e'\\''; drop table orders --'", true),
            ("select '\\'; drop table orders --'", true),
            ("select a$b$; drop table orders; --$b$", true),
            ("select $1; drop table orders", true),
            ("select /* /* */ ; */ 1; delete from t", true),
        ] {
            assert_eq!(has_second_statement(sql), has, "{sql}");
        }
    }
}
