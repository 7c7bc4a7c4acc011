//! Making a connection to an endpoint, by TCP and, where its cluster says so, TLS on it: within bounds, counted on the
//! endpoint while it lives.
//!
//! What is spoken on it is not known here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::error::{Failure, Reason};
use crate::stream::Stream;
use crate::tls::{Alpn, Session};
use crate::upstream::Endpoint;
use crate::upstream::limits::Counted;

/// How long the network may take to make a connection. Inside one region an answer takes milliseconds; a second
/// lets one lost packet be sent again. Linkerd's value.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that has just been made.
#[derive(Debug)]
pub(crate) struct Dialled {
    pub(crate) stream: Stream,
    pub(crate) counted: Counted,
    /// How long it may be used, where it speaks TLS.
    pub(crate) session: Option<Session>,
}

/// Connects to an endpoint, at most until the deadline. `alpn`: what is to be spoken, where TLS is.
pub(super) async fn connect(
    endpoint: &Arc<Endpoint>,
    alpn: Alpn,
    deadline: Option<Instant>,
) -> Result<Dialled, Failure> {
    let dialled = open(endpoint, alpn, deadline).await?;
    endpoint.health.connected();
    Ok(dialled)
}

/// The same for a protocol in which the endpoint must speak before the connection is one: it is not taken for well yet,
/// because the kernel of a process that is frozen goes on taking connections.
pub(super) async fn open(
    endpoint: &Arc<Endpoint>,
    alpn: Alpn,
    deadline: Option<Instant>,
) -> Result<Dialled, Failure> {
    let Some(security) = &endpoint.security else {
        let (stream, counted) = open_tcp(endpoint, deadline).await?;
        return Ok(Dialled {
            stream: stream.into(),
            counted,
            session: None,
        });
    };
    security.is_ready()?;
    let (stream, counted) = open_tcp(endpoint, deadline).await?;
    match Box::pin(security.connect(stream, alpn, deadline)).await {
        Ok((stream, session)) => Ok(Dialled {
            stream: stream.into(),
            counted,
            session: Some(session),
        }),
        Err(failure) => {
            // What this sidecar lacks is not held against the endpoint.
            if failure.reason.is_of_handshake() {
                endpoint.health.connect_failed(Instant::now());
            }
            Err(failure)
        }
    }
}

async fn open_tcp(
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
