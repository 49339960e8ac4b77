use super::*;
use crate::plan::{Action, NetworkAction, Risk, Undo, WorkloadAction, lint};
use crate::probe::reach::{Answer, Edge, Publication};
use crate::scenarios::Certainty;
use crate::workload::{Attachment, ContainerInfo, Status};
use serde_json::json;

const RUNBOOK: &str = include_str!("../../../runbooks/simgen.yaml");

fn runbook() -> Runbook {
    crate::runbook::parse(std::path::Path::new("simgen.yaml"), RUNBOOK).unwrap()
}

fn network(id: &str) -> NetworkInfo {
    NetworkInfo {
        name: "simgen_default".into(),
        id: id.into(),
        driver: "bridge".into(),
        ..NetworkInfo::default()
    }
}

fn container(service: &str) -> ContainerState {
    let info = json!({
        "id": format!("{service:0<64}"), "name": format!("simgen_{service}_1"), "image": "i", "image-id": "sha256:1",
        "status": "running", "exit-code": 0, "oom-killed": false, "error": "", "health": "healthy",
        "started-at": null, "finished-at": null, "restart-count": 0, "restart-policy": "unless-stopped",
        "stop-signal": "SIGTERM", "shm-size": 0, "memory-limit": 0, "networks": {}, "published": {},
        "network-mode": "simgen_default",
        "attachments": { "simgen_default": {
            "network-id": "n1", "address": "10.0.0.1",
            "aliases": [service, format!("{service:0<12}")], "fixed-address": null } },
        "mounts": [], "labels": { "com.docker.compose.service": service, "com.docker.compose.project": "simgen" },
    });
    let facts = json!({ "found": { "info": info, "last-words": [], "processes": ["Ss"] } });
    serde_json::from_value(facts).unwrap()
}

/// Everything is well.
fn healthy() -> Evidence {
    let rb = runbook();
    let edges = rb.services.iter().flat_map(|(from, s)| {
        s.depends_on.iter().map(move |to| Edge {
            from: from.to_string(),
            to: to.to_string(),
            name: to.to_string(),
            port: Some(1),
            address: Some("10.0.0.1".into()),
            answer: Answer::Open,
        })
    });
    Evidence {
        taken_at: "2026-11-25T03:00:00Z".parse().unwrap(),
        service: None,
        containers: rb
            .services
            .keys()
            .map(|n| (n.to_string(), container(n.as_str())))
            .collect(),
        networks: Networks::Known(vec![network("n1")]),
        reach: Reach {
            edges: edges.collect(),
            published: vec![Publication {
                service: "nginx".into(),
                port: "80/tcp".into(),
                address: "127.0.0.1:8080".into(),
                published: true,
                host_answers: Some(true),
                listens: Some(true),
            }],
        },
        endpoints: BTreeMap::new(),
    }
}

fn info<'a>(ev: &'a mut Evidence, service: &str) -> &'a mut ContainerInfo {
    match ev.containers.get_mut(service).unwrap() {
        ContainerState::Found(facts) => &mut facts.info,
        _ => unreachable!(),
    }
}

fn place<'a>(ev: &'a mut Evidence, service: &str) -> &'a mut Attachment {
    info(ev, service).attachments.get_mut("simgen_default").unwrap()
}

/// The service is not reached, in this way.
fn unreached(ev: &mut Evidence, to: &str, answer: &Answer) {
    for edge in ev.reach.edges.iter_mut().filter(|e| e.to == to) {
        edge.answer = answer.clone();
    }
}

fn detached() -> Evidence {
    let mut ev = healthy();
    info(&mut ev, "postgres").attachments.clear();
    unreached(&mut ev, "postgres", &Answer::Unresolved);
    ev
}

fn nameless() -> Evidence {
    let mut ev = healthy();
    place(&mut ev, "redis").aliases.remove(0);
    unreached(&mut ev, "redis", &Answer::Unresolved);
    ev
}

fn gone() -> Evidence {
    let mut ev = healthy();
    ev.networks = Networks::Known(vec![]);
    let services: Vec<String> = ev.containers.keys().cloned().collect();
    for service in services {
        info(&mut ev, &service).status = Status::Exited;
    }
    for edge in &mut ev.reach.edges {
        edge.answer = Answer::Unasked("does not run".into());
    }
    ev
}

