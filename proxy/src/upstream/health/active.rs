//! Health checks: every endpoint of a cluster is asked, again and again, whether it is well.
//!
//! Runs on the control thread, one task for each endpoint, and ends with its cluster; what is found is a mark on the
//! endpoint that all workers read. An endpoint takes part until a check says otherwise: it is asked as soon as it is
//! found, and that first answer decides at once, later ones only several in a row. Connections are made for the
//! question and closed after it, so that what is asked is also whether a connection can be made.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use outrigger_config::service::HealthCheck;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::grpc;
use crate::error::Reason;
use crate::stream::Stream;
use crate::tls::Alpn;
use crate::upstream::{Cluster, Endpoint};

/// Questions at once, over all clusters: a thousand endpoints are asked within seconds, and the checks never take all
/// descriptors or fill the network by themselves.
const AT_ONCE_MAX: usize = 64;

/// What a checked server reads in its log.
const USER_AGENT: &str = "outrigger-health-check";

/// Asks endpoints; cheap to clone, all clones share the bound on how many are asked at once.
#[derive(Clone, Debug)]
pub struct Checker {
    at_once: Rc<Semaphore>,
}

impl Default for Checker {
    fn default() -> Self {
        Self {
            at_once: Rc::new(Semaphore::new(AT_ONCE_MAX)),
        }
    }
}

impl Checker {
    /// Sees to it that every endpoint of a cluster is asked, those that are found later too, until the cluster is
    /// gone or another stands in its place.
    pub(crate) async fn keep_checked(self, cluster: Weak<Cluster>) {
        let mut asked: HashSet<u64> = HashSet::new();
        loop {
            let changed = {
                let Some(serving) = cluster.upgrade().filter(|cluster| !cluster.is_retired()) else {
                    return;
                };
                let Some(check) = &serving.policy.health_check else {
                    return;
                };
                let set = serving.endpoints();
                asked.retain(|id| set.endpoints.iter().any(|endpoint| endpoint.id == *id));
                for endpoint in &set.endpoints {
                    if asked.insert(endpoint.id) {
                        let (endpoint, cluster) = (Arc::downgrade(endpoint), Weak::clone(&cluster));
                        let asking = self.clone().keep_asking(cluster, endpoint, check.clone());
                        tokio::task::spawn_local(asking);
                    }
                }
                Arc::clone(&serving.changed)
            };
            changed.notified().await;
        }
    }

    /// Asks one endpoint until it or its cluster is gone.
    async fn keep_asking(self, cluster: Weak<Cluster>, endpoint: Weak<Endpoint>, check: HealthCheck) {
        let mut row = Row::default();
        loop {
            let Some(asked) = endpoint.upgrade() else { return };
            let Some(host) = cluster.upgrade().map(|cluster| cluster.known_as()) else {
                return;
            };
            let found = {
                // The semaphore is never closed.
                let _turn = self.at_once.acquire().await;
                ask(&asked, &host, &check).await
            };
            let Some(serving) = cluster.upgrade().filter(|cluster| cluster.serves(&asked)) else {
                return;
            };
            serving.checked(&asked, row.add(found.is_ok(), &check), &found);
            drop((serving, asked));
            // Spread by a tenth, so that sidecars that started together do not ask together for ever.
            let spread = 0.9 + fastrand::f64() / 5.0;
            tokio::time::sleep(check.interval.0.mul_f64(spread)).await;
        }
    }
}

/// Answers in a row.
#[derive(Debug, Default)]
struct Row {
    well: bool,
    length: u32,
    decided: bool,
}

impl Row {
    /// One more answer. `Some`: it is decided that the endpoint is well, or ill.
    fn add(&mut self, well: bool, check: &HealthCheck) -> Option<bool> {
        if self.well != well {
            self.length = 0;
        }
        self.well = well;
        self.length = self.length.saturating_add(1);
        let enough = if well { check.healthy } else { check.unhealthy };
        let decides = !self.decided || self.length >= enough;
        self.decided = true;
        decides.then_some(well)
    }
}

