//! Frees what is safe, the safest first and no more than is needed, and brings back what the
//! full disk has stopped.

use super::diagnose::{FILES, Lack, Shortage, by_hand, diagnose, fillers, shortages};
use super::{DiskFull, Evidence};
use crate::event::bytes;
use crate::plan::{
    Action, DataLoss, Expectation, PLAN_FORMAT, Plan, RedisAction, Remedy, Risk, SpaceAction, Step, Undo,
};
use crate::postgres::sqlstate;
use crate::probe::connection::Connection;
use crate::probe::disk::{HERE, Place, Use};
use crate::runbook::Runbook;
use crate::scenarios::{PlanRequest, Refusal, Scenario, ladder};

/// Smaller logs are not worth a step.
const WORTH: u64 = 1 << 20;
/// What an archive may need beyond a half of its log: logs shrink to a twentieth.
const MARGIN: u64 = 64 << 20;

pub(super) fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
    let diagnosis = diagnose(ev, rb);
    let short = shortages(ev);
    let Some(first) = short.first() else {
        return Err(Refusal {
            message: diagnosis.summary,
            reasons: diagnosis.reasons,
            next: Vec::new(),
        });
    };
    let mut steps = Vec::new();
    for shortage in &short {
        steps.extend(free(ev, rb, shortage)?);
    }
    let rungs = [ladder::rung(request, Remedy::FreeSpace, None)];
    let chosen = ladder::choose(
        DiskFull::NAME,
        &rungs,
        request.remedy,
        &diagnosis.reasons,
        by_hand(ev, first),
    )?;
    let mut expect = Vec::new();
    for shortage in &short {
        revive(ev, rb, shortage, &mut steps, &mut expect);
    }
    for shortage in &short {
        if let Some(path) = here(ev, shortage) {
            expect.push(Expectation::Room {
                path,
                // A server that has come back has taken a part of it again.
                at_least: shortage.enough / 4,
                files: match shortage.lack {
                    Lack::Files => FILES,
                    Lack::Bytes => 0,
                },
            });
        }
    }
    expect.push(Expectation::Endpoints);
    expect.push(Expectation::WriteCheck);
    let service = short.iter().find_map(|s| {
        ev.servers_on(s.disk)
            .map(|(n, _)| n.to_owned())
            .next()
            .or_else(|| ev.caches_on(s.disk).map(|(n, _)| n.to_owned()).next())
    });
    Ok(Plan {
        format: PLAN_FORMAT,
        scenario: DiskFull::NAME.to_owned(),
        deployment: rb.deployment.to_string(),
        run: request.run.clone(),
        service: service.unwrap_or_else(|| first.who()),
        diagnosis: diagnosis.summary.clone(),
        remedy: chosen,
        alternatives: ladder::alternatives(&rungs, chosen, |_| String::new()),
        backup: None,
        steps,
        expect,
        data_loss: DataLoss {
            summary: "nothing of the application's data: what goes is named in the steps".into(),
            none: true,
            ..DataLoss::default()
        },
        estimate_seconds: 15,
        disk_needed: 0,
        disk_free: Some(first.disk.free),
        kept: String::new(),
        discard: Vec::new(),
    })
}

/// A path of this machine on a disk; `None` when the disk is another host's.
fn here(ev: &Evidence, shortage: &Shortage<'_>) -> Option<String> {
    let disk = shortage.disk;
    let remote = ev.disks.file_systems.iter().any(|d| d.id.starts_with(HERE));
    if remote && !disk.id.starts_with(HERE) {
        return None;
    }
    // A log's file goes with its container.
    let lasts = |p: &&Place| !matches!(p.what, Use::Log { .. });
    disk.places.iter().find(lasts).map(|p| p.path.clone())
}

