//! Containers out of their network, without their names, and networks that are gone.

use serde::{Deserialize, Serialize};

use super::harm::{Harm, Prepared, victim};
use super::mend::Mend;
use super::{Fault, Request};
use crate::error::{Error, Kind, Result};
use crate::probe::containers;
use crate::runbook::ServiceKind;
use crate::system::System;
use crate::workload::{ContainerInfo, NetworkInfo, WorkloadError};

/// Every fault of this family.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "network-partition/detached",
        summary: "a container (the database's) is taken out of its network",
        leaves: "it runs and is healthy, with no network; its name resolves nowhere",
        live: false,
    },
    Fault {
        name: "network-partition/alias-missing",
        summary: "a container (Redis's) is in its network without its service name",
        leaves: "it runs and is healthy; its name does not resolve",
        live: false,
    },
    Fault {
        name: "network-partition/network-gone",
        summary: "the network is removed while its containers are stopped",
        leaves: "status exited; a start fails with \"network … not found\"",
        live: false,
    },
    Fault {
        name: "network-partition/stopped-dependency",
        summary: "look-alike: Redis is stopped, so its name does not resolve",
        leaves: "status exited; every place in the network is as it was",
        live: false,
    },
    Fault {
        name: "network-partition/frozen-dependency",
        summary: "look-alike: the database is paused: connections are taken and never answered",
        leaves: "status paused; the kernel goes on to take connections",
        live: false,
    },
];

/// One effect on networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkHarm {
    /// The container loses its place.
    Detach {
        /// Container.
        container: String,
        /// Network's name.
        network: String,
    },
    /// The container's place gets these names only.
    Rename {
        /// Container.
        container: String,
        /// Network's name.
        network: String,
        /// Names.
        aliases: Vec<String>,
        /// Addresses that were asked for; they stay.
        addresses: Vec<String>,
    },
    /// The network is removed; nothing running may be in it.
    Remove {
        /// Network's name.
        network: String,
    },
    /// The container's start is attempted, and must fail.
    StartInVain {
        /// Container.
        container: String,
    },
}

/// How it is put right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMend {
    /// There is a network of this name.
    #[serde(rename_all = "kebab-case")]
    Exists {
        /// As it was.
        network: NetworkInfo,
    },
    /// The container has a place in the network, under these names.
    #[serde(rename_all = "kebab-case")]
    Attached {
        /// Container.
        container: String,
        /// Network's name.
        network: String,
        /// Names.
        aliases: Vec<String>,
        /// Addresses that were asked for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        addresses: Vec<String>,
    },
}

/// Does it; says what was seen.
///
/// # Errors
/// The engine's trouble.
pub async fn apply(system: &System, harm: &NetworkHarm) -> Result<String> {
    let docker = &system.docker;
    match harm {
        NetworkHarm::Detach { container, network } => {
            docker.disconnect_network(network, container).await?;
            Ok(format!("container {container} is out of network {network}"))
        }
        NetworkHarm::Rename {
            container,
            network,
            aliases,
            addresses,
        } => {
            docker.disconnect_network(network, container).await?;
            docker
                .connect_network(network, container, aliases, addresses)
                .await?;
            Ok(format!(
                "container {container} is in network {network} without its name"
            ))
        }
        NetworkHarm::Remove { network } => {
            docker.remove_network(network).await?;
            Ok(format!("network {network} is removed"))
        }
        NetworkHarm::StartInVain { container } => match docker.start(container).await {
            Err(WorkloadError::NotFound { .. } | WorkloadError::Engine { .. }) => {
                Ok(format!("container {container} cannot be started"))
            }
            Err(e) => Err(e.into()),
            Ok(()) => Err(Error::new(
                Kind::FailedChanged,
                format!("container {container} starts without its network"),
            )),
        },
    }
}

