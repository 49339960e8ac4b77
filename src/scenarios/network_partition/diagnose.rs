//! What the evidence means: which places and names are missing, and what only looks so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Evidence, Networks};
use crate::probe::containers::{ContainerFacts, ContainerState, end_in_words};
use crate::probe::reach::{Answer, Edge, LABEL_SERVICE, Publication};
use crate::runbook::{Runbook, ServiceKind};
use crate::scenarios::{Certainty, Diagnosis, LookAlike};
use crate::workload::{Attachment, ContainerInfo, NetworkInfo, Status};

/// Compose's label with the project's name.
const LABEL_PROJECT: &str = "com.docker.compose.project";
/// What `HostConfig.NetworkMode` says when it names no network of the deployment's own.
const BUILT_IN: [&str; 5] = ["", "default", "bridge", "host", "none"];

/// What a service lacks in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lack {
    /// It has no place there.
    Detached,
    /// It has a place, and not these names.
    Names(Vec<String>),
    /// No network has the identifier that its place is bound to; whether there is one of that
    /// name.
    Gone { same_name: bool },
}

/// One lack, with what is needed to put it right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding<'a> {
    pub(super) service: &'a str,
    pub(super) network: String,
    pub(super) lack: Lack,
    /// The names that it shall have there.
    pub(super) names: Vec<String>,
    /// The names that it has there now.
    pub(super) had: Vec<String>,
    /// The addresses that were asked for rather than given, and that it can have there.
    pub(super) addresses: Vec<String>,
    /// Those that it cannot: they are of the range of the network that is gone.
    pub(super) lost_addresses: Vec<String>,
}

impl Finding<'_> {
    pub(super) fn in_words(&self) -> String {
        let (service, network) = (self.service, &self.network);
        match &self.lack {
            Lack::Detached => format!("{service} is not in network {network}, in which it was created"),
            Lack::Names(missing) => format!(
                "{service} is in network {network} without the name {} by which others call it",
                missing.join(", ")
            ),
            Lack::Gone { same_name: false } => {
                format!("network {network}, to which {service} belongs, does not exist")
            }
            Lack::Gone { same_name: true } => format!(
                "{service} is bound to a network {network} that is gone; the one of that name is another"
            ),
        }
    }
}

/// Whether a network has to do with the deployment.
pub(super) fn concerns(
    network: &NetworkInfo,
    project: &str,
    containers: &BTreeMap<String, ContainerState>,
) -> bool {
    network.labels.get(LABEL_PROJECT).is_some_and(|p| p == project)
        || infos(containers)
            .any(|(_, i)| i.network_mode == network.name || i.attachments.contains_key(&network.name))
}

fn infos(containers: &BTreeMap<String, ContainerState>) -> impl Iterator<Item = (&str, &ContainerInfo)> {
    containers
        .iter()
        .filter_map(|(name, c)| Some((name.as_str(), &c.found()?.info)))
}

fn facts<'a>(ev: &'a Evidence, service: &str) -> Option<&'a ContainerFacts> {
    ev.containers.get(service)?.found()
}

/// Whether an end of a dependency is in no network by design: what a name resolves to there says
/// nothing of the deployment's networks.
pub(super) fn is_outside(ev: &Evidence, from: &str, to: &str) -> bool {
    [from, to]
        .iter()
        .any(|s| facts(ev, s).is_some_and(|f| f.info.has_no_own_network()))
}

/// Networks in which a service should be: the one that it was created in, and those that
/// join it with what it needs.
fn wanted<'a>(ev: &'a Evidence, rb: &Runbook, service: &str, info: &'a ContainerInfo) -> BTreeSet<&'a str> {
    if info.has_no_own_network() {
        return BTreeSet::new();
    }
    let mut all: BTreeSet<&str> = info.attachments.keys().map(String::as_str).collect();
    all.extend(home(info));
    let needed = rb.service(service).into_iter().flat_map(|s| &s.depends_on);
    let others: Vec<&ContainerInfo> = needed
        .filter_map(|to| facts(ev, to.as_str()).map(|f| &f.info))
        .collect();
    for other in others {
        let theirs: BTreeSet<&str> = other
            .attachments
            .keys()
            .map(String::as_str)
            .chain(home(other))
            .collect();
        if theirs.is_empty() || !theirs.is_disjoint(&all) {
            continue;
        }
        // They share none: the one of theirs in which most others are is what joined them.
        let members = |n: &str| {
            infos(&ev.containers)
                .filter(|(_, i)| i.attachments.contains_key(n))
                .count()
        };
        if let Some(joining) = theirs.into_iter().max_by_key(|n| members(n)) {
            all.insert(joining);
        }
    }
    all
}

