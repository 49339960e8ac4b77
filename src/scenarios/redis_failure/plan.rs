//! Which remedy the trouble gets, and the steps of it.

use super::super::{PlanRequest, Refusal, Scenario, ladder, limits};
use super::loss::killed_loss;
use super::{Evidence, RedisFailing, Server, Trouble, diagnose, first};
use crate::event::bytes;
use crate::plan::{
    Action, Expectation, FileMend, PLAN_FORMAT, Plan, RedisAction, Remedy, Risk, Step, Undo, WorkloadAction,
};
use crate::probe::redis_files::{AppendState, RedisFileFacts, SnapshotState};
use crate::runbook::Runbook;
use crate::workload::{ContainerInfo, Status};

/// Room beside the copy that is mended.
const MARGIN: u64 = 16 << 20;
/// Of the keys that do not end by themselves, how many must be there afterwards, in percent:
/// an application that came back may have deleted some.
const KEYS_PERCENT: u64 = 90;
/// Bytes per second at which files are copied, checked and loaded, at least.
const SPEED: u64 = 30 << 20;

/// What the steps are made of.
pub(super) struct Ground<'a> {
    name: &'a str,
    pub(super) server: &'a Server,
    pub(super) files: Option<&'a RedisFileFacts>,
    rb: &'a Runbook,
    run: &'a str,
    pub(super) chosen: Remedy,
    pub(super) mend: Option<FileMend>,
    keep_first: bool,
    /// A restart kills it: it does not act on its stop signal.
    killed: bool,
}

fn helps(trouble: &Trouble, info: Option<&ContainerInfo>) -> &'static [Remedy] {
    match trouble {
        Trouble::OutOfMemory if info.is_some_and(|i| i.restart_count >= limits::OFTEN) => {
            &[Remedy::RaiseLimit]
        }
        Trouble::OutOfMemory => &[Remedy::Start, Remedy::RaiseLimit],
        Trouble::Frozen => &[Remedy::Thaw],
        Trouble::Stopped => &[Remedy::Start],
        Trouble::CannotSave => &[Remedy::Save, Remedy::Unblock],
        Trouble::Busy(_) => &[Remedy::KillScript, Remedy::Restart],
        Trouble::Loops | Trouble::Silent(_) => &[Remedy::Restart],
        Trouble::Damaged(_) => &[Remedy::Repair, Remedy::LoadSnapshot, Remedy::StartEmpty],
        Trouble::Ignored => &[Remedy::LoadSnapshot],
        Trouble::Instead(_) | Trouble::Unknown(_) => &[],
    }
}

/// How the files can be made loadable without another source; or why not.
fn repair(files: &RedisFileFacts) -> Result<FileMend, String> {
    if files.files.append_only {
        match files.append.as_ref().map(|a| &a.state) {
            Some(AppendState::Manifest { rebuilt: Ok(lines) }) => Ok(FileMend::Manifest(lines.clone())),
            Some(AppendState::Manifest { rebuilt: Err(why) }) => Err(why.clone()),
            Some(AppendState::Cut { .. }) => Ok(FileMend::Cut),
            Some(AppendState::Damaged(why)) => Err(format!(
                "only the end of the file of changes can be cut off: {why}"
            )),
            Some(AppendState::OtherVersion(format)) => Err(not_damaged(format)),
            Some(AppendState::Sound) => Err("its check tool finds nothing wrong with its files".into()),
            None => Err("there is no append-only file".into()),
        }
    } else {
        match files.snapshot.as_ref().map(|s| &s.state) {
            Some(SnapshotState::ChecksumWrong) => Ok(FileMend::Checksum),
            Some(SnapshotState::Damaged(_)) => {
                Err("a snapshot cannot be mended: no key behind the damage can be found".into())
            }
            Some(SnapshotState::OtherVersion(format)) => Err(not_damaged(format)),
            Some(SnapshotState::Sound) => Err("its check tool finds nothing wrong with its files".into()),
            None => Err("there is no snapshot".into()),
        }
    }
}

