//! What was said, as it runs: immutable, resolved, nothing left to look up by string but the host.
//!
//! [`compile`] makes a [`Snapshot`] out of a configuration; [`Snapshots`] holds the one that serves. A request takes
//! a [`Lease`] on it and sees that one from its first byte to its last. Making one does no I/O; what must be begun
//! for it (discovery) is begun by `apply`.

pub(crate) mod access;
pub(crate) mod actions;
mod addresses;
pub mod compile;
mod gateways;
mod lookup;
pub mod routes;
#[cfg(test)]
mod tests;
pub(crate) mod traffic;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::request::Parts;
use outrigger_config::names::Range;
use outrigger_config::{Document, Problem};
use serde::Serialize;
use tokio::sync::watch;

use crate::error::{Failure, Reason};
use crate::snapshot::access::{Access, Opens, Source};
use crate::snapshot::addresses::Addresses;
use crate::snapshot::routes::{HostTable, Route, VirtualHost};
use crate::telemetry::metrics::RouteMetrics;
use crate::tls::revoked::Denied;
use crate::tls::{Identities, Peer};
use crate::upstream::Cluster;

/// Where a configuration came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// No configuration has come yet.
    Nothing,
    /// The control API.
    Control,
    /// A watched file or folder.
    File,
    /// The last good configuration on disk, because the control API could not be reached.
    Disk,
}

impl Origin {
    /// The word for it in metrics and `/config`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Control => "control",
            Self::File => "file",
            Self::Disk => "disk",
        }
    }
}

/// The last configuration that was refused, for operators.
#[derive(Clone, Debug, Serialize)]
pub struct Refused {
    /// Its version.
    pub version: String,
    /// Why.
    pub problems: Vec<Problem>,
}

/// Through which door a request came. It says which table is asked; nothing later asks which it was.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// From another sidecar, for the application beside this one.
    Inbound,
    /// From the application, for the service that its host names.
    Outbound,
    /// From the application, for this service whatever its host.
    Local(Arc<str>),
    /// From the application, to the virtual address of this service: for the service that its host names, and for this one
    /// where it names none of the mesh.
    Virtual(Arc<str>),
    /// From outside of the mesh, for the hosts of this gateway.
    Gateway(Arc<str>),
}

impl Entry {
    /// Whether its callers are the application beside this sidecar.
    pub(crate) fn is_of_the_application(&self) -> bool {
        matches!(self, Self::Outbound | Self::Local(_) | Self::Virtual(_))
    }
}

/// What a sidecar is, whatever its configuration.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The service that it stands beside, if it stands beside one.
    pub service: Option<String>,
    /// Its own doors.
    pub listeners: Vec<(Entry, SocketAddr)>,
    /// What services have virtual addresses from.
    pub range: Option<Range>,
    /// Its identity.
    pub identities: Arc<Identities>,
}

impl Standing {
    /// The doors by which a request would come round again if a cluster led there. `to_app`: the cluster is the
    /// application beside the sidecar; any other may lead to the inbound door, as when a service calls itself.
    fn doors(&self, to_app: bool) -> Vec<SocketAddr> {
        let leads_round = |entry: &Entry| to_app || *entry != Entry::Inbound;
        let doors = self.listeners.iter().filter(|(entry, _)| leads_round(entry));
        doors.map(|(_, address)| *address).collect()
    }
}

/// A configuration as it runs.
#[derive(Debug)]
pub struct Snapshot {
    /// The version of what was said.
    pub version: String,
    /// Where it came from.
    pub origin: Origin,
    /// What was said.
    pub documents: Vec<Document>,
    /// Every cluster that a route may choose.
    pub clusters: Vec<Arc<Cluster>>,
    pub(crate) virtual_hosts: Vec<VirtualHost>,
    hosts: HostTable,
    services: HashMap<String, usize>,
    /// Empty without a range.
    addresses: Addresses,
    gateways: HashMap<String, HostTable>,
    inbound: Option<usize>,
    /// What the mesh has revoked.
    pub(crate) denied: Arc<Denied>,
    /// The series of requests that found no service, by listener.
    unmatched_inbound: Arc<RouteMetrics>,
    unmatched_outbound: Arc<RouteMetrics>,
}

