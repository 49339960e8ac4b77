//! The configuration that the next start of a server would read: which lines of it the server
//! refuses, found by having the server's own program read a copy of it, until a copy without
//! those lines is accepted. Nothing is started and nothing is changed.
//!
//! What a file says can be a secret (`primary_conninfo` holds a password), so only lines that
//! are complained of leave this module, and of those that may hold one only the name.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use regex::Regex;

use crate::plan::ConfigLine;
use crate::system::{PostgresServer, System};
use crate::workload::LogLine;

/// Times that a copy is tried: each may reveal one more complaint.
const ROUNDS: usize = 5;

/// One line that is neither empty nor a comment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    file: String,
    number: u32,
    text: String,
}

impl Line {
    /// The setting's name, in lower case; of `pg_hba.conf` its first word.
    fn name(&self) -> String {
        let text = self.text.trim_start();
        let end = text
            .find(|c: char| c == '=' || c.is_whitespace())
            .unwrap_or(text.len());
        text.get(..end).unwrap_or_default().to_lowercase()
    }

    /// The value without quotes and comment.
    fn value(&self) -> &str {
        let text = self.text.trim_start();
        let rest = text
            .find(|c: char| c == '=' || c.is_whitespace())
            .map_or("", |at| &text[at..]);
        let rest = rest.trim_start_matches(|c: char| c == '=' || c.is_whitespace());
        match rest.strip_prefix('\'') {
            Some(quoted) => quoted.rsplit_once('\'').map_or(quoted, |(value, _)| value),
            None => rest.split('#').next().unwrap_or_default().trim(),
        }
    }

    fn is_setting(&self) -> bool {
        self.file != "pg_hba.conf" && self.file != "pg_ident.conf"
    }

    fn broken(&self, why: &str) -> ConfigLine {
        let name = self.name();
        let secret = ["conninfo", "password", "passphrase", "secret", "command"]
            .iter()
            .any(|w| name.contains(w));
        ConfigLine {
            file: self.file.clone(),
            line: self.number,
            begins: if secret && self.is_setting() {
                name
            } else {
                self.text.clone()
            },
            why: why.trim().chars().take(300).collect(),
        }
    }
}

/// What the configuration is found to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    /// The lines, without comments and empty ones.
    lines: Vec<Line>,
    /// Lines that must be set aside for the rest to be accepted.
    pub broken: Vec<ConfigLine>,
    /// What the server still says against the rest; `None` when it accepts it.
    pub refused: Option<String>,
    /// The rules of access, which `postgres -C` does not read.
    pub rules: Rules,
}

/// The file of the rules of access (`pg_hba.conf`). A server does not start without a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// What is wrong with it: it is not there, or holds no rule.
    pub broken: Option<String>,
    /// When it was changed last, by the clock of the engine's host.
    pub changed: Option<Timestamp>,
}

impl Configuration {
    /// The line that a setting's value comes from: the last one, of `postgresql.auto.conf`
    /// before all (PostgreSQL manual, 20.1.2).
    #[must_use]
    pub fn in_force(&self, name: &str, why: &str) -> Option<ConfigLine> {
        self.effective(name).map(|l| l.broken(why))
    }

    /// Whether a setting is there and not empty.
    #[must_use]
    pub fn is_set(&self, name: &str) -> bool {
        self.effective(name).is_some_and(|l| !l.value().is_empty())
    }

    fn effective(&self, name: &str) -> Option<&Line> {
        let of = |auto: bool| {
            self.lines
                .iter()
                .rev()
                .find(move |l| l.is_setting() && (l.file == AUTO) == auto && l.name() == name)
        };
        of(true).or_else(|| of(false))
    }

