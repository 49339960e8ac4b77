//! Containers made anew, doubled, and given other limits. Where a run stands is read off the
//! names that exist: the old container under its kept name, the new one under a name of its
//! own until it takes the place.

use tokio::time::Instant;

use super::{ActionContext, ActionError, Outcome, container, redis_files};
use crate::plan::{ContainerAction, SET_ASIDE, kept_name};
use crate::runbook::ServiceKind;
use crate::workload::{ContainerInfo, LABEL_RUN, Like, Role, Status, WorkloadError};

/// Repository of the names that keep images.
const KEPT_IMAGES: &str = "drctl-keep";
/// Policy of a container that only a person or drctl starts.
const NO_RESTART: &str = "no";

pub(super) async fn apply(cx: &ActionContext<'_>, action: &ContainerAction) -> Result<Outcome, ActionError> {
    use ContainerAction as A;
    match action {
        A::Recreate {
            service,
            container,
            run,
        } => recreate(cx, &Names::new(service, container, run)).await,
        A::PutBack {
            service,
            container,
            run,
            running,
            restart_policy,
        } => put_back(cx, &Names::new(service, container, run), *running, restart_policy).await,
        A::LetGo {
            service,
            container,
            run,
        } => let_go(cx, &Names::new(service, container, run)).await,
        A::Double {
            service,
            container,
            run,
        } => double(cx, &Names::new(service, container, run)).await,
        A::Undouble {
            service,
            container,
            run,
        } => undouble(cx, &Names::new(service, container, run)).await,
        A::SetLimits {
            service,
            limits,
            words,
        } => {
            let container = cx.system.container(service).await?;
            cx.system.docker.set_limits(&container.id, limits).await?;
            Ok(Outcome::new(format!("{service} has {words}")))
        }
    }
}

/// The names that belong to one service in one run.
struct Names<'a> {
    service: &'a str,
    run: &'a str,
    /// The service's container.
    own: &'a str,
    /// The old one, set aside.
    kept: String,
    /// The new one, before it takes the place.
    new: String,
    /// The second instance.
    second: String,
    /// Tag that keeps the image.
    tag: String,
}

impl<'a> Names<'a> {
    fn new(service: &'a str, own: &'a str, run: &'a str) -> Self {
        Self {
            service,
            run,
            own,
            kept: kept_name(own, run),
            new: format!("{own}{SET_ASIDE}new_{run}"),
            second: format!("{own}{SET_ASIDE}second_{run}"),
            tag: format!("{service}-{run}"),
        }
    }

    fn image(&self) -> String {
        format!("{KEPT_IMAGES}:{}", self.tag)
    }
}

