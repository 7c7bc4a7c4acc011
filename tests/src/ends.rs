//! A caller and an endpoint of either version of HTTP, each step of them in the hands of the test.
//!
//! What one of them says and when is the test's, so that what must pass between two steps is seen between them. Nothing
//! runs by itself. For servers and clients that behave, see [`crate::upstream`] and [`crate::client`].

use std::net::SocketAddr;

use tokio::net::TcpListener;

use crate::client::Connection;
use crate::http2::frame::{self, flag, kind};
use crate::http2::hpack::Field;
use crate::http2::{Caller, Raw, request};
use crate::service_file::ServiceFile;
use crate::wait::within;
use crate::wire::{Head, Wire};

/// The longest body that is kept.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
}

/// The four pairs: what a caller speaks, and what an endpoint does.
pub const PAIRS: [(Http, Http); 4] = [
    (Http::One, Http::One),
    (Http::One, Http::Two),
    (Http::Two, Http::One),
    (Http::Two, Http::Two),
];

/// A message, or as much of it as has come.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The status of an answer; 0 of a request.
    pub status: u16,
    /// The fields of its head, names in small letters.
    pub fields: Vec<Field>,
    /// Its body.
    pub body: Vec<u8>,
    /// Its trailers.
    pub trailers: Vec<Field>,
}

impl Message {
    /// The value of a field of the head; the first if there are several.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(held, _)| held == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The value of a trailer.
    pub fn trailer(&self, name: &str) -> Option<&str> {
        let found = self.trailers.iter().find(|(held, _)| held == name);
        found.map(|(_, value)| value.as_str())
    }

    fn of(head: &Head) -> Self {
        Self {
            status: head.status(),
            fields: small(&head.headers),
            ..Self::default()
        }
    }
}

fn small(fields: &[(String, String)]) -> Vec<Field> {
    let small = |(name, value): &(String, String)| (name.to_ascii_lowercase(), value.clone());
    fields.iter().map(small).collect()
}

fn lines(first: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut head = format!("{first}\r\n");
    for (name, value) in fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// A listening socket.
#[derive(Debug)]
pub struct Endpoint {
    listener: TcpListener,
    http: Http,
}

impl Endpoint {
    /// One that speaks this.
    pub async fn start(http: Http) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self { listener, http }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("a bound socket has an address")
    }

    /// A service with this endpoint, and one route with these fields.
    pub fn service(&self, name: &str, fields: &str) -> ServiceFile {
        let protocol = match self.http {
            Http::One => "protocol: http",
            Http::Two => "protocol: http2",
        };
        ServiceFile::new(name)
            .field(protocol)
            .backend("v1", &[self.address()])
            .route("default", &[("v1", 1)], fields)
    }

    /// The next connection, and the head of its first request.
    pub async fn take(&self) -> Taken {
        within("a request", async {
            let (stream, _) = self.listener.accept().await.expect("a connection");
            let side = match self.http {
                Http::One => Side::One(Wire::new(stream)),
                Http::Two => Side::Two(Raw::accept(stream, &[]).await.expect("HTTP/2"), 0),
            };
            let mut taken = Taken {
                side,
                request: Message::default(),
                ended: false,
            };
            taken.head().await;
            taken
        })
        .await
    }
}

#[derive(Debug)]
enum Side {
    One(Wire),
    Two(Raw, u32),
}

/// A request that an endpoint has taken.
#[derive(Debug)]
pub struct Taken {
    side: Side,
    /// What has come of it.
    pub request: Message,
    ended: bool,
}

impl Taken {
    /// The next request on the same connection.
    pub async fn next(&mut self) {
        within("another request", self.head()).await;
    }

    async fn head(&mut self) {
        match &mut self.side {
            Side::One(wire) => {
                let head = wire.head().await.expect("a head").expect("a request");
                self.request = Message::of(&head);
            }
            Side::Two(raw, stream) => loop {
                let frame = raw.next().await.expect("a frame");
                if frame.kind == kind::HEADERS {
                    self.request = Message {
                        fields: raw.fields(&frame).await.expect("fields"),
                        ..Message::default()
                    };
                    *stream = frame.stream;
                    self.ended = frame.has(flag::END_STREAM);
                    break;
                }
            },
        }
    }

