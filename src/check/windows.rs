//! Maintenance windows: when nobody is told.
//!
//! A window is given by the clock on the wall. Where that clock skips the beginning (an hour in spring), the window
//! begins when the clock goes on; where it shows the beginning twice (in autumn), the first time counts. A window that
//! is given by its length lasts that long, whatever the clock does meanwhile.

use std::time::Duration;

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use crate::runbook::Maintenance;

/// No window by its length is longer than this.
const LONGEST_DAYS: i64 = 32;

/// The end of the window that `now` is in, if it is in one; the latest of several.
#[must_use]
pub fn until(windows: &[Maintenance], now: Timestamp) -> Option<Timestamp> {
    windows.iter().filter_map(|w| one(w, now)).max()
}

fn one(window: &Maintenance, now: Timestamp) -> Option<Timestamp> {
    match window {
        Maintenance::Once(once) => {
            let zone = once.time_zone.zone();
            let from = zone.to_timestamp(once.from.civil()).ok()?;
            let to = zone.to_timestamp(once.to.civil()).ok()?;
            (from <= now && now < to).then_some(to)
        }
        Maintenance::Daily(daily) => recurring(
            daily.at.time(),
            daily.lasting,
            &daily.time_zone.zone(),
            |_| true,
            now,
        ),
        Maintenance::Weekly(weekly) => recurring(
            weekly.at.time(),
            weekly.lasting,
            &weekly.time_zone.zone(),
            |day| weekly.days.iter().any(|d| d.weekday() == day),
            now,
        ),
    }
}

/// Of all that began and may still last, the latest end.
fn recurring(
    at: Time,
    lasting: Duration,
    zone: &TimeZone,
    on: impl Fn(jiff::civil::Weekday) -> bool,
    now: Timestamp,
) -> Option<Timestamp> {
    let today = zone.to_datetime(now).date();
    let days = i64::try_from(lasting.as_secs() / 86_400)
        .unwrap_or(LONGEST_DAYS)
        .min(LONGEST_DAYS)
        + 1;
    (0..=days)
        .filter_map(|back| today.checked_sub(back.days()).ok())
        .filter(|day| on(day.weekday()))
        .filter_map(|day| {
            let from = zone.to_timestamp(day.to_datetime(at)).ok()?;
            let to = from
                .checked_add(jiff::SignedDuration::try_from(lasting).ok()?)
                .ok()?;
            (from <= now && now < to).then_some(to)
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(yaml: &str) -> Vec<Maintenance> {
        serde_yaml::from_str(yaml).unwrap()
    }

    #[track_caller]
    fn expect(yaml: &str, cases: &[(&str, Option<&str>)]) {
        let windows = windows(yaml);
        for (now, end) in cases {
            let now: Timestamp = now.parse().unwrap();
            let end = end.map(|e| e.parse::<Timestamp>().unwrap());
            assert_eq!(until(&windows, now), end, "{yaml} at {now}");
        }
    }

    #[test]
    fn once() {
        expect(
            "- once: { from: 2026-11-28T22:00, to: 2026-11-29T02:00, time-zone: Europe/Berlin }",
            &[
                ("2026-11-28T20:59:59Z", None),
                ("2026-11-28T21:00:00Z", Some("2026-11-29T01:00:00Z")),
                ("2026-11-29T00:59:59Z", Some("2026-11-29T01:00:00Z")),
                ("2026-11-29T01:00:00Z", None),
            ],
        );
        // The wrong way round is never.
        expect(
            "- once: { from: 2026-11-29T02:00, to: 2026-11-28T22:00 }",
            &[("2026-11-29T00:00:00Z", None)],
        );
    }

    #[test]
    fn weekly_across_midnight_and_the_week() {
        // 29 November 2026 is a Sunday.
        let yaml = "- weekly: { days: [sunday], at: '23:00', for: 3h }";
        expect(
            yaml,
            &[
                ("2026-11-29T22:59:00Z", None),
                ("2026-11-29T23:00:00Z", Some("2026-11-30T02:00:00Z")),
                ("2026-11-30T01:59:00Z", Some("2026-11-30T02:00:00Z")),
                ("2026-11-30T02:00:00Z", None),
                ("2026-11-30T23:30:00Z", None),
            ],
        );
        // Longer than a day.
        expect(
            "- weekly: { days: [friday], at: '18:00', for: 60h }",
            &[
                ("2026-11-30T05:00:00Z", Some("2026-11-30T06:00:00Z")),
                ("2026-11-30T06:00:00Z", None),
            ],
        );
    }

    #[test]
    fn the_clock_on_the_wall_rules_on_both_sides_of_summer() {
        expect(
            "- daily: { at: '03:30', for: 1h, time-zone: Europe/Berlin }",
            &[
                // Winter: UTC+1. Summer: UTC+2.
                ("2026-03-28T02:45:00Z", Some("2026-03-28T03:30:00Z")),
                ("2026-03-29T02:45:00Z", None),
                ("2026-03-29T01:45:00Z", Some("2026-03-29T02:30:00Z")),
                ("2026-10-25T02:45:00Z", Some("2026-10-25T03:30:00Z")),
            ],
        );
    }

    #[test]
    fn a_beginning_that_the_clock_skips_or_shows_twice() {
        // In Berlin, 29 March 2026 has no 02:30; the clock goes from 02:00 to 03:00 at 01:00 UTC.
        expect(
            "- daily: { at: '02:30', for: 1h, time-zone: Europe/Berlin }",
            &[
                ("2026-03-29T01:29:00Z", None),
                ("2026-03-29T01:30:00Z", Some("2026-03-29T02:30:00Z")),
                // 25 October 2026 has 02:30 at 00:30 and at 01:30 UTC: once an hour, the first time.
                ("2026-10-25T00:30:00Z", Some("2026-10-25T01:30:00Z")),
                ("2026-10-25T01:30:00Z", None),
            ],
        );
    }

    #[test]
    fn the_latest_end_of_several_counts() {
        expect(
            "- daily: { at: '01:00', for: 1h }\n- daily: { at: '01:30', for: 2h }",
            &[
                ("2026-01-01T01:45:00Z", Some("2026-01-01T03:30:00Z")),
                ("2026-01-01T01:15:00Z", Some("2026-01-01T02:00:00Z")),
            ],
        );
    }
}