fn ask(ev: &Evidence) -> Result<Plan, Refusal> {
    let request = PlanRequest {
        run: "20261125T030000Z-network-partition-0001".into(),
        tried: vec![],
        remedy: None,
        backup: None,
        now: ev.taken_at,
    };
    let plan = NetworkPartition::plan(ev, &runbook(), &request)?;
    lint(&plan).unwrap();
    Ok(plan)
}

#[test]
fn each_failure_is_told_from_the_others_and_from_what_only_looks_so() {
    use Certainty::{Absent, Confirmed, Unknown};
    let stopped = || {
        let mut ev = healthy();
        info(&mut ev, "redis").status = Status::Exited;
        unreached(&mut ev, "redis", &Answer::Unresolved);
        ev
    };
    let refusing = || {
        let mut ev = healthy();
        unreached(&mut ev, "postgres", &Answer::Refused);
        ev
    };
    let resolver = || {
        let mut ev = healthy();
        for edge in ev.reach.edges.iter_mut().filter(|e| e.from == "api1") {
            edge.answer = Answer::Unresolved;
        }
        ev
    };
    let silent = || {
        let mut ev = healthy();
        unreached(&mut ev, "api2", &Answer::Silent);
        ev
    };
    let port = || {
        let mut ev = closed_port("nginx");
        ev.endpoints.insert("health".into(), down());
        ev
    };
    let moved = || {
        // Its place was taken away on purpose: everything is reached in another network.
        let mut ev = healthy();
        let theirs = place(&mut ev, "api1").clone();
        for service in ["api1", "postgres", "redis", "nginx"] {
            let mut other = theirs.clone();
            other.network_id = "n2".into();
            other.aliases = vec![service.into()];
            info(&mut ev, service).attachments.insert("back".into(), other);
        }
        info(&mut ev, "api1").attachments.remove("simgen_default");
        ev.networks = Networks::Known(vec![
            network("n1"),
            NetworkInfo {
                name: "back".into(),
                ..network("n2")
            },
        ]);
        ev
    };
    let silent_engine = || Evidence {
        networks: Networks::Unknown("no answer".into()),
        ..healthy()
    };
    let replaced = || Evidence {
        networks: Networks::Known(vec![network("n9")]),
        ..gone()
    };
    for (what, ev, certainty, look_alike) in [
        ("healthy", healthy(), Absent, None),
        ("detached", detached(), Confirmed, None),
        ("nameless", nameless(), Confirmed, None),
        ("gone", gone(), Confirmed, None),
        ("replaced", replaced(), Confirmed, None),
        ("dead port", port(), Confirmed, None),
        ("stopped", stopped(), Absent, Some("redis-failure")),
        ("refusing", refusing(), Absent, Some("db-down")),
        ("resolver", resolver(), Absent, Some("dns")),
        ("firewall", silent(), Absent, Some("firewall")),
        ("moved", moved(), Absent, None),
        ("silent engine", silent_engine(), Unknown, None),
    ] {
        let d = NetworkPartition::diagnose(&ev, &runbook());
        assert_eq!(d.certainty, certainty, "{what}: {d:?}");
        assert_eq!(
            d.look_alike.as_ref().map(|l| l.name.as_str()),
            look_alike,
            "{what}: {d:?}"
        );
        assert_eq!(ask(&ev).is_ok(), certainty == Confirmed, "{what}");
    }
}

/// It was created so, and the engine would refuse to connect it.
#[test]
fn what_uses_the_network_of_the_host_or_of_another_container_lacks_none() {
    for mode in ["host", "none", "container:abc"] {
        let mut ev = healthy();
        let api = info(&mut ev, "api1");
        api.network_mode = mode.into();
        api.attachments.clear();
        if !mode.starts_with("container:") {
            api.attachments.insert(mode.into(), Attachment::default());
        }
        for edge in &mut ev.reach.edges {
            if edge.from == "api1" || edge.to == "api1" {
                edge.answer = Answer::Unresolved;
            }
        }
        let d = NetworkPartition::diagnose(&ev, &runbook());
        assert_eq!(d.certainty, Certainty::Absent, "{mode}: {d:?}");
        assert_eq!(d.look_alike, None, "{mode}");
        // Another's failure is still found, and its proof does not ask for that one's names.
        info(&mut ev, "postgres").attachments.clear();
        let plan = ask(&ev).unwrap();
        assert_eq!(plan.steps.len(), 1, "{mode}: {:?}", plan.steps);
        let asks = |e: &crate::plan::Expectation| matches!(e, crate::plan::Expectation::Reaches { edges } if edges.iter().any(|(from, to)| from == "api1" || to == "api1"));
        assert!(!plan.expect.iter().any(asks), "{mode}");
    }
}

