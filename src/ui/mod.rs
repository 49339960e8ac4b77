//! Everything that is printed. Standard output is data, standard error is talk.

pub mod check;
pub mod diagnosis;
pub mod preview;
pub mod prompt;
pub mod report;
pub mod status;
mod terminal;

use std::process::ExitCode;
use std::sync::Arc;

use console::style;

use crate::cli::Color;
use crate::error::{Error, Kind};
use crate::event::{EVENT_VERSION, Event, Reporter, SharedReporter};
use crate::printable;

/// One JSON object per event on standard output.
#[derive(Debug)]
pub struct JsonLines;

impl Reporter for JsonLines {
    fn event(&self, event: &Event) {
        let Ok(mut value) = serde_json::to_value(event) else {
            return;
        };
        if let Some(object) = value.as_object_mut() {
            object.insert("version".into(), EVENT_VERSION.into());
            object.insert("at".into(), jiff::Timestamp::now().to_string().into());
        }
        json(&value);
    }
}

/// The reporter for people: plain lines, and bars where the terminal can show them.
#[must_use]
pub fn terminal(quiet: bool, verbose: u8, bars: bool) -> SharedReporter {
    Arc::new(terminal::Terminal::new(quiet, verbose, bars))
}

/// Applies `--color`, `NO_COLOR` and `TERM=dumb`.
pub fn set_color(color: Color) {
    let on = match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
                || std::env::var_os("TERM").is_some_and(|t| t == "dumb");
            if !plain {
                return;
            }
            false
        }
    };
    console::set_colors_enabled(on);
    console::set_colors_enabled_stderr(on);
}

/// A reader that went away (`drctl … | head`) must not end a recovery half-way: what
/// cannot be printed is dropped.
fn write(mut to: impl std::io::Write, text: &str) {
    let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
}

/// Everything for people passes here or [`on_stderr`], last of all: no text of a log or a server reaches the terminal as
/// a command to it. JSON has escapes of its own, and readers that want the text as it was.
fn on_stdout(text: &str) {
    write(
        std::io::stdout(),
        &printable::text(text, console::colors_enabled()),
    );
}

fn on_stderr(text: &str) {
    write(
        std::io::stderr(),
        &printable::text(text, console::colors_enabled_stderr()),
    );
}

/// Prints data on standard output.
pub fn data(text: &str) {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    on_stdout(&format!("{text}{end}"));
}

/// Prints one result line on standard output.
pub fn line(text: &str) {
    on_stdout(&format!("{text}\n"));
}

/// Prints a JSON value as one line on standard output.
pub fn json(value: &serde_json::Value) {
    write(std::io::stdout(), &format!("{value}\n"));
}

/// Prints a line of talk on standard error.
pub fn talk(text: &str) {
    on_stderr(&format!("{text}\n"));
}

/// Prints the boundary error, once, and gives its exit code.
#[must_use]
pub fn error(e: &Error, as_json: bool) -> ExitCode {
    if as_json {
        json(&serde_json::json!({
            "event": "error", "version": EVENT_VERSION, "at": jiff::Timestamp::now().to_string(),
            "kind": e.kind.name(), "exit-code": e.kind.exit_code(), "message": e.message,
            "causes": e.causes, "not-touched": e.untouched, "next": e.next,
        }));
    } else {
        let word = if e.kind == Kind::Refused {
            "refused:"
        } else {
            "error:"
        };
        talk(&format!(
            "{} {}",
            style(word).red().bold().for_stderr(),
            e.message
        ));
        for (i, cause) in e.causes.iter().enumerate() {
            talk(&format!("  {}. {cause}", i + 1));
        }
        if let Some(text) = &e.untouched {
            talk(&format!("{} {text}", style("Not touched:").bold().for_stderr()));
        }
        for text in &e.next {
            talk(&format!("{} {text}", style("Next:").bold().for_stderr()));
        }
    }
    ExitCode::from(e.kind.exit_code())
}

/// Says where a bug has struck; what it ends is said by whoever was waiting for it.
pub fn panicked(info: &std::panic::PanicHookInfo<'_>) {
    talk(&format!("drctl {}: {info}", env!("CARGO_PKG_VERSION")));
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        talk(&backtrace.to_string());
    }
}

/// An error before there is anything to work with.
#[must_use]
pub fn fatal(text: &str) -> ExitCode {
    talk(&format!("error: {text}"));
    ExitCode::FAILURE
}
