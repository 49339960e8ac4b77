use super::super::service_crash::fixtures::container;
use super::*;
use crate::plan::{Action, ContainerAction, Undo, lint};
use crate::probe::queries::Running;
use crate::workload::Status;

const NOW: &str = "2026-11-20T21:00:00Z";

fn runbook() -> Runbook {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/runbooks/simgen.yaml");
    crate::runbook::load(std::path::Path::new(path)).unwrap()
}

fn usage() -> Usage {
    Usage {
        cpus: 0.05,
        cpu_limit: None,
        periods: 0,
        throttled: 0,
        memory: 40 << 20,
        memory_limit: None,
    }
}

fn answers(millis: u64) -> Answers {
    Answers {
        millis: vec![millis; 10],
        failures: vec![],
    }
}

/// A stack in which everything is quick, and api1 as the test wants it.
fn evidence(millis: u64, change: impl FnOnce(&mut ContainerFacts, &mut Usage)) -> Evidence {
    let names = ["api1", "api2", "cv_service", "nginx", "postgres", "redis"];
    let mut api1 = (container("api1"), usage());
    change(&mut api1.0, &mut api1.1);
    let mut ev = Evidence {
        taken_at: NOW.parse().unwrap(),
        service: None,
        containers: BTreeMap::new(),
        usage: names.iter().map(|n| ((*n).to_owned(), usage())).collect(),
        endpoints: BTreeMap::from([("ready".to_owned(), answers(millis))]),
        host: Some(Host {
            memory: 8 << 30,
            memory_available: 4 << 30,
            cpus: 4,
            load: 1.0,
            disks: vec![],
        }),
        queries: BTreeMap::from([("postgres".to_owned(), Ok(Queries::default()))]),
    };
    for name in names {
        let facts = if name == "api1" {
            api1.0.clone()
        } else {
            container(name)
        };
        ev.containers
            .insert(name.to_owned(), ContainerState::Found(Box::new(facts)));
    }
    ev.usage.insert("api1".into(), api1.1);
    ev
}

fn full(facts: &mut ContainerFacts, usage: &mut Usage) {
    facts.info.memory_limit = 100 << 20;
    facts.info.memory_swap = 100 << 20;
    usage.memory_limit = Some(100 << 20);
    usage.memory = 95 << 20;
}

fn throttled(facts: &mut ContainerFacts, usage: &mut Usage) {
    facts.info.cpu_quota = 5000;
    usage.cpu_limit = facts.info.cpu_limit();
    usage.periods = 20;
    usage.throttled = 10;
}

fn request(tried: &[Remedy], remedy: Option<Remedy>) -> PlanRequest {
    PlanRequest {
        run: "r1".into(),
        tried: tried.to_vec(),
        remedy,
        backup: None,
        now: NOW.parse().unwrap(),
    }
}

fn limits(plan: &Plan) -> (crate::plan::Limits, crate::plan::Limits) {
    let of = |action: &Action| match action {
        Action::Container(ContainerAction::SetLimits { limits, .. }) => limits.clone(),
        other => panic!("{other:?}"),
    };
    let Undo::Action(undo) = &plan.steps[0].undo else {
        panic!("{plan:?}")
    };
    (of(&plan.steps[0].action), of(undo))
}

#[test]
fn memory_at_its_limit_is_doubled_and_can_be_put_back() {
    let ev = evidence(5, full);
    let d = diagnose(&ev, &runbook());
    assert_eq!(d.certainty, Certainty::Confirmed);
    assert!(d.reasons[0].contains("95 % of its limit of 100 MiB"), "{d:?}");
    let plan = ServiceOverload::plan(&ev, &runbook(), &request(&[], None)).unwrap();
    lint(&plan).unwrap();
    assert_eq!(plan.remedy, Remedy::RaiseLimit);
    let (new, old) = limits(&plan);
    assert_eq!((new.memory, new.memory_swap), (Some(200 << 20), Some(200 << 20)));
    assert_eq!((old.memory, old.memory_swap), (Some(100 << 20), Some(100 << 20)));
}

#[test]
fn a_processor_limit_is_raised_in_the_way_in_which_it_was_set() {
    let plan = ServiceOverload::plan(&evidence(900, throttled), &runbook(), &request(&[], None)).unwrap();
    let (new, old) = limits(&plan);
    assert_eq!((new.cpu_quota, old.cpu_quota), (Some(50_000), Some(5000)));
    assert_eq!((new.nano_cpus, new.memory), (None, None));
    let nano = evidence(900, |f, u| {
        f.info.nano_cpus = 1_500_000_000;
        throttled(f, u);
        u.cpu_limit = Some(1.5);
    });
    let (new, old) = limits(&ServiceOverload::plan(&nano, &runbook(), &request(&[], None)).unwrap());
    assert_eq!(
        (new.nano_cpus, old.nano_cpus),
        (Some(4_000_000_000), Some(1_500_000_000)),
        "all that there is"
    );
}

