//! Who reaches whom: asked inside the containers, where names are resolved and connections
//! are made as the application makes them. A health check does not tell: it stays green in a
//! container without any network.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::containers::ContainerState;
use crate::runbook::{ServiceKind, ServiceName};
use crate::system::System;
use crate::workload::{ContainerInfo, HelperNetwork, HelperSpec, Status};

/// Compose's label with the service's name.
pub const LABEL_SERVICE: &str = "com.docker.compose.service";

/// Resolves each name and connects to each port, side by side, and prints a line for each:
/// number, address, answer. Every question has a limit of its own, `$1` seconds.
const SCRIPT: &str = r#"
LC_ALL=C; export LC_ALL
has() { command -v "$1" >/dev/null 2>&1; }
has timeout || { echo "no-tool"; exit 0; }
limit=$1; shift
ask() {
  if has getent; then
    address=$(timeout "$limit" getent hosts "$2" 2>/dev/null); address=${address%%[!0-9a-fA-F.:]*}
  elif has nslookup; then
    address=; timeout "$limit" nslookup "$2" >/dev/null 2>&1 && address=found
  else
    echo "$1 - no-tool"; return
  fi
  [ -n "$address" ] || { echo "$1 - unresolved"; return; }
  [ "$3" != - ] || { echo "$1 $address resolved"; return; }
  if has bash; then
    said=$(timeout "$limit" bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$2" "$3" 2>&1); code=$?
  elif has nc; then
    said=$(timeout "$limit" nc -z -v "$2" "$3" </dev/null 2>&1); code=$?
  elif has curl; then
    said=; timeout "$limit" curl -s -o /dev/null --connect-timeout "$limit" -m "$limit" "telnet://$2:$3" </dev/null; code=$?
    case $code in 7) said=refused ;; 28|124) said=silent ;; *) code=0 ;; esac
  else
    echo "$1 $address resolved"; return
  fi
  [ "$code" != 0 ] || { echo "$1 $address open"; return; }
  case $said in *[Rr]efused*) echo "$1 $address refused" ;; *) echo "$1 $address silent" ;; esac
}
number=0
while [ $# -ge 2 ]; do
  ask "$number" "$1" "$2" &
  number=$((number + 1)); shift 2
done
wait
"#;

/// What came of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The name resolves and the port takes connections.
    Open,
    /// The name resolves; there was no port, or no tool, to ask further.
    Resolved,
    /// The name resolves and the port refuses.
    Refused,
    /// The name resolves and nothing answers.
    Silent,
    /// The name does not resolve.
    Unresolved,
    /// It could not be asked, and why.
    Unasked(String),
}

impl Answer {
    /// The dependency is reached, as far as can be told.
    #[must_use]
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Open | Self::Resolved)
    }

    /// It was asked, and is not reached.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        matches!(self, Self::Refused | Self::Silent | Self::Unresolved)
    }
}

/// One service that needs another, and whether it reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Edge {
    /// Who asks.
    pub from: String,
    /// Who is needed.
    pub to: String,
    /// The name that was asked for.
    pub name: String,
    /// The port, when it is known.
    pub port: Option<u16>,
    /// What the name resolved to.
    pub address: Option<String>,
    /// What came of it.
    pub answer: Answer,
}

impl Edge {
    /// What came of it, in words.
    #[must_use]
    pub fn in_words(&self) -> String {
        let (from, name) = (&self.from, &self.name);
        let port = self.port.map_or_else(String::new, |p| format!(":{p}"));
        let at = self
            .address
            .as_ref()
            .map_or_else(String::new, |a| format!(" ({a})"));
        match &self.answer {
            Answer::Open => format!("from inside {from}, {name}{port}{at} takes connections"),
            Answer::Resolved => format!("from inside {from}, {name}{at} resolves"),
            Answer::Refused => format!("from inside {from}, {name}{port}{at} refuses the connection"),
            Answer::Silent => format!("from inside {from}, nothing answers at {name}{port}{at}"),
            Answer::Unresolved => format!("from inside {from}, the name {name} does not resolve"),
            Answer::Unasked(why) => format!("whether {from} reaches {name} could not be asked: {why}"),
        }
    }
}

