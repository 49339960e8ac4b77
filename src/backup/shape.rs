//! Whether a dump can be believed: compared with the runbook and with the set before it.
//! Pure: what was recorded goes in, what is wrong comes out.

use super::manifest::Manifest;
use crate::runbook::Runbook;

/// What is wrong with the shape of `new`, in words. `previous` is the last good set.
#[must_use]
pub fn problems(new: &Manifest, previous: Option<&Manifest>, runbook: &Runbook) -> Vec<String> {
    let mut found = Vec::new();
    let allowed = runbook.backup.verify_shrink.get();
    for (service, database, dump) in new.dumps() {
        if dump.tables == 0 {
            found.push(format!("the dump of {database} holds no table"));
        }
        let named = runbook
            .postgres_services()
            .find(|(n, ..)| n.as_str() == service)
            .and_then(|(_, _, s)| s.databases.get(database));
        let facts = new.postgres.get(service).and_then(|p| p.facts.get(database));
        let before = previous.and_then(|p| p.postgres.get(service));
        let before_dump = before.and_then(|p| p.logical.get(database));
        let before_facts = before.and_then(|p| p.facts.get(database));
        for name in named.iter().flat_map(|d| d.tables.keys()) {
            let qualified = format!("{}.{}", name.schema, name.table);
            let Some(fact) = facts.and_then(|f| f.relation(&name.schema, &name.table)) else {
                found.push(format!(
                    "database {database} has no table {qualified}, which the runbook names"
                ));
                continue;
            };
            if let Some(problem) = &fact.problem {
                found.push(format!("{qualified} could not be counted: {problem}"));
            }
            let was = before_facts.and_then(|f| f.relation(&name.schema, &name.table)?.rows);
            if let (Some(now), Some(was)) = (fact.rows, was)
                && shrank(now, was, allowed)
            {
                found.push(format!("{qualified} has {now} rows, the backup before had {was}"));
            }
        }
        if let Some(was) = before_dump
            && shrank(dump.bytes, was.bytes, allowed)
        {
            found.push(format!(
                "the dump of {database} is {}, the one before was {}",
                crate::event::bytes(dump.bytes),
                crate::event::bytes(was.bytes)
            ));
        }
    }
    found
}

/// True when `now` is more than `allowed` percent below `was`.
fn shrank(now: u64, was: u64, allowed: f64) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "a percentage of a size")]
    let (now, was) = (now as f64, was as f64);
    now < was * (1.0 - allowed / 100.0)
}

/// Entries of a dump's table of contents (`pg_restore --list`) that hold a table's data.
#[must_use]
pub fn data_entries(toc: &str) -> Vec<&str> {
    // `3385; 0 16390 TABLE DATA public orders simgen`
    toc.lines()
        .filter(|l| !l.starts_with(';'))
        .filter_map(|l| l.split_once("; ")?.1.splitn(3, ' ').nth(2))
        .filter_map(|l| l.strip_prefix("TABLE DATA "))
        .collect()
}

/// Numbers of the entries that hold a table's data, as (number of the entry, which names its
/// file, and identifier of the table).
#[must_use]
pub fn data_numbers(toc: &str) -> Vec<(u32, u32)> {
    toc.lines()
        .filter_map(|line| {
            let (entry, rest) = line.split_once("; ")?;
            let mut words = rest.splitn(3, ' ');
            let (_, table, what) = (words.next()?, words.next()?, words.next()?);
            what.starts_with("TABLE DATA ")
                .then(|| Some((entry.parse().ok()?, table.parse().ok()?)))?
        })
        .collect()
}

/// The tables of `expected` (`schema name owner`, as the table of contents writes them)
/// whose data a dump lacks.
#[must_use]
pub fn missing_tables<'a>(toc: &str, expected: &'a [String]) -> Vec<&'a str> {
    let present: std::collections::HashSet<&str> = data_entries(toc).into_iter().collect();
    expected
        .iter()
        .map(String::as_str)
        .filter(|t| !present.contains(t))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrinking_is_judged_against_the_allowance() {
        for (now, was, allowed, expected) in [
            (100, 100, 50.0, false),
            (50, 100, 50.0, false),
            (49, 100, 50.0, true),
            (0, 1, 50.0, true),
            (0, 0, 50.0, false),
            (99, 100, 0.0, true),
            (0, 100, 100.0, false),
        ] {
            assert_eq!(shrank(now, was, allowed), expected, "{now} of {was}");
        }
    }

    #[test]
    fn a_table_of_contents_names_its_tables() {
        let toc = ";\n; Archive created at 2026-11-20\n; Selected TOC Entries:\n;\n\
            217; 1259 16391 TABLE public orders simgen\n\
            3385; 0 16390 TABLE DATA public orders simgen\n\
            3386; 0 16399 TABLE DATA public order lines simgen\n\
            3400; 0 0 SEQUENCE SET public orders_id_seq simgen\n";
        assert_eq!(
            data_entries(toc),
            ["public orders simgen", "public order lines simgen"]
        );
        let expected = ["public orders simgen".to_owned(), "public gone simgen".to_owned()];
        assert_eq!(missing_tables(toc, &expected), ["public gone simgen"]);
        assert!(data_entries("").is_empty());
        assert_eq!(data_numbers(toc), [(3385, 16390), (3386, 16399)]);
    }
}
