//! Bad runbooks and what is said about them.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const GOOD: &str = "\
version: 1
deployment: shop
environment: staging
platform:
  docker: {}
objectives: { rto: 2h, rpo: 24h }
services:
  db:
    kind: postgres
    postgres:
      admin-user: postgres
      databases:
        shop: {}
  web:
    kind: app
    depends-on: [db]
backup:
  directory: /var/backups/drctl/shop
";

fn parse_text(text: &str) -> Result<Runbook, Invalid> {
    parse(Path::new("drctl.yaml"), text)
}

/// The problems as `line:column path: message | suggestion`.
fn problems(text: &str) -> Vec<String> {
    let invalid = parse_text(text).expect_err("the runbook should be refused");
    let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    invalid
        .problems
        .iter()
        .map(|p| {
            let hint = p.suggestion.as_deref().unwrap_or("-");
            format!(
                "{}:{} {}: {} | {hint}",
                number(p.line),
                number(p.column),
                p.path,
                p.message
            )
        })
        .collect()
}

/// The problems of the good runbook with one change.
fn after(from: &str, to: &str) -> Vec<String> {
    assert!(GOOD.contains(from), "{from:?} is not in the good runbook");
    problems(&GOOD.replacen(from, to, 1))
}

#[test]
fn the_good_runbook_is_good() {
    let runbook = parse_text(GOOD).unwrap();
    assert_eq!(runbook.deployment.as_str(), "shop");
    assert_eq!(runbook.docker().compose_project.as_str(), "shop");
    assert_eq!(runbook.objectives.rpo, Duration::from_hours(24));
    assert_eq!(runbook.deadlines.step, Duration::from_mins(30));
    let (name, _, postgres) = runbook.postgres_services().next().unwrap();
    assert_eq!(
        (name.as_str(), postgres.port, postgres.admin_database.as_str()),
        ("db", 5432, "postgres")
    );
    assert!(runbook.service("web").is_some() && runbook.service("wob").is_none());
    assert!(runbook.backup.postgres.logical && runbook.backup.postgres.physical);
    assert!((runbook.backup.verify_shrink.get() - 50.0).abs() < f64::EPSILON);
}

#[test]
fn what_would_fail_at_the_first_alert_is_refused() {
    let mail = "notify:\n  - email:\n      host: h\n      from: a@example.com\n      to: [b@example.com]\n      user: u\n";
    let window = "alerts:\n  maintenance:\n    - once: { from: 2026-12-02T22:00, to: 2026-12-01T02:00 }\n";
    for (more, wanted) in [
        (
            format!("{mail}      password: {{ container-env: PW }}\n"),
            "25:19 notify[0].email.password.container-env: a mail server has no container",
        ),
        (
            mail.to_owned(),
            "24:7 notify[0].email.user: `user` is of no use without `password`",
        ),
        (
            window.to_owned(),
            "21:43 alerts.maintenance[0].once.to: the window ends before it begins | write a time after 2026-12-02T22:00",
        ),
    ] {
        let found = problems(&format!("{GOOD}{more}"));
        assert!(found.len() == 1 && found[0].starts_with(wanted), "{found:?}");
    }
    let good = format!(
        "{GOOD}{mail}      password: {{ env: PW }}\n{}",
        window.replace("12-01", "12-03")
    );
    assert!(parse_text(&good).is_ok());
}

#[test]
fn a_critical_limit_is_worse_than_the_one_that_warns() {
    let limits = |critical: &str| {
        let warn = "thresholds: { disk: 80, cache-hit-rate: 50, response-time-p95: 500ms, disk-full-in: 72h";
        format!("{GOOD}{warn}, critical: {{ {critical} }} }}\n")
    };
    let fine = "disk: 80, cache-hit-rate: 20, response-time-p95: 2s, disk-full-in: 24h, sessions: 5";
    assert!(parse_text(&limits(fine)).is_ok());
    let milder = "disk: 70, cache-hit-rate: 60, response-time-p95: 100ms, disk-full-in: 100h";
    let found = problems(&limits(milder));
    assert_eq!(found.len(), 4, "{found:?}");
    assert_eq!(
        found[0],
        "19:108 thresholds.critical.disk: it is milder than the limit that warns | write a value above that of `thresholds.disk`"
    );
}

#[test]
fn a_byte_order_mark_and_windows_line_endings_are_no_problem() {
    assert!(parse_text(&format!("\u{feff}{}", GOOD.replace('\n', "\r\n"))).is_ok());
}

