//! What a fault hits: chosen from the catalogue so that the damage touches real rows.

use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::faults::record::TableRef;
use crate::faults::server::{asking, session};
use crate::postgres::{Client, Row, quote_ident, quote_literal, quote_qualified};
use crate::system::PostgresServer;

/// Blocks in one file of a relation: 1 GiB of 8 KiB blocks (PostgreSQL manual, 73.1).
const SEGMENT_BLOCKS: u64 = 131_072;

/// How long a statement that reads or writes rows may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A database and a table in it, with a session to look further.
pub struct Chosen {
    /// Database.
    pub database: String,
    /// Table as it was named, for people.
    pub table: String,
    /// Table, qualified and quoted.
    pub quoted: String,
    /// A superuser's session on the database that may write.
    pub client: Client,
}

/// One block of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// File, relative to the data directory.
    pub path: String,
    /// Block in that file.
    pub block: u64,
    /// Block in the relation, as the server's messages count.
    pub number: u64,
}

/// The table of a fault. By default the one that the traffic program counts in, else
/// the largest of those that the runbook names.
///
/// # Errors
/// [`Kind::Usage`] for a name that does not exist, [`Kind::Refused`] when the server
/// does not answer.
pub async fn table(
    server: &PostgresServer,
    database: Option<&str>,
    table: Option<&str>,
    with_toast: bool,
) -> Result<Chosen> {
    let database = database.map_or_else(
        || {
            server
                .config
                .databases
                .keys()
                .next()
                .map(ToString::to_string)
                .unwrap_or_default()
        },
        str::to_owned,
    );
    let client = session(server, &database).await?;
    let table = match table {
        Some(name) => name.to_owned(),
        None => default_table(server, &database, &client, with_toast).await?,
    };
    let quoted = quote_qualified(&table);
    let kind = client
        .value(&format!(
            "select relkind from pg_class where oid = to_regclass({})",
            quote_literal(&quoted)
        ))
        .await
        .map_err(asking(server, "the search for the table"))?;
    match kind.as_deref() {
        Some("r" | "m") => {}
        other => {
            return Err(Error::new(
                Kind::Usage,
                match other {
                    Some(kind) => format!("{table} in {database} is no plain table (relkind {kind})"),
                    None => format!("database {database} has no table {table}"),
                },
            )
            .untouched("everything")
            .next("drctl drill inject … --table TABLE"));
        }
    }
    Ok(Chosen {
        database,
        table,
        quoted,
        client,
    })
}

async fn default_table(
    server: &PostgresServer,
    database: &str,
    client: &Client,
    with_toast: bool,
) -> Result<String> {
    let named = server
        .config
        .databases
        .iter()
        .find(|(name, _)| name.as_str() == database)
        .map(|(_, d)| &d.tables);
    if let Some((name, _)) = named
        .filter(|_| !with_toast)
        .and_then(|t| t.iter().find(|(_, t)| t.traffic_number.is_some()))
    {
        return Ok(name.to_string());
    }
    let names: Vec<String> = named
        .map(|t| t.keys().map(ToString::to_string).collect())
        .unwrap_or_default();
    let only = if names.is_empty() {
        String::new()
    } else {
        let list: Vec<String> = names
            .iter()
            .map(|n| format!("to_regclass({})", quote_literal(&quote_qualified(n))))
            .collect();
        format!("and c.oid in ({})", list.join(", "))
    };
    let measured = if with_toast { "c.reltoastrelid" } else { "c.oid" };
    let found = client
        .value(&format!(
            "select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.relkind = 'r' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' \
             and {measured} <> 0 {only} order by pg_relation_size({measured}) desc, c.oid limit 1"
        ))
        .await
        .map_err(asking(server, "the search for a table"))?;
    found.ok_or_else(|| {
        Error::new(
            Kind::Refused,
            format!("database {database} on {} has no table to damage", server.service),
        )
        .untouched("everything")
        .next("drctl drill inject … --table TABLE")
    })
}

impl Chosen {
    /// The table as a fault's record keeps it.
    #[must_use]
    pub fn reference(&self) -> TableRef {
        TableRef {
            database: self.database.clone(),
            table: self.quoted.clone(),
        }
    }

    /// The file of a relation and its size in blocks.
    ///
    /// # Errors
    /// A relation without storage; the server's error.
    pub async fn file(&self, server: &PostgresServer, relation: &str) -> Result<(String, u64)> {
        let row = self
            .one(
                server,
                &format!("select pg_relation_filepath({relation}), pg_relation_size({relation}) / 8192"),
            )
            .await?;
        match (row.opt(0), row.number(1)) {
            (Some(path), Some(blocks)) => Ok((path.to_owned(), blocks)),
            _ => Err(self.nothing("has no file of its own")),
        }
    }

