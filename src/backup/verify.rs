//! Whether a set is as it was written and can be read to its end: its digests, its base backup against PostgreSQL's own
//! manifest, a full read of its dumps, and its shape against the set before it.

use std::path::Path;

use serde::Serialize;

use super::catalogue::Set;
use super::logical::own_user;
use super::manifest::{FileDigest, Manifest, PostgresPart};
use super::{files, shape};
use crate::event::{self, Event, SharedReporter, Verdict};
use crate::runbook::Runbook;
use crate::system::System;
use crate::workload::{HelperOutput, HelperSpec, Meter, Staging, StagingSpec, WorkloadError};

/// The check of what a set shows, not of whether its files are whole.
const SHAPE: &str = "shape";

/// At most so many bad files are named; the rest are counted.
const NAMED: usize = 5;

/// Lists, then reads every byte. `pg_restore --list` alone proves nothing: the table of
/// contents stands at the front, and a truncated dump lists without complaint.
const READ_DUMP: &str = r#"
toc=$(pg_restore --list /backup) || exit 42
printf '%s\n' "$toc" | grep -c -E '^[0-9]+; [0-9]+ [0-9]+ TABLE DATA '
pg_restore --file=/dev/null /backup || exit 43
"#;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Check {
    /// What.
    pub what: String,
    /// Whether it held.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verification {
    /// The set.
    pub label: String,
    /// Everything that was looked at.
    pub checks: Vec<Check>,
}

impl Verification {
    /// Fail when anything failed; could not verify when anything could not be looked at.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict_of(|_| true)
    }

    /// The same of the files alone, which is what is written down. A set whose shrinking was
    /// accepted is good by the operator's word, and one from before the runbook named a table
    /// still restores: neither may be lost to a recovery.
    #[must_use]
    pub fn of_files(&self) -> Verdict {
        self.verdict_of(|c| c.what != SHAPE)
    }

    fn verdict_of(&self, counts: impl Fn(&Check) -> bool) -> Verdict {
        let any = |v| self.checks.iter().any(|c| counts(c) && c.verdict == v);
        if any(Verdict::Fail) {
            Verdict::Fail
        } else if any(Verdict::CouldNotVerify) || !any(Verdict::Pass) {
            Verdict::CouldNotVerify
        } else {
            Verdict::Pass
        }
    }
}

/// Verifies one set. Without an engine (`Err` with the reason) the digests and the shape are
/// still checked, and the rest is reported as not verified.
pub async fn verify(
    runbook: &Runbook,
    engine: Result<&System, &str>,
    set: &Set,
    previous: Option<&Manifest>,
    reporter: &SharedReporter,
) -> Verification {
    let mut checks = Vec::new();
    let mut add = |check: Check| {
        reporter.event(&Event::Checked {
            what: check.what.clone(),
            verdict: check.verdict,
            found: check.found.clone(),
        });
        checks.push(check);
    };
    let (path, listed) = (set.path.clone(), set.manifest.files.clone());
    let digests = tokio::task::spawn_blocking(move || digests(&path, &listed)).await;
    add(digests.unwrap_or_else(|e| could_not("digests", &e.to_string())));
    for (service, part) in &set.manifest.postgres {
        for (database, dump) in &part.logical {
            let what = format!("dump of {database}, read to its end");
            add(match engine {
                Err(why) => could_not(&what, why),
                Ok(system) => {
                    let argv = ["sh", "-c", READ_DUMP];
                    let spec = helper(system, set, part, "verify-dump", &argv);
                    let output = run(system, service, spec, &set.path.join(&dump.path)).await;
                    judge_dump(&what, output, dump.tables)
                }
            });
        }
        if let Some(base) = &part.physical {
            let what = format!("base backup of {service}, against its own manifest");
            add(match engine {
                Err(why) => could_not(&what, why),
                Ok(system) => {
                    let argv = ["pg_verifybackup", "--quiet", "/backup"];
                    let spec = helper(system, set, part, "verify-base", &argv);
                    let output = run(system, service, spec, &set.path.join(&base.path)).await;
                    judge_base(&what, output, base.bytes)
                }
            });
        }
    }
    let problems = shape::problems(&set.manifest, previous, runbook);
    add(match (problems.is_empty(), previous) {
        (true, Some(p)) => check(SHAPE, Verdict::Pass, format!("not smaller than {}", p.label)),
        (true, None) => check(
            SHAPE,
            Verdict::Pass,
            "there is no older set to compare with".into(),
        ),
        (false, _) => check(SHAPE, Verdict::Fail, problems.join("; ")),
    });
    Verification {
        label: set.label.to_string(),
        checks,
    }
}

fn check(what: &str, verdict: Verdict, found: String) -> Check {
    Check {
        what: what.to_owned(),
        verdict,
        found,
    }
}

fn could_not(what: &str, why: &str) -> Check {
    check(what, Verdict::CouldNotVerify, why.to_owned())
}

