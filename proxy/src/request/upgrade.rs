//! Requests that turn their connection into something else: WebSocket above all.
//!
//! HTTP/1.1 asks with `Upgrade` and is answered 101 (RFC 9110 section 7.8); HTTP/2 asks with an extended CONNECT and is
//! answered 200 (RFC 8441). On its way through here such a request has one form, the older; where it comes in or
//! leaves by HTTP/2 it is translated. What is spoken afterwards is bytes, moved by [`crate::pump`].

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use h2::ext::Protocol;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::{Failure, Reason};
use crate::pump::{self, Moved, Why};
use crate::request::Worker;
use crate::request::body::ResponseBody;
use crate::request::permit::Permit;
use crate::snapshot::access::Source;
use crate::tls::Session;
use crate::upstream::Pick;
use crate::upstream::limits::Counted;
use crate::upstream::pool::SwitchedBytes;

/// RFC 6455 section 1.3.
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const WEBSOCKET: &[u8] = b"websocket";

/// The switch that a request asks for.
#[derive(Debug)]
pub(crate) struct Upgrade {
    /// What it wants to speak.
    pub(crate) protocol: HeaderValue,
    /// Whether it came as an extended CONNECT.
    connect: bool,
    /// The caller's key, if it is a WebSocket's by HTTP/1.1: the answer must be made of it.
    key: Option<HeaderValue>,
}

impl Upgrade {
    /// What a request asks to switch to, if it does; a CONNECT becomes the GET that it stands for.
    ///
    /// # Errors
    /// A CONNECT that names no protocol: this is no tunnel for other people's TLS.
    pub(crate) fn asked(head: &mut Parts) -> Result<Option<Self>, Failure> {
        if head.method == Method::CONNECT {
            let Some(protocol) = head.extensions.remove::<Protocol>() else {
                return Err(Failure::new(
                    Reason::BadRequest,
                    "CONNECT is not served: send the request itself, as to an HTTP proxy for http:// URLs",
                ));
            };
            let protocol = HeaderValue::from_str(protocol.as_str())
                .map_err(|_| Failure::new(Reason::BadRequest, "`:protocol` is no protocol's name"))?;
            head.method = Method::GET;
            return Ok(Some(Self {
                protocol,
                connect: true,
                key: None,
            }));
        }
        let Some(protocol) = head.headers.get(UPGRADE).filter(|protocol| may_pass(protocol)) else {
            return Ok(None);
        };
        if !listed(&head.headers, b"upgrade") {
            return Ok(None);
        }
        Ok(Some(Self {
            protocol: protocol.clone(),
            connect: false,
            key: head.headers.get(SEC_WEBSOCKET_KEY).cloned(),
        }))
    }

    /// Asks again, on the connection of the next hop by HTTP/1.1.
    pub(crate) fn ask(&self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, self.protocol.clone());
        if self.protocol.as_bytes().eq_ignore_ascii_case(WEBSOCKET)
            && !headers.contains_key(SEC_WEBSOCKET_KEY)
        {
            // RFC 6455 section 4.1: sixteen bytes that nobody guesses.
            let key = BASE64_STANDARD.encode(std::array::from_fn::<u8, 16, _>(|_| fastrand::u8(..)));
            if let Ok(key) = HeaderValue::try_from(key) {
                headers.insert(SEC_WEBSOCKET_KEY, key);
            }
        }
    }

    /// Makes the endpoint's consent into what this caller expects.
    pub(crate) fn consent(&self, head: &mut http::response::Parts) {
        if self.connect {
            // RFC 8441 section 5: the opening handshake of HTTP/2 has neither key nor answer to it.
            head.status = StatusCode::OK;
            head.headers.remove(SEC_WEBSOCKET_ACCEPT);
            return;
        }
        head.status = StatusCode::SWITCHING_PROTOCOLS;
        head.headers
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, self.protocol.clone());
        if let Some(key) = &self.key
            && let Ok(accept) = HeaderValue::try_from(accept(key.as_bytes()))
        {
            head.headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
    }
}

/// Whether a request asks for a tunnel of bytes (RFC 9110 section 9.3.6), and not for a protocol by an extended CONNECT.
pub(crate) fn is_plain_connect(head: &Parts) -> bool {
    head.method == Method::CONNECT && head.extensions.get::<Protocol>().is_none()
}

