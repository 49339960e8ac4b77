//! A PostgreSQL server that does not answer, and what only looks like it.
//!
//! What keeps it from starting is done to its files, as `db_corruption` does it; what happens to
//! a running one is a list of small effects, as in the other families.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::db_corruption::{self, After, Damage, Halt};
use super::harm::{Harm, Prepared as Effects, victim};
use super::mend::Mend;
use super::server::{asking, session};
use super::{Fault, Prepared, Request, connection_exhaustion, network_partition};
use crate::error::{Error, Kind, Result};
use crate::plan::Limits;
use crate::postgres::{quote_ident, quote_literal, sqlstate};
use crate::probe::connection::{Connection, question};
use crate::runbook::ServiceKind;
use crate::system::System;

/// Every fault of this family.
pub const FAULTS: &[Fault] = &[
    fault(
        "db-down/stopped",
        "the container is stopped",
        "status exited, exit code 0",
    ),
    fault(
        "db-down/killed",
        "the main process is killed, so that the next start has to replay the log",
        "status exited, exit code 137 without OOMKilled, pg_control `in production`",
    ),
    fault(
        "db-down/frozen",
        "the main process is stopped by a signal",
        "status running, process state T; connections are accepted and not answered",
    ),
    fault(
        "db-down/paused",
        "the container is paused",
        "status paused; connections hang",
    ),
    fault(
        "db-down/recovering",
        "the server is killed and replays much of its log, with little processor time",
        "57P03 `the database system is starting up`, a process `startup recovering …`",
    ),
    fault(
        "db-down/bad-config",
        "ALTER SYSTEM has set wal_level to what does not go with the other settings",
        "FATAL `WAL streaming (max_wal_senders > 0) requires wal_level …`, exit 1, a crash loop",
    ),
    fault(
        "db-down/too-large",
        "ALTER SYSTEM has asked for more shared memory than the machine has",
        "FATAL `could not map anonymous shared memory`, exit 1, a crash loop; `postgres -C` accepts it",
    ),
    fault(
        "db-down/bad-hba",
        "a rule of access that cannot be read",
        "FATAL `could not load pg_hba.conf`, exit 1, a crash loop",
    ),
    fault(
        "db-down/wrong-port",
        "the server listens on another port",
        "status running and ready; the usual port refuses",
    ),
    fault(
        "db-down/wrong-listen",
        "the server listens inside its container only",
        "status running, healthy and ready; its address refuses",
    ),
    fault(
        "db-down/wrong-owner",
        "the databases' directory belongs to root",
        "pg_isready accepts, every connection is FATAL `Permission denied`",
    ),
    fault(
        "db-down/wrong-mode",
        "the directory of the control file may not be entered",
        "`could not open file \"global/pg_control\": Permission denied`, which looks like a lost control file",
    ),
    fault(
        "db-down/stale-lock",
        "an empty postmaster.pid is left, as by a machine that lost its power",
        "FATAL `lock file \"postmaster.pid\" is empty`, exit 1, a crash loop",
    ),
    fault(
        "db-down/standby-signal",
        "a standby.signal is left in the data directory",
        "the server runs and reads, every write is 25006",
    ),
    fault(
        "db-down/recovery-signal",
        "a recovery.signal is left in the data directory",
        "FATAL `must specify restore_command when standby mode is not enabled`, exit 1, a crash loop",
    ),
    fault(
        "db-down/missing-hba",
        "pg_hba.conf is gone",
        "FATAL `could not load pg_hba.conf`, exit 1, a crash loop; `postgres -C` accepts the rest; drctl says what to type",
    ),
    fault(
        "db-down/missing-directory",
        "pg_notify is gone, as after a copy that left empty directories out",
        "FATAL `could not open directory \"pg_notify\"`, exit 1, a crash loop",
    ),
    fault(
        "db-down/missing-version",
        "PG_VERSION is gone",
        "the image takes the directory for an empty one and cannot initialise it, a crash loop",
    ),
    fault(
        "db-down/slots-full",
        "look-alike: idle sessions hold every ordinary connection",
        "53300 for the application; the administrator gets in",
    ),
    fault(
        "db-down/detached",
        "look-alike: the container is in no network",
        "status running and healthy, no address",
    ),
    fault(
        "db-down/wrong-password",
        "look-alike: the password of the administrator is no longer valid",
        "28P01 for the administrator; the application works",
    ),
];

const fn fault(name: &'static str, summary: &'static str, leaves: &'static str) -> Fault {
    Fault {
        name,
        summary,
        leaves,
        live: false,
    }
}

