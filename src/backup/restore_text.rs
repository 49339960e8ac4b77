//! `RESTORE.md`: how a person with Docker and no drctl gets everything back from one set.
//! Every command in it is one that the tests run.

use std::fmt::Write as _;

use super::manifest::{LogicalPart, Manifest, PhysicalPart, PostgresPart};
use super::preflight::Surveyed;
use crate::postgres::conninfo;

/// Renders the text for one set.
#[must_use]
pub fn render(manifest: &Manifest, servers: &[Surveyed]) -> String {
    let mut text = format!(
        "# Restore of {deployment} from backup {label}\n\n\
         Made by drctl {version} from {started:.0} to {finished:.0} (UTC). Only ordinary tools are needed here:\n\
         `docker`, and the PostgreSQL tools that are in the server's own image. With drctl the same is done\n\
         by `drctl recover`, which first looks whether so much is needed.\n\n\
         Run the commands as root in the directory of this file. They ask for the administrator's password\n\
         in `PGPASSWORD`; set it first:\n\n\
         ```sh\nread -rs PGPASSWORD && export PGPASSWORD\n```\n\n\
         First check what is here:\n\n\
         ```sh\nsha256sum --check --quiet SHA256SUMS\n```\n",
        deployment = manifest.deployment,
        label = manifest.label,
        version = manifest.drctl_version,
        started = manifest.started,
        finished = manifest.finished,
    );
    for (service, part) in &manifest.postgres {
        let container = servers
            .iter()
            .find(|s| &s.server.service == service)
            .map_or(service.as_str(), |s| s.server.container.name.as_str());
        let user = servers
            .iter()
            .find(|s| &s.server.service == service)
            .map_or("postgres", |s| s.server.config.admin_user.as_str());
        let admin_database = servers
            .iter()
            .find(|s| &s.server.service == service)
            .map_or("postgres", |s| s.server.config.admin_database.as_str());
        server(
            &mut text,
            service,
            part,
            &Names {
                container,
                user,
                admin_database,
                label: &manifest.label.to_string(),
            },
        );
    }
    text
}

struct Names<'a> {
    container: &'a str,
    user: &'a str,
    admin_database: &'a str,
    label: &'a str,
}

fn server(text: &mut String, service: &str, part: &PostgresPart, names: &Names<'_>) {
    let _ = write!(
        text,
        "\n## PostgreSQL service {service}\n\n\
         Server {} in image `{}` (`{}`), data directory `{}` owned by {}.\n",
        part.server_version, part.image, part.image_id, part.data_dir, part.owner
    );
    for (database, dump) in &part.logical {
        one_database(text, part, database, dump, names);
    }
    if let Some(base) = &part.physical {
        whole_server(text, part, base, names);
    }
}

