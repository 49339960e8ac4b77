//! Rules that every plan obeys, whoever wrote it.

use super::{
    Action, ClusterAction, ContainerAction, Plan, PostgresAction, RedisAction, Undo, WorkloadAction,
};

/// A plan that breaks a rule. A bug in a scenario, never the operator's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LintError {
    /// A step without a reason.
    #[error("step {0} does not say why")]
    NoWhy(usize),
    /// Nothing to do.
    #[error("the plan has no steps")]
    Empty,
    /// Nothing would prove that it worked.
    #[error("the plan expects nothing: success could not be told from failure")]
    NoProof,
    /// A swap or switch to something that was not proven before.
    #[error("step {0} brings something into service that no earlier step has proven")]
    Unproven(usize),
    /// A swap or switch that cannot be taken back.
    #[error("step {0} brings something into service and has no undo")]
    NoWayBack(usize),
    /// Files are switched under a running server.
    #[error("step {0} moves files of a server that no earlier step has stopped")]
    NotStopped(usize),
    /// A plan that stops a server and leaves it so.
    #[error("the plan stops {0} and does not start it again")]
    LeftStopped(String),
    /// Dropping data is not part of a recovery: only `incident close` does it.
    #[error("step {0} drops data; only closing the incident may")]
    Drops(usize),
}

/// Checks a plan against the rules.
///
/// # Errors
/// The first rule that it breaks.
pub fn lint(plan: &Plan) -> Result<(), LintError> {
    if plan.steps.is_empty() {
        return Err(LintError::Empty);
    }
    if plan.expect.is_empty() {
        return Err(LintError::NoProof);
    }
    let (mut proven, mut stopped) = (false, Vec::new());
    for (i, step) in plan.steps.iter().enumerate() {
        let number = i + 1;
        if step.why.trim().is_empty() {
            return Err(LintError::NoWhy(number));
        }
        match &step.action {
            Action::Postgres(PostgresAction::ProveSide { .. })
            | Action::Cluster(ClusterAction::ProveSide { .. }) => proven = true,
            Action::Postgres(PostgresAction::SwapDatabases { .. })
            | Action::Cluster(ClusterAction::Switch { .. }) => {
                if !proven {
                    return Err(LintError::Unproven(number));
                }
                if !matches!(step.undo, Undo::Action(_)) {
                    return Err(LintError::NoWayBack(number));
                }
                if let Action::Cluster(ClusterAction::Switch { service, .. }) = &step.action
                    && !stopped.contains(service)
                {
                    return Err(LintError::NotStopped(number));
                }
            }
            Action::Container(ContainerAction::Recreate { .. }) if !matches!(step.undo, Undo::Action(_)) => {
                return Err(LintError::NoWayBack(number));
            }
            Action::Redis(RedisAction::MendFiles { service, .. }) => {
                if !matches!(step.undo, Undo::Action(_)) {
                    return Err(LintError::NoWayBack(number));
                }
                if !stopped.contains(service) {
                    return Err(LintError::NotStopped(number));
                }
            }
            Action::Postgres(PostgresAction::DropDatabase { .. })
            | Action::Redis(RedisAction::DropKept { .. })
            | Action::Container(ContainerAction::LetGo { .. })
            | Action::Cluster(ClusterAction::Discard { .. }) => return Err(LintError::Drops(number)),
            Action::Workload(WorkloadAction::Stop { service }) => stopped.push(service.clone()),
            Action::Workload(WorkloadAction::Start { service, .. }) => stopped.retain(|s| s != service),
            _ => {}
        }
    }
    match stopped.pop() {
        Some(service) => Err(LintError::LeftStopped(service)),
        None => Ok(()),
    }
}
