//! HTTP/1.1 as bytes: heads and bodies read strictly from a socket, for both sides of a conversation.
//!
//! Nothing is forgiven: a bare line feed, a length that is no number, a chunk without its end is an error, because
//! a proxy that writes one of them is at fault.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The largest head that is read: above every limit that the tests try out.
const HEAD_BYTES_MAX: usize = 1024 * 1024;

/// What is read from a socket at once.
const READ_BYTES: usize = 16 * 1024;

/// The first line and the headers of a message, as they were on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The request line or the status line.
    pub first_line: String,
    /// The headers in their order, names as they were written.
    pub headers: Vec<(String, String)>,
}

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    Empty,
    /// So many bytes.
    Length(usize),
    /// Chunks.
    Chunked,
    /// Everything until the connection ends.
    UntilClose,
}

/// A body, and whether all of it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// What came.
    pub bytes: Vec<u8>,
    /// Why it is not whole; `None` if it is.
    pub cut: Option<String>,
    /// The trailers of a chunked body.
    pub trailers: Vec<(String, String)>,
}

impl Head {
    /// The value of a header; the first if there are several.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// Every value of a header.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers
            .iter()
            .filter(move |(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Whether `Connection` lists this token.
    pub fn connection_says(&self, token: &str) -> bool {
        self.all("connection")
            .flat_map(|value| value.split(','))
            .any(|listed| listed.trim().eq_ignore_ascii_case(token))
    }

    /// One of the words of the first line, counted from 0.
    pub fn word(&self, index: usize) -> &str {
        self.first_line.splitn(3, ' ').nth(index).unwrap_or_default()
    }

    /// The status of an answer; 0 if this is none.
    pub fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or_default()
    }

    fn parse(bytes: &[u8]) -> io::Result<Self> {
        // Values may have bytes beyond ASCII (RFC 9110 section 5.5); those that are no UTF-8 are read as Latin-1.
        let text = std::str::from_utf8(bytes).map_or_else(
            |_| bytes.iter().map(|byte| char::from(*byte)).collect(),
            str::to_owned,
        );
        let mut lines = text.split("\r\n");
        let first_line = lines.next().unwrap_or_default().to_owned();
        if !is_first_line(&first_line) {
            return Err(bad(&format!("a first line that makes no sense: {first_line:?}")));
        }
        let headers = lines.map(parse_header).collect::<io::Result<_>>()?;
        Ok(Self { first_line, headers })
    }

    /// How the body after a request's head is delimited.
    pub fn request_framing(&self) -> io::Result<Framing> {
        self.framing(Framing::Empty)
    }

    /// How the body after an answer's head is delimited; `method` is the request's.
    pub fn answer_framing(&self, method: &str) -> io::Result<Framing> {
        let status = self.status();
        if method == "HEAD" || status < 200 || status == 204 || status == 304 {
            return Ok(Framing::Empty);
        }
        self.framing(Framing::UntilClose)
    }

    fn framing(&self, otherwise: Framing) -> io::Result<Framing> {
        let lengths: Vec<_> = self.all("content-length").collect();
        let codings: Vec<_> = self.all("transfer-encoding").collect();
        match (lengths.as_slice(), codings.as_slice()) {
            ([], []) => Ok(otherwise),
            ([length], []) => {
                let number = length.parse().ok().filter(|_| all(length, u8::is_ascii_digit));
                let number = number.ok_or_else(|| bad(&format!("content-length: {length}")))?;
                Ok(Framing::Length(number))
            }
            ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
            _ => Err(bad(&format!("a body with two meanings: {:?}", self.headers))),
        }
    }
}

/// `method SP target SP version` or `version SP status SP reason`, and nothing else (RFC 9112 sections 3 and 4).
fn is_first_line(line: &str) -> bool {
    // What opens HTTP/2 was chosen to be a head of HTTP/1 that no server of it takes (RFC 9113 section 3.4); one that is told
    // to hang or to refuse does so with it too.
    if line == "PRI * HTTP/2.0" {
        return true;
    }
    let is_version = |word: &str| matches!(word, "HTTP/1.1" | "HTTP/1.0");
    let mut words = line.splitn(3, ' ');
    match [words.next(), words.next(), words.next()] {
        [Some(version), Some(status), reason] if is_version(version) => {
            status.len() == 3
                && all(status, u8::is_ascii_digit)
                && !reason
                    .unwrap_or_default()
                    .contains(|char: char| char.is_ascii_control() && char != '\t')
        }
        [Some(method), Some(target), Some(version)] => {
            all(method, is_token) && all(target, u8::is_ascii_graphic) && is_version(version)
        }
        _ => false,
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

/// Whether there is something and all of it is so.
fn all(text: &str, is: impl Fn(&u8) -> bool) -> bool {
    !text.is_empty() && text.as_bytes().iter().all(is)
}

fn parse_header(line: &str) -> io::Result<(String, String)> {
    let (name, value) = line
        .split_once(':')
        .ok_or_else(|| bad(&format!("a header without a colon: {line:?}")))?;
    let is_text = !value.contains(|char: char| char.is_ascii_control() && char != '\t');
    if !all(name, is_token) || !is_text {
        return Err(bad(&format!("a header that is not allowed: {line:?}")));
    }
    Ok((name.to_owned(), value.trim().to_owned()))
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP/1.1: {what}"))
}

/// A socket, and what was read from it and not yet understood.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Wire {
    /// Speaks over this socket.
    pub fn new(stream: TcpStream) -> Self {
        // Latency is measured through here; a failure would only cost time.
        let _ = stream.set_nodelay(true);
        Self {
            stream,
            unread: Vec::new(),
        }
    }

    /// The socket itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends these bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Says that nothing more will be sent.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// Reads a head; `None` if the connection ended before its first byte. What was read stays when this is
    /// cancelled.
    pub async fn head(&mut self) -> io::Result<Option<Head>> {
        let mut searched = 0;
        loop {
            let from = searched.min(self.unread.len());
            if let Some(end) = find(&self.unread[from..], b"\r\n\r\n").map(|at| at + from) {
                let head = Head::parse(&self.unread[..end])?;
                self.unread.drain(..end + 4);
                return Ok(Some(head));
            }
            searched = self.unread.len().saturating_sub(3);
            if self.unread.len() > HEAD_BYTES_MAX {
                return Err(bad("a head without an end"));
            }
            if self.more().await? == 0 {
                return match self.unread.is_empty() {
                    true => Ok(None),
                    false => Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the connection ended inside a head",
                    )),
                };
            }
        }
    }

