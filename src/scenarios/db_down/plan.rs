//! Which remedy the cause gets, and the steps of it.

use super::super::{PlanRequest, Refusal, Scenario, ladder, limits, server_trouble};
use super::diagnose::{Cause, classify, diagnose};
use super::{DbDown, Evidence};
use crate::plan::{
    Action, ClusterAction, ConfigLine, DataLoss, Expectation, PLAN_FORMAT, Plan, Remedy, Risk, ServerAction,
    Step, Undo, WorkloadAction,
};
use crate::probe::containers::ContainerFacts;
use crate::probe::logs::may_loop;
use crate::runbook::Runbook;
use crate::workload::Status;

/// What the steps are made of.
struct Ground<'a> {
    ev: &'a Evidence,
    rb: &'a Runbook,
    facts: &'a ContainerFacts,
    run: &'a str,
    why: String,
}

/// Which remedies could help, gentlest first.
fn helps(cause: &Cause, facts: &ContainerFacts) -> &'static [Remedy] {
    match cause {
        Cause::Replaying => &[Remedy::Wait],
        Cause::Frozen => &[Remedy::Thaw, Remedy::Restart],
        Cause::Stopped => &[Remedy::Start],
        Cause::OutOfMemory if facts.info.restart_count >= limits::OFTEN => &[Remedy::RaiseLimit],
        Cause::OutOfMemory => &[Remedy::Start, Remedy::RaiseLimit],
        Cause::Permissions => &[Remedy::FixPermissions],
        Cause::Lost(_) => &[Remedy::Repair],
        Cause::Configuration | Cause::Elsewhere(_) => &[Remedy::Reconfigure],
        Cause::LockFile | Cause::SignalFile(_) => &[Remedy::ClearStale],
        Cause::ShuttingDown => &[Remedy::Restart],
        Cause::Answers | Cause::NoContainer | Cause::ByHand(..) | Cause::Instead(_) | Cause::Unknown(_) => {
            &[]
        }
    }
}

/// What stands in the way of a remedy, if anything.
fn obstacle(ev: &Evidence, facts: &ContainerFacts, cause: &Cause, remedy: Remedy) -> Option<String> {
    match (remedy, cause) {
        (Remedy::RaiseLimit, _) => limits::obstacle(&facts.info, ev.memory_available),
        (Remedy::Reconfigure, _) => {
            let lines = lines(ev, cause);
            if lines.is_empty() {
                if let Some(why) = unread(ev) {
                    return Some(format!(
                        "its configuration could not be read: {why}; run this again"
                    ));
                }
                return Some(
                    "no file of the data directory sets it: it is on the command line, or the default".into(),
                );
            }
            let data = &ev.data_directory;
            let read_only = facts.info.mount_of(data).is_some_and(|m| !m.writable);
            let mounted = lines.iter().map(|l| format!("{data}/{}", l.file)).find(|path| {
                // A single file that is mounted cannot be replaced by a rename.
                facts.info.mounts.iter().any(|m| m.destination == *path)
            });
            match mounted {
                Some(path) => Some(format!("{path} is mounted from the host: mend it there")),
                None => read_only.then(|| format!("{data} is mounted read-only")),
            }
        }
        _ => None,
    }
}

/// Why nothing is known of the configuration, if that is so: a helper that was too slow is no
/// reason to say that no file sets anything.
fn unread(ev: &Evidence) -> Option<String> {
    match (&ev.configuration, &ev.files) {
        (Some(configuration), _) => configuration.problem.clone(),
        (None, Err(why)) => Some(why.clone()),
        (None, Ok(_)) => Some("the server's user is not known, or its log speaks of something else".into()),
    }
}

/// The lines that a reconfiguration sets aside.
fn lines(ev: &Evidence, cause: &Cause) -> Vec<ConfigLine> {
    let Some(configuration) = &ev.configuration else {
        return Vec::new();
    };
    match cause {
        Cause::Elsewhere(listens) if listens.port != ev.port => configuration.port.iter().cloned().collect(),
        Cause::Elsewhere(_) => configuration.listen_addresses.iter().cloned().collect(),
        _ => configuration.broken.clone(),
    }
}

