//! Networks of the engine, and the containers' places in them.

use bollard::models::{
    EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, Network, NetworkConnectRequest,
    NetworkCreateRequest, NetworkDisconnectRequest,
};
use bollard::query_parameters as q;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Docker, WorkloadError};

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
    /// Settings that are not recorded here: one that is created again lacks them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unrecorded: Vec<String>,
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
                self.for_a_change(),
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
                self.for_a_change(),
                self.api.remove_network(id),
            )
            .await;
        match removed {
            Err(WorkloadError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// Gives a container a place in a network, under these names besides its own and at these
    /// addresses; the engine chooses the kinds that are not among them.
    ///
    /// # Errors
    /// `Engine` 403 when it has one already; the engine's trouble.
    pub async fn connect_network(
        &self,
        network: &str,
        container: &str,
        aliases: &[String],
        addresses: &[String],
    ) -> Result<(), WorkloadError> {
        let request = NetworkConnectRequest {
            container: container.to_owned(),
            endpoint_config: Some(EndpointSettings {
                aliases: Some(aliases.to_vec()),
                ipam_config: ipam_config(addresses),
                ..EndpointSettings::default()
            }),
        };
        self.call(
            &format!("connection of container {container} to network {network}"),
            self.for_a_change(),
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
            self.for_a_change(),
            self.api.disconnect_network(network, request),
        )
        .await
    }
}

fn ipam_config(addresses: &[String]) -> Option<EndpointIpamConfig> {
    let of_kind = |v6: bool| addresses.iter().find(|a| a.contains(':') == v6).cloned();
    (!addresses.is_empty()).then(|| EndpointIpamConfig {
        ipv4_address: of_kind(false),
        ipv6_address: of_kind(true),
        ..EndpointIpamConfig::default()
    })
}

/// Names the settings that [`NetworkInfo`] does not hold.
fn unrecorded(raw: &Network) -> Vec<String> {
    // Newer engines list these of every network; the second is asked for below.
    let listed = ["com.docker.network.enable_ipv4", "com.docker.network.enable_ipv6"];
    let mut all: Vec<String> = raw
        .options
        .iter()
        .flat_map(|o| o.keys())
        .filter(|k| !listed.contains(&k.as_str()))
        .cloned()
        .collect();
    all.sort_unstable();
    let mut also = |is: bool, what: &str| {
        if is {
            all.push(what.to_owned());
        }
    };
    also(raw.enable_ipv4 == Some(false), "enable_ipv4");
    also(raw.enable_ipv6 == Some(true), "enable_ipv6");
    also(
        raw.config_from
            .as_ref()
            .is_some_and(|c| c.network.as_ref().is_some_and(|n| !n.is_empty())),
        "config_from",
    );
    if let Some(ipam) = &raw.ipam {
        let own = ipam
            .driver
            .as_deref()
            .is_some_and(|d| !["", "default"].contains(&d));
        also(
            own || ipam.options.as_ref().is_some_and(|o| !o.is_empty()),
            "ipam.driver",
        );
        for range in ipam.config.iter().flatten() {
            also(range.ip_range.as_ref().is_some_and(|r| !r.is_empty()), "ip_range");
            also(
                range.auxiliary_addresses.as_ref().is_some_and(|a| !a.is_empty()),
                "aux_addresses",
            );
            also(!is_usual_gateway(range), "gateway");
        }
    }
    all
}

/// Whether the engine would choose this gateway, the first address of the range, by itself.
fn is_usual_gateway(range: &IpamConfig) -> bool {
    let (Some(gateway), Some(subnet)) = (range.gateway.as_deref().filter(|g| !g.is_empty()), &range.subnet)
    else {
        return true;
    };
    // Some engines write the length of the prefix behind both.
    let address = |text: &str| text.split('/').next().and_then(|a| a.parse::<IpAddr>().ok());
    match (address(gateway), address(subnet)) {
        (Some(IpAddr::V4(g)), Some(IpAddr::V4(s))) => u32::from(g) == u32::from(s).wrapping_add(1),
        (Some(IpAddr::V6(g)), Some(IpAddr::V6(s))) => u128::from(g) == u128::from(s).wrapping_add(1),
        _ => false,
    }
}

fn network_info(raw: Network) -> NetworkInfo {
    NetworkInfo {
        unrecorded: unrecorded(&raw),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn info(raw: serde_json::Value) -> NetworkInfo {
        network_info(serde_json::from_value(raw).unwrap())
    }

    #[test]
    fn what_a_new_network_would_lack_is_named() {
        let plain = serde_json::json!({
            "Name": "n", "EnableIPv6": false, "Options": { "com.docker.network.enable_ipv6": "false" },
            "IPAM": { "Driver": "default", "Options": null,
                      "Config": [{ "Subnet": "10.0.0.0/24", "Gateway": "10.0.0.1" }] },
            "ConfigFrom": { "Network": "" },
        });
        assert!(info(plain).unrecorded.is_empty());
        let set = serde_json::json!({
            "Name": "n", "EnableIPv6": true, "Options": { "com.docker.network.driver.mtu": "1400" },
            "IPAM": { "Driver": "default", "Config": [
                { "Subnet": "10.0.0.0/24", "Gateway": "10.0.0.254", "IPRange": "10.0.0.128/25" }] },
        });
        assert_eq!(
            info(set).unrecorded,
            [
                "com.docker.network.driver.mtu",
                "enable_ipv6",
                "ip_range",
                "gateway"
            ]
        );
    }

    #[test]
    fn addresses_are_asked_for_by_their_kind() {
        let config = ipam_config(&["fd00::5".into(), "10.0.0.5".into()]).unwrap();
        assert_eq!(config.ipv4_address.as_deref(), Some("10.0.0.5"));
        assert_eq!(config.ipv6_address.as_deref(), Some("fd00::5"));
        assert_eq!(ipam_config(&[]), None);
    }
}
