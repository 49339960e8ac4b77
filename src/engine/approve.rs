//! The operator's agreement. Only what has it can be executed: an [`ApprovedPlan`] is
//! made here and nowhere else.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::plan::{Plan, Risk, lint};
use crate::runbook::Environment;

/// A plan that keeps the rules and that the operator agreed to.
#[derive(Debug)]
pub struct ApprovedPlan {
    plan: Plan,
    how: String,
}

impl ApprovedPlan {
    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How the operator agreed, for the journal.
    #[must_use]
    pub fn how(&self) -> &str {
        &self.how
    }
}

/// Asks a person. Implemented where printing is allowed.
pub trait Ask: Send + Sync {
    /// Whether there is a person to ask.
    fn is_possible(&self) -> bool;
    /// Their answer without the line end; `None` at the end of input.
    fn ask(&self, question: &str) -> Option<String>;
}

/// What the operator agreed to beforehand, on the command line, and whom to ask.
#[derive(Clone)]
pub struct Consent {
    /// `--yes`.
    pub yes: bool,
    /// `--confirm NAME`.
    pub confirm: Option<String>,
    /// The person.
    pub ask: Arc<dyn Ask>,
}

/// Whether `--yes` is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// A yes.
    Yes,
    /// The deployment's name, typed.
    Name,
}

impl Needs {
    /// What a risk needs in an environment: on production, whatever users notice is
    /// agreed to by name.
    #[must_use]
    pub fn of(risk: Risk, environment: Environment) -> Self {
        match (risk, environment) {
            (Risk::Destructive, _) | (Risk::Disruptive, Environment::Production) => Self::Name,
            _ => Self::Yes,
        }
    }

    fn flags(self, deployment: &str) -> String {
        match self {
            Self::Yes => "--yes".into(),
            Self::Name => format!("--yes --confirm {deployment}"),
        }
    }
}

/// What the flags alone decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Agreed, and how.
    Granted(String),
    /// The name on the command line is another one's.
    WrongName(String),
    /// A person must answer.
    Ask,
}

/// Decides by the flags. The typed name is the stronger agreement and includes the yes.
#[must_use]
pub fn decide(needs: Needs, deployment: &str, yes: bool, confirm: Option<&str>) -> Decision {
    match (confirm, needs) {
        (Some(name), _) if name == deployment => Decision::Granted(format!("--confirm {name}")),
        (Some(name), _) => Decision::WrongName(name.to_owned()),
        (None, Needs::Yes) if yes => Decision::Granted("--yes".into()),
        (None, _) => Decision::Ask,
    }
}

/// Checks a plan against the rules and gets the operator's agreement to it.
///
/// # Errors
/// [`Kind::Internal`] when the plan breaks a rule, else as [`agree`].
pub async fn approve(plan: Plan, environment: Environment, consent: &Consent) -> Result<ApprovedPlan> {
    check_rules(&plan)?;
    let question = format!("Run these {} steps on {}?", plan.steps.len(), plan.deployment);
    let how = agree(
        Needs::of(plan.risk(), environment),
        &plan.deployment,
        &question,
        "everything: no step was begun",
        consent,
    )
    .await?;
    Ok(ApprovedPlan { plan, how })
}

/// Checks a plan against the rules.
///
/// # Errors
/// [`Kind::Internal`]: a bug of the scenario that made it.
pub fn check_rules(plan: &Plan) -> Result<()> {
    lint(plan).map_err(|e| {
        Error::new(
            Kind::Internal,
            format!(
                "the plan for {} breaks a rule of drctl and is not offered",
                plan.scenario
            ),
        )
        .because(&e)
        .untouched("everything")
    })
}

