//! Why Redis did not do what it was asked.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What an error means: the part that decisions rest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// Nothing accepts the connection.
    NoConnection,
    /// No answer within the deadline.
    Timeout,
    /// The connection ended in the middle.
    Broken,
    /// `NOAUTH`: a password is needed and none was sent.
    PasswordNeeded,
    /// `WRONGPASS`: the password is wrong, or the user is disabled.
    WrongPassword,
    /// A password was sent to a server that has none: its configuration was lost.
    NoPasswordSet,
    /// `NOPERM`: the user may not do this.
    NotPermitted,
    /// `LOADING`: it reads its data and will be there soon. Wait, do not restart.
    Loading,
    /// `MISCONF`: writes are refused because they cannot be made durable. Also PING is.
    CannotPersist,
    /// `OOM`: writes are refused because `maxmemory` is reached. PING and reads go on.
    OutOfMemory,
    /// `READONLY`: this is a replica.
    ReadOnly,
    /// `MASTERDOWN`: a replica without its primary that does not serve old data.
    MasterDown,
    /// `max number of clients reached`.
    TooManyClients,
    /// `BUSY`: a script runs and nothing else does.
    Busy,
    /// `NOTBUSY`: no script runs that could be ended.
    NotBusy,
    /// `UNKILLABLE`: the script has written already; Redis ends it in no way that keeps the rest.
    Unkillable,
    /// Any other error of the server.
    OtherReply,
    /// An answer that makes no sense here.
    Unexpected,
}

impl ErrorKind {
    /// True when no further question to this server is worth its deadline.
    #[must_use]
    pub fn is_unreachable(self) -> bool {
        matches!(
            self,
            Self::NoConnection | Self::Timeout | Self::Broken | Self::TooManyClients
        )
    }
}

/// Why a connection or a command failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisError {
    /// The server answered with an error.
    #[error("{code} {message}")]
    Reply {
        /// Its first word, as `OOM`; `ERR` for all that have none of their own.
        code: String,
        /// The rest.
        message: String,
    },
    /// Nothing accepted the connection.
    #[error("no connection to {address}: {cause}")]
    NoConnection {
        /// `host:port`.
        address: String,
        /// The system's words.
        cause: String,
    },
    /// Nothing came within the deadline.
    #[error("{address} did not answer {what} within {}", crate::event::seconds(*deadline))]
    Timeout {
        /// `host:port`.
        address: String,
        /// What was asked: the command's name.
        what: String,
        /// How long we waited.
        deadline: Duration,
    },
    /// The connection broke.
    #[error("the connection to {address} broke: {cause}")]
    Broken {
        /// `host:port`.
        address: String,
        /// The driver's words.
        cause: String,
    },
    /// The answer is none that the command can have.
    #[error("{address} gave {what} an answer that makes no sense: {cause}")]
    Unexpected {
        /// `host:port`.
        address: String,
        /// What was asked.
        what: String,
        /// Why it makes none.
        cause: String,
    },
}

impl RedisError {
    /// What it means.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoConnection { .. } => ErrorKind::NoConnection,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Broken { .. } => ErrorKind::Broken,
            Self::Unexpected { .. } => ErrorKind::Unexpected,
            Self::Reply { code, message } => kind_of_reply(code, message),
        }
    }

    /// True when it means `kind`.
    #[must_use]
    pub fn is(&self, kind: ErrorKind) -> bool {
        self.kind() == kind
    }

    /// An error reply as it comes over the wire, without the dash: `OOM command not …`.
    #[must_use]
    pub(super) fn from_reply_line(line: &str) -> Self {
        let (code, message) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        Self::Reply {
            code: code.to_owned(),
            message: message.to_owned(),
        }
    }

    /// The driver's error about the command called `what`.
    pub(super) fn from_driver(e: &::redis::RedisError, address: &str, what: &str) -> Self {
        if let Some(code) = e.code() {
            return Self::Reply {
                code: code.to_owned(),
                message: e.detail().unwrap_or_default().to_owned(),
            };
        }
        let address = address.to_owned();
        if e.is_io_error() {
            Self::Broken {
                address,
                cause: e.to_string(),
            }
        } else {
            Self::Unexpected {
                address,
                what: what.to_owned(),
                cause: e.to_string(),
            }
        }
    }
}

/// The first word is the code (Redis serialization protocol, simple errors); a few errors
/// share `ERR` and are told apart by their text.
fn kind_of_reply(code: &str, message: &str) -> ErrorKind {
    match code {
        "NOAUTH" => ErrorKind::PasswordNeeded,
        "WRONGPASS" => ErrorKind::WrongPassword,
        "NOPERM" => ErrorKind::NotPermitted,
        "LOADING" => ErrorKind::Loading,
        "MISCONF" => ErrorKind::CannotPersist,
        "OOM" => ErrorKind::OutOfMemory,
        "READONLY" => ErrorKind::ReadOnly,
        "MASTERDOWN" => ErrorKind::MasterDown,
        "BUSY" => ErrorKind::Busy,
        "NOTBUSY" => ErrorKind::NotBusy,
        "UNKILLABLE" => ErrorKind::Unkillable,
        "ERR" if message.contains("max number of clients") => ErrorKind::TooManyClients,
        // Before version 6 a wrong password was an ERR, too.
        "ERR" if message.starts_with("invalid password") => ErrorKind::WrongPassword,
        "ERR"
            if message.contains("without any password configured")
                || message.contains("no password is set") =>
        {
            ErrorKind::NoPasswordSet
        }
        _ => ErrorKind::OtherReply,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reply_has_its_kind() {
        for (line, kind) in [
            ("NOAUTH Authentication required.", ErrorKind::PasswordNeeded),
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                ErrorKind::WrongPassword,
            ),
            ("ERR invalid password", ErrorKind::WrongPassword),
            (
                "ERR AUTH <password> called without any password configured for the default user. Are you sure \
                 your configuration is correct?",
                ErrorKind::NoPasswordSet,
            ),
            (
                "ERR Client sent AUTH, but no password is set",
                ErrorKind::NoPasswordSet,
            ),
            (
                "NOPERM this user has no permissions to run the 'set' command",
                ErrorKind::NotPermitted,
            ),
            (
                "LOADING Redis is loading the dataset in memory",
                ErrorKind::Loading,
            ),
            (
                "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
                ErrorKind::CannotPersist,
            ),
            (
                "MISCONF Errors writing to the AOF file: No space left on device",
                ErrorKind::CannotPersist,
            ),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                ErrorKind::OutOfMemory,
            ),
            (
                "READONLY You can't write against a read only replica.",
                ErrorKind::ReadOnly,
            ),
            (
                "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
                ErrorKind::MasterDown,
            ),
            ("ERR max number of clients reached", ErrorKind::TooManyClients),
            (
                "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
                ErrorKind::Busy,
            ),
            ("NOTBUSY No scripts in execution right now.", ErrorKind::NotBusy),
            (
                "UNKILLABLE Sorry the script already executed write commands against the dataset.",
                ErrorKind::Unkillable,
            ),
            ("ERR unknown command 'FLY'", ErrorKind::OtherReply),
            ("EXECABORT", ErrorKind::OtherReply),
        ] {
            let e = RedisError::from_reply_line(line);
            assert_eq!(e.kind(), kind, "{line}");
            assert_eq!(e.to_string().trim(), line);
        }
    }
}
