//! What keeps the server from running, by its log, its files and its configuration: what drctl
//! puts right, and what it says how to put right by hand.

use super::super::server_trouble::{self, Kind, Trouble};
use super::detect::traces;
use super::diagnose::{Cause, Finding, found, other};
use super::{Configuration, Evidence};
use crate::plan::ConfigLine;
use crate::probe::containers::{ContainerFacts, end_in_words};
use crate::workload::Status;

/// What log and files say keeps it from running.
pub(super) fn trouble(ev: &Evidence, facts: &ContainerFacts) -> Option<Finding> {
    let info = &facts.info;
    // Before all else: whatever is done to the files is done under the other server.
    if !ev.rivals.is_empty() {
        return Some(held(&info.name, &ev.rivals, vec![end_in_words(info)]));
    }
    let broken = ev
        .configuration
        .as_ref()
        .is_some_and(|c| !c.broken.is_empty() || c.refused.is_some() || c.rules_broken.is_some());
    // What one that was stopped had complained of has not ended it; damage, another version and a
    // full disk are there all the same.
    let stopped = info.status == Status::Exited && !traces(ev, info).ended_by_itself();
    let lasting = |kind| {
        matches!(
            kind,
            Kind::Empty | Kind::WrongMajor | Kind::Lost | Kind::DiskFull | Kind::Damage(_)
        )
    };
    let trouble = server_trouble::of(traces(ev, info)).filter(|t| !stopped || lasting(t.kind));
    let Some(Trouble { kind, reasons }) = trouble else {
        // The next start would fail.
        let said = ev.configuration.as_ref().filter(|_| broken)?;
        return Some(configuration(ev, said, facts, Vec::new()));
    };
    let name = &info.name;
    Some(match kind {
        Kind::Empty => empty(ev, facts, reasons),
        Kind::Lost => match traces(ev, info).lost() {
            Some(lost) if ev.server_user.is_some() => found(Cause::Lost(lost), reasons),
            _ => found(
                Cause::ByHand(
                    "a directory that it needs is gone, and whose it was is not known",
                    vec![format!("docker logs --tail 5 {name}    # which")],
                ),
                reasons,
            ),
        },
        Kind::Permissions => permissions(ev, facts, reasons),
        Kind::DiskFull => disk_full(ev, facts, reasons),
        Kind::Damage(what) => other(
            "db-corruption",
            format!("{} is damaged: {what}", ev.service),
            reasons,
        ),
        // Mended since its last start, and nobody starts it: the next start tells.
        Kind::Configuration
            if info.status == Status::Exited
                && ev
                    .configuration
                    .as_ref()
                    .is_some_and(|c| c.problem.is_none() && !broken) =>
        {
            let mut reasons = reasons;
            if reasons.iter().any(|r| r.contains("pg_hba")) && !rules_changed(ev, facts) {
                return Some(rules_as_they_were(facts, reasons));
            }
            reasons
                .push("that was its last start; its program accepts the configuration as it is now".into());
            found(Cause::Stopped, reasons)
        }
        Kind::Configuration => match &ev.configuration {
            Some(said) => configuration(ev, said, facts, reasons),
            None => by_hand_configuration(name, reasons),
        },
        Kind::LockFile => lock_file(ev, name, reasons),
        Kind::PortTaken => port_taken(facts, "address already in use")?,
        Kind::RecoverySource => recovery_source(ev, name, reasons),
        Kind::WrongMajor => {
            let traces = traces(ev, info);
            let (data, program) = traces.majors().unwrap_or(("?", "?"));
            let next = vec![
                format!("# start it with an image of PostgreSQL {data}, if that is what the data is"),
                format!(
                    "# if only the file PG_VERSION is wrong: docker run --rm --volumes-from {name} {} sh -c 'echo {program} > {}/PG_VERSION'",
                    info.image, ev.data_directory
                ),
            ];
            let mut all = reasons;
            all.push(format!(
                "the data is of PostgreSQL {data} and the image is PostgreSQL {program}"
            ));
            found(
                Cause::ByHand("its data is of another major version than its program", next),
                all,
            )
        }
    })
}

