//! Sessions that nobody holds, and what only looks like them.

use super::harm::{Prepared, victim};
use super::redis::{RedisHarm, RedisMend};
use super::{Fault, Request};
use crate::error::{Error, Kind, Result};
use crate::runbook::ServiceKind;
use crate::system::System;

/// Every fault of this family.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "stuck-sessions/no-owner",
        summary: "the set of sessions is full of members that were never anybody's",
        leaves: "the session limit is reached, no key of theirs exists",
        live: false,
    },
    Fault {
        name: "stuck-sessions/ended",
        summary: "the set of sessions is full of sessions that have ended by their lifetime",
        leaves: "the session limit is reached a second after they were opened",
        live: false,
    },
    Fault {
        name: "stuck-sessions/alive",
        summary: "look-alike: the limit is reached by sessions that are alive",
        leaves: "the session limit is reached, every member has its key",
        live: false,
    },
    Fault {
        name: "stuck-sessions/few",
        summary: "look-alike: some members have no owner, far below the limit",
        leaves: "nothing that a user notices",
        live: false,
    },
];

/// Works out what `variant` would hit; nothing is changed.
///
/// # Errors
/// [`Kind::Usage`] when the runbook does not say how sessions are kept.
pub async fn prepare(
    system: &System,
    variant: &str,
    service: Option<&str>,
    request: &Request,
    id: &str,
) -> Result<Option<Prepared>> {
    let (service, container) = victim(
        system,
        service,
        |s| matches!(&s.kind, ServiceKind::Redis(r) if r.sessions.is_some()),
    )
    .await?;
    let sessions = system
        .runbook
        .redis_services()
        .find(|(n, ..)| n.as_str() == service)
        .and_then(|(_, _, r)| r.sessions.clone())
        .ok_or_else(|| {
            Error::new(
                Kind::Usage,
                format!("the runbook does not say how {service} keeps sessions"),
            )
            .untouched("everything")
        })?;
    let prefix = format!("drctl-fault-{id}-");
    let owned = |seconds| Some((sessions.owner_prefix.clone(), seconds));
    let (count, owner) = match variant {
        "no-owner" => (sessions.limit, None),
        "ended" => (sessions.limit, owned(1)),
        "alive" => (sessions.limit, owned(request.ttl.as_secs().max(1))),
        "few" => (sessions.limit / 10, None),
        _ => return Ok(None),
    };
    let members = |prefix: String, count, owner| RedisHarm::Members {
        database: sessions.database,
        index: sessions.index.clone(),
        prefix,
        count,
        owner,
    };
    let mut harm = vec![members(prefix.clone(), count, owner)];
    if matches!(variant, "no-owner" | "ended") {
        // Hardly anybody is connected, and somebody is: without one living session nothing tells
        // that the sessions' keys are called as the runbook says.
        let lives = owned(request.ttl.as_secs().max(1));
        harm.push(members(format!("{prefix}lives-"), 1, lives));
    }
    let mends = vec![
        RedisMend::RemoveMembers {
            database: sessions.database,
            index: sessions.index.clone(),
            pattern: format!("{prefix}*"),
        },
        RedisMend::Delete {
            database: sessions.database,
            pattern: format!("{}{prefix}*", sessions.owner_prefix),
        },
    ];
    Ok(Some(Prepared::of_redis(service, container.name, harm, mends)))
}
