//! One address with its living state, and the set of them that a cluster has at one moment.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use http::uri::Scheme;
use outrigger_config::service::StaticEndpoint;

use crate::tls::Security;
use crate::upstream::balance::ewma::Ewma;
use crate::upstream::balance::maglev::Maglev;
use crate::upstream::balance::shares::Shares;
use crate::upstream::health::Health;
use crate::upstream::limits::Load;

/// One address and its living state. Keyed by cluster and address: two clusters that name the same address keep
/// two, because what one learns of it (its version, its health check) need not hold for the other.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it is.
    pub address: SocketAddr,
    /// Names it in the pools of the workers; never used again for another.
    pub id: u64,
    /// Requests under way.
    pub(super) in_flight: AtomicU32,
    /// Connections open, idle ones included, over all workers.
    pub(super) connections: AtomicU32,
    /// What its failures have taught.
    pub(crate) health: Health,
    /// How long its answers take, where that is asked.
    pub(super) latency: Ewma,
    /// What its whole cluster bears.
    pub(super) load: Arc<Load>,
    /// How it is spoken to; `None`: in plaintext. For the life of the endpoint, so that a connection kept for it is never
    /// one that was made in another way.
    pub(super) security: Option<Arc<Security>>,
}

impl Endpoint {
    fn new(address: SocketAddr, (load, security): &Shared) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Self {
            address,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            in_flight: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            health: Health::new(Instant::now()),
            latency: Ewma::default(),
            load: Arc::clone(load),
            security: security.clone(),
        }
    }

    /// The scheme of the URLs of what it serves (RFC 9110 section 4.2). A sidecar's is that of the application behind it.
    pub(super) fn scheme(&self) -> Scheme {
        let security = self.security.as_ref();
        let outside = security.and_then(|security| security.server_name());
        outside.map_or(Scheme::HTTP, |_| Scheme::HTTPS)
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// What the endpoints of a cluster have in common.
pub(super) type Shared = (Arc<Load>, Option<Arc<Security>>);

/// The endpoints of a cluster at one moment.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// In the order in which they were found.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Why there are none, if there are none.
    pub absence: String,
    /// Whether there would be some, but for those that are this sidecar itself.
    pub(super) loops: bool,
    /// Their weights, unless all are equal.
    pub(super) shares: Option<Shares>,
    /// Where keys lead, if the cluster's balancing asks.
    pub(super) table: Option<Maglev>,
    /// How many are in it only to be noticed when they are well again, because others stand in for them.
    pub(super) awaited: usize,
    /// How many are neither ejected nor failing their check. Renewed whenever one goes or comes.
    well: AtomicUsize,
}

impl EndpointSet {
    /// The set of what was found. An endpoint that is in `previous` too is kept with all it has learnt. `hashed`:
    /// whether keys lead to them, which takes a moment to prepare.
    pub(super) fn new(
        found: impl IntoIterator<Item = StaticEndpoint>,
        previous: &Self,
        shared: &Shared,
        hashed: bool,
        absence: String,
    ) -> Self {
        let (mut endpoints, mut weights): (Vec<Arc<Endpoint>>, Vec<u32>) = (Vec::new(), Vec::new());
        let living = previous.endpoints.iter().map(|known| (known.address, known));
        let living: HashMap<SocketAddr, &Arc<Endpoint>> = living.collect();
        let mut seen = HashSet::new();
        for StaticEndpoint { address, weight } in found {
            if !seen.insert(address) {
                continue;
            }
            let known = living.get(&address).copied();
            endpoints.push(known.map_or_else(|| Arc::new(Endpoint::new(address, shared)), Arc::clone));
            weights.push(weight);
        }
        let table = hashed.then(|| {
            let addresses = endpoints.iter().map(|endpoint| endpoint.address);
            let weighted: Vec<_> = addresses.zip(weights.iter().copied()).collect();
            Maglev::new(&weighted)
        });
        let uneven = weights.windows(2).any(|pair| pair[0] != pair[1]);
        let set = Self {
            endpoints,
            absence,
            loops: false,
            shares: uneven.then(|| Shares::new(weights)),
            table: table.flatten(),
            awaited: 0,
            well: AtomicUsize::new(0),
        };
        set.recount();
        set
    }

    /// So many are in it only to be noticed when they are well again: that they are ill is no panic.
    pub(super) fn await_some(&mut self, awaited: usize) {
        self.awaited = awaited;
    }

    /// Counts anew how many take part, and says whether that began or ended a panic.
    pub(super) fn recount(&self) -> bool {
        let before = self.is_panicking();
        let well = self
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.health.is_in())
            .count();
        self.well.store(well, Ordering::Relaxed);
        before != self.is_panicking()
    }

    /// How many take part.
    pub(crate) fn well(&self) -> usize {
        self.well.load(Ordering::Relaxed)
    }

    /// Whether so few take part that all are chosen from: fewer than half, Envoy's threshold. The few would fall
    /// under the load of all, and where so many seem ill it may be what judges them that is.
    pub(crate) fn is_panicking(&self) -> bool {
        self.well() * 2 < self.endpoints.len().saturating_sub(self.awaited)
    }

    /// The weight of an endpoint by its place.
    pub(super) fn weight(&self, place: usize) -> u64 {
        self.shares.as_ref().map_or(1, |shares| shares.of(place))
    }
}
