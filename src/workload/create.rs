//! Containers made like another one: in its place, or beside it.
//!
//! Everything that makes the container what it is comes from the engine's own account of the
//! old one: configuration, host configuration, mounts (anonymous volumes by their names),
//! networks with their aliases, labels. Secrets in its environment pass through memory only.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerUpdateBody, EndpointSettings,
    NetworkConnectRequest, NetworkingConfig, RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters as q;

use super::docker::Docker;
use super::{LABEL_DEPLOYMENT, LABEL_PURPOSE, LABEL_RUN, WorkloadError};
use crate::plan::Limits;

/// What a new container is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// It takes the old one's place: same ports, same Compose labels.
    Replacement,
    /// It works beside it: no published ports, not Compose's, and drctl's to remove.
    Second {
        /// The deployment, for the label.
        deployment: String,
    },
}

/// A container that is to be created like another one.
#[derive(Debug, Clone)]
pub struct Like {
    /// The old one, by name or identifier.
    pub of: String,
    /// The new one's name.
    pub name: String,
    /// The new one's image.
    pub image: String,
    /// The run, for the label.
    pub run: String,
    /// What it is for.
    pub role: Role,
}

impl Docker {
    /// Creates a container like another one. It is not started.
    ///
    /// # Errors
    /// The engine's trouble; nothing is left then.
    pub async fn create_like(&self, like: &Like) -> Result<String, WorkloadError> {
        let what = format!("container {} like {}", like.name, like.of);
        let old = self
            .call(
                &what,
                self.deadline,
                self.api
                    .inspect_container(&like.of, None::<q::InspectContainerOptions>),
            )
            .await?;
        let (body, others) = body(old, like).map_err(|e| WorkloadError::Transport {
            what: what.clone(),
            cause: format!("the engine's account of the container is not understood: {e}"),
        })?;
        let options = q::CreateContainerOptionsBuilder::default()
            .name(&like.name)
            .build();
        let id = self
            .call(
                &what,
                self.deadline.max(Duration::from_secs(30)),
                self.api.create_container(Some(options), body),
            )
            .await?
            .id;
        for (network, endpoint) in others {
            if let Err(e) = self.join_network(&network, &id, endpoint).await {
                self.remove_keeping_volumes(&id).await?;
                return Err(e);
            }
        }
        Ok(id)
    }