fn by_hand(ev: &Evidence, cause: &Cause, facts: Option<&ContainerFacts>) -> Vec<String> {
    let name = facts.map_or(ev.service.as_str(), |f| f.info.name.as_str());
    match cause {
        Cause::ByHand(_, next) => next.clone(),
        Cause::NoContainer => vec![
            format!(
                "docker compose up -d {}    # create it from the compose file; named volumes are used again",
                ev.service
            ),
            "drctl runbook show    # is the Compose project's name right?".into(),
        ],
        Cause::OutOfMemory => vec![
            format!(
                "docker update --memory BYTES --memory-swap BYTES {name}    # more memory, if the machine has it"
            ),
            format!("docker start {name}"),
        ],
        Cause::Elsewhere(_) => vec![
            format!(
                "docker inspect {name} --format '{{{{.Config.Cmd}}}}'    # does the command line say where it listens?"
            ),
            "alter system set port = …; alter system set listen_addresses = '*';    # then restart it".into(),
        ],
        Cause::Configuration => vec![
            format!("docker logs --tail 10 {name}    # names file and line"),
            format!("docker start {name}    # when it is mended"),
        ],
        _ => vec![format!("docker logs --tail 50 {name}"), "drctl diagnose".into()],
    }
}

pub(super) fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
    let cause = classify(ev).cause;
    let diagnosis = diagnose(ev);
    let facts = ev.container.found();
    let (Some(facts), false) = (facts, facts.is_none_or(|f| helps(&cause, f).is_empty())) else {
        return Err(Refusal {
            message: format!("drctl does not put this right by itself: {}", diagnosis.summary),
            reasons: diagnosis.reasons,
            next: by_hand(ev, &cause, facts),
        });
    };
    let rungs: Vec<ladder::Rung> = helps(&cause, facts)
        .iter()
        .map(|r| ladder::rung(request, *r, obstacle(ev, facts, &cause, *r)))
        .collect();
    let chosen = ladder::choose(
        DbDown::NAME,
        &rungs,
        request.remedy,
        &diagnosis.reasons,
        by_hand(ev, &cause, Some(facts)),
    )?;
    let ground = Ground {
        ev,
        rb,
        facts,
        run: &request.run,
        why: diagnosis.summary.clone(),
    };
    let steps = ground.steps(&cause, chosen);
    let keeps = steps.iter().any(|s| {
        matches!(
            s.action,
            Action::Server(
                ServerAction::SetAside { .. }
                    | ServerAction::FixPermissions { .. }
                    | ServerAction::MoveAside { .. }
            )
        )
    });
    let discard = Action::Cluster(ClusterAction::Discard {
        service: ev.service.clone(),
        run: request.run.clone(),
    });
    Ok(Plan {
        format: PLAN_FORMAT,
        scenario: DbDown::NAME.to_owned(),
        deployment: rb.deployment.to_string(),
        run: request.run.clone(),
        service: ev.service.clone(),
        diagnosis: diagnosis.summary,
        remedy: chosen,
        alternatives: ladder::alternatives(&rungs, chosen, |_| "it changes more than is needed".into()),
        backup: None,
        estimate_seconds: if chosen == Remedy::Wait {
            60
        } else {
            5 * steps.len() as u64
        },
        steps,
        expect: expectations(ev, rb),
        data_loss: DataLoss {
            summary: "nothing is lost by it: what the server had made durable is there".into(),
            none: true,
            ..DataLoss::default()
        },
        disk_needed: 0,
        disk_free: ev.files.as_ref().ok().map(|f| f.disk_free),
        kept: if keeps {
            format!(
                "what was there before, in .drctl/{} of the data directory; let go of it with `drctl incident close`",
                request.run
            )
        } else {
            String::new()
        },
        discard: if keeps { vec![discard] } else { Vec::new() },
    })
}