/// A published port: whether it answers on the host and inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Publication {
    /// Service.
    pub service: String,
    /// As `80/tcp`.
    pub port: String,
    /// Host address and port.
    pub address: String,
    /// The engine says that it is published.
    pub published: bool,
    /// A connection from the host succeeds; `None` when the engine is not on this host, or the
    /// number of the port is not known.
    pub host_answers: Option<bool>,
    /// Something listens on it inside; `None` when that could not be seen.
    pub listens: Option<bool>,
}

/// Every dependency of the runbook and every published port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Reach {
    /// One per `depends-on`.
    pub edges: Vec<Edge>,
    /// One per port that a running container was created to publish.
    pub published: Vec<Publication>,
}

/// The name under which its neighbours know a service.
#[must_use]
pub fn known_as(service: &str, info: &ContainerInfo) -> String {
    info.labels
        .get(LABEL_SERVICE)
        .cloned()
        .unwrap_or_else(|| service.to_owned())
}

/// Asks everything, side by side.
pub async fn look(system: &System, containers: &BTreeMap<String, ContainerState>) -> Reach {
    let runbook = &system.runbook;
    let info = |name: &str| containers.get(name).and_then(|c| c.found()).map(|f| &f.info);
    // Where the runbook does not know the port, the service itself shows on which it listens.
    let of_interest: BTreeSet<&str> = runbook
        .services
        .values()
        .flat_map(|s| &s.depends_on)
        .map(ServiceName::as_str)
        .filter(|n| known_port(system, n).is_none())
        .chain(
            containers
                .keys()
                .map(String::as_str)
                .filter(|n| info(n).is_some_and(|i| !i.to_publish.is_empty())),
        )
        .filter(|n| info(n).is_some_and(ContainerInfo::is_running))
        .collect();
    let listening: BTreeMap<&str, BTreeSet<u16>> = join_all(
        of_interest
            .into_iter()
            .map(|name| async move { Some((name, listening(system, info(name)?).await?)) }),
    )
    .await
    .into_iter()
    .flatten()
    .collect();
    let port_of =
        |name: &str| known_port(system, name).or_else(|| listening.get(name)?.iter().next().copied());

    let asked = runbook.services.iter().filter(|(_, s)| !s.depends_on.is_empty());
    let edges = asked.map(|(from, service)| {
        let targets = service
            .depends_on
            .iter()
            .map(|to| Edge {
                from: from.to_string(),
                to: to.to_string(),
                name: info(to.as_str()).map_or_else(|| to.to_string(), |i| known_as(to.as_str(), i)),
                port: port_of(to.as_str()),
                address: None,
                answer: Answer::Unasked(format!("{from} does not run")),
            })
            .collect();
        ask(system, containers, from.as_str(), targets)
    });
    let published = containers
        .iter()
        .filter_map(|(name, c)| Some((name, &c.found()?.info)))
        .filter(|(_, i)| i.is_running())
        .flat_map(|(name, i)| i.to_publish.iter().map(move |p| (name, i, p)))
        .map(|(name, info, (port, wanted))| publication(system, name, info, port, wanted, &listening));
    let (edges, published) = tokio::join!(join_all(edges), join_all(published));
    Reach {
        edges: edges.into_iter().flatten().collect(),
        published,
    }
}

fn known_port(system: &System, service: &str) -> Option<u16> {
    match &system.runbook.service(service)?.kind {
        ServiceKind::Postgres(p) => Some(p.port),
        ServiceKind::Redis(r) => Some(r.port),
        ServiceKind::App | ServiceKind::Nginx => None,
    }
}

async fn publication(
    system: &System,
    service: &str,
    info: &ContainerInfo,
    port: &str,
    wanted: &str,
    listening: &BTreeMap<&str, BTreeSet<u16>>,
) -> Publication {
    let at = host_address(info.published.get(port).map(String::as_str), wanted)
        .filter(|_| system.docker.is_local() && port.ends_with("/tcp"));
    let host_answers = match at {
        Some(at) => {
            let limit = system.runbook.deadlines.probe;
            let attempt = tokio::time::timeout(limit, tokio::net::TcpStream::connect(at)).await;
            Some(matches!(attempt, Ok(Ok(_))))
        }
        None => None,
    };
    let number = port.split('/').next().and_then(|p| p.parse().ok());
    Publication {
        service: service.to_owned(),
        port: port.to_owned(),
        address: info.published.get(port).map_or(wanted, String::as_str).to_owned(),
        published: info.published.contains_key(port),
        host_answers,
        listens: listening
            .get(service)
            .zip(number)
            .map(|(all, n): (_, u16)| all.contains(&n)),
    }
}

