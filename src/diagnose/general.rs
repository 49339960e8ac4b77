//! What no scenario is about: rules of the server that keep the application out, and endpoints
//! that fail although everything looks well.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};

use super::{Opinion, all};
use crate::engine::verify;
use crate::event::Verdict;
use crate::plan::Expectation;
use crate::postgres::quote_ident;
use crate::probe::application::{self, Level, RoleFacts};
use crate::probe::endpoints::{self, Answers};
use crate::probe::observer::Observer;
use crate::runbook::{Runbook, ServiceKind};
use crate::scenarios::DetectOptions;
use crate::scenarios::service_crash::speaks_of_error;
use crate::system::System;

/// Something that is wrong and that no scenario is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct General {
    /// As `application-role`.
    pub name: &'static str,
    /// The cause is known; otherwise only that something fails.
    pub explained: bool,
    /// In a line.
    pub summary: String,
    /// What it rests on.
    pub reasons: Vec<String>,
    /// What to type.
    pub next: Vec<String>,
}

/// Transactions left from which on the end of their numbers is near enough to be told: hours on
/// a busy server.
const NEAR: i64 = 100_000_000;
/// Requests with which a failure is asked about once more before it is told.
const AGAIN: usize = 3;
/// Lines of a log that still say something of now.
const LATELY: SignedDuration = SignedDuration::from_mins(2);
/// Lines that are read of each log.
const LINES: usize = 60;
/// Characters that are shown of a line.
const SHOWN: usize = 300;

/// Everything: what the scenarios say, ranked, and what no scenario is about. Endpoints are only
/// told where nothing else is: what was found explains them until it is put right. Read-only, and
/// within `deadline`, an endpoint's own aside.
pub async fn everything(
    world: &Observer<'_>,
    options: &DetectOptions,
    deadline: Duration,
) -> (Vec<Opinion>, Vec<General>) {
    // Together: a server that hangs costs both of them its whole deadline.
    let (opinions, found) = tokio::join!(
        all(world, options, deadline),
        tokio::time::timeout(deadline, rules(world.system))
    );
    let mut found = found.unwrap_or_default();
    let explained = !found.is_empty() || opinions.iter().any(|o| o.is_finding() || o.is_elsewhere());
    if !explained && world.endpoints().await.values().any(fails) {
        // A service that was just being restarted is no failure.
        let now = endpoints::glance(&world.system.runbook, AGAIN).await;
        if now.values().any(fails) {
            found.extend(failing(world, &now).await);
        }
    }
    (opinions, found)
}

/// At least every second request failed.
fn fails(a: &Answers) -> bool {
    !a.failures.is_empty() && a.failures.len() >= a.millis.len()
}