    /// Reads the whole of its body.
    pub async fn body(&mut self) -> &Message {
        within("a body", async {
            match &mut self.side {
                Side::One(wire) => {
                    let head = Head {
                        first_line: "POST / HTTP/1.1".into(),
                        headers: self.request.fields.clone(),
                    };
                    let framing = head.request_framing().expect("a framing");
                    let body = wire.body(framing, BODY_BYTES_MAX).await;
                    assert_eq!(body.cut, None);
                    self.request.body = body.bytes;
                    self.request.trailers = small(&body.trailers);
                }
                Side::Two(raw, stream) => {
                    while !self.ended {
                        let frame = raw.next().await.expect("a frame");
                        if frame.stream != *stream {
                            continue;
                        }
                        match frame.kind {
                            kind::DATA => {
                                self.request.body.extend(&frame.payload);
                                let count = u32::try_from(frame.payload.len()).unwrap_or_default();
                                if count > 0 {
                                    let more = [frame::window(0, count), frame::window(*stream, count)];
                                    raw.send(&more.concat()).await.expect("a connection");
                                }
                            }
                            kind::HEADERS => {
                                self.request.trailers = raw.fields(&frame).await.expect("fields");
                            }
                            other => panic!("a frame of the kind {other} in the middle of a body"),
                        }
                        self.ended = frame.has(flag::END_STREAM);
                    }
                }
            }
        })
        .await;
        &self.request
    }

    /// Says something before the answer.
    pub async fn inform(&mut self, status: u16, fields: &[(&str, &str)]) {
        let bytes = match &self.side {
            Side::One(_) => lines(&format!("HTTP/1.1 {status} Interim"), fields),
            Side::Two(_, stream) => status_frame(*stream, 0, status, fields),
        };
        self.send(&bytes).await;
    }

    /// Answers with a body, and trailers if there are any.
    pub async fn answer(
        &mut self,
        status: u16,
        fields: &[(&str, &str)],
        body: &[u8],
        trailers: &[(&str, &str)],
    ) {
        let bytes = match &self.side {
            Side::One(_) => {
                let fields = [fields, &[("transfer-encoding", "chunked")]].concat();
                let head = lines(&format!("HTTP/1.1 {status} Status"), &fields);
                [head, chunk(body), lines("0", trailers)].concat()
            }
            Side::Two(_, stream) => {
                let flags = if trailers.is_empty() { flag::END_STREAM } else { 0 };
                let head = status_frame(*stream, 0, status, fields);
                let mut frames = [head, frame::data(*stream, flags, body)].concat();
                if !trailers.is_empty() {
                    frames.extend(frame::headers(*stream, flag::END_STREAM, trailers));
                }
                frames
            }
        };
        self.send(&bytes).await;
    }

    /// Sends these bytes.
    pub async fn send(&mut self, bytes: &[u8]) {
        let sent = match &mut self.side {
            Side::One(wire) => wire.send(bytes).await,
            Side::Two(raw, _) => raw.send(bytes).await,
        };
        sent.expect("a connection");
    }
}

fn status_frame(stream: u32, flags: u8, status: u16, fields: &[(&str, &str)]) -> Vec<u8> {
    let status = status.to_string();
    let fields = [&[(":status", status.as_str())], fields].concat();
    frame::headers(stream, flags, &fields)
}

#[derive(Debug)]
enum Voice {
    One(Connection, String),
    Two(Box<Caller>, u32),
}

/// A caller and its request.
#[derive(Debug)]
pub struct Asking {
    voice: Voice,
    /// Interim answers that have been looked at.
    seen: usize,
    chunked: bool,
}