fn not_damaged(format: &str) -> String {
    format!("nothing is damaged: they are of {format}, which its image does not read")
}

/// What a remedy does to the files; or what stands in its way.
fn mend_of(files: &RedisFileFacts, remedy: Remedy, wanted: Option<Remedy>) -> Result<FileMend, String> {
    let room = |copies: u64, of: u64| {
        let needed = copies * of + MARGIN;
        if files.free >= needed {
            Ok(())
        } else {
            Err(format!(
                "it needs {} of room, and {} are free",
                bytes(needed),
                bytes(files.free)
            ))
        }
    };
    match remedy {
        Remedy::Repair => {
            let mend = repair(files)?;
            room(1, files.bytes())?;
            Ok(mend)
        }
        Remedy::LoadSnapshot => {
            if !files.files.append_only {
                return Err("without an append-only file the snapshot is what it loads".into());
            }
            let sound = files
                .snapshot
                .as_ref()
                .filter(|s| s.state == SnapshotState::Sound);
            let snapshot = sound.ok_or("there is no snapshot that can be loaded")?;
            room(2, snapshot.bytes)?;
            Ok(FileMend::FromSnapshot)
        }
        _ if !files.is_damaged() => Err("its check tool finds nothing wrong with its files".into()),
        // Whole data is not given up for an image that does not read it, whoever asks for it.
        _ if files.other_version().is_some() => Err(not_damaged(files.other_version().unwrap_or_default())),
        // A person may: the server would not load that one in any case.
        _ if wanted != Some(Remedy::StartEmpty)
            && let Some(format) = files.snapshot_of_another_version() =>
        {
            Err(format!(
                "beside it lies {} of {format}, which another image reads; a person has to decide: --remedy start-empty",
                files.files.snapshot
            ))
        }
        // Want of room is no reason to give up what could be kept: a person decides that.
        _ if wanted != Some(Remedy::StartEmpty) && only_room_is_missing(files) => {
            Err("its data can be kept, once there is room: drctl recover disk-full".into())
        }
        _ => Ok(FileMend::Empty),
    }
}

fn by_hand(trouble: &Trouble, files: Option<&RedisFileFacts>, container: &str) -> Vec<String> {
    let Trouble::Damaged(line) = trouble else {
        return vec![format!("docker logs --tail 50 {container}")];
    };
    let directory = files.map_or("/data", |f| f.files.directory.as_str());
    if line.contains("Permission denied") {
        return vec![
            format!(
                "docker run --rm --volumes-from {container} IMAGE ls -lan {directory}    # whose are they?"
            ),
            format!(
                "docker run --rm --volumes-from {container} IMAGE chown -R UID:GID {directory}    # of the server's user"
            ),
        ];
    }
    vec![
        format!("docker cp {container}:{directory} ./redis-data    # a copy first; never work on the only one"),
        "redis-check-rdb dump.rdb; redis-check-aof appendonlydir/appendonly.aof.manifest    # on the copy: what is damaged".into(),
        "# an append-only file: redis-check-aof --fix on the copy cuts everything behind the damage".into(),
    ]
}

/// Whether a gentler remedy is impossible now, and would not be with room for it.
fn only_room_is_missing(files: &RedisFileFacts) -> bool {
    let with_room = RedisFileFacts {
        free: u64::MAX,
        ..files.clone()
    };
    let possible = |f: &RedisFileFacts| {
        [Remedy::Repair, Remedy::LoadSnapshot]
            .iter()
            .any(|r| mend_of(f, *r, None).is_ok())
    };
    possible(&with_room) && !possible(files)
}

