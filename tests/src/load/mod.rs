//! Load: many keep-alive connections that ask without a pause and count everything that comes back.
//!
//! It is a well-behaved client: it opens a new connection when it is told `Connection: close`, and only then.
//! It never repeats a request: what a user would see as a failure is counted as one.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::background::Background;
use crate::client::{Ask, Connection, Reply};
use crate::wait::eventually;

/// The longest that a request may take before it counts as failed.
const REQUEST_MAX: Duration = Duration::from_secs(10);

/// Latencies kept: some minutes of the fastest load that a test machine makes.
const LATENCIES_MAX: usize = 5_000_000;

/// Failures described in words; the rest is counted.
const DESCRIBED_MAX: usize = 20;

/// What to ask, of whom, how often.
#[derive(Clone, Debug)]
pub struct LoadSpec {
    /// Whom.
    pub address: SocketAddr,
    /// What, in turn.
    pub asks: Vec<Ask>,
    /// How many connections ask at the same time.
    pub connections: usize,
    /// At most so many requests a second, all connections together.
    pub rate: Option<u32>,
    /// At most so many requests in all.
    pub requests: Option<u64>,
    /// Whether a connection that is closed with notice ends its worker: for a program that is being stopped, whose
    /// callers go elsewhere.
    pub until_closed: bool,
}

impl LoadSpec {
    /// GETs of `/` with this host, without a bound.
    pub fn new(address: SocketAddr, host: &str, connections: usize) -> Self {
        Self {
            address,
            asks: vec![Ask::get("/").host(host)],
            connections,
            rate: None,
            requests: None,
            until_closed: false,
        }
    }
}

/// One kind of answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome {
    /// The status.
    pub status: u16,
    /// `x-outrigger-reason`, or empty.
    pub reason: String,
    /// `x-upstream`, or empty.
    pub upstream: String,
}

/// What has come back.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Answers by kind.
    pub answers: BTreeMap<Outcome, u64>,
    /// Everything that is no answer, by what happened.
    pub failures: BTreeMap<String, u64>,
    /// The first failures and answers that are not 2xx, with the time since the start.
    pub described: Vec<String>,
    /// How long each answer took, in microseconds.
    pub latencies: Vec<u32>,
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    _running: Background,
}

#[derive(Debug)]
struct Shared {
    spec: LoadSpec,
    started: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    begun: u64,
    workers: usize,
    report: Report,
}

impl Load {
    /// Starts it.
    pub fn start(spec: LoadSpec) -> Self {
        let background = Background::start("load");
        let stop = watch::Sender::new(false);
        let shared = Arc::new(Shared {
            started: Instant::now(),
            state: Mutex::new(State {
                workers: spec.connections,
                ..State::default()
            }),
            spec,
        });
        for number in 0..shared.spec.connections {
            let (shared, stopped) = (Arc::clone(&shared), stop.subscribe());
            background.spawn(async move {
                worker(&shared, number, stopped).await;
                shared.state().workers -= 1;
            });
        }
        Self {
            shared,
            stop,
            _running: background,
        }
    }

    /// What has come back until now.
    pub fn so_far(&self) -> Report {
        self.shared.state().report.clone()
    }

    /// Waits until so many requests have been answered or have failed.
    pub async fn has_done(&self, count: u64) {
        let what = format!("{count} requests of the load");
        eventually(&what, async || {
            (self.shared.state().report.total() >= count).then_some(())
        })
        .await;
    }

    /// Waits for so many more than there have been.
    pub async fn has_done_more(&self, count: u64) {
        let before = self.shared.state().report.total();
        self.has_done(before + count).await;
    }

    /// Lets it run until its bound, or until every worker was told to go elsewhere.
    pub async fn finish(self) -> Report {
        eventually("the load to end", async || {
            (self.shared.state().workers == 0).then_some(())
        })
        .await;
        self.so_far()
    }

