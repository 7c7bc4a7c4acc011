//! Where endpoints are found: addresses that are written down, and names that DNS answers.
//!
//! Runs on the control thread, one task for each cluster that needs it, and ends with its cluster. A name is asked
//! again when its records' time is over. An answer that fails or is empty keeps the last good set: an address that
//! worked a moment ago is a better guess than none. The only file that names `hickory_resolver`.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use outrigger_config::service::StaticEndpoint;

use crate::upstream::Cluster;

/// Records are believed for at least this long, however short their TTL: a TTL of 0 must not become a storm of
/// questions.
const REFRESH_MIN: Duration = Duration::from_secs(1);

/// Records are believed for at most this long, however long their TTL: what has moved is found within a minute.
const REFRESH_MAX: Duration = Duration::from_secs(60);

/// A question that failed is asked again after this.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Asks DNS for the mesh.
#[derive(Clone, Debug)]
pub struct Resolver {
    resolver: TokioResolver,
}

impl Resolver {
    /// A resolver that asks these servers, or those of the system if none is given.
    ///
    /// # Errors
    /// When the system's resolver configuration cannot be read.
    pub fn new(servers: &[SocketAddr]) -> anyhow::Result<Self> {
        let mut builder = if servers.is_empty() {
            TokioResolver::builder_tokio()?
        } else {
            let servers = servers.iter().map(|server| {
                let on_port = |mut connection: ConnectionConfig| {
                    connection.port = server.port();
                    connection
                };
                let connections = vec![on_port(ConnectionConfig::udp()), on_port(ConnectionConfig::tcp())];
                NameServerConfig::new(server.ip(), true, connections)
            });
            let config = ResolverConfig::from_parts(None, vec![], servers.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let options: &mut ResolverOpts = builder.options_mut();
        // The refresh below is the only cache: two clocks would double the age of what is believed.
        options.cache_size = 0;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        Ok(Self {
            resolver: builder.build()?,
        })
    }

    /// The addresses of a host, for a question that is asked once.
    ///
    /// # Errors
    /// When DNS does not answer or has no address.
    pub async fn addresses(&self, host: &str) -> anyhow::Result<Vec<IpAddr>> {
        Ok(self.resolver.lookup_ip(host).await?.iter().collect())
    }

    /// Keeps a cluster's endpoints current until the cluster is gone. Says on `first` when the first answer, good
    /// or bad, is in.
    pub(crate) async fn keep_current(self, cluster: Weak<Cluster>, first: tokio::sync::oneshot::Sender<()>) {
        let mut first = Some(first);
        let mut failing = false;
        while let Some(wait) = self.refresh(&cluster, &mut failing).await {
            first.take();
            tokio::time::sleep(wait).await;
        }
    }

    /// Asks once. `None`: the cluster is gone.
    async fn refresh(&self, cluster: &Weak<Cluster>, failing: &mut bool) -> Option<Duration> {
        let (name, port) = {
            let cluster = cluster.upgrade()?;
            (cluster.discover.dns.clone()?, cluster.discover.port?)
        };
        let answer = self.resolver.lookup_ip(name.as_str()).await;
        let cluster = cluster.upgrade()?;
        match answer {
            Ok(records) => {
                let mut addresses: Vec<IpAddr> = records.iter().collect();
                // Servers turn the records round for every question; the order here must not make a new set.
                addresses.sort_unstable();
                found(
                    &cluster,
                    &name,
                    addresses
                        .iter()
                        .map(|address| SocketAddr::new(*address, port))
                        .collect(),
                );
                if std::mem::take(failing) {
                    tracing::info!(
                        service = cluster.service,
                        backend = cluster.name,
                        name,
                        "DNS answers again"
                    );
                }
                let left = records.valid_until().saturating_duration_since(Instant::now());
                // Spread over a tenth, so that sidecars that started together do not ask together for ever.
                let wait = left.clamp(REFRESH_MIN, REFRESH_MAX);
                Some(wait + wait.mul_f64(fastrand::f64() / 10.0))
            }
            Err(error) => {
                let known = cluster.endpoints().endpoints.len();
                if known == 0 {
                    cluster.found(std::iter::empty(), format!("DNS for {name}: {error}"));
                }
                if !std::mem::replace(failing, true) {
                    let (service, backend) = (&cluster.service, &cluster.name);
                    tracing::warn!(service, backend, name, %error, known, "DNS does not answer; keeping what is known");
                }
                Some(RETRY_AFTER)
            }
        }
    }
}

/// Makes what DNS found the endpoints of a cluster, if they are others than those it has.
fn found(cluster: &Arc<Cluster>, name: &str, addresses: Vec<SocketAddr>) {
    let set = cluster.endpoints();
    let same = set.endpoints.len() == addresses.len()
        && set
            .endpoints
            .iter()
            .zip(&addresses)
            .all(|(endpoint, address)| endpoint.address == *address);
    if !same {
        let (service, backend) = (&cluster.service, &cluster.name);
        tracing::info!(service, backend, name, endpoints = ?addresses, "endpoints changed");
        let found = addresses.into_iter().map(StaticEndpoint::from);
        cluster.found(found, format!("DNS for {name} has no address"));
    }
}
