//! Limits, ways to reach a person and maintenance windows that could not work, told when the runbook is read and not at
//! the first alert.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

use super::super::alerting::LocalDateTime;
use super::super::duration::{format_duration, parse_duration};
use super::super::node::{Entry, Node, Value};
use super::super::problem::{Collector, DocumentPath, ProblemKind};

/// Limits of which less is worse.
const LOWER_IS_WORSE: [&str; 2] = ["disk-full-in", "cache-hit-rate"];

const DAY: Duration = Duration::from_hours(24);

/// The longest window that comes once. What is planned for longer is no maintenance.
const LONGEST_WINDOW: Duration = Duration::from_hours(31 * 24);

pub(super) fn check(root: &Node, found: &mut Collector<'_>) {
    if let Some(thresholds) = root.get("thresholds") {
        critical_is_worse(thresholds, found);
    }
    if let Some(ways) = root.get("notify") {
        for (index, way) in ways.items().iter().enumerate() {
            if let Some(mail) = way.get("email") {
                let path = DocumentPath::new(&["notify"])
                    .join(&index.to_string())
                    .join("email");
                email(mail, &path, found);
            }
        }
    }
    if let Some(windows) = root.get("alerts").and_then(|alerts| alerts.get("maintenance")) {
        for (index, window) in windows.items().iter().enumerate() {
            let path = DocumentPath::new(&["alerts", "maintenance"]).join(&index.to_string());
            if let Some(once) = window.get("once") {
                window_of_time(once, &path.join("once"), found);
            }
            if let Some(daily) = window.get("daily") {
                window_again(daily, 1, DAY, &path.join("daily"), found);
            }
            if let Some(weekly) = window.get("weekly") {
                let days: BTreeSet<&str> = weekly
                    .get("days")
                    .map_or(&[][..], Node::items)
                    .iter()
                    .filter_map(Node::text)
                    .collect();
                window_again(weekly, days.len(), 7 * DAY, &path.join("weekly"), found);
            }
        }
    }
}

/// A critical limit on the mild side of the one that warns would never warn.
fn critical_is_worse(thresholds: &Node, found: &mut Collector<'_>) {
    let amount = |node: &Node| match &node.value {
        Value::Number(number) => number.as_f64(),
        Value::Text(text) => parse_duration(text).ok().map(|d| d.as_secs_f64()),
        _ => None,
    };
    let path = DocumentPath::new(&["thresholds", "critical"]);
    let critical = thresholds.get("critical").map_or(&[][..], Node::entries);
    for Entry { key, node, .. } in critical {
        let Some(warning) = thresholds.get(key).and_then(amount) else {
            continue;
        };
        let falls = LOWER_IS_WORSE.contains(&key.as_str());
        if amount(node).is_some_and(|limit| if falls { limit > warning } else { limit < warning }) {
            let side = if falls { "below" } else { "above" };
            found.add(
                ProblemKind::BadValue,
                node.at,
                &path.join(key),
                "it is milder than the limit that warns",
                Some(format!("write a value {side} that of `thresholds.{key}`")),
            );
        }
    }
}

/// A login that cannot succeed would be noticed at the first alert.
fn email(mail: &Node, path: &DocumentPath, found: &mut Collector<'_>) {
    let path_to = |key: &str| path.join(key);
    if let Some(variable) = mail.get("password").and_then(|p| p.entry("container-env")) {
        found.add(
            ProblemKind::BadValue,
            variable.key_at,
            &path_to("password").join("container-env"),
            "a mail server has no container here whose environment could be read",
            Some("for example `password: { env: SMTP_PASSWORD }`".to_owned()),
        );
    }
    if let (Some(user), None) = (mail.entry("user"), mail.entry("password")) {
        found.add(
            ProblemKind::MissingField,
            user.key_at,
            &path_to("user"),
            "`user` is of no use without `password`",
            Some("add `password: { env: SMTP_PASSWORD }`".to_owned()),
        );
    }
}

/// A window that is over only when the next one begins never ends: nobody would be told of anything.
fn window_again(
    window: &Node,
    times: usize,
    period: Duration,
    path: &DocumentPath,
    found: &mut Collector<'_>,
) {
    let Some((node, lasting)) = window
        .get("for")
        .and_then(|node| Some((node, parse_duration(node.text()?).ok()?)))
    else {
        return;
    };
    let Some(share) = u32::try_from(times)
        .ok()
        .and_then(|times| period.checked_div(times))
    else {
        return;
    };
    if lasting >= share {
        found.add(
            ProblemKind::BadValue,
            node.at,
            &path.join("for"),
            "the window hardly ends before the next one begins: nobody would ever be told",
            Some(format!(
                "less than `{}`",
                format_duration(Duration::from_secs(share.as_secs() / 3600 * 3600))
            )),
        );
    }
}

/// A window that ends before it begins holds nothing back, and one without an end everything.
fn window_of_time(once: &Node, path: &DocumentPath, found: &mut Collector<'_>) {
    let time = |key| LocalDateTime::from_str(once.get(key)?.text()?).ok();
    let (Some(from), Some(to), Some(end)) = (time("from"), time("to"), once.get("to")) else {
        return;
    };
    let (message, suggestion) = if to.civil() <= from.civil() {
        (
            "the window ends before it begins".to_owned(),
            format!("write a time after {}", from.as_str()),
        )
    } else if to.civil().duration_since(from.civil()).unsigned_abs() > LONGEST_WINDOW {
        (
            "the window is longer than 31 days: nobody would be told for all that time".to_owned(),
            format!("write a time within 31 days of {}", from.as_str()),
        )
    } else {
        return;
    };
    found.add(
        ProblemKind::BadValue,
        end.at,
        &path.join("to"),
        message,
        Some(suggestion),
    );
}