    /// Lets every request under way end, begins no other, and gives the report.
    pub async fn stop(self) -> Report {
        self.stop.send_replace(true);
        self.finish().await
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The number of the next request, if there is to be one.
    fn begin(&self) -> Option<u64> {
        let mut state = self.state();
        if self.spec.requests.is_some_and(|bound| state.begun >= bound) {
            return None;
        }
        state.begun += 1;
        Some(state.begun - 1)
    }

    fn answered(&self, reply: &Reply, took: Duration) {
        let outcome = Outcome {
            status: reply.status(),
            reason: reply.reason().unwrap_or_default().to_owned(),
            upstream: reply.upstream().to_owned(),
        };
        let mut state = self.state();
        if !(200..300).contains(&outcome.status) && state.report.described.len() < DESCRIBED_MAX {
            let line = format!(
                "{:?} after {} ms: {}",
                self.started.elapsed(),
                took.as_millis(),
                reply.text()
            );
            state.report.described.push(line);
        }
        if state.report.latencies.len() < LATENCIES_MAX {
            let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
            state.report.latencies.push(micros);
        }
        *state.report.answers.entry(outcome).or_default() += 1;
    }

    fn failed(&self, what: String) {
        let mut state = self.state();
        if state.report.described.len() < DESCRIBED_MAX {
            let line = format!("{:?}: {what}", self.started.elapsed());
            state.report.described.push(line);
        }
        *state.report.failures.entry(what).or_default() += 1;
    }
}

async fn worker(shared: &Shared, number: usize, mut stopped: watch::Receiver<bool>) {
    let mut pace = shared.spec.rate.map(|rate| {
        let mut pace = tokio::time::interval(Duration::from_secs(1) * shared.spec.connections as u32 / rate);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        pace
    });
    let mut connection: Option<Connection> = None;
    let mut asks = shared.spec.asks.iter().cycle().skip(number);
    while !*stopped.borrow() {
        if let Some(pace) = &mut pace {
            tokio::select! {
                _ = pace.tick() => {}
                _ = stopped.changed() => break,
            }
        }
        let (Some(_), Some(ask)) = (shared.begin(), asks.next()) else {
            return;
        };
        let reused = connection.is_some();
        let mut open = match connection.take() {
            Some(open) => open,
            None => match Connection::open(shared.spec.address).await {
                Ok(open) => open,
                Err(error) => {
                    shared.failed(format!("connect: {error}"));
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            },
        };
        let began = Instant::now();
        match tokio::time::timeout(REQUEST_MAX, open.send(ask)).await {
            Ok(Ok(reply)) if reply.body.cut.is_none() => {
                shared.answered(&reply, began.elapsed());
                let closed_with_notice = reply.head.connection_says("close");
                if closed_with_notice && shared.spec.until_closed {
                    return;
                }
                connection = (!closed_with_notice).then_some(open);
            }
            Ok(Ok(reply)) => {
                shared.failed(format!(
                    "a body cut short: {}",
                    reply.body.cut.unwrap_or_default()
                ));
            }
            Ok(Err(error)) => {
                let which = if reused { "reused" } else { "new" };
                shared.failed(format!("on a {which} connection: {error}"));
            }
            Err(_) => shared.failed(format!("no answer within {} s", REQUEST_MAX.as_secs())),
        }
    }
}

impl Report {
    /// Requests that were answered or failed.
    pub fn total(&self) -> u64 {
        self.answers.values().sum::<u64>() + self.failures.values().sum::<u64>()
    }

    /// Answers with this status.
    pub fn status(&self, status: u16) -> u64 {
        self.count(|outcome| outcome.status == status)
    }

    /// Answers of this upstream.
    pub fn upstream(&self, name: &str) -> u64 {
        self.count(|outcome| outcome.upstream == name)
    }

    /// Everything but a 2xx of an upstream.
    pub fn bad(&self) -> u64 {
        self.total() - self.count(|outcome| (200..300).contains(&outcome.status) && outcome.reason.is_empty())
    }

    /// The share of the answers that this upstream gave, 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "counts of a test are far below 2^52")]
    pub fn share(&self, name: &str) -> f64 {
        self.upstream(name) as f64 / (self.answers.values().sum::<u64>().max(1)) as f64
    }

    /// What came back after `earlier` was taken from the same load.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        fn less<K: Ord + Clone>(now: &BTreeMap<K, u64>, then: &BTreeMap<K, u64>) -> BTreeMap<K, u64> {
            let left = |(key, count): (&K, &u64)| (key.clone(), count - then.get(key).unwrap_or(&0));
            now.iter().map(left).filter(|(_, count)| *count > 0).collect()
        }
        Self {
            answers: less(&self.answers, &earlier.answers),
            failures: less(&self.failures, &earlier.failures),
            described: self.described.clone(),
            latencies: self.latencies[earlier.latencies.len()..].to_vec(),
        }
    }

    /// The latency below which this share of the answers stayed, in milliseconds.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index into a list of a test's latencies"
    )]
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let at = (sorted.len() as f64 * share) as usize;
        f64::from(
            sorted
                .get(at)
                .or_else(|| sorted.last())
                .copied()
                .unwrap_or_default(),
        ) / 1000.0
    }

    /// Ends the test unless every request was answered by an upstream with a 2xx.
    pub fn assert_clean(&self) {
        assert!(self.total() > 0, "the load has done nothing");
        assert_eq!(self.bad(), 0, "{self}");
    }

    fn count(&self, counts: impl Fn(&Outcome) -> bool) -> u64 {
        let counted = self.answers.iter().filter(|(outcome, _)| counts(outcome));
        counted.map(|(_, count)| count).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} requests, p50 {:.1} ms, p99 {:.1} ms",
            self.total(),
            self.quantile(0.5),
            self.quantile(0.99)
        )?;
        for (outcome, count) in &self.answers {
            let Outcome {
                status,
                reason,
                upstream,
            } = outcome;
            writeln!(
                f,
                "  {count:>8} × {status} reason={reason:?} upstream={upstream:?}"
            )?;
        }
        for (failure, count) in &self.failures {
            writeln!(f, "  {count:>8} × FAILED {failure}")?;
        }
        for line in &self.described {
            writeln!(f, "  {line}")?;
        }
        Ok(())
    }
}
