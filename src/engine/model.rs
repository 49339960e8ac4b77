//! A model of the engine, checked for every point at which it can be cut off: whatever
//! happens, resume or undo ends in the old state or in the new one, never between.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::watch;

use super::actions::{ActionError, Outcome};
use super::execute::{Hands, Run, Stop, Which};
use super::interrupt::{Interrupts, Signal};
use crate::event::{SharedReporter, Silent};
use crate::incident::{JournalError, Log, Progress, Record, Stage, StateError};
use crate::plan::{Action, DataLoss, PLAN_FORMAT, Plan, Remedy, Risk, Step, Undo, WorkloadAction};

/// What one step has made of its part of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Old,
    Half,
    New,
}

/// A world of one part per step. `do-N` makes part N new, `undo-N` old again.
#[derive(Debug)]
struct World {
    parts: Mutex<Vec<Part>>,
    /// Calls until an action is cut off half-way and the process is gone.
    dies_in: Mutex<Option<usize>>,
    /// Action names that fail, and how often still.
    fails: Mutex<BTreeMap<String, usize>>,
    /// So many signals come during this action.
    signal: Mutex<Option<(String, u32, watch::Sender<(u32, Signal)>)>>,
    order: Mutex<Vec<String>>,
    /// Services that run, and whether they replay their log.
    running: Mutex<BTreeMap<String, bool>>,
}

impl World {
    fn new(steps: usize) -> Self {
        Self {
            parts: Mutex::new(vec![Part::Old; steps]),
            dies_in: Mutex::new(None),
            fails: Mutex::new(BTreeMap::new()),
            signal: Mutex::new(None),
            order: Mutex::new(Vec::new()),
            running: Mutex::new(BTreeMap::new()),
        }
    }

    fn all(&self, part: Part) -> bool {
        self.parts.lock().unwrap().iter().all(|p| *p == part)
    }
}

impl Hands for World {
    async fn apply(&self, action: &Action, _: Duration) -> Result<Outcome, ActionError> {
        let Action::Workload(WorkloadAction::Stop { service } | WorkloadAction::Start { service, .. }) =
            action
        else {
            unreachable!()
        };
        let (verb, number) = service.split_once('-').unwrap();
        let index = number.parse::<usize>().unwrap() - 1;
        self.order.lock().unwrap().push(service.clone());
        self.parts.lock().unwrap()[index] = Part::Half;
        let died = {
            let mut dies = self.dies_in.lock().unwrap();
            match dies.as_mut() {
                Some(0) => true,
                Some(n) => {
                    *n -= 1;
                    false
                }
                None => false,
            }
        };
        if died {
            // The process is gone: nothing after this is ever run.
            std::future::pending::<()>().await;
        }
        let signal = self.signal.lock().unwrap().take_if(|(name, ..)| name == service);
        if let Some((_, times, tx)) = signal {
            tx.send_modify(|(n, _)| *n += times);
        }
        tokio::task::yield_now().await;
        if let Some(n) = self.fails.lock().unwrap().get_mut(service)
            && *n > 0
        {
            *n -= 1;
            return Err(ActionError::Other("as told".into()));
        }
        self.parts.lock().unwrap()[index] = if verb == "do" { Part::New } else { Part::Old };
        Ok(Outcome::default())
    }

    async fn running(&self, services: &[String], which: Which) -> Vec<String> {
        let running = self.running.lock().unwrap();
        let is = |s: &&String| running.get(*s).is_some_and(|r| *r || which == Which::Any);
        services.iter().filter(is).cloned().collect()
    }
}

/// A journal that loses power: before or after the n-th record is durable.
#[derive(Debug, Default)]
struct Paper {
    records: Vec<Record>,
    dies_before: Option<usize>,
    dies_after: Option<usize>,
}

impl Log for Paper {
    fn append(&mut self, record: Record) -> Result<(), JournalError> {
        let died = || {
            JournalError::Write(StateError {
                path: "journal".into(),
                source: std::io::Error::other("power"),
            })
        };
        if self.dies_before == Some(self.records.len()) {
            return Err(died());
        }
        self.records.push(record);
        if self.dies_after == Some(self.records.len()) {
            return Err(died());
        }
        Ok(())
    }
}

pub(super) fn plan(steps: usize) -> Plan {
    let action = |verb: &str, n: usize| {
        Action::Workload(WorkloadAction::Stop {
            service: format!("{verb}-{n}"),
        })
    };
    Plan {
        format: PLAN_FORMAT,
        scenario: "db-corruption".into(),
        deployment: "simgen".into(),
        run: "r".into(),
        service: "postgres".into(),
        diagnosis: String::new(),
        remedy: Remedy::Reindex,
        alternatives: vec![],
        backup: None,
        steps: (1..=steps)
            .map(|n| Step {
                title: format!("step {n}"),
                why: "model".into(),
                risk: if n % 2 == 0 {
                    Risk::Disruptive
                } else {
                    Risk::ReadOnly
                },
                action: action("do", n),
                undo: Undo::Action(action("undo", n)),
                timeout_seconds: 5,
            })
            .collect(),
        expect: vec![],
        data_loss: DataLoss::default(),
        estimate_seconds: 0,
        disk_needed: 0,
        disk_free: None,
        kept: String::new(),
        discard: vec![],
    }
}