    /// The first block from the middle on that holds live rows. `relation` is qualified
    /// and quoted.
    ///
    /// # Errors
    /// [`Kind::Refused`] for a relation without rows.
    pub async fn live_block(&self, server: &PostgresServer, relation: &str) -> Result<Place> {
        let (path, blocks) = self.file(server, &regclass(relation)).await?;
        let middle = blocks / 2;
        for from in [middle, 0] {
            // A TID range scan (PostgreSQL 14) reads only from there; older ones read all.
            let block = self
                .client
                .within(
                    PATIENCE,
                    &format!("select (ctid::text::point)[0]::bigint from {relation} where ctid >= '({from},0)' limit 1"),
                )
                .await
                .map_err(asking(server, "the search for live rows"))?;
            if let Some(number) = block.first().and_then(|r| r.number::<u64>(0)) {
                return Ok(place(&path, number));
            }
        }
        Err(self.nothing("holds no rows"))
    }

    /// A leaf page in the middle of an index: block 0 is the meta page of a B-tree.
    ///
    /// # Errors
    /// [`Kind::Refused`] for an empty index.
    pub async fn index_block(&self, server: &PostgresServer, index: &str) -> Result<Place> {
        let (path, blocks) = self.file(server, &regclass(index)).await?;
        if blocks < 2 {
            return Err(self.nothing("has an empty index"));
        }
        Ok(place(&path, (blocks / 2).max(1)))
    }

    /// The B-tree to damage, qualified and quoted: one that serves a foreign key, so
    /// that ordinary writes reach any of its pages; else any that is not unique; else
    /// the primary key's.
    ///
    /// # Errors
    /// [`Kind::Refused`] for a table without one.
    pub async fn index(&self, server: &PostgresServer) -> Result<String> {
        let rows = self
            .client
            .rows(&format!(
                "select n.nspname, c.relname from pg_index i join pg_class c on c.oid = i.indexrelid \
                 join pg_namespace n on n.oid = c.relnamespace join pg_am a on a.oid = c.relam \
                 where i.indrelid = to_regclass({}) and a.amname = 'btree' and i.indisvalid and i.indisready \
                 order by exists (select from pg_constraint k where k.conrelid = i.indrelid and k.contype = 'f' \
                 and k.conkey[1] = i.indkey[0]) and not i.indisunique desc, i.indisunique, i.indisprimary desc, c.oid limit 1",
                quote_literal(&self.quoted)
            ))
            .await
            .map_err(asking(server, "the search for an index"))?;
        match rows.first() {
            Some(r) => Ok(format!("{}.{}", quote_ident(r.text(0)), quote_ident(r.text(1)))),
            None => Err(self.nothing("has no B-tree index")),
        }
    }

    /// The table's TOAST relation, qualified and quoted.
    ///
    /// # Errors
    /// [`Kind::Refused`] for a table without one.
    pub async fn toast(&self, server: &PostgresServer) -> Result<String> {
        let row = self
            .one(
                server,
                &format!(
                    "select t.relname from pg_class c left join pg_class t on t.oid = c.reltoastrelid \
                     where c.oid = to_regclass({})",
                    quote_literal(&self.quoted)
                ),
            )
            .await?;
        match row.opt(0) {
            Some(name) => Ok(format!("pg_toast.{}", quote_ident(name))),
            None => Err(self.nothing("keeps no values out of line")),
        }
    }

    /// The first row of a statement.
    ///
    /// # Errors
    /// The server's error, or no row.
    pub async fn one(&self, server: &PostgresServer, sql: &str) -> Result<Row> {
        self.client
            .rows(sql)
            .await
            .map_err(asking(server, "a look at the catalogue"))?
            .into_iter()
            .next()
            .ok_or_else(|| self.nothing("is not in the catalogue any more"))
    }

    /// The refusal for a table that the fault cannot hit.
    #[must_use]
    pub fn nothing(&self, why: &str) -> Error {
        Error::new(
            Kind::Refused,
            format!(
                "table {} in {} {why}: there is nothing to damage",
                self.table, self.database
            ),
        )
        .untouched("everything")
        .next("drctl drill inject … --table TABLE")
    }
}

/// A quoted relation as an SQL expression for the catalogue functions.
#[must_use]
pub fn regclass(relation: &str) -> String {
    format!("{}::regclass", quote_literal(relation))
}

fn place(path: &str, number: u64) -> Place {
    let segment = number / SEGMENT_BLOCKS;
    Place {
        path: if segment == 0 {
            path.to_owned()
        } else {
            format!("{path}.{segment}")
        },
        block: number % SEGMENT_BLOCKS,
        number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_beyond_a_gigabyte_are_in_the_next_file() {
        assert_eq!(
            place("base/5/1", 131_071),
            Place {
                path: "base/5/1".into(),
                block: 131_071,
                number: 131_071
            }
        );
        assert_eq!(
            place("base/5/1", 131_072 * 2 + 5),
            Place {
                path: "base/5/1.2".into(),
                block: 5,
                number: 262_149
            }
        );
    }
}