#[test]
fn a_limit_that_nobody_notices_is_at_most_suspected() {
    assert_eq!(
        diagnose(&evidence(5, throttled), &runbook()).certainty,
        Certainty::Absent
    );
    let all = evidence(5, |f, u| {
        throttled(f, u);
        u.throttled = 20;
    });
    assert_eq!(diagnose(&all, &runbook()).certainty, Certainty::Suspected);
    assert_eq!(
        diagnose(&evidence(900, throttled), &runbook()).certainty,
        Certainty::Confirmed
    );
}

#[test]
fn what_the_machine_does_not_have_is_not_given() {
    let mut ev = evidence(5, full);
    ev.host.as_mut().unwrap().memory_available = 300 << 20;
    let plan = ServiceOverload::plan(&ev, &runbook(), &request(&[], None)).unwrap();
    assert_eq!(plan.remedy, Remedy::Restart, "{plan:?}");
    assert!(
        plan.alternatives[0].why_not.contains("300 MiB left"),
        "{:?}",
        plan.alternatives
    );
    ev.host = None;
    assert_eq!(
        ServiceOverload::plan(&ev, &runbook(), &request(&[Remedy::Restart], None))
            .unwrap()
            .remedy,
        Remedy::ScaleOut
    );
}

#[test]
fn what_fits_for_each_alone_must_fit_for_all() {
    let mut ev = evidence(5, full);
    // 100 MiB more, and 256 that are left to the machine.
    ev.host.as_mut().unwrap().memory_available = 400 << 20;
    let remedy = |ev: &Evidence| {
        let plan = ServiceOverload::plan(ev, &runbook(), &request(&[], None)).unwrap();
        (plan.remedy, plan.alternatives[0].why_not.clone())
    };
    assert_eq!(remedy(&ev).0, Remedy::RaiseLimit);
    let mut other = (container("api2"), usage());
    full(&mut other.0, &mut other.1);
    ev.containers
        .insert("api2".into(), ContainerState::Found(Box::new(other.0)));
    ev.usage.insert("api2".into(), other.1);
    let (remedy, why_not) = remedy(&ev);
    assert_eq!(remedy, Remedy::Restart);
    assert!(why_not.contains("200 MiB more"), "{why_not}");
}

#[test]
fn a_second_instance_only_where_the_runbook_allows_it() {
    let mut rb = runbook();
    let asked = request(&[], Some(Remedy::ScaleOut));
    let plan = ServiceOverload::plan(&evidence(900, throttled), &rb, &asked).unwrap();
    lint(&plan).unwrap();
    assert_eq!(plan.discard.len(), 1);
    for service in rb.services.values_mut() {
        service.scale_out = false;
    }
    let refusal = ServiceOverload::plan(&evidence(900, throttled), &rb, &asked).unwrap_err();
    assert!(refusal.message.contains("scale-out: true"), "{refusal:?}");
}

#[test]
fn a_death_for_want_of_memory_counts_for_a_while() {
    let killed = |f: &mut ContainerFacts, _: &mut Usage| {
        f.info.status = Status::Exited;
        f.info.oom_killed = true;
        f.info.exit_code = 137;
        f.info.memory_limit = 64 << 20;
        f.info.finished_at = Some("2026-11-20T20:59:00Z".parse().unwrap());
    };
    let ev = evidence(5, killed);
    let d = diagnose(&ev, &runbook());
    assert!(d.reasons[0].contains("killed for want of memory"), "{d:?}");
    let plan = ServiceOverload::plan(&ev, &runbook(), &request(&[], None)).unwrap();
    assert_eq!(plan.steps.len(), 2, "more memory, then a start");
    let ev = evidence(5, |f, u| {
        killed(f, u);
        f.info.finished_at = Some("2026-11-19T20:59:00Z".parse().unwrap());
    });
    assert_eq!(diagnose(&ev, &runbook()).certainty, Certainty::Absent);
}

#[test]
fn a_slow_database_is_not_the_applications_overload() {
    let mut ev = evidence(900, |_, u| u.cpus = 1.9);
    assert_eq!(diagnose(&ev, &runbook()).look_alike, None);
    ev.queries.insert(
        "postgres".into(),
        Ok(Queries {
            running: vec![Running {
                pid: 7,
                role: "simgen_app".into(),
                seconds: 40.0,
                waits: "Lock: relation".into(),
                text: "select ?".into(),
            }],
            slow: vec![],
        }),
    );
    let d = diagnose(&ev, &runbook());
    assert_eq!(d.certainty, Certainty::Absent);
    assert_eq!(d.look_alike.unwrap().name, "slow-database");
    // As long as users do not wait, it is only a remark.
    ev.endpoints.insert("ready".into(), answers(5));
    let d = diagnose(&ev, &runbook());
    assert_eq!(d.look_alike, None);
    assert!(
        d.reasons
            .iter()
            .any(|r| r.contains("1 statements wait for a lock")),
        "{d:?}"
    );
}

#[test]
fn busy_and_quick_is_fine() {
    let d = diagnose(&evidence(5, |_, u| u.cpus = 1.9), &runbook());
    assert_eq!(d.certainty, Certainty::Absent);
    assert!(d.reasons[0].contains("1.9 processors busy"), "{d:?}");
}