fn fold(records: &[Record], steps: usize) -> Progress {
    let mut progress = Progress::default();
    progress.note(&Record::Planned {
        remedy: Remedy::Reindex,
        steps,
    });
    for r in records {
        progress.note(r);
    }
    progress
}

/// One process: continues in the direction that the journal says, or undoes.
async fn process(
    plan: &Plan,
    world: &World,
    paper: &mut Paper,
    undo: bool,
    interrupts: Interrupts,
) -> Result<(), Stop> {
    let reporter: SharedReporter = Arc::new(Silent);
    let progress = fold(&paper.records, plan.steps.len());
    let mut run = Run {
        plan,
        hands: world,
        log: paper,
        progress,
        reporter: &reporter,
        interrupts,
    };
    if undo && (run.progress.stage != Stage::Undone || !run.progress.left.is_empty()) {
        run.record(Record::UndoDecided {})?;
    }
    match run.progress.stage {
        Stage::Undoing => run.backward().await,
        Stage::Undone => Ok(()),
        _ => match run.forward().await {
            Err(stop @ (Stop::Step { .. } | Stop::Interrupted(_))) => {
                run.backward().await?;
                Err(stop)
            }
            other => other,
        },
    }
}

/// Runs a process that may die in the middle of an action.
async fn mortal(plan: &Plan, world: &World, paper: &mut Paper, undo: bool) -> Option<Result<(), Stop>> {
    tokio::select! {
        biased;
        ended = process(plan, world, paper, undo, Interrupts::none()) => Some(ended),
        () = async { for _ in 0..1000 { tokio::task::yield_now().await } } => None,
    }
}

/// How a process is cut off.
#[derive(Debug, Clone, Copy)]
enum Cut {
    BeforeRecord(usize),
    AfterRecord(usize),
    InAction(usize),
    Never,
}

fn cuts() -> impl Strategy<Value = Cut> {
    prop_oneof![
        (0_usize..20).prop_map(Cut::BeforeRecord),
        (1_usize..20).prop_map(Cut::AfterRecord),
        (0_usize..10).prop_map(Cut::InAction),
        Just(Cut::Never),
    ]
}

