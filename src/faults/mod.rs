//! Faults: real accidents, made on purpose, that the recoveries are proven against.
//!
//! They run only where the runbook says `environment: lab` or `staging`. What is about
//! to be done, and how it is put right, is on disk before it is done; the originals of
//! damaged files stay inside the deployment's own volume; and what a fault holds open
//! ends by itself when its time is over, whether drctl still lives or not.

mod connection_exhaustion;
pub mod db_corruption;
mod db_down;
mod disk_full;
pub mod expiry;
mod harm;
mod load;
mod mend;
mod network_partition;
mod outage;
mod record;
mod redis;
mod redis_failure;
mod redis_files;
mod redis_oom;
mod server;
mod service_crash;
mod service_overload;
mod sessions;
mod stuck_sessions;

use std::time::Duration;

use jiff::Timestamp;

pub use db_corruption::Request;
pub use record::{Heal, Record, Status, all as records};

use crate::error::{Error, Kind, Result};
use crate::event::{Event, SharedReporter};
use crate::incident::{Lock, LockError, StateDir, fresh_id};
use crate::system::{PostgresServer, System};
use db_corruption::{Action, Found};

/// One fault that can be injected.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// `SCENARIO/VARIANT`.
    pub name: &'static str,
    /// What is done, in a few words.
    pub summary: &'static str,
    /// The evidence that it leaves.
    pub leaves: &'static str,
    /// Whether it lasts only as long as something inside its target holds it. Every fault has
    /// a time to live; such a one ends also where no process of drctl is left.
    pub live: bool,
}

/// Every fault, in the order in which they are listed.
pub fn catalogue() -> impl Iterator<Item = &'static Fault> {
    [
        db_corruption::FAULTS,
        db_down::FAULTS,
        connection_exhaustion::FAULTS,
        network_partition::FAULTS,
        redis_oom::FAULTS,
        redis_failure::FAULTS,
        service_crash::FAULTS,
        service_overload::FAULTS,
        stuck_sessions::FAULTS,
        outage::FAULTS,
        // Last: what its look-alikes leave in the log is read for some minutes.
        disk_full::FAULTS,
    ]
    .into_iter()
    .flatten()
}

/// A fault that has been worked out and not begun.
enum Prepared {
    /// Of a PostgreSQL server's data.
    Data(Box<PostgresServer>, Box<db_corruption::Prepared>),
    /// Of running services.
    Services(harm::Prepared),
}

impl Prepared {
    /// What will be hit, for a person.
    fn target(&self) -> &str {
        match self {
            Self::Data(_, p) => &p.target,
            Self::Services(p) => &p.target,
        }
    }

    /// Service and container.
    fn victim(&self) -> (&str, &str) {
        match self {
            Self::Data(server, _) => (&server.service, &server.container.name),
            Self::Services(p) => (&p.service, &p.container),
        }
    }

    fn heal(&self) -> Heal {
        match self {
            Self::Data(_, p) => p.heal.clone(),
            Self::Services(p) => Heal::Mend {
                mends: p.mends.clone(),
            },
        }
    }

    async fn inject(&self, system: &System, request: &Request, id: &str) -> Result<String> {
        match self {
            Self::Data(server, p) => p.inject(system, server, id).await,
            Self::Services(p) => harm::inject(system, p, request).await,
        }
    }
}

/// Where faults are injected and healed.
pub struct Site<'a> {
    /// The deployment.
    pub system: &'a System,
    /// Where the records are.
    pub state: &'a StateDir,
    /// Who is told.
    pub reporter: &'a SharedReporter,
}

/// What happened to one fault in `heal`.
#[derive(Debug, Clone)]
pub struct Healed {
    /// Its record as it is now.
    pub record: Record,
    /// What was found and done, one sentence.
    pub outcome: String,
}

