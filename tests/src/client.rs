//! Clients: one that asks and reads an answer, and the bare socket beneath it.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use serde_json::Value;
use tokio::net::TcpStream;

use crate::wait::within;
use crate::wire::{Body, Head, Wire};

/// The longest body that a client keeps: above every body that the tests send.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A request, written as it will be sent.
#[derive(Clone)]
pub struct Ask {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    chunked: bool,
}

impl fmt::Debug for Ask {
    /// A body of megabytes would bury the failure that it is printed for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.method, self.target, self.headers)?;
        write!(f, " with {} bytes", self.body.len())?;
        f.write_str(if self.chunked { " in chunks" } else { "" })
    }
}

impl Ask {
    /// A request with this method and target; the target may be a path or a whole URL.
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            chunked: false,
        }
    }

    /// A GET.
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// A POST with a body.
    pub fn post(target: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", target).body(body)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the host. Without one, a whole URL brings its own and a path is sent with `localhost`.
    #[must_use]
    pub fn host(self, host: &str) -> Self {
        self.header("host", host)
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends the body in chunks.
    #[must_use]
    pub fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    /// The method.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The request as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.target).into_bytes();
        let mut line = |name: &str, value: &str| {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        };
        if !self
            .headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            line("host", host_of(&self.target));
        }
        for (name, value) in &self.headers {
            line(name, value);
        }
        let bodiless = self.body.is_empty() && matches!(self.method.as_str(), "GET" | "HEAD" | "DELETE");
        if self.chunked {
            line("transfer-encoding", "chunked");
        } else if !bodiless {
            line("content-length", &self.body.len().to_string());
        }
        bytes.extend_from_slice(b"\r\n");
        if self.chunked {
            // Several chunks, so that the proxy's own cutting is seen too.
            for piece in self.body.chunks(1000) {
                bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                bytes.extend_from_slice(piece);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
        } else {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

fn host_of(target: &str) -> &str {
    target
        .strip_prefix("http://")
        .and_then(|rest| rest.split(['/', '?']).next())
        .unwrap_or("localhost")
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The status line and the headers.
    pub head: Head,
    /// The body.
    pub body: Body,
}

impl Reply {
    /// The status.
    pub fn status(&self) -> u16 {
        self.head.status()
    }

    /// Why the sidecar answered itself; `None` if it did not.
    pub fn reason(&self) -> Option<&str> {
        self.head.header("x-outrigger-reason")
    }

    /// Which upstream answered; empty if none.
    pub fn upstream(&self) -> &str {
        self.head.header("x-upstream").unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body.bytes).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body.bytes)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}, body {}", self.text()))
    }
}

/// One connection of a client.
#[derive(Debug)]
pub struct Connection {
    wire: Wire,
}

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        Ok(Self {
            wire: Wire::new(stream),
        })
    }

    /// The bytes beneath.
    pub fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Sends a request and reads its answer, interim answers left out.
    pub async fn send(&mut self, ask: &Ask) -> io::Result<Reply> {
        self.wire.send(&ask.to_bytes()).await?;
        self.reply_to(ask.method()).await
    }

    /// Reads the answer to a request with this method, interim answers left out.
    pub async fn reply_to(&mut self, method: &str) -> io::Result<Reply> {
        loop {
            let head = self.wire.head().await?.ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the connection ended before the answer began",
                )
            })?;
            if (100..200).contains(&head.status()) && head.status() != 101 {
                continue;
            }
            let framing = head.answer_framing(method)?;
            let body = self.wire.body(framing, BODY_BYTES_MAX).await;
            return Ok(Reply { head, body });
        }
    }
}

/// A client of one address, with a new connection for each request.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    address: SocketAddr,
}

impl Client {
    /// A client of this address.
    pub fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    /// Sends a request, which must be answered.
    pub async fn send(&self, ask: Ask) -> Reply {
        let what = format!("an answer from {} to {ask:?}", self.address);
        within(&what, self.try_send(&ask))
            .await
            .unwrap_or_else(|error| panic!("no answer from {} to {ask:?}: {error}", self.address))
    }

    /// Sends a request.
    pub async fn try_send(&self, ask: &Ask) -> io::Result<Reply> {
        Connection::open(self.address).await?.send(ask).await
    }

    /// A GET of this path with this `Host`.
    pub async fn get(&self, host: &str, path: &str) -> Reply {
        self.send(Ask::get(path).host(host)).await
    }

    /// A new connection.
    pub async fn connect(&self) -> Connection {
        Connection::open(self.address)
            .await
            .unwrap_or_else(|error| panic!("cannot connect to {}: {error}", self.address))
    }
}