async fn find(cx: &ActionContext<'_>, name: &str) -> Result<Option<ContainerInfo>, WorkloadError> {
    match cx.system.docker.inspect(name).await {
        Ok(info) => Ok(Some(info)),
        Err(WorkloadError::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_of(info: &ContainerInfo, run: &str) -> bool {
    info.labels.get(LABEL_RUN).is_some_and(|r| r == run)
}

async fn recreate(cx: &ActionContext<'_>, names: &Names<'_>) -> Result<Outcome, ActionError> {
    let docker = &cx.system.docker;
    let begun = Instant::now();
    let in_place = find(cx, names.own).await?;
    if in_place.as_ref().is_none_or(|c| !is_of(c, names.run)) {
        let kept = find(cx, &names.kept).await?;
        let old = kept
            .as_ref()
            .or(in_place.as_ref())
            .ok_or_else(|| ActionError::Other(format!("container {} does not exist any more", names.own)))?;
        if container::is_redis(cx, names.service) {
            // Known before the stop: one that may not be started again is not stopped either.
            redis_files::may_start(cx, names.service, old, "it is neither stopped nor made anew").await?;
        }
        // Cut off earlier, the old one may have lost its policy, and the new one would be made without it.
        let made = find(cx, &names.new).await?.filter(|c| is_of(c, names.run));
        let policy = made.map_or_else(|| old.restart_policy.clone(), |new| new.restart_policy);
        if policy != old.restart_policy {
            docker.set_restart_policy(&old.id, &policy).await?;
        }
        docker.tag_image(&old.image_id, KEPT_IMAGES, &names.tag).await?;
        // The name it was asked for by, where that still means the same image: Compose compares.
        let image = match docker.image_id(&old.image).await? {
            Some(id) if id == old.image_id => old.image.clone(),
            _ => names.image(),
        };
        // Cut off earlier, it may lack a network.
        docker.remove_keeping_volumes(&names.new).await?;
        docker
            .create_like(&Like {
                of: old.id.clone(),
                name: names.new.clone(),
                image,
                run: names.run.to_owned(),
                role: Role::Replacement,
            })
            .await?;
        stop(cx, old).await?;
        if policy != NO_RESTART {
            // It would come back with the engine, and there would be two: with `always`, with
            // `on-failure` after an exit code, and with `unless-stopped` where nobody had to stop it.
            docker.set_restart_policy(&old.id, NO_RESTART).await?;
        }
        if kept.is_none() {
            docker.rename(&old.id, &names.kept).await?;
        }
        docker.rename(&names.new, names.own).await?;
    }
    container::start(cx, names.service, true).await?;
    tell_proxies(cx, names.service).await;
    Ok(Outcome::new(format!(
        "{} runs in a new container; the old one is kept as {}",
        names.service, names.kept
    ))
    .fact("recreate-seconds", begun.elapsed().as_secs_f64()))
}

/// Frozen ones are thawed first: they could not act on the signal. One between two crashes is
/// kept from its next start.
async fn stop(cx: &ActionContext<'_>, info: &ContainerInfo) -> Result<(), ActionError> {
    let docker = &cx.system.docker;
    match info.status {
        Status::Exited | Status::Created | Status::Dead => return Ok(()),
        Status::Paused => docker.unpause(&info.id).await?,
        Status::Running | Status::Restarting => {}
    }
    Ok(docker.stop(&info.id, cx.system.runbook.deadlines.stop).await?)
}

async fn put_back(
    cx: &ActionContext<'_>,
    names: &Names<'_>,
    running: bool,
    restart_policy: &str,
) -> Result<Outcome, ActionError> {
    let docker = &cx.system.docker;
    docker.remove_keeping_volumes(&names.new).await?;
    let in_place = find(cx, names.own).await?;
    let old = if let Some(kept) = find(cx, &names.kept).await? {
        match &in_place {
            Some(new) if is_of(new, names.run) => {
                stop(cx, new).await?;
                docker.remove_keeping_volumes(&new.id).await?;
            }
            // It may hold work by now, and users are on it: it is not ours to stop.
            Some(stranger) if !stranger.labels.contains_key(LABEL_RUN) => {
                return Ok(Outcome::stays(format!(
                    "container {} was created by somebody else since, and stays; the old one is kept as {}",
                    names.own, names.kept
                )));
            }
            Some(_) => {
                return Err(ActionError::Other(format!(
                    "container {} was created by another run of drctl since; the old one is {}",
                    names.own, names.kept
                )));
            }
            None => {}
        }
        give_policy_back(cx, &kept, restart_policy).await?;
        docker.rename(&kept.id, names.own).await?;
        kept
    } else {
        // It was not set aside, or has its name back; its policy may have been taken already.
        let old = in_place
            .filter(|c| !is_of(c, names.run))
            .ok_or_else(|| ActionError::Other(format!("the old container {} is gone", names.kept)))?;
        give_policy_back(cx, &old, restart_policy).await?;
        old
    };
    if running {
        if container::is_redis(cx, names.service) && !old.is_running() {
            redis_files::must_be_alone(cx, names.service, &old, "it is not started").await?;
        }
        docker.start(&old.id).await?;
        tell_proxies(cx, names.service).await;
    }
    docker.untag_image(&names.image()).await?;
    Ok(Outcome::new(format!(
        "the old container {} is back in its place{}",
        names.own,
        if running { ", started" } else { ", stopped" }
    )))
}

async fn give_policy_back(
    cx: &ActionContext<'_>,
    old: &ContainerInfo,
    restart_policy: &str,
) -> Result<(), WorkloadError> {
    if lacks_policy(&old.restart_policy, restart_policy) {
        cx.system
            .docker
            .set_restart_policy(&old.id, restart_policy)
            .await?;
    }
    Ok(())
}

/// Whether a container has another policy than it had. An older plan does not say after how many
/// starts the engine gave up, and nothing was taken from such a container then.
fn lacks_policy(now: &str, before: &str) -> bool {
    let counted = |policy: &str| {
        policy
            .strip_prefix(before)
            .is_some_and(|rest| rest.starts_with(':'))
    };
    // A plan from before policies were written down.
    !before.is_empty() && now != before && !counted(now)
}

async fn let_go(cx: &ActionContext<'_>, names: &Names<'_>) -> Result<Outcome, ActionError> {
    let docker = &cx.system.docker;
    docker.remove_keeping_volumes(&names.kept).await?;
    docker.untag_image(&names.image()).await?;
    Ok(Outcome::new(format!("container {} is removed", names.kept)))
}

async fn double(cx: &ActionContext<'_>, names: &Names<'_>) -> Result<Outcome, ActionError> {
    let docker = &cx.system.docker;
    let begun = Instant::now();
    let first = cx.system.container(names.service).await?;
    if find(cx, &names.second).await?.is_none_or(|c| !c.is_running()) {
        docker.remove_keeping_volumes(&names.second).await?;
        docker
            .create_like(&Like {
                of: first.id.clone(),
                name: names.second.clone(),
                image: first.image_id.clone(),
                run: names.run.to_owned(),
                role: Role::Second {
                    deployment: cx.system.deployment().to_owned(),
                },
            })
            .await?;
        docker.start(&names.second).await?;
    }
    let end = begun + cx.deadline;
    loop {
        let now = docker.inspect(&names.second).await?;
        match now.status {
            Status::Running if matches!(now.health.as_deref(), None | Some("healthy")) => break,
            Status::Exited | Status::Dead | Status::Restarting => {
                return Err(ActionError::Other(format!(
                    "the second instance of {} does not stay up (exit code {})",
                    names.service, now.exit_code
                )));
            }
            _ if Instant::now() >= end => {
                return Err(ActionError::Other(format!(
                    "the second instance of {} is not healthy after {}",
                    names.service,
                    crate::event::seconds(cx.deadline)
                )));
            }
            _ => tokio::time::sleep(container::POLL).await,
        }
    }
    tell_proxies(cx, names.service).await;
    Ok(
        Outcome::new(format!("container {} takes a share of the work", names.second))
            .fact("start-seconds", begun.elapsed().as_secs_f64()),
    )
}

async fn undouble(cx: &ActionContext<'_>, names: &Names<'_>) -> Result<Outcome, ActionError> {
    if let Some(second) = find(cx, &names.second).await? {
        stop(cx, &second).await?;
        cx.system.docker.remove_keeping_volumes(&second.id).await?;
        tell_proxies(cx, names.service).await;
    }
    Ok(Outcome::new(format!(
        "the second instance of {} is removed",
        names.service
    )))
}

/// nginx looks names up only when it reads its configuration. On SIGHUP it reads it again, and
/// goes on as before where something in it does not resolve.
async fn tell_proxies(cx: &ActionContext<'_>, service: &str) {
    for name in cx.system.runbook.dependents(service) {
        let is_proxy = cx
            .system
            .runbook
            .service(name.as_str())
            .is_some_and(|s| matches!(s.kind, ServiceKind::Nginx));
        if !is_proxy {
            continue;
        }
        let told = match cx.system.container(name.as_str()).await {
            Ok(proxy) if proxy.is_running() => cx.system.docker.kill(&proxy.id, "SIGHUP").await,
            Ok(_) => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(e) = told {
            cx.warn(format!(
                "{name} was not told of the new address of {service}: {e}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::lacks_policy;

    #[test]
    fn a_policy_is_given_back_with_its_count() {
        for before in ["always", "unless-stopped", "on-failure", "on-failure:5"] {
            assert!(lacks_policy("no", before), "{before}");
            assert!(!lacks_policy(before, before), "{before}");
        }
        assert!(lacks_policy("on-failure", "on-failure:5"));
        // Older plans: without the count, or without the policy.
        assert!(!lacks_policy("on-failure:5", "on-failure"));
        assert!(!lacks_policy("always", ""));
    }
}
