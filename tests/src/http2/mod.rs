//! HTTP/2 as bytes: connections whose frames a test writes and reads one by one, from either end.
//!
//! Nothing here keeps to the protocol by itself, because the tests break it on purpose; [`Caller`] and [`serve`] are
//! the honest ends for the rest. It shares no code with the proxy.

pub mod frame;
pub mod hpack;
mod upstream;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use frame::{Frame, code, flag, kind};
use hpack::{Decoder, Field};

pub use upstream::{Answers, Counts, Http2Upstream, serve};

/// What an honest caller lets a whole connection send, beyond the 65,535 of the start.
const CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;

/// The largest window (RFC 9113 section 6.9.1).
pub const WINDOW_MAX: u32 = 0x7fff_ffff;

/// A connection whose frames are read and written one by one.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    unread: Vec<u8>,
    decoder: Decoder,
}

impl Raw {
    /// Speaks over this socket. Nothing is written yet.
    pub fn new(stream: TcpStream) -> Self {
        // A failure would only cost time.
        let _ = stream.set_nodelay(true);
        Self {
            stream,
            unread: Vec::new(),
            decoder: Decoder::default(),
        }
    }

    /// Connects. Nothing is written yet.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::new(TcpStream::connect(address).await?))
    }

    /// Connects, sends the preface and these settings, and acknowledges the other side's.
    pub async fn open(address: SocketAddr, settings: &[(u16, u32)]) -> io::Result<Self> {
        let mut raw = Self::connect(address).await?;
        raw.send(&[frame::PREFACE, &frame::settings(settings)].concat())
            .await?;
        raw.settle().await?;
        Ok(raw)
    }

    /// Takes the other side's preface, sends these settings and acknowledges the other side's.
    pub async fn accept(stream: TcpStream, settings: &[(u16, u32)]) -> io::Result<Self> {
        let mut raw = Self::new(stream);
        raw.preface().await?;
        raw.send(&frame::settings(settings)).await?;
        raw.settle().await?;
        Ok(raw)
    }

    /// Reads the preface of a client.
    pub async fn preface(&mut self) -> io::Result<()> {
        self.fill(frame::PREFACE.len()).await?;
        let preface: Vec<u8> = self.unread.drain(..frame::PREFACE.len()).collect();
        match preface == frame::PREFACE {
            true => Ok(()),
            false => Err(bad("no preface")),
        }
    }

    /// Waits for the other side's settings and acknowledges them.
    async fn settle(&mut self) -> io::Result<()> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind::SETTINGS && !frame.has(flag::ACK) {
                return self.send(&frame::settings_ack()).await;
            }
        }
    }

    /// The socket itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Another hand on the same socket, to write with while this reads.
    pub fn writer(&self) -> TcpStream {
        use std::os::fd::AsFd;
        let socket = self.stream.as_fd().try_clone_to_owned().expect("a descriptor");
        TcpStream::from_std(socket.into()).expect("a socket")
    }

    /// Sends these bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Says that nothing more will be sent.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// The next frame; `None` when the connection ended between frames. What was read stays when this is cancelled.
    pub async fn frame(&mut self) -> io::Result<Option<Frame>> {
        if !self.fill(9).await? {
            return Ok(None);
        }
        let length = self.unread[..3]
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        if !self.fill(9 + length).await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bytes: Vec<u8> = self.unread.drain(..9 + length).collect();
        let stream = bytes[5..9]
            .iter()
            .fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        Ok(Some(Frame {
            kind: bytes[3],
            flags: bytes[4],
            stream: stream & WINDOW_MAX,
            payload: bytes[9..].to_vec(),
        }))
    }

    /// The next frame, which must come.
    pub async fn next(&mut self) -> io::Result<Frame> {
        let frame = self.frame().await?;
        frame.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// The fields of a header block that began with this frame; its continuations are read.
    pub async fn fields(&mut self, first: &Frame) -> io::Result<Vec<Field>> {
        let mut block = first.payload.clone();
        if first.kind == kind::HEADERS {
            let padding = match first.has(flag::PADDED) {
                true => usize::from(block.remove(0)),
                false => 0,
            };
            if first.has(flag::PRIORITY) {
                block.drain(..5);
            }
            block.truncate(block.len() - padding);
        }
        let mut ended = first.has(flag::END_HEADERS);
        while !ended {
            let more = self.next().await?;
            if more.kind != kind::CONTINUATION {
                return Err(bad("a header block that is interrupted"));
            }
            block.extend(&more.payload);
            ended = more.has(flag::END_HEADERS);
        }
        self.decoder.decode(&block)
    }

    /// Reads until so many bytes are there; false when the connection ended before the first of them.
    async fn fill(&mut self, count: usize) -> io::Result<bool> {
        while self.unread.len() < count {
            self.unread.reserve(16 * 1024);
            if self.stream.read_buf(&mut self.unread).await? == 0 {
                return match self.unread.is_empty() {
                    true => Ok(false),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
        Ok(true)
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP/2: {what}"))
}

/// What came on one stream.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The fields of each interim answer.
    pub interim: Vec<Vec<Field>>,
    /// The fields of the head.
    pub head: Vec<Field>,
    /// The body.
    pub body: Vec<u8>,
    /// The trailers.
    pub trailers: Vec<Field>,
    /// Whether it ended as a whole.
    pub ended: bool,
    /// The code it was reset with.
    pub reset: Option<u32>,
}

impl Reply {
    /// The status; 0 where there is no head.
    pub fn status(&self) -> u16 {
        let status = self.header(":status");
        status.and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    /// The first field of the head with this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.head.iter().find(|(held, _)| held == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Whether nothing more will come.
    pub fn is_over(&self) -> bool {
        self.ended || self.reset.is_some()
    }
}

/// An honest caller: many requests on one connection, its windows always open.
#[derive(Debug)]
pub struct Caller {
    /// The frames beneath.
    pub raw: Raw,
    replies: HashMap<u32, Reply>,
    next: u32,
    /// The last GOAWAY: the last stream that is served, and the code.
    pub goaway: Option<(u32, u32)>,
    /// Every GOAWAY, in their order.
    pub goaways: Vec<(u32, u32)>,
    /// Whether the connection has ended.
    pub ended: bool,
}

impl Caller {
    /// Connects.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        Self::open_with(address, &[]).await
    }

    /// Connects with these settings.
    pub async fn open_with(address: SocketAddr, settings: &[(u16, u32)]) -> io::Result<Self> {
        let mut raw = Raw::open(address, settings).await?;
        raw.send(&frame::window(0, CONNECTION_WINDOW)).await?;
        Ok(Self::of(raw))
    }

    /// Takes over a connection whose preface has been sent.
    pub fn of(raw: Raw) -> Self {
        Self {
            raw,
            replies: HashMap::new(),
            next: 1,
            goaway: None,
            goaways: Vec::new(),
            ended: false,
        }
    }

    /// The number of a new stream.
    pub fn stream(&mut self) -> u32 {
        let stream = self.next;
        self.next += 2;
        stream
    }

    /// Begins a GET; its stream.
    pub async fn get(&mut self, authority: &str, path: &str) -> io::Result<u32> {
        let stream = self.stream();
        let head = request("GET", authority, path);
        self.raw
            .send(&frame::headers(stream, flag::END_STREAM, &head))
            .await?;
        Ok(stream)
    }

    /// Begins a POST with a small body; its stream.
    pub async fn post(&mut self, authority: &str, path: &str, body: &[u8]) -> io::Result<u32> {
        let stream = self.stream();
        let head = frame::headers(stream, 0, &request("POST", authority, path));
        let data = frame::data(stream, flag::END_STREAM, body);
        self.raw.send(&[head, data].concat()).await?;
        Ok(stream)
    }

    /// Takes one frame and keeps what it says; false when the connection has ended.
    pub async fn take(&mut self) -> io::Result<bool> {
        let Some(frame) = self.raw.frame().await? else {
            self.ended = true;
            return Ok(false);
        };
        let stream = frame.stream;
        match frame.kind {
            kind::HEADERS => {
                let fields = self.raw.fields(&frame).await?;
                let reply = self.replies.entry(stream).or_default();
                let interim = fields
                    .iter()
                    .any(|(name, value)| name == ":status" && value.starts_with('1'));
                match (interim, reply.head.is_empty()) {
                    (true, _) => reply.interim.push(fields),
                    (false, true) => reply.head = fields,
                    (false, false) => reply.trailers = fields,
                }
                reply.ended |= frame.has(flag::END_STREAM);
            }
            kind::DATA => {
                let reply = self.replies.entry(stream).or_default();
                reply.body.extend(&frame.payload);
                reply.ended |= frame.has(flag::END_STREAM);
                let ended = reply.ended;
                if let Some(count) = u32::try_from(frame.payload.len()).ok().filter(|count| *count > 0) {
                    let mut more = frame::window(0, count);
                    if !ended {
                        more.extend(frame::window(stream, count));
                    }
                    // It may have closed behind what it sent, which the reading shows.
                    let _ = self.raw.send(&more).await;
                }
            }
            kind::RST_STREAM => {
                self.replies.entry(stream).or_default().reset = Some(frame.number(0));
            }
            kind::GOAWAY => {
                self.goaway = Some((frame.number(0), frame.number(4)));
                self.goaways.extend(self.goaway);
            }
            kind::PING if !frame.has(flag::ACK) => {
                let pong = frame::frame(kind::PING, flag::ACK, 0, &frame.payload);
                let _ = self.raw.send(&pong).await;
            }
            kind::SETTINGS if !frame.has(flag::ACK) => {
                let _ = self.raw.send(&frame::settings_ack()).await;
            }
            _ => {}
        }
        Ok(true)
    }

    /// What has come on a stream until now.
    pub fn so_far(&self, stream: u32) -> Reply {
        self.replies.get(&stream).cloned().unwrap_or_default()
    }

    /// Takes out one of the replies that are over.
    pub fn over(&mut self) -> Option<(u32, Reply)> {
        let stream = *self.replies.iter().find(|(_, reply)| reply.is_over())?.0;
        self.replies.remove(&stream).map(|reply| (stream, reply))
    }

    /// Waits until the answer on a stream is over.
    ///
    /// # Errors
    /// When the connection ends before.
    pub async fn reply(&mut self, stream: u32) -> io::Result<Reply> {
        loop {
            if self.replies.get(&stream).is_some_and(Reply::is_over) {
                return Ok(self.replies.remove(&stream).unwrap_or_default());
            }
            if !self.take().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads until the connection ends; the code of its last GOAWAY.
    pub async fn until_end(&mut self) -> Option<u32> {
        while matches!(self.take().await, Ok(true)) {}
        self.goaway.map(|(_, code)| code)
    }
}

/// The head of a request.
pub fn request(method: &str, authority: &str, path: &str) -> Vec<Field> {
    let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    vec![
        field(":method", method),
        field(":scheme", "http"),
        field(":authority", authority),
        field(":path", path),
    ]
}

/// The name of an error code.
pub fn code_name(code: u32) -> &'static str {
    match code {
        code::NO_ERROR => "NO_ERROR",
        code::PROTOCOL_ERROR => "PROTOCOL_ERROR",
        code::INTERNAL_ERROR => "INTERNAL_ERROR",
        code::FLOW_CONTROL_ERROR => "FLOW_CONTROL_ERROR",
        code::STREAM_CLOSED => "STREAM_CLOSED",
        code::FRAME_SIZE_ERROR => "FRAME_SIZE_ERROR",
        code::REFUSED_STREAM => "REFUSED_STREAM",
        code::CANCEL => "CANCEL",
        code::COMPRESSION_ERROR => "COMPRESSION_ERROR",
        code::ENHANCE_YOUR_CALM => "ENHANCE_YOUR_CALM",
        _ => "another code",
    }
}