/// The network that a container was created in, if it is one of the deployment's own.
fn home(info: &ContainerInfo) -> Option<&str> {
    let mode = info.network_mode.as_str();
    (!BUILT_IN.contains(&mode) && !info.has_no_own_network()).then_some(mode)
}

/// Everything that is missing, whether it hurts or not.
fn lacks<'a>(ev: &'a Evidence, rb: &Runbook, networks: &[NetworkInfo]) -> Vec<Finding<'a>> {
    let mut all = Vec::new();
    for (service, info) in infos(&ev.containers) {
        for network in wanted(ev, rb, service, info) {
            if BUILT_IN.contains(&network) {
                continue;
            }
            let place = info.attachments.get(network);
            let existing: Vec<&NetworkInfo> = networks
                .iter()
                .filter(|n| n.name == network || n.id == network)
                .collect();
            // Compose calls a service by its own name everywhere; without its labels the
            // container's name is all that is known, and that cannot be lost.
            let name = info.labels.get(LABEL_SERVICE).filter(|n| **n != info.name);
            let had = place.map(|p| p.aliases.clone()).unwrap_or_default();
            let missing: Vec<String> = name.filter(|n| !had.contains(n)).cloned().into_iter().collect();
            let lack = match place {
                Some(p) if !existing.iter().any(|n| n.id == p.network_id) => Lack::Gone {
                    same_name: !existing.is_empty(),
                },
                None if existing.is_empty() => Lack::Gone { same_name: false },
                None => Lack::Detached,
                Some(_) if missing.is_empty() => continue,
                Some(_) => Lack::Names(missing),
            };
            // As Compose does it: the service's name, and the short identifier.
            let short = info.id.get(..12).unwrap_or(&info.id).to_owned();
            let mut names: Vec<String> = name.cloned().into_iter().collect();
            names.extend(had.iter().filter(|n| Some(*n) != name && **n != short).cloned());
            names.push(short);
            // Another network refuses an address that is not of its range.
            let fits = |a: &String| {
                !matches!(lack, Lack::Gone { .. })
                    || existing.iter().flat_map(|n| &n.subnets).any(|s| is_in(a, s))
            };
            let (addresses, lost_addresses) = place
                .map(Attachment::fixed_addresses)
                .unwrap_or_default()
                .into_iter()
                .partition(fits);
            all.push(Finding {
                service,
                network: network.to_owned(),
                lack,
                names,
                had,
                addresses,
                lost_addresses,
            });
        }
    }
    all
}

/// Whether an address is of a range (`10.0.0.0/24`).
fn is_in(address: &str, range: &str) -> bool {
    let Some((base, length)) = range.split_once('/') else {
        return false;
    };
    let length = length.parse::<u32>().unwrap_or(u32::MAX);
    match (address.parse(), base.parse()) {
        (Ok(IpAddr::V4(a)), Ok(IpAddr::V4(b))) if length <= 32 => {
            (u32::from(a) ^ u32::from(b))
                .checked_shr(32 - length)
                .unwrap_or(0)
                == 0
        }
        (Ok(IpAddr::V6(a)), Ok(IpAddr::V6(b))) if length <= 128 => {
            (u128::from(a) ^ u128::from(b))
                .checked_shr(128 - length)
                .unwrap_or(0)
                == 0
        }
        _ => false,
    }
}

/// The start of a container failed because its network is gone.
fn died_of_it(info: &ContainerInfo) -> bool {
    !info.is_running() && info.error.contains("network") && info.error.contains("not found")
}

