//! A body that arrives, from a caller or from an endpoint, whichever version of HTTP it comes by.
//!
//! It only joins them: what comes by HTTP/1 from a caller is hyper's, what comes from an endpoint is [`crate::http1`]'s, and
//! what comes by HTTP/2 is [`crate::http2`]'s. Of trailers it lets through what may be trailers.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    EXPECT, HOST, MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::http1::Content;
use crate::http2::Received;

/// What may not be a trailer (RFC 9110 section 6.5.1): what frames or routes a message, says how to read it or who asks, and
/// what is of one connection. hyper takes all of them from HTTP/1.1; by HTTP/2 some of them would break the whole stream.
const NO_TRAILERS: [HeaderName; 17] = [
    AUTHORIZATION,
    CACHE_CONTROL,
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    EXPECT,
    HOST,
    HeaderName::from_static("keep-alive"),
    MAX_FORWARDS,
    HeaderName::from_static("proxy-connection"),
    SET_COOKIE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// What the application is told of its caller's certificate, in the form of Envoy.
pub(crate) const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Whether a field with this name would say who the caller is, which nobody does but this sidecar, in a head.
pub(crate) fn names_caller(name: &[u8]) -> bool {
    is_read_as(name, CLIENT_CERT.as_str())
}

/// Whether a server that takes `_` for `-`, as those of CGI's kind do (RFC 3875 section 4.1.18), reads one name as the
/// other.
pub(crate) fn is_read_as(name: &[u8], other: &str) -> bool {
    let alike = |(byte, other): (&u8, u8)| *byte == other || *byte == b'_' && other == b'-';
    name.len() == other.len() && name.iter().zip(other.bytes()).all(alike)
}

/// A frame without what may not be in it.
pub(crate) fn sifted(mut frame: Frame<Bytes>) -> Frame<Bytes> {
    if let Some(trailers) = frame.trailers_mut() {
        sift(trailers);
    }
    frame
}

fn sift(trailers: &mut HeaderMap) {
    for name in &NO_TRAILERS {
        trailers.remove(name);
    }
    let claim = |name: &&HeaderName| names_caller(name.as_str().as_bytes());
    while let Some(name) = trailers.keys().find(claim).cloned() {
        trailers.remove(name);
    }
}

/// A body that arrives.
#[derive(Debug)]
pub(crate) enum Arriving {
    Nothing,
    Http1(Incoming),
    /// By a connection to an endpoint, which is asked for each frame (`Carrier::poll_body`).
    Http1Answer(Content),
    Http2(Received),
}

/// Why a body broke off.
#[derive(Debug)]
pub(crate) enum Broken {
    Http1(hyper::Error),
    Http2(h2::Error),
    /// What is not as HTTP says.
    Malformed(&'static str),
    /// The connection broke, or was closed in the middle.
    Lost(io::Error),
    /// The request that was being answered broke off, which ends its answer too.
    Request(Box<Self>),
}

impl Broken {
    /// The reason that an HTTP/2 peer gave.
    pub(crate) fn code(&self) -> Option<h2::Reason> {
        match self {
            Self::Http1(_) | Self::Malformed(_) | Self::Lost(_) | Self::Request(_) => None,
            Self::Http2(error) => error.reason(),
        }
    }

    /// Whether it was this sidecar that reset the stream: it does so when the request's body broke off.
    pub(crate) fn is_our_own(&self) -> bool {
        match self {
            Self::Http1(_) | Self::Malformed(_) | Self::Lost(_) => false,
            Self::Request(_) => true,
            Self::Http2(error) => error.is_reset() && !error.is_remote() && !error.is_library(),
        }
    }

    /// Whether its bytes were not what HTTP/1.1 allows. Otherwise its sender went away, or gave up.
    pub(crate) fn is_malformed(&self) -> bool {
        match self {
            Self::Malformed(_) => true,
            Self::Http2(_) | Self::Lost(_) => false,
            Self::Request(error) => error.is_malformed(),
            Self::Http1(error) => std::error::Error::source(error)
                .and_then(|cause| cause.downcast_ref::<io::Error>())
                .is_some_and(|cause| {
                    matches!(
                        cause.kind(),
                        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData
                    )
                }),
        }
    }

    /// The same of what hyper makes of it, where it was sending such a body on.
    pub(crate) fn was_malformed(error: &hyper::Error) -> bool {
        std::error::Error::source(error)
            .and_then(|cause| cause.downcast_ref::<Self>())
            .is_some_and(Self::is_malformed)
    }
}

impl Arriving {
    /// Puts a frame back that was looked at, to come again next. By HTTP/1 nothing is looked at, and so it is lost.
    pub(crate) fn put_back(&mut self, frame: Frame<Bytes>) {
        if let Self::Http2(body) = self {
            body.put_back(frame);
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http1(error) => error.fmt(f),
            Self::Http2(error) => error.fmt(f),
            Self::Malformed(what) => f.write_str(what),
            Self::Lost(error) => error.fmt(f),
            Self::Request(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Broken {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Http1(error) => Some(error),
            Self::Http2(error) => Some(error),
            Self::Lost(error) => Some(error),
            Self::Malformed(_) => None,
            Self::Request(error) => error.source(),
        }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Nothing => Poll::Ready(None),
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map(|frame| match frame? {
                // Where no trailer stands between the last chunk and the end, hyper gives none. That it gives an empty
                // one means that a bare line feed stood there, and what followed is lost (RFC 9112 section 7.1).
                Ok(frame) if frame.trailers_ref().is_some_and(HeaderMap::is_empty) => {
                    Some(Err(Broken::Malformed("the last chunk is not followed by an end")))
                }
                frame => Some(frame.map(sifted).map_err(Broken::Http1)),
            }),
            Self::Http1Answer(content) if content.is_over() => Poll::Ready(None),
            Self::Http1Answer(_) => Poll::Ready(Some(Err(Broken::Lost(io::ErrorKind::NotConnected.into())))),
            Self::Http2(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map(sifted).map_err(Broken::Http2))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Http1(body) => body.is_end_stream(),
            Self::Http1Answer(content) => content.is_over(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing => SizeHint::with_exact(0),
            Self::Http1(body) => body.size_hint(),
            Self::Http1Answer(content) => content.size_hint(),
            Self::Http2(body) => body.size_hint(),
        }
    }
}
