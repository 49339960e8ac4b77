//! Signals that ask drctl to stop. The first lets it reach a safe state, the second ends
//! it where it stands.

use tokio::sync::watch;

use crate::error::Kind;

/// Which signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: a person pressed Ctrl-C.
    Interrupt,
    /// SIGTERM: the system or a supervisor.
    Terminate,
    /// SIGHUP: the terminal is gone, with the connection that it came by.
    Hangup,
}

impl Signal {
    /// How a run that it ended, ends.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::Interrupt => Kind::Interrupted,
            Self::Terminate | Self::Hangup => Kind::Terminated,
        }
    }
}

impl Signal {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Hangup => "SIGHUP",
        }
    }
}

const SIGHUP: u32 = 1;

/// Whether whoever started this process has had it ignore a signal.
fn is_ignored(number: u32) -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, number))
}

/// What `/proc/PID/status` says of a signal: `SigIgn` is a mask in hexadecimal, SIGHUP its lowest
/// bit (proc(5)).
fn ignores(status: &str, number: u32) -> bool {
    status
        .lines()
        .find_map(|l| l.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (number - 1) & 1 == 1)
}

/// Counts the signals that came, and remembers the last.
#[derive(Debug, Clone)]
pub struct Interrupts(watch::Receiver<(u32, Signal)>);

impl Interrupts {
    /// Takes SIGINT, SIGTERM and SIGHUP over from the system's default, which would end drctl in
    /// the middle of a step. Must be called inside the runtime.
    ///
    /// # Errors
    /// The system's error when a handler cannot be installed.
    pub fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut int = signal(SignalKind::interrupt())?;
        let mut term = signal(SignalKind::terminate())?;
        // Under `nohup` it is to be ignored, and a handler would undo that.
        let mut hup = if is_ignored(SIGHUP) {
            None
        } else {
            Some(signal(SignalKind::hangup())?)
        };
        let (tx, rx) = watch::channel((0, Signal::Interrupt));
        tokio::spawn(async move {
            loop {
                let which = tokio::select! {
                    got = int.recv() => got.map(|()| Signal::Interrupt),
                    got = term.recv() => got.map(|()| Signal::Terminate),
                    got = async { hup.as_mut()?.recv().await }, if hup.is_some() => {
                        // Once: the shell, the kernel and sudo each tell of the one terminal that is gone.
                        hup = None;
                        got.map(|()| Signal::Hangup)
                    }
                };
                let Some(which) = which else { return };
                tx.send_modify(|(count, last)| {
                    *count += 1;
                    *last = which;
                });
            }
        });
        Ok(Self(rx))
    }

    /// For tests: signals come from `tx`.
    #[must_use]
    pub fn from_channel(rx: watch::Receiver<(u32, Signal)>) -> Self {
        Self(rx)
    }

    /// Signals that never come.
    #[must_use]
    pub fn none() -> Self {
        Self(watch::channel((0, Signal::Interrupt)).1)
    }

    /// How many came, and the last.
    #[must_use]
    pub fn seen(&self) -> (u32, Signal) {
        *self.0.borrow()
    }

    /// Waits until more than `count` came.
    pub async fn more_than(&self, count: u32) -> Signal {
        let mut rx = self.0.clone();
        loop {
            let (seen, which) = *rx.borrow_and_update();
            if seen > count {
                return which;
            }
            if rx.changed().await.is_err() {
                // Nobody can send any more.
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_ignored_is_told_from_one_that_is_not() {
        let status = |mask| format!("Name:\tdrctl\nSigIgn:\t{mask}\nSigCgt:\tffffffffffffffff\n");
        // As under nohup, beside the SIGPIPE that Rust has every program ignore.
        assert!(ignores(&status("0000000000001001"), SIGHUP));
        assert!(!ignores(&status("0000000000001000"), SIGHUP));
        assert!(!ignores("", SIGHUP));
    }
}
