//! Shoppers: a steady stream of requests for the page of the shop, whatever becomes of them.
//!
//! An open loop: the next request is sent when its time has come, not when the last was answered, so that a slow
//! answer is seen as a slow answer and not as less traffic.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::caller::Caller;

/// Requests under way at once. At the usual rate this is more than a second of no answers at all; what comes then is
/// held back and counted.
const UNDER_WAY_MAX: usize = 256;

/// What became of the shoppers' requests, as they saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Shoppers {
    /// Sent.
    pub(crate) sent: u64,
    /// Answered with a page.
    pub(crate) pages: u64,
    /// Answered with an error.
    pub(crate) errors: u64,
    /// Not answered.
    pub(crate) unanswered: u64,
    /// Not sent, since too many were under way.
    pub(crate) held_back: u64,
}

impl Shoppers {
    /// What they saw, in words.
    pub(crate) fn words(&self) -> String {
        let failed = self.failed();
        let plural = if failed == 1 { "" } else { "s" };
        let mut words = format!("{} pages, {failed} error{plural}", self.pages);
        if self.held_back > 0 {
            let held_back = format!(", {} requests held back for too many under way", self.held_back);
            words.push_str(&held_back);
        }
        words
    }

    /// Requests that got no page.
    pub(crate) fn failed(&self) -> u64 {
        self.errors + self.unanswered
    }
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    pages: AtomicU64,
    errors: AtomicU64,
    unanswered: AtomicU64,
    held_back: AtomicU64,
}

/// The stream.
#[derive(Debug)]
pub(super) struct Traffic {
    counts: Arc<Counts>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Traffic {
    /// Begins to send `rate` requests a second to the entrance.
    pub(super) fn start(entrance: SocketAddr, rate: u32) -> Self {
        let traffic = Self {
            counts: Arc::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let every = Duration::from_secs(1) / rate.max(1);
        let sending = send(
            Arc::new(Caller::new(entrance)),
            every,
            Arc::clone(&traffic.counts),
            traffic.tasks.clone(),
        );
        let stop = traffic.stop.clone();
        traffic.tasks.spawn(async move {
            tokio::select! {
                () = sending => {}
                () = stop.cancelled() => {}
            }
        });
        traffic
    }

    /// Sends no more, and waits for the answers that are due. The wait is bounded by the caller's patience.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// What became of the requests so far.
    pub(super) fn so_far(&self) -> Shoppers {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Shoppers {
            sent: read(&self.counts.sent),
            pages: read(&self.counts.pages),
            errors: read(&self.counts.errors),
            unanswered: read(&self.counts.unanswered),
            held_back: read(&self.counts.held_back),
        }
    }
}

async fn send(shopper: Arc<Caller>, every: Duration, counts: Arc<Counts>, tasks: TaskTracker) {
    let room = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    // Ticks that came late are made up for, so that the rate holds on a busy machine.
    let mut ticks = tokio::time::interval(every);
    loop {
        ticks.tick().await;
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            counts.held_back.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        counts.sent.fetch_add(1, Ordering::Relaxed);
        let (shopper, counts) = (Arc::clone(&shopper), Arc::clone(&counts));
        tasks.spawn(async move {
            let count = match shopper.get("frontend", "/").await {
                Ok((status, _)) if status.is_success() => &counts.pages,
                Ok(_) => &counts.errors,
                Err(error) => {
                    tracing::debug!(%error, "a shopper was not answered");
                    &counts.unanswered
                }
            };
            count.fetch_add(1, Ordering::Relaxed);
            drop(place);
        });
    }
}
