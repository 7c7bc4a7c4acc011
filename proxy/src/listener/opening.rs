//! The first bytes of a connection: do they open TLS, and do they open HTTP/2?
//!
//! On a port without TLS a caller that knows speaks HTTP/2 at once (RFC 9113 section 3.3), and its preface was chosen
//! so that it can be no HTTP/1 request. Nothing else is guessed. What was read is handed on to be read again.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::stream::Stream;
use crate::tls;

/// RFC 9113 section 3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is read first: nearly every head of HTTP/1 is in it whole, so that looking costs no further read.
const FIRST_READ: usize = 4096;

/// What a caller speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Http1,
    Http2,
}

/// Waits for the first byte: whether it opens TLS. It stays where it is.
///
/// # Errors
/// When the connection breaks before.
pub(super) async fn opens_tls(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    let count = stream.peek(&mut first).await?;
    Ok(count == 1 && first[0] == tls::HANDSHAKE_BYTE)
}

/// Reads as far as it takes to know.
///
/// # Errors
/// When the connection breaks before. One that ends before is HTTP/1's to answer.
pub(super) async fn listen(mut stream: Stream) -> io::Result<(Speaks, Stream)> {
    let mut first = BytesMut::new();
    let speaks = loop {
        let more = std::future::poll_fn(|cx| read(&mut stream, &mut first, cx)).await?;
        match told(&first) {
            Some(speaks) => break speaks,
            None if more == 0 => break Speaks::Http1,
            None => {}
        }
    };
    Ok((speaks, stream.of_caller(first.freeze())))
}

/// Reads what is there. It is read onto the stack and then kept, so that a connection that says nothing holds nothing.
fn read(stream: &mut Stream, into: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let mut bytes = [MaybeUninit::uninit(); FIRST_READ];
    let mut buffer = ReadBuf::uninit(&mut bytes);
    ready!(AsyncRead::poll_read(Pin::new(stream), cx, &mut buffer))?;
    into.extend_from_slice(buffer.filled());
    Poll::Ready(Ok(buffer.filled().len()))
}

/// What these bytes tell; `None`: not enough yet.
pub(super) fn told(first: &[u8]) -> Option<Speaks> {
    let count = first.len().min(PREFACE.len());
    if first[..count] != PREFACE[..count] {
        return Some(Speaks::Http1);
    }
    (count == PREFACE.len()).then_some(Speaks::Http2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_preface_opens_http2_and_the_first_byte_that_differs_settles_it() {
        assert_eq!(told(PREFACE), Some(Speaks::Http2));
        assert_eq!(told(&[&PREFACE[..], b"\0\0\0"].concat()), Some(Speaks::Http2));
        for short in 0..PREFACE.len() {
            assert_eq!(told(&PREFACE[..short]), None, "{short} bytes");
            let mut other = PREFACE[..=short].to_vec();
            other[short] ^= 1;
            assert_eq!(told(&other), Some(Speaks::Http1), "byte {short} differs");
        }
        assert_eq!(told(b"PROPFIND / HTTP/1.1\r\n"), Some(Speaks::Http1));
    }
}
