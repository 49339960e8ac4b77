//! The proof after a recovery: what the plan expects, asked of the world, each question
//! bounded and each answer one of four verdicts.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesOrdered;

use super::actions::Checked;
use super::endpoints::{endpoints, write_check};
use super::settle::settled;
use crate::event::{Event, SharedReporter, Verdict};
use crate::plan::{Expectation, RowFloor};
use crate::postgres::{Client, PgError, quote_literal, quote_qualified};
use crate::probe::amcheck::{AmcheckOptions, check_database};
use crate::runbook::{Database, Runbook};
use crate::system::{PostgresServer, System};

/// What an expectation says, in words.
#[must_use]
pub fn describe(expectation: &Expectation) -> String {
    match expectation {
        Expectation::ServicesRun { services } => match services.as_slice() {
            [one] => format!("{one} runs and stays up"),
            several => format!("{} run and stay up", several.join(", ")),
        },
        Expectation::RedisWrites { service } => format!("{service} stores, reads and deletes a value"),
        Expectation::RedisKeys { service, at_least } => format!("{service} holds at least {at_least} keys"),
        Expectation::RoomForSessions { index, limit, .. } => {
            format!("{index} counts fewer than {limit} sessions")
        }
        Expectation::HasRoom { service, .. } => format!("{service} is below its limits"),
        Expectation::Responsive { millis } => format!("every endpoint answers within {millis} ms"),
        Expectation::ServerAnswers { service } => format!("{service} takes connections"),
        Expectation::FreeSlots { service, .. } => format!("an ordinary role gets a connection to {service}"),
        Expectation::Sound {
            database, relations, ..
        } if relations.is_empty() => format!("no damage in {database}"),
        Expectation::Sound {
            database, relations, ..
        } => format!("no damage in {} of {database}", relations.join(", ")),
        Expectation::Rows { database, floors, .. } => {
            format!("the rows of {} tables of {database} are there", floors.len())
        }
        Expectation::Validations { database, .. } => format!("the validation queries of {database} hold"),
        Expectation::ApplicationRole { database, role, .. } => format!("role {role} may use {database}"),
        Expectation::Room {
            path,
            at_least,
            files,
        } => {
            let more = if *files > 0 {
                format!(" and {files} more files can be made")
            } else {
                String::new()
            };
            format!("{} are free{more} at {path}", crate::event::bytes(*at_least))
        }
        Expectation::ServerWrites { service } => format!("{service} can write"),
        Expectation::Reaches { edges } => {
            format!("each of {} dependencies is reached from inside", edges.len())
        }
        Expectation::Endpoints => "every endpoint answers".into(),
        Expectation::WriteCheck => "a write through the application can be read back".into(),
    }
}

/// The worst verdict counts; what is not configured does not; nothing passed is not a pass.
#[must_use]
pub fn overall(checks: &[Checked]) -> Verdict {
    let any = |v: Verdict| checks.iter().any(|c| c.verdict == v);
    if any(Verdict::Fail) {
        Verdict::Fail
    } else if any(Verdict::CouldNotVerify) || !any(Verdict::Pass) {
        Verdict::CouldNotVerify
    } else {
        Verdict::Pass
    }
}

/// Makes every check. The first expectation is met before the others are looked at, which is
/// done together: most of them wait for something else. `each` gets every answer, in the order of
/// the expectations, and can stop the rest.
///
/// # Errors
/// What `each` returns.
pub async fn verify<E>(
    system: &System,
    expect: &[Expectation],
    reporter: &SharedReporter,
    mut each: impl FnMut(&Checked) -> Result<(), E>,
) -> Result<Vec<Checked>, E> {
    let mut all = Vec::new();
    let (first, others) = expect.split_at(expect.len().min(1));
    for together in [first, others] {
        let mut answers: FuturesOrdered<_> = together.iter().map(|e| check(system, e)).collect();
        while let Some(checks) = answers.next().await {
            for checked in checks {
                reporter.event(&Event::Checked {
                    what: checked.what.clone(),
                    verdict: checked.verdict,
                    found: checked.found.clone(),
                });
                each(&checked)?;
                all.push(checked);
            }
        }
    }
    Ok(all)
}

