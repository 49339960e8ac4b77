//! Which services an action is about.

use std::collections::BTreeSet;

use super::{
    Action, ClusterAction, ContainerAction, NetworkAction, Plan, PostgresAction, RedisAction, ServerAction,
    SessionAction, SpaceAction, Undo, WorkloadAction,
};

impl Plan {
    /// The services that its actions name, and those of their undo.
    #[must_use]
    pub fn services(&self) -> BTreeSet<&str> {
        let mut all = BTreeSet::new();
        for step in &self.steps {
            all.extend(step.action.services());
            if let Undo::Action(undo) = &step.undo {
                all.extend(undo.services());
            }
        }
        all
    }
}

impl Action {
    /// The services that it names.
    #[must_use]
    pub fn services(&self) -> Vec<&str> {
        match self {
            Self::Postgres(a) => vec![postgres(a)],
            Self::Sessions(a) => sessions(a),
            Self::Cluster(a) => vec![cluster(a)],
            Self::Workload(a) => workload(a),
            Self::Network(a) => network(a),
            Self::Redis(a) => redis(a),
            Self::Container(a) => vec![container(a)],
            Self::Space(a) => space(a),
            Self::Server(a) => vec![server(a)],
        }
    }
}

fn postgres(action: &PostgresAction) -> &str {
    use PostgresAction as A;
    match action {
        A::Reindex { service, .. }
        | A::RestoreSide { service, .. }
        | A::ProveSide { service, .. }
        | A::FenceWriters { service, .. }
        | A::UnfenceWriters { service, .. }
        | A::SalvageRows { service, .. }
        | A::SwapDatabases { service, .. }
        | A::SwapBack { service, .. }
        | A::DropDatabase { service, .. } => service,
    }
}

fn sessions(action: &SessionAction) -> Vec<&str> {
    use SessionAction as A;
    match action {
        A::FreeSlot { service, .. } | A::End { service, .. } | A::Unblock { service, .. } => vec![service],
        A::RestartPools {
            service,
            applications,
        } => std::iter::once(service)
            .chain(applications)
            .map(String::as_str)
            .collect(),
    }
}

fn cluster(action: &ClusterAction) -> &str {
    use ClusterAction as A;
    match action {
        A::ExtractBase { service, .. }
        | A::CopyDamaged { service, .. }
        | A::KeepWal { service, .. }
        | A::ProveSide { service, .. }
        | A::SalvageRows { service, .. }
        | A::SalvageFromLog { service, .. }
        | A::Switch { service, .. }
        | A::SwitchBack { service, .. }
        | A::Discard { service, .. } => service,
    }
}

fn workload(action: &WorkloadAction) -> Vec<&str> {
    use WorkloadAction as A;
    match action {
        A::Stop { service } | A::Start { service, .. } | A::Thaw { service } | A::Restart { service } => {
            vec![service]
        }
        A::StartTogether { services } | A::StopTogether { services } => {
            services.iter().map(String::as_str).collect()
        }
    }
}

fn network(action: &NetworkAction) -> Vec<&str> {
    use NetworkAction as A;
    match action {
        A::Create { .. } | A::Remove { .. } => Vec::new(),
        A::Connect { service, .. } | A::Disconnect { service, .. } => vec![service],
    }
}

fn redis(action: &RedisAction) -> Vec<&str> {
    use RedisAction as A;
    match action {
        A::SetConfig { service, .. }
        | A::ClearPatterns { service, .. }
        | A::ClearStaleMembers { service, .. }
        | A::PutMembersBack { service, .. }
        | A::KeepSnapshot { service, .. }
        | A::PutSnapshotBack { service, .. }
        | A::MendFiles { service, .. }
        | A::PutFilesBack { service, .. }
        | A::DropKept { service, .. }
        | A::KillScript { service }
        | A::Save { service } => vec![service],
        A::Warm { .. } => Vec::new(),
    }
}

fn container(action: &ContainerAction) -> &str {
    use ContainerAction as A;
    match action {
        A::Recreate { service, .. }
        | A::PutBack { service, .. }
        | A::LetGo { service, .. }
        | A::Double { service, .. }
        | A::Undouble { service, .. }
        | A::SetLimits { service, .. } => service,
    }
}

fn space(action: &SpaceAction) -> Vec<&str> {
    use SpaceAction as A;
    match action {
        A::PruneBackups { .. } | A::RemoveImages { .. } => Vec::new(),
        A::ArchiveLog { service, .. } | A::Revive { service } => vec![service],
    }
}

fn server(action: &ServerAction) -> &str {
    use ServerAction as A;
    match action {
        A::AwaitRecovery { service }
        | A::SetAside { service, .. }
        | A::PutLinesBack { service, .. }
        | A::FixPermissions { service, .. }
        | A::RestorePermissions { service, .. }
        | A::MakeMissing { service, .. }
        | A::MoveAside { service, .. }
        | A::MoveBack { service, .. } => service,
    }
}