/// One mistake, one problem, at its place, with a way out.
#[test]
fn each_mistake_is_one_problem_at_its_place() {
    let table: &[(&str, &str, &str)] = &[
        // unknown keys
        (
            "deployment: shop",
            "deploymnt: shop",
            "2:1 deploymnt: unknown key `deploymnt` | did you mean `deployment`?",
        ),
        (
            "docker: {}",
            "docker: { compose_project: x }",
            "5:13 platform.docker.compose_project: unknown key `compose_project` | did you mean `compose-project`?",
        ),
        (
            "docker: {}",
            "docker: {}\n  kubernetes: {}",
            "6:3 platform.kubernetes: unknown key `kubernetes` | only `docker` is possible here",
        ),
        (
            "    kind: app",
            "    kind: app\n    colour: red",
            "16:5 services.web.colour: unknown key `colour` | one of `kind`, `container`, `depends-on`, `scale-out`, `postgres`, `redis`",
        ),
        // wrong types
        (
            "rto: 2h",
            "rto: 2",
            "6:20 objectives.rto: expected a duration, found a number | for example `2h`",
        ),
        (
            "admin-user: postgres",
            "admin-user: 5",
            "11:19 services.db.postgres.admin-user: expected a text, found a number | quote it: `\"5\"`",
        ),
        (
            "admin-user: postgres",
            "admin-user: true",
            "11:19 services.db.postgres.admin-user: expected a text, found true or false | quote it: `\"true\"`",
        ),
        (
            "admin-user: postgres",
            "admin-user: postgres\n      port: '5432'",
            "12:13 services.db.postgres.port: expected a whole number, found a text | for example `5432`",
        ),
        (
            "admin-user: postgres",
            "admin-user: postgres\n      port: 54.5",
            "12:13 services.db.postgres.port: expected a whole number, found a number with a fraction | for example `5432`",
        ),
        (
            "admin-user: postgres",
            "admin-user: postgres\n      port: 70000",
            "12:13 services.db.postgres.port: the number is too large: at most 65535 | -",
        ),
        (
            "admin-user: postgres",
            "admin-user: postgres\n      password: hunter2",
            "12:17 services.db.postgres.password: expected a mapping, found a text | for example `{ env: POSTGRES_PASSWORD }`",
        ),
        (
            "admin-user: postgres",
            "admin-user: postgres\n      password: { env: A, file: /b }",
            "12:17 services.db.postgres.password: only one of these keys is possible at a time | one of `env`, `file`",
        ),
        (
            "admin-user: postgres",
            "admin-user: postgres\n      password: {}",
            "12:17 services.db.postgres.password: exactly one key belongs here | one of `env`, `file`, `command`, `container-env`",
        ),
        (
            "admin-user: postgres",
            "admin-user: postgres\n      password: { env: $A }",
            "12:24 services.db.postgres.password.env: not the name of an environment variable | give the name alone, for example `POSTGRES_PASSWORD`",
        ),
        (
            "admin-user: postgres",
            "admin-user: postgres\n      password: { command: [] }",
            "12:28 services.db.postgres.password.command: the list is empty | for example `[pass, show, shop/db]`",
        ),
        (
            "depends-on: [db]",
            "depends-on: db",
            "16:17 services.web.depends-on: expected a list, found a text | write `[db]`",
        ),
        (
            "depends-on: [db]",
            "container: ''",
            "16:16 services.web.container: the text is empty | give a value, or remove the key",
        ),
        (
            "backup:\n  directory: /var/backups/drctl/shop",
            "backup: []",
            "17:9 backup: expected a mapping, found a list | for example `{ directory: /var/backups/drctl/simgen }`",
        ),
        (
            "  directory: /var/backups/drctl/shop\n",
            "",
            "17:7 backup: expected a mapping, found nothing | give a value, for example `{ directory: /var/backups/drctl/simgen }`, or remove the key",
        ),
        // values
        (
            "version: 1",
            "version: 2",
            "1:10 version: this drctl reads version 1 of the runbook | write `version: 1`, or use the drctl that the runbook was written for",
        ),
        (
            "environment: staging",
            "environment: prod",
            "3:14 environment: `prod` is not possible here | did you mean `production`?",
        ),
        (
            "environment: staging",
            "environment: moon",
            "3:14 environment: `moon` is not possible here | one of `production`, `staging`, `lab`",
        ),
        (
            "kind: app",
            "kind: ap",
            "15:11 services.web.kind: `ap` is not possible here | did you mean `app`?",
        ),
        (
            "deployment: shop",
            "deployment: My Shop",
            "2:13 deployment: the name starts with 'M' (lower-case letters, digits, `_`, `.` and `-`, starting with a letter or digit, at most 63) | for example `my-shop`",
        ),
        (
            "rto: 2h",
            "rto: 5x",
            "6:20 objectives.rto: `5x` is not a duration | for example `2h`, `1h30m`, `45s` or `500ms`",
        ),
        (
            "rto: 2h",
            "rto: '90'",
            "6:20 objectives.rto: a duration needs a unit | for example `90s` for seconds or `90m` for minutes",
        ),
        (
            "rto: 2h",
            "rto: 2d",
            "6:20 objectives.rto: days are not accepted: a day is not always 24 hours | write hours: `48h`",
        ),
        (
            "rto: 2h",
            "rto: 0s",
            "6:20 objectives.rto: a duration cannot be zero | for example `2h`, `1h30m`, `45s` or `500ms`",
        ),
        (
            "rto: 2h",
            "rto: -2h",
            "6:20 objectives.rto: a duration cannot be negative | for example `2h`, `1h30m`, `45s` or `500ms`",
        ),
        (
            "rpo: 24h",
            "rpo: 24h, availability: 101",
            "6:48 objectives.availability: the number is too large: at most 100 | -",
        ),
        (
            "/var/backups/drctl/shop",
            "backups",
            "18:14 backup.directory: the path is not absolute | for example `/var/backups/drctl/simgen`",
        ),
        (
            "/var/backups/drctl/shop",
            "/var/backups/drctl/shop\n  postgres: { logical: false, physical: false }",
            "19:13 backup.postgres: nothing is backed up: at least one of `logical` and `physical` must be on | remove one of the two; both are on by default",
        ),
        (
            "docker: {}",
            "docker: { host: ssh://root@-oProxyCommand=x }",
            "5:19 platform.docker.host: the host's name holds something that a host name does not | for example `ssh://admin@192.168.1.11:2222`",
        ),
        (
            "docker: {}",
            "docker: { host: 10.0.0.5 }",
            "5:19 platform.docker.host: not an address of a Docker engine | for example `unix:///var/run/docker.sock`, `ssh://admin@192.168.1.11` or `tcp://10.0.0.5:2375`",
        ),
        (
            "shop: {}",
            "shop: { tables: { a.b.c: {} } }",
            "13:27 services.db.postgres.databases.shop.tables[\"a.b.c\"]: a table has at most one dot, after its schema | for example `orders` or `sales.orders`",
        ),
        (
            "shop: {}",
            "shop: { tables: { t: { salvage: insert_missing } } }",
            "13:41 services.db.postgres.databases.shop.tables.t.salvage: `insert_missing` is not possible here | did you mean `insert-missing`?",
        ),
        (
            "shop: {}",
            "shop: { tables: { t: {}, public.t: {} } }",
            "13:34 services.db.postgres.databases.shop.tables[\"public.t\"]: the same table as `t` on line 13 | keep one of the two",
        ),
        (
            "shop: {}",
            "shop: { validation: [{ name: n, sql: delete from t, expect: { equals: 0 } }] }",
            "13:46 services.db.postgres.databases.shop.validation[0].sql: a validation is one query that only reads | for example `select count(*) from orders where customer_id is null`",
        ),
        (
            "shop: {}",
            "shop: { validation: [{ name: n, sql: select 1, expect: { equals: 1e300 } }] }",
            "13:74 services.db.postgres.databases.shop.validation[0].expect.equals: the number is too large | -",
        ),
        (
            "      databases:\n        shop: {}\n",
            "      databases: {}\n",
            "12:18 services.db.postgres.databases: nothing is listed here | add at least one entry",
        ),
        (
            "  web:\n",
            "  my web:\n",
            "14:3 services[\"my web\"]: ' ' is not allowed in a name (letters, digits, `_`, `.` and `-`, starting with a letter or digit, at most 63) | for example `my-web`",
        ),
        (
            "rto: 2h",
            "rto: 2562047788015215h",
            "6:20 objectives.rto: `2562047788015215h` is longer than ten years | at most `87600h`",
        ),
        (
            "rto: 2h",
            "rto: 1ns",
            "6:20 objectives.rto: `1ns` is shorter than a millisecond | at least `1ms`",
        ),
        (
            "rto: 2h",
            "rto: 1d12h",
            "6:20 objectives.rto: days are not accepted: a day is not always 24 hours | write hours: `36h`",
        ),
        (
            "rto: 2h",
            "rto: 1w",
            "6:20 objectives.rto: weeks are not accepted: a day is not always 24 hours | write hours: `168h`",
        ),
        (
            "version: 1",
            "version: 1\ndeadlines: { probe: 25h }",
            "2:21 deadlines.probe: `25h` is too long to wait for an answer | from `100ms` to `24h`",
        ),
        (
            "version: 1",
            "version: 1\ndeadlines: { stop: 2 }",
            "2:20 deadlines.stop: expected a duration, found a number | a time-out needs a unit, for example `2s`",
        ),
        (
            "version: 1",
            "version: 1\nendpoints: { h: { url: 'http://h/', timeout: 1ns } }",
            "2:46 endpoints.h.timeout: `1ns` is too short to wait for an answer | from `100ms` to `24h`",
        ),
        (
            "rpo: 24h",
            "rpo: 24h, availability: 99,5",
            "6:51 objectives[5]: unknown key `5` | a decimal comma? write `availability: 99.5`",
        ),
        (
            "rpo: 24h",
            "rpo: 24h, availability: '99,5'",
            "6:48 objectives.availability: expected a number, found a text | write `99.5`",
        ),
        (
            "rpo: 24h",
            "rpo: 24h, availability: .nan",
            "6:48 : the number is not finite | `.nan` and `.inf` are no limits: write a number, or remove the key",
        ),
        (
            "deployment: shop",
            "deployment: 0123",
            "2:13 deployment: expected a text, found a number | quote it: `\"0123\"`",
        ),
        (
            "deployment: shop",
            "deployment: my.shop",
            "2:13 deployment: Compose forbids dots in a project's name, and without `compose-project` this would be it | add `platform: { docker: { compose-project: myshop } }`, with the name that `docker compose ls` shows",
        ),
        (
            "shop: {}",
            "shop: { tables: { t: { append-only: yes } } }",
            "13:45 services.db.postgres.databases.shop.tables.t.append-only: expected true or false, found a text | write `true`",
        ),
        (
            "admin-user: postgres",
            "admin-user: postgres\n      password: { command: pass show x }",
            "12:28 services.db.postgres.password.command: expected a list, found a text | write its words as a list, for example `[pass, show, shop/db]`",
        ),
        (
            "docker: {}",
            "docker: { host: 'tcp://h:2376', tls: {} }",
            "5:40 platform.docker.tls: `ca` is missing | add `ca: /etc/drctl/docker/ca.pem`",
        ),
        (
            "    kind: app",
            "    kind: app\n    container: c\n  jobs:\n    kind: app\n    container: c",
            "19:16 services.jobs.container: `c` is the container of `web` as well | give each service the container that it runs in",
        ),
        (
            "shop: {}",
            "shop: { validation: [{ name: n, sql: select 1; drop table t, expect: { equals: 0 } }] }",
            "13:46 services.db.postgres.databases.shop.validation[0].sql: behind the `;` stands another statement: a validation is one query that only reads | make two validations of it, or remove what stands behind the `;`",
        ),
        // missing
        (
            "environment: staging\n",
            "",
            "1:1 : `environment` is missing | add `environment: production`",
        ),
        (
            "{ rto: 2h, rpo: 24h }",
            "{ rto: 2h }",
            "6:13 objectives: `rpo` is missing | add `rpo: 2h`",
        ),
        (
            "      admin-user: postgres\n",
            "",
            "11:7 services.db.postgres: `admin-user` is missing | add `admin-user: NAME`",
        ),
        (
            "    kind: app\n    depends-on: [db]",
            "    kind: postgres\n    depends-on: [db]",
            "15:5 services.web: `postgres` is missing: a service of this kind needs it | add `postgres: { admin-user: …, databases: { … } }`",
        ),
        (
            "    depends-on: [db]",
            "    redis: {}",
            "16:5 services.web.redis: `redis` does not belong to a service of kind `app` | remove it, or write `kind: redis`",
        ),
        // twice
        (
            "rto: 2h,",
            "rto: 2h, rto: 3h,",
            "6:24 objectives.rto: `rto` is given twice; first on line 6 | keep one of the two",
        ),
        (
            "environment: staging",
            "environment: staging\ndeployment: other",
            "4:1 deployment: `deployment` is given twice; first on line 2 | keep one of the two",
        ),
        // references
        (
            "depends-on: [db]",
            "depends-on: [dbb]",
            "16:18 services.web.depends-on[0]: there is no service `dbb` | did you mean `db`?",
        ),
        (
            "depends-on: [db]",
            "depends-on: [web]",
            "16:18 services.web.depends-on[0]: `web` depends on itself | remove it",
        ),
        (
            "depends-on: [db]",
            "depends-on: [db, db]",
            "16:22 services.web.depends-on[1]: `db` is listed twice | remove one of the two",
        ),
        (
            "    kind: postgres\n",
            "    kind: postgres\n    depends-on: [web]\n",
            "17:18 services.web.depends-on[0]: services depend on each other in a circle: db → web → db | remove one of these dependencies",
        ),
    ];
    let mut wrong = Vec::new();
    for (from, to, expected) in table {
        let found = after(from, to);
        if found != [*expected] {
            wrong.push(format!(
                "{from:?} -> {to:?}\n  found:    {found:?}\n  expected: {expected:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_comment_in_front_of_a_query_is_none_of_our_business() {
    let query =
        "shop: { validation: [{ name: n, sql: \"-- why\\n/* how */ (select 1);\", expect: { equals: 1 } }] }";
    assert!(parse_text(&GOOD.replace("shop: {}", query)).is_ok());
}

#[test]
fn a_path_is_what_it_looks_like() {
    for (path, expected) in [
        (
            "/var/backups/$HOME",
            "`$` is not replaced by a variable's value here",
        ),
        ("~/backups", "`~` is not replaced by a home directory here"),
        ("/var/backups/../x", "the path holds `..`"),
        ("'/var/backups '", "the path ends with a blank"),
        (r#""/var/\e[2J""#, "a control character is not allowed in a path"),
        ("/", "`/` is the whole machine, no directory for backups"),
        ("//", "`/` is the whole machine, no directory for backups"),
        (
            "/var/lib/docker/volumes",
            "`/var/lib/docker` belongs to the Docker engine",
        ),
        ("//proc/x", "`/proc` is no place for files"),
        ("/sys", "`/sys` is no place for files"),
        ("/dev/shm/x", "`/dev` is no place for files that must last"),
    ] {
        let found = after("/var/backups/drctl/shop", path);
        assert!(
            found.len() == 1 && found[0].contains(expected),
            "{path}: {found:?}"
        );
    }
    for path in ["/srv/back ups", "/var/lib/dockerish", "/devices"] {
        assert!(
            parse_text(&GOOD.replace("/var/backups/drctl/shop", path)).is_ok(),
            "{path}"
        );
    }
}

#[test]
fn a_variable_has_a_name_as_a_shell_takes_it() {
    let with = |name: &str| {
        GOOD.replace(
            "admin-user: postgres",
            &format!("admin-user: postgres\n      password: {name}"),
        )
    };
    for bad in [
        "{ env: hunter2! }",
        "{ env: 2hunter }",
        "{ env: hunter.2 }",
        "{ env: '' }",
        "{ container-env: 'hunter 2' }",
    ] {
        let shown = parse_text(&with(bad)).expect_err(bad).to_string();
        assert!(
            shown.contains("not the name of an environment variable"),
            "{shown}"
        );
        assert!(!shown.contains("hunter"), "{shown}");
    }
    for good in ["{ env: _A1 }", "{ container-env: discovery.password }"] {
        assert!(parse_text(&with(good)).is_ok(), "{good}");
    }
}

#[test]
fn what_is_deleted_as_disposable_holds_no_session() {
    let with = |pattern: &str| {
        let sessions = "{ index: 'sessions:all', owner-prefix: 'session:', limit: 5 }";
        GOOD.replace(
            "  web:",
            &format!("  r: {{ kind: redis, redis: {{ disposable-patterns: ['{pattern}'], sessions: {sessions} }} }}\n  web:"),
        )
    };
    for (pattern, expected) in [
        ("*", "no letter or digit of its own"),
        ("**", "no letter or digit of its own"),
        ("?*", "no letter or digit of its own"),
        ("[a-z]*", "no letter or digit of its own"),
        ("*:*", "no letter or digit of its own"),
        ("sessions:*", "matches `sessions:all`"),
        ("s*", "matches `sessions:all`"),
        ("*all", "matches `sessions:all`"),
        ("session:*", "begin with `session:`"),
        ("session:?", "begin with `session:`"),
        ("session:[0-9]*", "begin with `session:`"),
        ("*:tmp", "begin with `session:`"),
    ] {
        let found = problems(&with(pattern));
        assert!(
            found.len() == 1 && found[0].contains(expected),
            "{pattern}: {found:?}"
        );
        assert!(
            found[0].contains("services.r.redis.disposable-patterns[0]"),
            "{found:?}"
        );
    }
    for pattern in ["cv:*", "llm:*", "sess:*", "[a-r]v:*", "session"] {
        assert!(parse_text(&with(pattern)).is_ok(), "{pattern}");
    }
}

#[test]
fn a_maintenance_window_ends() {
    let with = |window: &str| format!("{GOOD}alerts: {{ maintenance: [{window}] }}\n");
    for bad in [
        "{ daily: { at: '00:00', for: 24h } }",
        "{ weekly: { days: [monday], at: '00:00', for: 200h } }",
        "{ weekly: { days: [monday, thursday, monday], at: '00:00', for: 84h } }",
    ] {
        let found = problems(&with(bad));
        assert!(
            found.len() == 1 && found[0].contains("for: the window hardly ends"),
            "{found:?}"
        );
    }
    let found = problems(&with(
        "{ once: { from: 2026-01-01T00:00, to: 9999-01-01T00:00 } }",
    ));
    assert!(
        found.len() == 1 && found[0].contains("longer than 31 days"),
        "{found:?}"
    );
    for good in [
        "{ daily: { at: '00:00', for: 23h } }",
        "{ weekly: { days: [monday, thursday], at: '00:00', for: 83h } }",
        "{ once: { from: 2026-01-01T00:00, to: 2026-02-01T00:00 } }",
    ] {
        assert!(parse_text(&with(good)).is_ok(), "{good}");
    }
}

#[test]
fn requests_are_checked() {
    let with = |tail: &str| problems(&format!("{GOOD}{tail}\n"));
    let read = "read: { url: 'http://h/{id}' }";
    let table = [
        (
            "endpoints: { h: { url: 'localhost:80' } }".to_owned(),
            "19:24 endpoints.h.url: the address has no http:// | did you mean `http://localhost:80`?",
        ),
        (
            "endpoints: { h: { url: 'http://a:b@h/' } }".to_owned(),
            "19:24 endpoints.h.url: the address holds a user name or password | remove it: an address is printed in reports",
        ),
        (
            "endpoints: { h: { url: 'http://' } }".to_owned(),
            "19:24 endpoints.h.url: not an address: empty host | for example `http://127.0.0.1:8080/health`",
        ),
        (
            "endpoints: { h: { url: 'http://h/{id}' } }".to_owned(),
            "19:24 endpoints.h.url: nothing gives `{id}` a value | write the address without placeholders",
        ),
        (
            "endpoints: { h: { url: 'http://h/', expect-status: 42 } }".to_owned(),
            "19:52 endpoints.h.expect-status: the number is too small: at least 100 | -",
        ),
        (
            "write-check: { write: { url: 'http://h/' }, read: { url: 'http://h/{key}' } }".to_owned(),
            "19:58 write-check.read.url: nothing gives `{key}` a value | `{id}` stands for the identifier in the write's answer",
        ),
        (
            "write-check: { write: { url: 'http://h/' }, read: { url: 'http://h/' }, id-field: id }"
                .to_owned(),
            "19:73 write-check.id-field: `id-field` is not used: the read's URL has no `{id}` | write `{id}` into `read.url` where the identifier belongs",
        ),
        (
            format!("write-check: {{ write: {{ url: 'http://h/', body: '{{' }}, {read} }}"),
            "19:49 write-check.write.body: the body is not JSON: EOF while parsing an object at line 1 column 1 | for example `'{\"note\": \"drctl check\"}'`",
        ),
        (
            format!("write-check: {{ write: {{ url: 'http://h/', method: GET }}, {read} }}"),
            "19:51 write-check.write.method: `GET` is not possible here | one of `POST`, `PUT`, `PATCH`",
        ),
    ];
    for (tail, expected) in table {
        assert_eq!(with(&tail), [expected], "with {tail:?}");
    }
}

#[test]
fn what_is_not_a_yaml_document_is_refused_with_its_place() {
    let table = [
        (
            "",
            "-:- : the file is empty | see what a runbook holds: `drctl runbook schema`",
        ),
        (
            "# nothing\n",
            "-:- : the file is empty | see what a runbook holds: `drctl runbook schema`",
        ),
        ("a: [", "1:4 : this is not YAML: unclosed bracket '[' | -"),
        (
            "x: 1\na: b: c",
            "2:5 : this is not YAML: mapping values are not allowed in this context | -",
        ),
        (
            "a: *b",
            "1:4 : this is not YAML: alias references unknown anchor | -",
        ),
        (
            "a: 1\n---\nb: 2\n",
            "3:1 : the file holds several YAML documents | keep one document: remove the `---` line and what follows it",
        ),
        (
            "a: \0",
            "1:4 : this is not YAML: unexpected character: `\\u{0}' | -",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(problems(text), [expected], "{text:?}");
    }
}

#[test]
fn all_problems_come_at_once_in_the_order_of_the_file() {
    let text = GOOD
        .replace("deployment: shop", "deploymnt: shop")
        .replace("rto: 2h", "rto: soon")
        .replace("kind: app", "kind: ap\n    kind: app")
        .replace("[db]", "[bd]")
        .replace("/var/", "var/");
    let places: Vec<String> = problems(&text)
        .iter()
        .map(|p| p.split(' ').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(places, ["2:1", "6:20", "16:5", "17:18", "19:14"]);
}

#[test]
fn duplicate_keys_that_look_like_numbers_are_seen() {
    let found = after("depends-on: [db]", "1: a\n    01: b\n    1: c");
    assert!(
        found
            .iter()
            .any(|p| p.contains("given twice") || p.contains("duplicate")),
        "{found:?}"
    );
}

#[test]
fn the_snippet_points_at_the_mistake() {
    let shown = parse_text(&GOOD.replace("rto: 2h", "rto: 5x"))
        .unwrap_err()
        .to_string();
    let expected = "\
drctl.yaml:6:20: objectives.rto: `5x` is not a duration
     6 | objectives: { rto: 5x, rpo: 24h }
       |                    ^
    help: for example `2h`, `1h30m`, `45s` or `500ms`
drctl.yaml: 1 problem found";
    assert_eq!(shown, expected);
}

#[test]
fn a_problem_is_data() {
    let invalid = parse_text(&GOOD.replace("rto: 2h", "rto: 5x")).unwrap_err();
    let json = serde_json::to_value(&invalid.problems[0]).unwrap();
    let expected = serde_json::json!({
        "kind": "bad-value", "file": "drctl.yaml", "line": 6, "column": 20, "path": "objectives.rto",
        "message": "`5x` is not a duration", "suggestion": "for example `2h`, `1h30m`, `45s` or `500ms`",
    });
    assert_eq!(json, expected);
}

/// A password in the place of a reference does not reach the terminal or a log.
#[test]
fn a_secret_is_not_shown() {
    for bad in [
        "password: hunter2",
        "pass: hunter2",
        "password: { env: [hunter2] }",
        "password: [hunter2",
        "pasword: hunter2",
        "PASSWORD: 'hunter2",
    ] {
        let text = GOOD.replace(
            "admin-user: postgres",
            &format!("admin-user: postgres\n      {bad}"),
        );
        let invalid = parse_text(&text).unwrap_err();
        assert!(!format!("{invalid}").contains("hunter2"), "{invalid}");
        assert!(
            !serde_json::to_string(&invalid.problems)
                .unwrap()
                .contains("hunter2")
        );
    }
    for more in [
        "endpoints: { h: { url: 'http://a:hunter2@h/' } }",
        "endpoints: { h: { url: 'http://a:hunter2SECRET@h/' } }",
        "write-check: { read: { url: 'http://h/' }, write: { url: 'http://h/', body: '{ \"pin\": hunter2 }' } }",
    ] {
        let invalid = parse_text(&format!("{GOOD}{more}\n")).unwrap_err();
        assert!(!format!("{invalid}").contains("hunter2"), "{invalid}");
    }
}

/// Wherever a secret stands by mistake, neither the text nor the data of a problem repeats it.
#[test]
fn a_secret_is_not_shown_wherever_it_stands() {
    for bad in [
        "password:\n        hunter2",
        "password: >-\n        hunter2",
        "password: |\n        hunter2\n        hunter2\n      foo: bar",
        "password: \"hun\n        hunter2\"",
        "password: \"hunter2",
        "password:\n        - hunter2",
        "password:\n      - hunter2",
        "password:\n        command:\n          hunter2",
        "password:\n        command:\n          - ''\n          - hunter2",
        "password:\n        env:\n          - hunter2",
        "password:\n        env:\n          123454321",
        "password:\n        value:\n          hunter2",
        "password:\n        123454321",
        "password:\n        1234543210000000000000",
        "password:\n\thunter2",
        "password:\n    hunter2",
        "password: hunter2: y",
        "password: @hunter2",
        "password: %hunter2",
        "password: *hunter2",
        "password: !hunter2 x",
        "password: { env: X, hunter2",
        "password: { env: X, hunter2 }",
        "password: { hunter2: 1, hunter2: 2 }",
        "password:\n        hunter2\n      password: {env: X}",
        "password: { env: \"$hunter2\" }",
        "password: { file: hunter2 }",
        "password: { file: [hunter2, 123454321] }",
        "password hunter2",
        "passwd: hunter2",
    ] {
        is_kept(
            bad,
            &GOOD.replace(
                "admin-user: postgres",
                &format!("admin-user: postgres\n      {bad}"),
            ),
        );
    }
    for bad in [
        "- webhook: { url: \"https://hooks.example.com/hunter2\" }",
        "- webhook:\n      url: https://hooks.example.com/hunter2",
        "- webhook: { url: { plain: hooks.example.com/hunter2 } }",
        "- webhook: { url: { plain: 'hunter2:x' } }",
        "- webhook: { url: { plain: 'https://a:hunter2@h/' } }",
        "- webhook: { url: { env: https://h/hunter2 } }",
        "- webhook: { url: https://h/hunter2, colour: red }",
        "- webhook: https://h/hunter2",
        "- ping: https://h/hunter2",
        "- ping:\n    hunter2",
        "- email: { host: m, from: a, to: [], user: x, password: hunter2, tls: ssl }",
        "- email:\n      from: a\n      password:\n        hunter2",
    ] {
        is_kept(bad, &format!("{GOOD}notify:\n  {bad}\n"));
    }
}

fn is_kept(bad: &str, text: &str) {
    let invalid = parse_text(text).expect_err(bad);
    let shown = format!("{invalid}\n{}", serde_json::to_string(&invalid).unwrap());
    for secret in ["hunter2", "123454321"] {
        assert!(!shown.contains(secret), "{bad}\n{shown}");
    }
}

/// An address for messages is as good as a password: the way to keep it apart is what is proposed.
#[test]
fn an_address_for_messages_belongs_into_a_file() {
    let found = problems(&format!(
        "{GOOD}notify:\n  - webhook: {{ url: https://h/x }}\n  - ping: https://h/x\n"
    ));
    assert_eq!(
        found,
        [
            "20:21 notify[0].webhook.url: expected a mapping, found a text | for example `{ file: /etc/drctl/webhook }`",
            "21:11 notify[1].ping: expected a mapping, found a text | for example `{ url: { file: /etc/drctl/webhook } }`",
        ]
    );
    let plain =
        format!("{GOOD}notify:\n  - webhook: {{ url: {{ plain: https://hooks.example.com/T0/hunter2 }} }}\n");
    let shown = render(&parse_text(&plain).unwrap());
    assert!(shown.contains("https://hooks.example.com/…"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
    let again = problems(&shown);
    assert!(
        again.len() == 1 && again[0].contains("the address is not whole"),
        "{again:?}"
    );
}

#[test]
fn the_limits_of_the_reader_are_told_in_words() {
    let deep = format!("version: {}", "[".repeat(100));
    let aliases = format!("a: &a [x]\nb: [{}]", vec!["*a"; 2_000].join(", "));
    let many = (0..30_000)
        .map(|n| format!("bad{n}: 1"))
        .collect::<Vec<_>>()
        .join("\n");
    for (text, expected) in [
        (deep, "the document has more levels than a runbook can have | -"),
        (
            aliases,
            "the aliases (`*name`) stand for more than a runbook can hold | -",
        ),
        (many, "the document holds more than a runbook can hold | -"),
    ] {
        let found = problems(&text);
        assert!(found.len() == 1 && found[0].ends_with(expected), "{found:?}");
    }
}

#[test]
fn bombs_end_quickly() {
    // Half the stack that Rust gives a thread: what calls the loader needs some too.
    let thread = std::thread::Builder::new().stack_size(1024 * 1024).spawn(bombs);
    thread.unwrap().join().unwrap();
}

fn bombs() {
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let items = vec![format!("*a{}", level - 1); 10].join(", ");
        writeln!(laughs, "a{level}: &a{level} [{items}]").unwrap();
    }
    let lines = |count: usize, line: fn(usize) -> String| (0..count).map(line).collect::<Vec<_>>().join("\n");
    let services = |line| GOOD.replace("services:\n", &format!("services:\n{}\n", lines(5_000, line)));
    for (name, text) in [
        ("alias bomb", laughs),
        ("brackets", "[".repeat(500_000)),
        ("braces", "{a: ".repeat(100_000)),
        ("indentation", lines(1_000, |n| format!("{}a:", " ".repeat(n)))),
        ("dashes", "- ".repeat(100_000)),
        ("too many keys", lines(80_000, |n| format!("k{n}: 1"))),
        ("many keys", lines(20_000, |n| format!("deploymen{n}: 1"))),
        (
            "many bad names",
            services(|n| format!("  'a b{n}': {{ kind: app }}")),
        ),
        (
            "many bad references",
            services(|n| format!("  s{n}: {{ kind: app, depends-on: [t{n}] }}")),
        ),
        ("same key", "a: 1\n".repeat(40_000)),
        ("long scalar", "x".repeat(1_000_000)),
        (
            "long cycle",
            services(|n| format!("  s{n}: {{ kind: app, depends-on: [s{}] }}", (n + 1) % 5_000)),
        ),
    ] {
        let start = Instant::now();
        let invalid = parse_text(&text).expect_err(name);
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{name} took {:?}",
            start.elapsed()
        );
        assert!(invalid.problems.len() <= 100, "{name}");
        assert!(
            invalid.to_string().len() < 100_000,
            "{name}: {} bytes of text",
            invalid.to_string().len()
        );
    }
}

/// What `runbook show` prints is a runbook that means the same.
#[test]
fn the_effective_runbook_loads_to_the_same_value() {
    let simgen =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/runbooks/simgen.yaml")).unwrap();
    for text in [GOOD, &simgen] {
        let runbook = parse_text(text).unwrap();
        let shown = render(&runbook);
        assert_eq!(
            parse_text(&shown).map_err(|e| e.to_string()),
            Ok(runbook),
            "{shown}"
        );
        assert_eq!(render(&parse_text(&shown).unwrap()), shown);
    }
    let shown = render(&parse_text(GOOD).unwrap());
    for line in [
        "    compose-project: shop",
        "      port: 5432",
        "  probe: 3s",
        "  verify-shrink: 50",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line:?} in\n{shown}");
    }
}

#[test]
fn dependents_come_before_what_they_need() {
    let simgen =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/runbooks/simgen.yaml")).unwrap();
    let runbook = parse_text(&simgen).unwrap();
    let names = |name| {
        runbook
            .dependents(name)
            .iter()
            .map(|name| name.as_str())
            .collect::<Vec<_>>()
    };
    assert_eq!(names("postgres"), ["nginx", "api1", "api2"]);
    assert_eq!(names("nginx"), Vec::<&str>::new());
}

/// Values that tend to break readers.
fn odd_value() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "~",
            "",
            "[]",
            "{}",
            "1e300",
            "-1",
            "012",
            "1.0",
            "0x10",
            ".nan",
            "true",
            "no",
            "'",
            "\"",
            "*a",
            "&a x",
            "!t x",
            "|",
            ">",
            "<<: x",
            "? x",
            "2h",
            "{ <<: { a: 1 } }",
            "[[[[]]]]",
            "99999999999999999999999",
            "'{}'",
            "http://{",
            "http://[::1",
            "@",
            "\u{fe}",
            "5432.0",
            "-0.0",
            "1_000",
            "!!str 5",
            "!!int 'x'",
            "!!binary x",
            "2026-01-01",
        ])
        .prop_map(str::to_owned),
        ".{0,40}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_it_panic(text in "(?s).{0,200}") {
        if let Err(invalid) = parse_text(&text) {
            let _ = invalid.to_string();
        }
    }

    #[test]
    fn no_yaml_like_text_makes_it_panic(text in "[-\\[\\]{}:,&*!|>'\"%@#?a-c0-9 \n\t]{0,120}") {
        if let Err(invalid) = parse_text(&text) {
            let _ = invalid.to_string();
        }
    }

    /// The schema and the types agree on every nearly good runbook: whatever is refused is the runbook's fault.
    #[test]
    fn a_refusal_is_never_a_defect(line in 0_usize..18, value in odd_value(), replace_key: bool) {
        let mut lines: Vec<String> = GOOD.lines().map(str::to_owned).collect();
        let old = lines[line].clone();
        lines[line] = match old.split_once(": ") {
            Some((_, rest)) if replace_key => format!("{value}: {rest}"),
            Some((key, _)) => format!("{key}: {value}"),
            None => format!("{old} {value}"),
        };
        match parse_text(&lines.join("\n")) {
            Ok(runbook) => {
                let shown = render(&runbook);
                prop_assert_eq!(parse_text(&shown).map_err(|e| e.to_string()), Ok(runbook));
            }
            Err(invalid) => {
                prop_assert!(!invalid.problems.is_empty());
                prop_assert!(!invalid.to_string().contains("defect of drctl"), "{}", invalid);
            }
        }
    }

    /// Whatever a text holds, `runbook show` writes it so that it is read again as the same.
    #[test]
    fn texts_survive_being_shown(tail in "(?s).{0,120}", name in ".{1,20}") {
        let mut runbook = parse_text(GOOD).unwrap();
        let Some(ServiceKind::Postgres(postgres)) = runbook.services.get_mut("db").map(|db| &mut db.kind) else {
            panic!("db is a PostgreSQL service");
        };
        let sql = format!("select {}", tail.replace(['\0', ';'], ""));
        let validation = Validation { name, sql, expect: Expect::AtMost(-3) };
        for database in postgres.databases.values_mut() {
            database.validation.push(validation.clone());
        }
        prop_assert_eq!(parse_text(&render(&runbook)).map_err(|e| e.to_string()), Ok(runbook));
    }

    #[test]
    fn durations_survive_being_written(millis in 1_u64..10_000_000_000) {
        let length = Duration::from_millis(millis);
        prop_assert_eq!(duration::parse_duration(&duration::format_duration(length)), Ok(length));
    }
}