pub(super) fn answer(what: impl Into<String>, verdict: Verdict, found: impl Into<String>) -> Checked {
    Checked {
        what: what.into(),
        verdict,
        found: found.into(),
    }
}

/// Makes one expectation's checks.
pub async fn check(system: &System, expectation: &Expectation) -> Vec<Checked> {
    let what = describe(expectation);
    match expectation {
        Expectation::ServicesRun { services } => {
            join_all(services.iter().map(|s| super::running::service_runs(system, s))).await
        }
        Expectation::RedisWrites { service } => vec![super::redis::writes(system, service, what).await],
        Expectation::RedisKeys { service, at_least } => {
            vec![super::redis::keys(system, service, *at_least, what).await]
        }
        Expectation::RoomForSessions {
            service,
            index,
            database,
            limit,
        } => vec![super::redis::room(system, service, (index, *database), *limit, what).await],
        Expectation::HasRoom {
            service,
            memory_percent,
        } => {
            let percent = memory_percent.parse().unwrap_or(100.0);
            vec![super::load::has_room(system, service, percent, what).await]
        }
        Expectation::Responsive { millis } => super::load::responsive(system, *millis, &what).await,
        Expectation::ServerAnswers { service } => vec![server_answers(system, service, what).await],
        Expectation::FreeSlots { service, at_least } => {
            vec![super::free_slots::free_slots(system, service, *at_least, what).await]
        }
        Expectation::Sound {
            service,
            database,
            relations,
        } => match system.postgres(service).await {
            Ok(server) => {
                vec![sound(&server, database, relations, &what, system.runbook.deadlines.step).await]
            }
            Err(e) => vec![answer(what, Verdict::CouldNotVerify, e.to_string())],
        },
        Expectation::Rows {
            service,
            database,
            floors,
        } => {
            with_session(system, service, database, &what, async |client| {
                rows(client, database, floors, system.runbook.deadlines.step).await
            })
            .await
        }
        Expectation::Validations { service, database } => {
            match database_of(&system.runbook, service, database) {
                Some(config) if !config.validation.is_empty() => {
                    with_session(system, service, database, &what, async |client| {
                        validations(client, config, system.runbook.deadlines.step).await
                    })
                    .await
                }
                _ => vec![answer(
                    what,
                    Verdict::NotConfigured,
                    "the runbook has no validation query",
                )],
            }
        }
        Expectation::ApplicationRole {
            service,
            database,
            role,
        } => {
            with_session(system, service, database, &what, async |client| {
                vec![application_role(client, &system.runbook, service, database, role, &what).await]
            })
            .await
        }
        Expectation::Room {
            path,
            at_least,
            files,
        } => {
            vec![super::space::room(path, *at_least, *files, what)]
        }
        Expectation::ServerWrites { service } => {
            vec![super::space::server_writes(system, service, what).await]
        }
        Expectation::Reaches { edges } => super::reaches::reaches(system, edges).await,
        Expectation::Endpoints => endpoints(&system.runbook, &what).await,
        Expectation::WriteCheck => vec![write_check(&system.runbook, what).await],
    }
}

/// The runbook's entry of a database.
#[must_use]
pub fn database_of<'a>(runbook: &'a Runbook, service: &str, database: &str) -> Option<&'a Database> {
    runbook
        .postgres_services()
        .find(|(name, ..)| name.as_str() == service)
        .and_then(|(_, _, p)| p.databases.iter().find(|(name, _)| name.as_str() == database))
        .map(|(_, d)| d)
}

async fn server_answers(system: &System, service: &str, what: String) -> Checked {
    // Asked anew each time: a container gets a new address when it is started.
    settled(what, || async {
        match system.postgres(service).await {
            Ok(server) => match ask_server(&server).await {
                Ok(false) => (Verdict::Pass, "it answers, and recovery has ended".to_owned()),
                Ok(true) => (Verdict::Fail, "it answers, and is still in recovery".to_owned()),
                Err(e) => (Verdict::Fail, e.to_string()),
            },
            Err(e) => (Verdict::CouldNotVerify, e.to_string()),
        }
    })
    .await
}

