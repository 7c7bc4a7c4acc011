//! One request after the other on a stream, and their answers.
//!
//! It is driven by the request that uses it: nothing here has a task, a channel or a waker of its own. What bytes mean is
//! [`crate::http1`]'s. Memory that is written or read for a moment only is taken for that moment, so that all connections
//! of a thread use the same, which is warm; an idle one holds none.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::unconstrained;
use tokio_util::io::poll_read_buf;

use crate::arriving::{Arriving, Broken, sifted};
use crate::http1::{Content, Framing, Head, Said, read_head, write_head};
use crate::interim::{Allowance, Interim};
use crate::stream::Stream;
use crate::upstream::http1::BUFFER_MAX;
use crate::upstream::outgoing::OutgoingBody;
use crate::upstream::pool::{Broke, SendError};

/// What is read for a head in one turn: a head and a small body fit.
const HEAD_READ: usize = 8 * 1024;

/// Room for the head of a request: most fit, and others make it grow.
const HEAD_WRITTEN: usize = 512;

/// A piece of a request's body up to this size is copied behind what is written anyway; a larger one is written from where
/// it is.
const COPIED_MAX: usize = 2048;

/// What may be copied together before it is written.
const TOGETHER_MAX: usize = 16 * 1024;

/// A stream on which requests are sent.
#[derive(Debug)]
pub(super) struct Exchange {
    stream: Stream,
    /// What was read and is not understood yet.
    came: Bytes,
    /// Whether a head is worth looking for: a line has ended since. One that comes byte by byte is not read again for each.
    line_ended: bool,
    /// Where the body of an answer is read to.
    room: BytesMut,
    waiting: Waiting,
    /// The body that is being sent, if it is not all handed over.
    upload: Option<(OutgoingBody, Framing)>,
    /// The fields of the last request, emptied: the map has room for those of its answer.
    fields: HeaderMap,
    /// What the endpoint may still say before its answer.
    allowance: Allowance,
    to_head: bool,
    /// Whether an answer is to come, or to end.
    answering: bool,
    /// Whether it may take another request behind this one.
    keeps: bool,
}

/// What waits to be written.
#[derive(Debug, Default)]
struct Waiting {
    /// First these: a head, or what stands before a piece of a body, and pieces that were copied.
    small: BytesMut,
    /// Then these.
    data: Bytes,
    /// And what stands behind them.
    behind: &'static [u8],
    /// Whether what was written may wait inside of the stream.
    flush: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.small.is_empty() && self.data.is_empty() && self.behind.is_empty()
    }

    /// So many bytes have been written.
    fn advance(&mut self, mut count: usize) {
        let small = count.min(self.small.len());
        self.small.advance(small);
        count -= small;
        let data = count.min(self.data.len());
        self.data.advance(data);
        self.behind = &self.behind[count - data..];
        if self.is_empty() {
            // Nothing is held on to between requests.
            (self.small, self.data) = (BytesMut::new(), Bytes::new());
        }
    }
}