/// It listens, the engine says that it publishes, and the host refuses.
fn closed_port(service: &str) -> Evidence {
    let mut ev = healthy();
    ev.reach.published[0].service = service.into();
    ev.reach.published[0].host_answers = Some(false);
    ev
}

fn down() -> Answers {
    Answers {
        millis: vec![],
        failures: vec!["connection refused".into()],
    }
}

/// A rule of a firewall is no reason to end every session of a database.
#[test]
fn a_data_store_is_never_restarted_for_a_port_of_the_host() {
    for service in ["postgres", "redis"] {
        for published in [true, false] {
            let mut ev = closed_port(service);
            ev.reach.published[0].published = published;
            ev.endpoints.insert("health".into(), down());
            let d = NetworkPartition::diagnose(&ev, &runbook());
            assert_eq!(d.certainty, Certainty::Absent, "{d:?}");
            let look_alike = d.look_alike.unwrap();
            assert_eq!(look_alike.name, "published-port");
            assert!(
                look_alike.next.iter().any(|n| n.contains("iptables")),
                "{look_alike:?}"
            );
            ask(&ev).unwrap_err();
        }
    }
    // Beside one of the application's, only that one is restarted.
    let mut ev = closed_port("nginx");
    let mut other = ev.reach.published[0].clone();
    other.service = "postgres".into();
    ev.reach.published.push(other);
    let plan = ask(&ev).unwrap();
    let titles: Vec<&str> = plan.steps.iter().map(|s| s.title.as_str()).collect();
    assert_eq!(titles, ["Restart nginx"]);
}

#[test]
fn a_port_that_may_be_closed_on_purpose_is_only_suspected() {
    let certainty = |ev: &Evidence| NetworkPartition::diagnose(ev, &runbook()).certainty;
    let mut ev = closed_port("nginx");
    assert_eq!(certainty(&ev), Certainty::Suspected);
    // Another port's endpoint says nothing of this one.
    ev.reach.published[0].address = "127.0.0.1:9090".into();
    ev.endpoints.insert("health".into(), down());
    assert_eq!(certainty(&ev), Certainty::Suspected);
    ev.reach.published[0].address = "127.0.0.1:8080".into();
    assert_eq!(certainty(&ev), Certainty::Confirmed);
    ev.endpoints.clear();
    ev.reach.published[0].published = false;
    assert_eq!(certainty(&ev), Certainty::Confirmed);
}

#[test]
fn evidence_of_an_older_version_is_read() {
    let mut value = serde_json::to_value(healthy()).unwrap();
    value.as_object_mut().unwrap().remove("endpoints");
    assert!(serde_json::from_value::<Evidence>(value).is_ok());
}

#[test]
fn only_what_is_missing_is_put_back() {
    let plan = ask(&detached()).unwrap();
    let [step] = plan.steps.as_slice() else {
        panic!("{:?}", plan.steps)
    };
    assert_eq!(step.risk, Risk::Reversible);
    assert_eq!(
        step.action,
        Action::Network(NetworkAction::Connect {
            service: "postgres".into(),
            network: "simgen_default".into(),
            aliases: vec!["postgres".into(), "postgres0000".into()],
            addresses: vec![],
        })
    );
    assert!(matches!(
        step.undo,
        Undo::Action(Action::Network(NetworkAction::Disconnect { .. }))
    ));
}

#[test]
fn a_name_is_given_back_beside_those_that_are_there_and_taken_back_exactly() {
    let mut ev = nameless();
    place(&mut ev, "redis").aliases.push("cache".into());
    let plan = ask(&ev).unwrap();
    let [step] = plan.steps.as_slice() else {
        panic!("{:?}", plan.steps)
    };
    assert_eq!(step.risk, Risk::Disruptive);
    let Action::Network(NetworkAction::Connect { aliases, .. }) = &step.action else {
        panic!("{step:?}")
    };
    assert_eq!(*aliases, ["redis", "cache", "redis0000000"]);
    let Undo::Action(Action::Network(NetworkAction::Connect { aliases, .. })) = &step.undo else {
        panic!("{step:?}")
    };
    assert_eq!(*aliases, ["redis0000000", "cache"]);
}

