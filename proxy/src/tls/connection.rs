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

use crate::tls::verify;

/// What the other end said of our certificate, if it did not accept it.
type Refusal = Arc<OnceLock<String>>;

/// A connection that speaks TLS.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    refusal: Refusal,
}

impl Connection {
    pub(super) fn new(stream: impl Into<TlsStream<TcpStream>>, session: &Session) -> Self {
        Self {
            stream: stream.into(),
            refusal: Arc::clone(&session.refusal),
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
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.note(read)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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

/// How long a connection may be used for something new: as long as both certificates are valid, and the identity under
/// which it was made goes on; of servers outside, as long as the roots that were trusted are.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(super) until: Instant,
    pub(super) epoch: u64,
    /// What `epoch` is compared with.
    pub(super) era: Arc<AtomicU64>,
    pub(super) refusal: Refusal,
}

impl Session {
    /// Whether it is over.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now >= self.until || self.epoch != self.era.load(Ordering::Acquire)
    }

    /// When one of the certificates expires.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// What the other end said of our certificate, if it did not accept it: in TLS 1.3 a caller is through with its
    /// handshake before its certificate is looked at (RFC 8446 section 2), so that the refusal comes in the place of the
    /// answer.
    pub(crate) fn refusal(&self) -> Option<&str> {
        self.refusal.get().map(String::as_str)
    }
}