impl Exchange {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            came: Bytes::new(),
            line_ended: false,
            room: BytesMut::new(),
            waiting: Waiting::default(),
            upload: None,
            fields: HeaderMap::new(),
            allowance: Allowance::default(),
            to_head: false,
            answering: false,
            keeps: true,
        }
    }

    /// Whether it may take a request: the one before and its answer are over, with nothing behind it.
    pub(super) fn is_ready(&self) -> bool {
        self.keeps
            && !self.answering
            && self.upload.is_none()
            && self.waiting.is_empty()
            && !self.waiting.flush
            && self.came.is_empty()
    }

    /// Whether the endpoint has neither closed it nor said anything that nobody asked for (RFC 9112 section 9.2).
    pub(super) fn stands(&mut self, cx: &mut Context<'_>) -> bool {
        let look = std::future::poll_fn(|cx| {
            let mut bytes = [MaybeUninit::uninit(); 1];
            AsyncRead::poll_read(Pin::new(&mut self.stream), cx, &mut ReadBuf::uninit(&mut bytes))
        });
        // A task that has had its turn would see nothing, whatever there is.
        let stands = std::pin::pin!(unconstrained(look)).poll(cx).is_pending();
        self.keeps &= stands;
        stands
    }

    /// Takes a request, and sends of it what can be sent. The rest leaves as [`Self::poll_answer`] is polled.
    ///
    /// # Errors
    /// When its body breaks off.
    pub(super) fn begin(
        &mut self,
        request: Request<OutgoingBody>,
        cx: &mut Context<'_>,
    ) -> Result<(), SendError> {
        let (mut head, body) = request.into_parts();
        let bodiless = body.is_end_stream();
        let mut out = BytesMut::with_capacity(HEAD_WRITTEN);
        let length = body.size_hint().exact();
        let framing = write_head(
            &mut out,
            (&head.method, &head.uri),
            &head.headers,
            (bodiless, length),
        );
        self.waiting.small = out;
        self.upload = (!bodiless).then_some((body, framing));
        self.to_head = head.method == Method::HEAD;
        head.headers.clear();
        self.fields = head.headers;
        self.allowance = Allowance::default();
        self.answering = true;
        self.write(cx).map_err(SendError::CallerBroke)
    }

    /// Sends what can be sent, and reads until the head of the answer is there. What comes before it is passed on.
    pub(super) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        interim: &Interim,
    ) -> Poll<Result<Response<Arriving>, SendError>> {
        if let Err(broken) = self.write(cx) {
            return Poll::Ready(Err(SendError::CallerBroke(broken)));
        }
        loop {
            if std::mem::take(&mut self.line_ended) && !self.came.is_empty() {
                match read_head(&self.came, &mut self.fields, self.to_head) {
                    Ok(Some((said, length))) => {
                        self.has_read(length);
                        match said {
                            Said::Answer(head) => return Poll::Ready(Ok(self.answer(head))),
                            Said::Interim(status, fields) => {
                                if !self.allowance.takes(&fields) {
                                    return Poll::Ready(Err(self.broke(SendError::TooManyInterim)));
                                }
                                interim.heard(status, fields);
                                // It may be what the body was held back for.
                                if let Err(broken) = self.write(cx) {
                                    return Poll::Ready(Err(SendError::CallerBroke(broken)));
                                }
                                self.line_ended = !self.came.is_empty();
                                continue;
                            }
                        }
                    }
                    Ok(None) if self.came.len() < BUFFER_MAX => {}
                    Ok(None) => {
                        return Poll::Ready(Err(self.broke(Broke::NotHttp("its head is too large").into())));
                    }
                    Err(wrong) => return Poll::Ready(Err(self.broke(Broke::NotHttp(wrong).into()))),
                }
            }
            match ready!(self.poll_read_head(cx)) {
                Ok(true) => {}
                Ok(false) => return Poll::Ready(Err(self.broke(Broke::Closed.into()))),
                Err(error) => return Poll::Ready(Err(self.broke(Broke::Lost(error).into()))),
            }
        }
    }

    /// The next frame of the answer's body, while the rest of the request goes on being sent.
    pub(super) fn poll_body(
        &mut self,
        content: &mut Content,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if (self.upload.is_some() || !self.waiting.is_empty() || self.waiting.flush)
            && let Err(broken) = self.write(cx)
        {
            return Poll::Ready(Some(Err(Broken::Request(Box::new(broken)))));
        }
        loop {
            match content.next(&mut self.came) {
                Ok(Some(frame)) => {
                    self.has_read(0);
                    if content.is_over() {
                        self.has_answered();
                    }
                    return Poll::Ready(Some(Ok(sifted(frame))));
                }
                Ok(None) if content.is_over() => {
                    self.has_read(0);
                    self.has_answered();
                    return Poll::Ready(None);
                }
                Ok(None) => {}
                Err(wrong) => {
                    self.keeps = false;
                    return Poll::Ready(Some(Err(Broken::Malformed(wrong))));
                }
            }
            match ready!(self.poll_read_body(cx)) {
                Ok(true) => {}
                Ok(false) => {
                    self.keeps = false;
                    if content.closed() {
                        return Poll::Ready(None);
                    }
                    let early = io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "it closed the connection in the middle",
                    );
                    return Poll::Ready(Some(Err(Broken::Lost(early))));
                }
                Err(error) => {
                    self.keeps = false;
                    return Poll::Ready(Some(Err(Broken::Lost(error))));
                }
            }
        }
    }

    fn answer(&mut self, head: Head) -> Response<Arriving> {
        self.keeps &= head.keeps;
        if head.content.is_over() {
            self.has_answered();
        }
        let mut response = Response::new(Arriving::Http1Answer(head.content));
        *response.status_mut() = head.status;
        *response.version_mut() = head.version;
        *response.headers_mut() = head.fields;
        if let Some(words) = head.words {
            response.extensions_mut().insert(words);
        }
        response
    }

    fn broke(&mut self, error: SendError) -> SendError {
        self.keeps = false;
        error
    }

    fn has_answered(&mut self) {
        self.answering = false;
        self.room = BytesMut::new();
    }

    /// So many bytes of what came are understood. An empty rest would hold on to all of them.
    fn has_read(&mut self, count: usize) {
        self.came.advance(count);
        if self.came.is_empty() {
            self.came = Bytes::new();
        }
    }

    /// Reads more of a head; `false` if the endpoint has closed. Read where it is warm, and kept in no more than it takes.
    fn poll_read_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut bytes = [MaybeUninit::uninit(); HEAD_READ];
        let mut buffer = ReadBuf::uninit(&mut bytes);
        ready!(AsyncRead::poll_read(Pin::new(&mut self.stream), cx, &mut buffer))?;
        let more = buffer.filled();
        // The first bytes tell whether it is HTTP at all.
        let first = self.came.is_empty();
        self.line_ended = first || more.contains(&b'\n') || self.came.len() + more.len() >= BUFFER_MAX;
        self.came = match std::mem::take(&mut self.came).try_into_mut() {
            Ok(mut begun) if !first => {
                begun.extend_from_slice(more);
                begun.freeze()
            }
            Err(begun) if !first => Bytes::from([&begun, more].concat()),
            _ => Bytes::copy_from_slice(more),
        };
        Poll::Ready(Ok(!more.is_empty()))
    }

    /// Reads more of a body, in pieces that are handed on as they are.
    fn poll_read_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.room.reserve(BUFFER_MAX);
        let read = poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.room);
        if read.is_pending() {
            // It may be long until there is more.
            self.room = BytesMut::new();
        }
        let count = ready!(read)?;
        self.came = if count < BUFFER_MAX / 4 {
            // A small piece would hold on to all of the room, and there may be thousands of them on their way.
            let piece = Bytes::copy_from_slice(&self.room);
            self.room.clear();
            piece
        } else {
            self.room.split().freeze()
        };
        Poll::Ready(Ok(count > 0))
    }

    /// Writes what waits, and what the body has at hand.
    ///
    /// # Errors
    /// When the body breaks off. That the endpoint takes no more is none: it may have answered already, which is read next.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        loop {
            self.gather(cx)?;
            if self.waiting.is_empty() {
                break;
            }
            let Waiting {
                small, data, behind, ..
            } = &self.waiting;
            let stream = Pin::new(&mut self.stream);
            let written = match data.is_empty() && behind.is_empty() {
                true => stream.poll_write(cx, small),
                false => {
                    let slices = [&small[..], data, behind].map(io::IoSlice::new);
                    AsyncWrite::poll_write_vectored(stream, cx, &slices)
                }
            };
            match written {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.waiting.advance(count);
                    self.waiting.flush = true;
                }
                Poll::Ready(_) => {
                    self.takes_no_more();
                    return Ok(());
                }
            }
        }
        if self.waiting.flush {
            match AsyncWrite::poll_flush(Pin::new(&mut self.stream), cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.waiting.flush = false,
                Poll::Ready(Err(_)) => self.takes_no_more(),
            }
        }
        Ok(())
    }

    fn takes_no_more(&mut self) {
        self.keeps = false;
        self.upload = None;
        self.waiting = Waiting::default();
    }

    /// Puts what the body has at hand behind what waits.
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        while self.waiting.data.is_empty()
            && self.waiting.behind.is_empty()
            && self.waiting.small.len() < TOGETHER_MAX
        {
            let Some((body, framing)) = &mut self.upload else {
                return Ok(());
            };
            let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else {
                return Ok(());
            };
            let small = &mut self.waiting.small;
            let ended = match frame {
                None => framing.end(small, None).map(|()| true),
                Some(Err(broken)) => {
                    self.keeps = false;
                    return Err(broken);
                }
                Some(Ok(frame)) => match frame.into_data() {
                    // A piece of nothing would be the end.
                    Ok(data) if data.is_empty() => Ok(false),
                    Ok(data) => framing.before(small, data.len()).map(|()| {
                        if data.len() > COPIED_MAX {
                            (self.waiting.data, self.waiting.behind) = (data, framing.behind());
                        } else {
                            small.put_slice(&data);
                            small.put_slice(framing.behind());
                        }
                        false
                    }),
                    Err(frame) => framing.end(small, frame.trailers_ref()).map(|()| true),
                },
            };
            match ended {
                Ok(false) => {}
                Ok(true) => self.upload = None,
                Err(wrong) => {
                    self.keeps = false;
                    return Err(Broken::Malformed(wrong));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http::Version;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// The two ends of a connection: what is driven, and its endpoint.
    async fn pair() -> (Exchange, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (endpoint, _) = listener.accept().await.unwrap();
        (Exchange::new(ours.into()), endpoint)
    }

    fn get() -> Request<OutgoingBody> {
        Request::new(OutgoingBody::Empty)
    }

    #[tokio::test]
    async fn a_connection_whose_answer_is_over_holds_no_memory_for_the_next() {
        const LENGTH: usize = 100_000;
        let (mut exchange, mut endpoint) = pair().await;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n\r\n");
        let sending = async {
            endpoint.write_all(head.as_bytes()).await.unwrap();
            endpoint.write_all(&[b'x'; LENGTH]).await.unwrap();
        };
        let asking = async {
            let interim = Interim::new(Version::HTTP_11);
            std::future::poll_fn(|cx| Poll::Ready(exchange.begin(get(), cx)))
                .await
                .unwrap();
            let answer = std::future::poll_fn(|cx| exchange.poll_answer(cx, &interim))
                .await
                .unwrap();
            let Arriving::Http1Answer(mut content) = answer.into_body() else {
                panic!("it is an answer by HTTP/1.1");
            };
            let mut came = 0;
            while !content.is_over() {
                let frame = std::future::poll_fn(|cx| exchange.poll_body(&mut content, cx)).await;
                came += frame.unwrap().unwrap().into_data().unwrap().len();
            }
            assert_eq!(came, LENGTH);
        };
        tokio::join!(sending, asking);
        assert!(exchange.is_ready());
        assert_eq!((exchange.room.capacity(), exchange.came.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_connection_that_has_ended_is_seen_by_a_task_that_has_had_its_turn() {
        let (mut exchange, mut endpoint) = pair().await;
        assert!(exchange.stands(&mut Context::from_waker(Waker::noop())));
        let late = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n";
        endpoint.write_all(late).await.unwrap();
        drop(endpoint);
        exchange.stream.tcp().readable().await.unwrap();
        let stands = std::future::poll_fn(|cx| {
            while std::pin::pin!(tokio::task::coop::consume_budget())
                .poll(cx)
                .is_ready()
            {}
            Poll::Ready(exchange.stands(cx))
        });
        assert!(!stands.await);
        assert!(!exchange.is_ready());
    }
}