pub(super) fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
    let diagnosis = diagnose(ev);
    let Some((name, server, trouble)) = first(ev) else {
        return Err(Refusal {
            message: diagnosis.summary.clone(),
            reasons: diagnosis.reasons.clone(),
            next: Vec::new(),
        });
    };
    let container = server.container.found().map_or(name, |f| f.info.name.as_str());
    let files = server.files.as_ref().and_then(|f| f.as_ref().ok());
    let of_files = matches!(trouble, Trouble::Damaged(_) | Trouble::Ignored);
    let mend = |remedy: Remedy| match files {
        Some(files) => mend_of(files, remedy, request.remedy),
        None => Err("its files could not be looked at".to_owned()),
    };
    let info = server.container.found().map(|f| &f.info);
    let obstacle = |remedy: Remedy| match remedy {
        Remedy::RaiseLimit => info.and_then(|i| limits::obstacle(i, ev.memory_available)),
        _ if of_files => mend(remedy).err(),
        _ => None,
    };
    let rungs: Vec<ladder::Rung> = helps(&trouble, info)
        .iter()
        .map(|r| ladder::rung(request, *r, obstacle(*r)))
        .collect();
    let chosen = ladder::choose(
        RedisFailing::NAME,
        &rungs,
        request.remedy,
        &diagnosis.reasons,
        by_hand(&trouble, files, container),
    )?;
    let ground = Ground {
        name,
        server,
        files,
        rb,
        run: &request.run,
        chosen,
        mend: of_files.then(|| mend(chosen).ok()).flatten(),
        // The save of its stop would write over what is to be loaded.
        keep_first: matches!(trouble, Trouble::Ignored),
        killed: matches!(trouble, Trouble::Busy(_)),
    };
    let size = files.filter(|_| of_files).map_or(0, RedisFileFacts::bytes);
    Ok(Plan {
        format: PLAN_FORMAT,
        scenario: RedisFailing::NAME.to_owned(),
        deployment: rb.deployment.to_string(),
        run: request.run.clone(),
        service: name.to_owned(),
        diagnosis: diagnosis.summary.clone(),
        remedy: chosen,
        alternatives: ladder::alternatives(&rungs, chosen, |r| match r {
            Remedy::Unblock => "what is written from then on is not saved".into(),
            Remedy::LoadSnapshot => "what was written since the snapshot would be lost".into(),
            Remedy::StartEmpty => "all keys would be lost".into(),
            Remedy::Restart if matches!(trouble, Trouble::Busy(_)) => {
                format!(
                    "it does not end before it is killed; lost would be {}",
                    killed_loss(files)
                )
            }
            _ => "it interrupts more than is needed".into(),
        }),
        backup: None,
        steps: ground.steps(),
        expect: ground.expect(),
        data_loss: ground.loss(&trouble),
        estimate_seconds: 5 + 3 * size / SPEED,
        disk_needed: ground.disk_needed(),
        disk_free: files.map(|f| f.free),
        kept: ground.kept(),
        discard: ground.discard(),
    })
}