/// Quotes for the shell, and for use inside a line of `sh -c '…'`-free text.
fn sh(word: &str) -> String {
    if !word.is_empty()
        && word
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-./:@%+,".contains(&b))
    {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A database as the programs take it: by its name, unless that would be read as an address.
fn argument(database: &str) -> String {
    if database.contains('=') || database.starts_with("postgres") && database.contains("://") {
        conninfo(database)
    } else {
        database.to_owned()
    }
}

/// The statement that makes the database, its tablespace on a line of its own.
fn create(dump: &LogicalPart, name: &str) -> String {
    let like = dump.properties();
    let statement = like.create(name);
    match like.tablespace.as_deref() {
        None | Some("pg_default") => format!("{statement};"),
        Some(_) => format!(
            "{statement}\n {}    -- leave this line out where the server has no such tablespace\n;",
            like.in_tablespace()
        ),
    }
}

fn one_database(text: &mut String, part: &PostgresPart, database: &str, dump: &LogicalPart, n: &Names<'_>) {
    let aside = format!("{database}_restored");
    let old = format!("{database}_before_restore");
    let ident = |name: &str| name.replace('"', "\"\"");
    let globals = part.globals.as_deref().unwrap_or("globals.sql");
    let _ = write!(
        text,
        r#"
### Database {database} alone, while the server runs

The dump shows the moment {at:.0} (WAL position {lsn}). It is restored beside the damaged database, looked
at, and then takes its name; the old one stays as `{old}` until you drop it.

```sh
pg() {{ docker run --rm -i --network container:{container} -e PGPASSWORD -e PGHOST=127.0.0.1 -e PGUSER={user} -v "$PWD":/set:ro --shm-size 256m {image} "$@"; }}

# 1. Roles. Complaints that a role already exists are expected.
pg psql -d {admin} -q -f /set/{globals}

# 2. The dump, beside the old database.
pg psql -d {admin} -v ON_ERROR_STOP=1 -q <<'SQL'
{create}
SQL
pg pg_restore -d {aside} --jobs={jobs} --exit-on-error /set/{path}
pg vacuumdb --analyze-only -q -d {aside}

# 3. Look at it. Rows at the time of the backup stand in manifest.json under "table-rows".

# 4. Take the name. Both renames happen or none.
pg psql -d {admin} -v ON_ERROR_STOP=1 <<'SQL'
alter database "{db_i}" with allow_connections false;
select pg_terminate_backend(pid) from pg_stat_activity where datname = '{db_l}';
begin;
alter database "{db_i}" rename to "{old_i}";
alter database "{aside_i}" rename to "{db_i}";
commit;
SQL
pg psql -d {admin} -v ON_ERROR_STOP=1 -q -f /set/{settings}
```

To go back: the same two renames the other way round, and `allow_connections true` for the old one.
"#,
        at = dump.snapshot_at,
        lsn = dump.lsn,
        container = sh(n.container),
        user = sh(n.user),
        image = sh(&part.image),
        admin = sh(&argument(n.admin_database)),
        create = create(dump, &aside),
        aside = sh(&argument(&aside)),
        jobs = dump.jobs,
        path = dump.path,
        settings = dump.settings,
        db_i = ident(database),
        db_l = database.replace('\'', "''"),
        old_i = ident(&old),
        aside_i = ident(&aside),
    );
}

fn whole_server(text: &mut String, part: &PostgresPart, base: &PhysicalPart, n: &Names<'_>) {
    let _ = write!(
        text,
        r#"
### The whole server, when it does not start

The base backup shows the moment {at:.0} (WAL position {end}); everything after it is lost. The old files stay
in `{data}/.before-restore-{label}` until you remove them.

```sh
docker run --rm -v "$PWD":/set:ro --network none {image} pg_verifybackup /set/{path}
docker stop -t 60 {container}
docker run --rm -i --network none --user 0:0 --volumes-from {container} -v "$PWD":/set:ro {image} sh -euc '
  cd {data}
  mkdir .before-restore-{label}
  for f in * .[!.]*; do
    [ "$f" = .before-restore-{label} ] || [ ! -e "$f" ] || mv "$f" .before-restore-{label}/
  done
  cp -a /set/{path}/. .
  chown -R {owner} .
  chmod 0700 .
  sync'
docker start {container}
sleep 5; docker logs --tail 20 {container}    # must say: consistent recovery state reached, ready to accept connections
```

Do not remove `backup_label` from the restored files: the server would start and show damaged data.
To go back: stop the container, move the files back in the same way, start it.
"#,
        at = base.finished,
        end = base.end_lsn,
        data = part.data_dir,
        label = n.label,
        image = sh(&part.image),
        container = sh(n.container),
        path = base.path,
        owner = part.owner,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_made_like_the_one_that_was_dumped() {
        let dump: LogicalPart = serde_json::from_value(serde_json::json!({
            "path": "postgres/app", "settings": "postgres/app.settings.sql", "bytes": 1, "files": 1,
            "snapshot-at": "2026-11-20T19:43:57Z", "lsn": "0/1", "jobs": 1, "seconds": 1.0, "tables": 1,
            "database-bytes": 1, "encoding": "UTF8", "collate": "C", "ctype": "C", "owner": "app", "table-rows": {}
        }))
        .unwrap();
        let begin = "create database \"app_restored\" with template template0 encoding 'UTF8' lc_collate 'C' \
                     lc_ctype 'C' owner \"app\"";
        // A manifest of before says no more.
        assert_eq!(create(&dump, "app_restored"), format!("{begin};"));
        let newer = |tablespace: &str| LogicalPart {
            locale_provider: Some("b".into()),
            locale: Some("C.UTF-8".into()),
            tablespace: Some(tablespace.into()),
            ..dump.clone()
        };
        let begin = format!("{begin} locale_provider builtin builtin_locale 'C.UTF-8'");
        assert_eq!(create(&newer("pg_default"), "app_restored"), format!("{begin};"));
        assert_eq!(
            create(&newer("fast"), "app_restored"),
            format!(
                "{begin}\n  tablespace \"fast\"    -- leave this line out where the server has no such tablespace\n;"
            )
        );
    }

    #[test]
    fn a_name_that_looks_like_an_address_is_spelled_out() {
        assert_eq!(argument("app_restored"), "app_restored");
        assert_eq!(argument("a=b"), "dbname='a=b'");
        assert_eq!(argument("postgresql://x"), "dbname='postgresql://x'");
    }
}
