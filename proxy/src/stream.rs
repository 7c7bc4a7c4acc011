//! A TCP stream, or TLS on it, as hyper and h2 are handed it: what was read ahead comes first, and one plain write where
//! one will do, which under TLS is one record.
//!
//! It lets a caller finish that is answered before it has sent all: see [`LINGER_SILENCE`].
//!
//! hyper writes a head and a body as two slices. For the kernel a vectored write of a few hundred bytes costs more
//! than copying them together first, so small ones are; large bodies go as they are, uncopied. It does nothing else.

use std::future::Future;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::tls;

/// The most that is copied together. A head and a small answer fit; copying this much takes some tens of
/// nanoseconds.
const TOGETHER_MAX: usize = 2048;

/// A caller that is answered before it has sent all of its request may still be sending. Closing on it makes its kernel
/// throw away the answer with everything else (RFC 9112 section 9.6); so our side is ended first, and what still comes is
/// read and forgotten until it ends too, or is silent for this long.
const LINGER_SILENCE: Duration = Duration::from_secs(1);

/// The longest that is read on after our end: nginx's bound.
const LINGER_MAX: Duration = Duration::from_secs(30);

/// What is read and forgotten in one turn.
const LINGER_BYTES: usize = 16 * 1024;

/// What may wait to be written in between: past it the peer has stopped reading.
const BETWEEN_MAX: usize = 16 * 1024;

/// What bytes go by.
#[derive(Debug)]
enum Socket {
    Plain(TokioIo<TcpStream>),
    /// Large, and of those that use it few.
    Tls(Box<TokioIo<tls::Connection>>),
}

/// Does the same with either.
macro_rules! either {
    ($socket:expr, $stream:ident => $done:expr) => {
        match $socket {
            Socket::Plain($stream) => $done,
            Socket::Tls(boxed) => {
                let $stream = &mut **boxed;
                $done
            }
        }
    };
}

/// A stream as hyper is handed it.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: Socket,
    /// What was read to find out what the peer speaks; it is read again first.
    ahead: Bytes,
    /// Where slices are copied together; empty until that is first needed.
    together: Vec<u8>,
    /// What is written between two of hyper's writes, if anybody does.
    between: Option<Between>,
    end: End,
}

/// How a stream ends.
#[derive(Debug)]
enum End {
    /// As it stands.
    AtOnce,
    /// With patience for a caller that still sends.
    Lingering,
    /// Our side has ended: until when what comes is waited for, and when that is over at the latest.
    Ended(Pin<Box<Sleep>>, Instant),
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self::new(Socket::Plain(TokioIo::new(stream)))
    }
}

impl From<tls::Connection> for Stream {
    fn from(stream: tls::Connection) -> Self {
        Self::new(Socket::Tls(Box::new(TokioIo::new(stream))))
    }
}

impl Stream {
    /// A stream that ends as it stands.
    fn new(socket: Socket) -> Self {
        Self {
            socket,
            ahead: Bytes::new(),
            together: Vec::new(),
            between: None,
            end: End::AtOnce,
        }
    }

    /// A caller's: it is ended with patience, and these bytes that were read are read again first.
    pub(crate) fn of_caller(self, ahead: Bytes) -> Self {
        Self {
            ahead,
            end: End::Lingering,
            ..self
        }
    }

