//! Services that cannot reach each other: a container is out of its network, lacks the name
//! by which its neighbours call it, or the network itself is gone.
//!
//! Symptom: connections between services fail or time out, requests end in 502 and 504, while
//! every container runs and calls itself healthy: a health check of the local address stays
//! green in a container without any network.
//! Cause: `docker network disconnect`, a `connect` without the aliases, a network that was
//! removed while its containers were stopped. Containers are bound to a network by its
//! identifier, so a new network of the same name does not help them.
//!
//! What drctl does: put back just the places and names that are missing, and create a network
//! only where it is gone. A port that the host does not pass on although an application's
//! service or nginx listens is published again by a restart of that container. What it never
//! does: touch a container that has its place, restart a data store for the sake of a port,
//! prune networks, or restart nginx as a first aid (it does not start while one of its
//! upstreams has no address).

mod diagnose;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{DetectOptions, Diagnosis, PlanRequest, Refusal, Scenario, known_service};
use crate::error::Result;
use crate::plan::{Plan, Remedy};
use crate::probe::containers::ContainerState;
use crate::probe::endpoints::Answers;
use crate::probe::observer::Observer;
use crate::probe::reach::Reach;
use crate::runbook::Runbook;
use crate::workload::NetworkInfo;

/// The scenario.
#[derive(Debug, Clone, Copy)]
pub struct NetworkPartition;

/// What is observed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evidence {
    /// When.
    pub taken_at: Timestamp,
    /// The service that was asked about, if one was.
    pub service: Option<String>,
    /// Every service's container, with its places in networks.
    pub containers: BTreeMap<String, ContainerState>,
    /// The engine's networks that concern the deployment, or why they could not be listed.
    pub networks: Networks,
    /// Who reaches whom, asked from inside.
    pub reach: Reach,
    /// How the endpoints answer; only asked where a port of the host does not.
    #[serde(default)]
    pub endpoints: BTreeMap<String, Answers>,
}

/// The engine's networks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Networks {
    /// Those that a service of the deployment is, or was, in, and those of its project.
    Known(Vec<NetworkInfo>),
    /// The engine did not say.
    Unknown(String),
}

impl Scenario for NetworkPartition {
    const NAME: &'static str = "network-partition";
    const ABOUT: &'static str =
        "Services that cannot reach each other: out of their network, without their names, or no network";
    const REMEDIES: &'static [Remedy] = &[Remedy::Reconnect, Remedy::Restart];
    const CAUSES: &'static [&'static str] = &["outage", "db-down", "redis-failure", "service-crash"];
    type Evidence = Evidence;

    async fn detect(world: &Observer<'_>, options: &DetectOptions) -> Result<Evidence> {
        known_service(&world.system.runbook, options)?;
        let (networks, reach) = tokio::join!(world.networks(), world.reach());
        let containers = world.containers().await.clone();
        let project = world.system.runbook.docker().compose_project.as_str();
        let networks = match networks {
            Ok(all) => Networks::Known(
                all.iter()
                    .filter(|n| diagnose::concerns(n, project, &containers))
                    .cloned()
                    .collect(),
            ),
            Err(why) => Networks::Unknown(why.clone()),
        };
        let endpoints = if reach.published.iter().any(|p| p.host_answers == Some(false)) {
            world.endpoints().await.clone()
        } else {
            BTreeMap::new()
        };
        Ok(Evidence {
            taken_at: Timestamp::now(),
            service: options.service.clone(),
            containers,
            networks,
            reach: reach.clone(),
            endpoints,
        })
    }

    fn diagnose(ev: &Evidence, rb: &Runbook) -> Diagnosis {
        diagnose::diagnose(ev, rb)
    }

    fn plan(ev: &Evidence, rb: &Runbook, request: &PlanRequest) -> Result<Plan, Refusal> {
        plan::plan(ev, rb, request)
    }
}
