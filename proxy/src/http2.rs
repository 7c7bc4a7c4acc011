//! HTTP/2 streams as the rest of the house sees them: bodies that are received, bodies that are sent, and byte tunnels.
//!
//! Used towards callers and towards endpoints alike. The frames, their compression and their rules are the `h2`
//! crate's; this is only what stands between its streams and bodies. It opens no connection and knows no request.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frames::Allowance;

/// Header fields of one message, decoded, with the 32 bytes that RFC 9113 section 6.5.2 counts for each: as much as
/// HTTP/1.1 heads may have here, so that crossing from one to the other loses none.
pub(crate) const HEADERS_MAX: u32 = 64 * 1024;

/// What a caller may send on one stream before we have passed it on: the bytes of two full socket reads. At a round
/// trip of 1 ms it lets 128 MB/s through.
pub(crate) const STREAM_WINDOW: u32 = 128 * 1024;

/// The same of an endpoint. It is what each answer holds whose caller does not read: five hundred of them take 28 MB with it and
/// 36 with 48 KiB, where 32 MB is what there is. At a round trip of 1 ms it lets 32 MB/s through, of each answer.
pub(crate) const ANSWER_WINDOW: u32 = 32 * 1024;

/// What may wait inside a connection to be sent on one stream: one of HTTP/2's frames. Each stream whose caller does not
/// read holds this, and the piece of its body that is at hand.
pub(crate) const SEND_BUFFER_MAX: usize = 16 * 1024;

/// What is received on a stream, as a body.
#[derive(Debug)]
pub(crate) struct Received {
    stream: RecvStream,
    /// What `content-length` promised; `h2` itself refuses a body that breaks the promise (RFC 9113 section 8.1.1).
    length: Option<u64>,
    data_over: bool,
    /// What was handed over last, of which the peer has not been told that it may send as much again.
    held: usize,
    /// A frame that was looked at and comes again next.
    put_back: Option<Box<Frame<Bytes>>>,
    /// What is known of the connection's streams.
    allowance: Rc<Allowance>,
}

