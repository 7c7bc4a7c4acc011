//! A stream that speaks TLS, and what becomes of it: how long it may be used, and whether the other end took our
//! certificate.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::error::{Failure, Reason};
use crate::tls::clock::WallClock;
use crate::tls::revoked::Watch;
use crate::tls::verify;

/// What the other end said of our certificate, if it did not accept it.
type Refusal = Arc<OnceLock<String>>;

/// A connection that speaks TLS.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    refusal: Refusal,
    /// By whose revocation it breaks at once.
    watch: Option<Watch>,
}

impl Connection {
    pub(super) fn new(stream: impl Into<TlsStream<TcpStream>>, session: &Session) -> Self {
        Self {
            stream: stream.into(),
            refusal: Arc::clone(&session.refusal),
            watch: None,
        }
    }

    /// Breaks as soon as the other end is revoked, in the middle of an answer too: not a byte more is taken from an endpoint
    /// that may be an attacker, nor given to it. Callers are not served so, because they are told why.
    pub(super) fn cut_by(mut self, session: &Session) -> Self {
        self.watch.clone_from(&session.watch);
        self
    }

    /// Whether it is broken so.
    fn stands(&self) -> io::Result<()> {
        match self.watch.as_ref().filter(|watch| watch.is_revoked()) {
            None => Ok(()),
            Some(watch) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, watch.why())),
        }
    }

    /// The socket below.
    pub(crate) fn tcp(&self) -> &TcpStream {
        self.stream.get_ref().0
    }

    fn note<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result
            && let Some(words) = verify::refused_us(error)
        {
            // The first word is the one that says why.
            let _ = self.refusal.set(words);
        }
        result
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stands()?;
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.note(read)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stands()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stands()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// How long a connection may be used for something new: as long as both chains of certificates are valid, the identity under
/// which it was made goes on, and its other end is not revoked; of servers outside, as long as the roots that were trusted
/// are.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// Its end by the clock of timers, and by the wall clock, in seconds since 1970: the first of both.
    pub(super) until: Instant,
    pub(super) ends: i64,
    pub(super) clock: Arc<WallClock>,
    pub(super) epoch: u64,
    /// What `epoch` is compared with.
    pub(super) era: Arc<AtomicU64>,
    pub(super) refusal: Refusal,
    /// Whether the other end is revoked, where that is a workload of the mesh.
    pub(super) watch: Option<Watch>,
}

impl Session {
    /// The same, with this one at the other end.
    pub(super) fn of(mut self, watch: Watch) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Whether it is over.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.has_expired(now) || self.epoch != self.era.load(Ordering::Acquire) || self.is_revoked()
    }

    fn has_expired(&self, now: Instant) -> bool {
        now >= self.until || self.clock.now() >= self.ends
    }

    /// Whether its other end has been revoked since: it ends at once then, and not with what is under way.
    pub(crate) fn is_revoked(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::is_revoked)
    }

    /// The same, as what becomes of a request.
    ///
    /// # Errors
    /// When it has been.
    pub(crate) fn stands(&self) -> Result<(), Failure> {
        match self.watch.as_ref().filter(|watch| watch.is_revoked()) {
            None => Ok(()),
            Some(watch) => Err(Failure::new(Reason::PeerRevoked, watch.why())),
        }
    }

    /// Ready when what cannot go on without it is to be cut, a tunnel, with why.
    async fn ended(&self) -> Failure {
        let cut = async {
            match &self.watch {
                Some(watch) => watch.cut().await,
                None => std::future::pending().await,
            }
        };
        let mut shifts = self.clock.shifts();
        let expired = async {
            while !self.has_expired(Instant::now()) {
                tokio::select! {
                    () = tokio::time::sleep_until(self.until.into()) => {}
                    // Nobody looks at the clock any more where this fails.
                    Ok(()) = shifts.changed() => {}
                }
            }
        };
        tokio::select! {
            biased;
            failure = cut => failure,
            () = expired => {
                let detail = "a certificate with which the connection was made has expired";
                Failure::new(Reason::PeerExpired, detail)
            }
        }
    }

    /// What the other end said of our certificate, if it did not accept it: in TLS 1.3 a caller is through with its
    /// handshake before its certificate is looked at (RFC 8446 section 2), so that the refusal comes in the place of the
    /// answer.
    pub(crate) fn refusal(&self) -> Option<&str> {
        self.refusal.get().map(String::as_str)
    }
}

/// Ready when one of these ends what was made with both, with why; never, if neither speaks TLS.
pub(crate) async fn ended(caller: Option<&Session>, upstream: Option<&Session>) -> Failure {
    let one = async |session: Option<&Session>| match session {
        Some(session) => session.ended().await,
        None => std::future::pending().await,
    };
    tokio::select! {
        biased;
        failure = one(caller) => failure,
        failure = one(upstream) => failure,
    }
}