/// Where a port of the host is to be asked: what the engine publishes, else what was asked for.
/// The latter may leave the number to the engine (none, 0, a range): nobody knows it then.
fn host_address<'a>(published: Option<&'a str>, wanted: &'a str) -> Option<&'a str> {
    let has_number = |address: &&str| {
        let number = address.rsplit_once(':').and_then(|(_, n)| n.parse::<u16>().ok());
        number.is_some_and(|n| n != 0)
    };
    published
        .filter(has_number)
        .or_else(|| Some(wanted).filter(has_number))
}

fn half_a_probe(system: &System) -> Duration {
    (system.runbook.deadlines.probe / 2).max(Duration::from_secs(1))
}

/// Ports on which something inside takes connections from outside.
async fn listening(system: &System, info: &ContainerInfo) -> Option<BTreeSet<u16>> {
    // One process that reads two files: harmless also beside a postmaster.
    let argv = ["cat", "/proc/net/tcp", "/proc/net/tcp6"];
    // The dependencies are asked after this: both together shall stay within what one probe and a
    // half may take, also where a processor limit holds every process of the container back.
    let limit = half_a_probe(system);
    let out = system.docker.exec(&info.id, None, &argv, limit).await.ok()?;
    let ports = listening_ports(&out.stdout);
    (!ports.is_empty()).then_some(ports)
}

/// Reads `/proc/net/tcp` and `tcp6`: sockets that listen, the loopback's left out.
fn listening_ports(text: &str) -> BTreeSet<u16> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (address, port) = fields.next()?.split_once(':')?;
            let state = fields.nth(1)?;
            // IPv4 addresses are printed with their bytes in the host's order, so 127 is last.
            let loopback = match address.len() {
                8 => address.ends_with("7F"),
                _ => address == "00000000000000000000000001000000",
            };
            (state == "0A" && !loopback).then(|| u16::from_str_radix(port, 16).ok())?
        })
        .collect()
}

/// Asks for all dependencies of one service from inside its network.
async fn ask(
    system: &System,
    containers: &BTreeMap<String, ContainerState>,
    from: &str,
    targets: Vec<Edge>,
) -> Vec<Edge> {
    let facts = match containers.get(from) {
        Some(ContainerState::Found(facts)) => facts,
        Some(ContainerState::Unknown(why)) => return unasked(targets, why),
        _ => return unasked(targets, &format!("{from} has no container")),
    };
    let info = &facts.info;
    if info.status == Status::Paused {
        return unasked(targets, &format!("{from} is paused"));
    }
    if !info.is_running() {
        return unasked(targets, &format!("{from} does not run"));
    }
    let limit = half_a_probe(system);
    let mut argv = vec![
        "-c".to_owned(),
        SCRIPT.to_owned(),
        "drctl".to_owned(),
        limit.as_secs().max(1).to_string(),
    ];
    for edge in &targets {
        argv.push(edge.name.clone());
        argv.push(edge.port.map_or_else(|| "-".to_owned(), |p| p.to_string()));
    }
    // A name and a port, each within its own limit of whole seconds, and a second around them.
    let deadline = Duration::from_secs(limit.as_secs() * 2 + 1);
    let database = system
        .runbook
        .service(from)
        .is_some_and(|s| matches!(s.kind, ServiceKind::Postgres(_)));
    // A postmaster adopts what exec leaves behind, and takes it for a backend that crashed.
    let inside = if database {
        None
    } else {
        let argv: Vec<&str> = std::iter::once("/bin/sh")
            .chain(argv.iter().map(String::as_str))
            .collect();
        match system.docker.exec(&info.id, None, &argv, deadline).await {
            Ok(out) if !matches!(out.exit_code, 126 | 127) && !out.stdout.contains("no-tool") => {
                Some(out.stdout)
            }
            _ => None,
        }
    };
    match inside {
        Some(said) => read(targets, &said),
        None => beside(system, containers, info, targets, &argv, deadline).await,
    }
}

