//! The proof that services reach what they need, asked from inside.

use tokio::time::Instant;

use super::actions::Checked;
use super::endpoints::{RETRY, SETTLE};
use super::verify::answer;
use crate::event::Verdict;
use crate::probe::containers;
use crate::probe::reach::{self, Answer, Edge};
use crate::system::System;

/// One answer per dependency, given when all are good or time is over.
pub(super) async fn reaches(system: &System, edges: &[(String, String)]) -> Vec<Checked> {
    let began = Instant::now();
    loop {
        let found = reach::look(system, &containers::look(system).await).await.edges;
        let checks: Vec<Checked> = edges
            .iter()
            .map(|(from, to)| {
                let what = format!("{from} reaches {to}");
                let edge = found.iter().find(|e| e.from == *from && e.to == *to);
                edge.map_or_else(
                    || answer(&what, Verdict::CouldNotVerify, "the runbook names it no more"),
                    |e| answer(&what, verdict(e), e.in_words()),
                )
            })
            .collect();
        if checks.iter().all(|c| c.verdict == Verdict::Pass) || began.elapsed() > SETTLE {
            return checks;
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn verdict(edge: &Edge) -> Verdict {
    match edge.answer {
        Answer::Open | Answer::Resolved => Verdict::Pass,
        Answer::Unasked(_) => Verdict::CouldNotVerify,
        Answer::Refused | Answer::Silent | Answer::Unresolved => Verdict::Fail,
    }
}