/// The steps that free enough of one disk.
fn free(ev: &Evidence, rb: &Runbook, shortage: &Shortage<'_>) -> Result<Vec<Step>, Refusal> {
    let disk = shortage.disk;
    let path = here(ev, shortage).unwrap_or_default();
    let mut missing = shortage.wish.saturating_sub(disk.free);
    if shortage.lack == Lack::Files {
        // A set is a thousand files and more.
        missing = missing.max(1);
    }
    let (wanted, mut steps) = (missing, Vec::new());
    let timeout_seconds = rb.deadlines.step.as_secs();
    let step = |title: String, why: String, risk: Risk, action: SpaceAction, undo: Undo| Step {
        title,
        why,
        risk,
        action: Action::Space(action),
        undo,
        timeout_seconds,
    };
    if disk.holds(&Use::Backups) {
        let (mut labels, mut sum) = (Vec::new(), 0);
        for (label, size) in &ev.backups.old {
            if missing == 0 {
                break;
            }
            missing = missing.saturating_sub(*size);
            sum += size;
            labels.push(label.clone());
        }
        if let (Some(oldest), Some(newest)) = (labels.first(), labels.last()) {
            steps.push(step(
                format!(
                    "Remove {} old backup set{} ({oldest} to {newest}), {}",
                    labels.len(),
                    if labels.len() == 1 { "" } else { "s" },
                    bytes(sum)
                ),
                "the runbook's backup.keep no longer wants them, or a killed run left them; the newest and the last verified stay"
                    .into(),
                Risk::Destructive,
                SpaceAction::PruneBackups {
                    labels,
                    path: path.clone(),
                    enough: if shortage.lack == Lack::Files {
                        u64::MAX
                    } else {
                        shortage.wish
                    },
                },
                Undo::Impossible(
                    "the sets that were removed are gone: the step's outcome names them, and the runbook no longer wanted them".into(),
                ),
            ));
        }
    }
    if shortage.lack == Lack::Bytes {
        if missing > 0 && disk.holds(&Use::Engine) && !ev.images.is_empty() {
            let sum: u64 = ev.images.iter().map(|i| i.bytes).sum();
            // Builds share most of their layers with the one that is used, and those stay: what
            // is not certain to come back must not carry the plan.
            let certain: u64 = ev.images.iter().map(|i| i.own_bytes).sum();
            missing = missing.saturating_sub(certain);
            steps.push(step(
                format!(
                    "Remove {} images of this deployment without a name, up to {}",
                    ev.images.len(),
                    bytes(sum)
                ),
                format!(
                    "newer builds have taken their names, and no container uses them; {} are counted on, the rest may be \
                     layers that other images have",
                    bytes(certain)
                ),
                Risk::Destructive,
                SpaceAction::RemoveImages {
                    images: ev.images.iter().map(|i| i.id.clone()).collect(),
                },
                Undo::Impossible(
                    "the images that were removed are gone: a build makes their like again".into(),
                ),
            ));
        }
        for log in &ev.logs {
            let on_it = disk.holds(&Use::Log {
                service: log.service.clone(),
            });
            if missing == 0 || !on_it || log.bytes < WORTH {
                continue;
            }
            let into = ev
                .archives
                .iter()
                .find(|a| a.file_system != disk.id && a.free > log.bytes / 2 + MARGIN);
            let Some(into) = into else { continue };
            missing = missing.saturating_sub(log.bytes);
            steps.push(step(
                format!(
                    "Archive the log of {} ({}) in {}, and empty it",
                    log.container,
                    bytes(log.bytes),
                    into.path
                ),
                "another disk has room for it; what is archived is read back before the file is emptied"
                    .into(),
                Risk::Disruptive,
                SpaceAction::ArchiveLog {
                    service: log.service.clone(),
                    container: log.container.clone(),
                    into: into.path.clone(),
                    path: path.clone(),
                    enough: shortage.wish,
                },
                Undo::Manual(format!(
                    "where the log was emptied, all of it is in {}: zstd -dc reads it",
                    into.path
                )),
            ));
        }
    }
    let safe = wanted - missing;
    // What the wish is larger by than the need may be missing.
    missing = missing.saturating_sub(shortage.wish - shortage.enough);
    if missing == 0 && !steps.is_empty() {
        return Ok(steps);
    }
    let mut reasons: Vec<String> = fillers(ev, disk)
        .into_iter()
        .take(6)
        .map(|(n, what)| format!("{} {what}", bytes(n)))
        .collect();
    for (name, server) in ev.servers_on(disk) {
        reasons.extend(super::diagnose::held_back(name, server));
    }
    Err(Refusal {
        message: format!(
            "the disk of {} is full, and what can be freed safely ({}) does not suffice: {} are missing",
            shortage.who(),
            bytes(safe),
            match shortage.lack {
                Lack::Files => "files".to_owned(),
                Lack::Bytes => bytes(missing),
            }
        ),
        reasons,
        next: by_hand(ev, shortage),
    })
}

/// Whether a server serves nobody. One that refuses drctl alone serves others.
fn is_away(connection: &Connection) -> bool {
    match connection {
        Connection::Open { .. } => false,
        Connection::Closed { .. } | Connection::Silent => true,
        Connection::Refused { sqlstate, .. } => sqlstate == sqlstate::CANNOT_CONNECT_NOW,
    }
}

/// What follows once there is room: servers come back, and show that they can write.
fn revive(
    ev: &Evidence,
    rb: &Runbook,
    shortage: &Shortage<'_>,
    steps: &mut Vec<Step>,
    expect: &mut Vec<Expectation>,
) {
    let timeout_seconds = rb.deadlines.stop.as_secs() + 300;
    let ended = |name: &str| {
        ev.containers
            .get(name)
            .and_then(|c| c.found())
            .is_some_and(|f| !f.info.is_running())
    };
    let well = |name: &str| {
        ev.containers
            .get(name)
            .and_then(|c| c.found())
            .is_some_and(|f| f.info.is_running())
    };
    let back = |service: &str, why: &str| Step {
        title: format!("Bring {service} back"),
        why: why.to_owned(),
        risk: Risk::Disruptive,
        action: Action::Space(SpaceAction::Revive {
            service: service.to_owned(),
        }),
        undo: Undo::NotNeeded("a server that runs is what was wanted".into()),
        timeout_seconds,
    };
    for (name, server) in ev.servers_on(shortage.disk) {
        if ended(name) || is_away(&server.connection) {
            steps.push(Step {
                timeout_seconds: rb.deadlines.step.as_secs(),
                ..back(
                    name,
                    "it ended because its log could not grow; with room it replays it, and nothing is lost",
                )
            });
        }
        expect.push(Expectation::ServerAnswers {
            service: name.to_owned(),
        });
        expect.push(Expectation::ServerWrites {
            service: name.to_owned(),
        });
    }
    for (name, state) in ev.caches_on(shortage.disk) {
        if !well(name) {
            steps.push(back(name, "it does not run"));
        }
        let persistence = state.and_then(|s| s.info.as_ref()).map(|i| &i.persistence);
        if persistence.is_some_and(|p| !p.last_save_ok) {
            steps.push(Step {
                title: format!("Have {name} save its data"),
                why: "a save that succeeds ends the refusal of writes".into(),
                risk: Risk::Reversible,
                action: Action::Redis(RedisAction::Save {
                    service: name.to_owned(),
                }),
                undo: Undo::NotNeeded("the data is on disk once more".into()),
                timeout_seconds,
            });
        }
        expect.push(Expectation::RedisWrites {
            service: name.to_owned(),
        });
    }
}