/// RFC 6455 section 4.2.2: the proof that a WebSocket's key was read.
fn accept(key: &[u8]) -> String {
    BASE64_STANDARD.encode(
        Sha1::new()
            .chain_update(key)
            .chain_update(WEBSOCKET_GUID)
            .finalize(),
    )
}

/// Whether a protocol may be switched to through here. Not HTTP/2 and not TLS: the two ends would then speak past this
/// hop, which has to read what they say ("h2c smuggling"); such a request goes on without its wish.
fn may_pass(protocol: &HeaderValue) -> bool {
    let protocol = protocol.as_bytes().to_ascii_lowercase();
    let refused = [&b"h2"[..], b"http", b"tls"];
    !protocol.is_empty()
        && !protocol.contains(&b',')
        && !refused.iter().any(|refused| protocol.starts_with(refused))
}

/// Whether `Connection` lists a token.
fn listed(headers: &HeaderMap, token: &[u8]) -> bool {
    let lines = headers.get_all(CONNECTION).iter();
    let mut tokens = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    tokens.any(|listed| listed.trim_ascii().eq_ignore_ascii_case(token))
}

/// A connection that has been switched, waiting for the caller's side of it.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) upstream: SwitchedBytes,
    /// Counted on its endpoint as long as it lasts.
    pub(crate) pick: Pick,
    /// The connection, if it is one of its own, counted as well.
    pub(crate) _counted: Option<Counted>,
    pub(crate) idle: Option<Duration>,
    /// How long the upstream's connection may be used, where it speaks TLS.
    pub(crate) session: Option<Session>,
    /// By what it goes on, on the application's side.
    pub(super) permit: Option<Box<Permit>>,
}

impl Tunnel {
    /// Takes the tunnel out of an answer, if it is one that switches.
    pub(crate) fn of(response: &mut Response<ResponseBody>) -> Option<Box<Self>> {
        match std::mem::replace(response.body_mut(), ResponseBody::Empty) {
            ResponseBody::Switched(tunnel) => Some(tunnel),
            other => {
                *response.body_mut() = other;
                None
            }
        }
    }

    /// Moves bytes between the caller and the endpoint until both are done, or it may not go on. `source` is the caller.
    pub(crate) async fn run(
        self,
        caller: impl AsyncRead + AsyncWrite + Unpin,
        (worker, source): (&Worker, &Source),
    ) {
        let moved = Moved::default();
        let over = Permit::over(self.permit.as_deref(), (worker, source), self.session.as_ref());
        let why = pump::pump_until(over, caller, self.upstream, (self.idle, &moved)).await;
        let address = self.pick.address;
        let (sent, received) = (moved.from_caller.get(), moved.from_upstream.get());
        let why = match why {
            Ok(why) => why,
            Err(Failure { reason, detail, .. }) => {
                let reason = reason.word();
                tracing::info!(%address, sent, received, reason, detail, "a switched connection was cut");
                return;
            }
        };
        match why {
            Why::Finished => tracing::debug!(%address, sent, received, "a switched connection ended"),
            Why::Silent => {
                tracing::info!(%address, sent, received, "a switched connection was silent for too long");
            }
            Why::Broken(side, error) => {
                tracing::debug!(%address, sent, received, ?side, %error, "a switched connection broke");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn asked(headers: &[(&str, &str)]) -> Option<Upgrade> {
        let mut request = Request::builder().uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Upgrade::asked(&mut request.body(()).unwrap().into_parts().0).unwrap()
    }

    #[test]
    fn a_websocket_is_asked_for_by_upgrade_and_connection_together() {
        let wish = asked(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]).unwrap();
        assert_eq!(wish.protocol, "WebSocket");
        assert!(asked(&[("upgrade", "websocket")]).is_none());
        assert!(asked(&[("connection", "upgrade")]).is_none());
    }

    #[test]
    fn nobody_switches_to_what_this_hop_could_not_read() {
        for protocol in [
            "h2c",
            "H2C",
            "HTTP/2.0",
            "TLS/1.2",
            "h2c, websocket",
            "websocket, h2c",
            "",
        ] {
            let wish = asked(&[("connection", "upgrade, http2-settings"), ("upgrade", protocol)]);
            assert!(wish.is_none(), "{protocol}");
        }
    }

    #[test]
    fn the_answer_to_a_key_is_that_of_the_standard() {
        // The example of RFC 6455 section 1.3.
        assert_eq!(
            accept(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }
}