async fn ask_server(server: &PostgresServer) -> Result<bool, PgError> {
    let client = server.connect().await?;
    Ok(client.value("select pg_is_in_recovery()").await?.as_deref() == Some("t"))
}

async fn with_session(
    system: &System,
    service: &str,
    database: &str,
    what: &str,
    ask: impl AsyncFnOnce(&Client) -> Vec<Checked>,
) -> Vec<Checked> {
    let cannot = |e: String| vec![answer(what, Verdict::CouldNotVerify, e)];
    match system.postgres(service).await {
        Err(e) => cannot(e.to_string()),
        Ok(server) => match server.connect_to(&server.admin.to_database(database)).await {
            Err(e) => cannot(e.to_string()),
            Ok(client) => ask(&client).await,
        },
    }
}

/// A server that says no is an answer; one that says nothing is not.
fn failed(e: &PgError) -> Verdict {
    match e {
        // The query was cancelled: it took longer than it was given.
        PgError::Server { sqlstate, .. } if sqlstate == "57014" => Verdict::CouldNotVerify,
        PgError::Server { .. } => Verdict::Fail,
        _ => Verdict::CouldNotVerify,
    }
}

/// Whether tables hold at least the rows they must. Leaves the session without index scans.
pub(super) async fn rows(
    client: &Client,
    database: &str,
    floors: &[RowFloor],
    deadline: Duration,
) -> Vec<Checked> {
    // An index-only scan believes the visibility map and counts rows that are gone.
    let prepared = client
        .execute("set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off; set jit = off")
        .await;
    let mut all = Vec::new();
    for floor in floors {
        let what = format!(
            "at least {} rows in {} of {database}",
            floor.at_least, floor.table
        );
        let counted = match &prepared {
            Err(e) => Err(e.clone()),
            Ok(()) => {
                client
                    .within(
                        deadline,
                        &format!("select count(*) from {}", quote_qualified(&floor.table)),
                    )
                    .await
            }
        };
        all.push(match counted {
            Err(e) => answer(what, failed(&e), e.to_string()),
            Ok(rows) => match rows.first().and_then(|r| r.number::<u64>(0)) {
                None => answer(what, Verdict::CouldNotVerify, "the server gave no number"),
                Some(n) if n >= floor.at_least => answer(what, Verdict::Pass, format!("{n} rows")),
                Some(n) => answer(what, Verdict::Fail, format!("only {n} rows")),
            },
        });
    }
    all
}

/// The runbook's questions, and whether their answers are those of a sound database.
pub(super) async fn validations(client: &Client, config: &Database, deadline: Duration) -> Vec<Checked> {
    let mut all = Vec::new();
    for validation in &config.validation {
        let what = validation.name.clone();
        all.push(match client.answer_read_only(deadline, &validation.sql).await {
            Err(e) => answer(what, failed(&e), e.to_string()),
            Ok(rows) => match rows.as_slice() {
                [row] => match row.number::<i64>(0) {
                    Some(n) if validation.expect.holds(n) => {
                        answer(what, Verdict::Pass, format!("the answer is {n}"))
                    }
                    Some(n) => answer(
                        what,
                        Verdict::Fail,
                        format!("the answer is {n}, expected {:?}", validation.expect),
                    ),
                    None => answer(
                        what,
                        Verdict::CouldNotVerify,
                        format!("the answer {:?} is no whole number", row.text(0)),
                    ),
                },
                rows => answer(
                    what,
                    Verdict::CouldNotVerify,
                    format!("{} rows where one was expected", rows.len()),
                ),
            },
        });
    }
    all
}

