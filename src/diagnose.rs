//! What is wrong, asked of every scenario at once, causes before their consequences.
//!
//! Nothing is called well while users get no answer: what the scenarios do not know is looked for
//! in general, and an endpoint that fails without any explanation is told as that.

mod general;

pub use general::{General, everything};

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::error::Error;
use crate::probe::observer::Observer;
use crate::scenarios::{Certainty, DetectOptions, Diagnosis, Entry, Looked, registry};

/// What one scenario says.
pub struct Opinion {
    /// The scenario.
    pub scenario: Entry,
    /// What it found, or why it could not look.
    pub looked: Result<Looked, Error>,
    /// How long it looked.
    pub took: Duration,
    /// The confirmed failure that explains this one, if any.
    pub consequence_of: Option<&'static str>,
}

impl Opinion {
    /// How sure it is that its failure is there.
    #[must_use]
    pub fn certainty(&self) -> Certainty {
        match self.diagnosis() {
            Some(d) if d.look_alike.is_some() => Certainty::Absent,
            Some(d) => d.certainty,
            None => Certainty::Unknown,
        }
    }

    /// The diagnosis, when there is one.
    #[must_use]
    pub fn diagnosis(&self) -> Option<&Diagnosis> {
        self.looked.as_ref().ok().map(|l| &l.diagnosis)
    }

    /// Not this failure but another one that looks like it.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        self.diagnosis().is_some_and(|d| d.look_alike.is_some())
    }

    /// What it found looks like its failure, and no other scenario is about it either.
    fn is_of_its_own(&self) -> bool {
        self.diagnosis()
            .and_then(|d| d.look_alike.as_ref())
            .is_some_and(|l| registry().iter().all(|scenario| scenario.name != l.name))
    }

    /// The failure is there, or may be.
    #[must_use]
    pub fn is_finding(&self) -> bool {
        matches!(self.certainty(), Certainty::Confirmed | Certainty::Suspected)
    }
}

/// Asks every scenario, each with `deadline` at most; the probes that they share run once.
/// The likeliest cause comes first.
pub async fn all(world: &Observer<'_>, options: &DetectOptions, deadline: Duration) -> Vec<Opinion> {
    let opinions = join_all(
        registry()
            .into_iter()
            .map(|scenario| one(world, scenario, options, deadline)),
    );
    rank(opinions.await)
}

/// Asks one scenario.
pub async fn one(
    world: &Observer<'_>,
    scenario: Entry,
    options: &DetectOptions,
    deadline: Duration,
) -> Opinion {
    let began = Instant::now();
    let looked = match tokio::time::timeout(deadline, (scenario.look)(world, options)).await {
        Ok(looked) => looked,
        Err(_) => Err(Error::new(
            crate::error::Kind::CouldNotVerify,
            format!(
                "{} could not be looked at within {}",
                scenario.name,
                crate::event::seconds(deadline)
            ),
        )),
    };
    Opinion {
        scenario,
        looked,
        took: began.elapsed(),
        consequence_of: None,
    }
}

/// Causes first: confirmed before suspected before unknown before absent; a failure that
/// a confirmed one explains goes behind it, whatever its own certainty.
#[must_use]
pub fn rank(mut opinions: Vec<Opinion>) -> Vec<Opinion> {
    let confirmed: Vec<Entry> = opinions
        .iter()
        .filter(|o| o.certainty() == Certainty::Confirmed)
        .map(|o| o.scenario)
        .collect();
    for opinion in &mut opinions {
        let name = opinion.scenario.name;
        opinion.consequence_of = confirmed
            .iter()
            // Two that each explain the other explain nothing.
            .find(|c| c.causes.contains(&name) && !opinion.scenario.causes.contains(&c.name))
            .map(|c| c.name)
            .filter(|_| opinion.is_finding());
    }
    // Stable: within a class the registry's order stays.
    opinions.sort_by_key(|o| {
        let class = match o.certainty() {
            Certainty::Confirmed => 0,
            Certainty::Suspected => 1,
            Certainty::Unknown => 3,
            // What looks alike and is something of its own tells more than that another scenario
            // should be asked.
            Certainty::Absent if o.is_of_its_own() => 4,
            Certainty::Absent => 5,
        };
        if o.consequence_of.is_some() { 2 } else { class }
    });
    opinions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenarios::LookAlike;

    fn opinion(
        name: &'static str,
        causes: &'static [&'static str],
        certainty: Certainty,
        look_alike: bool,
    ) -> Opinion {
        Opinion {
            scenario: Entry {
                name,
                about: "",
                causes,
                look: |_, _| Box::pin(std::future::pending()),
            },
            looked: Ok(Looked {
                diagnosis: Diagnosis {
                    certainty,
                    summary: name.into(),
                    reasons: vec![],
                    look_alike: look_alike.then(|| LookAlike {
                        name: "other".into(),
                        explanation: String::new(),
                        next: vec![],
                    }),
                },
                evidence: serde_json::Value::Null,
            }),
            took: Duration::ZERO,
            consequence_of: None,
        }
    }

    #[test]
    fn a_look_alike_of_its_own_comes_before_one_that_points_elsewhere() {
        let alike = |name: &'static str, to: &str| {
            let mut opinion = opinion(name, &[], Certainty::Confirmed, true);
            if let Ok(looked) = &mut opinion.looked
                && let Some(look_alike) = &mut looked.diagnosis.look_alike
            {
                look_alike.name = to.into();
            }
            opinion
        };
        let ranked = rank(vec![
            alike("network-partition", "redis-failure"),
            alike("redis-failure", "wrong-version"),
        ]);
        assert_eq!(ranked[0].scenario.name, "redis-failure");
    }

    #[test]
    fn a_cause_comes_before_what_it_brings_about() {
        use Certainty::{Absent, Confirmed, Suspected, Unknown};
        let ranked = rank(vec![
            opinion("service-crash", &["db-down"], Confirmed, false),
            opinion("db-down", &["service-crash"], Confirmed, false),
            opinion("redis-oom", &[], Absent, false),
            opinion("db-corruption", &[], Confirmed, true),
            opinion("network-partition", &[], Unknown, false),
            opinion("stuck-sessions", &[], Suspected, false),
            opinion("disk-full", &["db-down"], Confirmed, false),
        ]);
        let order: Vec<_> = ranked
            .iter()
            .map(|o| (o.scenario.name, o.consequence_of))
            .collect();
        assert_eq!(
            order,
            [
                ("service-crash", None),
                ("disk-full", None),
                ("stuck-sessions", None),
                ("db-down", Some("disk-full")),
                ("network-partition", None),
                // Looks alike, and is something of its own.
                ("db-corruption", None),
                ("redis-oom", None),
            ]
        );
    }
}
