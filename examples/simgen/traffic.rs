//! Posts numbered orders through the front door of the `simgen` stack, and keeps a log of what was acknowledged.
//!
//! The log is the truth that a recovery is measured against: a number in it that the database does not have was
//! lost. A number that was sent and not acknowledged may or may not be there; it is never sent again, so that each
//! number stands for exactly one attempt.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

#[derive(Parser)]
#[command(
    name = "simgen-traffic",
    version,
    about = "Posts numbered orders and logs each acknowledged one"
)]
struct Args {
    /// Where the stack answers
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// File to append to, one line per acknowledged order: TRAFFIC_NO ORDER_ID TIME
    #[arg(long)]
    log: PathBuf,
    /// Orders per second, as far as the stack keeps up: one is sent at a time
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// Seconds after which to stop; without it, at SIGTERM or SIGINT
    #[arg(long = "for", value_name = "SECS")]
    seconds: Option<u64>,
    /// First number; each must be new to the database
    #[arg(long, default_value_t = 1)]
    from: i64,
    /// Seconds after which an order without an answer counts as failed
    #[arg(long, default_value_t = 8)]
    timeout: u64,
}

#[derive(Deserialize)]
struct Acknowledged {
    id: i64,
}

/// The longest time in which no order got through, from the sending of the first failed one.
#[derive(Default)]
struct Outages {
    since: Option<Instant>,
    longest: Duration,
}

impl Outages {
    fn failed(&mut self, sent_at: Instant, now: Instant) {
        let since = *self.since.get_or_insert(sent_at);
        self.longest = self.longest.max(now - since);
    }

    fn acked(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.longest = self.longest.max(now - since);
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if !(args.rate.is_finite() && args.rate >= 0.01) {
        bail!("--rate must be a number of at least 0.01");
    }
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&args.log)
        .with_context(|| format!("cannot open the log {}", args.log.display()))?;
    // reqwest is built without a provider of its own.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(args.timeout))
        // A connection that died unseen while idle would make a healthy stack look failed.
        .pool_max_idle_per_host(0)
        .build()?;
    let endpoint = format!("{}/api/v1/orders", args.url.trim_end_matches('/'));

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / args.rate));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = args
        .seconds
        .map(|seconds| tokio::time::Instant::now() + Duration::from_secs(seconds));

    let (mut sent, mut acked) = (0_u64, 0_u64);
    let mut outages = Outages::default();
    let mut was_failing = false;
    for number in args.from.. {
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = until(end) => break,
            _ = ticks.tick() => {}
        }
        sent += 1;
        let sent_at = Instant::now();
        // Not interrupted by a signal: an order whose answer nobody waits for would be one more that is in doubt.
        match post(&client, &endpoint, number).await {
            Ok(id) => {
                record(&mut log, number, id)
                    .with_context(|| format!("cannot write to the log {}", args.log.display()))?;
                acked += 1;
                outages.acked(Instant::now());
                if std::mem::take(&mut was_failing) {
                    talk(&format!("order {number} got through again"));
                }
            }
            Err(error) => {
                outages.failed(sent_at, Instant::now());
                if !std::mem::replace(&mut was_failing, true) {
                    talk(&format!("order {number} failed: {error:#}"));
                }
            }
        }
    }
    writeln!(
        std::io::stdout(),
        "sent={sent} acked={acked} failed={} longest_outage_ms={}",
        sent - acked,
        outages.longest.as_millis()
    )?;
    Ok(())
}

async fn until(end: Option<tokio::time::Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// Posts one order and returns its id.
async fn post(client: &reqwest::Client, endpoint: &str, number: i64) -> anyhow::Result<i64> {
    let body = serde_json::to_vec(&serde_json::json!({ "traffic_no": number, "note": "traffic" }))?;
    let answer = client
        .post(endpoint)
        .header("content-type", "application/json")
        .body(body)
        .send()
        .await?;
    let status = answer.status();
    let body = answer.bytes().await?;
    if status != reqwest::StatusCode::CREATED {
        bail!("{status}: {}", String::from_utf8_lossy(&body).trim());
    }
    let order: Acknowledged =
        serde_json::from_slice(&body).context("the acknowledgement is not understood")?;
    Ok(order.id)
}

/// One write per line, straight to the kernel: killing this program loses no acknowledgement.
fn record(log: &mut File, number: i64, id: i64) -> std::io::Result<()> {
    log.write_all(format!("{number} {id} {}\n", jiff::Timestamp::now()).as_bytes())
}

fn talk(line: &str) {
    // Nobody may be listening; the log and the totals are what counts.
    let _ = writeln!(std::io::stderr(), "{} {line}", jiff::Timestamp::now());
}
