//! How much a cluster may be sent at once, all workers together: counters with a bound, one addition each.
//!
//! The counters outlive a push, since what they count does; the bounds are set when a snapshot begins to serve.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use outrigger_config::mesh::LimitPolicy;

use crate::error::{Failure, Reason};
use crate::telemetry::metrics::{ClusterMetrics, Limit};
use crate::upstream::Endpoint;

/// What the endpoints of a cluster bear at the moment, and the most that they may.
#[derive(Debug)]
pub(crate) struct Load {
    name: String,
    requests: Counter,
    connections: Counter,
    pending: Counter,
    metrics: Arc<ClusterMetrics>,
}

#[derive(Debug)]
struct Counter {
    now: AtomicU32,
    max: AtomicU32,
}

impl Counter {
    fn new(max: u32) -> Self {
        Self {
            now: AtomicU32::new(0),
            max: AtomicU32::new(max),
        }
    }

    /// Counts one more; `false`, and nothing counted, if that is one too many.
    fn add(&self) -> bool {
        let room = self.now.fetch_add(1, Ordering::Relaxed) < self.max.load(Ordering::Relaxed);
        if !room {
            self.sub();
        }
        room
    }

    fn sub(&self) {
        self.now.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Load {
    pub(super) fn new(name: String, limits: LimitPolicy, metrics: Arc<ClusterMetrics>) -> Arc<Self> {
        Arc::new(Self {
            name,
            requests: Counter::new(limits.requests),
            connections: Counter::new(limits.connections),
            pending: Counter::new(limits.pending),
            metrics,
        })
    }

    /// These limits hold from now on. What is over them already may end in peace.
    pub(super) fn enforce(&self, limits: LimitPolicy) {
        for (counter, max) in [
            (&self.requests, limits.requests),
            (&self.connections, limits.connections),
            (&self.pending, limits.pending),
        ] {
            counter.max.store(max, Ordering::Relaxed);
        }
    }

    /// Requests, connections and waiting requests at the moment.
    pub(super) fn now(&self) -> [u32; 3] {
        [&self.requests, &self.connections, &self.pending].map(|counter| counter.now.load(Ordering::Relaxed))
    }

    /// Whether one request more would leave less than half of what may be sent at once to those that count. `alone`:
    /// a connection carries one request at a time, so that the bound on connections is one on requests too.
    pub(super) fn is_half_full(&self, alone: bool) -> bool {
        let full =
            |counter: &Counter, now: u32| now.saturating_add(1) > counter.max.load(Ordering::Relaxed) / 2;
        let [requests, _, pending] = self.now();
        full(&self.requests, requests)
            || alone && full(&self.connections, requests)
            || full(&self.pending, pending)
    }

    /// One more request.
    pub(super) fn request(&self) -> Result<(), Failure> {
        if self.requests.add() {
            return Ok(());
        }
        Err(self.refused(Limit::Requests, &self.requests))
    }

    /// A request is over.
    pub(super) fn request_over(&self) {
        self.requests.sub();
    }

    #[cold]
    fn refused(&self, limit: Limit, counter: &Counter) -> Failure {
        self.metrics.limited(limit);
        let detail = format!(
            "{} is at its limit of {} {}",
            self.name,
            counter.max.load(Ordering::Relaxed),
            limit.word()
        );
        Failure::new(Reason::Overloaded, detail)
    }
}

/// A connection counted on its endpoint and its cluster while it lives.
#[derive(Debug)]
pub(crate) struct Counted(Arc<Endpoint>);

impl Counted {
    pub(super) fn new(endpoint: &Arc<Endpoint>) -> Result<Self, Failure> {
        let load = &endpoint.load;
        if !load.connections.add() {
            // An endpoint without any is not made to suffer for what others hold.
            if endpoint.connections.load(Ordering::Relaxed) > 0 {
                return Err(load.refused(Limit::Connections, &load.connections));
            }
            load.connections.now.fetch_add(1, Ordering::Relaxed);
        }
        endpoint.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Self(Arc::clone(endpoint)))
    }

    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.load.connections.sub();
    }
}

/// A request that waits for a connection to be made.
#[derive(Debug)]
pub(crate) struct Waiting(Arc<Load>);

impl Waiting {
    pub(crate) fn begin(endpoint: &Endpoint) -> Result<Self, Failure> {
        let load = &endpoint.load;
        if load.pending.add() {
            return Ok(Self(Arc::clone(load)));
        }
        Err(load.refused(Limit::Pending, &load.pending))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.pending.sub();
    }
}