    async fn join_network(
        &self,
        network: &str,
        container: &str,
        endpoint: EndpointSettings,
    ) -> Result<(), WorkloadError> {
        let request = NetworkConnectRequest {
            container: container.to_owned(),
            endpoint_config: Some(endpoint),
        };
        self.call(
            &format!("connection of container {container} to network {network}"),
            self.for_a_change(),
            self.api.connect_network(network, request),
        )
        .await
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// The engine's trouble; `Engine` 409 when the name is taken.
    pub async fn rename(&self, container: &str, name: &str) -> Result<(), WorkloadError> {
        let options = q::RenameContainerOptionsBuilder::default().name(name).build();
        self.call(
            &format!("new name {name} for container {container}"),
            self.for_a_change(),
            self.api.rename_container(container, options),
        )
        .await
    }

    /// Removes a container, running or not, and none of its volumes; gone is fine.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn remove_keeping_volumes(&self, container: &str) -> Result<(), WorkloadError> {
        let options = q::RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(false)
            .build();
        let gone = self
            .call(
                &format!("removal of container {container}"),
                self.deadline.max(Duration::from_secs(30)),
                self.api.remove_container(container, Some(options)),
            )
            .await;
        match gone {
            Err(WorkloadError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// Gives an image one more name, so that it cannot vanish.
    ///
    /// # Errors
    /// `NotFound` when there is no such image, or the engine's trouble.
    pub async fn tag_image(&self, image: &str, repository: &str, tag: &str) -> Result<(), WorkloadError> {
        let options = q::TagImageOptionsBuilder::default()
            .repo(repository)
            .tag(tag)
            .build();
        self.call(
            &format!("name {repository}:{tag} for image {image}"),
            self.for_a_change(),
            self.api.tag_image(image, Some(options)),
        )
        .await
    }

    /// Takes a name from an image. The last name of an image that a container uses stays;
    /// gone is fine.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn untag_image(&self, name: &str) -> Result<(), WorkloadError> {
        let options = q::RemoveImageOptionsBuilder::default()
            .force(false)
            .noprune(true)
            .build();
        let gone = self
            .call(
                &format!("removal of the image name {name}"),
                self.deadline,
                self.api.remove_image(name, Some(options), None),
            )
            .await;
        match gone {
            Ok(_) | Err(WorkloadError::NotFound { .. } | WorkloadError::Engine { status: 409, .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The identifier that an image's name stands for now; `None` when there is no such image.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn image_id(&self, name: &str) -> Result<Option<String>, WorkloadError> {
        let found = self
            .call(
                &format!("image {name}"),
                self.deadline,
                self.api.inspect_image(name),
            )
            .await;
        match found {
            Ok(image) => Ok(image.id),
            Err(WorkloadError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Files of its image that a container has changed or deleted in its own layer.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn changed_files(&self, container: &str) -> Result<Vec<String>, WorkloadError> {
        use bollard::models::ChangeType;
        let all = self
            .call(
                &format!("the changed files of container {container}"),
                self.deadline,
                self.api.container_changes(container),
            )
            .await?
            .unwrap_or_default();
        let is_parent = |path: &str| {
            all.iter().any(|c| {
                c.path
                    .strip_prefix(path)
                    .is_some_and(|rest| rest.starts_with('/'))
            })
        };
        Ok(all
            .iter()
            .filter(|c| match c.kind {
                ChangeType::_2 => true,
                // A directory counts as changed when something in it is.
                ChangeType::_0 => !is_parent(&c.path),
                ChangeType::_1 => false,
            })
            .map(|c| c.path.clone())
            .collect())
    }

    /// Sets limits of a container, at once and for its later starts.
    ///
    /// # Errors
    /// The engine's refusal, with its words.
    pub async fn set_limits(&self, container: &str, limits: &Limits) -> Result<(), WorkloadError> {
        let body = ContainerUpdateBody {
            memory: limits.memory,
            memory_swap: limits.memory_swap,
            nano_cpus: limits.nano_cpus,
            cpu_quota: limits.cpu_quota,
            ..ContainerUpdateBody::default()
        };
        self.update(container, "limits", body).await
    }

    /// Sets what the engine does when the container ends, as `ContainerInfo::restart_policy` has it.
    ///
    /// # Errors
    /// The engine's refusal, with its words.
    pub async fn set_restart_policy(&self, container: &str, policy: &str) -> Result<(), WorkloadError> {
        let body = ContainerUpdateBody {
            restart_policy: Some(restart_policy(policy)),
            ..ContainerUpdateBody::default()
        };
        self.update(container, "restart policy", body).await
    }

    async fn update(
        &self,
        container: &str,
        what: &str,
        body: ContainerUpdateBody,
    ) -> Result<(), WorkloadError> {
        self.call(
            &format!("new {what} of container {container}"),
            self.for_a_change(),
            self.api.update_container(container, body),
        )
        .await
    }
}

/// A restart policy in words: `always`, or `on-failure:5` where the engine gives up after so many.
pub(super) fn policy_in_words(policy: Option<RestartPolicy>) -> String {
    let policy = policy.unwrap_or_default();
    let name = policy.name.map(|n| n.to_string()).filter(|n| !n.is_empty());
    match (name, policy.maximum_retry_count) {
        (Some(name), Some(count @ 1..)) if name == "on-failure" => format!("{name}:{count}"),
        (name, _) => name.unwrap_or_else(|| "no".into()),
    }
}

fn restart_policy(words: &str) -> RestartPolicy {
    use RestartPolicyNameEnum as N;
    let (name, count) = words
        .split_once(':')
        .map_or((words, None), |(name, count)| (name, count.parse().ok()));
    RestartPolicy {
        name: Some(match name {
            "always" => N::ALWAYS,
            "unless-stopped" => N::UNLESS_STOPPED,
            "on-failure" => N::ON_FAILURE,
            _ => N::NO,
        }),
        maximum_retry_count: count,
    }
}

/// What `create` is asked for, and the networks that are connected afterwards: engines before
/// API 1.44 take only one at create.
fn body(
    old: ContainerInspectResponse,
    like: &Like,
) -> Result<(ContainerCreateBody, Vec<(String, EndpointSettings)>), serde_json::Error> {
    let id = old.id.unwrap_or_default();
    let short = id.get(..12).unwrap_or_default().to_owned();
    // The same fields under the same names; `create` has some more.
    let mut body: ContainerCreateBody = serde_json::from_value(serde_json::to_value(old.config)?)?;
    let mut host = old.host_config.unwrap_or_default();
    body.image = Some(like.image.clone());
    // The engine's own default, made of the old identifier.
    if body.hostname.as_deref() == Some(&*short) {
        body.hostname = None;
    }
    let bound: Vec<String> = host
        .binds
        .iter()
        .flatten()
        .filter_map(|b| b.split(':').nth(1).map(str::to_owned))
        .chain(host.mounts.iter().flatten().filter_map(|m| m.target.clone()))
        .collect();
    // Anonymous volumes are in neither list: without their names the new container gets new ones.
    let anonymous = old.mounts.unwrap_or_default().into_iter().filter_map(|m| {
        let (name, to) = (m.name.filter(|n| !n.is_empty())?, m.destination?);
        let mode = if m.rw == Some(false) { "ro" } else { "rw" };
        (!bound.contains(&to)).then(|| format!("{name}:{to}:{mode}"))
    });
    host.binds.get_or_insert_default().extend(anonymous);
    let labels = body.labels.get_or_insert_default();
    labels.insert(LABEL_RUN.to_owned(), like.run.clone());
    if let Role::Second { deployment } = &like.role {
        labels.retain(|name, _| !name.starts_with("com.docker.compose."));
        labels.insert(LABEL_DEPLOYMENT.to_owned(), deployment.clone());
        labels.insert(LABEL_PURPOSE.to_owned(), "scale-out".to_owned());
        host.port_bindings = None;
        host.publish_all_ports = Some(false);
    }
    let mut networks: Vec<(String, EndpointSettings)> = old
        .network_settings
        .and_then(|n| n.networks)
        .unwrap_or_default()
        .into_iter()
        .map(|(name, e)| (name, endpoint(e, &short, &like.role)))
        .collect();
    networks.sort_by(|a, b| a.0.cmp(&b.0));
    // A network mode such as `host` or `container:…` has no endpoints of its own.
    let mode = host.network_mode.clone().unwrap_or_default();
    let first = networks.iter().position(|(n, _)| *n == mode).unwrap_or(0);
    if networks.is_empty() || mode == "host" || mode == "none" || mode.starts_with("container:") {
        networks.clear();
    } else {
        let (name, settings) = networks.remove(first);
        body.networking_config = Some(NetworkingConfig {
            endpoints_config: Some(HashMap::from([(name, settings)])),
        });
    }
    body.host_config = Some(host);
    Ok((body, networks))
}

/// What was asked of the network, without what it has answered. A second instance cannot have
/// the first one's fixed address.
fn endpoint(old: EndpointSettings, short_id: &str, role: &Role) -> EndpointSettings {
    EndpointSettings {
        ipam_config: old.ipam_config.filter(|_| *role == Role::Replacement),
        links: old.links,
        driver_opts: old.driver_opts,
        aliases: old
            .aliases
            .map(|all| all.into_iter().filter(|a| a != short_id).collect()),
        ..EndpointSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old() -> ContainerInspectResponse {
        serde_json::from_value(serde_json::json!({
            "Id": "5c015c9f0d24fb2cc415308b248145b148bc42b0b982cd9809d38a4682d9255b",
            "Name": "/shop_api_1",
            "Config": {
                "Hostname": "5c015c9f0d24", "Image": "shop:1", "Env": ["SECRET=s"], "Cmd": ["serve"],
                "StopSignal": "SIGQUIT", "Labels": {"com.docker.compose.service": "api", "own": "1"},
                "ExposedPorts": {"80/tcp": {}}
            },
            "HostConfig": {
                "Binds": ["/srv/bin:/opt:ro"], "NetworkMode": "shop_default", "Memory": 1024,
                "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]},
                "RestartPolicy": {"Name": "unless-stopped", "MaximumRetryCount": 0}
            },
            "Mounts": [
                {"Type": "bind", "Source": "/srv/bin", "Destination": "/opt", "RW": false},
                {"Type": "volume", "Name": "a1b2", "Destination": "/data", "RW": true}
            ],
            "NetworkSettings": {"Networks": {
                "other": {"Aliases": ["api"], "IPAMConfig": {"IPv4Address": "10.0.0.9"}},
                "shop_default": {"Aliases": ["api", "5c015c9f0d24"], "IPAddress": "10.1.0.2", "MacAddress": "02:42"}
            }}
        }))
        .unwrap()
    }

    fn like(role: Role) -> Like {
        Like {
            of: "shop_api_1".into(),
            name: "new".into(),
            image: "sha256:f00".into(),
            run: "r1".into(),
            role,
        }
    }

    #[test]
    fn a_restart_policy_keeps_its_count_in_words() {
        for words in ["no", "always", "unless-stopped", "on-failure", "on-failure:5"] {
            assert_eq!(policy_in_words(Some(restart_policy(words))), words);
        }
        // The engine gives a count of 0 with every policy that has none.
        let mut none = restart_policy("on-failure");
        none.maximum_retry_count = Some(0);
        assert_eq!(policy_in_words(Some(none)), "on-failure");
        assert_eq!(policy_in_words(None), "no");
    }

    #[test]
    fn a_replacement_is_the_same_but_for_what_the_engine_gave_the_old_one() {
        let (body, others) = body(old(), &like(Role::Replacement)).unwrap();
        assert_eq!(body.hostname, None);
        assert_eq!(body.image.as_deref(), Some("sha256:f00"));
        assert_eq!(body.env.as_deref(), Some(&["SECRET=s".to_owned()][..]));
        assert_eq!(body.stop_signal.as_deref(), Some("SIGQUIT"));
        let host = body.host_config.unwrap();
        assert_eq!(host.memory, Some(1024));
        assert_eq!(
            host.binds.unwrap(),
            ["/srv/bin:/opt:ro", "a1b2:/data:rw"],
            "an anonymous volume goes along by its name"
        );
        assert!(host.port_bindings.is_some());
        let labels = body.labels.unwrap();
        assert_eq!(labels["com.docker.compose.service"], "api");
        assert!(!labels.contains_key(LABEL_DEPLOYMENT));
        let first = body.networking_config.unwrap().endpoints_config.unwrap();
        assert_eq!(
            first["shop_default"].aliases.as_deref(),
            Some(&["api".to_owned()][..])
        );
        assert_eq!(first["shop_default"].mac_address, None);
        assert_eq!(others.len(), 1);
        assert_eq!(
            others[0].1.ipam_config.as_ref().unwrap().ipv4_address.as_deref(),
            Some("10.0.0.9")
        );
    }

    #[test]
    fn a_second_instance_takes_neither_ports_nor_address_nor_composes_name() {
        let role = Role::Second {
            deployment: "shop".into(),
        };
        let (body, others) = body(old(), &like(role)).unwrap();
        let labels = body.labels.unwrap();
        assert_eq!(labels[LABEL_DEPLOYMENT], "shop");
        assert!(!labels.contains_key("com.docker.compose.service"));
        assert_eq!(labels["own"], "1");
        assert_eq!(body.host_config.unwrap().port_bindings, None);
        assert_eq!(others[0].1.ipam_config, None);
    }
}
