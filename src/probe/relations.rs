//! The relations of a database and their files: which relation an error of the server is
//! about. An index check that stumbles over a page of its table is a fault of the table.

use serde::{Deserialize, Serialize};

use crate::postgres::{self, Client, PgError, Row};

/// Bytes of a page (`block_size`; other sizes need a server built for them).
pub const PAGE: u64 = 8192;
/// Damaged blocks that are listed of one relation.
pub const MAX_BLOCKS: usize = 100;

/// What a relation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelationKind {
    /// Table or materialised view.
    Heap,
    /// Index.
    Index,
    /// Out-of-line values of a table.
    Toast,
    /// Index of the out-of-line values.
    ToastIndex,
}

/// How a finding was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// `verify_heapam`.
    HeapStructure,
    /// `bt_index_check(…, heapallindexed)`.
    IndexStructure,
    /// Every row read, out-of-line values included.
    FullRead,
    /// Rows by the primary key's index against rows in the table, in one snapshot.
    IndexAgainstHeap,
    /// All-zero pages inside the file that are not new.
    ZeroPages,
    /// The file is not there or shorter than the catalogue says.
    FileSize,
}

/// Something wrong with one relation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RelationFinding {
    /// `schema.name` of the relation.
    pub relation: String,
    /// What it is.
    pub kind: RelationKind,
    /// `schema.name` of the table it belongs to (itself for a table).
    pub table: String,
    /// How it was found.
    pub check: Check,
    /// SQLSTATE, when a statement failed.
    pub sqlstate: Option<String>,
    /// The server's words or ours.
    pub message: String,
    /// Damaged blocks of the relation, the first hundred.
    pub blocks: Vec<u64>,
    /// Rows known to be missing from the table, when countable.
    pub rows_missing: Option<u64>,
}

/// One relation with storage.
#[derive(Debug, Clone, PartialEq)]
pub struct Relation {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// What it is.
    pub kind: RelationKind,
    /// `schema.name` of the table it belongs to.
    pub table: String,
    /// Path below the data directory (`pg_relation_filepath`).
    pub path: String,
    /// Bytes of its files; `None` when there is no file.
    pub bytes: Option<u64>,
    /// `relpages`.
    pub pages: u64,
    /// `reltuples`; negative when it was never analysed.
    pub rows: f64,
    /// Access method, as `heap`, `btree`.
    pub access: String,
    /// Of an index: valid and ready.
    pub usable: bool,
    /// In `pg_catalog`, `information_schema` or their toast.
    pub system: bool,
    /// Not in the write-ahead log: after a crash, and in a restored base backup, it is as it
    /// was made, while the catalogue still remembers how large it was.
    pub unlogged: bool,
}

impl Relation {
    /// `schema.name`.
    #[must_use]
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Blocks in its files.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.bytes.unwrap_or_default() / PAGE
    }

    /// True for what all databases have in common (manual, 73.1: in `global`).
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.path.starts_with("global/")
    }

    /// A finding about it with nothing but words.
    #[must_use]
    pub fn finding(&self, check: Check, message: impl Into<String>) -> RelationFinding {
        RelationFinding {
            relation: self.qualified(),
            kind: self.kind,
            table: self.table.clone(),
            check,
            sqlstate: None,
            message: message.into(),
            blocks: Vec::new(),
            rows_missing: None,
        }
    }
}

