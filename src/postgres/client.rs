//! A connection in which nothing waits for ever and every failure is a fact.
//!
//! Everything but the preparation of a foreign query goes through the simple query protocol: values come as text and the
//! driver never looks up types, so it works on a database whose catalogue is damaged.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// Where and as whom to connect.
#[derive(Debug, Clone)]
pub struct ConnectSpec {
    /// Address or name.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Directory with a socket `.s.PGSQL.PORT` that leads there, where TCP does not.
    pub socket_dir: Option<PathBuf>,
    /// Role.
    pub user: String,
    /// Password, when the server asks for one.
    pub password: Option<SecretString>,
    /// Database.
    pub database: String,
    /// The session may not write: what probes use.
    pub read_only: bool,
    /// Bounds the connection, and is the default for each statement.
    pub deadline: Duration,
}

impl ConnectSpec {
    /// The same, to another database.
    #[must_use]
    pub fn to_database(&self, database: &str) -> Self {
        Self {
            database: database.to_owned(),
            ..self.clone()
        }
    }

    /// The same, with writing allowed.
    #[must_use]
    pub fn writable(&self) -> Self {
        Self {
            read_only: false,
            ..self.clone()
        }
    }
}

/// One row of text values; SQL NULL is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row(Vec<Option<String>>);

impl Row {
    /// The column's text; empty for NULL or a column that is not there.
    #[must_use]
    pub fn text(&self, column: usize) -> &str {
        self.opt(column).unwrap_or_default()
    }

    /// The column's text, `None` for NULL.
    #[must_use]
    pub fn opt(&self, column: usize) -> Option<&str> {
        self.0.get(column)?.as_deref()
    }

    /// The column as a number, `None` for NULL and for what is no number.
    #[must_use]
    pub fn number<T: std::str::FromStr>(&self, column: usize) -> Option<T> {
        self.opt(column)?.parse().ok()
    }

    /// True for PostgreSQL's `t`.
    #[must_use]
    pub fn is_true(&self, column: usize) -> bool {
        self.opt(column) == Some("t")
    }
}

/// Why a connection or a statement failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PgError {
    /// The server answered with an error.
    #[error("{severity} {sqlstate}: {message}{}", detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Server {
        /// ERROR, FATAL or PANIC.
        severity: String,
        /// Five characters (PostgreSQL manual, appendix A).
        sqlstate: String,
        /// Primary message.
        message: String,
        /// DETAIL line.
        detail: Option<String>,
    },
    /// Nothing accepted the connection.
    #[error("no connection to {address}: {cause}")]
    NoConnection {
        /// `host:port`.
        address: String,
        /// The system's words.
        cause: String,
    },
    /// The connection was accepted and then nothing came.
    #[error("{address} accepted the connection and did not answer {what} within {}", crate::event::seconds(*deadline))]
    Timeout {
        /// `host:port`.
        address: String,
        /// What was asked.
        what: String,
        /// How long we waited.
        deadline: Duration,
    },
    /// An answer without end, or nearly: it was not read further.
    #[error(
        "{address} answers {what} with more than {}",
        crate::event::bytes(LONGEST_ANSWER)
    )]
    TooLong {
        /// `host:port`.
        address: String,
        /// What was asked.
        what: String,
    },
    /// The connection broke.
    #[error("the connection to {address} broke: {cause}")]
    Broken {
        /// `host:port`.
        address: String,
        /// The driver's words.
        cause: String,
    },
}

impl PgError {
    /// The SQLSTATE, when the server said one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server { sqlstate, .. } => Some(sqlstate),
            _ => None,
        }
    }

    /// True when the server's SQLSTATE is `code`.
    #[must_use]
    pub fn is(&self, code: &str) -> bool {
        self.sqlstate() == Some(code)
    }
}

/// Why rows could not be copied from one session to another, and whose fault it is: what cannot be
/// read is damage, what cannot be written is not.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The session that is read.
    #[error(transparent)]
    Source(PgError),
    /// The session that is written.
    #[error(transparent)]
    Target(PgError),
}

/// Bytes of one answer, at most: drctl's own questions have short ones, a runbook's validation
/// query may turn out not to.
const LONGEST_ANSWER: u64 = 64 << 20;
/// What a row takes beside its values, about.
const ROW: u64 = 48;

/// Under which name a query of the runbook is prepared.
const FOREIGN_QUERY: &str = "drctl_question";

