//! Choosing a rung: the gentlest remedy that nothing stands in the way of. Pure.

use super::{PlanRequest, Refusal};
use crate::plan::{Alternative, Remedy};

/// A rung and what stands in its way, if anything.
pub type Rung = (Remedy, Option<String>);

/// Adds to a rung's obstacle that it was tried before and did not hold.
#[must_use]
pub fn rung(request: &PlanRequest, remedy: Remedy, obstacle: Option<String>) -> Rung {
    let tried = request
        .tried
        .contains(&remedy)
        .then(|| "it was tried and did not hold".to_owned());
    (remedy, tried.or(obstacle))
}

/// The rung that the operator chose, or the first that nothing stands in the way of.
///
/// # Errors
/// [`Refusal`]: the chosen one is impossible or no rung of this failure, or none is left;
/// then `otherwise` says what to type.
pub fn choose(
    scenario: &str,
    rungs: &[Rung],
    wanted: Option<Remedy>,
    reasons: &[String],
    otherwise: Vec<String>,
) -> Result<Remedy, Refusal> {
    let look = |what: &str| vec![format!("drctl recover {scenario} --dry-run    # what {what}")];
    match wanted {
        Some(wanted) => match rungs.iter().find(|(r, _)| *r == wanted) {
            Some((r, None)) => Ok(*r),
            Some((r, Some(why))) => Err(Refusal {
                message: format!("{r} is not possible: {why}"),
                reasons: reasons.to_vec(),
                next: look("is possible"),
            }),
            None => Err(Refusal {
                message: format!("{wanted} does not help here: it cannot bring back what is damaged"),
                reasons: reasons.to_vec(),
                next: look("would"),
            }),
        },
        None => rungs
            .iter()
            .find(|(_, why)| why.is_none())
            .map(|(r, _)| *r)
            .ok_or_else(|| Refusal {
                message: "no remedy is possible as things are".into(),
                reasons: rungs
                    .iter()
                    .filter_map(|(r, why)| Some(format!("{r}: {}", why.as_ref()?)))
                    .collect(),
                next: otherwise,
            }),
    }
}

/// The rungs that were not chosen; `why` tells it of one that would be possible.
#[must_use]
pub fn alternatives(rungs: &[Rung], chosen: Remedy, why: impl Fn(Remedy) -> String) -> Vec<Alternative> {
    rungs
        .iter()
        .filter(|(r, _)| *r != chosen)
        .map(|(r, obstacle)| Alternative {
            remedy: *r,
            possible: obstacle.is_none(),
            why_not: obstacle.clone().unwrap_or_else(|| why(*r)),
        })
        .collect()
}
