//! The proof that services reach what they need, asked from inside.

use super::actions::Checked;
use super::settle::all_settled;
use super::verify::answer;
use crate::event::Verdict;
use crate::probe::containers;
use crate::probe::reach::{self, Answer, Edge};
use crate::system::System;

/// One answer per dependency, given when all are good or time is over.
pub(super) async fn reaches(system: &System, edges: &[(String, String)]) -> Vec<Checked> {
    all_settled(|| async {
        let found = reach::look(system, &containers::look(system).await).await.edges;
        edges
            .iter()
            .map(|(from, to)| {
                let what = format!("{from} reaches {to}");
                let edge = found.iter().find(|e| e.from == *from && e.to == *to);
                edge.map_or_else(
                    || answer(&what, Verdict::CouldNotVerify, "the runbook names it no more"),
                    |e| answer(&what, verdict(e), e.in_words()),
                )
            })
            .collect()
    })
    .await
}

fn verdict(edge: &Edge) -> Verdict {
    match edge.answer {
        Answer::Open | Answer::Resolved => Verdict::Pass,
        Answer::Unasked(_) => Verdict::CouldNotVerify,
        Answer::Refused | Answer::Silent | Answer::Unresolved => Verdict::Fail,
    }
}