/// Log that a start has to replay, in MiB.
const LOG_TO_REPLAY: u32 = 384;
/// Microseconds of processor time in 100 ms while it does.
const SLOW: i64 = 6_000;
/// How long the server may take to come to the state that a fault wants.
const SETTLE: Duration = Duration::from_secs(60);

/// An effect on a PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerHarm {
    /// Log is written that a start after a crash has to read again.
    WriteLog {
        /// Service.
        service: String,
    },
    /// The server is started, and is left replaying.
    StartReplay {
        /// Service.
        service: String,
    },
    /// The administrator's password is no longer valid.
    ExpirePassword {
        /// Service.
        service: String,
        /// Role.
        role: String,
    },
}

/// How an effect on a PostgreSQL server is put right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerMend {
    /// The role's password is valid again. Done over the server's socket, which asks for none.
    #[serde(rename_all = "kebab-case")]
    PasswordValid {
        /// Service.
        service: String,
        /// Role.
        role: String,
        /// Until when it was valid, as PostgreSQL reads it; none: for ever.
        #[serde(default)]
        until: Option<String>,
    },
}

/// Works out what `variant` would hit; nothing is changed.
///
/// # Errors
/// A server that is not sound.
pub async fn prepare(
    system: &System,
    variant: &str,
    service: Option<&str>,
    request: &Request,
    id: &str,
) -> Result<Option<Prepared>> {
    let name = system.postgres_service(service)?.to_string();
    let of = |e: Option<Effects>| e.map(Prepared::Services);
    match variant {
        "slots-full" => {
            let effects = connection_exhaustion::prepare(system, "idle", Some(&name), request, id).await?;
            return Ok(of(effects));
        }
        "detached" => {
            let effects = network_partition::prepare(system, "detached", Some(&name), request).await?;
            return Ok(of(effects));
        }
        _ => {}
    }
    if let Some((target, damage, halt, after)) = files(variant) {
        let server = system.postgres(&name).await?;
        drop(session(&server, &server.admin.database).await?);
        let prepared = db_corruption::Prepared::of_files(&server, target, damage, (halt, after), id);
        return Ok(Some(Prepared::Data(Box::new(server), Box::new(prepared))));
    }
    effects(system, variant, &name).await.map(of)
}

/// The faults that are done to files: what is hit, how, and in which state the server is before
/// and after.
fn files(variant: &str) -> Option<(&'static str, Damage, Halt, After)> {
    let line = |line: &str| Damage::Config {
        path: "postgresql.auto.conf".into(),
        line: line.into(),
    };
    let auto = "postgresql.auto.conf";
    Some(match variant {
        "bad-config" => (auto, line("wal_level = 'minimal'"), Halt::Clean, After::Fails),
        "too-large" => (
            auto,
            line("min_dynamic_shared_memory = '8TB'"),
            Halt::Clean,
            After::Fails,
        ),
        "wrong-port" => (auto, line("port = 5433"), Halt::Clean, After::Deaf),
        "wrong-listen" => (
            auto,
            line("listen_addresses = 'localhost'"),
            Halt::Clean,
            After::Deaf,
        ),
        "bad-hba" => (
            "pg_hba.conf",
            Damage::Config {
                path: "pg_hba.conf".into(),
                line: "hosst all all 10.0.0.0/8 scram-sha-256".into(),
            },
            Halt::Clean,
            After::Fails,
        ),
        "wrong-owner" => (
            "the directory base",
            Damage::Owner { path: "base".into() },
            Halt::Running,
            After::Stays,
        ),
        "wrong-mode" => (
            "the directory global",
            Damage::Mode {
                path: "global".into(),
                mode: "600".into(),
            },
            Halt::Clean,
            After::Fails,
        ),
        "stale-lock" => (
            "postmaster.pid",
            Damage::Plant {
                path: "postmaster.pid".into(),
            },
            Halt::Clean,
            After::Fails,
        ),
        "recovery-signal" => (
            "recovery.signal",
            Damage::Plant {
                path: "recovery.signal".into(),
            },
            Halt::Clean,
            After::Fails,
        ),
        "missing-hba" => (
            "pg_hba.conf",
            Damage::Remove {
                path: "./pg_hba.conf".into(),
            },
            Halt::Clean,
            After::Fails,
        ),
        // The dot: what is removed needs a directory around it.
        "missing-directory" => (
            "the directory pg_notify",
            Damage::Remove {
                path: "./pg_notify".into(),
            },
            Halt::Clean,
            After::Fails,
        ),
        "missing-version" => (
            "PG_VERSION",
            Damage::Remove {
                path: "./PG_VERSION".into(),
            },
            Halt::Clean,
            After::Fails,
        ),
        "standby-signal" => (
            "standby.signal",
            Damage::Plant {
                path: "standby.signal".into(),
            },
            Halt::Clean,
            After::Serves,
        ),
        _ => return None,
    })
}

