//! A read-only view of a deployment in which every shared probe runs once, however many
//! scenarios ask for it.

use std::collections::BTreeMap;

use tokio::sync::OnceCell;

use super::containers::{self, ContainerState};
use super::endpoints::{self, Answers};
use super::host::{self, Host};
use crate::event::SharedReporter;
use crate::system::System;

/// One look at a deployment. Made anew for each look: what it has seen does not change.
pub struct Observer<'a> {
    /// The deployment. For probes only: nothing that is reached through an observer changes
    /// the world.
    pub system: &'a System,
    /// Who is told what is being looked at.
    pub reporter: &'a SharedReporter,
    containers: OnceCell<BTreeMap<String, ContainerState>>,
    endpoints: OnceCell<BTreeMap<String, Answers>>,
    host: OnceCell<Option<Host>>,
}

impl<'a> Observer<'a> {
    /// Nothing has been looked at yet.
    #[must_use]
    pub fn new(system: &'a System, reporter: &'a SharedReporter) -> Self {
        Self {
            system,
            reporter,
            containers: OnceCell::new(),
            endpoints: OnceCell::new(),
            host: OnceCell::new(),
        }
    }

    /// The containers of all services, by service.
    pub async fn containers(&self) -> &BTreeMap<String, ContainerState> {
        self.containers
            .get_or_init(|| containers::look(self.system))
            .await
    }

    /// How the runbook's endpoints answer, asked a few times each.
    pub async fn endpoints(&self) -> &BTreeMap<String, Answers> {
        self.endpoints
            .get_or_init(|| endpoints::look(&self.system.runbook))
            .await
    }

    /// What the machine has left; `None` where the engine is on another one.
    pub async fn host(&self) -> &Option<Host> {
        self.host
            .get_or_init(|| async {
                if self.system.docker.is_local() {
                    host::look().await
                } else {
                    None
                }
            })
            .await
    }
}
