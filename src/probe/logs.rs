//! What the server's log says of its last run. The engine's log is read, so the words are
//! there also when the server is not.
//!
//! Texts are those of an English `lc_messages`, seen on PostgreSQL 15. The prefix of a line
//! is configurable and its zone changes during a start, so only the text after the severity
//! counts. Lines that quote a client's statement are never kept: they hold user data.

use std::sync::LazyLock;

use jiff::Timestamp;
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::workload::{ContainerInfo, Docker, LogLine, Status, WorkloadError};

/// Lines of the log that are looked at.
const TAIL: usize = 4000;
const LINES_OF_A_FAILED_START: usize = 15;
/// Lines that are kept.
const LIMIT: usize = 50;
/// Lines that are kept of one kind, so that a flood of one does not hide the others.
const LIMIT_PER_PATTERN: usize = 8;

/// What a log line stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogPattern {
    /// `invalid page in block`, `page verification failed`, other XX001/XX002 texts.
    DamagedPage,
    /// `incorrect checksum in control file`, missing or short `pg_control`.
    ControlFile,
    /// `could not locate a valid checkpoint record`, `invalid primary checkpoint record`.
    NoCheckpoint,
    /// Replay ended at damage: `incorrect prev-link`, `incorrect resource manager data
    /// checksum`, `invalid magic number` after `redo starts at`.
    ReplayEndedEarly,
    /// `could not access status of transaction`, `could not open file "pg_xact/…"`.
    TransactionStatus,
    /// `could not open file "base/…"`: a relation's file is gone.
    MissingFile,
    /// A configuration file is unreadable or wrong.
    Configuration,
    /// `Permission denied`, `has invalid permissions`, wrong owner.
    Permission,
    /// `lock file "postmaster.pid" already exists`, or is empty or garbled.
    LockFile,
    /// `could not bind`, `Address already in use`: the port is another's.
    PortTaken,
    /// A `recovery.signal` or `standby.signal` without a source of WAL.
    RecoverySource,
    /// `database files are incompatible with server` by version.
    WrongVersion,
    /// `No space left on device` on the data or WAL.
    DiskFull,
    /// `could not resize shared memory segment`.
    SharedMemory,
    /// `sorry, too many clients already`, `remaining connection slots are reserved`.
    TooManyConnections,
    /// `redo starts at`, `database system was not properly shut down`.
    CrashRecovery,
    /// `database system is ready to accept connections`.
    Ready,
    /// Any other PANIC or FATAL of the server itself.
    OtherFatal,
}

/// One telling log line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LogFinding {
    /// What it stands for.
    pub pattern: LogPattern,
    /// When.
    pub at: Option<Timestamp>,
    /// The line.
    pub line: String,
}

