//! Networks of the engine, and the containers' places in them.

use std::collections::BTreeMap;
use std::time::Duration;

use bollard::models::{
    EndpointSettings, Ipam, IpamConfig, Network, NetworkConnectRequest, NetworkCreateRequest,
    NetworkDisconnectRequest,
};
use bollard::query_parameters as q;
use serde::{Deserialize, Serialize};

use super::{Docker, WorkloadError};

/// How long the engine may take to change a network: it sets up interfaces and rules.
const CHANGE: Duration = Duration::from_secs(30);

/// A network of the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NetworkInfo {
    /// Its name. Names are not unique to the engine; identifiers are.
    pub name: String,
    /// Its identifier.
    pub id: String,
    /// As `bridge`.
    pub driver: String,
    /// Whether it has no way out.
    pub internal: bool,
    /// Address ranges.
    pub subnets: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl Docker {
    /// Every network of the engine, by name.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn networks(&self) -> Result<Vec<NetworkInfo>, WorkloadError> {
        let listed = self
            .call(
                "the list of networks",
                self.deadline,
                self.api.list_networks(None::<q::ListNetworksOptions>),
            )
            .await?;
        let mut all: Vec<NetworkInfo> = listed.into_iter().map(network_info).collect();
        all.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Ok(all)
    }

    /// Creates a network and gives its identifier. Two of one name are possible on old
    /// engines, so the caller looks first.
    ///
    /// # Errors
    /// The engine's trouble.
    pub async fn create_network(&self, network: &NetworkInfo) -> Result<String, WorkloadError> {
        let config = network
            .subnets
            .iter()
            .map(|subnet| IpamConfig {
                subnet: Some(subnet.clone()),
                ..IpamConfig::default()
            })
            .collect::<Vec<_>>();
        let request = NetworkCreateRequest {
            name: network.name.clone(),
            driver: Some(network.driver.clone()),
            internal: Some(network.internal),
            attachable: Some(true),
            ipam: (!config.is_empty()).then(|| Ipam {
                config: Some(config),
                ..Ipam::default()
            }),
            labels: Some(network.labels.clone().into_iter().collect()),
            ..NetworkCreateRequest::default()
        };
        let created = self
            .call(
                &format!("creation of network {}", network.name),
                self.deadline.max(CHANGE),
                self.api.create_network(request),
            )
            .await?;
        Ok(created.id)
    }

    /// Removes a network; gone is fine.
    ///
    /// # Errors
    /// `Engine` 403 while containers use it; the engine's trouble.
    pub async fn remove_network(&self, id: &str) -> Result<(), WorkloadError> {
        let removed = self
            .call(
                &format!("removal of network {id}"),
                self.deadline.max(CHANGE),
                self.api.remove_network(id),
            )
            .await;
        match removed {
            Err(WorkloadError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// Gives a container a place in a network, under these names besides its own.
    ///
    /// # Errors
    /// `Engine` 403 when it has one already; the engine's trouble.
    pub async fn connect_network(
        &self,
        network: &str,
        container: &str,
        aliases: &[String],
    ) -> Result<(), WorkloadError> {
        let request = NetworkConnectRequest {
            container: container.to_owned(),
            endpoint_config: Some(EndpointSettings {
                aliases: Some(aliases.to_vec()),
                ..EndpointSettings::default()
            }),
        };
        self.call(
            &format!("connection of container {container} to network {network}"),
            self.deadline.max(CHANGE),
            self.api.connect_network(network, request),
        )
        .await
    }

    /// Takes a container out of a network, also when it does not run or the network is gone.
    ///
    /// # Errors
    /// `NotFound`, or the engine's trouble.
    pub async fn disconnect_network(&self, network: &str, container: &str) -> Result<(), WorkloadError> {
        let request = NetworkDisconnectRequest {
            container: container.to_owned(),
            force: Some(true),
        };
        self.call(
            &format!("disconnection of container {container} from network {network}"),
            self.deadline.max(CHANGE),
            self.api.disconnect_network(network, request),
        )
        .await
    }
}

fn network_info(raw: Network) -> NetworkInfo {
    NetworkInfo {
        name: raw.name.unwrap_or_default(),
        id: raw.id.unwrap_or_default(),
        driver: raw.driver.unwrap_or_default(),
        internal: raw.internal.unwrap_or_default(),
        subnets: raw
            .ipam
            .and_then(|i| i.config)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|c| c.subnet)
            .collect(),
        labels: raw.labels.unwrap_or_default().into_iter().collect(),
    }
}