impl Cluster {
    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// Whether this cluster's checks still speak for an endpoint.
    fn serves(&self, endpoint: &Arc<Endpoint>) -> bool {
        let set = self.endpoints();
        !self.is_retired() && set.endpoints.iter().any(|served| Arc::ptr_eq(served, endpoint))
    }

    /// A question was answered, and perhaps decided something.
    fn checked(&self, endpoint: &Endpoint, decided: Option<bool>, found: &Result<(), String>) {
        self.metrics.checked(found.is_ok());
        let Some(well) = decided else { return };
        let what = match found {
            Ok(()) => "its health check succeeds",
            Err(why) => why,
        };
        if !endpoint.health.checked(well, what, Instant::now()) {
            return;
        }
        let (service, backend, address) = (&self.service, &self.name, endpoint.address);
        if well {
            tracing::info!(service, backend, endpoint = %address, "its health check succeeds: the endpoint is in");
        } else {
            tracing::warn!(service, backend, endpoint = %address, why = what, "its health check fails: the endpoint is out");
        }
        self.recount();
    }
}

/// Asks an endpoint once. The error says what was found instead of a good answer.
async fn ask(endpoint: &Endpoint, host: &str, check: &HealthCheck) -> Result<(), String> {
    let limit: Duration = check.timeout.0;
    let alpn = match (&check.path, &check.grpc) {
        (Some(_), _) => Alpn::Http1,
        (None, Some(_)) => Alpn::Http2,
        (None, None) => Alpn::Unsaid,
    };
    let asked = async {
        let stream = TcpStream::connect(endpoint.address)
            .await
            .map_err(|error| format!("no connection: {error}"))?;
        let stream = match &endpoint.security {
            None => Stream::from(stream),
            Some(security) => match security.connect(stream, alpn, None).await {
                Ok((stream, _)) => Stream::from(stream),
                Err(failure) => return Err(failure.to_string()),
            },
        };
        match (&check.path, &check.grpc) {
            (Some(path), _) => get(stream, host, path).await,
            (None, Some(grpc)) => grpc::check(stream, (endpoint.scheme(), host), &grpc.service).await,
            (None, None) => Ok(()),
        }
    };
    tokio::time::timeout(limit, asked)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {}", check.timeout)))
}

/// A GET of a path. A 2xx is a good answer; a redirect may lead to a page that says error. A sidecar that lets no more
/// requests through, of which this is one, says nothing against its application.
async fn get(stream: Stream, host: &str, path: &str) -> Result<(), String> {
    let broken = |error: hyper::Error| format!("GET {path}: {error}");
    let (mut sender, connection) = http1::handshake(stream).await.map_err(broken)?;
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("GET {path}: {error}"))?;
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    // The answer first: when both are there, the connection is over because the answer was its last.
    let head = tokio::select! {
        biased;
        answered = &mut answer => answered,
        _ = &mut connection => answer.await,
    };
    let head = head.map_err(broken)?;
    if head.status().is_success() || Reason::keeps_a_limit(head.headers()) {
        Ok(())
    } else {
        Err(format!("GET {path}: {}", head.status()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> HealthCheck {
        HealthCheck {
            path: None,
            grpc: None,
            tcp: None,
            interval: outrigger_config::units::Duration::from_secs(10),
            timeout: outrigger_config::units::Duration::from_secs(2),
            healthy: 2,
            unhealthy: 3,
        }
    }

    #[test]
    fn the_first_answer_decides_and_later_ones_only_in_a_row() {
        let mut row = Row::default();
        let mut add = |well| row.add(well, &check());
        assert_eq!(add(false), Some(false), "the first decides at once");
        assert_eq!(add(true), None);
        assert_eq!(add(false), None);
        assert_eq!(add(true), None);
        assert_eq!(add(true), Some(true));
        assert_eq!((add(false), add(false)), (None, None));
        assert_eq!(add(false), Some(false));
    }
}
