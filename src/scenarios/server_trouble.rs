//! What keeps a PostgreSQL server from running, read off its log, its files and its control
//! data. Pure, and shared: `db-corruption` asks so that nothing is taken for damage that only
//! looks like it, `db-down` asks so that damage is not taken for something that a restart heals.

use crate::event::bytes;
use crate::probe::control::ControlData;
use crate::probe::files::FileFacts;
use crate::probe::logs::{LogFinding, LogPattern};
use crate::scenarios::disk_full::recognise::is_short;
use crate::workload::ContainerInfo;

/// What is there to judge by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traces<'a> {
    pub container: &'a ContainerInfo,
    pub log: &'a [LogFinding],
    pub control: &'a Result<ControlData, String>,
    pub files: &'a Result<FileFacts, String>,
}

/// Why a server does not run, or lets nobody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// There is nothing in the data directory of a server that has run.
    Empty,
    /// The data is another major version's, or its `PG_VERSION` says so.
    WrongMajor,
    /// What a server needs and can be made anew without loss is not there.
    Lost,
    /// Files that the server's user may not use.
    Permissions,
    /// No room on the disk of the data or of the WAL.
    DiskFull,
    /// Settings or `pg_hba.conf` that the server refuses.
    Configuration,
    /// A `postmaster.pid` that keeps it from starting.
    LockFile,
    /// Its port is another's.
    PortTaken,
    /// Told to recover from somewhere, and not from where.
    RecoverySource,
    /// Damage: positive evidence of it in log, control data or files.
    Damage(&'static str),
}

/// Directories whose content a base backup leaves out, and the server makes anew (PostgreSQL manual,
/// 26.3.4.3, "Backing Up the Data Directory"), and that of the statistics, which a crash drops as
/// well. Without the directory itself it does not start. `pg_replslot` is none of them: what
/// standbys still need of the log is in it.
const EMPTY_AT_START: [&str; 7] = [
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
];

/// What is gone and can be made anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Directories that begin empty.
    pub directories: Vec<String>,
    /// Content of the file `PG_VERSION`.
    pub version: Option<String>,
}

impl Lost {
    pub(crate) fn in_words(&self) -> String {
        let mut all = self.directories.clone();
        all.extend(self.version.iter().map(|_| "PG_VERSION".to_owned()));
        all.join(", ")
    }
}

/// The trouble, and the facts that tell of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub kind: Kind,
    pub reasons: Vec<String>,
}

/// Patterns that name a cause of not starting, rather than a consequence.
fn is_cause(pattern: LogPattern) -> bool {
    use LogPattern as P;
    matches!(
        pattern,
        P::DamagedPage
            | P::ControlFile
            | P::NoCheckpoint
            | P::TransactionStatus
            | P::MissingFile
            | P::Configuration
            | P::Permission
            | P::LockFile
            | P::PortTaken
            | P::RecoverySource
            | P::WrongVersion
            | P::DiskFull
    )
}

/// Damage that keeps a server from starting, the deeper first.
const DAMAGE: [(LogPattern, &str); 5] = [
    (
        LogPattern::ControlFile,
        "its control file (global/pg_control) is unusable",
    ),
    (
        LogPattern::NoCheckpoint,
        "the write-ahead log that it must replay is gone or unreadable",
    ),
    (
        LogPattern::TransactionStatus,
        "transaction status (pg_xact) is missing",
    ),
    (
        LogPattern::DamagedPage,
        "a page that it needs to start is damaged",
    ),
    (
        LogPattern::MissingFile,
        "a file that it needs to start is missing",
    ),
];