pub(super) fn permissions(ev: &Evidence, facts: &ContainerFacts, mut reasons: Vec<String>) -> Finding {
    for line in traces(ev, &facts.info).foreign() {
        if !reasons.contains(&line) {
            reasons.push(line);
        }
    }
    if ev.server_user.is_some() {
        return found(Cause::Permissions, reasons);
    }
    let next = vec![format!(
        "docker run --rm --volumes-from {} {} chown -R OWNER {}    # OWNER is the server's user",
        facts.info.name, facts.info.image, ev.data_directory
    )];
    found(
        Cause::ByHand(
            "its files have the wrong owner, and whose they were is not known",
            next,
        ),
        reasons,
    )
}

pub(super) fn disk_full(ev: &Evidence, facts: &ContainerFacts, mut reasons: Vec<String>) -> Finding {
    reasons.push("never delete anything in pg_wal".into());
    other(
        "disk-full",
        format!(
            "{}: {} does not run without room",
            traces(ev, &facts.info).disk_in_words(),
            ev.service
        ),
        reasons,
    )
}

fn configuration(
    ev: &Evidence,
    said: &Configuration,
    facts: &ContainerFacts,
    mut reasons: Vec<String>,
) -> Finding {
    let name = &facts.info.name;
    if let Some(words) = &said.rules_broken {
        reasons.push(words.clone());
        return without_rules(ev, facts, reasons);
    }
    reasons.extend(said.broken.iter().map(ConfigLine::in_words));
    reasons.extend(said.refused.clone());
    reasons.extend(
        said.problem
            .as_ref()
            .map(|p| format!("its configuration could not be read: {p}")),
    );
    if said.broken.is_empty() || said.refused.is_some() {
        return by_hand_configuration(name, reasons);
    }
    // Without a rule that refuses, the next rule lets in whom it was to keep out.
    if let Some(line) = said
        .broken
        .iter()
        .find(|l| l.file == "pg_hba.conf" && l.begins.contains("reject"))
    {
        let next = vec![
            format!("# mend the rule by hand: {}", line.in_words()),
            format!("docker start {name}"),
        ];
        return found(
            Cause::ByHand(
                "a rule of access that refuses is broken, and without it others would be let in",
                next,
            ),
            reasons,
        );
    }
    found(Cause::Configuration, reasons)
}

/// `postgres -C` does not read the rules of access: that it accepts the rest says nothing of them.
fn rules_changed(ev: &Evidence, facts: &ContainerFacts) -> bool {
    let changed = ev.configuration.as_ref().and_then(|c| c.rules_changed);
    matches!((changed, facts.info.started_at), (Some(changed), Some(start)) if changed > start)
}

fn rules_as_they_were(facts: &ContainerFacts, mut reasons: Vec<String>) -> Finding {
    let name = &facts.info.name;
    reasons.push("pg_hba.conf has not been changed since that start".into());
    let next = vec![
        format!("docker logs --tail 20 {name}    # names the rule: mend it"),
        format!("docker start {name}    # when it is mended"),
    ];
    found(
        Cause::ByHand(
            "it refuses its rules of access (pg_hba.conf), and which of them is not known",
            next,
        ),
        reasons,
    )
}

fn without_rules(ev: &Evidence, facts: &ContainerFacts, reasons: Vec<String>) -> Finding {
    let info = &facts.info;
    let owner = ev.server_user.as_deref().unwrap_or("OWNER");
    let next = vec![
        "drctl backup list    # the newest base backup holds pg_hba.conf as it was: put it back".into(),
        format!(
            "# or begin with: docker run --rm --user {owner} --volumes-from {} {} sh -c \"printf '%s\\n' 'local all all peer' 'host all all all scram-sha-256' > {}/pg_hba.conf\"",
            info.name, info.image, ev.data_directory
        ),
        format!("docker start {}", info.name),
    ];
    found(
        Cause::ByHand(
            "its rules of access (pg_hba.conf) are gone, and it does not start without one",
            next,
        ),
        reasons,
    )
}

