//! Whether a dump can be believed: compared with the runbook and with the set before it.
//! Pure: what was recorded goes in, what is wrong comes out.

use std::collections::BTreeSet;

use super::manifest::{Manifest, PostgresPart};
use crate::probe::facts::{DatabaseFacts, RelationKind};
use crate::runbook::{Database, Runbook};

/// What is wrong with the shape of `new`, in words. `previous` is the last good set. Every
/// database is judged of which anything was recorded: a copy of the server alone has facts and
/// no dump, and shows an emptied database by them.
#[must_use]
pub fn problems(new: &Manifest, previous: Option<&Manifest>, runbook: &Runbook) -> Vec<String> {
    let mut found = Vec::new();
    for (service, part) in &new.postgres {
        let before = previous.and_then(|p| p.postgres.get(service));
        let recorded: BTreeSet<&String> = part.logical.keys().chain(part.facts.keys()).collect();
        for database in recorded {
            let named = runbook
                .postgres_services()
                .find(|(n, ..)| n.as_str() == service)
                .and_then(|(_, _, s)| s.databases.get(database.as_str()));
            found.extend(of_database(part, before, database, named, runbook));
        }
    }
    found
}

fn of_database(
    part: &PostgresPart,
    before: Option<&PostgresPart>,
    database: &str,
    named: Option<&Database>,
    runbook: &Runbook,
) -> Vec<String> {
    let mut found = Vec::new();
    let allowed = runbook.backup.verify_shrink.get();
    let dump = part.logical.get(database);
    let facts = part.facts.get(database);
    let holds_tables = |f: &DatabaseFacts| {
        f.relations
            .iter()
            .any(|r| matches!(r.kind, RelationKind::Table | RelationKind::Partitioned))
    };
    if dump.is_some_and(|d| d.tables == 0) {
        found.push(format!("the dump of {database} holds no table"));
    } else if dump.is_none() && !facts.is_some_and(holds_tables) {
        found.push(format!("{database} holds no table"));
    }
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
    let before_dump = before.and_then(|p| p.logical.get(database));
    if let (Some(now), Some(was)) = (dump, before_dump)
        && shrank(now.bytes, was.bytes, allowed)
    {
        found.push(format!(
            "the dump of {database} is {}, the one before was {}",
            crate::event::bytes(now.bytes),
            crate::event::bytes(was.bytes)
        ));
    }
    // Rows and a dump show more exactly how much there is: the size of a database counts its bloat,
    // and VACUUM FULL is no loss.
    let counted = named.iter().flat_map(|d| d.tables.keys()).any(|t| {
        let rows = |f: &DatabaseFacts| f.relation(&t.schema, &t.table)?.rows;
        facts.and_then(rows).is_some() && before_facts.and_then(rows).is_some()
    });
    if !counted
        && let (None, Some(now), Some(was)) = (dump, facts, before_facts)
        && shrank(now.bytes, was.bytes, allowed)
    {
        found.push(format!(
            "{database} is {}, it was {} when the backup before was made",
            crate::event::bytes(now.bytes),
            crate::event::bytes(was.bytes)
        ));
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

    /// The facts of a database with the runbook's tables, each of so many rows, and no dump.
    fn physical_only(runbook: &Runbook, rows: u64, bytes: u64) -> Manifest {
        let (service, _, config) = runbook.postgres_services().next().unwrap();
        let (database, named) = config.databases.iter().next().unwrap();
        let relations: Vec<_> = named
            .tables
            .keys()
            .map(|t| {
                serde_json::json!({
                    "schema": t.schema, "name": t.table, "kind": "table", "bytes": 8192, "pages": 1, "rows": rows,
                })
            })
            .collect();
        serde_json::from_value(serde_json::json!({
            "format": 1, "deployment": "simgen", "label": "20261120T020000Z", "started": "2026-11-20T02:00:00Z",
            "finished": "2026-11-20T02:01:00Z", "drctl-version": "0.1.0", "bytes": 1, "skew-seconds": 0.5, "files": [],
            "postgres": { service.to_string(): {
                "server-version": "15", "server-version-number": 150_020, "system-identifier": "1", "timeline": 1,
                "wal-segment-size": 16_777_216, "data-checksums": true, "image": "p", "image-id": "sha256:1",
                "data-dir": "/d", "owner": "1:1", "start-lsn": "0/1", "end-lsn": "0/1", "globals": null, "logical": {},
                "physical": null, "facts": { database.to_string(): {
                    "taken-at": "2026-11-20T02:00:00Z", "lsn": "0/1", "bytes": bytes, "stats-reset": null,
                    "relations": relations,
                }},
            }},
        }))
        .unwrap()
    }

    #[test]
    fn an_emptied_database_is_seen_without_a_dump() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/runbooks/simgen.yaml");
        let runbook = crate::runbook::load(std::path::Path::new(path)).unwrap();
        let before = physical_only(&runbook, 1000, 1 << 30);
        let judged = |new: &Manifest| problems(new, Some(&before), &runbook).join("; ");
        assert_eq!(judged(&before), "");
        let emptied = judged(&physical_only(&runbook, 0, 1 << 30));
        assert!(
            emptied.contains("has 0 rows, the backup before had 1000"),
            "{emptied}"
        );
        // Every row is there: somebody has got rid of bloat.
        assert_eq!(judged(&physical_only(&runbook, 1000, 1 << 20)), "");
        let uncounted = |bytes| {
            let mut set = physical_only(&runbook, 1000, bytes);
            for part in set.postgres.values_mut() {
                for fact in part.facts.values_mut().flat_map(|f| &mut f.relations) {
                    fact.rows = None;
                }
            }
            set
        };
        let shrunk = problems(&uncounted(1 << 20), Some(&uncounted(1 << 30)), &runbook).join("; ");
        assert!(shrunk.contains("when the backup before was made"), "{shrunk}");
        let mut bare = before.clone();
        for part in bare.postgres.values_mut() {
            for facts in part.facts.values_mut() {
                facts.relations.clear();
            }
        }
        let bare = judged(&bare);
        assert!(
            bare.contains("holds no table") && bare.contains("which the runbook names"),
            "{bare}"
        );
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