/// The faults of a running server.
async fn effects(system: &System, variant: &str, service: &str) -> Result<Option<Effects>> {
    let (service, info) = victim(system, Some(service), |s| {
        matches!(s.kind, ServiceKind::Postgres(_))
    })
    .await?;
    let container = info.name.clone();
    let run = Mend::Run {
        container: container.clone(),
    };
    let signal = |signal: &str| Harm::Signal {
        container: container.clone(),
        signal: signal.into(),
    };
    let named = || service.clone();
    let (harms, mends) = match variant {
        "stopped" => (
            vec![Harm::Stop {
                container: container.clone(),
            }],
            vec![run],
        ),
        "killed" => (vec![signal("SIGKILL")], vec![run]),
        "frozen" => (vec![signal("SIGSTOP")], vec![run]),
        "paused" => (
            vec![Harm::Pause {
                container: container.clone(),
            }],
            vec![run],
        ),
        "recovering" => {
            let limits = |quota| Limits {
                cpu_quota: Some(quota),
                ..Limits::default()
            };
            if info.nano_cpus > 0 {
                return Err(refused(format!(
                    "container {container} has a processor limit already"
                )));
            }
            // 0 would leave the quota as it is.
            let before = if info.cpu_quota > 0 { info.cpu_quota } else { -1 };
            let harms = vec![
                Harm::Server(ServerHarm::WriteLog { service: named() }),
                signal("SIGKILL"),
                Harm::Limits {
                    container: container.clone(),
                    limits: limits(SLOW),
                },
                Harm::Server(ServerHarm::StartReplay { service: named() }),
            ];
            let back = Mend::Limits {
                container: container.clone(),
                limits: limits(before),
            };
            (harms, vec![back, run])
        }
        "wrong-password" => {
            let server = system.postgres(&service).await?;
            let role = server.config.admin_user.to_string();
            // In JSON a time does not depend on the session's DateStyle.
            let sql = format!(
                "select pg_catalog.to_json(rolvaliduntil) #>> '{{}}' from pg_catalog.pg_authid where rolname = {}",
                quote_literal(&role)
            );
            let until = session(&server, &server.admin.database)
                .await?
                .value(&sql)
                .await
                .map_err(asking(&server, "the password's validity"))?;
            let harm = ServerHarm::ExpirePassword {
                service: named(),
                role: role.clone(),
            };
            let mend = ServerMend::PasswordValid {
                service: named(),
                role,
                until,
            };
            (vec![Harm::Server(harm)], vec![Mend::Server(mend)])
        }
        _ => return Ok(None),
    };
    Ok(Some(Effects {
        target: format!("container {container} of service {service}"),
        service,
        container,
        harms,
        mends,
    }))
}

fn refused(message: String) -> Error {
    Error::new(Kind::Refused, message).untouched("everything")
}

/// Does one effect; says what was seen.
///
/// # Errors
/// The server's or the engine's trouble.
pub async fn apply(system: &System, harm: &ServerHarm) -> Result<String> {
    match harm {
        ServerHarm::WriteLog { service } => write_log(system, service).await,
        ServerHarm::StartReplay { service } => start_replay(system, service).await,
        ServerHarm::ExpirePassword { service, role } => {
            let server = system.postgres(service).await?;
            session(&server, &server.admin.database)
                .await?
                .execute(&format!("alter role {} valid until 'epoch'", quote_ident(role)))
                .await
                .map_err(asking(&server, "the change of the password's validity"))?;
            Ok(format!("the password of {role} is no longer valid"))
        }
    }
}

/// Messages that nobody reads fill the log and nothing else. In pieces: one statement has a
/// deadline.
async fn write_log(system: &System, service: &str) -> Result<String> {
    let server = system.postgres(service).await?;
    let client = session(&server, &server.admin.database).await?;
    let told = asking(&server, "the writing of log");
    let write = async {
        // From here on nothing of it is behind the next start's back.
        client.execute("checkpoint").await?;
        for _ in 0..LOG_TO_REPLAY / 16 {
            let sql = format!(
                "select pg_catalog.pg_logical_emit_message(false, 'drctl', {}) from pg_catalog.generate_series(1, 16)",
                "pg_catalog.repeat('x', 1048576)"
            );
            client.execute(&sql).await?;
        }
        Ok(())
    };
    write.await.map_err(told)?;
    Ok(format!("{LOG_TO_REPLAY} MiB of log were written"))
}

