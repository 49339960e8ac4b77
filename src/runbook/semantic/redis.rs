//! Which keys a Redis's disposable patterns mean: they are deleted without a way back.

use super::super::node::Node;
use super::super::problem::{Collector, DocumentPath, ProblemKind};
use super::super::text::shorten;
use crate::glob::{glob_literals, glob_matches, glob_matches_after};

/// A pattern names keys of its own, and none that the sessions are kept in.
pub(super) fn check(redis: &Node, path: &DocumentPath, found: &mut Collector<'_>) {
    let sessions = |key: &str| {
        redis
            .get("sessions")
            .and_then(|sessions| sessions.get(key)?.text())
            .filter(|name| !name.is_empty())
    };
    let (index, owner) = (sessions("index"), sessions("owner-prefix"));
    let patterns = redis.get("disposable-patterns").map_or(&[][..], Node::items);
    for (number, node) in patterns.iter().enumerate() {
        // An empty one is reported by the schema.
        let Some(pattern) = node.text().filter(|pattern| !pattern.is_empty()) else {
            continue;
        };
        let pattern = pattern.as_bytes();
        let names_something = glob_literals(pattern)
            .iter()
            .any(|b| b.is_ascii_alphanumeric() || !b.is_ascii());
        let message = if !names_something {
            "the pattern has no letter or digit of its own: nearly every key would be deleted".to_owned()
        } else if let Some(index) = index.filter(|index| glob_matches(pattern, index.as_bytes())) {
            format!(
                "the pattern matches `{}`, which counts the sessions (`sessions.index`)",
                shorten(index)
            )
        // What a session is called behind the prefix is not known: none of them may match.
        } else if let Some(owner) = owner.filter(|owner| glob_matches_after(pattern, owner.as_bytes())) {
            format!(
                "the pattern can match keys of living sessions, which begin with `{}` (`sessions.owner-prefix`)",
                shorten(owner)
            )
        } else {
            continue;
        };
        found.add(
            ProblemKind::BadValue,
            node.at,
            &path.join("disposable-patterns").join(&number.to_string()),
            message,
            Some("begin it with what only entries of the cache begin with, for example `cache:*`".to_owned()),
        );
    }
}