/// In this order: the first that matches counts. Permission before all, because a control file
/// that may not be read is not a damaged one. Control before version, because a zeroed
/// `pg_control` reads as a version; shared memory before disk, because both say "no space".
const TABLE: &[(LogPattern, &str)] = &[
    (
        LogPattern::Permission,
        "Permission denied|has invalid permissions|has wrong ownership|must be owned by|Operation not permitted",
    ),
    (
        LogPattern::LockFile,
        r#"lock file "postmaster\.pid" (already exists|is empty)|bogus data in lock file "postmaster\.pid"|pre-existing shared memory block .* is still in use"#,
    ),
    (
        LogPattern::ControlFile,
        r#"incorrect checksum in control file|pg_control"|/pg_control|PG_CONTROL_VERSION 0\b|could not find the database system|control file appears to be corrupt|unexpected data beyond EOF.*pg_control"#,
    ),
    (
        LogPattern::NoCheckpoint,
        "could not locate a valid checkpoint record|could not locate required checkpoint record|invalid primary checkpoint record|invalid checkpoint record|invalid xl_info in (primary )?checkpoint record|invalid length of (primary )?checkpoint record|invalid resource manager ID in (primary )?checkpoint record",
    ),
    (
        LogPattern::TransactionStatus,
        r#"could not access status of transaction|could not (open|read|seek in|fsync) file "pg_(xact|multixact|subtrans|commit_ts)/|could not read from file "pg_(xact|multixact|subtrans|commit_ts)/"#,
    ),
    (
        LogPattern::SharedMemory,
        r"could not resize (dynamic )?shared memory segment|/PostgreSQL\.\d+.*No space left on device",
    ),
    (
        LogPattern::DiskFull,
        "No space left on device|could not extend file .*Check free disk space",
    ),
    (
        LogPattern::PortTaken,
        "Address already in use|could not create any TCP/IP sockets|could not bind (IPv4|IPv6|Unix) ",
    ),
    (
        LogPattern::RecoverySource,
        "must specify restore_command when standby mode is not enabled|specified neither primary_conninfo nor restore_command",
    ),
    (
        LogPattern::WrongVersion,
        "database files are incompatible with server|was initialized by PostgreSQL version|is not compatible with this version",
    ),
    (
        LogPattern::Configuration,
        r#"could not access the server configuration file|unrecognized configuration parameter|configuration file .* contains errors|could not load .*pg_hba\.conf|could not open (configuration )?file ".*(postgresql|pg_hba|pg_ident).*\.conf"|invalid value for parameter|is outside the valid range for parameter|requires wal_level|cannot be enabled when wal_level|must be less than max_connections|syntax error in file .*\.conf|could not map anonymous shared memory|invalid line in .*\.conf|invalid (authentication method|connection type)|exists but is not empty|not a valid data directory|could not access file ".*": No such file or directory"#,
    ),
    (
        LogPattern::DamagedPage,
        r"invalid page in block|page verification failed|relation mapping file .* contains invalid data|unexpected chunk number|missing chunk number|invalid compression method id|invalid memory alloc request|item order invariant violated|lacks matching index tuple|found xmin .* from before relfrozenxid|could not read block \d+ in file|unexpected zero page at block|contains unexpected zero page|corrupted (page pointers|item pointer|line pointer)|is not a btree|could not find (parent of|left sibling of) block",
    ),
    (
        LogPattern::MissingFile,
        r#"could not open (file|directory) "(base|global|pg_tblspc)/[^"]*".*No such file|could not open file "(base|global|pg_tblspc)/"#,
    ),
    (
        LogPattern::TooManyConnections,
        "sorry, too many clients already|remaining connection slots are reserved|too many connections for (role|database)",
    ),
    (
        LogPattern::CrashRecovery,
        "redo starts at|redo done at|redo is not required|was not properly shut down|database system was interrupted|terminated by signal|all server processes terminated; reinitializing|last completed transaction was at log time",
    ),
    (
        LogPattern::Ready,
        "database system is ready to accept (read.only )?connections",
    ),
];

/// A record that replay could not read. The ordinary end of the log reads `invalid record
/// length at X: wanted 24, got 0` or `unexpected pageaddr`.
const END_OF_REPLAY: &str = "record with incorrect prev-link|incorrect resource manager data checksum|invalid magic number|invalid resource manager ID|invalid info bits|invalid record length at [0-9A-F/]+: (wanted|expected at least) \\d+, got [1-9]|invalid contrecord length|there is no contrecord flag";

/// Sessions that were refused or ended; nothing is wrong with the server.
const SESSION_FATAL: &str = "password authentication failed|no pg_hba.conf entry|pg_hba.conf rejects|role .* does not exist|database .* does not exist|terminating connection due to|terminating background worker|the database system is (starting up|shutting down|in recovery|not yet accepting)|connection to client lost|unsupported frontend protocol|authentication failed|is not currently accepting connections|is not permitted to log in|permission denied for database|canceling (authentication|statement)|invalid startup packet|connection requires a valid client certificate|no PostgreSQL user name|recovery ended before|unrecognized configuration parameter .* $";

struct Patterns {
    table: Vec<(LogPattern, Regex)>,
    end_of_replay: Option<Regex>,
    session_fatal: Option<Regex>,
}

static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| Patterns {
    table: TABLE
        .iter()
        .filter_map(|(p, text)| Some((*p, Regex::new(text).ok()?)))
        .collect(),
    end_of_replay: Regex::new(END_OF_REPLAY).ok(),
    session_fatal: Regex::new(SESSION_FATAL).ok(),
});

/// The log of a container's last run; of the last two when it starts again and again.
///
/// # Errors
/// The engine's trouble.
pub async fn read(docker: &Docker, container: &ContainerInfo) -> Result<Vec<LogFinding>, WorkloadError> {
    let lines = docker.logs(&container.id, None, TAIL).await?;
    let found = classify(run(&lines, container.started_at, 0));
    let tells = |f: &LogFinding| !matches!(f.pattern, LogPattern::Ready | LogPattern::CrashRecovery);
    if found.iter().any(tells) || !may_loop(container) {
        return Ok(found);
    }
    // This start has said nothing yet; the one before it failed for the same reason. It was
    // short, and no line of its own marks its beginning.
    Ok(classify(run(
        &lines,
        container.started_at,
        LINES_OF_A_FAILED_START,
    )))
}