/// The server's rules for each role that the application uses.
async fn rules(system: &System) -> Vec<General> {
    let asked = system.runbook.postgres_services().flat_map(|(service, _, p)| {
        p.databases.iter().filter_map(move |(database, d)| {
            let role = d.application_user.as_ref()?;
            Some((service.to_string(), database.to_string(), role.to_string()))
        })
    });
    let all = join_all(asked.map(|(service, database, role)| async move {
        // A server that nobody gets into is for the scenarios.
        let server = system.postgres(&service).await.ok()?;
        let client = server
            .connect_to(&server.admin.to_database(&database))
            .await
            .ok()?;
        let facts = application::read(&client, &role).await.ok()?;
        let checked = verify::check(
            system,
            &Expectation::ApplicationRole {
                service: service.clone(),
                database: database.clone(),
                role: role.clone(),
            },
        )
        .await;
        let refused: Vec<String> = checked
            .into_iter()
            .filter(|c| c.verdict == Verdict::Fail)
            .map(|c| c.found)
            // A table that is not there, or damage, is no rule.
            .filter(|found| {
                found.starts_with(&format!("{role} may not ")) || found.starts_with("there is no role ")
            })
            .collect();
        Some(judge(&service, &database, &role, &facts, &refused))
    }))
    .await;
    let mut found: Vec<General> = Vec::new();
    for one in all.into_iter().flatten().flatten() {
        // What concerns the whole server is said once.
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

/// What the facts of one role mean; `refused` is what the proof of a recovery would object to.
fn judge(service: &str, database: &str, role: &str, facts: &RoleFacts, refused: &[String]) -> Vec<General> {
    let mut found = Vec::new();
    let (r, d) = (quote_ident(role), quote_ident(database));
    if facts.can_log_in.is_none() || facts.expired || !refused.is_empty() {
        let mut reasons = refused.to_vec();
        let mut next = Vec::new();
        match facts.can_log_in {
            None => next.push(format!(
                "create role {r} login;    # and its password and rights, as the application's installation does"
            )),
            Some(false) => next.push(format!("alter role {r} login;    # if it was forbidden by mistake")),
            Some(true) => {}
        }
        if facts.expired {
            reasons.push(format!("the time of {role}'s password is over (valid until)"));
            next.push(format!(
                "alter role {r} valid until 'infinity';    # or a later time"
            ));
        }
        if facts.can_log_in.is_some() && !facts.can_connect {
            next.push(format!("grant connect on database {d} to {r};"));
        }
        if next.is_empty() {
            next.push(format!(
                "grant usage on schema SCHEMA to {r}; grant select on TABLE to {r};    # in database {database}"
            ));
        }
        found.push(General {
            name: "application-role",
            explained: true,
            summary: format!(
                "{service} runs, and its rules keep role {role} out of {database}; no rule was changed"
            ),
            reasons,
            next,
        });
    }
    if let Some(level) = facts.read_only_by() {
        let (place, undo) = match level {
            Level::Server => (
                "in the server's configuration".to_owned(),
                "alter system reset default_transaction_read_only; select pg_reload_conf();    # or in the file that \
                 pg_file_settings names"
                    .to_owned(),
            ),
            // These bind the administrator's session as well, which says otherwise for itself first.
            Level::Everybody => (
                "for every role".into(),
                "set default_transaction_read_only = off; alter role all reset default_transaction_read_only;".into(),
            ),
            Level::Database => (
                format!("for database {database}"),
                format!(
                    "set default_transaction_read_only = off; alter database {d} reset default_transaction_read_only;"
                ),
            ),
            Level::Role => (
                format!("for role {role}"),
                format!("alter role {r} reset default_transaction_read_only;"),
            ),
            Level::RoleInDatabase => (
                format!("for role {role} in database {database}"),
                format!("alter role {r} in database {d} reset default_transaction_read_only;"),
            ),
        };
        let mut next = vec![
            undo,
            "a session takes it over when it connects again: restart the application's pools".into(),
        ];
        if level == Level::Database {
            next.insert(
                0,
                "drctl incident list    # a recovery that was cut off has set it: resume or undo that instead".into(),
            );
        }
        found.push(General {
            name: "read-only",
            explained: true,
            summary: format!(
                "{service} runs, and refuses what {role} writes: default_transaction_read_only is on {place}"
            ),
            reasons: vec!["reads go on; no setting was changed".into()],
            next,
        });
    }
    if let (Some(left), Some((oldest, age))) = (facts.transactions_left(), &facts.oldest)
        && left <= NEAR
    {
        let summary = if left <= 0 {
            format!("{service} refuses to write: the transaction numbers of database {oldest} are used up")
        } else {
            format!(
                "{service} refuses to write in {left} transactions: those of database {oldest} are nearly used up"
            )
        };
        found.push(General {
            name: "wraparound",
            explained: true,
            summary,
            reasons: vec![format!("its oldest row is {age} transactions old; nothing was changed")],
            next: vec![
                "select pid, age(backend_xmin), state from pg_stat_activity order by 2 desc nulls last;    # what holds \
                 it back"
                    .into(),
                "select gid, prepared from pg_prepared_xacts; select slot_name, age(xmin), age(catalog_xmin) from \
                 pg_replication_slots;"
                    .into(),
                format!("vacuum (freeze, verbose);    # in database {oldest}, as a superuser; single-user mode is not needed"),
            ],
        });
    }
    found
}

/// What is known of endpoints that fail without an explanation: what they answer, and what the
/// services behind them said last.
async fn failing(world: &Observer<'_>, now: &BTreeMap<String, Answers>) -> Vec<General> {
    let system = world.system;
    let containers = world.containers().await;
    let since = Timestamp::now() - LATELY;
    // From the side of the users.
    let running: Vec<(String, String, String)> = system
        .runbook
        .start_order()
        .iter()
        .rev()
        .filter_map(|name| {
            let info = &containers.get(name.as_str())?.found()?.info;
            info.is_running()
                .then(|| (name.to_string(), info.id.clone(), info.name.clone()))
        })
        .collect();
    let logs = join_all(running.iter().map(|(service, id, container)| async move {
        let lines = system
            .docker
            .logs(id, Some(since), LINES)
            .await
            .unwrap_or_default();
        Said {
            service: service.clone(),
            container: container.clone(),
            lines: lines.into_iter().map(|l| l.text).collect(),
        }
    }))
    .await;
    let addresses = containers
        .iter()
        .filter_map(|(name, state)| {
            let info = &state.found()?.info;
            Some((name.clone(), info.networks.values().cloned().collect()))
        })
        .collect();
    told(&system.runbook, now, &logs, &addresses)
}

/// What a service that runs has logged lately.
struct Said {
    service: String,
    container: String,
    lines: Vec<String>,
}

fn told(
    rb: &Runbook,
    now: &BTreeMap<String, Answers>,
    logs: &[Said],
    addresses: &BTreeMap<String, BTreeSet<String>>,
) -> Vec<General> {
    let down: Vec<(&String, &Answers)> = now.iter().filter(|(_, a)| fails(a)).collect();
    if down.is_empty() {
        return Vec::new();
    }
    let mut reasons: Vec<String> = down
        .iter()
        .map(|(name, a)| {
            format!(
                "endpoint {name} fails in {} of {} requests: {}",
                a.failures.len(),
                a.failures.len() + a.millis.len(),
                a.failures.first().map_or("", String::as_str)
            )
        })
        .collect();
    for said in logs {
        let Some(stale) = stale_upstream(rb, said, addresses) else {
            continue;
        };
        reasons.push(format!("{} said: {}", said.service, shown(stale.line)));
        return vec![General {
            name: "stale-upstream",
            explained: true,
            summary: format!(
                "{} still asks {}, an address that none of its services has any more; nothing was changed",
                said.service, stale.address
            ),
            reasons,
            next: vec![format!(
                "docker exec {0} nginx -t && docker exec {0} nginx -s reload    # looks its upstreams up anew, without an interruption",
                said.container
            )],
        }];
    }
    for said in logs {
        if let Some(line) = said.lines.iter().rev().find(|l| speaks_of_error(l)) {
            reasons.push(format!("{} said last: {}", said.service, shown(line)));
        }
    }
    reasons.push("every service runs as far as its container tells; nothing was changed".into());
    let names: Vec<&str> = down.iter().map(|(n, _)| n.as_str()).collect();
    let verb = if names.len() == 1 { "fails" } else { "fail" };
    let mut next: Vec<String> = logs
        .iter()
        .filter(|s| {
            rb.service(&s.service).is_some_and(|s| {
                matches!(
                    s.kind,
                    ServiceKind::App | ServiceKind::Nginx | ServiceKind::Postgres(_)
                )
            })
        })
        .map(|s| format!("docker logs --tail 50 {}", s.container))
        .collect();
    next.extend(down.first().and_then(|(name, _)| {
        let url = rb.endpoints.get(*name)?.url.as_str();
        Some(format!("curl -isS {url}"))
    }));
    vec![General {
        name: "endpoint",
        explained: false,
        summary: format!(
            "endpoint {} {verb}, and no scenario explains it",
            names.join(", ")
        ),
        reasons,
        next,
    }]
}

fn shown(line: &str) -> String {
    line.trim().chars().take(SHOWN).collect()
}

/// An address that nginx asks in vain.
struct Stale<'a> {
    address: IpAddr,
    line: &'a str,
}

/// Nginx looks the names of its upstreams up once, when it starts: a service whose container got
/// another address since is asked where it no longer is.
fn stale_upstream<'a>(
    rb: &Runbook,
    said: &'a Said,
    addresses: &BTreeMap<String, BTreeSet<String>>,
) -> Option<Stale<'a>> {
    let service = rb.service(&said.service)?;
    if !matches!(service.kind, ServiceKind::Nginx) {
        return None;
    }
    let known: BTreeSet<IpAddr> = service
        .depends_on
        .iter()
        .filter_map(|name| addresses.get(name.as_str()))
        .flatten()
        .filter_map(|a| a.parse().ok())
        .collect();
    // Without any address to compare with nothing can be said.
    if known.is_empty() {
        return None;
    }
    said.lines.iter().rev().find_map(|line| {
        let (_, upstream) = line
            .contains("while connecting to upstream")
            .then(|| line.split_once("upstream: \""))??;
        let (_, host) = upstream.split_once("://")?;
        let end = host.find(['/', '"']).unwrap_or(host.len());
        let (host, _) = host.get(..end)?.rsplit_once(':')?;
        let address: IpAddr = host.trim_matches(['[', ']']).parse().ok()?;
        (!known.contains(&address)).then_some(Stale { address, line })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runbook() -> Runbook {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/runbooks/simgen.yaml");
        crate::runbook::load(std::path::Path::new(path)).unwrap()
    }

    fn sound() -> RoleFacts {
        RoleFacts {
            can_log_in: Some(true),
            expired: false,
            can_connect: true,
            read_only: vec![],
            oldest: Some(("simgen".into(), 1_000_000)),
        }
    }

    fn judged(facts: &RoleFacts, refused: &[&str]) -> Vec<(&'static str, String)> {
        let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
        judge("postgres", "simgen", "simgen_app", facts, &refused)
            .into_iter()
            .map(|g| (g.name, g.next[0].clone()))
            .collect()
    }

    #[test]
    fn each_rule_that_keeps_the_application_out_is_named_with_what_to_type() {
        assert_eq!(judged(&sound(), &[]), []);
        let mut facts = sound();
        facts.can_log_in = Some(false);
        let found = judged(&facts, &["simgen_app may not log in"]);
        assert_eq!(found[0].0, "application-role");
        assert!(
            found[0].1.starts_with("alter role simgen_app login;")
                || found[0].1.starts_with("alter role \"simgen_app\" login;"),
            "{found:?}"
        );
        let mut facts = sound();
        facts.expired = true;
        assert!(judged(&facts, &[])[0].1.contains("valid until"));
        let mut facts = sound();
        facts.can_connect = false;
        assert!(
            judged(&facts, &["simgen_app may not connect"])[0]
                .1
                .starts_with("grant connect")
        );
        assert!(
            judged(&sound(), &["simgen_app may not read orders"])[0]
                .1
                .contains("grant select")
        );
        let mut facts = sound();
        facts.read_only = vec![(Level::Database, true)];
        let found = judged(&facts, &[]);
        assert_eq!(found[0].0, "read-only");
        // A recovery that was cut off may have set it.
        assert!(found[0].1.starts_with("drctl incident list"), "{found:?}");
        facts.read_only = vec![(Level::Role, true)];
        assert!(judged(&facts, &[])[0].1.starts_with("alter role"));
        let mut facts = sound();
        facts.oldest = Some(("simgen".into(), 2_144_483_648));
        assert_eq!(judged(&facts, &[])[0].0, "wraparound");
        // The server vacuums by itself long before.
        facts.oldest = Some(("simgen".into(), 1_000_000_000));
        assert_eq!(judged(&facts, &[]), []);
    }

    fn answers(good: usize, bad: usize) -> BTreeMap<String, Answers> {
        let one = Answers {
            millis: vec![3; good],
            failures: vec!["status 502".into(); bad],
        };
        BTreeMap::from([("health".to_owned(), one)])
    }

    fn said(service: &str, lines: &[&str]) -> Said {
        Said {
            service: service.into(),
            container: format!("simgen_{service}_1"),
            lines: lines.iter().map(ToString::to_string).collect(),
        }
    }

    fn addresses() -> BTreeMap<String, BTreeSet<String>> {
        [("api1", "10.0.0.7"), ("api2", "10.0.0.8"), ("redis", "10.0.0.2")]
            .into_iter()
            .map(|(n, a)| (n.to_owned(), BTreeSet::from([a.to_owned()])))
            .collect()
    }

    #[test]
    fn an_endpoint_that_fails_is_never_passed_over() {
        let rb = runbook();
        assert_eq!(told(&rb, &answers(3, 0), &[], &addresses()), []);
        assert_eq!(told(&rb, &answers(2, 1), &[], &addresses()), []);
        let logs = [
            said("nginx", &["GET /health 502"]),
            said(
                "postgres",
                &[
                    "LOG:  ok",
                    "FATAL:  password authentication failed for user \"simgen_app\"",
                ],
            ),
        ];
        let found = told(&rb, &answers(0, 3), &logs, &addresses());
        assert_eq!(
            (found.len(), found[0].name, found[0].explained),
            (1, "endpoint", false)
        );
        assert!(found[0].reasons[0].contains("status 502"), "{found:?}");
        assert!(
            found[0]
                .reasons
                .iter()
                .any(|r| r.contains("password authentication failed")),
            "{found:?}"
        );
        assert!(
            found[0]
                .next
                .contains(&"docker logs --tail 50 simgen_nginx_1".to_owned()),
            "{found:?}"
        );
    }

    #[test]
    fn an_upstream_that_has_moved_is_named() {
        let line = |address: &str| {
            format!(
                "2026/11/26 10:00:00 [error] 9#9: *4 connect() failed (113: No route to host) while connecting to upstream, \
                 client: 172.18.0.1, server: , request: \"GET /health HTTP/1.1\", upstream: \"http://{address}:8000/health\", host: \"x\""
            )
        };
        let find = |service: &str, address: &str| {
            told(
                &runbook(),
                &answers(0, 3),
                &[said(service, &[&line(address)])],
                &addresses(),
            )[0]
            .name
        };
        assert_eq!(find("nginx", "10.0.0.9"), "stale-upstream");
        // Another service has the address now.
        assert_eq!(find("nginx", "10.0.0.2"), "stale-upstream");
        // It is where it should be, and does not answer.
        assert_eq!(find("nginx", "10.0.0.7"), "endpoint");
        assert_eq!(find("api1", "10.0.0.9"), "endpoint");
    }
}
