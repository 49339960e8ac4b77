//! Lost acknowledged writes: the numbers that a traffic writer has an acknowledgement for,
//! and that the recovered table does not have. The only measure of loss that nobody can
//! argue with.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::postgres::{quote_ident, quote_qualified};
use crate::system::System;

/// Numbers asked about in one statement.
const CHUNK: usize = 20_000;
/// Missing numbers that are named in the report.
const NAMED: usize = 20;

/// Reads the log of a traffic writer: a number at the start of each line. A torn last line
/// counts only if it is whole up to a blank: the writer was killed too.
///
/// # Errors
/// [`Kind::Usage`] when it cannot be read or holds no number.
pub fn read(path: &Path) -> Result<Vec<u64>> {
    let usage = |text: String| {
        Error::new(Kind::Usage, text)
            .untouched("everything: nothing was looked at yet")
            .next("each line begins with the number of an acknowledged write, as the column traffic-number holds it")
    };
    let file = File::open(path).map_err(|e| usage(format!("{} cannot be read: {e}", path.display())))?;
    let mut reader = BufReader::new(file);
    let (mut numbers, mut line) = (Vec::new(), String::new());
    loop {
        line.clear();
        let read = reader
            .read_line(&mut line)
            .map_err(|e| usage(format!("{} cannot be read: {e}", path.display())))?;
        if read == 0 {
            break;
        }
        numbers.extend(number(&line));
    }
    if numbers.is_empty() {
        return Err(usage(format!("{} holds no numbers", path.display())));
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

fn number(line: &str) -> Option<u64> {
    let whole = line.ends_with('\n') || line.contains(char::is_whitespace);
    line.split_whitespace().next().filter(|_| whole)?.parse().ok()
}

/// Counts which of `numbers` are missing, in the table of `service` whose runbook entry
/// has a `traffic-number`. Reads only.
///
/// # Errors
/// What stands in the way, in words.
pub async fn count(
    system: &System,
    service: &str,
    numbers: &[u64],
) -> Result<BTreeMap<String, Value>, String> {
    let found = system
        .runbook
        .postgres_services()
        .filter(|(name, ..)| name.as_str() == service)
        .flat_map(|(_, _, p)| &p.databases)
        .flat_map(|(database, d)| d.tables.iter().map(move |(table, t)| (database, table, t)))
        .find_map(|(database, table, t)| Some((database, table, t.traffic_number.as_ref()?)));
    let Some((database, table, column)) = found else {
        return Err(format!(
            "no table of {service} has a traffic-number in the runbook"
        ));
    };
    let server = system.postgres(service).await.map_err(|e| e.message)?;
    let client = server
        .connect_to(&server.admin.to_database(database.as_str()))
        .await
        .map_err(|e| e.to_string())?;
    let name = quote_qualified(&format!("{}.{}", table.schema, table.table));
    // Asked of the table, not of an index that may know rows that are gone.
    client
        .execute("set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off; set jit = off")
        .await
        .map_err(|e| e.to_string())?;
    let (mut lost, mut named) = (0_usize, Vec::new());
    for chunk in numbers.chunks(CHUNK) {
        let list = chunk.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let sql = format!(
            "select n from unnest('{{{list}}}'::bigint[]) n where not exists (select from {name} t where t.{} = n) order by n",
            quote_ident(column.as_str())
        );
        let missing = client
            .within(system.runbook.deadlines.step, &sql)
            .await
            .map_err(|e| e.to_string())?;
        lost += missing.len();
        named.extend(
            missing
                .iter()
                .filter_map(|r| r.number::<u64>(0))
                .take(NAMED - named.len().min(NAMED)),
        );
    }
    let mut facts = BTreeMap::from([
        ("acknowledged".to_owned(), Value::from(numbers.len())),
        ("lost-acknowledged".to_owned(), Value::from(lost)),
    ]);
    if !named.is_empty() {
        facts.insert("first-lost-acknowledged".to_owned(), Value::from(named));
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_number_is_not_believed() {
        for (line, expected) in [
            ("12 2026-11-20T18:30:12Z\n", Some(12)),
            ("12\n", Some(12)),
            ("12 2026", Some(12)),
            ("12", None),
            ("", None),
            ("x 12\n", None),
        ] {
            assert_eq!(number(line), expected, "{line:?}");
        }
    }

    #[test]
    fn numbers_are_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acks");
        std::fs::write(&path, "3 a\n1 b\n3 c\n99").unwrap();
        assert_eq!(read(&path).unwrap(), [1, 3]);
        std::fs::write(&path, "").unwrap();
        assert_eq!(read(&path).unwrap_err().kind, Kind::Usage);
    }
}