/// Takes no lock: `pg_relation_size` would wait for a table that is being altered, the
/// files' own sizes do not.
const LIST: &str = r"
with owner as (select oid, reltoastrelid as toast from pg_catalog.pg_class where reltoastrelid <> 0),
found as (
  select c.oid, c.relnamespace, c.relname, c.relkind, c.relpages, c.reltuples, c.relam, c.relpersistence,
    pg_catalog.pg_relation_filepath(c.oid) as path,
    coalesce(i.indisvalid and i.indisready and i.indislive, true) as usable,
    coalesce(po.oid, i.indrelid, o.oid, c.oid) as parent,
    coalesce(po.oid, 0) <> 0 as on_toast
  from pg_catalog.pg_class c
  left join pg_catalog.pg_index i on i.indexrelid = c.oid
  left join owner po on po.toast = i.indrelid
  left join owner o on o.toast = c.oid
  where c.relkind in ('r', 'm', 't', 'i') and c.relpersistence <> 't'
    and (c.relpersistence <> 'u' or not pg_catalog.pg_is_in_recovery())
)
select f.oid, n.nspname, f.relname, f.relkind, f.on_toast, pn.nspname, p.relname, f.path,
  case when (pg_catalog.pg_stat_file(f.path, true)).size is not null then
    (select sum((pg_catalog.pg_stat_file(f.path || case g when 0 then '' else '.' || g end, true)).size)
       from pg_catalog.generate_series(0, f.relpages / 131072 + 1) g) end,
  f.relpages, f.reltuples, coalesce(a.amname, ''), f.usable,
  pn.nspname in ('pg_catalog', 'information_schema'), f.relpersistence = 'u'
from found f
join pg_catalog.pg_namespace n on n.oid = f.relnamespace
join pg_catalog.pg_class p on p.oid = f.parent
join pg_catalog.pg_namespace pn on pn.oid = p.relnamespace
left join pg_catalog.pg_am a on a.oid = f.relam
where f.path is not null
order by 1";

/// The relations of the session's database that have files.
///
/// # Errors
/// [`PgError`]: also when the catalogue itself is damaged.
pub async fn list(client: &Client) -> Result<Vec<Relation>, PgError> {
    Ok(client.rows(LIST).await?.iter().filter_map(relation).collect())
}

fn relation(row: &Row) -> Option<Relation> {
    let kind = match (row.text(3), row.is_true(4)) {
        ("r" | "m", _) => RelationKind::Heap,
        ("t", _) => RelationKind::Toast,
        ("i", true) => RelationKind::ToastIndex,
        ("i", false) => RelationKind::Index,
        _ => return None,
    };
    Some(Relation {
        oid: row.number(0)?,
        schema: row.text(1).to_owned(),
        name: row.text(2).to_owned(),
        kind,
        table: format!("{}.{}", row.text(5), row.text(6)),
        path: row.text(7).to_owned(),
        bytes: row.number(8),
        pages: row.number(9).unwrap_or_default(),
        rows: row.number(10).unwrap_or(-1.0),
        access: row.text(11).to_owned(),
        usable: row.is_true(12),
        system: row.is_true(13),
        unlogged: row.is_true(14),
    })
}

/// Relations whose file is gone, or shorter than when VACUUM or ANALYZE last saw it. Of a
/// shared catalogue each database remembers what was seen from there: another one's VACUUM
/// may have cut it since. What is unlogged is emptied by every crash and is left out of every
/// base backup, and what the catalogue remembers of its size is from before: only that its
/// file is gone says anything.
#[must_use]
pub fn short_files(relations: &[Relation]) -> Vec<RelationFinding> {
    relations
        .iter()
        .filter_map(|r| match r.bytes {
            None => {
                let mut finding = r.finding(Check::FileSize, format!("its file {} is not there", r.path));
                finding.sqlstate = Some("58P01".into());
                Some(finding)
            }
            Some(bytes) if r.rows != 0.0 && bytes < r.pages * PAGE && !r.is_shared() && !r.unlogged => {
                Some(r.finding(
                    Check::FileSize,
                    format!(
                        "its file {} has {} blocks; the catalogue says {}",
                        r.path,
                        bytes / PAGE,
                        r.pages
                    ),
                ))
            }
            Some(_) => None,
        })
        .collect()
}

