//! Networks, and the containers' places in them.

use std::collections::BTreeSet;

use super::{ActionContext, ActionError, Outcome};
use crate::plan::NetworkAction;
use crate::workload::{LABEL_RUN, NetworkInfo};

pub(super) async fn apply(cx: &ActionContext<'_>, action: &NetworkAction) -> Result<Outcome, ActionError> {
    match action {
        NetworkAction::Create {
            network,
            key,
            subnets,
        } => create(cx, network, key, subnets).await,
        NetworkAction::Remove { network } => remove(cx, network).await,
        NetworkAction::Connect {
            service,
            network,
            aliases,
            addresses,
        } => connect(cx, service, network, aliases, addresses).await,
        NetworkAction::Disconnect { service, network } => disconnect(cx, service, network).await,
    }
}

async fn named(cx: &ActionContext<'_>, network: &str) -> Result<Vec<NetworkInfo>, ActionError> {
    let mut all = cx.system.docker.networks().await?;
    all.retain(|n| n.name == network);
    Ok(all)
}

async fn create(
    cx: &ActionContext<'_>,
    network: &str,
    key: &str,
    subnets: &[String],
) -> Result<Outcome, ActionError> {
    if !named(cx, network).await?.is_empty() {
        return Ok(Outcome::new(format!("network {network} is there")));
    }
    let project = cx.system.runbook.docker().compose_project.to_string();
    // The deployment's own, as Compose would label it, so that Compose takes it for its own;
    // the run's label only tells an undo that it may be removed.
    let labels = [
        ("com.docker.compose.project", project.as_str()),
        ("com.docker.compose.network", key),
        (LABEL_RUN, cx.run),
    ];
    let wanted = NetworkInfo {
        name: network.to_owned(),
        driver: "bridge".into(),
        subnets: subnets.to_vec(),
        labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        ..NetworkInfo::default()
    };
    let id = cx.system.docker.create_network(&wanted).await?;
    Ok(Outcome::new(format!("network {network} is created")).fact("network-id", id))
}

async fn remove(cx: &ActionContext<'_>, network: &str) -> Result<Outcome, ActionError> {
    for found in named(cx, network).await? {
        if found.labels.get(LABEL_RUN).is_some_and(|run| run == cx.run) {
            cx.system.docker.remove_network(&found.id).await?;
            return Ok(Outcome::new(format!("network {network} is removed")));
        }
    }
    Ok(Outcome::new(format!("network {network} is none of this run's")))
}

async fn connect(
    cx: &ActionContext<'_>,
    service: &str,
    network: &str,
    aliases: &[String],
    addresses: &[String],
) -> Result<Outcome, ActionError> {
    let docker = &cx.system.docker;
    let container = cx.system.container(service).await?;
    let all = named(cx, network).await?;
    let [found] = all.as_slice() else {
        return Err(ActionError::Other(match all.len() {
            0 => format!("there is no network {network}"),
            n => format!("there are {n} networks called {network}: remove those that nothing uses"),
        }));
    };
    if let Some(place) = container.attachments.get(network) {
        let own = own_names(&container.id, &container.name);
        let has: BTreeSet<&str> = place.aliases.iter().map(String::as_str).collect();
        let wanted: BTreeSet<&str> = aliases.iter().map(String::as_str).collect();
        let same = |a: &BTreeSet<&str>, b: &BTreeSet<&str>| a.difference(b).all(|n| own.contains(*n));
        let at = place.fixed_addresses();
        let is_there = addresses.iter().all(|a| at.contains(a));
        if place.network_id == found.id && same(&has, &wanted) && same(&wanted, &has) && is_there {
            return Ok(Outcome::new(format!("{service} has its place in {network}")));
        }
        // A place is bound to the identifier of a network, and its names cannot be changed.
        docker.disconnect_network(network, &container.id).await?;
    }
    docker
        .connect_network(&found.id, &container.id, aliases, addresses)
        .await?;
    let now = cx.system.container(service).await?;
    let address = now.networks.get(network).cloned().unwrap_or_default();
    let at = if address.is_empty() {
        String::new()
    } else {
        format!(" at {address}")
    };
    Ok(Outcome::new(format!("{service} is connected to {network}{at}")))
}

/// Names that the engine gives by itself.
fn own_names(id: &str, name: &str) -> BTreeSet<String> {
    [name, id, id.get(..12).unwrap_or(id)].map(str::to_owned).into()
}

async fn disconnect(cx: &ActionContext<'_>, service: &str, network: &str) -> Result<Outcome, ActionError> {
    let container = cx.system.container(service).await?;
    if !container.attachments.contains_key(network) {
        return Ok(Outcome::new(format!("{service} is not in network {network}")));
    }
    cx.system
        .docker
        .disconnect_network(network, &container.id)
        .await?;
    Ok(Outcome::new(format!("{service} is out of network {network}")))
}