/// Whether a lack has been seen to hurt.
fn hurts(ev: &Evidence, f: &Finding<'_>) -> bool {
    let Some(facts) = facts(ev, f.service) else {
        return false;
    };
    let mut touching = ev
        .reach
        .edges
        .iter()
        .filter(|e| !is_outside(ev, &e.from, &e.to))
        .filter(|e| e.to == f.service || (e.from == f.service && !matches!(f.lack, Lack::Names(_))));
    match f.lack {
        // It cannot be started before there is a network, whatever ended it.
        Lack::Gone { .. } if !facts.info.is_running() => true,
        _ => {
            died_of_it(&facts.info)
                || facts.info.attachments.is_empty()
                || touching.any(|e| e.answer.is_bad())
        }
    }
}

/// The lacks that hurt, of the services that were asked about.
pub(super) fn findings<'a>(ev: &'a Evidence, rb: &Runbook) -> Vec<Finding<'a>> {
    let Networks::Known(networks) = &ev.networks else {
        return Vec::new();
    };
    let mut all = lacks(ev, rb, networks);
    all.retain(|f| hurts(ev, f) && ev.service.as_ref().is_none_or(|s| s == f.service));
    all
}

/// Dead ports of services that a restart does not hurt: it publishes them again. A data store
/// is not restarted for the sake of a port on the host: its neighbours reach it by name, and
/// every session and every answer in memory would be the price.
pub(super) fn restartable_ports<'a>(ev: &'a Evidence, rb: &Runbook) -> Vec<&'a Publication> {
    let mut ports = dead_ports(ev, rb);
    ports.retain(|p| !is_store(rb, &p.service));
    ports
}

fn is_store(rb: &Runbook, service: &str) -> bool {
    // One that the runbook does not know is not restarted either.
    rb.service(service)
        .is_none_or(|s| matches!(s.kind, ServiceKind::Postgres(_) | ServiceKind::Redis(_)))
}

/// Whether a dead port is known to hurt: the engine itself does not publish it any more, or an
/// endpoint behind that very port is down. Otherwise a rule of a firewall may be meant so.
fn is_missed(ev: &Evidence, rb: &Runbook, p: &Publication) -> bool {
    let number = p
        .address
        .rsplit_once(':')
        .and_then(|(_, n)| n.parse::<u16>().ok());
    let behind = |name: &String| {
        let url = rb
            .endpoints
            .get(name)
            .and_then(|e| reqwest::Url::parse(e.url.as_str()).ok());
        number.is_some() && url.and_then(|u| u.port_or_known_default()) == number
    };
    let mut down = ev.endpoints.iter().filter(|(_, a)| a.is_down());
    !p.published || down.any(|(name, _)| behind(name))
}

/// Ports that the service listens on and the host does not pass on, though the container has
/// all its networks.
fn dead_ports<'a>(ev: &'a Evidence, rb: &Runbook) -> Vec<&'a Publication> {
    let lacking: BTreeSet<String> = findings(ev, rb)
        .into_iter()
        .map(|f| f.service.to_owned())
        .collect();
    ev.reach
        .published
        .iter()
        .filter(|p| p.listens == Some(true) && p.host_answers == Some(false))
        .filter(|p| !lacking.contains(&p.service))
        .filter(|p| ev.service.as_ref().is_none_or(|s| *s == p.service))
        .collect()
}

fn port_in_words(p: &Publication) -> String {
    let how = if p.published {
        "the engine says that it publishes it"
    } else {
        "the engine does not publish it any more"
    };
    format!(
        "{} listens on {} inside, and {} on the host refuses: {how}",
        p.service, p.port, p.address
    )
}