impl Site<'_> {
    fn note(&self, text: String) {
        self.reporter.event(&Event::Note { text });
    }

    fn warn(&self, text: String) {
        self.reporter.event(&Event::Warning { text });
    }

    fn lock(&self, command: &str) -> Result<Lock> {
        let name = format!("drill-{}", self.system.deployment());
        Lock::acquire(self.state, &name, command).map_err(|e| match e {
            LockError::State(e) => Error::new(Kind::Internal, e.to_string()),
            held => Error::new(Kind::Locked, held.to_string()).untouched("everything"),
        })
    }

    /// The fault called `name`.
    ///
    /// # Errors
    /// [`Kind::Refused`] where faults are not allowed, [`Kind::Usage`] for a name that is
    /// none.
    pub fn fault(&self, name: &str) -> Result<&'static Fault> {
        if !self.system.runbook.environment.allows_faults() {
            return Err(Error::new(
                Kind::Refused,
                format!(
                    "{} is a production deployment: faults are never injected there",
                    self.system.deployment()
                ),
            )
            .untouched("everything")
            .next("drctl -r RUNBOOK drill inject …    # a runbook with `environment: lab` or `staging`"));
        }
        catalogue().find(|f| f.name == name).ok_or_else(|| {
            Error::new(Kind::Usage, format!("there is no fault {name:?}"))
                .untouched("everything")
                .next("drctl drill list")
        })
    }

    /// What `name` would hit now; nothing is changed.
    ///
    /// # Errors
    /// As [`Self::inject`].
    pub async fn preview(&self, name: &str, service: Option<&str>, request: &Request) -> Result<String> {
        let fault = self.fault(name)?;
        let prepared = self.prepare(fault, service, request, "preview").await?;
        Ok(prepared.target().to_owned())
    }

    /// Injects a fault and waits until the world is as the fault says.
    ///
    /// # Errors
    /// [`Kind::Refused`] where nothing was changed. After that the record exists, and
    /// `heal` puts right whatever was begun.
    pub async fn inject(&self, name: &str, service: Option<&str>, request: &Request) -> Result<Record> {
        let fault = self.fault(name)?;
        let _lock = self.lock(&format!("drill inject {name}"))?;
        for open in self.records()?.iter().filter(|r| r.status.is_open()) {
            self.warn(format!(
                "{} ({}) has not been healed yet: `drctl drill heal {}`",
                open.fault, open.target, open.id
            ));
        }
        let now = Timestamp::now();
        let id = fresh_id(now, &fault.name.replace('/', "-"));
        let prepared = self.prepare(fault, service, request, &id).await?;
        let (service, container) = prepared.victim();
        let mut record = Record {
            format: record::FORMAT,
            id: id.clone(),
            deployment: self.system.deployment().to_owned(),
            fault: fault.name.to_owned(),
            service: service.to_owned(),
            container: container.to_owned(),
            target: prepared.target().to_owned(),
            heal: prepared.heal(),
            status: Status::Planned,
            note: None,
            planned_at: now,
            injected_at: None,
            ended_at: None,
            expires_at: now.checked_add(request.ttl).ok(),
        };
        record.save(self.state)?;
        expiry::start(self, &record)?;
        self.note(format!("{}: {}", record.fault, record.target));
        match prepared.inject(self.system, request, &id).await {
            Ok(seen) => {
                record.status = Status::Injected;
                record.injected_at = Some(Timestamp::now());
                record.note = (!seen.is_empty()).then_some(seen);
                record.save(self.state)?;
                Ok(record)
            }
            Err(mut e) => {
                record.note = Some(e.to_string());
                // The record as it was is enough to heal by.
                let _ = record.save(self.state);
                if e.untouched.is_none() {
                    e.kind = Kind::FailedChanged;
                }
                e.message = format!(
                    "{} could not be injected into {}: {}",
                    fault.name, record.service, e.message
                );
                Err(e.next(format!("drctl drill heal {id}")))
            }
        }
    }

    /// The records of this deployment, oldest first. Files that cannot be read are told.
    ///
    /// # Errors
    /// A state directory that cannot be read.
    pub fn records(&self) -> Result<Vec<Record>> {
        let (records, unreadable) = record::all(self.state, self.system.deployment())?;
        for text in unreadable {
            self.warn(text);
        }
        Ok(records)
    }

    /// Puts one fault right, or finds that it is gone.
    ///
    /// # Errors
    /// The first thing that failed; the record stays open then.
    pub async fn heal(&self, mut record: Record) -> Result<Healed> {
        let _lock = self.lock(&format!("drill heal {}", record.id))?;
        let (status, outcome) = if let Heal::Mend { mends } = &record.heal {
            let done = mend::mend(self.system, mends).await?;
            if done.is_empty() {
                (Status::Gone, "nothing of it is left".to_owned())
            } else {
                (Status::Healed, done.join("; "))
            }
        } else {
            let server = self.system.postgres(&record.service).await?;
            self.put_right(&server, &record).await?
        };
        record.status = status;
        record.ended_at = Some(Timestamp::now());
        record.note = Some(outcome.clone());
        record.save(self.state)?;
        Ok(Healed { record, outcome })
    }

    async fn put_right(&self, server: &PostgresServer, record: &Record) -> Result<(Status, String)> {
        let system = self.system;
        let gone = |text: String| Ok((Status::Gone, text));
        let healed = |text: String| Ok((Status::Healed, text));
        match &record.heal {
            // Of no PostgreSQL server: `heal` has dealt with it.
            Heal::Mend { .. } => gone("nothing of it is left".into()),
            Heal::Files {
                damage,
                offline,
                reindex,
                ..
            } => {
                let id = &record.id;
                // First a look: a recovered server is not stopped for nothing.
                let before = db_corruption::run_files(system, server, id, Action::State, damage).await?;
                if before == Found::Damaged {
                    if *offline {
                        self.note(format!("stopping {}", server.service));
                        server::stop_anyhow(system, server).await?;
                    }
                    let found = db_corruption::run_files(system, server, id, Action::Restore, damage).await;
                    if *offline || !server.container.is_running() {
                        server::start_and_serve(system, server).await?;
                    }
                    let found = found?;
                    if let Some(table) = reindex {
                        // After a server was recovered in some other way this does no harm.
                        let now = self.system.postgres(&record.service).await?;
                        db_corruption::reindex_table(system, &now, table).await?;
                    }
                    db_corruption::forget(system, server, id).await?;
                    return match found {
                        Found::Damaged => healed("the original is back in its place".into()),
                        Found::Intact => gone("nothing was damaged".into()),
                        Found::Replaced(why) => gone(format!("not put back, {why}")),
                    };
                }
                db_corruption::forget(system, server, id).await?;
                if *offline && record.status == Status::Planned {
                    // Killed in the middle. The engine may still be about to carry out the
                    // stop that was asked of it: this one waits for that.
                    server::stop_anyhow(system, server).await?;
                    server::start_and_serve(system, server).await?;
                } else if !server.container.is_running() {
                    // Stopped for a fault that was never done.
                    server::start_and_serve(system, server).await?;
                }
                match before {
                    Found::Replaced(_) if record.status == Status::Planned => {
                        gone("it had not begun, or recovery has dealt with it; nothing was put back".into())
                    }
                    Found::Replaced(why) => gone(format!(
                        "recovery has dealt with it ({why}); nothing was put back"
                    )),
                    _ => gone("nothing was damaged any more".into()),
                }
            }
            Heal::Reindex {
                database,
                index,
                filenode,
            } => {
                if db_corruption::reindex(system, server, database, index, filenode).await? {
                    healed(format!("index {index} was built again"))
                } else {
                    gone(format!("index {index} has been built again since"))
                }
            }
            Heal::Start => {
                if server.container.is_running() {
                    gone(format!("container {} runs", server.container.name))
                } else {
                    server::start_and_serve(system, server).await?;
                    healed(format!("container {} was started", server.container.name))
                }
            }
            Heal::DropTable { table } => {
                if db_corruption::drop_table(system, server, table).await? {
                    healed(format!("table {} was dropped", table.table))
                } else {
                    gone(format!("there is no table {}", table.table))
                }
            }
            Heal::FreeSharedMemory { file } => {
                if db_corruption::free(system, server, file).await? {
                    healed("the shared memory is free".into())
                } else {
                    gone("the shared memory was free".into())
                }
            }
            Heal::EndSessions { role } => {
                if sessions::end(system, server, None, &record.id, role).await? {
                    healed("the sessions are ended".into())
                } else {
                    gone("the sessions had ended".into())
                }
            }
        }
    }

    /// Gives a fault up: what it left stays as it is, its saved originals are removed.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn forget(&self, mut record: Record) -> Result<Healed> {
        let _lock = self.lock(&format!("drill heal {} --forget", record.id))?;
        let outcome = match &record.heal {
            Heal::Files { .. } => {
                let server = self.system.postgres(&record.service).await?;
                db_corruption::forget(self.system, &server, &record.id).await?;
                "its saved originals are removed; the damage, if it is still there, stays"
            }
            _ => "nothing of it was saved",
        };
        if record.status.is_open() {
            record.status = Status::Forgotten;
            record.ended_at = Some(Timestamp::now());
            record.note = Some(outcome.to_owned());
            record.save(self.state)?;
        }
        Ok(Healed {
            record,
            outcome: outcome.to_owned(),
        })
    }

    async fn prepare(
        &self,
        fault: &Fault,
        service: Option<&str>,
        request: &Request,
        id: &str,
    ) -> Result<Prepared> {
        let (family, variant) = fault.name.split_once('/').unwrap_or((fault.name, ""));
        let prepared = match family {
            "db-corruption" => {
                let name = self.system.postgres_service(service)?;
                let server = self.system.postgres(name.as_str()).await?;
                db_corruption::prepare(&server, variant, request, id)
                    .await?
                    .map(|p| Prepared::Data(Box::new(server), Box::new(p)))
            }
            "db-down" => db_down::prepare(self.system, variant, service, request, id).await?,
            "service-overload" => service_overload::prepare(self.system, variant, service, request, id)
                .await?
                .map(Prepared::Services),
            "disk-full" => disk_full::prepare(self.system, variant, service, request, id)
                .await?
                .map(Prepared::Services),
            "outage" => outage::prepare(self.system, variant, service)
                .await?
                .map(Prepared::Services),
            "network-partition" => network_partition::prepare(self.system, variant, service, request)
                .await?
                .map(Prepared::Services),
            "service-crash" => service_crash::prepare(self.system, variant, service, id)
                .await?
                .map(Prepared::Services),
            "redis-oom" => redis_oom::prepare(self.system, variant, service, request, id)
                .await?
                .map(Prepared::Services),
            "redis-failure" => redis_failure::prepare(self.system, variant, service, request, id)
                .await?
                .map(Prepared::Services),
            "stuck-sessions" => stuck_sessions::prepare(self.system, variant, service, request, id)
                .await?
                .map(Prepared::Services),
            "connection-exhaustion" => {
                connection_exhaustion::prepare(self.system, variant, service, request, id)
                    .await?
                    .map(Prepared::Services)
            }
            _ => None,
        };
        prepared.ok_or_else(|| Error::new(Kind::Internal, format!("fault {} has no procedure", fault.name)))
    }
}

/// How long a fault lasts when nothing else is said.
pub const DEFAULT_TTL: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_of_one_form() {
        let names: BTreeSet<_> = catalogue().map(|f| f.name).collect();
        assert_eq!(names.len(), catalogue().count());
        for name in names {
            let (scenario, variant) = name.split_once('/').unwrap();
            let good = |t: &str| !t.is_empty() && t.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            assert!(good(scenario) && good(variant), "{name}");
        }
    }
}
