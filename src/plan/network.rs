//! Effects on the networks of a deployment.

use serde::{Deserialize, Serialize};

/// Networks, and the containers' places in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkAction {
    /// Creates the deployment's network that is gone. Again: there is one of that name.
    #[serde(rename_all = "kebab-case")]
    Create {
        /// Its name.
        network: String,
        /// Compose's name of it, for the label.
        key: String,
        /// Address ranges, where they are known; the engine chooses otherwise.
        subnets: Vec<String>,
    },
    /// Removes the network that this run created. Again: gone is gone; one that the run did
    /// not create stays.
    #[serde(rename_all = "kebab-case")]
    Remove {
        /// Its name.
        network: String,
    },
    /// Gives a container its place in the network that has the name now, under exactly these
    /// names besides those that the engine gives by itself. Again: it has it.
    #[serde(rename_all = "kebab-case")]
    Connect {
        /// Service.
        service: String,
        /// Network's name.
        network: String,
        /// Names.
        aliases: Vec<String>,
        /// Addresses that were asked for when it was created; the engine chooses otherwise.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        addresses: Vec<String>,
    },
    /// Takes a container out of a network. Again: it is out.
    #[serde(rename_all = "kebab-case")]
    Disconnect {
        /// Service.
        service: String,
        /// Network's name.
        network: String,
    },
}

impl NetworkAction {
    /// What it does, in words.
    #[must_use]
    pub fn summary(&self) -> String {
        match self {
            Self::Create { network, .. } => format!("create network {network}"),
            Self::Remove { network } => format!("remove network {network}, which this run created"),
            Self::Connect {
                service,
                network,
                aliases,
                addresses,
            } => format!(
                "connect {service} to network {network} as {}{}",
                if aliases.is_empty() {
                    "its container's name only".to_owned()
                } else {
                    aliases.join(", ")
                },
                if addresses.is_empty() {
                    String::new()
                } else {
                    format!(" at {}", addresses.join(", "))
                }
            ),
            Self::Disconnect { service, network } => format!("take {service} out of network {network}"),
        }
    }
}