pub(super) fn diagnose(ev: &Evidence, rb: &Runbook) -> Diagnosis {
    let said = |certainty, summary: String, reasons, look_alike| Diagnosis {
        certainty,
        summary,
        reasons,
        look_alike,
    };
    let networks = match &ev.networks {
        Networks::Known(networks) => networks,
        Networks::Unknown(why) => {
            return said(
                Certainty::Unknown,
                "the engine does not tell which networks there are".into(),
                vec![why.clone()],
                None,
            );
        }
    };
    let (findings, ports) = (findings(ev, rb), restartable_ports(ev, rb));
    let closed = dead_ports(ev, rb);
    if !findings.is_empty() || !ports.is_empty() {
        let mut reasons: Vec<String> = findings.iter().map(Finding::in_words).collect();
        reasons.extend(closed.iter().map(|p| port_in_words(p)));
        let certain = !findings.is_empty() || ports.iter().any(|p| is_missed(ev, rb, p));
        if !certain {
            reasons.push(
                "no endpoint of the runbook is known to suffer from it: is it closed on purpose?".into(),
            );
        }
        reasons.extend(
            ev.reach
                .edges
                .iter()
                .filter(|e| e.answer.is_bad())
                .map(Edge::in_words),
        );
        let certainty = if certain {
            Certainty::Confirmed
        } else {
            Certainty::Suspected
        };
        return said(certainty, summary(&findings, &ports), reasons, None);
    }
    let bad: Vec<&Edge> = ev
        .reach
        .edges
        .iter()
        .filter(|e| ev.service.as_ref().is_none_or(|s| e.from == *s || e.to == *s))
        .filter(|e| e.answer.is_bad())
        .collect();
    if let Some(look_alike) = look_alike(ev, rb, &bad) {
        let reasons = bad.iter().map(|e| e.in_words()).collect();
        return said(
            Certainty::Absent,
            look_alike.explanation.clone(),
            reasons,
            Some(look_alike),
        );
    }
    if let Some(first) = closed.first() {
        let look_alike = published_port(ev, first);
        return said(
            Certainty::Absent,
            look_alike.explanation.clone(),
            closed.iter().map(|p| port_in_words(p)).collect(),
            Some(look_alike),
        );
    }
    let asked = ev.reach.edges.iter().filter(|e| e.answer.is_good()).count();
    let unasked: Vec<&Edge> = ev.reach.edges.iter().filter(|e| !e.answer.is_good()).collect();
    if asked == 0 && !unasked.is_empty() {
        return said(
            Certainty::Unknown,
            "no service could be asked whether it reaches the others".into(),
            unasked.iter().map(|e| e.in_words()).collect(),
            None,
        );
    }
    let mut reasons: Vec<String> = unasked.iter().map(|e| e.in_words()).collect();
    for harmless in lacks(ev, rb, networks) {
        reasons.push(format!("{}; nothing suffers from it", harmless.in_words()));
    }
    said(
        Certainty::Absent,
        format!(
            "{asked} of {} dependencies are reached by name from inside",
            ev.reach.edges.len()
        ),
        reasons,
        None,
    )
}

