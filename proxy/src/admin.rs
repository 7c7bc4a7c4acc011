//! Operators in: is it ready, what does it count, what does it run.
//!
//! Two addresses. The scrape address is open to the network and says nothing that is not meant for it: `/metrics`,
//! `/stats/prometheus`, `/ready`, `/live`. The admin address is for this host alone and says all, though not to web pages in
//! a browser of this host ([`crate::browsers`]). Both stand on the control thread, so that a slow scrape costs no request
//! anything.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::TcpListener;

use crate::browsers::OwnNames;
use crate::drain::Drain;
use crate::snapshot::{Origin, Refused, Snapshots};
use crate::telemetry::metrics::Metrics;
use crate::timer::Timer;
use crate::tls::Identities;
use crate::tls::gateway::Server;

/// How many connections are served at once on each address: scrapers and probes are few, and more than this are
/// a fault of someone that must not cost the sidecar its memory.
const CONNECTIONS_MAX: usize = 64;

/// A request's head must be there within this, so that silent connections do not keep probes out.
const HEAD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// The whole of a connection, which is one request, may take this long: the time that Prometheus gives a scrape.
const CONNECTION_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// What the pages show.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) refused: Arc<Mutex<Option<Refused>>>,
    pub(crate) identities: Arc<Identities>,
    /// What ports at the edge of the mesh show.
    pub(crate) servers: Vec<Arc<Server>>,
    pub(crate) drain: Drain,
}

/// Which pages an address has.
#[derive(Clone, Debug)]
pub(crate) enum Pages {
    /// Those for the network.
    Scrape,
    /// All: to whoever asks by one of these names, where there are some, and is no web page of somebody else.
    Admin(Option<OwnNames>),
}

impl Pages {
    /// All, for who reaches this address. Beyond loopback nobody knows by what names that is.
    pub(crate) fn admin(address: SocketAddr) -> Self {
        let is_here = address.ip().to_canonical().is_loopback();
        Self::Admin(OwnNames::new(address.ip(), &[]).ok().filter(|_| is_here))
    }
}

/// Serves the pages until the process ends.
pub(crate) async fn serve(admin: Rc<Admin>, listener: TcpListener, pages: Pages) {
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    let pages = Rc::new(pages);
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            // For want of descriptors, most likely; the data side has said so already.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let (admin, pages) = (Rc::clone(&admin), Rc::clone(&pages));
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = admin.answer(&request, &pages);
                async move { Ok::<_, Infallible>(answer) }
            });
            // A probe that hangs up early is no news.
            let connection = http1::Builder::new()
                .timer(Timer)
                .header_read_timeout(HEAD_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(CONNECTION_MAX, connection).await;
            drop(place);
        });
    }
}

/// A socket for the pages.
pub(crate) fn listener(socket: std::net::TcpListener) -> std::io::Result<(TcpListener, SocketAddr)> {
    let address = socket.local_addr()?;
    Ok((TcpListener::from_std(socket)?, address))
}

/// The body of `/config`.
#[derive(Serialize)]
struct ConfigPage<'a> {
    version: &'a str,
    source: &'a str,
    documents: &'a [outrigger_config::Document],
    refused: Option<&'a Refused>,
}