impl Snapshot {
    /// Whether requests for the application beside the sidecar have somewhere to go.
    pub(crate) fn has_inbound(&self) -> bool {
        self.inbound.is_some()
    }

    /// The service of a listener whose connections are handed on as they are, if it is one.
    pub(crate) fn raw(&self, entry: &Entry) -> Option<usize> {
        let place = match entry {
            Entry::Inbound => self.inbound,
            Entry::Local(service) | Entry::Virtual(service) => self.services.get(&**service).copied(),
            Entry::Outbound | Entry::Gateway(_) => None,
        };
        place.filter(|place| self.virtual_hosts[*place].raw)
    }

    /// Whether a name of DNS, in lower case and without the root's dot, is of the mesh, and the virtual address of its
    /// service. The hosts of a service are its names, and so is what its file calls it, where that is no other's host.
    pub(crate) fn named(&self, name: &str) -> Option<Named> {
        let place = self
            .hosts
            .named(name)
            .or_else(|| self.services.get(name).copied())?;
        let service = &self.virtual_hosts[place].unrouted.labels().service;
        Some(match self.addresses.of(service) {
            Some(address) => Named::Virtual(address),
            None if self.addresses.without.contains(service) => Named::WithoutAddress,
            None => Named::Mesh,
        })
    }

    /// The service whose virtual address this is.
    pub(crate) fn service_at(&self, address: Ipv4Addr) -> Option<Arc<str>> {
        self.addresses.at(address)
    }

    /// The services for which the range had no address left.
    pub(crate) fn without_address(&self) -> &[String] {
        &self.addresses.without
    }

    /// Whether requests by this listener may be for a service that keeps the case of names.
    pub(crate) fn keeps_case(&self, entry: &Entry) -> bool {
        let place = match entry {
            Entry::Inbound => self.inbound,
            Entry::Local(service) => self.services.get(&**service).copied(),
            Entry::Outbound | Entry::Virtual(_) | Entry::Gateway(_) => {
                return self.virtual_hosts.iter().any(|host| host.keeps_case);
            }
        };
        place.is_some_and(|place| self.virtual_hosts[place].keeps_case)
    }

    /// Who may ask for what by a listener, where anything is said of it.
    pub(crate) fn access(&self, entry: &Entry) -> Option<&Access> {
        let place = self.inbound.filter(|_| *entry == Entry::Inbound)?;
        self.virtual_hosts[place].access.as_deref()
    }

    /// Whether this is the service of the application beside this sidecar.
    pub(crate) fn is_own(&self, virtual_host: usize) -> bool {
        self.inbound == Some(virtual_host)
    }

    /// What a connection to a listener is to speak.
    pub(crate) fn opens(&self, entry: &Entry) -> Opens {
        let raw = self.raw(entry).is_some();
        self.access(entry)
            .map_or(Opens::Plaintext, |access| access.opens(raw))
    }

    /// The trust domain of the mesh, where it is said and matters to a listener.
    pub(crate) fn trust_domain(&self, entry: &Entry) -> Option<String> {
        self.access(entry)?.trust_domain().map(str::to_owned)
    }

    /// Who has come to a listener.
    pub(crate) fn source(&self, entry: &Entry, address: SocketAddr, peer: Option<Peer>) -> Source {
        match self.access(entry) {
            Some(access) => access.source(address, peer),
            None if matches!(entry, Entry::Gateway(_)) => Source::of_edge(address, false),
            None => Source::of_address(address),
        }
    }

    /// The series of a request until its service is known.
    pub(crate) fn unmatched(&self, entry: &Entry) -> &Arc<RouteMetrics> {
        match entry {
            Entry::Inbound => &self.unmatched_inbound,
            Entry::Outbound | Entry::Local(_) | Entry::Virtual(_) | Entry::Gateway(_) => {
                &self.unmatched_outbound
            }
        }
    }

