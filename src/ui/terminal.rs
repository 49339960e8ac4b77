//! Events for a person: one plain line each, a bar for long work.

use std::sync::Mutex;
use std::time::Duration;

use console::style;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::event::{Event, Phase, Reporter, Verdict};

/// Renders events on standard error.
#[derive(Debug)]
pub struct Terminal {
    quiet: bool,
    verbose: u8,
    bars: bool,
    bar: Mutex<Option<(String, ProgressBar)>>,
}

impl Terminal {
    /// `bars` only where standard error is a terminal.
    #[must_use]
    pub fn new(quiet: bool, verbose: u8, bars: bool) -> Self {
        Self {
            quiet,
            verbose,
            bars,
            bar: Mutex::new(None),
        }
    }

    fn say(&self, text: &str) {
        self.clear();
        // A second line of another's text must not look like an event of ours.
        super::talk(&text.replace('\n', "\n          "));
    }

    fn clear(&self) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some((_, bar)) = bar.take()
        {
            bar.finish_and_clear();
        }
    }

    fn progress(&self, what: &str, bytes: u64, total: Option<u64>) {
        let Ok(mut slot) = self.bar.lock() else { return };
        if slot.as_ref().is_none_or(|(name, _)| name != what) {
            if let Some((_, old)) = slot.take() {
                old.finish_and_clear();
            }
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10));
            let template = if total.is_some() {
                "  {msg} {bar:24} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left"
            } else {
                "  {spinner} {msg} {bytes}, {bytes_per_sec}"
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("━╸ "));
            }
            bar.set_message(crate::printable::text(what, false));
            bar.enable_steady_tick(Duration::from_millis(200));
            *slot = Some((what.to_owned(), bar));
        }
        if let Some((_, bar)) = slot.as_ref() {
            bar.set_position(bytes);
        }
    }
}

/// What the operator asked for, as opposed to talk: printed on standard output, also with
/// `--quiet`.
fn result(event: &Event) -> Option<String> {
    let width = super::preview::width();
    match event {
        Event::Diagnosis {
            certainty,
            summary,
            reasons,
            look_alike,
        } => Some(super::preview::diagnosis(
            certainty,
            summary,
            reasons,
            look_alike.as_deref(),
            width,
        )),
        Event::Plan { plan } => Some(super::preview::plan(plan, width)),
        Event::Report { report } => serde_json::from_value(report.clone())
            .ok()
            .map(|r| super::report::summary(&r, width)),
        _ => None,
    }
}

impl Reporter for Terminal {
    fn event(&self, event: &Event) {
        if let Event::Progress { what, bytes, total } = event {
            if self.bars && !self.quiet {
                self.progress(what, *bytes, *total);
            }
            return;
        }
        if let Some(text) = result(event) {
            self.clear();
            super::data(&text);
            return;
        }
        if self.quiet
            && !matches!(
                event,
                Event::Warning { .. } | Event::StepFailed { .. } | Event::UndoFailed { .. }
            )
        {
            return;
        }
        match event {
            Event::Phase { phase, subject } => {
                let word = match phase {
                    Phase::Detect => "Looking at",
                    Phase::Decide => "Deciding on",
                    Phase::Restore => "Recovering",
                    Phase::Verify => "Verifying",
                    Phase::Undo => "Undoing",
                    Phase::Backup => "Backing up",
                };
                self.say(&format!("{} {subject}", style(word).bold().for_stderr()));
            }
            Event::Note { text } => {
                if self.verbose > 0 {
                    self.say(&format!("  {text}"));
                }
            }
            Event::Warning { text } => {
                self.say(&format!("  {} {text}", style("warning:").yellow().for_stderr()));
            }
            Event::StepStarted { step, of, title } => {
                self.say(&format!("  [{step}/{of}] {title} …"));
            }
            Event::StepFinished {
                step,
                outcome,
                seconds,
                ..
            } => {
                let took = crate::event::seconds(Duration::try_from_secs_f64(*seconds).unwrap_or_default());
                self.say(&format!(
                    "        {} step {step}: {outcome} ({took})",
                    style("done").green().for_stderr()
                ));
            }
            Event::StepFailed { step, cause, .. } => {
                self.say(&format!(
                    "        {} step {step}: {cause}",
                    style("failed").red().for_stderr()
                ));
            }
            Event::Checked { what, verdict, found } => {
                let mark = match verdict {
                    Verdict::Pass => style("pass").green(),
                    Verdict::Fail => style("FAIL").red(),
                    Verdict::CouldNotVerify => style("could not verify").yellow(),
                    Verdict::NotConfigured => style("not configured").dim(),
                };
                self.say(&format!("  {} {what}: {found}", mark.for_stderr()));
            }
            Event::UndoStarted { step, how, .. } => {
                self.say(&format!("  [undo {step}] {how} …"));
            }
            Event::UndoFinished { step, outcome } => {
                self.say(&format!(
                    "        {} step {step}: {outcome}",
                    style("taken back").green().for_stderr()
                ));
            }
            Event::UndoFailed { step, cause } => {
                self.say(&format!(
                    "        {} step {step}: {cause}",
                    style("not taken back").red().for_stderr()
                ));
            }
            Event::Incident { id, .. } => {
                self.say(&format!("{} {id}", style("Incident").bold().for_stderr()));
            }
            Event::Progress { .. } | Event::Diagnosis { .. } | Event::Plan { .. } | Event::Report { .. } => {}
        }
    }
}