/// An open session.
#[derive(Debug)]
pub struct Client {
    inner: tokio_postgres::Client,
    address: String,
    deadline: Duration,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Client {
    /// Connects and sets the session up: `application_name` is drctl, statements that
    /// outlive the deadline are ended by the server too (a client-side time-out alone
    /// leaves them running).
    ///
    /// # Errors
    /// [`PgError`]; a server that accepts and never answers is a `Timeout`.
    pub async fn connect(spec: &ConnectSpec) -> Result<Self, PgError> {
        let address = format!("{}:{}", spec.host, spec.port);
        if spec.host.is_empty() && spec.socket_dir.is_none() {
            return Err(PgError::NoConnection {
                address,
                cause: "the container is in no network that leads here".into(),
            });
        }
        let mut config = tokio_postgres::Config::new();
        match &spec.socket_dir {
            Some(directory) => config.host_path(directory),
            None => config.host(&spec.host),
        };
        config
            .port(spec.port)
            .user(&spec.user)
            .dbname(&spec.database)
            .application_name("drctl")
            .connect_timeout(spec.deadline)
            .options(format!(
                "-c statement_timeout={} -c lock_timeout={} -c default_transaction_read_only={} -c client_min_messages=error",
                spec.deadline.as_millis(),
                spec.deadline.as_millis(),
                if spec.read_only { "on" } else { "off" },
            ));
        if let Some(password) = &spec.password {
            config.password(password.expose_secret());
        }
        let connected = tokio::time::timeout(spec.deadline, config.connect(NoTls)).await;
        let (inner, connection) = match connected {
            Err(_) => {
                return Err(PgError::Timeout {
                    address,
                    what: "the connection".into(),
                    deadline: spec.deadline,
                });
            }
            Ok(Err(e)) => return Err(connect_error(&e, &address, spec.deadline)),
            Ok(Ok(parts)) => parts,
        };
        let driver = tokio::spawn(async move {
            // Its error reaches us through the statements that fail.
            let _ = connection.await;
        });
        Ok(Self {
            inner,
            address,
            deadline: spec.deadline,
            driver,
        })
    }

    /// Rows of a statement, within the session's default deadline.
    ///
    /// # Errors
    /// [`PgError`].
    pub async fn rows(&self, sql: &str) -> Result<Vec<Row>, PgError> {
        self.within(self.deadline, sql).await
    }

    /// The first column of the first row, as text.
    ///
    /// # Errors
    /// [`PgError`]; no row is `None`.
    pub async fn value(&self, sql: &str) -> Result<Option<String>, PgError> {
        Ok(self
            .rows(sql)
            .await?
            .first()
            .and_then(|r| r.opt(0))
            .map(str::to_owned))
    }

    /// Rows of a statement that may take longer (or must be shorter) than the default.
    ///
    /// # Errors
    /// [`PgError`].
    pub async fn within(&self, deadline: Duration, sql: &str) -> Result<Vec<Row>, PgError> {
        if deadline != self.deadline {
            self.send(
                self.deadline,
                &format!("set statement_timeout = {}", deadline.as_millis()),
            )
            .await?;
        }
        let rows = self.send(deadline, sql).await;
        if deadline != self.deadline {
            // Outside an aborted transaction only; there the next ROLLBACK restores it.
            let _ = self
                .send(
                    self.deadline,
                    &format!("set statement_timeout = {}", self.deadline.as_millis()),
                )
                .await;
        }
        rows
    }

    /// Runs statements whose rows do not matter. Several in one string are one
    /// transaction (PostgreSQL manual, 55.2.2.1).
    ///
    /// # Errors
    /// [`PgError`].
    pub async fn execute(&self, sql: &str) -> Result<(), PgError> {
        self.rows(sql).await.map(drop)
    }

    /// Rows of one query that somebody else wrote, in a read-only transaction of its own that is rolled back. The query
    /// cannot leave it: it is prepared, and what can be prepared is one query, of which none ends a transaction. That the
    /// session is read-only is not enough, as any statement may change that.
    ///
    /// # Errors
    /// [`PgError`]: what is no query, several statements, and a query that writes are refused by the server.
    pub async fn answer_read_only(&self, deadline: Duration, sql: &str) -> Result<Vec<Row>, PgError> {
        let asked = async {
            self.send(self.deadline, "start transaction read only").await?;
            self.send(
                self.deadline,
                &format!("set local statement_timeout = {}", deadline.as_millis()),
            )
            .await?;
            self.prepare(deadline, sql).await?;
            self.send(deadline, &format!("execute {FOREIGN_QUERY}")).await
        };
        let rows = asked.await;
        // Whatever the query has set ends with its transaction; what was prepared does not.
        for end in ["rollback", "deallocate all"] {
            let ended = self.send(self.deadline, end).await;
            if let (Ok(_), Err(e)) = (&rows, ended) {
                return Err(e);
            }
        }
        rows
    }

    /// Through the extended protocol, which takes one statement (PostgreSQL manual, 55.2.3): a text that goes on behind
    /// its query is refused as a whole. It is run by [`Self::send`], which gives values as text.
    async fn prepare(&self, deadline: Duration, sql: &str) -> Result<(), PgError> {
        let statement = format!("prepare {FOREIGN_QUERY} as {sql}");
        let patience = deadline + Duration::from_millis(500);
        match tokio::time::timeout(patience, self.inner.execute_typed(&statement, &[])).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(statement_error(&e, &self.address)),
            Err(_) => Err(PgError::Timeout {
                address: self.address.clone(),
                what: first_words(sql),
                deadline: patience,
            }),
        }
    }

