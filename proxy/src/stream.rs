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
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
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

/// A TCP stream as hyper is handed it.
#[derive(Debug)]
pub(crate) struct Stream {
    stream: TokioIo<TcpStream>,
    /// What was read to find out what the peer speaks; it is read again first.
    ahead: Bytes,
    /// Where slices are copied together; empty until that is first needed.
    together: Vec<u8>,
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
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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
