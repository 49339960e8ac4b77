//! What every command says about itself, and the exit codes that need no server.

use std::fmt::Write as _;
use std::process::{Command, Output, Stdio};

use clap::CommandFactory;
use drctl::cli::Cli;

/// A `drctl` that finds nothing of the machine it runs on.
pub fn drctl(home: &std::path::Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_drctl"))
        .args(args)
        .current_dir(home)
        .env_clear()
        .env("HOME", home)
        .env("XDG_CONFIG_HOME", home)
        .env("XDG_STATE_HOME", home)
        .env("DOCKER_HOST", format!("unix://{}/no-engine.sock", home.display()))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Words of every command and subcommand, `drctl` itself first and without words.
fn commands() -> Vec<Vec<String>> {
    fn below(command: &clap::Command, path: &[String], all: &mut Vec<Vec<String>>) {
        all.push(path.to_vec());
        for sub in command.get_subcommands() {
            below(sub, &[path, &[sub.get_name().to_owned()]].concat(), all);
        }
    }
    let mut all = Vec::new();
    below(&Cli::command(), &[], &mut all);
    all
}

#[test]
fn the_command_tree_is_sound() {
    Cli::command().debug_assert();
}

/// After a change on purpose: `INSTA_UPDATE=always cargo test --test cli help`, and read the difference.
#[test]
fn help() {
    let home = tempfile::tempdir().unwrap();
    let mut all = String::new();
    for path in commands() {
        let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
        args.push("--help");
        let out = drctl(home.path(), &args);
        assert_eq!(out.status.code(), Some(0), "{args:?}");
        assert!(
            out.stderr.is_empty(),
            "{args:?}: help is data, it goes to standard output"
        );
        let text = String::from_utf8(out.stdout).unwrap();
        // The same lines under every command are compared once, with drctl itself.
        let own = match text.split_once("\nOptions of every command:\n") {
            Some((own, rest)) if !path.is_empty() => {
                let after: Vec<&str> = rest
                    .split("\n\n")
                    .skip_while(|part| part.starts_with(' '))
                    .collect();
                format!("{own}\n(Options of every command)\n\n{}", after.join("\n\n"))
            }
            _ => text,
        };
        let own: Vec<&str> = own.lines().map(str::trim_end).collect();
        writeln!(
            all,
            "=== drctl {}\n{}\n",
            args.join(" "),
            own.join("\n").trim_end()
        )
        .unwrap();
    }
    insta::assert_snapshot!("help", all);
}

/// Every option and argument says what it is for.
#[test]
fn nothing_is_without_help() {
    fn look(command: &clap::Command, path: &str) {
        for argument in command.get_arguments() {
            assert!(
                argument.get_help().is_some(),
                "{path}: {} has no help",
                argument.get_id()
            );
        }
        for sub in command.get_subcommands() {
            assert!(sub.get_about().is_some(), "{path} {} has no help", sub.get_name());
            look(sub, &format!("{path} {}", sub.get_name()));
        }
    }
    let mut root = Cli::command();
    root.build();
    look(&root, "drctl");
}

#[test]
fn completions_name_every_verb() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let out = drctl(home.path(), &["completions", shell]);
        assert_eq!(out.status.code(), Some(0), "{shell}");
        let script = String::from_utf8(out.stdout).unwrap();
        for verb in Cli::command().get_subcommands() {
            assert!(
                script.contains(verb.get_name()),
                "{shell} lacks {}",
                verb.get_name()
            );
        }
    }
}

#[test]
fn every_command_has_a_page() {
    let home = tempfile::tempdir().unwrap();
    let out = drctl(home.path(), &["man"]);
    assert_eq!(out.status.code(), Some(0));
    assert!(String::from_utf8(out.stdout).unwrap().contains(".TH drctl 1"));

    let pages = home.path().join("pages");
    let directory = pages.to_str().unwrap();
    let out = drctl(home.path(), &["--dry-run", "man", directory]);
    assert_eq!(out.status.code(), Some(0));
    assert!(!pages.exists(), "a dry run writes nothing");

    let out = drctl(home.path(), &["man", directory]);
    assert_eq!(out.status.code(), Some(0));
    for path in commands() {
        let name = [&["drctl".to_owned()], &path[..]].concat().join("-");
        let page = std::fs::read_to_string(pages.join(format!("{name}.1"))).unwrap();
        assert!(page.contains(".SH NAME"), "{name}");
    }
}

/// A named runbook is the only one, and the error says what has named it.
#[test]
fn a_missing_runbook_is_blamed_on_who_named_it() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("drctl.yaml"), "version: 1\n").unwrap();
    for (flag, variable, named_by) in [
        (
            None,
            "missing.yaml",
            "missing.yaml ($DRCTL_RUNBOOK): does not exist",
        ),
        (
            Some("gone.yaml"),
            "missing.yaml",
            "gone.yaml (--runbook): does not exist",
        ),
        // An empty variable is none.
        (None, "", "drctl.yaml:1:1"),
    ] {
        let out = Command::new(env!("CARGO_BIN_EXE_drctl"))
            .args(["backup", "list"])
            .args(flag.map(|path| ["--runbook", path]).into_iter().flatten())
            .current_dir(home.path())
            .env_clear()
            .env("HOME", home.path())
            .env("DRCTL_RUNBOOK", variable)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(3), "{stderr}");
        assert!(stderr.contains(named_by), "{named_by} is not in\n{stderr}");
    }
}

/// The exit codes that can be had without an engine, each with words on standard error.
#[test]
fn exit_codes() {
    let home = tempfile::tempdir().unwrap();
    let bad = home.path().join("bad.yaml");
    std::fs::write(&bad, "version: 1\n").unwrap();
    let bad = bad.to_str().unwrap();
    let good = concat!(env!("CARGO_MANIFEST_DIR"), "/runbooks/simgen.yaml");
    let cases: &[(&[&str], i32)] = &[
        (&["--version"], 0),
        (&["runbook", "schema"], 0),
        (&["runbook", "validate", good], 0),
        (&["incident", "list"], 0),
        (&["drill", "list"], 0),
        (&[], 2),
        (&["no-such-verb"], 2),
        (&["recover"], 2),
        (&["--no-such-option", "backup"], 2),
        (&["-r", good, "incident", "show", "20000101"], 2),
        (&["backup", "list"], 3),
        (&["-r", "no-such-file.yaml", "backup"], 3),
        (&["runbook", "validate", bad], 3),
        (&["-r", good, "backup"], 7),
        (&["-r", good, "recover", "db-corruption"], 7),
        (&["-r", good, "drill", "inject", "db-corruption/heap-page"], 7),
    ];
    for (args, code) in cases {
        let out = drctl(home.path(), args);
        let (stdout, stderr) = (
            String::from_utf8_lossy(&out.stdout).into_owned(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        );
        assert_eq!(out.status.code(), Some(*code), "{args:?}\n{stdout}\n{stderr}");
        if *code != 0 {
            assert!(
                stdout.is_empty(),
                "{args:?}: standard output is for data\n{stdout}"
            );
            assert!(!stderr.is_empty(), "{args:?}");
        }
        if *code > 2 {
            assert!(
                stderr.contains("Not touched:") || *code == 3,
                "{args:?}\n{stderr}"
            );
        }
    }
}