    /// The socket, for its options.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match &self.socket {
            Socket::Plain(stream) => stream.inner(),
            Socket::Tls(stream) => stream.inner().tcp(),
        }
    }

    /// Another hand on the stream, that writes where hyper has nothing half written.
    pub(crate) fn between(&mut self) -> Between {
        self.between.get_or_insert_default().clone()
    }

    /// Whether a part of what stands in between has been written, and not all.
    fn is_within(&self) -> bool {
        let begun = |between: &Between| between.0.begun.load(Ordering::Relaxed);
        self.between.as_ref().is_some_and(begun)
    }

    /// Writes what stands in between.
    fn poll_between(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(between) = &self.between else {
            return Poll::Ready(Ok(()));
        };
        let mut waiting = between.waiting();
        while !waiting.bytes.is_empty() {
            match either!(&mut self.socket, stream => Write::poll_write(Pin::new(stream), cx, &waiting.bytes))
            {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => {
                    waiting.bytes.advance(count);
                    between.0.begun.store(true, Ordering::Relaxed);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    waiting.tried = true;
                    waiting.wake();
                    return Poll::Pending;
                }
            }
        }
        waiting.wake();
        between.0.any.store(false, Ordering::Relaxed);
        between.0.begun.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    /// The same stream with bytes that were read ahead of it, whose two sides end each by itself: what comes after ours
    /// has ended is somebody's.
    pub(crate) fn into_tunnel(self, ahead: Bytes) -> Self {
        Self {
            ahead,
            end: End::AtOnce,
            ..self
        }
    }

    /// Ends our side, and waits a little for the other.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.end {
            End::AtOnce => {
                return either!(&mut self.socket, stream => AsyncWrite::poll_shutdown(Pin::new(stream.inner_mut()), cx));
            }
            End::Lingering => {
                ready!(
                    either!(&mut self.socket, stream => AsyncWrite::poll_shutdown(Pin::new(stream.inner_mut()), cx))
                )?;
                let now = Instant::now();
                self.end = End::Ended(Box::pin(sleep_until(now + LINGER_SILENCE)), now + LINGER_MAX);
            }
            End::Ended(..) => {}
        }
        let End::Ended(silence, latest) = &mut self.end else {
            return Poll::Ready(Ok(()));
        };
        let mut bytes = [MaybeUninit::uninit(); LINGER_BYTES];
        let mut buffer = ReadBuf::uninit(&mut bytes);
        match either!(&mut self.socket, stream => Pin::new(stream.inner_mut()).poll_read(cx, &mut buffer)) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() && Instant::now() < *latest => {
                silence.as_mut().reset(Instant::now() + LINGER_SILENCE);
                // There may be more; others have their turn before.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            // It has ended, or broke, or goes on for too long.
            Poll::Ready(_) => Poll::Ready(Ok(())),
            Poll::Pending => silence.as_mut().poll(cx).map(Ok),
        }
    }

    /// So many of the bytes that were read ahead have been read again. An empty rest would hold on to all of them.
    fn has_read_ahead(&mut self, count: usize) {
        self.ahead.advance(count);
        if self.ahead.is_empty() {
            self.ahead = Bytes::new();
        }
    }
}

/// What is written on a stream beside hyper, which knows no interim answers. hyper flushes a stream once it has handed
/// over all that it had, and that is where these bytes go.
#[derive(Clone, Debug, Default)]
pub(crate) struct Between(Arc<Apart>);

/// hyper wants a stream that may change threads; this one never does, so that the lock is always free.
#[derive(Debug, Default)]
struct Apart {
    any: AtomicBool,
    /// Whether a part has been written, so that the rest must follow before anything else.
    begun: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: BytesMut,
    /// Whether the socket had no room when they were to be written.
    tried: bool,
    waker: Option<Waker>,
}

impl Waiting {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Between {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves bytes to be written when there is a place for them. They are left out where the peer has not taken
    /// [`BETWEEN_MAX`] of earlier ones.
    pub(crate) fn put(&self, bytes: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.bytes.len() < BETWEEN_MAX {
            waiting.bytes.extend_from_slice(bytes);
            waiting.tried = false;
            self.0.any.store(true, Ordering::Relaxed);
        }
    }

    /// Ready when there is nothing that would be written too late: all is written, or what has begun will be before
    /// anything else. What the peer has no room for is given up; a peer that does not read is not waited for here.
    pub(crate) fn poll_written(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.0.any.load(Ordering::Relaxed) {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting();
        if !waiting.tried {
            waiting.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if !self.0.begun.load(Ordering::Relaxed) {
            waiting.bytes.clear();
            self.0.any.store(false, Ordering::Relaxed);
        }
        Poll::Ready(())
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..count]);
            self.has_read_ahead(count);
            return Poll::Ready(Ok(()));
        }
        either!(&mut self.socket, stream => Read::poll_read(Pin::new(stream), cx, buffer))
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_within() {
            ready!(self.poll_between(cx))?;
        }
        either!(&mut self.socket, stream => Write::poll_write(Pin::new(stream), cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_within() {
            ready!(self.poll_between(cx))?;
        }
        if let [only] = slices {
            return either!(&mut self.socket, stream => Write::poll_write(Pin::new(stream), cx, only));
        }
        let whole: usize = slices.iter().map(|slice| slice.len()).sum();
        if whole > TOGETHER_MAX {
            return either!(&mut self.socket, stream => Write::poll_write_vectored(Pin::new(stream), cx, slices));
        }
        let Self { socket, together, .. } = &mut *self;
        together.clear();
        slices.iter().for_each(|slice| together.extend_from_slice(slice));
        either!(socket, stream => Write::poll_write(Pin::new(stream), cx, together))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self
            .between
            .as_ref()
            .is_some_and(|between| between.0.any.load(Ordering::Relaxed))
        {
            ready!(self.poll_between(cx))?;
        }
        either!(&mut self.socket, stream => Write::poll_flush(Pin::new(stream), cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_end(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..count]);
            self.has_read_ahead(count);
            return Poll::Ready(Ok(()));
        }
        either!(&mut self.socket, stream => Pin::new(stream.inner_mut()).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(&mut self.socket, stream => Pin::new(stream.inner_mut()).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Write::poll_write_vectored(self, cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(&mut self.socket, stream => Pin::new(stream.inner_mut()).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_end(cx)
    }
}