/// Nothing is made where nothing is: the data may lie on a disk that is not mounted.
fn empty(ev: &Evidence, facts: &ContainerFacts, mut reasons: Vec<String>) -> Finding {
    let info = &facts.info;
    let mount = info.mount_of(&ev.data_directory);
    let mut next = Vec::new();
    if let Some(mount) = mount {
        let what = mount.volume.as_ref().map_or_else(
            || format!("the directory {} of the host", mount.source),
            |v| format!("the volume {v}"),
        );
        reasons.push(format!("{} is {what}", mount.destination));
        next.push(format!(
            "findmnt -T {}    # on the engine's host: is the disk of the data mounted?",
            mount.source
        ));
    }
    next.extend([
        format!(
            "docker inspect {} --format '{{{{json .Mounts}}}}'; docker volume ls    # is this the volume that it had?",
            info.name
        ),
        format!("docker start {}    # only when the data is there again: on an empty directory it makes a new cluster", info.name),
        "drctl backup list    # what there is, if the data is gone for good".into(),
    ]);
    found(Cause::ByHand("its data directory is empty", next), reasons)
}

fn by_hand_configuration(name: &str, reasons: Vec<String>) -> Finding {
    let next = vec![
        format!("docker logs --tail 10 {name}    # names the setting or the file"),
        format!("docker inspect {name} --format '{{{{.Config.Cmd}}}}'    # is it set on the command line?"),
    ];
    found(
        Cause::ByHand(
            "it refuses its configuration, and which line of it is not known",
            next,
        ),
        reasons,
    )
}

fn lock_file(ev: &Evidence, name: &str, mut reasons: Vec<String>) -> Finding {
    if ev.sharing.is_empty() {
        reasons.push("no other container runs on the same data".into());
        return found(Cause::LockFile, reasons);
    }
    held(name, &ev.sharing, reasons)
}

/// Another container runs on the data.
fn held(name: &str, others: &[String], mut reasons: Vec<String>) -> Finding {
    reasons.push(format!("container {} runs on the same data", others.join(", ")));
    let mut next: Vec<String> = others
        .iter()
        .map(|o| {
            format!("docker logs --tail 20 {o}    # is that a server? two on one data directory destroy it")
        })
        .collect();
    next.push(format!(
        "docker stop {}    # if {name} is the one that should run; then `drctl recover db-down`",
        others.join(" ")
    ));
    found(Cause::ByHand("another container holds its data", next), reasons)
}

fn recovery_source(ev: &Evidence, name: &str, mut reasons: Vec<String>) -> Finding {
    let signals: &[String] = ev.files.as_ref().map_or(&[], |f| &f.signals);
    let has = |file: &str| signals.iter().any(|s| s == file);
    let file = ["recovery.signal", "standby.signal"].into_iter().find(|f| has(f));
    // With a backup_label the data is a backup's, whole only with the log that belongs to it.
    match file {
        Some(file) if !has("backup_label") => {
            reasons.push(format!(
                "{file} is there, and no backup_label: the data is no unfinished restore"
            ));
            found(Cause::SignalFile(file), reasons)
        }
        _ => {
            let next = vec![
                "# set restore_command to where the log of this backup is kept".into(),
                format!("docker logs --tail 20 {name}"),
            ];
            found(
                Cause::ByHand(
                    "its data is a backup that was not brought up to date: it needs the log of it",
                    next,
                ),
                reasons,
            )
        }
    }
}

pub(super) fn port_taken(facts: &ContainerFacts, error: &str) -> Option<Finding> {
    let lower = error.to_lowercase();
    if !lower.contains("already allocated") && !lower.contains("already in use") {
        return None;
    }
    let info = &facts.info;
    let ports: Vec<&str> = info
        .to_publish
        .values()
        .filter_map(|a| a.rsplit_once(':').map(|(_, port)| port))
        .collect();
    let mut next: Vec<String> = ports
        .iter()
        .map(|p| format!("ss -ltnp 'sport = :{p}'; docker ps --filter publish={p}    # who has it?"))
        .collect();
    next.push(format!("docker start {}    # when it is free", info.name));
    Some(found(
        Cause::ByHand("another program has its port", next),
        vec![error.to_owned()],
    ))
}