    /// The service that a request is for.
    pub(crate) fn virtual_host(&self, entry: &Entry, host: &str) -> Result<usize, Failure> {
        if self.origin == Origin::Nothing {
            return Err(Failure::new(
                Reason::NotReady,
                "no configuration has been applied yet",
            ));
        }
        let (found, detail): (_, fn(&str) -> String) = match entry {
            Entry::Outbound => (self.hosts.find(host), |host| {
                format!("no service has the host `{host}`")
            }),
            // A `Host` that no service has is the application's own spelling of a name that led here.
            Entry::Virtual(service) => (
                self.hosts
                    .find(host)
                    .or_else(|| self.services.get(&**service).copied()),
                |host| {
                    format!("no service has the host `{host}`, and the one whose address was asked is gone")
                },
            ),
            Entry::Local(service) => {
                let found = self.services.get(&**service).copied();
                return found.ok_or_else(|| {
                    Failure::new(
                        Reason::NoService,
                        format!("there is no service `{service}`, for which this port stands"),
                    )
                });
            }
            Entry::Gateway(name) => {
                let table = self.gateways.get(&**name);
                return table.and_then(|table| table.find(host)).ok_or_else(|| {
                    let detail = match table {
                        Some(_) => format!("the gateway `{name}` has no host `{host}`"),
                        None => format!("there is no gateway `{name}`, for which this port stands"),
                    };
                    Failure::new(Reason::NoService, detail)
                });
            }
            Entry::Inbound => (self.inbound, |_| {
                "the service of this sidecar's node is not configured, or says no `app`".into()
            }),
        };
        found.ok_or_else(|| Failure::new(Reason::NoService, detail(host)))
    }
}

/// What DNS is answered about a name of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// It is one; services have no addresses of their own.
    Mesh,
    /// Its service has this one.
    Virtual(Ipv4Addr),
    /// Its service should have one, and none was left.
    WithoutAddress,
}

/// The place of the snapshot that serves. One writer: `apply`.
#[derive(Debug)]
pub struct Snapshots {
    current: Arc<ArcSwap<Snapshot>>,
    /// Wakes what lasts longer than a request.
    changes: watch::Sender<()>,
}

impl Snapshots {
    /// Begins with this one.
    pub fn new(first: Snapshot) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(first)),
            changes: watch::Sender::new(()),
        }
    }

    /// The one that serves.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Puts another in its place and gives back the old one.
    pub(crate) fn swap(&self, next: Arc<Snapshot>) -> Arc<Snapshot> {
        let old = self.current.swap(next);
        self.changes.send_replace(());
        old
    }

    /// Word of each swap.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// A reader for one thread.
    pub(crate) fn reader(&self) -> Reader {
        let cache = arc_swap::Cache::new(Arc::clone(&self.current));
        let lease = Lease(Rc::new(self.load()));
        Reader { cache, lease }
    }
}

/// One thread's view of what serves. Looking costs one load; the shared count is touched only when it changed.
#[derive(Debug)]
pub(crate) struct Reader {
    cache: arc_swap::Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    lease: Lease,
}

impl Reader {
    /// A lease on what serves now.
    pub(crate) fn lease(&mut self) -> Lease {
        let current = self.cache.load();
        if !Arc::ptr_eq(current, &self.lease.0) {
            self.lease = Lease(Rc::new(Arc::clone(current)));
        }
        self.lease.clone()
    }
}

/// A request's hold on its snapshot: counted by this thread alone.
#[derive(Clone, Debug)]
#[expect(
    clippy::redundant_allocation,
    reason = "the outer count is this thread's own, the inner one is everyone's"
)]
pub(crate) struct Lease(Rc<Arc<Snapshot>>);

impl std::ops::Deref for Lease {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.0
    }
}

/// The route that a request takes, for as long as the request lasts.
#[derive(Debug)]
pub(crate) struct Matched {
    lease: Lease,
    virtual_host: usize,
    route: usize,
}

impl Matched {
    /// The one route of a service that speaks TCP.
    pub(crate) fn of_raw(lease: &Lease, virtual_host: usize) -> Option<Self> {
        let has_one = !lease.virtual_hosts[virtual_host].routes.is_empty();
        has_one.then(|| Self {
            lease: lease.clone(),
            virtual_host,
            route: 0,
        })
    }

    /// Finds the route for a request whose host is known.
    pub(crate) fn find(lease: &Lease, virtual_host: usize, head: &Parts) -> Option<Self> {
        let route = lease.virtual_hosts[virtual_host].route(head)?;
        Some(Self {
            lease: lease.clone(),
            virtual_host,
            route,
        })
    }
}

impl std::ops::Deref for Matched {
    type Target = Route;

    fn deref(&self) -> &Route {
        &self.lease.virtual_hosts[self.virtual_host].routes[self.route]
    }
}