impl Ground<'_> {
    fn steps(&self) -> Vec<Step> {
        if self.chosen == Remedy::RaiseLimit
            && let Some(facts) = self.server.container.found()
        {
            let why = "with what it has it is killed while it loads its data".to_owned();
            let memory = facts.info.memory_limit * 2;
            return vec![
                limits::raise_memory(self.name, &facts.info, memory, why),
                step(self.name, Remedy::Start, self.rb),
            ];
        }
        let (Some(mend), Some(files)) = (&self.mend, self.files) else {
            let mut only = step(self.name, self.chosen, self.rb);
            if self.killed && self.chosen == Remedy::Restart {
                // What is in memory alone goes with it: more than an interruption.
                only.risk = Risk::Destructive;
                "its script cannot be ended, and in it the server does not act on its stop signal"
                    .clone_into(&mut only.why);
            }
            return vec![only];
        };
        let service = || self.name.to_owned();
        let run = || self.run.to_owned();
        let timeout_seconds = self.rb.deadlines.step.as_secs();
        let found = self.server.container.found();
        let did_not_run =
            found.is_some_and(|f| matches!(f.info.status, Status::Created | Status::Exited | Status::Dead));
        let mut steps = Vec::new();
        if self.keep_first {
            steps.push(Step {
                title: format!("Keep a copy of {}", files.files.snapshot),
                why: "the server saves on its way down and would write over it".into(),
                risk: Risk::Reversible,
                action: Action::Redis(RedisAction::KeepSnapshot {
                    service: service(),
                    run: run(),
                    files: files.files.clone(),
                }),
                undo: Undo::Action(Action::Redis(RedisAction::PutSnapshotBack {
                    service: service(),
                    run: run(),
                    files: files.files.clone(),
                })),
                timeout_seconds,
            });
        }
        steps.push(Step {
            title: format!("Stop {}", self.name),
            why: "its files are not touched while it runs, or while the engine starts it again and again"
                .into(),
            risk: Risk::Disruptive,
            action: Action::Workload(WorkloadAction::Stop { service: service() }),
            undo: if did_not_run {
                Undo::NotNeeded("it did not run".into())
            } else {
                Undo::Action(Action::Workload(WorkloadAction::Start {
                    service: service(),
                    wait: false,
                }))
            },
            timeout_seconds: self.rb.deadlines.stop.as_secs() + 60,
        });
        let (title, why) = self.words(mend, files);
        steps.push(Step {
            title,
            why,
            risk: match mend {
                FileMend::Manifest(_) => Risk::Reversible,
                _ if self.keep_first => Risk::Reversible,
                _ => Risk::Destructive,
            },
            action: Action::Redis(RedisAction::MendFiles {
                service: service(),
                run: run(),
                files: files.files.clone(),
                mend: mend.clone(),
            }),
            undo: Undo::Action(Action::Redis(RedisAction::PutFilesBack {
                service: service(),
                run: run(),
                files: files.files.clone(),
            })),
            timeout_seconds,
        });
        steps.push(Step {
            title: format!("Start {}", self.name),
            why: "it can load its files now".into(),
            risk: Risk::Reversible,
            action: Action::Workload(WorkloadAction::Start {
                service: service(),
                wait: true,
            }),
            undo: Undo::Action(Action::Workload(WorkloadAction::Stop { service: service() })),
            timeout_seconds,
        });
        let config = self.rb.redis_services().find(|(n, ..)| n.as_str() == self.name);
        if *mend == FileMend::Empty
            && let Some(url) = config.and_then(|(_, _, c)| c.warm_url.as_ref())
        {
            steps.push(Step {
                title: "Have the application fill its cache".into(),
                why: "an empty cache sends every question to the database".into(),
                risk: Risk::Reversible,
                action: Action::Redis(RedisAction::Warm { url: url.to_string() }),
                undo: Undo::NotNeeded("what is in a cache is elsewhere too".into()),
                timeout_seconds: 60,
            });
        }
        steps
    }

    fn words(&self, mend: &FileMend, files: &RedisFileFacts) -> (String, String) {
        let name = self.name;
        match mend {
            FileMend::Manifest(lines) => (
                format!("Write the manifest of {name} anew: {}", lines.join("; ")),
                "its files are there; only the list of them cannot be read".into(),
            ),
            FileMend::Checksum => (
                format!(
                    "Take the checksum out of a copy of {} and load that",
                    files.files.snapshot
                ),
                "every key in it can be read, and the server refuses it for its checksum".into(),
            ),
            FileMend::Cut => (
                format!("Cut the damage off a copy of the append-only file of {name} and load that"),
                files.in_words(),
            ),
            FileMend::FromSnapshot => (
                format!(
                    "Make the append-only file of {name} from {}",
                    files.files.snapshot
                ),
                "with an append-only file, that is all a server loads".into(),
            ),
            FileMend::Empty => (
                format!("Move the files of {name} aside"),
                format!("{}; without files it starts", files.in_words()),
            ),
        }
    }

    fn expect(&self) -> Vec<Expectation> {
        let service = || self.name.to_owned();
        let mut all = vec![
            Expectation::ServicesRun {
                services: vec![service()],
            },
            Expectation::RedisWrites { service: service() },
        ];
        let at_least = self.least_keys();
        if at_least > 0 {
            all.push(Expectation::RedisKeys {
                service: service(),
                at_least,
            });
        }
        all.extend([Expectation::Endpoints, Expectation::WriteCheck]);
        all
    }

    /// Keys that must be there afterwards; 0 where that is not known.
    fn least_keys(&self) -> u64 {
        let (Some(files), Some(mend)) = (self.files, &self.mend) else {
            return 0;
        };
        match mend {
            FileMend::Checksum | FileMend::FromSnapshot => {
                let lasting = files.snapshot.as_ref().map_or(0, |s| s.keys.lasting());
                (lasting * KEYS_PERCENT).div_ceil(100)
            }
            // What stands behind the base may delete of it: that something was loaded is all.
            FileMend::Manifest(_) | FileMend::Cut => {
                let base = files.append.as_ref().and_then(|a| a.base_keys);
                base.map_or(0, |k| k.lasting().min(1))
            }
            FileMend::Empty => 0,
        }
    }

    fn disk_needed(&self) -> u64 {
        match (&self.mend, self.files) {
            (Some(FileMend::Empty) | None, _) | (_, None) => 0,
            (Some(FileMend::FromSnapshot), Some(files)) => {
                2 * files.snapshot.as_ref().map_or(0, |s| s.bytes) + MARGIN
            }
            (_, Some(files)) => files.bytes() + MARGIN,
        }
    }

    fn kept(&self) -> String {
        match (&self.mend, self.files) {
            (Some(_), Some(files)) => format!(
                "the old files, in {}/.drctl/{} of {}; let go of them with `drctl incident close`",
                files.files.directory, self.run, self.name
            ),
            _ => String::new(),
        }
    }

    fn discard(&self) -> Vec<Action> {
        match (&self.mend, self.files) {
            (Some(_), Some(files)) => vec![Action::Redis(RedisAction::DropKept {
                service: self.name.to_owned(),
                run: self.run.to_owned(),
                files: files.files.clone(),
            })],
            _ => Vec::new(),
        }
    }
}