impl Received {
    pub(crate) fn new(stream: RecvStream, headers: &http::HeaderMap, allowance: Rc<Allowance>) -> Self {
        let length = headers.get(http::header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Self {
            stream,
            length,
            data_over: false,
            held: 0,
            put_back: None,
            allowance,
        }
    }

    /// Puts a frame back that was looked at.
    pub(crate) fn put_back(&mut self, frame: Frame<Bytes>) {
        if let (Some(length), Some(data)) = (&mut self.length, frame.data_ref()) {
            *length += data.len() as u64;
        }
        self.put_back = Some(Box::new(frame));
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if let Some(frame) = self.put_back.take() {
            if let (Some(length), Some(data)) = (&mut self.length, frame.data_ref()) {
                *length = length.saturating_sub(data.len() as u64);
            }
            return Poll::Ready(Some(Ok(*frame)));
        }
        if !self.data_over {
            // Whoever asks for more has passed on what there was. Not before: else a reader that does not read holds a piece
            // beside a full window.
            let held = std::mem::take(&mut self.held);
            if held > 0 {
                // It fails only where the stream is gone, and its window with it.
                let _ = self.stream.flow_control().release_capacity(held);
            }
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.held = data.len();
                    if let Some(length) = &mut self.length {
                        *length = length.saturating_sub(data.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // RFC 9113 section 8.1: an answer that is complete may be followed by a reset without an error, which
                // only says that the rest of the request is not wanted.
                Some(Err(error)) if error.reason() == Some(h2::Reason::NO_ERROR) => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_over = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            // RFC 9113 section 8.1: a message whose trailers have pseudo-headers is malformed.
            Ok(Some(_)) if self.allowance.is_malformed(|| self.stream.stream_id().as_u32()) => {
                Poll::Ready(Some(Err(h2::Reason::PROTOCOL_ERROR.into())))
            }
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            Err(error) if error.reason() == Some(h2::Reason::NO_ERROR) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.put_back.is_none() && self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.length {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(length) => SizeHint::with_exact(length),
            None => SizeHint::default(),
        }
    }
}

/// A body on its way into a stream, as fast as the peer's windows let it.
#[derive(Debug)]
pub(crate) struct Sent<B> {
    stream: SendStream<Bytes>,
    body: B,
    /// What the body gave and the window has not let through, and whether it is the last.
    waiting: Option<(Bytes, bool)>,
}

/// Why a body could not be sent to its end.
#[derive(Debug)]
pub(crate) enum SendFailed<E> {
    /// The peer wants no more of it, or the connection is gone.
    Stream(h2::Error),
    /// The body itself broke off.
    Body(E),
}

impl<B: Body<Data = Bytes> + Unpin> Sent<B> {
    pub(crate) fn new(stream: SendStream<Bytes>, body: B) -> Self {
        Self {
            stream,
            body,
            waiting: None,
        }
    }

    /// Tells the peer that no more will come, and why.
    pub(crate) fn reset(&mut self, reason: h2::Reason) {
        self.stream.send_reset(reason);
    }

    /// The body that is being sent.
    pub(crate) fn body(&self) -> &B {
        &self.body
    }

    /// Asks for the window that what waits needs.
    fn ask_for_room(&mut self) {
        let count = self.waiting.as_ref().map_or(0, |(data, _)| data.len());
        self.stream.reserve_capacity(count);
    }

    /// Ready when the peer has all of it, or it cannot be.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendFailed<B::Error>>> {
        loop {
            match self.stream.poll_reset(cx) {
                Poll::Ready(Ok(reason)) => return Poll::Ready(Err(SendFailed::Stream(reason.into()))),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(SendFailed::Stream(error))),
                Poll::Pending => {}
            }
            if let Some((mut data, last)) = self.waiting.take() {
                let room = self.stream.capacity();
                if room < data.len() {
                    // Only what has its window is handed on. `h2` would take the rest too and keep it, and whether it had
                    // left could not be seen.
                    let piece = data.split_to(room);
                    self.waiting = Some((data, last));
                    if !piece.is_empty() {
                        self.stream.send_data(piece, false).map_err(SendFailed::Stream)?;
                    }
                    self.ask_for_room();
                    match ready!(self.stream.poll_capacity(cx)) {
                        Some(Ok(_)) => continue,
                        Some(Err(error)) => return Poll::Ready(Err(SendFailed::Stream(error))),
                        None => {
                            return Poll::Ready(Err(SendFailed::Stream(h2::Reason::STREAM_CLOSED.into())));
                        }
                    }
                }
                self.stream.send_data(data, last).map_err(SendFailed::Stream)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            // The body is asked when nothing of it waits here, whether there is room for more or not: what it says may be
            // its end, which needs none, and a body with nothing to say must not hold the connection's window, which
            // its siblings need.
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => {
                    return Poll::Ready(
                        self.stream
                            .send_data(Bytes::new(), true)
                            .map_err(SendFailed::Stream),
                    );
                }
                Some(Err(error)) => return Poll::Ready(Err(SendFailed::Body(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.waiting = Some((data, self.body.is_end_stream()));
                        self.ask_for_room();
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        self.stream.reserve_capacity(0);
                        return Poll::Ready(self.stream.send_trailers(trailers).map_err(SendFailed::Stream));
                    }
                },
            }
        }
    }
}

/// A stream as plain bytes both ways: what CONNECT opens (RFC 9113 section 8.5).
#[derive(Debug)]
pub(crate) struct Tunnel<G> {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Received and not yet read.
    unread: Bytes,
    /// What lives as long as the tunnel.
    _guard: G,
}

impl<G> Tunnel<G> {
    pub(crate) fn new(send: SendStream<Bytes>, receive: RecvStream, guard: G) -> Self {
        Self {
            send,
            receive,
            unread: Bytes::new(),
            _guard: guard,
        }
    }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        error
            .into_io()
            .unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
    } else {
        // A reset of the stream is to a tunnel what a reset of the connection is to TCP (RFC 9113 section 8.5).
        io::Error::new(io::ErrorKind::ConnectionReset, error)
    }
}

impl<G: Unpin> AsyncRead for Tunnel<G> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.receive.poll_data(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(data)) => self.unread = data,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let count = buffer.remaining().min(self.unread.len());
        buffer.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        let _ = self.receive.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl<G: Unpin> AsyncWrite for Tunnel<G> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(bytes.len());
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let count = self.send.capacity().min(bytes.len());
        let data = Bytes::copy_from_slice(&bytes[..count]);
        Poll::Ready(self.send.send_data(data, false).map(|()| count).map_err(broken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.send.send_data(Bytes::new(), true).map_err(broken))
    }
}