impl Asking {
    /// Sends the head of a request for this host; a body follows unless it `ends` with it.
    pub async fn begin(
        http: Http,
        address: SocketAddr,
        (method, host): (&str, &str),
        fields: &[(&str, &str)],
        ends: bool,
    ) -> Self {
        let chunked = !ends && !fields.iter().any(|(name, _)| *name == "content-length");
        let voice = match http {
            Http::One => {
                let mut connection = Connection::open(address).await.expect("a connection");
                let mut all = [&[("host", host)], fields].concat();
                if chunked {
                    all.push(("transfer-encoding", "chunked"));
                }
                let head = lines(&format!("{method} / HTTP/1.1"), &all);
                connection.wire().send(&head).await.expect("a connection");
                Voice::One(connection, method.to_owned())
            }
            Http::Two => {
                let mut caller = Caller::open(address).await.expect("a connection");
                let stream = caller.stream();
                let mut head = request(method, host, "/");
                let more = fields
                    .iter()
                    .map(|(name, value)| ((*name).into(), (*value).into()));
                head.extend(more);
                let flags = if ends { flag::END_STREAM } else { 0 };
                let head = frame::headers(stream, flags, &head);
                caller.raw.send(&head).await.expect("a connection");
                Voice::Two(Box::new(caller), stream)
            }
        };
        Self {
            voice,
            seen: 0,
            chunked,
        }
    }

    /// Sends a part of the body.
    pub async fn send(&mut self, bytes: &[u8]) {
        let sent = match &mut self.voice {
            Voice::One(connection, _) if self.chunked => connection.wire().send(&chunk(bytes)).await,
            Voice::One(connection, _) => connection.wire().send(bytes).await,
            Voice::Two(caller, stream) => caller.raw.send(&frame::data(*stream, 0, bytes)).await,
        };
        sent.expect("a connection");
    }

    /// Ends the body, with trailers if there are any.
    pub async fn end(&mut self, trailers: &[(&str, &str)]) {
        let sent = match &mut self.voice {
            Voice::One(connection, _) if self.chunked => connection.wire().send(&lines("0", trailers)).await,
            Voice::One(..) => Ok(()),
            Voice::Two(caller, stream) if trailers.is_empty() => {
                caller
                    .raw
                    .send(&frame::data(*stream, flag::END_STREAM, b""))
                    .await
            }
            Voice::Two(caller, stream) => {
                let trailers = frame::headers(*stream, flag::END_STREAM, trailers);
                caller.raw.send(&trailers).await
            }
        };
        sent.expect("a connection");
    }

    /// The next interim answer, which must come before the answer.
    pub async fn interim(&mut self) -> Message {
        self.seen += 1;
        within("an interim answer", async {
            match &mut self.voice {
                Voice::One(connection, _) => {
                    let head = connection.wire().head().await.expect("a head").expect("one");
                    assert!((100..200).contains(&head.status()), "{head:?}");
                    Message::of(&head)
                }
                Voice::Two(caller, stream) => loop {
                    let reply = caller.so_far(*stream);
                    if let Some(fields) = reply.interim.get(self.seen - 1) {
                        break of_fields(fields.clone());
                    }
                    assert!(!reply.is_over(), "{reply:?}");
                    assert!(caller.take().await.expect("a frame"), "the connection ended");
                },
            }
        })
        .await
    }

    /// The answer. No interim answer may come before it that was not looked at.
    pub async fn reply(&mut self) -> Message {
        within("an answer", async {
            match &mut self.voice {
                Voice::One(connection, method) => {
                    let head = connection.wire().head().await.expect("a head").expect("one");
                    assert!(head.status() >= 200, "{head:?}");
                    let framing = head.answer_framing(method).expect("a framing");
                    let body = connection.wire().body(framing, BODY_BYTES_MAX).await;
                    assert_eq!(body.cut, None);
                    Message {
                        body: body.bytes,
                        trailers: small(&body.trailers),
                        ..Message::of(&head)
                    }
                }
                Voice::Two(caller, stream) => {
                    let reply = caller.reply(*stream).await.expect("an answer");
                    assert_eq!(reply.interim.len(), self.seen, "{reply:?}");
                    assert_eq!(reply.reset, None);
                    Message {
                        body: reply.body,
                        trailers: reply.trailers,
                        ..of_fields(reply.head)
                    }
                }
            }
        })
        .await
    }
}

fn of_fields(fields: Vec<Field>) -> Message {
    let status = fields.iter().find(|(name, _)| name == ":status");
    Message {
        status: status
            .and_then(|(_, value)| value.parse().ok())
            .unwrap_or_default(),
        fields,
        ..Message::default()
    }
}
