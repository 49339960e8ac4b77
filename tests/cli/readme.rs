//! The README says what is so.

use std::collections::BTreeMap;

use clap::{CommandFactory, Parser};
use drctl::cli::Cli;
use drctl::error::Kind;

const README: &str = include_str!("../../README.md");

/// All of them; the match in [`every`] fails to compile when there is a new one.
const KINDS: [Kind; 14] = [
    Kind::Internal,
    Kind::Usage,
    Kind::Runbook,
    Kind::Refused,
    Kind::Declined,
    Kind::Locked,
    Kind::Unreachable,
    Kind::FailedUndone,
    Kind::FailedChanged,
    Kind::VerifyFailed,
    Kind::BackupDamaged,
    Kind::CouldNotVerify,
    Kind::Interrupted,
    Kind::Terminated,
];

fn every(kind: Kind) -> u8 {
    match kind {
        Kind::Internal
        | Kind::Usage
        | Kind::Runbook
        | Kind::Refused
        | Kind::Declined
        | Kind::Locked
        | Kind::Unreachable
        | Kind::FailedUndone
        | Kind::FailedChanged
        | Kind::VerifyFailed
        | Kind::BackupDamaged
        | Kind::CouldNotVerify
        | Kind::Interrupted
        | Kind::Terminated => kind.exit_code(),
    }
}

fn section(title: &str) -> &'static str {
    let start = README
        .find(&format!("\n## {title}\n"))
        .unwrap_or_else(|| panic!("the README has no section {title}"));
    let text = &README[start + 1..];
    &text[..text.find("\n## ").unwrap_or(text.len())]
}

/// The table's rows by exit code: the word of the JSON form stands in the second column.
#[test]
fn the_exit_codes_are_those_of_the_program() {
    let rows: BTreeMap<u8, &str> = section("Exit codes")
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            Some((cells.next()?.trim().parse().ok()?, cells.next()?.trim()))
        })
        .collect();
    let mut expected: BTreeMap<u8, String> = KINDS
        .iter()
        .map(|k| (every(*k), format!("`{}`", k.name())))
        .collect();
    expected.insert(0, "`pass`".into());
    let found: BTreeMap<u8, String> = rows
        .into_iter()
        .map(|(code, name)| (code, name.to_owned()))
        .collect();
    assert_eq!(found, expected);

    let help = Cli::command()
        .get_after_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    for code in expected.keys() {
        assert!(
            help.split(|c: char| !c.is_ascii_digit())
                .any(|word| word == code.to_string()),
            "`drctl --help` does not name exit code {code}"
        );
    }
}

/// Every line of a shell block that begins with `drctl` is a command line that drctl understands.
#[test]
fn the_commands_are_understood() {
    let mut count = 0;
    let mut shell = false;
    for (number, line) in README.lines().enumerate() {
        if line.starts_with("```") {
            shell = line == "```sh";
            continue;
        }
        let Some(rest) = line.strip_prefix("drctl ").filter(|_| shell) else {
            continue;
        };
        count += 1;
        let command = rest.split(" #").next().unwrap().split(" | ").next().unwrap();
        let command = command.split(" > ").next().unwrap();
        let words = std::iter::once("drctl").chain(command.split_whitespace());
        if let Err(e) = Cli::try_parse_from(words) {
            panic!("README.md:{}: {line}\n{e}", number + 1);
        }
    }
    assert!(
        count > 20,
        "only {count} commands were found: has the form of the blocks changed?"
    );
}

/// Scenario, remedy and fault names in backticks exist.
#[test]
fn the_faults_are_those_of_the_catalogue() {
    let known: Vec<&str> = drctl::faults::catalogue().map(|f| f.name).collect();
    for part in README.split('`').skip(1).step_by(2) {
        if part.starts_with("db-corruption/") {
            assert!(known.contains(&part), "there is no fault {part}");
        }
    }
}

#[test]
fn the_small_runbook_is_valid() {
    let start = README.find("```yaml\n").unwrap() + "```yaml\n".len();
    let text = &README[start..];
    let text = &text[..text.find("```").unwrap()];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("drctl.yaml");
    std::fs::write(&path, text).unwrap();
    drctl::runbook::load(&path).unwrap_or_else(|problems| panic!("{problems}"));
}