impl Admin {
    fn answer(&self, request: &Request<Incoming>, pages: &Pages) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n");
        }
        match (request.uri().path(), pages) {
            ("/live", _) => match hurt(self.metrics.lost_workers().so_far()) {
                None => text(StatusCode::OK, "live\n"),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, &why),
            },
            ("/ready", _) => self.ready(),
            ("/metrics" | "/stats/prometheus", _) => self.metrics(),
            (path, Pages::Admin(own)) => match own
                .as_ref()
                .map(|own| own.judge(request.uri(), request.headers()))
            {
                Some(Err(foreign)) => text(
                    StatusCode::FORBIDDEN,
                    &format!(
                        "this page is for who is on this machine, and not for web pages of others: {foreign}. Ask by a tool \
                         such as curl, or by typing the address, by 127.0.0.1 or localhost\n"
                    ),
                ),
                None | Some(Ok(())) => self.for_operators(path),
            },
            (_, Pages::Scrape) => text(
                StatusCode::NOT_FOUND,
                "served here: /metrics /stats/prometheus /ready /live\n",
            ),
        }
    }

    /// What this host alone is told.
    fn for_operators(&self, path: &str) -> Response<Full<Bytes>> {
        match path {
            "/config" => self.config(),
            "/clusters" => self.clusters(),
            "/certs" => self.certs(),
            _ => text(
                StatusCode::NOT_FOUND,
                "served here: /metrics /stats/prometheus /ready /live /config /clusters /certs\n",
            ),
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        if self.drain.is_draining() {
            return text(
                StatusCode::SERVICE_UNAVAILABLE,
                "draining: it finishes what it has; ask another instance\n",
            );
        }
        // Of ECS's and compose's health checks, which ask this page alone, a restart is to come too.
        if let Some(why) = hurt(self.metrics.lost_workers().so_far()) {
            return text(StatusCode::SERVICE_UNAVAILABLE, &why);
        }
        if self.snapshots.load().origin == Origin::Nothing {
            // A control API may want an identity before it tells the configuration.
            let why = if self.identities.is_awaited() {
                "not ready: no configuration has been applied yet, and no identity has been loaded; /certs says why\n"
            } else {
                "not ready: no configuration has been applied yet\n"
            };
            return text(StatusCode::SERVICE_UNAVAILABLE, why);
        }
        if self.identities.is_awaited() {
            return text(
                StatusCode::SERVICE_UNAVAILABLE,
                "not ready: no identity has been loaded yet; /certs says why\n",
            );
        }
        if let Some(why) = self.identities.foreign() {
            return text(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready: {why}\n"));
        }
        if self.servers.iter().any(|server| server.is_awaited()) {
            return text(
                StatusCode::SERVICE_UNAVAILABLE,
                "not ready: no certificate of a gateway has been loaded yet; /certs says why\n",
            );
        }
        text(StatusCode::OK, "ready\n")
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        match self.metrics.encode() {
            Ok(metrics) => answer(StatusCode::OK, Metrics::CONTENT_TYPE, metrics.into()),
            Err(error) => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                &format!("the metrics cannot be written: {error}\n"),
            ),
        }
    }

    fn config(&self) -> Response<Full<Bytes>> {
        let snapshot = self.snapshots.load();
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let page = ConfigPage {
            version: &snapshot.version,
            source: snapshot.origin.word(),
            documents: &snapshot.documents,
            refused: refused.as_ref(),
        };
        json("configuration", &page)
    }

    fn certs(&self) -> Response<Full<Bytes>> {
        let snapshot = self.snapshots.load();
        let mut trusts: Vec<_> = snapshot
            .clusters
            .iter()
            .filter_map(|cluster| cluster.trust())
            .collect();
        // Clusters that name the same roots share them.
        trusts.sort_by_key(|trust| Arc::as_ptr(trust));
        trusts.dedup_by_key(|trust| Arc::as_ptr(trust));
        let outside: Vec<_> = trusts.iter().map(|trust| trust.report()).collect();
        let gateways: Vec<_> = self.servers.iter().map(|server| server.report()).collect();
        let page = serde_json::json!({
            "configured": self.identities.is_configured(),
            "identity": self.identities.current().map(|identity| identity.report(SystemTime::now())),
            "refused": self.identities.refused(),
            "outside": outside,
            "gateways": gateways,
            "revoked": self.identities.revoked_report(),
        });
        json("certificates", &page)
    }

    fn clusters(&self) -> Response<Full<Bytes>> {
        let (snapshot, now) = (self.snapshots.load(), Instant::now());
        let clusters: Vec<_> = snapshot
            .clusters
            .iter()
            .map(|cluster| cluster.report(now))
            .collect();
        json(
            "state of the clusters",
            &serde_json::json!({ "clusters": clusters }),
        )
    }
}

/// Why it should be started again, after so many data threads have died: it would go on with fewer for ever.
fn hurt(lost: u64) -> Option<String> {
    (lost > 0)
        .then(|| format!("not live: {lost} of its data threads died; start it again, its log says why\n"))
}

fn json(what: &str, page: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec_pretty(page) {
        Ok(mut page) => {
            // For who reads it in a terminal.
            page.push(b'\n');
            answer(StatusCode::OK, "application/json", page.into())
        }
        Err(error) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!("the {what} cannot be written: {error}\n"),
        ),
    }
}

fn text(status: StatusCode, words: &str) -> Response<Full<Bytes>> {
    answer(
        status,
        "text/plain; charset=utf-8",
        Bytes::copy_from_slice(words.as_bytes()),
    )
}

fn answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_that_has_lost_a_data_thread_asks_to_be_started_again() {
        assert_eq!(hurt(0), None);
        assert!(hurt(1).unwrap().starts_with("not live: 1 of"));
    }
}
