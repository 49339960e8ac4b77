//! The steps of a run, as those who watch it see them.

use std::time::Instant;

use super::Options;
use super::preflight::Surveyed;
use super::run::Run;
use crate::event::Event;

/// Numbers the steps of a run, and times them.
pub struct Steps<'a, 'r> {
    run: &'a Run<'r>,
    of: usize,
    step: usize,
    title: String,
    since: Instant,
}

impl<'a, 'r> Steps<'a, 'r> {
    /// Counts what will be done.
    pub fn new(run: &'a Run<'r>, servers: &[Surveyed], options: Options) -> Self {
        let each = |s: &Surveyed| {
            usize::from(options.physical) + if options.logical { s.databases.len() } else { 0 }
        };
        Self {
            run,
            of: servers.iter().map(each).sum::<usize>() + 1,
            step: 0,
            title: String::new(),
            since: Instant::now(),
        }
    }

    /// A step begins.
    pub fn start(&mut self, title: &str) {
        self.step += 1;
        self.title = title.to_owned();
        self.since = Instant::now();
        if let Ok(mut lock) = self.run.lock.lock() {
            lock.progress(title);
        }
        self.run.tell(&Event::StepStarted {
            step: self.step,
            of: self.of,
            title: self.title.clone(),
        });
    }

    /// The step that began last has ended.
    pub fn finish(&mut self, outcome: &str) {
        self.run.tell(&Event::StepFinished {
            step: self.step,
            title: self.title.clone(),
            outcome: outcome.to_owned(),
            seconds: self.since.elapsed().as_secs_f64(),
        });
    }
}
