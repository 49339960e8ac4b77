//! Signals that ask drctl to stop. The first lets it reach a safe state, the second ends
//! it where it stands.

use tokio::sync::watch;

/// Which signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: a person pressed Ctrl-C.
    Interrupt,
    /// SIGTERM: the system or a supervisor.
    Terminate,
}

impl Signal {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }
}

/// Counts the signals that came, and remembers the last.
#[derive(Debug, Clone)]
pub struct Interrupts(watch::Receiver<(u32, Signal)>);

impl Interrupts {
    /// Takes SIGINT and SIGTERM over from the system's default, which would end drctl in
    /// the middle of a step. Must be called inside the runtime.
    ///
    /// # Errors
    /// The system's error when a handler cannot be installed.
    pub fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut int = signal(SignalKind::interrupt())?;
        let mut term = signal(SignalKind::terminate())?;
        let (tx, rx) = watch::channel((0, Signal::Interrupt));
        tokio::spawn(async move {
            loop {
                let which = tokio::select! {
                    got = int.recv() => got.map(|()| Signal::Interrupt),
                    got = term.recv() => got.map(|()| Signal::Terminate),
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
