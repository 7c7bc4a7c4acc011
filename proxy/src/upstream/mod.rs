//! Where requests go: clusters, their endpoints, and the choice among them.
//!
//! A [`Cluster`] is a backend of a service as it runs. Its endpoints are an immutable set that discovery swaps; the
//! living numbers (requests under way, failures) stand in each [`Endpoint`] as atomics and survive the swap. Choosing
//! reads no clock and takes no lock. Connections are kept by each worker for itself, in [`pool`]. Whether a failed
//! request is tried again is not decided here.

mod age;
pub(crate) mod balance;
mod dial;
pub mod discovery;
mod endpoint;
pub mod health;
pub(crate) mod http1;
mod http2;
pub(crate) mod limits;
pub mod outgoing;
pub mod pool;
pub mod report;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::request::Parts;
use outrigger_config::discover::Source;
use outrigger_config::mesh::EndpointPolicy;
use outrigger_config::names::Range;
use outrigger_config::service::{Balance, StaticEndpoint};
use outrigger_config::units::Percent;
use tokio::sync::Notify;

use crate::error::{Failure, Reason};
use crate::telemetry::metrics::ClusterMetrics;
use crate::tls::outside::Trust;
use crate::tls::{self, Alpn, Security};
use crate::upstream::balance::{Rule, Wanted};
pub(crate) use crate::upstream::dial::Dialled;
use crate::upstream::discovery::Following;
use crate::upstream::endpoint::Shared;
pub use crate::upstream::endpoint::{Endpoint, EndpointSet};
use crate::upstream::health::ejection::Change;
pub use crate::upstream::health::ejection::Outcome;
use crate::upstream::limits::{Load, Waiting};

/// What a configuration says about a cluster. Two clusters of which the same is said are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    /// The service it belongs to.
    pub service: String,
    /// The backend's name.
    pub name: String,
    /// The name that its endpoints know the service by.
    pub host: String,
    /// Where its endpoints come from.
    pub discover: Vec<Source>,
    /// Whether its endpoints are spoken to in HTTP/2.
    pub http2: bool,
    /// Whether the names in its answers keep their case.
    pub keeps_case: bool,
    /// How they are spoken to, where it is by TLS.
    pub tls: Option<tls::Words>,
    /// This sidecar's own listeners, which would send a request round for ever.
    pub doors: Vec<SocketAddr>,
    /// The virtual addresses of services, which lead to its own listeners too.
    pub range: Option<Range>,
    /// How its endpoints are chosen, checked, left out and spared.
    pub policy: EndpointPolicy,
}

/// A backend of a service as it runs.
#[derive(Debug)]
pub struct Cluster {
    words: Words,
    rule: Rule,
    endpoints: ArcSwap<EndpointSet>,
    shared: Shared,
    /// Told when the endpoints have changed, or the cluster is not served from any more.
    changed: Arc<Notify>,
    /// Whether another stands in its place.
    retired: AtomicBool,
    /// What keeps its endpoints current, where they must be found.
    following: OnceLock<Following>,
    /// Its series.
    pub(crate) metrics: Arc<ClusterMetrics>,
}

impl std::ops::Deref for Cluster {
    type Target = Words;

    fn deref(&self) -> &Words {
        &self.words
    }
}

impl Cluster {
    /// A cluster with the endpoints that its configuration names; those that must be discovered come later. What the
    /// same cluster has learnt under an earlier configuration is taken over: its endpoints and all they know.
    /// `security` is what `words.tls` says.
    pub fn new(
        words: Words,
        security: Option<Arc<Security>>,
        metrics: Arc<ClusterMetrics>,
        previous: Option<&Self>,
    ) -> Self {
        // Another way to speak to them is another endpoint: see `Endpoint::security`.
        let alike = previous.filter(|previous| previous.tls == words.tls);
        let load = previous.map_or_else(
            || {
                let name = format!("{}/{}", words.service, words.name);
                Load::new(name, words.policy.limits, Arc::clone(&metrics))
            },
            |previous| Arc::clone(&previous.shared.0),
        );
        let cluster = Self {
            rule: Rule::new(words.policy.balance.clone(), words.policy.slow_start),
            endpoints: ArcSwap::default(),
            shared: (load, security),
            changed: Arc::default(),
            retired: AtomicBool::new(false),
            following: OnceLock::new(),
            metrics,
            words,
        };
        let listed: Vec<StaticEndpoint> = cluster.discover.iter().flat_map(listed).copied().collect();
        let is_found = cluster
            .discover
            .iter()
            .any(|source| !matches!(source, Source::Listed(_)));
        match alike {
            // Of one that must be found, discovery takes over those that are still found before it serves.
            Some(previous) if is_found || cluster.discover == previous.discover => {
                cluster.take_over(previous);
            }
            _ => {
                let absence = match is_found {
                    true => "DNS has not answered yet",
                    false => "no address is listed",
                };
                let known = alike.map(|previous| previous.endpoints.load_full());
                cluster.found_beside(listed, (&known.unwrap_or_default(), 0), absence.into());
            }
        }
        cluster
    }