/// Asks from a helper in the container's own network: the container has not the tools.
async fn beside(
    system: &System,
    containers: &BTreeMap<String, ContainerState>,
    info: &ContainerInfo,
    targets: Vec<Edge>,
    argv: &[String],
    deadline: Duration,
) -> Vec<Edge> {
    let equipped = system.runbook.services.iter().find_map(|(name, s)| {
        let known = !matches!(s.kind, ServiceKind::App);
        let found = containers.get(name.as_str()).and_then(|c| c.found())?;
        known.then_some(&found.info.image_id)
    });
    let image = equipped.unwrap_or(&info.image_id);
    let argv: Vec<&str> = std::iter::once("/bin/sh")
        .chain(argv.iter().map(String::as_str))
        .collect();
    let mut spec = HelperSpec::new(system.deployment(), "look", "reach", image, &argv);
    spec.network = HelperNetwork::Container(info.id.clone());
    match system
        .docker
        .run_helper(&spec, deadline + Duration::from_secs(5))
        .await
    {
        Ok(out) if out.exit_code == 0 => read(targets, &out.stdout),
        Ok(out) => unasked(targets, &out.last_words()),
        Err(e) => unasked(targets, &e.to_string()),
    }
}

fn unasked(mut targets: Vec<Edge>, why: &str) -> Vec<Edge> {
    for edge in &mut targets {
        edge.answer = Answer::Unasked(why.to_owned());
    }
    targets
}

/// Takes the script's lines to the edges that they are about.
fn read(mut targets: Vec<Edge>, said: &str) -> Vec<Edge> {
    for (number, edge) in targets.iter_mut().enumerate() {
        let line = said.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let ours = fields.next()?.parse() == Ok(number);
            ours.then(|| Some((fields.next()?, fields.next()?))).flatten()
        });
        let Some((address, answer)) = line else {
            edge.answer = Answer::Unasked("it was not answered in time".into());
            continue;
        };
        edge.address = (address.contains(['.', ':'])).then(|| address.to_owned());
        edge.answer = match answer {
            "open" => Answer::Open,
            "resolved" => Answer::Resolved,
            "refused" => Answer::Refused,
            "silent" => Answer::Silent,
            "unresolved" => Answer::Unresolved,
            _ => Answer::Unasked("the container has no tool to resolve a name".into()),
        };
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_listens_for_others_counts() {
        let text = "  sl  local_address rem_address   st tx_queue\n\
             0: 00000000:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000 10001\n\
             1: 0B00007F:8413 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0\n\
             2: 0520A8C0:1F41 0220A8C0:18EB 01 00000000:00000000 00:00000000 00000000 10001\n\
             0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0\n\
             1: 00000000000000000000000001000000:0051 00000000000000000000000000000000:0000 0A 0:0\n";
        assert_eq!(listening_ports(text), BTreeSet::from([8000, 80]));
    }

    #[test]
    fn a_port_whose_number_the_engine_chose_is_asked_where_it_is() {
        for wanted in ["127.0.0.1:", "127.0.0.1:0", "127.0.0.1:8000-8010"] {
            assert_eq!(
                host_address(Some("127.0.0.1:32768"), wanted),
                Some("127.0.0.1:32768")
            );
            assert_eq!(host_address(None, wanted), None);
        }
        assert_eq!(host_address(None, "127.0.0.1:80"), Some("127.0.0.1:80"));
        assert_eq!(host_address(Some("127.0.0.1:"), "::1:80"), Some("::1:80"));
    }

    #[test]
    fn lines_find_their_edges_in_any_order() {
        let edge = |to: &str| Edge {
            from: "api".into(),
            to: to.into(),
            name: to.into(),
            port: Some(1),
            address: None,
            answer: Answer::Unasked(String::new()),
        };
        let targets = ["a", "b", "c", "d", "e"].map(edge).to_vec();
        let read = read(
            targets,
            "2 10.0.0.3 refused\n0 10.0.0.1 open\n3 - unresolved\n1 10.0.0.2 silent\n",
        );
        let answers: Vec<_> = read.iter().map(|e| e.answer.clone()).collect();
        assert_eq!(
            answers[..4],
            [Answer::Open, Answer::Silent, Answer::Refused, Answer::Unresolved]
        );
        assert!(matches!(answers[4], Answer::Unasked(_)));
        assert_eq!(read[0].address.as_deref(), Some("10.0.0.1"));
        assert_eq!(read[3].address, None);
    }
}
