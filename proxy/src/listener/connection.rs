//! One connection from a caller, from the first byte to the last.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::error::Reason;
use crate::listener::callers::{Callers, Joined, Order, UnderWay};
use crate::listener::opening::{self, Speaks};
use crate::listener::{Arrival, addressed, announced, edge, http1, http2};
use crate::request::body::ResponseBody;
use crate::request::{Worker, tcp};
use crate::snapshot::Entry;
use crate::snapshot::access::{Opens, Source};
use crate::stream::Stream;
use crate::telemetry::metrics::Cut;
use crate::tls::gateway::Server;
use crate::tls::{ALERT_MAX, Alpn};

/// A silent connection is asked after this long whether its peer still lives, then this often, so many times: one
/// minute until a peer that vanished is noticed.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Bytes that no peer acknowledges for this long end the connection: the same minute.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);

/// Where bytes of TCP come and TLS may, the caller's first byte is waited for this long. A caller that speaks TLS says
/// hello at once; one whose server speaks first says nothing, and waits for no longer than this.
const FIRST_BYTE_MAX: Duration = Duration::from_secs(1);

/// Serves a connection to its end.
pub(super) async fn serve(
    worker: Rc<Worker>,
    callers: Rc<Callers>,
    arrival: Arrival,
    connections: Arc<AtomicUsize>,
) {
    let Arrival {
        stream,
        source,
        announced,
        entry,
        server,
        range,
        open,
    } = arrival;
    let (_counted, open) = (Counted(connections), open.open());
    let mut stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "cannot serve a connection");
            return;
        }
    };
    // An answer is one write and must leave at once. If this fails the peer is gone, which the first read will tell.
    let _ = stream.set_nodelay(true);
    watch_peer(&stream);
    let source = match real_source(&callers, &mut stream, (source, announced)).await {
        Ok(source) => source,
        Err(cut) => {
            cut.into_iter().for_each(|cut| open.was_cut(cut));
            return;
        }
    };
    let Some(entry) = addressed::entry(&worker, entry, (&stream, range)) else {
        open.was_cut(Cut::Elsewhere);
        return;
    };
    if worker.lease().raw(&entry).is_some() {
        if let Err(cut) = serve_raw(&worker, &callers, &entry, (stream, source)).await {
            open.was_cut(cut);
        }
        return;
    }
    let opening = unless_silent(
        &callers,
        open_with(&worker, (&entry, server.as_deref()), (stream, source)),
    );
    let Opened {
        speaks,
        stream,
        source,
    } = match opening.await {
        Ok(Ok(opened)) => opened,
        // It broke.
        Ok(Err(_)) => return,
        Err(cut) => {
            cut.into_iter().for_each(|cut| open.was_cut(cut));
            return;
        }
    };
    let joined = callers.join(speaks == Speaks::Http2, Instant::now());
    if let Some(peer) = &source.peer {
        joined.caller.lasts(&peer.session);
    }
    let source = Rc::new(source);
    let cut = match speaks {
        Speaks::Http1 => http1::serve(worker, (entry, source), joined, stream).await,
        Speaks::Http2 => http2::serve(worker, (entry, source), joined, stream).await,
    };
    if let Some(cut) = cut {
        open.was_cut(cut);
    }
}

/// Where a connection comes from: from where it seems to, unless its first bytes are to say.
async fn real_source(
    callers: &Rc<Callers>,
    stream: &mut TcpStream,
    (seems, announced): (SocketAddr, bool),
) -> Result<SocketAddr, Option<Cut>> {
    if !announced {
        return Ok(seems);
    }
    match unless_silent(callers, announced::source(stream)).await? {
        Ok(source) => Ok(source.unwrap_or(seems)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!(peer = %seems, %error, "a connection without the PROXY protocol, which this listener expects");
            Err(Some(Cut::Protocol))
        }
        Err(_) => Err(None),
    }
}

/// What the caller says first, unless it is silent for too long or told to go first.
async fn unless_silent<T>(callers: &Rc<Callers>, opening: impl Future<Output = T>) -> Result<T, Option<Cut>> {
    let Joined { caller, .. } = &callers.join(false, Instant::now());
    let mut opening = std::pin::pin!(opening);
    let opened = std::future::poll_fn(|cx| match caller.told(cx) {
        Some(Order::TooSilent) => Poll::Ready(Err(Some(Cut::Silent))),
        Some(Order::HangUp | Order::Cut | Order::Revoked) => Poll::Ready(Err(None)),
        None => opening.as_mut().poll(cx).map(Ok),
    });
    opened.await
}