    /// Whether this is what is said of it, so that it may go on as it is.
    pub fn is_said_in(&self, words: &Words) -> bool {
        self.words == *words
    }

    /// The roots that are trusted of its endpoints, where they are servers outside of the mesh.
    pub(crate) fn trust(&self) -> Option<&Arc<Trust>> {
        self.shared.1.as_ref()?.trust()
    }

    /// The host that its endpoints know the service by: of servers outside their own.
    pub(crate) fn known_as(&self) -> String {
        let security = self.shared.1.as_ref();
        let name = security.and_then(|security| security.server_name());
        match name.map(str::parse::<Ipv6Addr>) {
            Some(Ok(address)) => format!("[{address}]"),
            _ => name.unwrap_or(&self.host).to_owned(),
        }
    }

    /// Discovery found these; `awaited`: how many of them others stand in for. There is one writer for a cluster: its
    /// discovery.
    pub(crate) fn found(
        &self,
        found: impl IntoIterator<Item = StaticEndpoint>,
        awaited: usize,
        absence: String,
    ) {
        self.found_beside(found, (&self.endpoints.load(), awaited), absence);
        self.changed.notify_one();
    }

    /// Whether a request that went there would come to this sidecar again.
    fn leads_round(&self, address: SocketAddr) -> bool {
        let is_virtual = |range: Range| match address.ip().to_canonical() {
            IpAddr::V4(address) => range.contains(address),
            IpAddr::V6(_) => false,
        };
        self.doors.iter().any(|door| is_behind(*door, address)) || self.range.is_some_and(is_virtual)
    }

    fn found_beside(
        &self,
        found: impl IntoIterator<Item = StaticEndpoint>,
        (known, awaited): (&EndpointSet, usize),
        absence: String,
    ) {
        let (mut loops, mut absence) = (false, absence);
        let found = found.into_iter().filter(|endpoint| {
            let round = self.leads_round(endpoint.address);
            if round {
                loops = true;
                absence = format!("{} is this sidecar's own listener", endpoint.address);
            }
            !round
        });
        let found: Vec<StaticEndpoint> = found.collect();
        if loops {
            let (service, backend) = (&self.service, &self.name);
            tracing::warn!(
                service,
                backend,
                absence,
                "an endpoint is left out: a request would go round for ever"
            );
        }
        let mut set = EndpointSet::new(found, known, &self.shared, self.rule.hashes(), absence);
        set.loops = loops && set.endpoints.is_empty();
        set.await_some(awaited);
        self.serve_from(Arc::new(set));
    }

    /// The endpoints of the same cluster under an earlier configuration, as they are.
    fn take_over(&self, previous: &Self) {
        let living = previous.endpoints.load_full();
        if previous.rule.hashes() == self.rule.hashes() {
            self.serve_from(living);
            return;
        }
        let again = living
            .endpoints
            .iter()
            .enumerate()
            .map(|(place, endpoint)| StaticEndpoint {
                address: endpoint.address,
                weight: u32::try_from(living.weight(place)).unwrap_or(1),
            });
        self.found_beside(again, (&living, living.awaited), living.absence.clone());
    }

