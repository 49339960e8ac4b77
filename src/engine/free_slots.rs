//! The proof that an ordinary role gets a connection, by the server's own counts: drctl does
//! not know the application's password.

use super::actions::Checked;
use super::settle::settled;
use crate::event::Verdict;
use crate::probe::sessions;
use crate::system::System;

/// Whether so many ordinary slots are free.
pub(super) async fn free_slots(system: &System, service: &str, at_least: u32, what: String) -> Checked {
    settled(what, || async {
        match system.postgres(service).await {
            Err(e) => (Verdict::CouldNotVerify, e.to_string()),
            Ok(server) => match server.connect().await {
                Err(e) => (Verdict::Fail, e.to_string()),
                Ok(client) => match sessions::read(&client).await {
                    Err(e) => (Verdict::CouldNotVerify, e.to_string()),
                    Ok(facts) => {
                        let found =
                            format!("{} of {} ordinary slots are free", facts.free(), facts.ordinary());
                        if facts.free() >= at_least {
                            (Verdict::Pass, found)
                        } else {
                            (Verdict::Fail, found)
                        }
                    }
                },
            },
        }
    })
    .await
}