/// Whether the container seems to be started again and again. One sample of its state can say
/// that it runs.
#[must_use]
pub fn may_loop(container: &ContainerInfo) -> bool {
    container.status == Status::Restarting
        || (container.restart_count > 0 && container.health.as_deref() != Some("healthy"))
}

/// Lines since `started_at`, and so many before.
fn run(lines: &[LogLine], started_at: Option<Timestamp>, before: usize) -> &[LogLine] {
    let Some(start) = started_at else { return lines };
    let this = lines
        .iter()
        .position(|l| l.at.is_some_and(|at| at >= start))
        .unwrap_or(lines.len());
    lines.get(this.saturating_sub(before)..).unwrap_or_default()
}

/// The telling lines, in order, each text once (its last time), at most fifty.
#[must_use]
pub fn classify(lines: &[LogLine]) -> Vec<LogFinding> {
    let mut found: Vec<(String, LogFinding)> = Vec::new();
    let mut replaying = false;
    for (i, line) in lines.iter().enumerate() {
        let Some(message) = message(&line.text) else {
            continue;
        };
        if message.text.contains("redo starts at") {
            replaying = true;
        }
        let next = lines.get(i + 1).map_or("", |l| l.text.as_str());
        let pattern = pattern(&message, next, replaying);
        if message.text.contains("redo done at") || message.text.contains("ready to accept") {
            replaying = false;
        }
        let Some(pattern) = pattern else { continue };
        found.retain(|(seen, _)| seen != message.text);
        found.push((
            message.text.to_owned(),
            LogFinding {
                pattern,
                at: line.at,
                line: line.text.trim().chars().take(400).collect(),
            },
        ));
    }
    let mut kept: Vec<LogFinding> = Vec::new();
    for (_, finding) in found.into_iter().rev() {
        let same = kept.iter().filter(|k| k.pattern == finding.pattern).count();
        if same < LIMIT_PER_PATTERN && kept.len() < LIMIT {
            kept.push(finding);
        }
    }
    kept.reverse();
    kept
}

struct Message<'a> {
    severity: &'a str,
    text: &'a str,
}

/// The text after the severity. `None` for lines that quote what a client sent.
fn message(line: &str) -> Option<Message<'_>> {
    const SEVERITIES: [&str; 14] = [
        "LOG",
        "WARNING",
        "ERROR",
        "FATAL",
        "PANIC",
        "DETAIL",
        "HINT",
        "NOTICE",
        "INFO",
        "STATEMENT",
        "QUERY",
        "CONTEXT",
        "LOCATION",
        "DEBUG",
    ];
    let split = SEVERITIES
        .iter()
        .filter_map(|s| {
            let at = line.find(&format!("{s}:  "))?;
            Some((at, *s, line.get(at + s.len() + 3..)?))
        })
        .min_by_key(|(at, ..)| *at);
    match split {
        Some((_, "STATEMENT" | "QUERY" | "CONTEXT" | "LOCATION" | "DEBUG" | "NOTICE" | "INFO", _)) => None,
        Some((_, "LOG", text))
            if text.starts_with("statement:")
                || text.starts_with("duration:")
                || text.starts_with("execute ") =>
        {
            None
        }
        Some((_, severity, text)) => Some(Message {
            severity,
            text: text.trim(),
        }),
        // Said before logging is set up, as `postgres: could not access …`, or by the entrypoint. A
        // continued line of a statement begins with a tab.
        None if line.starts_with('\t') || line.trim().is_empty() => None,
        None => Some(Message {
            severity: "",
            text: line.trim(),
        }),
    }
}

