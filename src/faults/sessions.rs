//! Connection slots held by an ordinary role.
//!
//! A helper that is not tied to drctl's life holds them: it ends when its time is over, and
//! removes the role that it used. The role has no rights but to connect, and on the one table
//! of a lock.

use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;

use super::server::{asking, session};
use crate::error::{Error, Kind, Result};
use crate::postgres::{Client, quote_ident, quote_literal, quote_qualified, sqlstate};
use crate::system::{PostgresServer, System};
use crate::workload::WorkloadError;

/// The helper's program.
const HOLD: &str = include_str!("sessions.sh");
/// Between two counts.
const LOOK: Duration = Duration::from_millis(200);
/// So many looks in turn must find it full: a session of the application that ends leaves a
/// gap until the helper looks again.
const FULL: u32 = 8;

/// What the sessions do that hold the slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// Idle, and opened again whenever one ends.
    Again,
    /// Idle: an application that has lost its connections.
    Idle,
    /// Idle in a transaction.
    InTransaction,
    /// Idle, and superusers hold the reserved slots too.
    Reserved,
    /// A statement that runs.
    Busy,
    /// All wait for a table that one has locked and forgotten.
    PileUp {
        /// Table, qualified.
        table: String,
    },
    /// All wait behind one that wants to lock a table, and that waits for a reader.
    Queue {
        /// Table, qualified.
        table: String,
    },
}

impl How {
    fn word(&self) -> &'static str {
        match self {
            Self::Again => "again",
            Self::Idle => "idle",
            Self::InTransaction => "in-transaction",
            Self::Reserved => "reserved",
            Self::Busy => "busy",
            Self::PileUp { .. } => "pile-up",
            Self::Queue { .. } => "queue",
        }
    }

    fn table(&self) -> Option<&str> {
        match self {
            Self::PileUp { table } | Self::Queue { table } => Some(table),
            _ => None,
        }
    }
}

/// Sessions that were worked out and not begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sessions {
    /// The role that is made for it.
    pub role: String,
    /// The database.
    pub database: String,
    /// What they do.
    pub how: How,
    /// How long they last.
    pub ttl: Duration,
}

/// Works out the sessions of fault `id` in `database`; the server must be sound.
///
/// # Errors
/// [`Kind::Refused`] when it is not, or there is no such database.
pub async fn prepare(
    server: &PostgresServer,
    database: &str,
    how: How,
    ttl: Duration,
    id: &str,
) -> Result<Sessions> {
    drop(session(server, database).await?);
    // Short enough for an identifier (63 bytes), and its end tells the fault.
    let role = format!("drctl_fault_{}", id.replace(['-', '.'], "_"));
    Ok(Sessions {
        role: role.chars().take(60).collect(),
        database: database.to_owned(),
        how,
        ttl,
    })
}

impl Sessions {
    /// Opens them and waits until no slot is left.
    ///
    /// # Errors
    /// The server's or the engine's trouble; slots that stay free.
    pub async fn inject(&self, system: &System, server: &PostgresServer, id: &str) -> Result<String> {
        let client = session(server, &self.database).await?;
        let password = random_password()?;
        self.create_role(server, &client, &password).await?;
        let seconds = self.ttl.as_secs().to_string();
        let table = self.how.table().map(quote_qualified).unwrap_or_default();
        let mut spec = server.client_helper(
            system.deployment(),
            id,
            "fault-sessions",
            &["sh", "-c", HOLD, "drctl", self.how.word(), &seconds, &table],
        );
        spec.env
            .retain(|(name, _)| name != "PGUSER" && name != "PGDATABASE");
        spec.env.extend([
            ("PGUSER".into(), self.role.clone()),
            ("PGDATABASE".into(), self.database.clone()),
            ("PGAPPNAME".into(), "drctl-fault".into()),
            ("ADMIN_USER".into(), server.admin.user.clone()),
        ]);
        let admin = std::mem::take(&mut spec.secrets)
            .into_iter()
            .next()
            .map_or_else(|| SecretString::from(String::new()), |(_, p)| p);
        spec.secrets = vec![
            ("PGPASSWORD".into(), SecretString::from(password)),
            ("ADMIN_PASSWORD".into(), admin),
        ];
        // A little more than the script's own end: this one leaves the role behind.
        spec.detached = Some(self.ttl + Duration::from_secs(60));
        system.docker.launch_helper(&spec).await?;
        // Its slot would be free again as soon as it ends, and nobody would take it.
        drop(client);
        if self.how == How::Reserved {
            wait_locked(server).await?;
            return Ok(format!(
                "sessions of {} and of superusers hold every slot",
                self.role
            ));
        }
        let held = self.wait_full(server).await?;
        if self.how != How::Again {
            session_soon(server, &self.database)
                .await?
                .execute(&format!("alter role {} nologin", quote_ident(&self.role)))
                .await
                .map_err(asking(server, "the end of the filling"))?;
        }
        Ok(format!("{held} sessions of {} hold what was free", self.role))
    }