fn arm(world: &World, paper: &mut Paper, cut: Cut) {
    (paper.dies_before, paper.dies_after) = (None, None);
    *world.dies_in.lock().unwrap() = None;
    match cut {
        // Counted from where this process takes over.
        Cut::BeforeRecord(n) => paper.dies_before = Some(paper.records.len() + n),
        Cut::AfterRecord(n) => paper.dies_after = Some(paper.records.len() + n),
        Cut::InAction(n) => *world.dies_in.lock().unwrap() = Some(n),
        Cut::Never => {}
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any number of processes, each cut off anywhere, each told to resume or to undo, with
    /// actions that fail now and then: the last one, left in peace, ends old or new.
    #[test]
    fn whatever_happens_the_end_is_old_or_new(
        steps in 1_usize..5,
        lives in prop::collection::vec((cuts(), any::<bool>()), 0..4),
        fails in prop::collection::btree_map("(do|undo)-[1-4]", 1_usize..3, 0..2),
        last_undo in any::<bool>(),
    ) {
        block_on(async move {
            let (plan, world, mut paper) = (plan(steps), World::new(steps), Paper::default());
            *world.fails.lock().unwrap() = fails;
            for (cut, undo) in lives {
                arm(&world, &mut paper, cut);
                let _ = mortal(&plan, &world, &mut paper, undo).await;
            }
            // What fails for a while does not fail for ever.
            world.fails.lock().unwrap().clear();
            arm(&world, &mut paper, Cut::Never);
            let ended = mortal(&plan, &world, &mut paper, last_undo).await;
            let progress = fold(&paper.records, steps);
            assert!(ended.is_some_and(|r| r.is_ok()), "{:?}", paper.records);
            match progress.stage {
                Stage::Executed => assert!(world.all(Part::New), "{:?}\n{:?}", world, paper.records),
                Stage::Undone => assert!(world.all(Part::Old), "{:?}\n{:?}", world, paper.records),
                other => panic!("{other:?}: {:?}", paper.records),
            }
            if last_undo {
                assert_eq!(progress.stage, Stage::Undone);
            }
        });
    }

    /// No effect without its record before it.
    #[test]
    fn every_effect_is_announced(steps in 1_usize..5, cut in 0_usize..20) {
        block_on(async move {
            let (plan, world, mut paper) = (plan(steps), World::new(steps), Paper::default());
            arm(&world, &mut paper, Cut::BeforeRecord(cut));
            let _ = process(&plan, &world, &mut paper, false, Interrupts::none()).await;
            let done = world.order.lock().unwrap().len();
            let announced = paper.records.iter().filter(|r| matches!(r, Record::StepStarted { .. })).count();
            assert_eq!(done, announced);
        });
    }
}

#[tokio::test]
async fn a_failed_step_is_undone_in_reverse_with_those_before_it() {
    let (plan, world, mut paper) = (plan(4), World::new(4), Paper::default());
    world.fails.lock().unwrap().insert("do-3".into(), 1);
    let stop = process(&plan, &world, &mut paper, false, Interrupts::none()).await;
    assert!(matches!(stop, Err(Stop::Step { step: 3, .. })), "{stop:?}");
    assert_eq!(
        *world.order.lock().unwrap(),
        ["do-1", "do-2", "do-3", "undo-3", "undo-2", "undo-1"]
    );
    assert!(world.all(Part::Old));
    assert_eq!(fold(&paper.records, 4).stage, Stage::Undone);
}

#[tokio::test]
async fn an_undo_that_fails_stops_there_and_can_be_continued() {
    let (plan, world, mut paper) = (plan(3), World::new(3), Paper::default());
    world
        .fails
        .lock()
        .unwrap()
        .extend([("do-3".into(), 1), ("undo-2".into(), 1)]);
    let stop = process(&plan, &world, &mut paper, false, Interrupts::none()).await;
    assert!(matches!(stop, Err(Stop::Undo { step: 2, .. })), "{stop:?}");
    assert_eq!(fold(&paper.records, 3).to_undo(), [2, 1]);
    process(&plan, &world, &mut paper, false, Interrupts::none())
        .await
        .unwrap();
    assert!(world.all(Part::Old));
}

#[tokio::test]
async fn the_first_signal_ends_in_the_old_state() {
    for during in ["do-1", "do-2", "do-3"] {
        let (plan, world, mut paper) = (plan(3), World::new(3), Paper::default());
        let (tx, rx) = watch::channel((0, Signal::Interrupt));
        *world.signal.lock().unwrap() = Some((during.into(), 1, tx.clone()));
        let stop = process(&plan, &world, &mut paper, false, Interrupts::from_channel(rx)).await;
        if during == "do-3" {
            // Either the last step was cut off and all is old, or it had ended and all is new.
            assert!(world.all(Part::Old) || world.all(Part::New), "{stop:?}");
        } else {
            assert!(matches!(stop, Err(Stop::Interrupted(_))), "{during}: {stop:?}");
            assert!(world.all(Part::Old), "{during}: {:?}", world.parts);
        }
    }
}

/// Steps that only start what was down.
fn starts(steps: usize) -> Plan {
    let mut plan = plan(steps);
    for step in &mut plan.steps {
        let Action::Workload(WorkloadAction::Stop { service }) = step.action.clone() else {
            unreachable!()
        };
        step.action = Action::Workload(WorkloadAction::Start { service, wait: true });
    }
    plan
}

#[tokio::test]
async fn what_was_down_and_runs_is_stopped_only_when_the_operator_says_so() {
    let (plan, world, mut paper) = (starts(3), World::new(3), Paper::default());
    world.fails.lock().unwrap().insert("do-2".into(), 1);
    world.running.lock().unwrap().insert("undo-1".into(), false);
    let stop = process(&plan, &world, &mut paper, false, Interrupts::none()).await;
    assert!(matches!(stop, Err(Stop::Step { step: 2, .. })), "{stop:?}");
    let order = || world.order.lock().unwrap().clone();
    // The one that does not run is taken back.
    assert_eq!(order(), ["do-1", "do-2", "undo-2"]);
    let progress = fold(&paper.records, 3);
    assert_eq!((progress.stage, progress.left.len()), (Stage::Undone, 1));
    process(&plan, &world, &mut paper, true, Interrupts::none())
        .await
        .unwrap();
    assert_eq!(order().last().map(String::as_str), Some("undo-1"));
    assert!(world.all(Part::Old), "{:?}", world.parts);
    assert!(fold(&paper.records, 3).left.is_empty());
}

#[tokio::test]
async fn a_server_that_replays_its_log_is_not_stopped_by_a_signal() {
    for (plan, replays) in [(starts(1), true), (starts(1), false), (plan(1), true)] {
        let (world, mut paper) = (World::new(1), Paper::default());
        world.running.lock().unwrap().insert("undo-1".into(), replays);
        let (tx, rx) = watch::channel((0, Signal::Interrupt));
        *world.signal.lock().unwrap() = Some(("do-1".into(), 1, tx));
        world.fails.lock().unwrap().insert("do-1".into(), 1);
        let only_starts = !plan.only_started(1).is_empty();
        // It fails after the signal, or the signal comes first: both turn back.
        let stop = process(&plan, &world, &mut paper, false, Interrupts::from_channel(rx)).await;
        let progress = fold(&paper.records, 1);
        let stopped = world.order.lock().unwrap().iter().any(|o| o == "undo-1");
        if replays {
            // The files under it need a stop first.
            assert_eq!(stopped, !only_starts, "{stop:?}");
        } else {
            assert_eq!(stopped, progress.failed.is_none(), "{stop:?}");
        }
    }
}

/// Cut off, nobody would know how much of it was done.
#[tokio::test]
async fn what_cannot_be_taken_back_is_let_finish_and_said() {
    for undo in [Undo::Impossible("gone".into()), Undo::Manual("by hand".into())] {
        let (mut plan, world, mut paper) = (plan(3), World::new(3), Paper::default());
        plan.steps[0].undo = undo;
        assert_eq!(plan.steps[0].risk, Risk::ReadOnly);
        let (tx, rx) = watch::channel((0, Signal::Interrupt));
        *world.signal.lock().unwrap() = Some(("do-1".into(), 1, tx.clone()));
        let stop = process(&plan, &world, &mut paper, false, Interrupts::from_channel(rx)).await;
        assert!(matches!(stop, Err(Stop::Interrupted(_))), "{stop:?}");
        let is_finished = |r: &Record| matches!(r, Record::StepFinished { step: 1, .. });
        assert!(paper.records.iter().any(is_finished), "{:?}", paper.records);
        assert_eq!(fold(&paper.records, 3).left.len(), 1);
    }
}

#[tokio::test]
async fn the_second_signal_stops_at_once_and_leaves_the_rest_to_undo() {
    let (plan, world, mut paper) = (plan(3), World::new(3), Paper::default());
    let (tx, rx) = watch::channel((0, Signal::Terminate));
    world.fails.lock().unwrap().insert("do-3".into(), 1);
    *world.signal.lock().unwrap() = Some(("undo-3".into(), 2, tx.clone()));
    let stop = process(&plan, &world, &mut paper, false, Interrupts::from_channel(rx)).await;
    assert!(matches!(stop, Err(Stop::Now(Signal::Terminate))), "{stop:?}");
    process(&plan, &world, &mut paper, true, Interrupts::none())
        .await
        .unwrap();
    assert!(world.all(Part::Old));
}

/// The step back that is under way is let finish, and the rest is left to the next process.
#[tokio::test]
async fn the_first_signal_stops_an_undo_between_two_steps() {
    // Decided on by the operator, and begun by a step that failed.
    for fails in [false, true] {
        let (plan, world, mut paper) = (plan(3), World::new(3), Paper::default());
        let (tx, rx) = watch::channel((0, Signal::Interrupt));
        let interrupts = Interrupts::from_channel(rx);
        if fails {
            world.fails.lock().unwrap().insert("do-3".into(), 1);
        } else {
            process(&plan, &world, &mut paper, false, interrupts.clone())
                .await
                .unwrap();
        }
        *world.signal.lock().unwrap() = Some(("undo-3".into(), 1, tx));
        let stop = process(&plan, &world, &mut paper, !fails, interrupts).await;
        assert!(
            matches!(stop, Err(Stop::Interrupted(Signal::Interrupt))),
            "{stop:?}"
        );
        assert_eq!(*world.parts.lock().unwrap(), [Part::New, Part::New, Part::Old]);
        let progress = fold(&paper.records, 3);
        assert_eq!((progress.stage, progress.to_undo()), (Stage::Undoing, vec![2, 1]));
        process(&plan, &world, &mut paper, false, Interrupts::none())
            .await
            .unwrap();
        assert!(world.all(Part::Old));
    }
}

/// The first has turned the run back, so the next is the second.
#[tokio::test]
async fn a_signal_on_the_way_back_from_a_signal_is_the_second() {
    let (plan, world, mut paper) = (plan(3), World::new(3), Paper::default());
    let (tx, rx) = watch::channel((1, Signal::Interrupt));
    paper.records = vec![
        Record::StepStarted { step: 1 },
        Record::Interrupted {
            signal: "SIGINT".into(),
        },
    ];
    *world.signal.lock().unwrap() = Some(("undo-1".into(), 1, tx));
    let stop = process(&plan, &world, &mut paper, false, Interrupts::from_channel(rx)).await;
    assert!(matches!(stop, Err(Stop::Now(Signal::Interrupt))), "{stop:?}");
}
