//! A small HTTP client for the control API: one request, one connection, one answer.
//!
//! **Does not** pool, retry or follow: a person waits for each answer, and a push must not be sent twice unasked.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, IF_MATCH};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use outrigger_config::Problem;
use outrigger_proxy::tls::pin::{Pinned, Trust};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::server::{AUTHOR, ErrorBody};

/// Where the control API listens unless it is told otherwise.
pub const API_DEFAULT: &str = "http://127.0.0.1:9900";

/// How long connecting may take: across the world, with a lost packet.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// How long an answer may take: longer than the longest hold and than the server's own limit.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// The longest answer that is read: ten thousand nodes, or a mesh at its limit of documents of a usual size.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// What has to be escaped in a part of a path or a query.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'@');

/// A control API, by its address.
#[derive(Clone, Debug)]
pub struct Api {
    url: String,
    authority: String,
    /// How it is known, if it is spoken to over TLS.
    tls: Option<Pinned>,
    /// How it knows an operator; marked as sensitive, so that nothing prints it.
    operator: Option<HeaderValue>,
}

/// One request.
#[derive(Debug)]
pub struct Ask {
    method: Method,
    path: String,
    body: Option<(&'static str, Vec<u8>)>,
    if_match: Option<String>,
}

/// Why there is no answer, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is not one.
    #[error("`{url}` is not an address of a control API: {what}; expected one like {API_DEFAULT}")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        what: String,
    },
    /// It is https, and nothing says how to know it.
    #[error("{url}: give --ca-fingerprint, which `outrigger serve` logs at its start, or --api-ca")]
    Untrusted {
        /// Where.
        url: String,
    },
    /// The operator token would be read on the way.
    #[error(
        "the operator token is not sent to {url}: it would cross the network in the clear. Use https:// (`outrigger serve \
         --tls`, known by --ca-fingerprint or --api-ca), or run the tool on the machine of the control API"
    )]
    Plaintext {
        /// Where.
        url: String,
    },
    /// Nobody answered.
    #[error(
        "cannot reach the control API at {url}: {what}. Is it running? `outrigger serve` starts one; --api URL or \
         OUTRIGGER_API names another"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// What happened.
        what: String,
    },
    /// Somebody answered, who is another.
    #[error(
        "what answers at {url} is not the control API that was meant: {what}. --ca-fingerprint or --api-ca say by what it is \
         known, OUTRIGGER_CA_FINGERPRINT or OUTRIGGER_API_CA too"
    )]
    NotMeant {
        /// Where.
        url: String,
        /// Why it is not.
        what: String,
    },
    /// The documents are wrong.
    #[error("the control API refused the documents")]
    Problems(Vec<Problem>),
    /// It answered with an error.
    #[error("the control API at {url} answered {status}: {sentence}")]
    Status {
        /// Where.
        url: String,
        /// The status.
        status: StatusCode,
        /// Its words.
        sentence: String,
    },
    /// It answered something else than a control API does.
    #[error("{url} answered what no control API of this release answers: {what}. Is the address right?")]
    Answer {
        /// Where.
        url: String,
        /// What is wrong with it.
        what: String,
    },
}

impl Ask {
    /// Asks for `path`.
    pub fn get(path: impl Into<String>) -> Self {
        Self::of(Method::GET, path.into())
    }

    /// Deletes `path`.
    pub fn delete(path: impl Into<String>) -> Self {
        Self::of(Method::DELETE, path.into())
    }

    /// Puts `body` at `path`.
    pub fn put(path: impl Into<String>, media: &'static str, body: Vec<u8>) -> Self {
        Self {
            body: Some((media, body)),
            ..Self::of(Method::PUT, path.into())
        }
    }

    /// Posts `body` to `path`.
    pub fn post(path: impl Into<String>, media: &'static str, body: Vec<u8>) -> Self {
        Self {
            body: Some((media, body)),
            ..Self::of(Method::POST, path.into())
        }
    }

    /// Posts a value as JSON.
    pub fn post_json(path: impl Into<String>, value: &impl Serialize) -> Self {
        // What we send is plain data, which always has a form in JSON; an empty body would be refused.
        let body = serde_json::to_vec(value).unwrap_or_default();
        Self::post(path, "application/json", body)
    }

    /// Only if what is there is still of this version.
    #[must_use]
    pub fn if_match(mut self, version: Option<String>) -> Self {
        self.if_match = version;
        self
    }

    fn of(method: Method, path: String) -> Self {
        Self {
            method,
            path,
            body: None,
            if_match: None,
        }
    }

    fn request(self, authority: &str, accept: &'static str) -> http::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(self.method)
            .uri(self.path)
            .header(HOST, authority)
            .header(ACCEPT, accept)
            .header(AUTHOR, author());
        if let Some(version) = self.if_match {
            request = request.header(IF_MATCH, format!("\"{version}\""));
        }
        let mut body = Bytes::new();
        if let Some((media, bytes)) = self.body {
            request = request.header(CONTENT_TYPE, media);
            body = bytes.into();
        }
        request.body(Full::new(body))
    }
}

/// Escapes a name for use as a part of a path or a query.
pub fn escape(name: &str) -> String {
    utf8_percent_encode(name, ESCAPED).to_string()
}

/// Who this is, for the history: the user of this terminal.
fn author() -> HeaderValue {
    let name = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    let name = name.ok().and_then(|name| HeaderValue::try_from(name).ok());
    name.unwrap_or(HeaderValue::from_static("unnamed"))
}

impl Api {
    /// Reads an address such as `http://127.0.0.1:9900`.
    pub fn new(url: &str) -> Result<Self, ClientError> {
        Self::trusting(url, None)
    }