fn step(name: &str, remedy: Remedy, rb: &Runbook) -> Step {
    let service = name.to_owned();
    let timeout_seconds = rb.deadlines.stop.as_secs() + 60;
    let (title, why, risk, action, undo) = match remedy {
        Remedy::Thaw => (
            format!("Let {name} run again"),
            "a frozen process has lost nothing",
            Risk::Reversible,
            Action::Workload(WorkloadAction::Thaw { service }),
            Undo::NotNeeded("a process that runs is what was wanted".into()),
        ),
        Remedy::Start => (
            format!("Start {name}"),
            "it does not run, and its log speaks of no damage",
            Risk::Reversible,
            Action::Workload(WorkloadAction::Start {
                service: service.clone(),
                wait: true,
            }),
            Undo::Action(Action::Workload(WorkloadAction::Stop { service })),
        ),
        Remedy::Save => (
            format!("Have {name} save its data"),
            "a save that succeeds ends the refusal of writes",
            Risk::Reversible,
            Action::Redis(RedisAction::Save { service }),
            Undo::NotNeeded("the data is on disk once more".into()),
        ),
        Remedy::KillScript => (
            format!("End the script that {name} runs"),
            "nothing else is served meanwhile; Redis ends none that has written, so no data is touched",
            Risk::Reversible,
            Action::Redis(RedisAction::KillScript { service }),
            Undo::NotNeeded("who ran it gets an error and can run it again".into()),
        ),
        Remedy::Unblock => {
            let set = |value: &str| {
                Action::Redis(RedisAction::SetConfig {
                    service: service.clone(),
                    name: "stop-writes-on-bgsave-error".into(),
                    value: value.into(),
                })
            };
            (
                format!("Let {name} be written although it cannot save"),
                "users come first; until a save succeeds, what is written is in memory only",
                Risk::Reversible,
                set("no"),
                Undo::Action(set("yes")),
            )
        }
        _ => (
            format!("Restart {name}"),
            "it does not answer, and nothing gentler would make it",
            Risk::Disruptive,
            Action::Workload(WorkloadAction::Restart { service }),
            Undo::NotNeeded("it runs, as it did before".into()),
        ),
    };
    Step {
        title,
        why: why.to_owned(),
        risk,
        action,
        undo,
        timeout_seconds,
    }
}
