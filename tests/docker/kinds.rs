//! Tables and databases that are not the plain case: newer rows of any kind of table come over, and where a remedy would
//! harm what it does not see, it is refused before anything is touched.

use std::time::Duration;

use drctl::system::System;
use serde_json::Value;

use crate::stack::{Output, Stack, docker};

/// What the tables are before the backup. The extension is as an upgrade of the server leaves it: it has no check of tables.
const BEFORE: &str = "
drop extension amcheck;
create extension amcheck version '1.2';
create schema kinds;
create table kinds.day (id int primary key, on_day date);
create table kinds.local (id int primary key, at timestamp);
create table kinds.number (id int primary key, n bigint);
create table kinds.maybe (id int primary key, at timestamptz);
create table kinds.node (id int primary key, up int references kinds.node, at timestamptz default now());
create table kinds.a (id int primary key, b int, at timestamptz default now());
create table kinds.b (id int primary key, a int references kinds.a, at timestamptz default now());
alter table kinds.a add foreign key (b) references kinds.b;
create table kinds.part (id int, at timestamptz default now(), primary key (id, at)) partition by range (at);
create table kinds.part_old partition of kinds.part for values from (minvalue) to ('2020-01-01');
create table kinds.part_new partition of kinds.part for values from ('2020-01-01') to (maxvalue) partition by hash (id);
create table kinds.part_new_0 partition of kinds.part_new for values with (modulus 2, remainder 0);
create table kinds.part_new_1 partition of kinds.part_new for values with (modulus 2, remainder 1);
create table kinds.checked (id int primary key, at timestamptz default now(), n int check (n > 0));
insert into kinds.node values (1000, null);
grant usage on schema kinds to simgen_app;
grant select on all tables in schema kinds to simgen_app;
insert into kinds.checked select i, now(), i from generate_series(1, 50) i;
";

/// What comes after it: rows that are newer, each in a way of its own.
const AFTER: &str = "
insert into kinds.day select i, current_date from generate_series(1, 10) i;
set timezone = 'America/Los_Angeles';
insert into kinds.local select i, localtimestamp from generate_series(1, 10) i;
reset timezone;
insert into kinds.number select i, i from generate_series(1, 10) i;
insert into kinds.maybe select i, case when i % 2 = 0 then now() end from generate_series(1, 10) i;
insert into kinds.node select i, nullif(i - 1, 0) from generate_series(1, 50) i order by i;
insert into kinds.node values (60, 60);
insert into kinds.a values (1, null); insert into kinds.b values (1, 1);
insert into kinds.a values (2, 1); insert into kinds.b values (2, 2);
insert into kinds.part select i from generate_series(1, 500) i;
alter table kinds.checked drop constraint checked_n_check;
insert into kinds.checked select i, now(), case when i = 77 then -1 else i end from generate_series(51, 100) i;
";

/// Rows of each table, as `name count` lines.
const COUNTS: &str = "
select 'day', count(*) from kinds.day union all select 'local', count(*) from kinds.local
union all select 'number', count(*) from kinds.number union all select 'maybe', count(*) from kinds.maybe
union all select 'node', count(*) from kinds.node union all select 'a', count(*) from kinds.a
union all select 'b', count(*) from kinds.b union all select 'part', count(*) from kinds.part
union all select 'checked', count(*) from kinds.checked";

/// Their entries in the runbook.
const TABLES: &str = "
            kinds.day: { newest: on_day, salvage: insert-missing }
            kinds.local: { newest: at, salvage: insert-missing }
            kinds.number: { newest: n, salvage: insert-missing }
            kinds.maybe: { newest: at, salvage: insert-missing }
            kinds.node: { newest: at, salvage: insert-missing }
            kinds.a: { newest: at, salvage: insert-missing }
            kinds.b: { newest: at, salvage: insert-missing }
            kinds.part: { newest: at, salvage: insert-missing }
            kinds.checked: { newest: at, salvage: insert-missing }
";

#[test]
fn tables_of_every_kind_come_over_and_what_would_harm_is_refused() {
    let Some(stack) = Stack::up("kinds") else { return };
    let text = std::fs::read_to_string(stack.runbook()).unwrap();
    let tables = "          tables:\n";
    assert!(text.contains(tables));
    let with = text.replacen(
        tables,
        &format!("{}{}\n", tables.trim_end(), TABLES.trim_end()),
        1,
    );
    std::fs::write(stack.runbook(), with).unwrap();
    stack.psql(BEFORE).unwrap();
    stack.drctl(&["backup"]).ok();
    stack.psql(AFTER).unwrap();

    library_missing(&stack);
    questions_only_read(&stack);
    subscription_in_the_way(&stack);
    newer_rows(&stack);
    tablespace_in_the_way(&stack);
    assert_eq!(stack.leftovers_after(Duration::from_secs(5)), "");
}

/// The only thing that `diagnose` says of this scenario.
fn opinion(stack: &Stack, scenario: &str) -> Value {
    stack.drctl(&["diagnose", scenario, "--json"]).event("opinion")
}