/// Shakes hands where TLS is spoken. `silence`: how long the first byte is waited for where it must tell; past it the
/// caller speaks plaintext.
async fn secure(
    worker: &Rc<Worker>,
    entry: &Entry,
    (stream, source): (TcpStream, SocketAddr),
    silence: Option<Duration>,
) -> io::Result<(Stream, Source, Alpn)> {
    let opens = worker.lease().opens(entry);
    let tls = match (opens, silence) {
        (Opens::Plaintext, _) => false,
        (Opens::Tls, _) => true,
        (Opens::Either, None) => opening::opens_tls(&stream).await?,
        (Opens::Either, Some(silence)) => {
            let told = tokio::time::timeout(silence, opening::opens_tls(&stream)).await;
            told.unwrap_or(Ok(false))?
        }
    };
    if !tls {
        let source = worker.lease().source(entry, source, None);
        return Ok((stream.into(), source, Alpn::Unsaid));
    }
    let trust_domain = worker.lease().trust_domain(entry);
    let accepted = worker
        .identities
        .accept((stream, source), trust_domain.as_deref());
    match Box::pin(accepted).await {
        Ok((stream, peer)) => {
            let alpn = peer.alpn;
            let source = worker.lease().source(entry, source, Some(peer));
            Ok((stream.into(), source, alpn))
        }
        Err(stream) => {
            if let Some(stream) = stream {
                let mut stream = Stream::from(stream).of_caller(Bytes::new());
                let _ = tokio::time::timeout(ALERT_MAX, stream.shutdown()).await;
            }
            Err(io::ErrorKind::ConnectionAborted.into())
        }
    }
}

/// Serves a connection for a service that speaks TCP.
///
/// # Errors
/// When it was cut before it was known who speaks.
async fn serve_raw(
    worker: &Rc<Worker>,
    callers: &Rc<Callers>,
    entry: &Entry,
    stream: (TcpStream, SocketAddr),
) -> Result<(), Cut> {
    let secured = secure(worker, entry, stream, Some(FIRST_BYTE_MAX));
    let (stream, source) = match unless_silent(callers, secured).await {
        Ok(Ok((stream, source, _))) => (stream, source),
        Ok(Err(_)) | Err(None) => return Ok(()),
        Err(Some(cut)) => return Err(cut),
    };
    let lease = worker.lease();
    // It may be another service's by now.
    if let Some(service) = lease.raw(entry) {
        tcp::serve(worker, lease, service, (stream, source)).await;
    }
    Ok(())
}

/// A connection of which is known what it speaks and who speaks.
struct Opened {
    speaks: Speaks,
    stream: Stream,
    source: Source,
}

/// Finds out who calls and what it speaks.
async fn open_with(
    worker: &Rc<Worker>,
    (entry, server): (&Entry, Option<&Server>),
    stream: (TcpStream, SocketAddr),
) -> io::Result<Opened> {
    let (stream, source, alpn) = match server {
        Some(server) => edge::secure(worker, server, stream).await?,
        None => secure(worker, entry, stream, None).await?,
    };
    let (speaks, stream) = match alpn {
        Alpn::Http1 => (Speaks::Http1, stream.of_caller(Bytes::new())),
        Alpn::Http2 => (Speaks::Http2, stream.of_caller(Bytes::new())),
        Alpn::Unsaid => opening::listen(stream).await?,
    };
    Ok(Opened {
        speaks,
        stream,
        source,
    })
}

/// Lets the kernel find out that a peer is gone without a word. Where it refuses, the sweep of `callers` remains.
fn watch_peer(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
}

/// An answer's body, and with it the request that is under way until the body is gone.
pub(super) struct Guarded {
    body: ResponseBody,
    pub(super) under_way: UnderWay,
}

impl Guarded {
    pub(super) fn new(body: ResponseBody, under_way: UnderWay) -> Self {
        under_way.answers(body.bounds());
        Self { body, under_way }
    }
}

impl Body for Guarded {
    type Data = <ResponseBody as Body>::Data;
    type Error = <ResponseBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.under_way.handed_over(polled.is_ready());
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(reason) = self.under_way.was_cut() {
            let why = match reason {
                Reason::PeerRevoked => "the caller was revoked in the middle of its answer",
                _ => "the caller did not read its answer",
            };
            self.body.cut_short(reason, why);
        }
    }
}

/// A connection counted on its worker while it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