fn summary(findings: &[Finding<'_>], ports: &[&Publication]) -> String {
    let of = |wanted: fn(&Lack) -> bool| -> Vec<&str> {
        let set: BTreeSet<&str> = findings
            .iter()
            .filter(|f| wanted(&f.lack))
            .map(|f| f.service)
            .collect();
        set.into_iter().collect()
    };
    let gone: BTreeSet<&str> = findings
        .iter()
        .filter(|f| matches!(f.lack, Lack::Gone { .. }))
        .map(|f| f.network.as_str())
        .collect();
    let mut parts = Vec::new();
    if !gone.is_empty() {
        parts.push(format!(
            "network {} is gone, which {} belong to",
            gone.into_iter().collect::<Vec<_>>().join(", "),
            of(|l| matches!(l, Lack::Gone { .. })).join(", ")
        ));
    }
    let detached = of(|l| *l == Lack::Detached);
    if !detached.is_empty() {
        parts.push(format!(
            "out of the deployment's network: {}",
            detached.join(", ")
        ));
    }
    let nameless = of(|l| matches!(l, Lack::Names(_)));
    if !nameless.is_empty() {
        parts.push(format!("cannot be found by name: {}", nameless.join(", ")));
    }
    for p in ports {
        parts.push(format!(
            "the host does not pass {} on to {}",
            p.address, p.service
        ));
    }
    parts.join("; ")
}

/// Why dependencies are not reached although every place and name is there.
fn look_alike(ev: &Evidence, rb: &Runbook, bad: &[&Edge]) -> Option<LookAlike> {
    // What does not run explains more than what does. One that the engine starts again and again
    // runs at the moment of a look, and has no name between two starts.
    let loops =
        |e: &Edge, facts: &ContainerFacts| e.answer == Answer::Unresolved && facts.info.restart_count > 0;
    let down = bad.iter().find_map(|e| {
        let facts = facts(ev, &e.to)?;
        (!facts.is_well() || loops(e, facts)).then_some((*e, facts))
    });
    if let Some((edge, facts)) = down {
        let name = scenario_of(rb, &edge.to);
        return Some(LookAlike {
            name: name.into(),
            explanation: format!(
                "the network is whole; {} itself does not work: {}",
                edge.to,
                state(facts)
            ),
            next: vec![format!("drctl diagnose {name}"), format!("drctl recover {name}")],
        });
    }
    let bad: Vec<&Edge> = bad
        .iter()
        .copied()
        .filter(|e| !is_outside(ev, &e.from, &e.to))
        .collect();
    if let Some(edge) = bad.iter().find(|e| e.answer == Answer::Refused) {
        let name = scenario_of(rb, &edge.to);
        return Some(LookAlike {
            name: name.into(),
            explanation: format!(
                "the network is whole; {} runs and does not listen on port {}",
                edge.to,
                edge.port.map_or_else(|| "?".to_owned(), |p| p.to_string())
            ),
            next: vec![
                format!("drctl diagnose {name}"),
                format!("docker logs --tail 50 {}", container(ev, &edge.to)),
            ],
        });
    }
    if let Some(edge) = bad.iter().find(|e| e.answer == Answer::Unresolved) {
        let container = container(ev, &edge.from);
        return Some(LookAlike {
            name: "dns".into(),
            explanation: format!(
                "every place and name is there, and {} resolves no name: its own resolver is broken",
                edge.from
            ),
            next: vec![
                format!("docker exec {container} cat /etc/resolv.conf    # must name 127.0.0.11"),
                format!("docker restart {container}    # writes it anew, unless somebody changed it by hand"),
            ],
        });
    }
    bad.iter()
        .find(|e| e.answer == Answer::Silent)
        .map(|edge| LookAlike {
            name: "firewall".into(),
            explanation: format!(
                "{} and {} share a network and the name resolves, and packets do not come through",
                edge.from, edge.to
            ),
            next: vec![
                "iptables -nvL DOCKER-USER    # rules of your own".into(),
                "iptables -nvL FORWARD    # a policy of DROP without the engine's rules?".into(),
                "sysctl net.ipv4.ip_forward net.bridge.bridge-nf-call-iptables".into(),
            ],
        })
}

/// A data store's port on the host that does not answer, while the network is whole.
fn published_port(ev: &Evidence, p: &Publication) -> LookAlike {
    let number = p.address.rsplit_once(':').map_or("", |(_, n)| n);
    let container = container(ev, &p.service);
    LookAlike {
        name: "published-port".into(),
        explanation: format!(
            "{} on the host is not passed on to {}, which listens; who reaches it by name inside the network is \
             not concerned, and a data store is not restarted for that",
            p.address, p.service
        ),
        next: vec![
            format!("ss -ltnp 'sport = :{number}'    # does the engine's proxy, or something else, hold the port?"),
            "iptables -nvL DOCKER-USER; iptables -nvL INPUT; iptables -t nat -nvL DOCKER    # which rule drops it?"
                .into(),
            "systemctl reload firewalld    # where firewalld has dropped the engine's rules".into(),
            format!("docker port {container}    # what the engine publishes; it does so when the container starts"),
        ],
    }
}

fn scenario_of(rb: &Runbook, service: &str) -> &'static str {
    match rb.service(service).map(|s| &s.kind) {
        Some(ServiceKind::Postgres(_)) => "db-down",
        Some(ServiceKind::Redis(_)) => "redis-failure",
        _ => "service-crash",
    }
}

fn state(facts: &ContainerFacts) -> String {
    match facts.info.status {
        Status::Paused => "it is paused by the engine".into(),
        Status::Running if facts.is_stopped_by_signal() => "it is stopped by a signal".into(),
        Status::Running => "it runs, and its own health check fails".into(),
        _ => end_in_words(&facts.info),
    }
}

fn container(ev: &Evidence, service: &str) -> String {
    facts(ev, service).map_or_else(|| service.to_owned(), |f| f.info.name.clone())
}