    async fn create_role(&self, server: &PostgresServer, client: &Client, password: &str) -> Result<()> {
        let role = quote_ident(&self.role);
        let until = Timestamp::now()
            .checked_add(self.ttl)
            .map_err(|e| Error::new(Kind::Usage, "the time to live is out of range").because(&e))?;
        // The statement holds a password: it stays out of the server's log.
        client
            .execute(&format!(
                "set log_statement = 'none'; set log_min_duration_statement = -1; \
                 set log_min_error_statement = 'panic'; \
                 create role {role} login password {} valid until {}",
                quote_literal(password),
                quote_literal(&until.to_string())
            ))
            .await
            .map_err(asking(server, "the creation of the fault's role"))?;
        let mut grants = Vec::new();
        if !client
            .rows("select has_database_privilege('public', current_database(), 'connect')")
            .await
            .is_ok_and(|rows| rows.first().is_some_and(|r| r.is_true(0)))
        {
            grants.push(format!(
                "grant connect on database {} to {role}",
                quote_ident(&self.database)
            ));
        }
        if let Some(table) = self.how.table() {
            let schema = table.split_once('.').map_or("public", |(schema, _)| schema);
            grants.push(format!("grant usage on schema {} to {role}", quote_ident(schema)));
            // A lock that excludes readers needs the right to change something.
            grants.push(format!(
                "grant select, update on {} to {role}",
                quote_qualified(table)
            ));
        }
        for grant in grants {
            client
                .execute(&grant)
                .await
                .map_err(asking(server, "the grant to the fault's role"))?;
        }
        Ok(())
    }

    /// Until all slots but the administrators' are taken: the last one was refused. How many
    /// the fault holds. Each look is a session of its own, which takes a reserved slot.
    async fn wait_full(&self, server: &PostgresServer) -> Result<i64> {
        let end = tokio::time::Instant::now() + Duration::from_secs(60);
        let mut full = 0;
        loop {
            // Those who are about to be turned away take a slot for a moment, a reserved one too.
            let rows = session_soon(server, &self.database)
                .await?
                .rows(&format!(
                    "select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int \
                     - coalesce(current_setting('reserved_connections', true)::int, 0) - count(*), count(*) filter (where usename = {}) \
                     from pg_stat_activity where backend_type = 'client backend' and application_name <> 'drctl'",
                    quote_literal(&self.role)
                ))
                .await
                .map_err(asking(server, "the count of sessions"))?;
            let (free, held) = rows.first().map_or((1, 0), |r| {
                (r.number::<i64>(0).unwrap_or(1), r.number::<i64>(1).unwrap_or(0))
            });
            full = if free <= 0 && held > 0 { full + 1 } else { 0 };
            if full >= FULL {
                return Ok(held);
            }
            if tokio::time::Instant::now() >= end {
                return Err(Error::new(
                    Kind::VerifyFailed,
                    format!(
                        "{free} connection slots of {} are still free after 60 s; {held} are held",
                        server.service
                    ),
                )
                .next("drctl drill heal"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Until a superuser is turned away too, for longer than the helper goes on filling.
async fn wait_locked(server: &PostgresServer) -> Result<()> {
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    let mut refused = 0;
    while refused < FULL * 3 {
        let locked = server
            .connect()
            .await
            .is_err_and(|e| e.is(sqlstate::TOO_MANY_CONNECTIONS));
        refused = if locked { refused + 1 } else { 0 };
        if tokio::time::Instant::now() >= end {
            return Err(Error::new(
                Kind::VerifyFailed,
                format!("superusers still get into {} after 60 s", server.service),
            )
            .next("drctl drill heal"));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Ends the sessions and removes the role. `false` when neither was there any more.
///
/// # Errors
/// The engine's trouble; a role that cannot be dropped.
pub async fn end(
    system: &System,
    server: &PostgresServer,
    database: Option<&str>,
    id: &str,
    role: &str,
) -> Result<bool> {
    let helpers = system.docker.list(&system.labels(id)).await?;
    for (container, _) in &helpers {
        match system.docker.remove(container).await {
            Ok(()) | Err(WorkloadError::NotFound { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let client = session_soon(server, database.unwrap_or(&server.admin.database)).await?;
    let exists = client
        .value(&format!(
            "select 1 from pg_roles where rolname = {}",
            quote_literal(role)
        ))
        .await
        .map_err(asking(server, "the search for the fault's role"))?
        .is_some();
    if exists {
        let quoted = quote_ident(role);
        let told = client
            .execute(&format!(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = {}",
                quote_literal(role)
            ))
            .await;
        told.map_err(asking(server, "the end of the fault's sessions"))?;
        // A grant on a database or a table is a dependency that only that database's owner
        // list knows; dropping what the role was granted comes first.
        client
            .execute(&format!("drop owned by {quoted}"))
            .await
            .map_err(asking(server, "the removal of the fault's grants"))?;
        client
            .execute(&format!("drop role if exists {quoted}"))
            .await
            .map_err(asking(server, "the removal of the fault's role"))?;
    }
    Ok(exists || !helpers.is_empty())
}

/// A session as soon as the slots of those that were just ended are free.
async fn session_soon(server: &PostgresServer, database: &str) -> Result<Client> {
    let spec = server.admin.to_database(database).writable();
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    while tokio::time::Instant::now() < end
        && server
            .connect_to(&spec)
            .await
            .is_err_and(|e| e.is(sqlstate::TOO_MANY_CONNECTIONS))
    {
        tokio::time::sleep(LOOK).await;
    }
    session(server, database).await
}

fn random_password() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0_u8; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(|e| Error::new(Kind::Internal, "/dev/urandom cannot be read").because(&e))?;
    Ok(bytes.iter().fold(String::new(), |mut text, b| {
        use std::fmt::Write;
        let _ = write!(text, "{b:02x}");
        text
    }))
}