    async fn send(&self, deadline: Duration, sql: &str) -> Result<Vec<Row>, PgError> {
        // The server's own limit fires first and leaves a usable session behind.
        let patience = deadline + Duration::from_millis(500);
        tokio::time::timeout(patience, self.answer(sql))
            .await
            .unwrap_or_else(|_| {
                Err(PgError::Timeout {
                    address: self.address.clone(),
                    what: first_words(sql),
                    deadline: patience,
                })
            })
    }

    async fn answer(&self, sql: &str) -> Result<Vec<Row>, PgError> {
        let failed = |e| statement_error(&e, &self.address);
        let messages = self.inner.simple_query_raw(sql).await.map_err(failed)?;
        let mut messages = std::pin::pin!(messages);
        let (mut rows, mut bytes) = (Vec::new(), 0_u64);
        while let Some(message) = messages.next().await {
            let SimpleQueryMessage::Row(row) = message.map_err(failed)? else {
                continue;
            };
            let row = Row((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect());
            bytes += row.0.iter().flatten().map(|v| v.len() as u64).sum::<u64>() + ROW;
            if bytes > LONGEST_ANSWER {
                return Err(PgError::TooLong {
                    address: self.address.clone(),
                    what: first_words(sql),
                });
            }
            rows.push(row);
        }
        Ok(rows)
    }

    /// Streams `COPY (query) TO STDOUT` of this session into `COPY table FROM STDIN` of
    /// another; memory stays constant. The sessions' own limits for statements hold, too. Returns
    /// the number of rows copied.
    ///
    /// # Errors
    /// [`CopyError`], which tells whose it is; the target's copy is then rolled back.
    pub async fn copy_to(
        &self,
        copy_out: &str,
        target: &Self,
        copy_in: &str,
        deadline: Duration,
    ) -> Result<u64, CopyError> {
        let of_source = |e| CopyError::Source(statement_error(&e, &self.address));
        let of_target = |e| CopyError::Target(statement_error(&e, &target.address));
        let work = async {
            let out = self.inner.copy_out(copy_out).await.map_err(of_source)?;
            let sink = target
                .inner
                .copy_in::<_, Bytes>(copy_in)
                .await
                .map_err(of_target)?;
            let mut out = std::pin::pin!(out);
            let mut sink = std::pin::pin!(sink);
            while let Some(chunk) = out.next().await {
                // Dropping the sink on this error makes the target abort its copy.
                sink.send(chunk.map_err(of_source)?).await.map_err(of_target)?;
            }
            sink.finish().await.map_err(of_target)
        };
        tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| {
            Err(CopyError::Source(PgError::Timeout {
                address: self.address.clone(),
                what: "the copy of rows".into(),
                deadline,
            }))
        })
    }
}

fn first_words(sql: &str) -> String {
    let mut text: String = sql.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.chars().count() > 60 {
        text = text.chars().take(60).collect::<String>() + "…";
    }
    text
}

fn from_db(e: &tokio_postgres::Error) -> Option<PgError> {
    let db = e.as_db_error()?;
    Some(PgError::Server {
        severity: db.severity().to_owned(),
        sqlstate: db.code().code().to_owned(),
        message: db.message().to_owned(),
        detail: db.detail().map(str::to_owned),
    })
}

fn causes(e: &tokio_postgres::Error) -> String {
    let mut text = e.to_string();
    let mut source = std::error::Error::source(e);
    while let Some(s) = source {
        text = format!("{text}: {s}");
        source = s.source();
    }
    text
}

fn statement_error(e: &tokio_postgres::Error, address: &str) -> PgError {
    from_db(e).unwrap_or_else(|| PgError::Broken {
        address: address.to_owned(),
        cause: causes(e),
    })
}

fn connect_error(e: &tokio_postgres::Error, address: &str, deadline: Duration) -> PgError {
    if let Some(db) = from_db(e) {
        return db;
    }
    let cause = causes(e);
    if cause.contains("timed out") || cause.contains("timeout") {
        PgError::Timeout {
            address: address.to_owned(),
            what: "the connection".into(),
            deadline,
        }
    } else {
        PgError::NoConnection {
            address: address.to_owned(),
            cause,
        }
    }
}
