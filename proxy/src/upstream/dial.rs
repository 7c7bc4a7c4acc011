//! Making a TCP connection to an endpoint: within bounds, counted on the endpoint while it lives.
//!
//! What is spoken on it is not known here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::error::{Failure, Reason};
use crate::upstream::Endpoint;
use crate::upstream::limits::Counted;

/// How long the network may take to make a connection. Inside one region an answer takes milliseconds; a second
/// lets one lost packet be sent again. Linkerd's value.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Connects to an endpoint, at most until the deadline.
pub(super) async fn connect(
    endpoint: &Arc<Endpoint>,
    deadline: Option<Instant>,
) -> Result<(TcpStream, Counted), Failure> {
    let connected = open(endpoint, deadline).await?;
    endpoint.health.connected();
    Ok(connected)
}

/// The same for a protocol in which the endpoint must speak before the connection is one: it is not taken for well yet,
/// because the kernel of a process that is frozen goes on taking connections.
pub(super) async fn open(
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
        Ok(Err(error)) if is_our_own(&error) => {
            let detail = format!("connect to {address}: this host cannot: {error}");
            return Err(Failure::new(Reason::Overloaded, detail));
        }
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
    // Small writes must leave at once: a request is one write. An error here means that the peer is gone
    // already, which the first write will tell better.
    let _ = stream.set_nodelay(true);
    Ok((stream, counted))
}

/// Whether this host, and not the endpoint, is why a connection could not be made: no descriptor, port or memory is
/// left, or the system forbids it.
fn is_our_own(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        code,
        Some(
            Errno::MFILE
                | Errno::NFILE
                | Errno::ADDRNOTAVAIL
                | Errno::NOBUFS
                | Errno::NOMEM
                | Errno::PERM
                | Errno::ACCESS
        )
    )
}