/// True when an error of a statement that reads relations speaks of damage, and not of time,
/// locks, rights, connections or libraries: garbage among the values is out of range, too.
#[must_use]
pub fn is_damage(e: &PgError) -> bool {
    let PgError::Server {
        sqlstate, message, ..
    } = e
    else {
        return false;
    };
    // Dropped between the list and the check.
    if message.starts_with("could not open relation with OID") || message.starts_with("cache lookup failed") {
        return false;
    }
    sqlstate.starts_with("22") || postgres::is_damage(sqlstate, &e.to_string())
}

/// The relation that an error is about: the one whose file it names, else the one that was
/// being looked at; with the block, when it names one of the relation's own.
#[must_use]
pub fn blame<'a>(
    relations: &'a [Relation],
    looked_at: &'a Relation,
    e: &PgError,
) -> (&'a Relation, Option<u64>) {
    let text = e.to_string();
    let place = block_and_path(&text);
    let path = place.map(|(_, p)| p).or_else(|| file_path(&text));
    let Some(path) = path else {
        return (looked_at, None);
    };
    let (main, is_fork) = main_file(path);
    let found = relations.iter().find(|r| r.path == main).unwrap_or(looked_at);
    let own = found.path == main && !is_fork;
    (found, place.map(|(block, _)| block).filter(|_| own))
}

/// A finding made of an error, about the relation that it names.
#[must_use]
pub fn finding_of(
    relations: &[Relation],
    looked_at: &Relation,
    check: Check,
    e: &PgError,
) -> RelationFinding {
    let (relation, block) = blame(relations, looked_at, e);
    let text = e.to_string();
    let short = file_path(&text).is_some() && (e.is("58P01") || text.contains("read only"));
    let check = match (relation.kind, check) {
        _ if short => Check::FileSize,
        (_, Check::FullRead) => check,
        // What a count stumbles over is told once, with what the structure check says.
        (RelationKind::Heap | RelationKind::Toast, _) => Check::HeapStructure,
        (RelationKind::Index | RelationKind::ToastIndex, _) => Check::IndexStructure,
    };
    RelationFinding {
        sqlstate: e.sqlstate().map(str::to_owned),
        blocks: block.into_iter().collect(),
        ..relation.finding(check, e.to_string())
    }
}

/// `(100, "base/16396/16457")` of `invalid page in block 100 of relation base/16396/16457`
/// and of `could not read block 1538 in file "base/…": read only 0 of 8192 bytes`.
#[must_use]
pub fn block_and_path(message: &str) -> Option<(u64, &str)> {
    let mut rest = message;
    while let Some(at) = rest.find("block") {
        rest = rest.get(at + 5..)?;
        let after = rest.strip_prefix('s').unwrap_or(rest).strip_prefix(' ');
        let Some(after) = after else { continue };
        let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let Some(block) = after.get(..digits).and_then(|d| d.parse().ok()) else {
            continue;
        };
        // `blocks 3..4` names a range: its beginning is enough.
        let tail = after.get(digits..)?;
        let tail = tail.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
        for link in [" of relation ", " in file ", " of file "] {
            if let Some(path) = tail.strip_prefix(link).and_then(leading_path) {
                return Some((block, path));
            }
        }
    }
    None
}

/// `base/16396/16457` of `could not open file "base/16396/16457": No such file or directory`.
#[must_use]
pub fn file_path(message: &str) -> Option<&str> {
    message
        .match_indices("file \"")
        .find_map(|(at, m)| leading_path(message.get(at + m.len()..)?))
}

fn leading_path(text: &str) -> Option<&str> {
    let text = text.trim_start_matches('"');
    let end = text
        .find(|c: char| c == '"' || c == ';' || c == ',' || c == ')' || c.is_whitespace())
        .unwrap_or(text.len());
    let path = text.get(..end)?.trim_end_matches(':');
    ["base/", "global/", "pg_tblspc/"]
        .iter()
        .any(|d| path.starts_with(d))
        .then_some(path)
}

/// The main fork's first file of any file of a relation, and whether it was another fork.
fn main_file(path: &str) -> (&str, bool) {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    let end = name.find(['.', '_']).unwrap_or(name.len());
    let main = path
        .get(..dir.len() + usize::from(!dir.is_empty()) + end)
        .unwrap_or(path);
    (main, name.contains('_'))
}

