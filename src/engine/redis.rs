//! The proof of a Redis server: what PING does not tell.

use super::actions::Checked;
use super::settle::settled;
use super::verify::answer;
use crate::event::Verdict;
use crate::probe::redis::write_read_delete;
use crate::redis::{Client, RedisError};
use crate::system::System;

/// Whether a value can be stored, read back and removed. A server that is still loading is
/// waited for.
pub(super) async fn writes(system: &System, service: &str, what: String) -> Checked {
    // Resolved anew each time: a container gets a new address when it is started.
    settled(what, || async {
        match system.redis(service).await {
            Ok(server) => match server.connect().await {
                Ok(client) => match write_read_delete(&client).await {
                    Ok(()) => (Verdict::Pass, "written, read back and deleted".to_owned()),
                    Err(e) => (verdict(&e), e.to_string()),
                },
                Err(e) => (verdict(&e), e.to_string()),
            },
            Err(e) => (Verdict::CouldNotVerify, e.to_string()),
        }
    })
    .await
}

/// Whether all databases together hold so many keys. A server that is still loading is waited
/// for.
pub(super) async fn keys(system: &System, service: &str, at_least: u64, what: String) -> Checked {
    settled(what, || async {
        match system.redis(service).await {
            Ok(server) => {
                let info = async { server.connect().await?.info().await };
                match info.await {
                    Ok(info) if info.keys() >= at_least => (Verdict::Pass, format!("{} keys", info.keys())),
                    Ok(info) => (Verdict::Fail, format!("{} keys", info.keys())),
                    Err(e) => (verdict(&e), e.to_string()),
                }
            }
            Err(e) => (Verdict::CouldNotVerify, e.to_string()),
        }
    })
    .await
}

/// Whether a set counts fewer members than its limit.
pub(super) async fn room(
    system: &System,
    service: &str,
    (index, database): (&str, u32),
    limit: u64,
    what: String,
) -> Checked {
    let server = match system.redis(service).await {
        Ok(server) => server,
        Err(e) => return answer(what, Verdict::CouldNotVerify, e.to_string()),
    };
    let counted = async {
        let client = Client::connect(&server.spec.to_database(database)).await?;
        client.ask::<u64>(::redis::cmd("SCARD").arg(index)).await
    };
    match counted.await {
        Ok(n) if n < limit => answer(what, Verdict::Pass, format!("{n} of {limit}")),
        Ok(n) => answer(what, Verdict::Fail, format!("{n} of {limit}")),
        Err(e) => answer(what, verdict(&e), e.to_string()),
    }
}

/// A server that says no is an answer; one that says nothing is not.
fn verdict(e: &RedisError) -> Verdict {
    if e.kind().is_unreachable() {
        Verdict::CouldNotVerify
    } else {
        Verdict::Fail
    }
}