/// Gets the operator's agreement: by flag, or by asking; never waits where nobody is.
///
/// # Errors
/// [`Kind::Declined`] when they say no or name another deployment, [`Kind::Refused`]
/// with the missing flags when there is nobody to ask.
pub async fn agree(
    needs: Needs,
    deployment: &str,
    question: &str,
    untouched: &str,
    consent: &Consent,
) -> Result<String> {
    match decide(needs, deployment, consent.yes, consent.confirm.as_deref()) {
        Decision::Granted(how) => return Ok(how),
        Decision::WrongName(name) => {
            return Err(Error::new(
                Kind::Declined,
                format!("--confirm names {name:?}, the deployment is {deployment:?}"),
            )
            .untouched(untouched)
            .next("drctl runbook show    # is this the runbook you meant?"));
        }
        Decision::Ask => {}
    }
    if !consent.ask.is_possible() {
        return Err(Error::new(
            Kind::Refused,
            "this needs the operator's agreement, and there is no terminal to ask on",
        )
        .untouched(untouched)
        .next(format!("the same command with {}", needs.flags(deployment))));
    }
    let prompt = match needs {
        Needs::Yes => format!("{question} [y/N] "),
        Needs::Name => format!("{question} Type the deployment's name to agree: "),
    };
    let ask = Arc::clone(&consent.ask);
    // Reading a terminal blocks; the watch on the endpoints goes on meanwhile.
    let answer = tokio::task::spawn_blocking(move || ask.ask(&prompt))
        .await
        .ok()
        .flatten()
        .unwrap_or_default();
    let answer = answer.trim();
    match needs {
        Needs::Yes if matches!(answer.to_lowercase().as_str(), "y" | "yes") => Ok("answered yes".into()),
        Needs::Name if answer == deployment => Ok("typed the deployment's name".into()),
        _ => Err(Error::new(Kind::Declined, "declined by the operator").untouched(untouched)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_users_notice_on_production_needs_the_name() {
        use Environment::{Lab, Production, Staging};
        use Risk::{Destructive, Disruptive, ReadOnly, Reversible};
        for (risk, environment, needs) in [
            (ReadOnly, Production, Needs::Yes),
            (Reversible, Production, Needs::Yes),
            (Disruptive, Production, Needs::Name),
            (Destructive, Production, Needs::Name),
            (Disruptive, Staging, Needs::Yes),
            (Disruptive, Lab, Needs::Yes),
            (Destructive, Lab, Needs::Name),
        ] {
            assert_eq!(Needs::of(risk, environment), needs, "{risk} {environment:?}");
        }
    }

    #[test]
    fn flags_decide_or_leave_it_to_a_person() {
        let granted = |how: &str| Decision::Granted(how.into());
        for (needs, yes, confirm, expected) in [
            (Needs::Yes, true, None, granted("--yes")),
            (Needs::Yes, false, None, Decision::Ask),
            (Needs::Name, true, None, Decision::Ask),
            (Needs::Name, true, Some("simgen"), granted("--confirm simgen")),
            (Needs::Name, false, Some("simgen"), granted("--confirm simgen")),
            (Needs::Yes, false, Some("simgen"), granted("--confirm simgen")),
            (
                Needs::Yes,
                true,
                Some("other"),
                Decision::WrongName("other".into()),
            ),
            (
                Needs::Name,
                true,
                Some("Simgen"),
                Decision::WrongName("Simgen".into()),
            ),
            (Needs::Name, true, Some(""), Decision::WrongName(String::new())),
        ] {
            assert_eq!(decide(needs, "simgen", yes, confirm), expected);
        }
    }

    struct Person(Option<&'static str>);

    impl Ask for Person {
        fn is_possible(&self) -> bool {
            self.0.is_some()
        }
        fn ask(&self, _: &str) -> Option<String> {
            self.0.filter(|a| *a != "EOF").map(str::to_owned)
        }
    }

    #[tokio::test]
    async fn only_a_clear_answer_is_agreement() {
        for (needs, answer, expected) in [
            (Needs::Yes, Some("y"), None),
            (Needs::Yes, Some("YES"), None),
            (Needs::Yes, Some(""), Some(Kind::Declined)),
            (Needs::Yes, Some("EOF"), Some(Kind::Declined)),
            (Needs::Yes, Some("simgen"), Some(Kind::Declined)),
            (Needs::Name, Some("simgen"), None),
            (Needs::Name, Some("y"), Some(Kind::Declined)),
            (Needs::Name, None, Some(Kind::Refused)),
        ] {
            let consent = Consent {
                yes: false,
                confirm: None,
                ask: Arc::new(Person(answer)),
            };
            let kind = agree(needs, "simgen", "?", "all", &consent)
                .await
                .err()
                .map(|e| e.kind);
            assert_eq!(kind, expected, "{needs:?} {answer:?}");
        }
    }
}
