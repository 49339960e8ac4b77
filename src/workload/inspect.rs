//! What the engine tells of containers: which there are, how they are, what they said.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary, ContainerSummaryStateEnum,
    EndpointSettings, PortMap,
};
use bollard::query_parameters as q;
use futures_util::StreamExt;
use futures_util::future::join_all;
use jiff::Timestamp;

use super::docker::Docker;
use super::{Attachment, ContainerInfo, LogLine, MountInfo, Status, WorkloadError};

impl Docker {
    /// Everything `inspect` says of a container, by name or identifier.
    ///
    /// # Errors
    /// `NotFound`, or the engine's trouble.
    pub async fn inspect(&self, container: &str) -> Result<ContainerInfo, WorkloadError> {
        let what = format!("container {container}");
        let raw = self
            .call(
                &what,
                self.deadline,
                self.api
                    .inspect_container(container, None::<q::InspectContainerOptions>),
            )
            .await?;
        Ok(container_info(raw))
    }

    /// The container of a Compose service, by the project's and the service's labels; of several
    /// the one that is worst off, with the names of all. One-off containers (`compose run`) are
    /// left out, and a replacement that Compose has made and not yet brought into service counts
    /// only where nothing else is.
    ///
    /// # Errors
    /// `NotFound` when there is none, or the engine's trouble.
    pub async fn find_service(&self, project: &str, service: &str) -> Result<ContainerInfo, WorkloadError> {
        let found = self
            .listed(&[
                format!("com.docker.compose.project={project}"),
                format!("com.docker.compose.service={service}"),
                "com.docker.compose.oneoff=False".to_owned(),
            ])
            .await?;
        let each = one_each(found.into_iter().filter_map(candidate));
        if let [only] = each.as_slice() {
            return self.inspect(&only.id).await;
        }
        let mut infos = Vec::new();
        for looked in join_all(each.iter().map(|c| self.inspect(&c.id))).await {
            match looked {
                Ok(info) => infos.push(info),
                // Gone since the list.
                Err(WorkloadError::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        worst(infos).ok_or_else(|| WorkloadError::NotFound {
            what: format!("a container of service {service} in Compose project {project}"),
        })
    }

    /// Identifier and name of every container, running or not, with all of `labels`
    /// (`key=value`).
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn list(&self, labels: &[String]) -> Result<Vec<(String, String)>, WorkloadError> {
        let found = self.listed(labels).await?;
        Ok(found
            .into_iter()
            .filter_map(|c| {
                let name = name_of(&c);
                Some((c.id?, name))
            })
            .collect())
    }

    async fn listed(&self, labels: &[String]) -> Result<Vec<ContainerSummary>, WorkloadError> {
        let filters = HashMap::from([("label".to_owned(), labels.to_vec())]);
        let options = q::ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        self.call(
            "the list of containers",
            self.deadline,
            self.api.list_containers(Some(options)),
        )
        .await
    }

    /// The last `tail` log lines that are not older than `since`. Engine options count
    /// whole seconds, which would bring back the previous run's last words; so lines are
    /// filtered here by their own time stamps.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn logs(
        &self,
        container: &str,
        since: Option<Timestamp>,
        tail: usize,
    ) -> Result<Vec<LogLine>, WorkloadError> {
        let options = q::LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .tail(&tail.to_string())
            .build();
        let mut stream = self.api.logs(container, Some(options));
        let what = format!("the log of container {container}");
        let read = async {
            let mut lines = Vec::new();
            while let Some(chunk) = stream.next().await {
                let text = String::from_utf8_lossy(&chunk?.into_bytes()).into_owned();
                for line in text.lines() {
                    let (at, text) = match line.split_once(' ') {
                        Some((stamp, rest)) => match stamp.parse::<Timestamp>() {
                            Ok(at) => (Some(at), rest),
                            Err(_) => (None, line),
                        },
                        None => (None, line),
                    };
                    lines.push(LogLine {
                        at,
                        text: text.to_owned(),
                    });
                }
            }
            Ok(lines)
        };
        let mut lines = self.call(&what, self.deadline, read).await?;
        if let Some(since) = since {
            lines.retain(|l| l.at.is_none_or(|at| at >= since));
        }
        Ok(lines)
    }
}

fn name_of(c: &ContainerSummary) -> String {
    let first = c.names.iter().flatten().next();
    first.map_or_else(String::new, |n| n.trim_start_matches('/').to_owned())
}

/// A container with a service's labels, as the list of containers tells of it. What comes first
/// is the service's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// Compose counts the containers of a service from 1, and a replacement has the number of
    /// what it replaces.
    number: u32,
    /// Two without a number have nothing to do with each other.
    numberless: Option<String>,
    /// It has no process.
    rests: bool,
    /// `compose up` makes the replacement under a name of its own, `<12 hexadecimal digits>_NAME`, before it
    /// stops the old one; cut off there, it leaves both. Older versions rename the old one so.
    makeshift: bool,
    name: String,
    id: String,
}

/// `None` for what a recovery has set aside: it still has the labels that it was created with.
fn candidate(c: ContainerSummary) -> Option<Candidate> {
    use ContainerSummaryStateEnum as S;
    let name = name_of(&c);
    if name.contains(crate::plan::SET_ASIDE) {
        return None;
    }
    let labels = c.labels.unwrap_or_default();
    let number = labels
        .get("com.docker.compose.container-number")
        .and_then(|n| n.parse().ok());
    // The label stays when the replacement has got its name.
    let makeshift = name.split_once('_').is_some_and(|(prefix, _)| {
        prefix.len() == 12 && prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    Some(Candidate {
        number: number.unwrap_or(u32::MAX),
        numberless: number.is_none().then(|| name.clone()),
        rests: !matches!(
            c.state,
            Some(S::RUNNING | S::STOPPING | S::PAUSED | S::RESTARTING)
        ),
        makeshift,
        name,
        id: c.id?,
    })
}

/// One container for each of a service's numbers, in their order.
fn one_each(found: impl Iterator<Item = Candidate>) -> Vec<Candidate> {
    let mut all: Vec<Candidate> = found.collect();
    all.sort_unstable();
    all.dedup_by(|later, first| (later.number, &later.numberless) == (first.number, &first.numberless));
    all
}

/// Of a service's containers, in their order, the one that is worst off. Of those that run well
/// the one that the engine has restarted last: it may be between two crashes.
fn worst(infos: Vec<ContainerInfo>) -> Option<ContainerInfo> {
    let names: Vec<String> = infos.iter().map(|i| i.name.clone()).collect();
    let trouble = |i: &ContainerInfo| match (i.status, i.health.as_deref()) {
        (Status::Exited | Status::Created | Status::Dead, _) => 5,
        (Status::Restarting, _) => 4,
        (Status::Paused, _) => 3,
        (Status::Running, Some("unhealthy")) => 2,
        (Status::Running, Some("starting")) => 1,
        (Status::Running, _) => 0,
    };
    let restarted = |i: &ContainerInfo| i.started_at.filter(|_| i.restart_count > 0);
    // The first of those that are equal.
    let mut found = infos
        .into_iter()
        .rev()
        .max_by_key(|i| (trouble(i), restarted(i)))?;
    if names.len() > 1 {
        found.replicas = names;
    }
    Some(found)
}

fn stamp(text: Option<&String>) -> Option<Timestamp> {
    // "0001-01-01T00:00:00Z" is the engine's way to say never.
    let at: Timestamp = text?.parse().ok()?;
    (at > Timestamp::UNIX_EPOCH).then_some(at)
}

/// The first host address and port of each published port.
fn first_bindings(ports: PortMap) -> BTreeMap<String, String> {
    ports
        .into_iter()
        .filter_map(|(port, bindings)| {
            let b = bindings?.into_iter().next()?;
            let ip = match b.host_ip.as_deref() {
                None | Some("" | "0.0.0.0" | "::") => "127.0.0.1".to_owned(),
                Some(ip) => ip.to_owned(),
            };
            Some((port, format!("{ip}:{}", b.host_port?)))
        })
        .collect()
}

fn attachment(e: EndpointSettings) -> Attachment {
    let asked = e.ipam_config.unwrap_or_default();
    let mut fixed = [asked.ipv4_address, asked.ipv6_address]
        .into_iter()
        .flatten()
        .filter(|a| !a.is_empty());
    let mut aliases = e.aliases.unwrap_or_default();
    // Newer engines list the names that they made themselves apart.
    aliases.extend(e.dns_names.unwrap_or_default());
    aliases.sort_unstable();
    aliases.dedup();
    Attachment {
        network_id: e.network_id.unwrap_or_default(),
        address: e.ip_address.unwrap_or_default(),
        aliases,
        fixed_address: fixed.next(),
        fixed_address_v6: fixed.next(),
    }
}

fn container_info(raw: ContainerInspectResponse) -> ContainerInfo {
    let state = raw.state.unwrap_or_default();
    let config = raw.config.unwrap_or_default();
    let host = raw.host_config.unwrap_or_default();
    let network = raw.network_settings.unwrap_or_default();
    let status = match state.status {
        _ if state.restarting == Some(true) => Status::Restarting,
        _ if state.paused == Some(true) => Status::Paused,
        Some(ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::STOPPING) => Status::Running,
        Some(ContainerStateStatusEnum::CREATED) => Status::Created,
        Some(ContainerStateStatusEnum::EXITED) => Status::Exited,
        _ => Status::Dead,
    };
    let published = first_bindings(network.ports.unwrap_or_default());
    let to_publish = first_bindings(host.port_bindings.unwrap_or_default());
    let attachments: BTreeMap<String, Attachment> = network
        .networks
        .unwrap_or_default()
        .into_iter()
        .map(|(name, e)| (name, attachment(e)))
        .collect();
    ContainerInfo {
        id: raw.id.unwrap_or_default(),
        name: raw.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        image: config.image.unwrap_or_default(),
        image_id: raw.image.unwrap_or_default(),
        status,
        exit_code: state.exit_code.unwrap_or_default(),
        oom_killed: state.oom_killed.unwrap_or_default(),
        error: state.error.unwrap_or_default(),
        health: state
            .health
            .and_then(|h| h.status)
            .map(|s| s.to_string())
            .filter(|s| !s.is_empty() && s != "none"),
        started_at: stamp(state.started_at.as_ref()),
        finished_at: stamp(state.finished_at.as_ref()),
        restart_count: raw.restart_count.unwrap_or_default(),
        restart_policy: super::create::policy_in_words(host.restart_policy),
        stop_signal: config.stop_signal.unwrap_or_else(|| "SIGTERM".into()),
        shm_size: u64::try_from(host.shm_size.unwrap_or_default()).unwrap_or_default(),
        memory_limit: u64::try_from(host.memory.unwrap_or_default()).unwrap_or_default(),
        memory_swap: host.memory_swap.unwrap_or_default(),
        nano_cpus: host.nano_cpus.unwrap_or_default(),
        cpu_quota: host.cpu_quota.unwrap_or_default(),
        cpu_period: host.cpu_period.unwrap_or_default(),
        networks: attachments
            .iter()
            .map(|(name, a)| (name.clone(), a.address.clone()))
            .collect(),
        attachments,
        network_mode: host.network_mode.unwrap_or_default(),
        published,
        to_publish,
        mounts: raw
            .mounts
            .unwrap_or_default()
            .into_iter()
            .map(|m| MountInfo {
                volume: m.name.filter(|n| !n.is_empty()),
                source: m.source.unwrap_or_default(),
                destination: m.destination.unwrap_or_default(),
                writable: m.rw.unwrap_or(true),
            })
            .collect(),
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        env: config.env.unwrap_or_default(),
        command: config.cmd.unwrap_or_default(),
        working_dir: config.working_dir.unwrap_or_default(),
        replicas: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of the containers that are looked at, of some given as name, number and state.
    fn chosen(all: &[(&str, &str, &str)]) -> Vec<String> {
        let found = all.iter().map(|(name, number, state)| {
            serde_json::from_value(serde_json::json!({
                "Id": format!("{name}-id"), "Names": [format!("/{name}")], "State": state,
                "Labels": {"com.docker.compose.container-number": number, "com.docker.compose.replace": "redis-1"}
            }))
            .unwrap()
        });
        let each = one_each(found.filter_map(candidate));
        each.into_iter().map(|c| c.name).collect()
    }

    #[test]
    fn a_replacement_that_compose_has_not_brought_into_service_is_not_the_service() {
        let (old, new) = ("shop-redis-1", "0a1b2c3d4e5f_shop-redis-1");
        for state in ["running", "paused", "restarting", "exited"] {
            let both = [(new, "1", "created"), (old, "1", state)];
            assert_eq!(chosen(&both), [old], "{state}");
        }
        // Somebody has started it, or nothing else is left.
        assert_eq!(chosen(&[(new, "1", "running"), (old, "1", "exited")]), [new]);
        assert_eq!(chosen(&[(new, "1", "created")]), [new]);
        // An older Compose gives the old one such a name.
        assert_eq!(chosen(&[(new, "1", "exited"), (old, "1", "created")]), [old]);
        // A project may begin with hexadecimal digits.
        assert_eq!(chosen(&[("cafe_redis_1", "1", "running")]), ["cafe_redis_1"]);
    }

    #[test]
    fn a_service_is_as_its_worst_container() {
        let of = |changes: &[fn(&mut ContainerInfo)]| {
            let infos = changes.iter().enumerate().map(|(at, change)| {
                let raw = serde_json::json!({
                    "Name": format!("/web-{}", at + 1), "RestartCount": 0,
                    "State": {"Status": "running", "StartedAt": "2026-11-20T20:00:00Z", "Health": {"Status": "healthy"}}
                });
                let mut info = container_info(serde_json::from_value(raw).unwrap());
                change(&mut info);
                info
            });
            worst(infos.collect()).unwrap()
        };
        let well: fn(&mut ContainerInfo) = |_| {};
        let unwell: fn(&mut ContainerInfo) = |i| i.health = Some("unhealthy".into());
        let ended: fn(&mut ContainerInfo) = |i| i.status = Status::Exited;
        let restarted: fn(&mut ContainerInfo) = |i| i.restart_count = 2;
        assert_eq!(of(&[well, well, well]).name, "web-1");
        assert_eq!(of(&[well, unwell, well]).name, "web-2");
        assert_eq!(of(&[unwell, well, ended]).name, "web-3");
        assert_eq!(of(&[well, well, restarted]).name, "web-3");
        assert_eq!(of(&[well, ended]).replicas, ["web-1", "web-2"]);
        assert!(of(&[ended]).replicas.is_empty());
        assert!(worst(Vec::new()).is_none());
    }

    #[test]
    fn containers_of_a_service_come_in_the_order_of_their_numbers() {
        let all = [
            ("web-10", "10", "running"),
            ("web-2", "2", "exited"),
            ("web-1_drctl_20261120", "1", "exited"),
            ("web-1", "1", "running"),
        ];
        assert_eq!(chosen(&all), ["web-1", "web-2", "web-10"]);
        assert_eq!(chosen(&[("b", "", "running"), ("a", "", "running")]), ["a", "b"]);
    }
}