fn refused(out: &Output, word: &str) {
    assert_eq!(out.code, Some(4), "{}{}", out.stdout, out.stderr);
    assert!(out.stdout.contains(word), "{word} is missing: {}", out.stdout);
}

/// A setting that names a library which the image does not have keeps everybody out, and damages nothing.
fn library_missing(stack: &Stack) {
    stack
        .psql("alter database simgen set session_preload_libraries = 'nolib'")
        .unwrap();
    let seen = opinion(stack, "db-corruption");
    assert_eq!(seen["look-alike"]["name"], "library-missing", "{seen}");
    assert!(seen.to_string().contains("nolib"), "{seen}");
    refused(&stack.agreed(&["recover", "db-corruption"]), "library-missing");
    let reset = "alter database simgen reset session_preload_libraries";
    docker(&[
        "exec",
        &stack.container("postgres"),
        "psql",
        "-U",
        "simgen",
        "-d",
        "postgres",
        "-c",
        reset,
    ])
    .ok();
    let seen = opinion(stack, "db-corruption");
    assert_eq!(seen["certainty"], "absent", "{seen}");
}

/// Whatever stands in a validation query, it changes nothing, and the session is as good for the next one.
fn questions_only_read(stack: &Stack) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let answers = runtime.block_on(async {
        let runbook = drctl::runbook::load(&stack.runbook()).unwrap();
        let system = System::open(runbook).await.unwrap();
        let server = system.postgres("postgres").await.unwrap();
        let client = server
            .connect_to(&server.admin.to_database("simgen"))
            .await
            .unwrap();
        let mut answers = Vec::new();
        for sql in [
            "select 1; commit; drop table kinds.day",
            "with gone as (delete from kinds.checked returning 1) select count(*) from gone",
            "select set_config('transaction_read_only', 'off', false)",
            "-- how many\nselect count(*) from kinds.checked",
        ] {
            let answer = client.answer_read_only(Duration::from_secs(5), sql).await;
            answers.push(match answer {
                Ok(rows) => Ok(rows.len()),
                Err(e) => Err(e.sqlstate().unwrap_or_default().to_owned()),
            });
        }
        answers
    });
    let state = |s: &str| Err(s.to_owned());
    assert_eq!(answers[..2], [state("42601"), state("25006")]);
    assert_eq!(answers[3], Ok(1));
    assert_eq!(
        stack.psql("select count(*) from kinds.checked").unwrap(),
        "100",
        "{answers:?}"
    );
    stack.psql("select from kinds.day").unwrap();
}

/// A restore of the database would leave the subscription behind, with the damaged one.
fn subscription_in_the_way(stack: &Stack) {
    stack
        .psql("create subscription to_the_shop connection 'dbname=shop' publication all_of_it with (connect = false)")
        .unwrap();
    stack.drctl(&["drill", "inject", "db-corruption/heap-page"]).ok();
    let out = stack.agreed(&["recover", "db-corruption", "--remedy", "restore-database"]);
    refused(&out, "to_the_shop");
    stack
        .psql("alter subscription to_the_shop set (slot_name = none); drop subscription to_the_shop")
        .unwrap();
}

fn newer_rows(stack: &Stack) {
    let out = stack.agreed(&["recover", "db-corruption", "--remedy", "restore-database"]);
    assert_eq!(out.code, Some(0), "{}{}", out.stdout, out.stderr);
    let counts = stack.psql(COUNTS).unwrap();
    assert_eq!(
        counts.trim(),
        "day|10\nlocal|10\nnumber|10\nmaybe|10\nnode|52\na|2\nb|2\npart|500\nchecked|99"
    );
    let report = out.event("report")["report"].clone();
    assert_eq!(report["facts"]["rows-refused"], 1, "{report}");
    assert!(out.stdout.contains("kinds.checked"), "{}", out.stdout);
    let incident = report["incident"].as_str().unwrap();
    let out = stack.agreed(&["incident", "close", incident]);
    assert_eq!(out.code, Some(0), "{}{}", out.stdout, out.stderr);
    stack.drctl(&["drill", "heal", "--all", "--forget"]).ok();
}

/// What is replayed beside the data would write into the tablespace that the server uses.
fn tablespace_in_the_way(stack: &Stack) {
    let server = stack.container("postgres");
    let make = "mkdir /var/lib/postgresql/fast && chown postgres: /var/lib/postgresql/fast";
    docker(&["exec", "-u", "0", &server, "sh", "-c", make]).ok();
    stack.drctl(&["backup", "--physical-only"]).ok();
    stack
        .psql("create tablespace fast location '/var/lib/postgresql/fast'")
        .unwrap();
    stack
        .psql("create table kinds.fast (id int) tablespace fast; insert into kinds.fast select generate_series(1, 100)")
        .unwrap();
    stack.drctl(&["drill", "inject", "db-corruption/heap-page"]).ok();
    let out = stack.agreed(&["recover", "db-corruption", "--remedy", "restore-cluster"]);
    refused(&out, "pg_tblspc");
    assert_eq!(stack.psql("select count(*) from kinds.fast").unwrap(), "100");
    stack.drctl(&["drill", "heal", "--all"]).ok();
}