/// Puts it right; nothing when it was.
///
/// # Errors
/// The engine's trouble.
pub async fn put_right(system: &System, mend: &NetworkMend) -> Result<Option<String>> {
    let docker = &system.docker;
    let by_name = |all: Vec<NetworkInfo>, name: &str| all.into_iter().find(|n| n.name == name);
    match mend {
        NetworkMend::Exists { network } => {
            if by_name(docker.networks().await?, &network.name).is_some() {
                return Ok(None);
            }
            docker.create_network(network).await?;
            Ok(Some(format!("network {} was created", network.name)))
        }
        NetworkMend::Attached {
            container,
            network,
            aliases,
            addresses,
        } => {
            let info = match docker.inspect(container).await {
                // Created anew since: the new one is not the fault's.
                Err(WorkloadError::NotFound { .. }) => return Ok(None),
                other => other?,
            };
            let Some(there) = by_name(docker.networks().await?, network) else {
                return Ok(None);
            };
            if let Some(place) = info.attachments.get(network) {
                let at = place.fixed_addresses();
                if place.network_id == there.id
                    && aliases.iter().all(|a| place.aliases.contains(a))
                    && addresses.iter().all(|a| at.contains(a))
                {
                    return Ok(None);
                }
                docker.disconnect_network(network, container).await?;
            }
            docker
                .connect_network(&there.id, container, aliases, addresses)
                .await?;
            Ok(Some(format!(
                "container {container} was connected to network {network}"
            )))
        }
    }
}

/// Works out what `variant` would hit; nothing is changed.
///
/// # Errors
/// No such service, or one that does not run or is in no network.
pub async fn prepare(
    system: &System,
    variant: &str,
    service: Option<&str>,
    _request: &Request,
) -> Result<Option<Prepared>> {
    let redis = matches!(variant, "alias-missing" | "stopped-dependency");
    let (service, info) = victim(system, service, |s| match s.kind {
        ServiceKind::Postgres(_) => !redis,
        ServiceKind::Redis(_) => redis,
        ServiceKind::App | ServiceKind::Nginx => false,
    })
    .await?;
    let container = info.name.clone();
    let run = Mend::Run {
        container: container.clone(),
    };
    let (harms, mends) = match variant {
        "detached" => detached(&info)?,
        "alias-missing" => (
            info.attachments
                .iter()
                .map(|(network, place)| {
                    Harm::Network(NetworkHarm::Rename {
                        container: container.clone(),
                        network: network.clone(),
                        aliases: Vec::new(),
                        addresses: place.fixed_addresses(),
                    })
                })
                .collect(),
            places(&info)?,
        ),
        "network-gone" => everything(system, &info).await?,
        "stopped-dependency" => (vec![Harm::Stop { container }], vec![run]),
        "frozen-dependency" => (vec![Harm::Pause { container }], vec![run]),
        _ => return Ok(None),
    };
    let networks: Vec<&str> = info.attachments.keys().map(String::as_str).collect();
    Ok(Some(Prepared {
        target: format!(
            "container {} of service {service} (network {})",
            info.name,
            networks.join(", ")
        ),
        service,
        harms,
        mends,
        container: info.name.clone(),
    }))
}

/// The same of a Redis server, taken out of its networks.
///
/// # Errors
/// As [`prepare`].
pub(super) async fn prepare_detached(system: &System, service: Option<&str>) -> Result<Prepared> {
    let (service, info) = victim(system, service, |s| matches!(s.kind, ServiceKind::Redis(_))).await?;
    let (harms, mends) = detached(&info)?;
    Ok(Prepared {
        target: format!("container {} of service {service}", info.name),
        service,
        harms,
        mends,
        container: info.name,
    })
}

/// Taken out of every network.
fn detached(info: &ContainerInfo) -> Result<(Vec<Harm>, Vec<Mend>)> {
    let harms = info.attachments.keys().map(|network| {
        Harm::Network(NetworkHarm::Detach {
            container: info.name.clone(),
            network: network.clone(),
        })
    });
    Ok((harms.collect(), places(info)?))
}