    /// Reads a body, or as much of it as comes. `keep_bytes_max` bounds what is kept, not what is read.
    pub async fn body(&mut self, framing: Framing, keep_bytes_max: usize) -> Body {
        let mut body = Body::default();
        let end = match framing {
            Framing::Empty => Ok(()),
            Framing::Length(length) => self.exactly(length, &mut body.bytes, keep_bytes_max).await,
            Framing::Chunked => self.chunks(&mut body, keep_bytes_max).await,
            Framing::UntilClose => self.rest(&mut body.bytes, keep_bytes_max).await,
        };
        body.cut = end.err().map(|error| error.to_string());
        body
    }

    async fn exactly(&mut self, length: usize, into: &mut Vec<u8>, keep_max: usize) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.unread.is_empty() && self.more().await? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("the connection ended {left} bytes before the body"),
                ));
            }
            let taken = left.min(self.unread.len());
            keep(into, &self.unread[..taken], keep_max);
            self.unread.drain(..taken);
            left -= taken;
        }
        Ok(())
    }

    async fn chunks(&mut self, body: &mut Body, keep_max: usize) -> io::Result<()> {
        loop {
            let line = self.line().await?;
            let digits = line.split(';').next().unwrap_or_default();
            let length = usize::from_str_radix(digits, 16)
                .ok()
                .filter(|_| all(digits, u8::is_ascii_hexdigit))
                .ok_or_else(|| bad(&format!("a chunk's length: {line:?}")))?;
            if length == 0 {
                break;
            }
            self.exactly(length, &mut body.bytes, keep_max).await?;
            if !self.line().await?.is_empty() {
                return Err(bad("a chunk longer than it said"));
            }
        }
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(());
            }
            body.trailers.push(parse_header(&line)?);
        }
    }

    async fn rest(&mut self, into: &mut Vec<u8>, keep_max: usize) -> io::Result<()> {
        loop {
            keep(into, &self.unread, keep_max);
            self.unread.clear();
            if self.more().await? == 0 {
                return Ok(());
            }
        }
    }

    /// Reads a line and its end, which is not part of the result.
    pub async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = find(&self.unread, b"\r\n") {
                let line = String::from_utf8_lossy(&self.unread[..end]).into_owned();
                self.unread.drain(..end + 2);
                return Ok(line);
            }
            if self.more().await? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the connection ended inside a line",
                ));
            }
        }
    }

    /// Everything until the connection ends, however it ends.
    pub async fn until_end(&mut self) -> (Vec<u8>, Option<io::Error>) {
        let mut bytes = Vec::new();
        let end = self.rest(&mut bytes, usize::MAX).await;
        (bytes, end.err())
    }

    /// Waits until the other side has gone. Bytes that it sends ahead are left where they are.
    pub async fn gone(&self) {
        let mut byte = [0_u8];
        if let Ok(1..) = self.stream.peek(&mut byte).await {
            // It sent something ahead: whether it is still there cannot be seen past that.
            std::future::pending::<()>().await;
        }
    }

    async fn more(&mut self) -> io::Result<usize> {
        self.unread.reserve(READ_BYTES);
        self.stream.read_buf(&mut self.unread).await
    }
}

fn keep(into: &mut Vec<u8>, bytes: &[u8], keep_max: usize) {
    let room = keep_max.saturating_sub(into.len());
    into.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
