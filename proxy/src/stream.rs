//! A TCP stream as hyper and h2 are handed it: what was read ahead comes first, and one plain write where one will do.
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

/// A TCP stream as hyper is handed it.
#[derive(Debug)]
pub(crate) struct Stream {
    stream: TokioIo<TcpStream>,
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

impl Stream {
    /// A stream to an endpoint.
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream: TokioIo::new(stream),
            ahead: Bytes::new(),
            together: Vec::new(),
            between: None,
            end: End::AtOnce,
        }
    }

    /// A stream from a caller, of which some bytes have been read ahead.
    pub(crate) fn after(ahead: Bytes, stream: TcpStream) -> Self {
        Self {
            ahead,
            end: End::Lingering,
            ..Self::new(stream)
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
            match Pin::new(&mut self.stream).poll_write(cx, &waiting.bytes) {
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
            End::AtOnce => return AsyncWrite::poll_shutdown(Pin::new(self.stream.inner_mut()), cx),
            End::Lingering => {
                ready!(AsyncWrite::poll_shutdown(Pin::new(self.stream.inner_mut()), cx))?;
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
        match Pin::new(self.stream.inner_mut()).poll_read(cx, &mut buffer) {
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
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_within() {
            ready!(self.poll_between(cx))?;
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
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
            return Pin::new(&mut self.stream).poll_write(cx, only);
        }
        let whole: usize = slices.iter().map(|slice| slice.len()).sum();
        if whole > TOGETHER_MAX {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        }
        let Self { stream, together, .. } = &mut *self;
        together.clear();
        slices.iter().for_each(|slice| together.extend_from_slice(slice));
        Pin::new(stream).poll_write(cx, together)
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
        Pin::new(&mut self.stream).poll_flush(cx)
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
        Pin::new(self.stream.inner_mut()).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.inner_mut()).poll_write(cx, bytes)
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
        Pin::new(self.stream.inner_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_end(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Stream::new(listener.accept().await.unwrap().0), peer)
    }

    async fn write(stream: &mut Stream, bytes: &[u8]) {
        let written = std::future::poll_fn(|cx| Write::poll_write(Pin::new(&mut *stream), cx, bytes)).await;
        assert_eq!(written.unwrap(), bytes.len());
    }

    #[tokio::test]
    async fn what_stands_in_between_waits_for_a_flush_and_once_begun_is_finished_first() {
        let (mut stream, mut peer) = pair().await;
        let between = stream.between();
        let cx = Context::from_waker(Waker::noop());
        between.put(b"one ");
        // hyper may have more of a message to write, and is not interrupted.
        write(&mut stream, b"a message ").await;
        assert!(between.poll_written(&cx).is_pending());
        std::future::poll_fn(|cx| Write::poll_flush(Pin::new(&mut stream), cx))
            .await
            .unwrap();
        assert!(between.poll_written(&cx).is_ready());
        between.put(b"two ");
        between.0.begun.store(true, Ordering::Relaxed);
        write(&mut stream, b"another").await;
        drop(stream);
        let mut all = String::new();
        peer.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "a message one two another");
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_not_waited_for() {
        let (mut stream, _peer) = pair().await;
        let between = stream.between();
        let mut cx = Context::from_waker(Waker::noop());
        let piece = vec![0; 64 * 1024];
        // Until the socket has no room; it may say so once too early.
        for _ in 0..1000 {
            if Write::poll_write(Pin::new(&mut stream), &mut cx, &piece).is_pending() {
                break;
            }
        }
        between.put(b"hints");
        assert!(between.poll_written(&cx).is_pending());
        assert!(Write::poll_flush(Pin::new(&mut stream), &mut cx).is_pending());
        assert!(between.poll_written(&cx).is_ready());
        assert!(
            between.waiting().bytes.is_empty(),
            "what cannot be said in time is left out"
        );
    }
}