    /// Reads an address such as `https://control.example:9900`, of an API that is known by `trust`.
    pub fn trusting(url: &str, trust: Option<Trust>) -> Result<Self, ClientError> {
        let refuse = |what: &str| ClientError::Address {
            url: url.to_owned(),
            what: what.to_owned(),
        };
        let uri: Uri = url.parse().map_err(|_| refuse("it is not a URL"))?;
        let tls = match (uri.scheme_str(), trust) {
            (Some("http"), _) => None,
            (Some("https"), Some(trust)) => Some(Pinned::new(trust, None).map_err(|what| refuse(&what))?),
            (Some("https"), None) => return Err(ClientError::Untrusted { url: url.to_owned() }),
            _ => return Err(refuse("it does not begin with http:// or https://")),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(refuse("it has a path"));
        }
        let authority = uri.authority().ok_or_else(|| refuse("it names no host"))?;
        let port = authority
            .port_u16()
            .unwrap_or_else(|| if tls.is_some() { 443 } else { 80 });
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            authority: format!("{}:{port}", authority.host()),
            tls,
            operator: None,
        })
    }

    /// Shows this operator token with every request. Refused for an address of http:// beyond this machine.
    pub fn with_operator_token(mut self, token: &str) -> Result<Self, ClientError> {
        let host = self.host().trim_start_matches('[').trim_end_matches(']');
        let here = host.parse::<IpAddr>().map_or_else(
            // `localhost` never leaves the machine (RFC 6761, section 6.3).
            |_| host.eq_ignore_ascii_case("localhost"),
            |address| address.to_canonical().is_loopback(),
        );
        if self.tls.is_none() && !here {
            return Err(ClientError::Plaintext { url: self.url });
        }
        let value = HeaderValue::try_from(format!("Bearer {token}"));
        let mut value =
            value.map_err(|_| self.strange("an operator token that no header can hold".to_owned()))?;
        value.set_sensitive(true);
        self.operator = Some(value);
        Ok(self)
    }

    /// The host of the address, an IPv6 one in its brackets.
    fn host(&self) -> &str {
        let host = self.authority.rsplit_once(':').map(|(host, _)| host);
        host.unwrap_or(&self.authority)
    }

    /// The address as it was given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Asks, and reads the answer as JSON.
    pub async fn json<T: DeserializeOwned>(&self, ask: Ask) -> Result<T, ClientError> {
        let body = self.bytes(ask, "application/json").await?;
        serde_json::from_slice(&body).map_err(|error| self.strange(error.to_string()))
    }

    /// Asks, and reads the answer as text.
    pub async fn text(&self, ask: Ask) -> Result<String, ClientError> {
        let body = self.bytes(ask, "application/yaml").await?;
        String::from_utf8(body.into()).map_err(|_| self.strange("bytes that are no text".into()))
    }

    async fn bytes(&self, ask: Ask, accept: &'static str) -> Result<Bytes, ClientError> {
        let (status, body) = timeout(ANSWER_WITHIN, self.exchange(ask, accept))
            .await
            .unwrap_or_else(|_| {
                Err(self.unreachable(format!("no answer within {}s", ANSWER_WITHIN.as_secs())))
            })?;
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(error) if !error.problems.is_empty() => Err(ClientError::Problems(error.problems)),
            Ok(ErrorBody {
                error: Some(sentence),
                ..
            }) => Err(ClientError::Status {
                url: self.url.clone(),
                status,
                sentence,
            }),
            _ => Err(self.strange(format!("status {status} without a reason"))),
        }
    }

    /// Connects, sends, and reads the whole answer, whatever its status.
    pub async fn exchange(&self, ask: Ask, accept: &'static str) -> Result<(StatusCode, Bytes), ClientError> {
        let mut request = ask
            .request(&self.authority, accept)
            .map_err(|error| self.strange(error.to_string()))?;
        if let Some(operator) = &self.operator {
            request.headers_mut().insert(AUTHORIZATION, operator.clone());
        }
        let stream = timeout(CONNECT_WITHIN, TcpStream::connect(&self.authority))
            .await
            .map_err(|_| self.unreachable(format!("no connection within {}s", CONNECT_WITHIN.as_secs())))?
            .map_err(|error| self.unreachable(error.to_string()))?;
        let Some(tls) = &self.tls else {
            return self.ask_over(stream, request).await;
        };
        let stream = timeout(CONNECT_WITHIN, tls.connect(self.host(), stream))
            .await
            .map_err(|_| self.unreachable(format!("no TLS within {}s", CONNECT_WITHIN.as_secs())))?
            .map_err(|error| ClientError::NotMeant {
                url: self.url.clone(),
                what: error.to_string(),
            })?;
        self.ask_over(stream, request).await
    }

    /// Sends a request over a new connection, and reads the whole answer.
    async fn ask_over<S>(
        &self,
        stream: S,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let broke = |error: hyper::Error| {
            self.unreachable(match error.is_parse() {
                true => format!(
                    "what it says is not HTTP ({error}): if it is served with --tls, ask it by https://"
                ),
                false => format!("the connection broke ({error})"),
            })
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(broke)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await;
        let body = body.map_err(|error| self.unreachable(format!("the answer broke off ({error})")))?;
        driver.abort();
        Ok((status, body.to_bytes()))
    }

    fn unreachable(&self, what: String) -> ClientError {
        let url = self.url.clone();
        ClientError::Unreachable { url, what }
    }

    fn strange(&self, what: String) -> ClientError {
        let url = self.url.clone();
        ClientError::Answer { url, what }
    }
}
