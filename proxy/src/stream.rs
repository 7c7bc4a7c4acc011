//! A TCP stream as hyper and h2 are handed it: what was read ahead comes first, and one plain write where one will do.
//!
//! hyper writes a head and a body as two slices. For the kernel a vectored write of a few hundred bytes costs more
//! than copying them together first, so small ones are; large bodies go as they are, uncopied. It does nothing else.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The most that is copied together. A head and a small answer fit; copying this much takes some tens of
/// nanoseconds.
const TOGETHER_MAX: usize = 2048;

/// A TCP stream as hyper is handed it.
#[derive(Debug)]
pub(crate) struct Stream {
    stream: TokioIo<TcpStream>,
    /// What was read to find out what the peer speaks; it is read again first.
    ahead: Bytes,
    /// Where slices are copied together; empty until that is first needed.
    together: Vec<u8>,
}

impl Stream {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self::after(Bytes::new(), stream)
    }

    /// A stream of which some bytes have been read ahead.
    pub(crate) fn after(ahead: Bytes, stream: TcpStream) -> Self {
        Self {
            stream: TokioIo::new(stream),
            ahead,
            together: Vec::new(),
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
        Pin::new(&mut self.stream).poll_shutdown(cx)
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
        Pin::new(self.stream.inner_mut()).poll_shutdown(cx)
    }
}