/// Findings about the same relation by the same check become one; what the index checks say
/// of their table is said by the table's own finding.
#[must_use]
pub fn merge(findings: Vec<RelationFinding>) -> Vec<RelationFinding> {
    let mut merged: Vec<RelationFinding> = Vec::new();
    for finding in findings {
        match merged
            .iter_mut()
            .find(|m| m.relation == finding.relation && m.check == finding.check)
        {
            None => merged.push(finding),
            Some(known) => {
                known.blocks.extend(finding.blocks);
                known.rows_missing = known.rows_missing.max(finding.rows_missing);
            }
        }
    }
    for finding in &mut merged {
        finding.blocks.sort_unstable();
        finding.blocks.dedup();
        finding.blocks.truncate(MAX_BLOCKS);
    }
    merged.sort_by(|a, b| (&a.table, a.kind, &a.relation).cmp(&(&b.table, b.kind, &b.relation)));
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample(oid: u32, name: &str, kind: RelationKind, path: &str) -> Relation {
        Relation {
            oid,
            schema: "public".into(),
            name: name.into(),
            kind,
            table: "public.orders".into(),
            path: path.into(),
            bytes: Some(10 * PAGE),
            pages: 10,
            rows: 100.0,
            access: if kind == RelationKind::Index {
                "btree"
            } else {
                "heap"
            }
            .into(),
            usable: true,
            system: false,
            unlogged: false,
        }
    }

    fn error(sqlstate: &str, message: &str) -> PgError {
        PgError::Server {
            severity: "ERROR".into(),
            sqlstate: sqlstate.into(),
            message: message.into(),
            detail: None,
        }
    }

    #[test]
    fn places_in_messages() {
        for (text, expected) in [
            (
                "invalid page in block 100 of relation base/16396/16457",
                Some((100, "base/16396/16457")),
            ),
            (
                "ERROR XX001: invalid page in block 0 of relation global/1262; zeroing",
                Some((0, "global/1262")),
            ),
            (
                "could not read block 1538 in file \"base/16396/16457.1\": read only 0 of 8192 bytes",
                Some((1538, "base/16396/16457.1")),
            ),
            (
                "could not read blocks 3..4 in file \"base/1/2\": read only 0",
                Some((3, "base/1/2")),
            ),
            (
                "invalid page in block 2 of relation pg_tblspc/99/PG_15_202209061/5/16",
                Some((2, "pg_tblspc/99/PG_15_202209061/5/16")),
            ),
            ("block 7 is bad", None),
            ("no place at all", None),
        ] {
            assert_eq!(block_and_path(text), expected, "{text}");
        }
        assert_eq!(
            file_path("could not open file \"base/16396/16457\": No such file or directory"),
            Some("base/16396/16457")
        );
        assert_eq!(
            file_path("Could not open file \"pg_xact/0F26\": No such file"),
            None
        );
        assert_eq!(main_file("base/1/2_vm"), ("base/1/2", true));
        assert_eq!(main_file("base/1/2.3"), ("base/1/2", false));
        assert_eq!(
            main_file("pg_tblspc/9/PG_15_2/5/16"),
            ("pg_tblspc/9/PG_15_2/5/16", false)
        );
    }

    #[test]
    fn an_index_check_that_stumbles_over_the_table_blames_the_table() {
        let all = [
            sample(1, "orders", RelationKind::Heap, "base/1/10"),
            sample(2, "orders_pkey", RelationKind::Index, "base/1/11"),
        ];
        let heap = finding_of(
            &all,
            &all[1],
            Check::IndexStructure,
            &error("XX001", "invalid page in block 4 of relation base/1/10"),
        );
        assert_eq!(
            (heap.relation.as_str(), heap.check, heap.blocks),
            ("public.orders", Check::HeapStructure, vec![4])
        );
        let index = finding_of(
            &all,
            &all[1],
            Check::IndexStructure,
            &error("XX002", "item order invariant violated for index \"orders_pkey\""),
        );
        assert_eq!(
            (index.relation.as_str(), index.kind),
            ("public.orders_pkey", RelationKind::Index)
        );
        let map = finding_of(
            &all,
            &all[0],
            Check::HeapStructure,
            &error("XX001", "invalid page in block 4 of relation base/1/10_vm"),
        );
        assert_eq!((map.relation.as_str(), map.blocks.len()), ("public.orders", 0));
    }

    #[test]
    fn files_that_are_short_or_gone() {
        let mut all = [
            sample(1, "a", RelationKind::Heap, "base/1/1"),
            sample(2, "b", RelationKind::Heap, "base/1/2"),
            sample(3, "c", RelationKind::Heap, "base/1/3"),
        ];
        all[1].bytes = Some(PAGE);
        all[2].bytes = None;
        let found = short_files(&all);
        assert_eq!(found.len(), 2);
        assert!(found[0].message.contains("has 1 blocks; the catalogue says 10"));
        assert_eq!(found[1].sqlstate.as_deref(), Some("58P01"));
        let mut shared = sample(4, "pg_shdepend", RelationKind::Heap, "global/1214");
        shared.bytes = Some(PAGE);
        assert!(
            short_files(&[shared.clone()]).is_empty(),
            "cut from another database"
        );
        shared.bytes = None;
        assert_eq!(short_files(&[shared]).len(), 1);
    }

    #[test]
    fn an_unlogged_table_that_a_crash_emptied_is_not_short() {
        let mut emptied = sample(1, "sessions", RelationKind::Heap, "base/1/1");
        let mut index = sample(2, "sessions_pkey", RelationKind::Index, "base/1/2");
        (emptied.unlogged, emptied.bytes) = (true, Some(0));
        // An index is made with its first page.
        (index.unlogged, index.bytes) = (true, Some(PAGE));
        assert_eq!(short_files(&[emptied.clone(), index.clone()]), []);
        // The server makes the file anew at its start: without one, every access fails.
        index.bytes = None;
        assert_eq!(short_files(&[index.clone()]).len(), 1);
        (emptied.unlogged, index.unlogged) = (false, false);
        assert_eq!(short_files(&[emptied, index]).len(), 2, "logged ones are");
    }

    #[test]
    fn what_is_damage() {
        assert!(is_damage(&error("XX001", "invalid page")));
        assert!(is_damage(&error("22008", "timestamp out of range")));
        let gone = "could not open file \"base/1/2\": No such file or directory";
        assert!(is_damage(&error("58P01", gone)));
        let library = "could not access file \"$libdir/citext\": No such file or directory";
        assert!(!is_damage(&error("58P01", library)));
        let status = PgError::Server {
            severity: "ERROR".into(),
            sqlstate: "58P01".into(),
            message: "could not access status of transaction 827".into(),
            detail: Some("Could not open file \"pg_xact/0000\": No such file or directory.".into()),
        };
        assert!(is_damage(&status), "the detail names the file");
        assert!(!is_damage(&error(
            "57014",
            "canceling statement due to statement timeout"
        )));
        assert!(!is_damage(&error(
            "55P03",
            "canceling statement due to lock timeout"
        )));
        assert!(!is_damage(&error("XX000", "could not open relation with OID 5")));
    }

    #[test]
    fn one_finding_for_one_relation_and_check() {
        let r = sample(1, "orders", RelationKind::Heap, "base/1/10");
        let with = |blocks: &[u64]| RelationFinding {
            blocks: blocks.to_vec(),
            ..r.finding(Check::HeapStructure, "x")
        };
        let merged = merge(vec![with(&[5, 3]), with(&[3]), r.finding(Check::FileSize, "y")]);
        assert_eq!(merged.len(), 2);
        assert_eq!(merged[0].blocks, [3, 5]);
    }
}