    /// The lines that a complaint is about.
    fn culprits(&self, said: &str) -> Vec<ConfigLine> {
        let c = &*COMPLAINTS;
        let mut found: Vec<ConfigLine> = Vec::new();
        for words in said.lines() {
            // `… in file "…" line 3`, and of a file of access rules `line 3 of configuration file "…"`.
            let places = c
                .place
                .captures_iter(words)
                .map(|m| (m[1].to_owned(), m[2].to_owned()));
            let rules = c
                .rule
                .captures_iter(words)
                .map(|m| (m[2].to_owned(), m[1].to_owned()));
            for (path, number) in places.chain(rules) {
                let file = path.rsplit('/').next().unwrap_or_default();
                let at = |l: &&Line| l.file == file && Ok(l.number) == number.parse();
                found.extend(self.lines.iter().find(at).map(|l| l.broken(words)));
            }
            for m in c.parameter.captures_iter(words) {
                let name = m[1].to_lowercase();
                found.extend(self.in_force(&name, words));
            }
            for m in c.library.captures_iter(words) {
                let library = m[1]
                    .rsplit('/')
                    .next()
                    .unwrap_or_default()
                    .trim_end_matches(".so");
                let loads = |l: &&Line| {
                    LOADERS.contains(&l.name().as_str()) && !library.is_empty() && l.value().contains(library)
                };
                found.extend(self.lines.iter().filter(loads).map(|l| l.broken(words)));
            }
            if c.memory.is_match(words) {
                // The one that somebody has set by ALTER SYSTEM is the likeliest.
                let set = MEMORY.iter().filter_map(|n| self.effective(n));
                let best = set
                    .clone()
                    .find(|l| l.file == AUTO)
                    .or_else(|| set.clone().next());
                found.extend(best.map(|l| l.broken(words)));
            }
        }
        if found.is_empty() {
            // Two settings that do not go together: those of them that ALTER SYSTEM has set.
            for words in said.lines().filter(|w| w.contains("FATAL:  ")) {
                let named = |l: &&Line| l.file == AUTO && has_word(words, &l.name());
                found.extend(self.lines.iter().filter(named).map(|l| l.broken(words)));
            }
        }
        found
    }

    /// Takes lines as broken that are not yet; tells whether there were any.
    fn set_aside(&mut self, lines: Vec<ConfigLine>) -> bool {
        let before = self.broken.len();
        for line in lines {
            if !self
                .broken
                .iter()
                .any(|b| (&b.file, b.line) == (&line.file, line.line))
            {
                self.broken.push(line);
            }
        }
        // What is set aside no longer counts as in force.
        let broken: BTreeSet<_> = self.broken.iter().map(|b| (b.file.clone(), b.line)).collect();
        self.lines
            .retain(|l| !broken.contains(&(l.file.clone(), l.number)));
        self.broken.len() > before
    }
}

const AUTO: &str = "postgresql.auto.conf";
/// Settings that name libraries which are loaded at the start.
const LOADERS: [&str; 3] = [
    "shared_preload_libraries",
    "session_preload_libraries",
    "local_preload_libraries",
];
/// Settings that the size of the shared memory comes from, the largest share first.
const MEMORY: [&str; 6] = [
    "shared_buffers",
    "huge_pages",
    "max_connections",
    "max_locks_per_transaction",
    "wal_buffers",
    "min_dynamic_shared_memory",
];

struct Complaints {
    place: Regex,
    rule: Regex,
    parameter: Regex,
    library: Regex,
    memory: Regex,
}