/// drctl does not know the application's password, so it asks the server what the role may
/// do; that it really connects is what the endpoints show.
async fn application_role(
    client: &Client,
    runbook: &Runbook,
    service: &str,
    database: &str,
    role: &str,
    what: &str,
) -> Checked {
    let quoted = quote_literal(role);
    let mut questions = vec![(
        "log in".to_owned(),
        format!("select rolcanlogin from pg_catalog.pg_roles where rolname = {quoted}"),
    )];
    questions.push((
        format!("connect to {database}"),
        format!("select has_database_privilege({quoted}, current_database(), 'connect')"),
    ));
    let tables = database_of(runbook, service, database).map(|d| d.tables.keys());
    let mut count = 0;
    for table in tables.into_iter().flatten() {
        let name = quote_qualified(&format!("{}.{}", table.schema, table.table));
        count += 1;
        questions.push((
            format!("read {table}"),
            format!(
                "select has_table_privilege({quoted}, {name}, 'select') and has_schema_privilege({quoted}, {schema}, 'usage')",
                name = quote_literal(&name),
                schema = quote_literal(&table.schema)
            ),
        ));
    }
    for (may, sql) in questions {
        match client.value(&sql).await {
            Err(e) => return answer(what, failed(&e), e.to_string()),
            Ok(Some(yes)) if yes == "t" => {}
            Ok(Some(_)) => return answer(what, Verdict::Fail, format!("{role} may not {may}")),
            Ok(None) => return answer(what, Verdict::Fail, format!("there is no role {role}")),
        }
    }
    answer(
        what,
        Verdict::Pass,
        format!("by the server's rules it may log in, connect, and read {count} tables of the runbook"),
    )
}

/// Has amcheck look at the relations, or at everything: structure, and every row of each
/// table in each of its indexes.
async fn sound(
    server: &PostgresServer,
    database: &str,
    relations: &[String],
    what: &str,
    deadline: Duration,
) -> Checked {
    let options = AmcheckOptions {
        relations: (!relations.is_empty()).then(|| relations.to_vec()),
        heap_all_indexed: true,
        // Would lock out the users who have just got their service back.
        parent_check: false,
        borrow_pageinspect: true,
        deadline,
        workers: 2,
    };
    let report = match check_database(server, database, &options).await {
        Ok(report) => report,
        Err(e) => return answer(what, Verdict::CouldNotVerify, e.to_string()),
    };
    if let Some(first) = report.findings.first() {
        let found = format!(
            "{} findings, the first in {}: {}",
            report.findings.len(),
            first.relation,
            first.message
        );
        return answer(what, Verdict::Fail, found);
    }
    // Kinds of index that amcheck cannot judge on any server (GIN, GiST …) are told, and are
    // no reason to doubt; what it could have judged and did not is.
    let (beyond, missed): (Vec<_>, Vec<_>) = report
        .not_examined
        .iter()
        .partition(|(_, why)| why.starts_with("amcheck has no check"));
    if let Some((name, why)) = missed.first() {
        let found = format!("{} relations were not examined, as {name}: {why}", missed.len());
        return answer(what, Verdict::CouldNotVerify, found);
    }
    if report.examined == 0 {
        return answer(what, Verdict::CouldNotVerify, "no relation was examined");
    }
    let mut found = format!("amcheck: {}", report.examined_words());
    if !beyond.is_empty() {
        found += &format!(", {} are of kinds it cannot check", beyond.len());
    }
    answer(what, Verdict::Pass, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pass_and_nothing_else_is_a_pass() {
        use Verdict::{CouldNotVerify, Fail, NotConfigured, Pass};
        for (verdicts, expected) in [
            (vec![], CouldNotVerify),
            (vec![NotConfigured], CouldNotVerify),
            (vec![Pass], Pass),
            (vec![Pass, NotConfigured], Pass),
            (vec![Pass, CouldNotVerify], CouldNotVerify),
            (vec![Pass, CouldNotVerify, Fail], Fail),
            (vec![Fail], Fail),
        ] {
            let checks: Vec<Checked> = verdicts.iter().map(|v| answer("x", *v, "y")).collect();
            assert_eq!(overall(&checks), expected, "{verdicts:?}");
        }
    }
}
