//! What a person reads: the status line of a run, and the message that is sent when something has changed.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;

use super::alerts::{Change, News};
use super::finding::{Finding, Level, subject};
use super::memory::Message;
use crate::event::seconds;
use crate::printable::{self, is_control};

/// Findings in the status line; the others follow on lines of their own.
const IN_ONE_LINE: usize = 4;

/// `DRCTL OK - …`, without the values.
#[must_use]
pub fn status_line(
    deployment: &str,
    overall: Level,
    findings: &[Finding],
    maintenance: Option<Timestamp>,
) -> String {
    let mut bad: Vec<&Finding> = findings.iter().filter(|f| f.level != Level::Ok).collect();
    bad.sort_by_key(|f| std::cmp::Reverse(f.level.rank()));
    let mut text = if bad.is_empty() {
        let count = |kind: &str| findings.iter().filter(|f| f.key.starts_with(kind)).count();
        let backup = findings
            .iter()
            .find(|f| f.key == "backup")
            .map(|f| format!(", backup {}", f.text))
            .unwrap_or_default();
        format!(
            "{} services, {} endpoints, {} file systems{backup}",
            count("service/"),
            count("endpoint/"),
            count("disk/")
        )
    } else {
        let mut told: Vec<String> = bad.iter().take(IN_ONE_LINE).map(|f| f.told()).collect();
        if bad.len() > IN_ONE_LINE {
            told.push(format!("and {} more", bad.len() - IN_ONE_LINE));
        }
        told.join("; ")
    };
    if let Some(end) = maintenance {
        text = format!("{text} (maintenance until {})", minute(end));
    }
    plain(&format!("DRCTL {} - {deployment}: {text}", overall.word()))
}

/// Nothing that a reader of plugins takes for the beginning of values or of another line.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '|' => '/',
            c if is_control(c) => ' ',
            c => c,
        })
        .collect()
}

fn minute(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// The one message of a run that has news; what is wrong and was told before is listed as well, so that the last
/// message is always the whole picture. `next` is what to type when something is wrong.
#[must_use]
pub fn compose(
    deployment: &str,
    overall: Level,
    findings: &[Finding],
    news: &[News],
    next: &str,
    now: Timestamp,
) -> Option<Message> {
    let of = |wanted: fn(&Change) -> bool| news.iter().filter(move |n| wanted(&n.change)).collect::<Vec<_>>();
    let wrong = of(|c| *c == Change::Wrong);
    let still = of(|c| *c == Change::Still);
    let well = of(|c| matches!(c, Change::Well(_)));
    let (kind, first) = match (wrong.first(), still.first(), well.first()) {
        (Some(first), ..) => ("alert", first),
        (None, Some(first), None) => ("reminder", first),
        (None, _, Some(first)) => ("recovery", first),
        (None, None, None) => return None,
    };
    // An event that is told when all is well again.
    let overall = match overall {
        Level::Ok => wrong.iter().fold(overall, |worst, n| worst.or(n.finding.level)),
        known => known,
    };
    let more = match kind {
        "alert" => wrong.len(),
        "reminder" => still.len(),
        _ => well.len(),
    } - 1;
    let and = if more == 0 {
        String::new()
    } else {
        format!(" and {more} more")
    };
    let what = subject(&first.finding.key);
    let subject_line = match kind {
        "recovery" => format!("[{deployment}] {}: {what}{and} well again", overall.word()),
        "reminder" => format!("[{deployment}] still {}: {what}{and}", overall.word()),
        _ => format!("[{deployment}] {}: {what}{and}", overall.word()),
    };
    let mut body = String::new();
    for n in &wrong {
        let _ = writeln!(body, "{} {}", n.finding.level.word(), n.finding.told());
    }
    for n in &still {
        let _ = writeln!(body, "still {} {}", n.finding.level.word(), n.finding.told());
    }
    for n in &well {
        if let Change::Well(after) = n.change {
            let _ = writeln!(body, "well again after {}: {}", roughly(after), n.finding.told());
        }
    }
    let in_news = |f: &&Finding| !news.iter().any(|n| n.finding.key == f.key);
    let known: Vec<&Finding> = findings
        .iter()
        .filter(|f| f.level != Level::Ok)
        .filter(in_news)
        .collect();
    if !known.is_empty() {
        let _ = writeln!(body, "\nStill wrong:");
        for f in known {
            let _ = writeln!(body, "{} {}", f.level.word(), f.told());
        }
    }
    if kind != "recovery" {
        let _ = writeln!(body, "\nNext: {next}");
    }
    Some(Message {
        at: now,
        kind: kind.to_owned(),
        status: overall.word().to_owned(),
        subject: plain(&subject_line),
        // Read in a terminal by some.
        body: printable::text(body.trim_end(), false),
    })
}

fn roughly(d: Duration) -> String {
    seconds(Duration::from_secs(d.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(key: &str, level: Level, text: &str) -> Finding {
        Finding::new(key, level, text)
    }

    #[test]
    fn the_first_line_says_the_worst_first_and_fits_a_plugin() {
        let findings = [
            finding("service/api", Level::Ok, "running"),
            finding("disk//", Level::Warning, "85 % of 10 GiB used"),
            finding("service/redis", Level::Critical, "it does not run | or\nworse"),
            finding("endpoint/health", Level::Unknown, "x"),
        ];
        assert_eq!(
            status_line("shop", Level::Critical, &findings, None),
            "DRCTL CRITICAL - shop: service redis: it does not run / or worse; disk /: 85 % of 10 GiB used; endpoint health: x"
        );
        let end = "2026-11-28T23:00:00Z".parse().unwrap();
        assert_eq!(
            status_line("shop", Level::Ok, &findings[..1], Some(end)),
            "DRCTL OK - shop: 1 services, 0 endpoints, 0 file systems (maintenance until 2026-11-28 23:00 UTC)"
        );
    }

    #[test]
    fn a_message_is_the_whole_picture() {
        let now = Timestamp::UNIX_EPOCH;
        let findings = [
            finding("service/redis", Level::Critical, "it does not run"),
            finding("disk//", Level::Warning, "full"),
        ];
        let news = |change, f: &Finding| News {
            change,
            finding: f.clone(),
        };
        assert_eq!(compose("shop", Level::Ok, &findings, &[], "", now), None);
        let message = compose(
            "shop",
            Level::Critical,
            &findings,
            &[news(Change::Wrong, &findings[0])],
            "drctl diagnose",
            now,
        )
        .unwrap();
        assert_eq!(message.kind, "alert");
        assert_eq!(message.subject, "[shop] CRITICAL: service redis");
        assert_eq!(
            message.body,
            "CRITICAL service redis: it does not run\n\nStill wrong:\nWARNING disk /: full\n\nNext: drctl diagnose"
        );
        let good = finding("service/redis", Level::Ok, "running");
        let well = news(Change::Well(Duration::from_secs(300)), &good);
        let message = compose("shop", Level::Ok, std::slice::from_ref(&good), &[well], "", now).unwrap();
        assert_eq!(message.subject, "[shop] OK: service redis well again");
        assert_eq!(message.body, "well again after 5 min 0 s: service redis: running");
    }
}
