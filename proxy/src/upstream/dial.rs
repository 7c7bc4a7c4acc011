//! Making a TCP connection to an endpoint: within bounds, counted on the endpoint while it lives.
//!
//! What is spoken on it is not known here.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::error::{Failure, Reason};
use crate::upstream::Endpoint;

/// The most connections to one endpoint, over all workers: Envoy's default, a bound on what a slow endpoint can
/// gather. A request that would need another is answered with `overloaded`.
const CONNECTIONS_MAX: u32 = 1024;

/// How long the network may take to make a connection. Inside one region an answer takes milliseconds; a second
/// lets one lost packet be sent again. Linkerd's value.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Connects to an endpoint, at most until the deadline.
pub(super) async fn connect(
    endpoint: &Arc<Endpoint>,
    deadline: Option<Instant>,
) -> Result<(TcpStream, Counted), Failure> {
    let counted = Counted::new(endpoint)?;
    let now = Instant::now();
    let until = deadline.map_or(now + CONNECT_TIMEOUT, |deadline| {
        deadline.min(now + CONNECT_TIMEOUT)
    });
    let address = endpoint.address;
    let stream = match tokio::time::timeout_at(until.into(), TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            endpoint.health.connect_failed(Instant::now());
            return Err(Failure::new(
                Reason::ConnectFailed,
                format!("connect to {address}: {error}"),
            ));
        }
        Err(_) => {
            endpoint.health.connect_failed(Instant::now());
            let waited = now.elapsed().as_millis();
            let detail = format!("connect to {address}: no answer after {waited} ms");
            return Err(Failure::new(Reason::ConnectTimeout, detail));
        }
    };
    endpoint.health.connected();
    // Small writes must leave at once: a request is one write. An error here means that the peer is gone
    // already, which the first write will tell better.
    let _ = stream.set_nodelay(true);
    Ok((stream, counted))
}

/// A connection counted on its endpoint while it lives.
#[derive(Debug)]
pub(crate) struct Counted(Arc<Endpoint>);

impl Counted {
    fn new(endpoint: &Arc<Endpoint>) -> Result<Self, Failure> {
        if endpoint.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            endpoint.connections.fetch_sub(1, Ordering::Relaxed);
            let detail = format!(
                "{} has {CONNECTIONS_MAX} connections from this sidecar already",
                endpoint.address
            );
            return Err(Failure::new(Reason::Overloaded, detail));
        }
        Ok(Self(Arc::clone(endpoint)))
    }

    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