#[expect(clippy::expect_used, reason = "constants, compiled by a test")]
static COMPLAINTS: LazyLock<Complaints> = LazyLock::new(|| {
    let compile = |text: &str| Regex::new(text).expect("a constant");
    Complaints {
        place: compile(r#"in file "([^"]+)",? (?:near )?line (\d+)"#),
        rule: compile(r#"line (\d+) of configuration file "([^"]+)""#),
        parameter: compile(
            r#"(?:invalid value for parameter|valid range for parameter|requires a numeric value|parameter) "([A-Za-z_.]+)"(?:: | \(|$| requires| cannot| must)"#,
        ),
        library: compile(r#"could not (?:access file|load library) "([^"]+)""#),
        memory: compile(r"could not (?:map anonymous shared memory|create shared memory segment)"),
    }
});

fn has_word(text: &str, word: &str) -> bool {
    !word.is_empty()
        && text
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'))
            .any(|w| w.eq_ignore_ascii_case(word))
}

/// Prints every line of the configuration that counts, then has the server's program read a
/// copy in which the lines `FILE:NUMBER` of the arguments are comments, with the arguments behind
/// `--` that the server itself gets: what they set, no file changes. Everything that it looks
/// at before that (`checkDataDir` and what follows in `postmaster.c`) is in the copy.
/// `shared_memory_size` (since 15) is worked out only after the libraries are loaded.
const CHECK: &str = r#"
export LC_ALL=C
umask 077
for d in /usr/lib/postgresql/*/bin /usr/local/pgsql/bin; do [ -d "$d" ] && PATH=$PATH:$d; done
cd "$PGDATA" || exit 3
S=$(mktemp -d) || exit 3
mkdir "$S/global"
for f in *.conf PG_VERSION *.crt *.key *.pem; do [ -f "$f" ] && cp "$f" "$S/"; done
[ ! -d conf.d ] || cp -r conf.d "$S/"
cp global/pg_control "$S/global/"
for f in *.conf; do grep -n '^[[:space:]]*[^#[:space:]]' "$f" | sed "s|^|line $f:|"; done
while [ "$1" != -- ]; do
  sed "${1##*:}s/^/#/" "$S/${1%:*}" > "$S/edited" && cat "$S/edited" > "$S/${1%:*}"
  shift
done
shift
# Rules outside the data directory that are not seen from here may be there all the same. When a file was changed
# is its change time: a copy can bring an old modification time along.
rules() {
  hba=$(postgres -D "$S" "$@" -C hba_file 2>/dev/null | tail -n 1)
  case $hba in
  "$S"/*) now=$PGDATA/${hba#"$S"/}; [ -e "$now" ] || { echo "rules missing $now"; return; } ;;
  *) now=$hba; [ -e "$now" ] || return ;;
  esac
  [ -r "$hba" ] || return
  echo "rules changed $(stat -L -c %Z "$now")"
  grep -q '^[[:space:]]*[^#[:space:]]' "$hba" || echo "rules empty $now"
}
said=$(postgres -D "$S" "$@" -C shared_memory_size 2>&1) && { rules "$@"; exit 0; }
case $said in *'unrecognized configuration parameter "shared_memory_size"'*)
  said=$(postgres -D "$S" "$@" -C hba_file 2>&1) && { rules "$@"; exit 0; } ;;
esac
printf '%s\n' "$said" | sed 's/^/refused /'
"#;

/// Reads the configuration and finds what is wrong with it, as the server's own user `user`
/// (`uid:gid`). `log` is what the last run said.
///
/// # Errors
/// Why it could not be looked at.
pub async fn look(
    system: &System,
    server: &PostgresServer,
    user: &str,
    run: &str,
    log: &[LogLine],
    deadline: Duration,
) -> Result<Configuration, String> {
    let mut found = Configuration::default();
    for round in 0..ROUNDS {
        let aside: Vec<String> = found
            .broken
            .iter()
            .map(|b| format!("{}:{}", b.file, b.line))
            .collect();
        let output = check(system, server, user, run, &aside, deadline).await?;
        let (lines, refused) = parse(&output);
        found.lines = lines;
        found.set_aside(Vec::new());
        found.refused = refused;
        found.rules = rules(&output);
        // What only a real start finds stands in the log alone.
        let said = match &found.refused {
            Some(said) => said.clone(),
            None if round == 0 => complaints(log),
            None => break,
        };
        let mut culprits = found.culprits(&said);
        if found.refused.is_none() && found.rules.changed_since(said_at(log)) {
            // The line with that number is another one now.
            culprits.retain(|line| line.file != "pg_hba.conf");
        }
        if !found.set_aside(culprits) {
            break;
        }
    }
    Ok(found)
}

/// Has the server read its configuration without the lines `FILE:NUMBER`. Gives what the helper
/// printed.
///
/// # Errors
/// Why it could not be run.
pub async fn check(
    system: &System,
    server: &PostgresServer,
    user: &str,
    run: &str,
    aside: &[String],
    deadline: Duration,
) -> Result<String, String> {
    let mut argv = vec!["/bin/sh", "-c", CHECK, "check"];
    argv.extend(aside.iter().map(String::as_str));
    argv.push("--");
    argv.extend(settings_of(&server.container.command));
    let mut spec = server.files_helper(system.deployment(), run, "check-settings", true, &argv);
    spec.user = Some(user.to_owned());
    let output = system
        .docker
        .run_helper(&spec, deadline)
        .await
        .map_err(|e| e.to_string())?;
    if output.exit_code == 0 {
        Ok(output.stdout)
    } else {
        Err(output.last_words())
    }
}

/// The `-c NAME=VALUE` and `--NAME=VALUE` of a server's command line. Whatever else stands there
/// (a port, a directory) is not for a copy.
#[must_use]
pub fn settings_of(command: &[String]) -> Vec<&str> {
    let mut found = Vec::new();
    let mut words = command.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let setting = match word {
            "-c" => words.next(),
            _ => word.strip_prefix("-c").or_else(|| word.strip_prefix("--")),
        };
        if let Some(setting) = setting.filter(|s| s.contains('=') && !s.starts_with("data_directory")) {
            found.extend(["-c", setting]);
        }
    }
    found
}

/// What the server says against its configuration in a helper's output, or would say at its
/// start.
#[must_use]
pub fn refusal(output: &str) -> Option<String> {
    parse(output).1.or_else(|| rules(output).broken)
}

impl Rules {
    /// Whether the file is another one than at that time; seconds are all that is known of it.
    #[must_use]
    pub fn changed_since(&self, at: Option<Timestamp>) -> bool {
        matches!((self.changed, at), (Some(changed), Some(at)) if changed > at)
    }
}

/// What a helper's output says of the rules of access.
fn rules(output: &str) -> Rules {
    let of = |key: &str| output.lines().find_map(|l| l.strip_prefix(key)).map(str::trim);
    let missing = of("rules missing ").map(|f| format!("{f} is not there"));
    let empty = of("rules empty ").map(|f| format!("{f} holds no rule"));
    Rules {
        broken: missing.or(empty),
        changed: of("rules changed ").and_then(|at| Timestamp::from_second(at.parse().ok()?).ok()),
    }
}

fn parse(output: &str) -> (Vec<Line>, Option<String>) {
    let lines = output.lines().filter_map(|l| {
        let (file, rest) = l.strip_prefix("line ")?.split_once(':')?;
        let (number, text) = rest.split_once(':')?;
        Some(Line {
            file: file.to_owned(),
            number: number.parse().ok()?,
            text: text.trim().to_owned(),
        })
    });
    let refused: Vec<&str> = output
        .lines()
        .filter_map(|l| l.strip_prefix("refused "))
        .collect();
    (lines.collect(), (!refused.is_empty()).then(|| refused.join("\n")))
}

fn last_fatal(log: &[LogLine]) -> Option<usize> {
    log.iter().rposition(|l| {
        ["FATAL:  ", "PANIC:  "].iter().any(|s| l.text.contains(s)) || l.text.starts_with("postgres: ")
    })
}

/// When the last run complained.
fn said_at(log: &[LogLine]) -> Option<Timestamp> {
    log.get(last_fatal(log)?)?.at
}

/// The lines of a log that are about the configuration: what was said between a severity and
/// the FATAL that it led to, details and contexts too.
fn complaints(log: &[LogLine]) -> String {
    let Some(fatal) = last_fatal(log) else {
        return String::new();
    };
    // The rules of access are complained of one by one before the FATAL; their number is small.
    let from = fatal.saturating_sub(40);
    let until = (fatal + 4).min(log.len());
    log.get(from..until)
        .unwrap_or_default()
        .iter()
        .map(|l| l.text.as_str())
        .filter(|t| !t.contains("STATEMENT:  "))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(lines: &[(&str, u32, &str)]) -> Configuration {
        Configuration {
            lines: lines
                .iter()
                .map(|(file, number, text)| Line {
                    file: (*file).to_owned(),
                    number: *number,
                    text: (*text).to_owned(),
                })
                .collect(),
            ..Configuration::default()
        }
    }

    fn usual() -> Configuration {
        configuration(&[
            ("postgresql.conf", 60, "listen_addresses = '*'"),
            ("postgresql.conf", 64, "port = 5432"),
            ("postgresql.conf", 127, "shared_buffers = 128MB\t\t\t# min 128kB"),
            ("pg_hba.conf", 89, "local   all  all  trust"),
            ("pg_hba.conf", 101, "hosst all all all scram-sha-256"),
            (
                "postgresql.auto.conf",
                3,
                "shared_preload_libraries = 'pg_stat_statements, nolib'",
            ),
            ("postgresql.auto.conf", 4, "wal_level = 'minimal'"),
            ("postgresql.auto.conf", 5, "shared_buffers = '100GB'"),
            ("postgresql.auto.conf", 6, "max_conections = '200'"),
            (
                "postgresql.auto.conf",
                7,
                "primary_conninfo = 'host=a password=hush'",
            ),
            ("postgresql.auto.conf", 8, "work_mem = 'lots'"),
        ])
    }

    #[test]
    fn each_complaint_leads_to_its_line() {
        for (said, expected) in [
            (
                "LOG:  unrecognized configuration parameter \"max_conections\" in file \"/tmp/x/postgresql.auto.conf\" line 6",
                "postgresql.auto.conf:6",
            ),
            (
                "LOG:  syntax error in file \"/d/postgresql.conf\" line 64, near token \"=\"",
                "postgresql.conf:64",
            ),
            (
                "LOG:  invalid value for parameter \"work_mem\": \"lots\"",
                "postgresql.auto.conf:8",
            ),
            (
                "FATAL:  could not access file \"nolib\": No such file or directory",
                "postgresql.auto.conf:3",
            ),
            (
                "FATAL:  could not map anonymous shared memory: Cannot allocate memory",
                "postgresql.auto.conf:5",
            ),
            (
                "CONTEXT:  line 101 of configuration file \"/d/pg_hba.conf\"",
                "pg_hba.conf:101",
            ),
            (
                "FATAL:  WAL streaming (max_wal_senders > 0) requires wal_level \"replica\" or \"logical\"",
                "postgresql.auto.conf:4",
            ),
            (
                "LOG:  0 is outside the valid range for parameter \"port\" (1 .. 65535)",
                "postgresql.conf:64",
            ),
            (
                "FATAL:  could not load server certificate file \"server.crt\": No such file",
                "",
            ),
            ("LOG:  starting PostgreSQL 15.20", ""),
        ] {
            let found: Vec<String> = usual()
                .culprits(said)
                .iter()
                .map(|b| format!("{}:{}", b.file, b.line))
                .collect();
            assert_eq!(found.join(" "), expected, "{said}");
        }
    }

    #[test]
    fn the_last_line_of_a_setting_counts_and_a_secret_stays_in_its_file() {
        let found = usual();
        assert_eq!(found.in_force("shared_buffers", "").unwrap().line, 5);
        assert_eq!(found.in_force("port", "").unwrap().begins, "port = 5432");
        assert!(found.in_force("archive_mode", "").is_none());
        let secret = found.in_force("primary_conninfo", "").unwrap();
        assert_eq!(secret.begins, "primary_conninfo");
        assert!(found.is_set("primary_conninfo") && !found.is_set("restore_command"));
    }

    #[test]
    fn what_the_command_line_sets_counts() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let command = words("postgres -c max_connections=50 --work_mem=4MB -p 5433 -cfsync=on -D /d");
        assert_eq!(
            settings_of(&command),
            ["-c", "max_connections=50", "-c", "work_mem=4MB", "-c", "fsync=on"]
        );
        assert!(settings_of(&words("sh -c start-postgres.sh")).is_empty());
    }

    #[test]
    fn rules_of_access_that_are_gone_or_empty_are_refused() {
        let gone = "rules missing /d/pg_hba.conf\n";
        assert_eq!(refusal(gone).as_deref(), Some("/d/pg_hba.conf is not there"));
        let empty = "rules changed 1795000000\nrules empty /d/pg_hba.conf\n";
        assert_eq!(refusal(empty).as_deref(), Some("/d/pg_hba.conf holds no rule"));
        let sound = rules("line pg_hba.conf:1:local all all peer\nrules changed 1795000000\n");
        assert_eq!(sound.broken, None);
        let at = |second: i64| Timestamp::from_second(second).ok();
        assert!(sound.changed_since(at(1_794_999_999)));
        // In the same second it may have been read as it is.
        assert!(!sound.changed_since(at(1_795_000_000)));
        assert!(!sound.changed_since(None) && !Rules::default().changed_since(at(0)));
    }

    #[test]
    fn what_is_set_aside_is_no_longer_in_force() {
        let mut found = usual();
        let first = found.culprits("FATAL:  could not map anonymous shared memory: Cannot allocate memory");
        assert!(found.set_aside(first.clone()));
        assert!(!found.set_aside(first), "once");
        assert_eq!(
            found.in_force("shared_buffers", "").unwrap().file,
            "postgresql.conf"
        );
    }

    #[test]
    fn a_helper_s_output_and_a_log() {
        let (lines, refused) = parse(
            "line postgresql.conf:64:port = 5432\nline pg_hba.conf:9:host a:b all all md5\nrefused FATAL:  x\nrefused y\n",
        );
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1].text, "host a:b all all md5");
        assert_eq!(refused.as_deref(), Some("FATAL:  x\ny"));
        let line = |text: &str| LogLine {
            at: None,
            text: text.to_owned(),
        };
        let said = complaints(&[
            line("LOG:  invalid connection type \"hosst\""),
            line("CONTEXT:  line 101 of configuration file \"/d/pg_hba.conf\""),
            line("FATAL:  could not load /d/pg_hba.conf"),
            line("LOG:  database system is shut down"),
        ]);
        assert!(
            said.contains("line 101") && said.contains("could not load"),
            "{said}"
        );
        assert_eq!(complaints(&[line("LOG:  ready")]), "");
    }
}
