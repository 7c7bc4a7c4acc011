//! A gRPC server that answers by a script: the few frames of HTTP/2 that this takes, written out by hand.
//!
//! It reads frames only to know which call is whole, and never what a head says, so it needs no decoder of HPACK.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::background::Background;
use crate::wait::eventually;

/// How a call is answered. Every head says 200, as gRPC does.
#[derive(Clone, Debug)]
pub enum Call {
    /// A message, and then this status in the trailers.
    Message(u16),
    /// No message: this status in the head, with these fields beside it ("Trailers-Only").
    TrailersOnly(u16, Vec<(&'static str, &'static str)>),
    /// No message: a head, then this status in trailers, with these fields beside it.
    Trailers(u16, Vec<(&'static str, &'static str)>),
    /// A head, then a reset of the stream with this code.
    HeadThenReset(u32),
    /// A reset of the stream with this code.
    Reset(u32),
    /// A head as soon as the call begins, and a message when the caller has sent all of its own.
    HeadFirst,
    /// Nothing, until the caller goes.
    Silence,
    /// A plain answer of HTTP with this status.
    Http(&'static str),
}

/// A scripted gRPC server with a name.
#[derive(Debug)]
pub struct GrpcUpstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    _running: Background,
}

#[derive(Debug)]
struct Shared {
    name: String,
    calls: AtomicU64,
    given_up: AtomicU64,
    next: Mutex<VecDeque<Call>>,
    otherwise: Mutex<Call>,
}

impl GrpcUpstream {
    /// A server that answers each call with one message and the status 0.
    pub async fn start(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let listener = listener.into_std().expect("a listener of ours");
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            calls: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            next: Mutex::default(),
            otherwise: Mutex::new(Call::Message(0)),
        });
        let running = Background::start(name);
        let held = Arc::clone(&shared);
        running.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listening socket");
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&held);
                // How a connection ends is what the tests are about; the other side judges it.
                tokio::spawn(async move { drop(serve(stream, &shared).await) });
            }
        });
        Self {
            address,
            shared,
            _running: running,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers so from the next call on.
    pub fn behave(&self, call: Call) {
        *self.shared.otherwise.lock().expect("no test panics with it held") = call;
    }

    /// Answers so first, one for each call, then as before.
    pub fn next(&self, calls: impl IntoIterator<Item = Call>) {
        let mut next = self.shared.next.lock().expect("no test panics with it held");
        next.extend(calls);
    }

    /// How many calls have begun.
    pub fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::SeqCst)
    }

    /// How many calls the other side gave up by resetting their streams.
    pub fn given_up(&self) -> u64 {
        self.shared.given_up.load(Ordering::SeqCst)
    }

    /// Waits until so many calls have begun.
    pub async fn has_calls(&self, count: u64) {
        let what = format!("{count} calls at {}", self.shared.name);
        eventually(&what, async || (self.calls() >= count).then_some(())).await;
    }
}

impl Shared {
    fn begin(&self) -> Call {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let next = self.next.lock().expect("no test panics with it held").pop_front();
        next.unwrap_or_else(|| {
            self.otherwise
                .lock()
                .expect("no test panics with it held")
                .clone()
        })
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// The kinds of frames and their flags (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

async fn serve(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    let mut begun: Vec<(u32, Call)> = Vec::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        let number = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        match kind {
            SETTINGS if flags & ACK == 0 => stream.write_all(&frame(SETTINGS, ACK, 0, &[])).await?,
            PING if flags & ACK == 0 => stream.write_all(&frame(PING, ACK, 0, &payload)).await?,
            HEADERS => {
                let call = shared.begin();
                if matches!(call, Call::HeadFirst) {
                    stream.write_all(&shared.head(number)).await?;
                }
                begun.push((number, call));
            }
            DATA if length > 0 => {
                let more = (length as u32).to_be_bytes();
                stream.write_all(&frame(WINDOW_UPDATE, 0, 0, &more)).await?;
            }
            RST_STREAM => {
                begun.retain(|(begun, _)| *begun != number);
                shared.given_up.fetch_add(1, Ordering::SeqCst);
            }
            _ => {}
        }
        if matches!(kind, HEADERS | DATA)
            && flags & END_STREAM != 0
            && let Some(place) = begun.iter().position(|(begun, _)| *begun == number)
        {
            let (_, call) = begun.swap_remove(place);
            stream.write_all(&shared.answer(number, &call)).await?;
        }
    }
}

impl Shared {
    fn head(&self, number: u32) -> Vec<u8> {
        let fields = [
            (":status", "200"),
            ("content-type", "application/grpc"),
            ("x-upstream", self.name.as_str()),
        ];
        frame(HEADERS, END_HEADERS, number, &block(&fields))
    }

    fn answer(&self, number: u32, call: &Call) -> Vec<u8> {
        let end = |status: u16, more: &[(&'static str, &'static str)], before: &[(&str, &str)]| {
            let status = status.to_string();
            let mut fields = before.to_vec();
            fields.push(("grpc-status", &status));
            fields.extend(more);
            frame(HEADERS, END_HEADERS | END_STREAM, number, &block(&fields))
        };
        // A message: not compressed, two bytes long.
        let message = || frame(DATA, 0, number, b"\0\0\0\0\x02hi");
        match call {
            Call::Message(status) => [self.head(number), message(), end(*status, &[], &[])].concat(),
            Call::HeadFirst => [message(), end(0, &[], &[])].concat(),
            Call::Trailers(status, more) => [self.head(number), end(*status, more, &[])].concat(),
            Call::TrailersOnly(status, more) => {
                let head = [
                    (":status", "200"),
                    ("content-type", "application/grpc"),
                    ("x-upstream", self.name.as_str()),
                ];
                end(*status, more, &head)
            }
            Call::HeadThenReset(code) => [
                self.head(number),
                frame(RST_STREAM, 0, number, &code.to_be_bytes()),
            ]
            .concat(),
            Call::Silence => Vec::new(),
            Call::Reset(code) => frame(RST_STREAM, 0, number, &code.to_be_bytes()),
            Call::Http(status) => {
                let fields = [(":status", *status), ("x-upstream", self.name.as_str())];
                frame(HEADERS, END_HEADERS | END_STREAM, number, &block(&fields))
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header block of literal fields that are not indexed (RFC 7541 section 6.2.2), all of them short.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(
                u8::try_from(text.len())
                    .ok()
                    .filter(|length| *length < 127)
                    .expect("a short text"),
            );
            block.extend(text.as_bytes());
        }
    }
    block
}