impl<'a> Traces<'a> {
    /// The last line of a kind.
    pub(crate) fn has(&self, pattern: LogPattern) -> Option<&'a str> {
        let line = self.log.iter().rev().find(|l| l.pattern == pattern)?;
        Some(&line.line)
    }

    /// The last word that names a cause.
    fn last_word(&self) -> Option<LogPattern> {
        self.log.iter().rev().map(|l| l.pattern).find(|p| is_cause(*p))
    }

    /// It has ended by itself, rather than by a stop or a kill: on an error of its own a server
    /// never ends with 0, and the codes of signals count where it had been serving.
    pub(crate) fn ended_by_itself(&self) -> bool {
        match self.container.exit_code {
            0 => false,
            130 | 137 | 143 => self.has(LogPattern::Ready).is_none(),
            _ => true,
        }
    }

    fn files(&self) -> Option<&'a FileFacts> {
        self.files.as_ref().ok()
    }

    /// Files that are not the server's, in words.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = String> + use<'a> {
        let foreign = self.files().into_iter().flat_map(|f| &f.foreign);
        foreign.take(5).map(|p| format!("not the server's: {p}"))
    }

    /// There is nothing in the data directory, and there was: one that never ran makes its first
    /// data at its first start.
    fn is_empty(&self) -> bool {
        self.container.started_at.is_some() && self.files().is_some_and(FileFacts::is_empty)
    }

    /// What the data and the program of the image are, where they differ.
    pub(crate) fn majors(&self) -> Option<(&'a str, &'a str)> {
        let files = self.files()?;
        let majors = (files.version.as_deref()?, files.program_version.as_deref()?);
        (majors.0 != majors.1).then_some(majors)
    }

    /// What is gone and can be made anew, if that is all that is gone and the rest of the cluster
    /// speaks for itself: its control file is whole, and of the version of the program.
    pub(crate) fn lost(&self) -> Option<Lost> {
        let files = self.files()?;
        let program = files.program_version.as_deref()?;
        self.control.as_ref().ok().filter(|c| !c.checksum_mismatch)?;
        let (directories, others): (Vec<_>, Vec<_>) = files
            .missing_directories
            .iter()
            .cloned()
            .partition(|d| EMPTY_AT_START.contains(&d.as_str()));
        let inner = files.inner_version.as_deref() == Some(program);
        let version = (files.version.is_none() && inner).then(|| program.to_owned());
        let complete = others.is_empty() && (files.version.is_some() || version.is_some());
        (complete && !(directories.is_empty() && version.is_none())).then_some(Lost { directories, version })
    }

    /// Which disk has too little room, and how much.
    pub(crate) fn disk_in_words(&self) -> String {
        let free = self.files().map_or(0, FileFacts::least_free);
        let of_log = self.files().is_some_and(|f| f.least_free() < f.disk_free);
        let disk = if of_log {
            "the disk of the write-ahead log"
        } else {
            "the disk"
        };
        format!("{disk} is full ({} free)", bytes(free))
    }
}

/// What the log of the last run and the files say. The look-alikes come first: a file that may
/// not be read is not a damaged file, whatever the server then says about it.
pub(crate) fn of(traces: Traces<'_>) -> Option<Trouble> {
    let said = |kind, reasons: Vec<String>| Some(Trouble { kind, reasons });
    let line = |pattern| traces.has(pattern).map(str::to_owned);
    let files = traces.files();
    if traces.is_empty() {
        return said(
            Kind::Empty,
            vec!["neither PG_VERSION nor base nor global is in the data directory".into()],
        );
    }
    if traces.majors().is_some() {
        return said(
            Kind::WrongMajor,
            line(LogPattern::WrongVersion).into_iter().collect(),
        );
    }
    if let Some(lost) = traces.lost() {
        return said(
            Kind::Lost,
            vec![format!("not there, and empty at each start: {}", lost.in_words())],
        );
    }
    // A line may be left from an earlier start; what is on the disk now, or the last word,
    // decides.
    let last_word = traces.last_word();
    let foreign = files.is_some_and(|f| !f.foreign.is_empty());
    if let Some(line) =
        line(LogPattern::Permission).filter(|_| foreign || last_word == Some(LogPattern::Permission))
    {
        let reasons = std::iter::once(line).chain(traces.foreign()).collect();
        return said(Kind::Permissions, reasons);
    }
    let no_room = files.is_some_and(|f| is_short(f.least_free(), true));
    if let Some(line) =
        line(LogPattern::DiskFull).filter(|_| no_room || last_word == Some(LogPattern::DiskFull))
    {
        return said(Kind::DiskFull, vec![line]);
    }
    for (pattern, kind) in [
        (LogPattern::LockFile, Kind::LockFile),
        (LogPattern::PortTaken, Kind::PortTaken),
        (LogPattern::RecoverySource, Kind::RecoverySource),
    ] {
        if let Some(line) = line(pattern).filter(|_| last_word == Some(pattern)) {
            return said(kind, vec![line]);
        }
    }
    let wrong_setting = files.and_then(|f| f.configuration_error.clone());
    if let Some(line) = line(LogPattern::Configuration)
        .filter(|_| wrong_setting.is_some() || last_word == Some(LogPattern::Configuration))
    {
        let reasons = std::iter::once(line).chain(wrong_setting).collect();
        return said(Kind::Configuration, reasons);
    }
    for (pattern, cause) in DAMAGE {
        if let Some(line) = traces.has(pattern) {
            let mut reasons = vec![format!(
                "the server does not start, exit code {}: {line}",
                traces.container.exit_code
            )];
            reasons.push(match traces.control {
                Ok(c) if c.checksum_mismatch => "pg_controldata: the checksum does not match".into(),
                Ok(c) => format!("pg_controldata: state {:?}", c.state),
                Err(e) => format!("pg_controldata: {e}"),
            });
            return said(Kind::Damage(cause), reasons);
        }
    }
    wrong_setting.and_then(|error| said(Kind::Configuration, vec![error]))
}