#[test]
fn an_address_that_was_asked_for_is_kept_where_the_network_can_give_it() {
    let fixed = |mut ev: Evidence| {
        let place = place(&mut ev, "redis");
        place.fixed_address = Some("10.0.0.5".into());
        place.fixed_address_v6 = Some("fd00::5".into());
        let plan = ask(&ev).unwrap();
        let is = |s: &&crate::plan::Step| s.title.starts_with("Connect redis");
        plan.steps.iter().find(is).unwrap().clone()
    };
    let of = |action: &Action| match action {
        Action::Network(NetworkAction::Connect { addresses, .. }) => addresses.clone(),
        other => panic!("{other:?}"),
    };
    let step = fixed(nameless());
    assert_eq!(of(&step.action), ["10.0.0.5", "fd00::5"]);
    let Undo::Action(undo) = &step.undo else {
        panic!("{step:?}")
    };
    assert_eq!(of(undo), ["10.0.0.5", "fd00::5"]);

    // The new one's range is the engine's choice: it would refuse the address.
    let step = fixed(gone());
    assert!(of(&step.action).is_empty());
    assert!(step.why.contains("10.0.0.5, fd00::5 is not of"), "{}", step.why);

    let replaced = |subnet: &str| Evidence {
        networks: Networks::Known(vec![NetworkInfo {
            subnets: vec![subnet.into()],
            ..network("n9")
        }]),
        ..gone()
    };
    assert_eq!(of(&fixed(replaced("10.0.0.0/24")).action), ["10.0.0.5"]);
    assert_eq!(of(&fixed(replaced("fd00::/64")).action), ["fd00::5"]);
    assert!(of(&fixed(replaced("10.0.1.0/24")).action).is_empty());
}

#[test]
fn a_network_is_created_only_where_none_has_its_name() {
    let creates = |plan: &Plan| {
        let is =
            |a: &Action| matches!(a, Action::Network(NetworkAction::Create { key, .. }) if key == "default");
        plan.steps.iter().filter(|s| is(&s.action)).count()
    };
    assert_eq!(creates(&ask(&gone()).unwrap()), 1);
    let replaced = Evidence {
        networks: Networks::Known(vec![network("n9")]),
        ..gone()
    };
    assert_eq!(creates(&ask(&replaced).unwrap()), 0);
}

#[test]
fn services_start_after_what_they_need_and_a_finished_job_does_not() {
    let mut ev = gone();
    let started = |ev: &Evidence, rb: &Runbook| -> Vec<String> {
        let request = PlanRequest {
            run: "r".into(),
            tried: vec![],
            remedy: None,
            backup: None,
            now: ev.taken_at,
        };
        let plan = NetworkPartition::plan(ev, rb, &request).unwrap();
        plan.steps
            .into_iter()
            .filter_map(|s| match s.action {
                Action::Workload(WorkloadAction::Start { service, .. }) => Some(service),
                _ => None,
            })
            .collect()
    };
    let all = ["postgres", "redis", "api1", "api2", "cv_service", "nginx"];
    let job = info(&mut ev, "cv_service");
    job.restart_policy = "no".into();
    // Its health is checked: it is a service that ended with exit code 0, as a clean stop does.
    assert_eq!(started(&ev, &runbook()), all);
    info(&mut ev, "cv_service").health = None;
    // Nginx needs it.
    assert_eq!(started(&ev, &runbook()), all);
    let mut rb = runbook();
    for service in rb.services.values_mut() {
        service.depends_on.retain(|n| n.as_str() != "cv_service");
    }
    assert_eq!(started(&ev, &rb), ["postgres", "redis", "api1", "api2", "nginx"]);
}

#[test]
fn evidence_survives_being_written_down() {
    let text = serde_json::to_string(&nameless()).unwrap();
    let again: Evidence = serde_json::from_str(&text).unwrap();
    assert_eq!(ask(&again).unwrap(), ask(&nameless()).unwrap());
}