fn expectations(ev: &Evidence, rb: &Runbook) -> Vec<Expectation> {
    let service = ev.service.clone();
    let mut expect = vec![
        Expectation::ServicesRun {
            services: vec![service.clone()],
        },
        Expectation::ServerAnswers {
            service: service.clone(),
        },
    ];
    let server = rb.postgres_services().find(|(n, ..)| n.as_str() == service);
    for (database, config) in server.into_iter().flat_map(|(_, _, p)| &p.databases) {
        if let Some(role) = &config.application_user {
            expect.push(Expectation::ApplicationRole {
                service: service.clone(),
                database: database.to_string(),
                role: role.to_string(),
            });
        }
    }
    expect.extend([Expectation::Endpoints, Expectation::WriteCheck]);
    expect
}

impl Ground<'_> {
    fn service(&self) -> String {
        self.ev.service.clone()
    }

    /// A stop or a start with room for a replay.
    fn patience(&self) -> u64 {
        self.rb.deadlines.stop.as_secs() + 120
    }

    /// Whether the container works or tries to.
    fn is_active(&self) -> bool {
        matches!(self.facts.info.status, Status::Running | Status::Restarting)
    }

    fn steps(&self, cause: &Cause, remedy: Remedy) -> Vec<Step> {
        match remedy {
            Remedy::Wait => vec![self.wait()],
            Remedy::Thaw => vec![self.thaw()],
            Remedy::Start => vec![self.start(self.why.clone())],
            Remedy::RaiseLimit => {
                let limit = self.facts.info.memory_limit * 2;
                let raise = limits::raise_memory(&self.ev.service, &self.facts.info, limit, self.why.clone());
                self.while_stopped(vec![raise], "it has the memory now")
            }
            Remedy::FixPermissions => {
                let fix = self.fix_permissions();
                // A server that runs reads a file again as soon as it may.
                if self.facts.info.is_running() && !may_loop(&self.facts.info) {
                    vec![fix]
                } else {
                    self.while_stopped(vec![fix], "it may use its files now")
                }
            }
            Remedy::Repair => self.while_stopped(vec![self.make_missing(cause)], "it has what it needs"),
            Remedy::Reconfigure => self.while_stopped(
                vec![self.set_aside(cause)],
                "it reads its configuration at its start",
            ),
            Remedy::ClearStale => {
                self.while_stopped(vec![self.move_aside(cause)], "nothing keeps it from serving now")
            }
            _ => vec![self.restart()],
        }
    }

    /// The steps on a server that does not run, with a stop before where it does or goes round
    /// in circles, and a start behind.
    fn while_stopped(&self, work: Vec<Step>, why: &str) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.is_active() {
            steps.push(self.stop());
        }
        steps.extend(work);
        steps.push(self.start(why.to_owned()));
        steps
    }

    fn wait(&self) -> Step {
        Step {
            title: format!(
                "Wait until {} takes connections, and show how far it is",
                self.ev.service
            ),
            why: format!("{}; a restart would have it begin anew", self.why),
            risk: Risk::ReadOnly,
            action: Action::Server(ServerAction::AwaitRecovery {
                service: self.service(),
            }),
            undo: Undo::NotNeeded("nothing is changed".into()),
            timeout_seconds: self.rb.deadlines.step.as_secs(),
        }
    }

    fn thaw(&self) -> Step {
        Step {
            title: format!("Let {} run again", self.ev.service),
            why: self.why.clone(),
            risk: Risk::Reversible,
            action: Action::Workload(WorkloadAction::Thaw {
                service: self.service(),
            }),
            undo: Undo::NotNeeded("a process that runs is what was wanted".into()),
            timeout_seconds: self.patience(),
        }
    }

    fn stop(&self) -> Step {
        let looping = may_loop(&self.facts.info);
        Step {
            title: format!("Stop {}", self.ev.service),
            why: if looping {
                "the engine starts it again and again: its files are not touched meanwhile".into()
            } else {
                "its files are not touched while it runs; nobody gets at it as it is".into()
            },
            risk: Risk::Disruptive,
            action: Action::Workload(WorkloadAction::Stop {
                service: self.service(),
            }),
            undo: Undo::Action(Action::Workload(WorkloadAction::Start {
                service: self.service(),
                wait: false,
            })),
            timeout_seconds: self.patience(),
        }
    }

    fn start(&self, why: String) -> Step {
        Step {
            title: format!("Start {} and wait until it takes connections", self.ev.service),
            why,
            risk: Risk::Reversible,
            action: Action::Workload(WorkloadAction::Start {
                service: self.service(),
                wait: true,
            }),
            undo: Undo::Action(Action::Workload(WorkloadAction::Stop {
                service: self.service(),
            })),
            // It may have to replay its log first.
            timeout_seconds: self.rb.deadlines.step.as_secs(),
        }
    }

    fn restart(&self) -> Step {
        Step {
            title: format!("Restart {}", self.ev.service),
            why: self.why.clone(),
            risk: Risk::Disruptive,
            action: Action::Workload(WorkloadAction::Restart {
                service: self.service(),
            }),
            undo: Undo::NotNeeded("it runs, as it did before".into()),
            timeout_seconds: self.rb.deadlines.step.as_secs(),
        }
    }

    fn fix_permissions(&self) -> Step {
        let owner = self.ev.server_user.clone().unwrap_or_default();
        let foreign = self.ev.files.as_ref().map_or(&[][..], |f| &f.foreign);
        let which = match foreign {
            [] => "its files".to_owned(),
            [one] => one.clone(),
            [one, rest @ ..] => format!("{one} and {} more", rest.len()),
        };
        Step {
            title: format!("Give {which} back to user {owner}"),
            why: self.why.clone(),
            risk: Risk::Reversible,
            action: Action::Server(ServerAction::FixPermissions {
                service: self.service(),
                run: self.run.to_owned(),
                owner,
            }),
            undo: Undo::Action(Action::Server(ServerAction::RestorePermissions {
                service: self.service(),
                run: self.run.to_owned(),
            })),
            timeout_seconds: 600,
        }
    }

    fn make_missing(&self, cause: &Cause) -> Step {
        let lost = match cause {
            Cause::Lost(lost) => lost.clone(),
            _ => server_trouble::Lost::default(),
        };
        Step {
            title: format!("Make {} anew", lost.in_words()),
            why: "the server fills it by itself, and does not start without".into(),
            risk: Risk::Reversible,
            action: Action::Server(ServerAction::MakeMissing {
                service: self.service(),
                run: self.run.to_owned(),
                owner: self.ev.server_user.clone().unwrap_or_default(),
                directories: lost.directories,
                version: lost.version,
            }),
            undo: Undo::NotNeeded("nothing was there".into()),
            timeout_seconds: 60,
        }
    }

    fn set_aside(&self, cause: &Cause) -> Step {
        let lines = lines(self.ev, cause);
        let words: Vec<String> = lines.iter().map(ConfigLine::in_words).collect();
        let mut why: Vec<String> = lines.iter().map(|l| l.why.clone()).collect();
        why.dedup();
        let rules = lines.iter().any(|l| l.file == "pg_hba.conf");
        let then = if rules {
            "; whom this rule was for, the rules behind it decide about"
        } else {
            "; without it the value of the line before it or the default counts"
        };
        Step {
            title: format!("Make a comment of {}", words.join("; ")),
            why: format!("{}{then}", why.join("; ")),
            risk: Risk::Reversible,
            action: Action::Server(ServerAction::SetAside {
                service: self.service(),
                run: self.run.to_owned(),
                lines,
            }),
            undo: Undo::Action(Action::Server(ServerAction::PutLinesBack {
                service: self.service(),
                run: self.run.to_owned(),
            })),
            timeout_seconds: 120,
        }
    }

    fn move_aside(&self, cause: &Cause) -> Step {
        let file = match cause {
            Cause::SignalFile(file) => *file,
            _ => "postmaster.pid",
        };
        let files = vec![file.to_owned()];
        Step {
            title: format!("Move {file} aside"),
            why: self.why.clone(),
            risk: Risk::Reversible,
            action: Action::Server(ServerAction::MoveAside {
                service: self.service(),
                run: self.run.to_owned(),
                files: files.clone(),
            }),
            undo: Undo::Action(Action::Server(ServerAction::MoveBack {
                service: self.service(),
                run: self.run.to_owned(),
                files,
            })),
            timeout_seconds: 120,
        }
    }
}
