//! A read-only view of a deployment in which every shared probe runs once, however many
//! scenarios ask for it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::sync::{Mutex, OnceCell};

use super::containers::{self, ContainerState};
use super::endpoints::{self, Answers};
use super::files::{self, Look};
use super::host::{self, Host};
use super::reach::{self, Reach};
use super::redis::{RedisState, observe};
use crate::event::SharedReporter;
use crate::system::{PostgresServer, System};
use crate::workload::NetworkInfo;

/// One look at a deployment. Made anew for each look: what it has seen does not change.
pub struct Observer<'a> {
    /// The deployment. For probes only: nothing that is reached through an observer changes
    /// the world.
    pub system: &'a System,
    /// Who is told what is being looked at.
    pub reporter: &'a SharedReporter,
    containers: OnceCell<BTreeMap<String, ContainerState>>,
    networks: OnceCell<Result<Vec<NetworkInfo>, String>>,
    reach: OnceCell<Reach>,
    redis: OnceCell<BTreeMap<String, Result<RedisState, String>>>,
    endpoints: OnceCell<BTreeMap<String, Answers>>,
    host: OnceCell<Option<Host>>,
    files: Mutex<BTreeMap<String, Look>>,
}

impl<'a> Observer<'a> {
    /// Nothing has been looked at yet.
    #[must_use]
    pub fn new(system: &'a System, reporter: &'a SharedReporter) -> Self {
        Self {
            system,
            reporter,
            containers: OnceCell::new(),
            networks: OnceCell::new(),
            reach: OnceCell::new(),
            redis: OnceCell::new(),
            endpoints: OnceCell::new(),
            host: OnceCell::new(),
            files: Mutex::default(),
        }
    }

    /// The data directory of a PostgreSQL server, seen by a helper container, which takes longer
    /// than a question on a busy engine. Who asks second waits for the first.
    pub async fn files(&self, server: &PostgresServer) -> Look {
        let mut seen = self.files.lock().await;
        if let Some(look) = seen.get(&server.service) {
            return look.clone();
        }
        let now = Timestamp::now().as_second();
        let run = format!("detect-{}-{now}", std::process::id());
        let probe = self.system.runbook.deadlines.probe;
        let deadline = probe.max(Duration::from_secs(3)) + Duration::from_secs(4);
        let look = files::look(self.system, server, &run, deadline).await;
        seen.insert(server.service.clone(), look.clone());
        look
    }

    /// Every Redis server as it answers, by service; or why it could not be asked. Nothing is
    /// written to it.
    pub async fn redis(&self) -> &BTreeMap<String, Result<RedisState, String>> {
        self.redis
            .get_or_init(|| async {
                let names = self.system.runbook.redis_services().map(|(n, ..)| n.to_string());
                join_all(names.map(|name| async move {
                    let state = match self.system.redis(&name).await {
                        Ok(server) => Ok(observe(&server, false).await),
                        Err(e) => Err(e.to_string()),
                    };
                    (name, state)
                }))
                .await
                .into_iter()
                .collect()
            })
            .await
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

    /// Every network of the engine, or why they could not be listed.
    pub async fn networks(&self) -> &Result<Vec<NetworkInfo>, String> {
        self.networks
            .get_or_init(|| async { self.system.docker.networks().await.map_err(|e| e.to_string()) })
            .await
    }

    /// Who reaches whom, asked inside the containers.
    pub async fn reach(&self) -> &Reach {
        self.reach
            .get_or_init(|| async { reach::look(self.system, self.containers().await).await })
            .await
    }
}