async fn start_replay(system: &System, service: &str) -> Result<String> {
    system
        .docker
        .start(&system.container(service).await?.name)
        .await?;
    let end = tokio::time::Instant::now() + SETTLE;
    loop {
        let server = system.postgres(service).await?;
        match question(server.connect().await).await.0 {
            Connection::Refused { sqlstate, message } if sqlstate == sqlstate::CANNOT_CONNECT_NOW => {
                return Ok(message);
            }
            Connection::Open { .. } => {
                return Err(Error::new(
                    Kind::VerifyFailed,
                    format!("{service} had replayed its log before it was looked at: the fault has missed"),
                )
                .next("drctl drill heal"));
            }
            other if tokio::time::Instant::now() >= end => {
                return Err(Error::new(
                    Kind::VerifyFailed,
                    format!("{service} does not begin to replay: {other:?}"),
                ));
            }
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Puts it right; nothing when it was.
///
/// # Errors
/// The engine's trouble, or what `psql` says.
pub async fn put_right(system: &System, mend: &ServerMend) -> Result<Option<String>> {
    let ServerMend::PasswordValid { service, role, until } = mend;
    let server = system.postgres(service).await?;
    if !may_be_expired(service, role, &question(server.connect().await).await.0)? {
        return Ok(None);
    }
    let sql = valid_again(role, until.as_deref());
    let argv = ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-U", role, "-d"];
    let mut argv = argv.to_vec();
    argv.extend([server.admin.database.as_str(), "-c", &sql]);
    let done = system
        .docker
        .exec(
            &server.container.id,
            Some("postgres"),
            &argv,
            Duration::from_secs(20),
        )
        .await?;
    if done.exit_code != 0 {
        return Err(Error::new(
            Kind::Internal,
            format!(
                "the password of {role} could not be made valid again: {}",
                done.stderr.trim()
            ),
        ));
    }
    Ok(Some(format!("the password of {role} is valid again")))
}

/// Whether the password may still be invalid. A server that does not answer does not tell: the fault stays on record, or
/// nobody would ever put it right.
fn may_be_expired(service: &str, role: &str, seen: &Connection) -> Result<bool> {
    let cause = match seen {
        Connection::Open { .. } => return Ok(false),
        Connection::Refused { .. } => return Ok(true),
        Connection::Closed { cause } => cause.as_str(),
        Connection::Silent => "it accepts connections and does not answer",
    };
    Err(Error::new(
        Kind::Unreachable,
        format!(
            "{service} cannot be asked whether the password of {role} is valid: {cause}; the fault stays on record"
        ),
    ))
}

/// The catalogue itself: ALTER ROLE cannot take a date away. It tells the other sessions of the change.
fn valid_again(role: &str, until: Option<&str>) -> String {
    let (ident, literal) = (quote_ident(role), quote_literal(role));
    let until = until.map_or_else(|| "null".to_owned(), quote_literal);
    format!(
        "update pg_catalog.pg_authid set rolvaliduntil = {until} where rolname = {literal}; alter role {ident} login"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_that_lets_us_in_has_no_expired_password() {
        let of = |seen| may_be_expired("db", "postgres", &seen);
        let open = Connection::Open {
            version: 150_013,
            started_at: None,
            in_recovery: false,
        };
        assert!(!of(open).unwrap());
        let refused = Connection::Refused {
            sqlstate: "28P01".into(),
            message: String::new(),
        };
        assert!(of(refused).unwrap());
        let closed = Connection::Closed {
            cause: "connection refused".into(),
        };
        assert!(of(closed).unwrap_err().message.contains("connection refused"));
        assert!(of(Connection::Silent).is_err());
    }

    #[test]
    fn the_date_of_before_comes_back() {
        assert!(valid_again("a", None).contains("rolvaliduntil = null"));
        let until = Some("2027-01-01T00:00:00+00:00");
        assert!(valid_again("a", until).contains("rolvaliduntil = '2027-01-01T00:00:00+00:00' where"));
        // Records of before say nothing of it.
        let mend: ServerMend =
            serde_json::from_str(r#"{"password-valid":{"service":"db","role":"a"}}"#).unwrap();
        let ServerMend::PasswordValid { until, .. } = mend;
        assert_eq!(until, None);
    }
}