fn digests(root: &Path, listed: &[FileDigest]) -> Check {
    let mut bad = Vec::new();
    let mut bytes = 0;
    for expected in listed {
        // The manifest is data: it must not lead out of the set.
        let path = Path::new(&expected.path);
        if path.is_absolute() || path.components().any(|c| c == std::path::Component::ParentDir) {
            bad.push(format!("{} leads out of the set", expected.path));
            continue;
        }
        match files::digest(root, path) {
            Ok(found) if &found == expected => bytes += found.bytes,
            Ok(found) if found.bytes != expected.bytes => bad.push(format!(
                "{} has {} bytes instead of {}",
                expected.path, found.bytes, expected.bytes
            )),
            Ok(_) => bad.push(format!("{} has another content", expected.path)),
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                return could_not("digests", &format!("{}: {e}", expected.path));
            }
            Err(e) => bad.push(format!("{}: {e}", expected.path)),
        }
    }
    if listed.is_empty() {
        return check("digests", Verdict::Fail, "the manifest lists no file".into());
    }
    if bad.is_empty() {
        return check(
            "digests",
            Verdict::Pass,
            format!("{} files, {}", listed.len(), event::bytes(bytes)),
        );
    }
    let more = bad.len().saturating_sub(NAMED);
    bad.truncate(NAMED);
    if more > 0 {
        bad.push(format!("and {more} more"));
    }
    check("digests", Verdict::Fail, bad.join("; "))
}

fn helper(system: &System, set: &Set, part: &PostgresPart, purpose: &str, argv: &[&str]) -> HelperSpec {
    let mut spec = HelperSpec::new(
        system.deployment(),
        &set.label.to_string(),
        purpose,
        &part.image_id,
        argv,
    );
    spec.user = Some(own_user());
    spec
}

/// With the image that made the set, else with the one that the service has now.
async fn run(
    system: &System,
    service: &str,
    mut spec: HelperSpec,
    directory: &Path,
) -> Result<HelperOutput, WorkloadError> {
    match attempt(system, spec.clone(), directory).await {
        Err(WorkloadError::NotFound { .. }) => {
            spec.image = system.container(service).await?.image_id;
            attempt(system, spec, directory).await
        }
        other => other,
    }
}

async fn attempt(
    system: &System,
    mut spec: HelperSpec,
    directory: &Path,
) -> Result<HelperOutput, WorkloadError> {
    let deadline = system.runbook.deadlines.step;
    let purpose = spec.purpose.clone();
    let (run, image) = (spec.run.clone(), spec.image.clone());
    let wanted = StagingSpec {
        deployment: system.deployment(),
        run: &run,
        purpose: &purpose,
        image: &image,
    };
    let sent = Meter::default();
    let staging = Staging::filled(&system.docker, wanted, directory, 1, deadline, &sent).await?;
    spec.mounts.push(staging.mount("/backup", true));
    let output = system.docker.run_helper(&spec, deadline).await?;
    staging.close().await?;
    Ok(output)
}

fn judge_dump(what: &str, output: Result<HelperOutput, WorkloadError>, tables: u64) -> Check {
    match output {
        Err(e) => could_not(what, &e.to_string()),
        Ok(o) if [125, 126, 127].contains(&o.exit_code) => could_not(what, &o.last_words()),
        Ok(o) if o.exit_code != 0 => check(what, Verdict::Fail, o.last_words()),
        Ok(o) => match o.stdout.trim().parse::<u64>() {
            Ok(found) if found == tables => check(what, Verdict::Pass, format!("{tables} tables")),
            Ok(found) => check(what, Verdict::Fail, format!("{found} tables instead of {tables}")),
            Err(_) => could_not(what, "pg_restore --list gave no count"),
        },
    }
}

fn judge_base(what: &str, output: Result<HelperOutput, WorkloadError>, bytes: u64) -> Check {
    match output {
        Err(e) => could_not(what, &e.to_string()),
        Ok(o) if [125, 126, 127].contains(&o.exit_code) => could_not(what, &o.last_words()),
        Ok(o) if o.exit_code != 0 => check(what, Verdict::Fail, o.last_words()),
        Ok(_) => check(what, Verdict::Pass, event::bytes(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use Verdict::{CouldNotVerify, Fail, Pass};

    use super::*;

    #[test]
    fn what_is_written_down_is_about_the_files() {
        let verdicts = |files: Verdict, shape: Verdict| {
            let found = Verification {
                label: "20261120T020000Z".into(),
                checks: vec![
                    check("digests", files, String::new()),
                    check(SHAPE, shape, String::new()),
                ],
            };
            (found.verdict(), found.of_files())
        };
        assert_eq!(verdicts(Pass, Pass), (Pass, Pass));
        // A table that the runbook has named since does not make an old set useless.
        assert_eq!(verdicts(Pass, Fail), (Fail, Pass));
        assert_eq!(verdicts(Fail, Pass), (Fail, Fail));
        assert_eq!(verdicts(CouldNotVerify, Pass), (CouldNotVerify, CouldNotVerify));
        assert_eq!(verdicts(CouldNotVerify, Fail), (Fail, CouldNotVerify));
    }
}