fn pattern(message: &Message<'_>, next: &str, replaying: bool) -> Option<LogPattern> {
    let p = &*PATTERNS;
    if message.severity == "HINT" {
        return None;
    }
    if p.end_of_replay.as_ref().is_some_and(|r| r.is_match(message.text)) {
        return Some(if replaying {
            LogPattern::ReplayEndedEarly
        } else {
            LogPattern::NoCheckpoint
        });
    }
    // The same words for a wrong image and for a control file of zeros: the detail tells.
    if message
        .text
        .contains("database files are incompatible with server")
        && next.contains("PG_CONTROL_VERSION 0")
    {
        return Some(LogPattern::ControlFile);
    }
    let session = p.session_fatal.as_ref().is_some_and(|r| r.is_match(message.text));
    let known = p
        .table
        .iter()
        .find(|(_, r)| r.is_match(message.text))
        .map(|(k, _)| *k);
    match (known, message.severity) {
        // A client's own mistake, as `set nonsense = 1`, is not the server's configuration.
        (Some(LogPattern::Configuration), "ERROR") => None,
        // `permission denied for database` is a refusal of a role, not of a file.
        (Some(k), _) if !session || k == LogPattern::TooManyConnections => Some(k),
        (None, "FATAL" | "PANIC") if !session => Some(LogPattern::OtherFatal),
        (None, "") if message.text.starts_with("postgres: ") || message.text.starts_with("initdb: error") => {
            Some(LogPattern::OtherFatal)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(texts: &[&str]) -> Vec<LogLine> {
        texts
            .iter()
            .map(|t| LogLine {
                at: None,
                text: (*t).to_owned(),
            })
            .collect()
    }

    #[test]
    fn every_expression_compiles() {
        assert_eq!(PATTERNS.table.len(), TABLE.len());
        assert!(PATTERNS.end_of_replay.is_some() && PATTERNS.session_fatal.is_some());
    }

    #[test]
    fn one_line_each() {
        use LogPattern as P;
        for (text, expected) in [
            (
                "2026-11-20 19:00:00.000 UTC [71] WARNING:  page verification failed, calculated checksum 48656 but expected 7179",
                Some(P::DamagedPage),
            ),
            (
                "2026-11-20 19:00:00.000 UTC [71] ERROR:  invalid page in block 100 of relation base/16396/16457",
                Some(P::DamagedPage),
            ),
            (
                "ERROR:  unexpected chunk number 2 (expected 1) for toast value 16478 in pg_toast_16471",
                Some(P::DamagedPage),
            ),
            (
                "FATAL:  relation mapping file \"global/pg_filenode.map\" contains invalid data",
                Some(P::DamagedPage),
            ),
            (
                "ERROR:  could not read block 1538 in file \"base/16396/16457\": read only 0 of 8192 bytes",
                Some(P::DamagedPage),
            ),
            ("FATAL:  incorrect checksum in control file", Some(P::ControlFile)),
            (
                "postgres: could not find the database system",
                Some(P::ControlFile),
            ),
            (
                "PANIC:  could not read file \"global/pg_control\": read 100 of 296",
                Some(P::ControlFile),
            ),
            ("LOG:  invalid primary checkpoint record", Some(P::NoCheckpoint)),
            (
                "PANIC:  could not locate a valid checkpoint record",
                Some(P::NoCheckpoint),
            ),
            (
                "LOG:  record with incorrect prev-link 6D23BAAD/00 at 0/45CB8D0",
                Some(P::NoCheckpoint),
            ),
            (
                "FATAL:  could not access status of transaction 827",
                Some(P::TransactionStatus),
            ),
            (
                "DETAIL:  Could not open file \"pg_xact/0000\": No such file or directory.",
                None,
            ),
            (
                "ERROR:  could not open file \"base/16396/16457\": No such file or directory",
                Some(P::MissingFile),
            ),
            (
                "postgres: could not access the server configuration file \"/x/postgresql.conf\": No such file or directory",
                Some(P::Configuration),
            ),
            (
                "2026-11-20 19:00:00.000 GMT [1] LOG:  unrecognized configuration parameter \"x\" in file \"/x/postgresql.conf\" line 818",
                Some(P::Configuration),
            ),
            (
                "2026-11-20 19:00:00.000 GMT [1] FATAL:  configuration file \"/x/postgresql.conf\" contains errors",
                Some(P::Configuration),
            ),
            (
                "FATAL:  could not map anonymous shared memory: Cannot allocate memory",
                Some(P::Configuration),
            ),
            ("FATAL:  could not load /x/pg_hba.conf", Some(P::Configuration)),
            (
                "initdb: error: directory \"/x\" exists but is not empty",
                Some(P::Configuration),
            ),
            (
                "LOG:  could not open directory \"base\": Permission denied",
                Some(P::Permission),
            ),
            (
                "FATAL:  data directory \"/x\" has invalid permissions",
                Some(P::Permission),
            ),
            (
                "but could not open file \"/x/global/pg_control\": Permission denied",
                Some(P::Permission),
            ),
            ("FATAL:  lock file \"postmaster.pid\" is empty", Some(P::LockFile)),
            (
                "FATAL:  lock file \"postmaster.pid\" already exists",
                Some(P::LockFile),
            ),
            (
                "LOG:  could not bind IPv4 address \"0.0.0.0\": Address already in use",
                Some(P::PortTaken),
            ),
            (
                "FATAL:  must specify restore_command when standby mode is not enabled",
                Some(P::RecoverySource),
            ),
            (
                "FATAL:  database files are incompatible with server",
                Some(P::WrongVersion),
            ),
            (
                "PANIC:  could not write to file \"pg_wal/xlogtemp.138\": No space left on device",
                Some(P::DiskFull),
            ),
            (
                "ERROR:  could not resize shared memory segment \"/PostgreSQL.3685584176\" to 33554432 bytes: No space left on device",
                Some(P::SharedMemory),
            ),
            (
                "FATAL:  sorry, too many clients already",
                Some(P::TooManyConnections),
            ),
            (
                "FATAL:  remaining connection slots are reserved for non-replication superuser connections",
                Some(P::TooManyConnections),
            ),
            ("LOG:  redo starts at 0/45CB8D0", Some(P::CrashRecovery)),
            (
                "LOG:  server process (PID 117) was terminated by signal 11: Segmentation fault",
                Some(P::CrashRecovery),
            ),
            (
                "LOG:  database system is ready to accept connections",
                Some(P::Ready),
            ),
            (
                "FATAL:  could not open directory \"pg_notify\": No such file or directory",
                Some(P::OtherFatal),
            ),
            // A parallel worker whose leader has failed says so; the segment is gone, not full.
            ("ERROR:  could not map dynamic shared memory segment", None),
            // Nothing of the server's own.
            ("FATAL:  password authentication failed for user \"x\"", None),
            (
                "FATAL:  terminating connection due to administrator command",
                None,
            ),
            ("FATAL:  the database system is starting up", None),
            ("ERROR:  unrecognized configuration parameter \"nonsense\"", None),
            ("LOG:  invalid record length at 0/45CB8D0: wanted 24, got 0", None),
            ("STATEMENT:  select 'invalid page in block 3'", None),
            ("LOG:  statement: select 'invalid page in block 3'", None),
            ("LOG:  checkpoint complete: wrote 10 buffers", None),
        ] {
            let got = classify(&lines(&[text])).first().map(|f| f.pattern);
            assert_eq!(got, expected, "{text}");
        }
    }

    #[test]
    fn what_ends_replay_depends_on_where_it_stands() {
        let found = classify(&lines(&[
            "LOG:  redo starts at 0/4000028",
            "LOG:  record with incorrect prev-link 6D23BAAD/00 at 0/45CB8D0",
            "LOG:  redo done at 0/45CB8A8",
            "LOG:  database system is ready to accept connections",
        ]));
        let patterns: Vec<LogPattern> = found.iter().map(|f| f.pattern).collect();
        assert_eq!(
            patterns,
            [
                LogPattern::CrashRecovery,
                LogPattern::ReplayEndedEarly,
                LogPattern::CrashRecovery,
                LogPattern::Ready
            ]
        );
    }

    #[test]
    fn a_control_file_of_zeros_is_no_wrong_version() {
        let found = classify(&lines(&[
            "FATAL:  database files are incompatible with server",
            "DETAIL:  The database cluster was initialized with PG_CONTROL_VERSION 0 (0x00000000), but the server was compiled with PG_CONTROL_VERSION 1300 (0x00000514).",
        ]));
        assert!(
            found.iter().all(|f| f.pattern == LogPattern::ControlFile),
            "{found:?}"
        );
    }

    #[test]
    fn a_flood_of_one_kind_does_not_hide_the_others() {
        let mut texts = vec!["FATAL:  incorrect checksum in control file".to_owned()];
        texts.extend((0..500).map(|i| format!("ERROR:  invalid page in block {i} of relation base/1/2")));
        let refs: Vec<&str> = texts.iter().map(String::as_str).collect();
        let found = classify(&lines(&refs));
        assert_eq!(found.len(), 1 + LIMIT_PER_PATTERN);
        assert_eq!(found[0].pattern, LogPattern::ControlFile);
        assert!(found.last().unwrap().line.contains("block 499"));
    }

    #[test]
    fn only_the_last_run_counts() {
        let at = |s: &str| s.parse::<Timestamp>().ok();
        let all: Vec<LogLine> = [
            "2026-11-20T10:00:00Z",
            "2026-11-20T11:00:00.5Z",
            "2026-11-20T11:00:01Z",
        ]
        .iter()
        .map(|t| LogLine {
            at: at(t),
            text: String::new(),
        })
        .collect();
        assert_eq!(run(&all, at("2026-11-20T11:00:00.1Z"), 0).len(), 2);
        assert_eq!(run(&all, at("2026-11-20T11:00:00.1Z"), 25).len(), 3);
        assert_eq!(run(&all, at("2026-11-20T12:00:00Z"), 0).len(), 0);
        assert_eq!(run(&all, None, 0).len(), 3);
    }
}