/// Every place that a container has.
fn places(info: &ContainerInfo) -> Result<Vec<Mend>> {
    if info.attachments.is_empty() {
        return Err(Error::new(
            Kind::Refused,
            format!("container {} is in no network: there is none to lose", info.name),
        )
        .untouched("everything"));
    }
    Ok(info
        .attachments
        .iter()
        .map(|(network, place)| {
            Mend::Network(NetworkMend::Attached {
                container: info.name.clone(),
                network: network.clone(),
                aliases: place.aliases.clone(),
                addresses: place.fixed_addresses(),
            })
        })
        .collect())
}

/// Neither a recovery nor healing could create one with these settings again.
fn restorable(network: &NetworkInfo) -> Result<()> {
    let mut settings = network.unrecorded.clone();
    if network.internal {
        settings.insert(0, "internal".into());
    }
    if network.driver != "bridge" {
        settings.insert(0, format!("driver {}", network.driver));
    }
    if settings.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Refused,
        format!(
            "network {} has settings that it would lack when it is created again: {}",
            network.name,
            settings.join(", ")
        ),
    )
    .untouched("everything")
    .next("drctl drill inject network-partition/detached"))
}

/// All services of the victim's network are stopped, the network is removed, and a start of
/// the victim fails.
async fn everything(system: &System, info: &ContainerInfo) -> Result<(Vec<Harm>, Vec<Mend>)> {
    let Some(network) = info.attachments.keys().next() else {
        return Err(Error::new(
            Kind::Refused,
            format!("container {} is in no network: there is none to lose", info.name),
        )
        .untouched("everything"));
    };
    let listed = system.docker.networks().await?;
    let Some(as_it_was) = listed.into_iter().find(|n| n.name == *network) else {
        return Err(
            Error::new(Kind::Refused, format!("there is no network {network}")).untouched("everything"),
        );
    };
    restorable(&as_it_was)?;
    let all = containers::look(system).await;
    // What needs others is stopped first and started last.
    let order: Vec<&ContainerInfo> = system
        .runbook
        .start_order()
        .iter()
        .filter_map(|name| Some(&all.get(name.as_str())?.found()?.info))
        .filter(|i| i.attachments.contains_key(network))
        .collect();
    let mut harms: Vec<Harm> = order
        .iter()
        .rev()
        .filter(|i| i.is_running())
        .map(|i| Harm::Stop {
            container: i.name.clone(),
        })
        .collect();
    harms.push(Harm::Network(NetworkHarm::Remove {
        network: network.clone(),
    }));
    harms.push(Harm::Network(NetworkHarm::StartInVain {
        container: info.name.clone(),
    }));
    let mut mends = vec![Mend::Network(NetworkMend::Exists { network: as_it_was })];
    for i in &order {
        mends.extend(places(i)?);
    }
    mends.extend(order.iter().filter(|i| i.is_running()).map(|i| Mend::Run {
        container: i.name.clone(),
    }));
    Ok((harms, mends))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_cannot_be_made_again_as_it_was_is_not_removed() {
        let plain = NetworkInfo {
            name: "n".into(),
            driver: "bridge".into(),
            ..NetworkInfo::default()
        };
        assert!(restorable(&plain).is_ok());
        for network in [
            NetworkInfo {
                internal: true,
                ..plain.clone()
            },
            NetworkInfo {
                unrecorded: vec!["ip_range".into()],
                ..plain.clone()
            },
            NetworkInfo {
                driver: "macvlan".into(),
                ..plain
            },
        ] {
            let e = restorable(&network).unwrap_err();
            assert_eq!(e.kind, Kind::Refused);
            assert!(e.untouched.is_some());
        }
    }

    #[test]
    fn a_record_of_an_older_version_is_read() {
        let text = r#"{"attached":{"container":"c","network":"n","aliases":["a"]}}"#;
        assert!(serde_json::from_str::<NetworkMend>(text).is_ok());
    }
}
