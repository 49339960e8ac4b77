//! The boundary error: what the operator reads and what the exit code says.
//!
//! Modules have typed errors of their own; a verb turns them into this one, adding what
//! was attempted, what was not touched and what to type next.

use std::fmt;

/// Why a run ended, one per exit code of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A bug or an unexpected failure of the local machine.
    Internal,
    /// The command line makes no sense.
    Usage,
    /// The runbook is missing or invalid.
    Runbook,
    /// The plan would be unsafe or is impossible; nothing was changed.
    Refused,
    /// The operator said no.
    Declined,
    /// Another run holds the lock.
    Locked,
    /// The engine or a server cannot be reached.
    Unreachable,
    /// A step failed and everything was undone.
    FailedUndone,
    /// A step failed and the system was left changed.
    FailedChanged,
    /// The work was done and does not hold.
    VerifyFailed,
    /// A backup is damaged.
    BackupDamaged,
    /// The answer could not be had.
    CouldNotVerify,
    /// Interrupted; the state is safe.
    Interrupted,
    /// Asked to end by SIGTERM; the state is safe.
    Terminated,
}

impl Kind {
    /// The process exit code.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Usage => 2,
            Self::Runbook => 3,
            Self::Refused => 4,
            Self::Declined => 5,
            Self::Locked => 6,
            Self::Unreachable => 7,
            Self::FailedUndone => 8,
            Self::FailedChanged => 9,
            Self::VerifyFailed => 10,
            Self::BackupDamaged => 11,
            Self::CouldNotVerify => 12,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }

    /// The word for the JSON form.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Usage => "usage",
            Self::Runbook => "runbook-invalid",
            Self::Refused => "refused",
            Self::Declined => "declined",
            Self::Locked => "locked",
            Self::Unreachable => "unreachable",
            Self::FailedUndone => "failed-undone",
            Self::FailedChanged => "failed-changed",
            Self::VerifyFailed => "verify-failed",
            Self::BackupDamaged => "backup-damaged",
            Self::CouldNotVerify => "could-not-verify",
            Self::Interrupted => "interrupted",
            Self::Terminated => "terminated",
        }
    }
}

/// The error that reaches the operator.
#[derive(Debug)]
pub struct Error {
    /// Decides the exit code.
    pub kind: Kind,
    /// What was attempted, on which named thing, and how it ended.
    pub message: String,
    /// Causes, outermost first.
    pub causes: Vec<String>,
    /// What was not touched, one sentence.
    pub untouched: Option<String>,
    /// What to type next, in order of promise.
    pub next: Vec<String>,
}

/// Result with the boundary error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a message and nothing else yet.
    #[must_use]
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            causes: Vec::new(),
            untouched: None,
            next: Vec::new(),
        }
    }

    /// Adds a cause and the causes behind it.
    #[must_use]
    pub fn because(mut self, cause: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(cause);
        while let Some(c) = next {
            let text = c.to_string();
            // A wrapper that repeats its source in its own words says it once.
            if !self.causes.iter().any(|seen| seen.contains(&text)) {
                self.causes.push(text);
            }
            next = c.source();
        }
        self
    }

    /// Says what was left alone.
    #[must_use]
    pub fn untouched(mut self, text: impl Into<String>) -> Self {
        self.untouched = Some(text.into());
        self
    }

    /// Offers a next command.
    #[must_use]
    pub fn next(mut self, text: impl Into<String>) -> Self {
        self.next.push(text.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        for (i, cause) in self.causes.iter().enumerate() {
            write!(f, "\n  {}. {cause}", i + 1)?;
        }
        if let Some(text) = &self.untouched {
            write!(f, "\nNot touched: {text}")?;
        }
        for text in &self.next {
            write!(f, "\nNext: {text}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<crate::workload::WorkloadError> for Error {
    fn from(e: crate::workload::WorkloadError) -> Self {
        if e.is_unreachable() {
            let error = Self::new(Kind::Unreachable, e.to_string())
                .untouched("everything: drctl changed nothing over a connection it does not have");
            match e.ssh() {
                Some(address) => error
                    .next(format!(
                        "{}    # by hand: is its host key known here, is your key known there?",
                        address.command("docker version")
                    ))
                    .next("drctl runbook show      # `deadlines.probe` is how long a connection may take"),
                None => error
                    .next("docker version    # does the engine answer at all?")
                    .next("systemctl status docker"),
            }
        } else {
            Self::new(Kind::Internal, e.to_string())
        }
    }
}