    fn serve_from(&self, set: Arc<EndpointSet>) {
        self.metrics.endpoints(set.endpoints.len(), set.well());
        self.endpoints.store(set);
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

    /// Whether a request that could go elsewhere should: it has no endpoint, or none that takes part.
    pub fn is_out(&self) -> bool {
        self.endpoints.load().well() == 0
    }

    /// Whether half of what it may be sent at once is taken, so that the rest is left to requests that somebody waits
    /// for.
    pub(crate) fn is_half_full(&self) -> bool {
        self.shared.0.is_half_full(!self.http2)
    }

    /// What leads a request to its endpoint, if its balancing asks for anything.
    pub fn key(&self, head: &Parts, source: IpAddr) -> Option<u64> {
        self.rule.key(head, source)
    }

    /// Chooses an endpoint, one that this request has not tried yet if there is one, and counts the request on it.
    ///
    /// # Errors
    /// When the cluster has no endpoint at all, or as many requests as it may have.
    pub(crate) fn pick(&self, wanted: &Wanted<'_>, rng: &mut fastrand::Rng) -> Result<Pick, Failure> {
        self.shared.0.request()?;
        let set = self.endpoints.load();
        let Some(endpoint) = self.rule.choose(&set, wanted, rng) else {
            self.shared.0.request_over();
            let detail = format!("{}/{} has no endpoint: {}", self.service, self.name, set.absence);
            let reason = if set.loops {
                Reason::Loop
            } else {
                Reason::NoEndpoint
            };
            return Err(Failure::new(reason, detail));
        };
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(Pick {
            endpoint: Arc::clone(endpoint),
            keeps_case: self.keeps_case,
        })
    }

    /// An attempt at an endpoint ended like this, after so long.
    pub fn settle(&self, endpoint: &Endpoint, outcome: Outcome, took: Duration, now: Instant) {
        self.took(endpoint, outcome, took, now);
        let ejection = self.policy.ejection.as_ref();
        let change = endpoint.health.settle(outcome, (took, now), ejection);
        self.changes(endpoint, change, outcome, now);
    }

    /// The same of an attempt that ended long after its head: a gRPC call. `latency`: the time to the head, unless it is
    /// known by [`Self::speaks`].
    pub(crate) fn settle_late(
        &self,
        endpoint: &Endpoint,
        outcome: Outcome,
        latency: Option<Duration>,
        (began, now): (Instant, Instant),
    ) {
        if let Some(latency) = latency {
            self.took(endpoint, outcome, latency, now);
        }
        // A stream may outlive its cluster, which then no longer knows which endpoints there are and how they stand.
        let outcome = match self.retired.load(Ordering::Relaxed) {
            true => Outcome::Unknown,
            false => outcome,
        };
        let took = now.saturating_duration_since(began);
        let ejection = self.policy.ejection.as_ref();
        let change = endpoint.health.settle(outcome, (took, now), ejection);
        self.changes(endpoint, change, outcome, now);
    }

    /// The answer of an attempt that has not ended goes on after its head, which came after so long at this time.
    pub(crate) fn speaks(&self, endpoint: &Endpoint, took: Duration, at: Instant) {
        self.took(endpoint, Outcome::Success, took, at);
        let change = endpoint.health.speaks(at);
        self.changes(endpoint, change, Outcome::Success, at);
    }

    /// How long an endpoint took, where that is asked.
    fn took(&self, endpoint: &Endpoint, outcome: Outcome, took: Duration, now: Instant) {
        if self.rule.balance == Balance::Ewma {
            match outcome {
                Outcome::Success => endpoint.latency.answered(took, now),
                Outcome::Unknown => {}
                Outcome::ServerError | Outcome::Refused | Outcome::Reset | Outcome::Timeout => {
                    endpoint.latency.failed(took, now);
                }
            }
        }
    }

    /// What the end of an attempt changes.
    fn changes(&self, endpoint: &Endpoint, change: Change, outcome: Outcome, now: Instant) {
        match change {
            Change::Nothing => {}
            Change::HasFailedTooOften => self.eject(endpoint, outcome, now),
            Change::OutAgain => self.goes(endpoint, "ejected again: its probe failed"),
            Change::Back => {
                tracing::info!(
                    service = self.service,
                    backend = self.name,
                    endpoint = %endpoint.address,
                    "an ejected endpoint is back"
                );
                self.recount();
            }
        }
    }

    /// The same for an endpoint of which only the number is at hand, which is so when an attempt failed. One that is
    /// gone meanwhile needs to learn nothing.
    pub fn settle_by_id(&self, id: u64, outcome: Outcome, took: Duration, now: Instant) {
        let set = self.endpoints.load();
        if let Some(endpoint) = set.endpoints.iter().find(|endpoint| endpoint.id == id) {
            self.settle(endpoint, outcome, took, now);
        }
    }

    /// Ejects an endpoint, if not too many are out already.
    fn eject(&self, endpoint: &Endpoint, outcome: Outcome, now: Instant) {
        let Some(policy) = &self.policy.ejection else {
            return;
        };
        let set = self.endpoints.load();
        let out = || {
            let ejected = set
                .endpoints
                .iter()
                .filter(|endpoint| endpoint.health.is_ejected());
            ejected.count()
        };
        let most = may_be_out(set.endpoints.len(), policy.at_most);
        if out() >= most {
            return;
        }
        endpoint.health.put_out(outcome, now, policy);
        if out() > most {
            // Another thread ejected one at the same moment. Its next failure asks again.
            endpoint.health.take_back();
            return;
        }
        self.goes(endpoint, "ejected: it failed too often in a row");
    }

    fn goes(&self, endpoint: &Endpoint, what: &'static str) {
        self.metrics.ejected();
        let why = endpoint.health.news().map(|news| news.what).unwrap_or_default();
        tracing::warn!(
            service = self.service,
            backend = self.name,
            endpoint = %endpoint.address,
            why,
            "{what}"
        );
        self.recount();
    }

    /// An endpoint came or went: says so, and whether it is the one too many.
    fn recount(&self) {
        let set = self.endpoints.load();
        let changed = set.recount();
        if let Some(following) = self.following.get() {
            following.endpoint_changed();
        }
        self.metrics.endpoints(set.endpoints.len(), set.well());
        if !changed {
            return;
        }
        let (service, backend, well, all) = (&self.service, &self.name, set.well(), set.endpoints.len());
        if set.is_panicking() {
            self.metrics.panicked();
            tracing::warn!(
                service,
                backend,
                well,
                all,
                "fewer than half of the endpoints are well: choosing among all"
            );
        } else {
            tracing::info!(
                service,
                backend,
                well,
                all,
                "at least half of the endpoints are well again"
            );
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Who waits for a change finds it gone.
        self.changed.notify_one();
    }
}

/// The endpoints of a source that are written down.
fn listed(source: &Source) -> &[StaticEndpoint] {
    match source {
        Source::Listed(endpoints) => endpoints,
        Source::Addresses { .. } | Source::Services(_) => &[],
    }
}

/// Whether an address is that of a listener: its own, or one of the loopback's if it listens on all.
fn is_behind(door: SocketAddr, address: SocketAddr) -> bool {
    let (ip, at) = (address.ip().to_canonical(), door.ip().to_canonical());
    door.port() == address.port()
        && (at == ip || at.is_unspecified() && (ip.is_loopback() || ip.is_unspecified()))
}

/// How many of so many endpoints may be out: the share, but at least one, and never all.
fn may_be_out(count: usize, at_most: Percent) -> usize {
    (count * usize::from(at_most.0) / 100)
        .max(1)
        .min(count.saturating_sub(1))
}

/// These clusters serve from now on instead of those: called when a push is applied, so that a push that is refused
/// changes nothing.
pub fn succeed(old: &[Arc<Cluster>], new: &[Arc<Cluster>]) {
    let kept: std::collections::HashSet<*const Cluster> = new.iter().map(Arc::as_ptr).collect();
    for cluster in old.iter().filter(|cluster| !kept.contains(&Arc::as_ptr(cluster))) {
        cluster.retired.store(true, Ordering::Relaxed);
        cluster.changed.notify_one();
    }
    for cluster in new {
        cluster.shared.0.enforce(cluster.policy.limits);
        if cluster.policy.health_check.is_none() {
            for endpoint in &cluster.endpoints.load().endpoints {
                endpoint.health.unchecked();
            }
        }
        cluster.recount();
    }
}

/// A chosen endpoint, with the request counted on it until this is dropped.
#[derive(Debug)]
pub struct Pick {
    endpoint: Arc<Endpoint>,
    /// Whether the names in its answers keep their case.
    pub(crate) keeps_case: bool,
}

impl Pick {
    /// A connection of its own to the endpoint, for bytes of which nothing is understood, counted while it lives.
    ///
    /// # Errors
    /// When none can be made in time, or a limit is reached.
    pub(crate) async fn connect(&self) -> Result<Dialled, Failure> {
        let _waiting = Waiting::begin(self)?;
        dial::connect(&self.endpoint, Alpn::Unsaid, None).await
    }
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
        self.endpoint.load.request_over();
    }
}
