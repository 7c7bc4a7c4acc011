//! Where requests go: clusters, their endpoints, and the choice among them.
//!
//! A [`Cluster`] is a backend of a service as it runs. Its endpoints are an immutable set that discovery swaps; the
//! living numbers (requests under way, failures) stand in each [`Endpoint`] as atomics and survive the swap. Choosing
//! reads no clock and takes no lock. Connections are kept by each worker for itself, in [`pool`]. Whether a failed
//! request is tried again is not decided here.

pub mod balance;
mod dial;
pub mod discovery;
mod gate;
pub mod health;
pub(crate) mod http1;
mod http2;
pub mod outgoing;
pub mod pool;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use outrigger_config::service::{Balance, Discover};

use crate::telemetry::metrics::ClusterMetrics;
use crate::upstream::health::Health;

/// One address and its living state. Keyed by cluster and address: two clusters that name the same address keep
/// two, because what one learns of it (its version, its health check) need not hold for the other.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it is.
    pub address: SocketAddr,
    /// Names it in the pools of the workers; never used again for another.
    pub id: u64,
    /// Requests under way.
    in_flight: AtomicU32,
    /// Connections open, idle ones included, over all workers.
    connections: AtomicU32,
    /// What its failures have taught.
    pub(crate) health: Health,
}

impl Endpoint {
    fn new(address: SocketAddr) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Self {
            address,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            in_flight: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            health: Health::default(),
        }
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// The endpoints of a cluster at one moment.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// In the order in which they were found.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Why there are none, if there are none.
    pub absence: String,
}

impl EndpointSet {
    /// The set of these addresses. An endpoint that is in `previous` too is kept with all it has learnt.
    pub fn new(addresses: impl IntoIterator<Item = SocketAddr>, previous: &Self, absence: String) -> Self {
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
        for address in addresses {
            if endpoints.iter().any(|known| known.address == address) {
                continue;
            }
            let known = previous.endpoints.iter().find(|known| known.address == address);
            endpoints.push(known.map_or_else(|| Arc::new(Endpoint::new(address)), Arc::clone));
        }
        Self { endpoints, absence }
    }
}

/// A backend of a service as it runs.
#[derive(Debug)]
pub struct Cluster {
    /// The service it belongs to.
    pub service: String,
    /// The backend's name.
    pub name: String,
    /// Where its endpoints come from.
    pub discover: Discover,
    pub(crate) balance: Balance,
    /// Whether its endpoints are spoken to in HTTP/2.
    pub(crate) http2: bool,
    pub(crate) cursor: AtomicUsize,
    endpoints: ArcSwap<EndpointSet>,
    /// Its series.
    pub(crate) metrics: Arc<ClusterMetrics>,
}

impl Cluster {
    /// A cluster with the endpoints that its configuration names. Those that must be discovered come later.
    pub fn new(
        service: &str,
        name: &str,
        discover: Discover,
        balance: Balance,
        http2: bool,
        metrics: Arc<ClusterMetrics>,
    ) -> Self {
        let cluster = Self {
            service: service.to_owned(),
            name: name.to_owned(),
            discover,
            balance,
            http2,
            cursor: AtomicUsize::new(0),
            endpoints: ArcSwap::default(),
            metrics,
        };
        let absence = if cluster.discover.dns.is_some() {
            "DNS has not answered yet"
        } else {
            "no address is listed"
        };
        cluster.found(
            cluster.discover.addresses.clone().unwrap_or_default(),
            absence.into(),
        );
        cluster
    }

    /// Discovery found these addresses. There is one writer for a cluster: its discovery.
    pub(crate) fn found(&self, addresses: impl IntoIterator<Item = SocketAddr>, absence: String) {
        let set = EndpointSet::new(addresses, &self.endpoints.load(), absence);
        self.metrics.endpoints(set.endpoints.len());
        self.endpoints.store(Arc::new(set));
    }

    /// Takes over what the same cluster had learnt under an earlier configuration: its endpoints and all they know.
    pub(crate) fn take_over(&self, previous: &Self) {
        let living = previous.endpoints.load();
        if self.discover == previous.discover {
            self.endpoints.store(Arc::clone(&living));
        } else {
            let set = self.endpoints.load();
            let addresses = set.endpoints.iter().map(|endpoint| endpoint.address);
            self.endpoints.store(Arc::new(EndpointSet::new(
                addresses,
                &living,
                set.absence.clone(),
            )));
        }
        self.metrics.endpoints(self.endpoints.load().endpoints.len());
    }

    /// The endpoints at this moment. For a look, not to be kept across a wait.
    pub fn endpoints(&self) -> arc_swap::Guard<Arc<EndpointSet>> {
        self.endpoints.load()
    }

    /// Whether it has an endpoint that is none of these.
    pub(crate) fn has_other_than(&self, tried: &[u64]) -> bool {
        let set = self.endpoints.load();
        set.endpoints.iter().any(|endpoint| !tried.contains(&endpoint.id))
    }

    /// Chooses an endpoint that this request has not tried yet, if there is one, and counts the request on it.
    /// `None`: the cluster has no endpoint at all.
    pub fn pick(&self, tried: &[u64], now: Instant, rng: &mut fastrand::Rng) -> Option<Pick> {
        let set = self.endpoints.load();
        let endpoint = balance::choose(self.balance, &self.cursor, &set.endpoints, tried, now, rng)?;
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(Pick {
            endpoint: Arc::clone(endpoint),
        })
    }
}

/// A chosen endpoint, with the request counted on it until this is dropped.
#[derive(Debug)]
pub struct Pick {
    endpoint: Arc<Endpoint>,
}

impl std::ops::Deref for Pick {
    type Target = Arc<Endpoint>;

    fn deref(&self) -> &Self::Target {
        &self.endpoint
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
