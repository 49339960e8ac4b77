//! A recovery that is killed after its records, then resumed or undone: it ends old or new, and nothing of it is left.

use std::time::Duration;

use crate::crash::{expect_ok, kinds, newest};
use crate::stack::{Stack, run};

/// What is killed, and how its two ends are told apart.
pub struct Sweep<'a> {
    /// The stack, with the fault in it.
    pub stack: &'a Stack,
    /// `recover …`.
    pub recover: &'a [&'a str],
    /// `old`, as the fault left it, or `new`; an error for anything between.
    pub end: fn(&Stack) -> Result<&'static str, String>,
    /// What drctl keeps beside the data, one name per line.
    pub kept: fn(&Stack) -> String,
}

impl Sweep<'_> {
    /// Lets it run to its end once, then kills it after every step that has begun, and at its end; after every record with
    /// `DRCTL_FULL_SWEEP=1`. Gives what went wrong.
    pub fn run(&self) -> Vec<String> {
        let records = match self.whole() {
            Ok(records) => records,
            Err(why) => return vec![why],
        };
        let full = std::env::var("DRCTL_FULL_SWEEP").as_deref() == Ok("1");
        let mut failures = Vec::new();
        let chosen: Vec<(usize, &String)> = records
            .iter()
            .enumerate()
            .filter(|(_, kind)| full || kind.starts_with("step-started") || *kind == "verified")
            .collect();
        for (n, (i, kind)) in chosen.into_iter().enumerate() {
            let resume = n % 2 == 0;
            match self.killed(i + 1, resume) {
                Ok(seen) => eprintln!(
                    "{:>3} {kind:<18} {:<7} {seen}",
                    i + 1,
                    if resume { "resume" } else { "undo" }
                ),
                Err(why) => {
                    eprintln!("{:>3} {kind:<18} FAILED: {why}", i + 1);
                    failures.push(format!("{kind}: {why}"));
                    // The next one needs the fault back, and no incident half-way.
                    let (id, _) = newest(self.stack);
                    self.stack.agreed(&["incident", "undo", &id]);
                    self.stack.agreed(&["incident", "close", &id]);
                }
            }
        }
        failures
    }

    /// A run to the end and back, which tells the records that there are.
    fn whole(&self) -> Result<Vec<String>, String> {
        expect_ok("recover", &self.stack.agreed(self.recover))?;
        let (id, directory) = newest(self.stack);
        let records = kinds(&directory);
        self.is("new", "the recovery")?;
        expect_ok("undo", &self.stack.agreed(&["incident", "undo", &id]))?;
        self.is("old", "the undo")?;
        expect_ok("close", &self.stack.agreed(&["incident", "close", &id]))?;
        Ok(records)
    }

    fn is(&self, expected: &'static str, after: &str) -> Result<&'static str, String> {
        match (self.end)(self.stack)? {
            seen if seen == expected => Ok(seen),
            seen => Err(format!("after {after} it is {seen}")),
        }
    }

    /// Killed after record `n`, then finished in one of the two ways, and gone back to the fault.
    fn killed(&self, n: usize, resume: bool) -> Result<&'static str, String> {
        let stack = self.stack;
        let mut args = self.recover.to_vec();
        args.extend(["--yes", "--confirm", &stack.name, "--json"]);
        let mut command = stack.command(&args);
        command.env("DRCTL_CRASH_AFTER_RECORD", n.to_string());
        let out = run(&mut command, None, Duration::from_secs(120));
        if let Some(code) = out.code {
            return Err(format!(
                "not killed, exit code {code}: {}{}",
                out.stdout, out.stderr
            ));
        }
        let left = stack.running_leftovers(Duration::from_secs(5));
        if !left.is_empty() {
            return Err(format!("five seconds after the kill these are left: {left}"));
        }
        let (id, _) = newest(stack);
        let (verb, expected) = if resume {
            ("resume", "new")
        } else {
            ("undo", "old")
        };
        expect_ok(verb, &stack.agreed(&["incident", verb, &id]))?;
        let seen = self.is(expected, verb)?;
        if resume {
            expect_ok("undo", &stack.agreed(&["incident", "undo", &id]))?;
            self.is("old", "the undo")?;
        }
        expect_ok("close", &stack.agreed(&["incident", "close", &id]))?;
        let left = (self.kept)(stack);
        let ours: Vec<&str> = left.lines().filter(|l| !l.starts_with("fault-")).collect();
        if !ours.is_empty() {
            return Err(format!("closed, and left: {ours:?}"));
        }
        Ok(seen)
    }
}
