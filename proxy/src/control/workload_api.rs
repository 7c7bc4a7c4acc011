//! A sidecar's identity from an agent of SPIFFE on this machine, such as SPIRE's: the call `FetchX509SVID` of the SPIFFE
//! Workload API, over the agent's socket. The agent knows which process asks, and sends a message whenever there is
//! another certificate or root; each holds all that there is (SPIFFE Workload API section 4.3).
//!
//! When the stream ends the agent is asked again, and until then what is held serves on, to the end of its certificate. That
//! is so too where the agent says that there is no identity any more: section 5.2.1 would have it put away, but an agent
//! says the same while it does not know yet what it is to know, and its certificates live for an hour or less.
//!
//! **Does not** look at certificates, which is `tls::identity`'s; nor take bundles of other trust domains and revocation lists,
//! which have no use in a mesh of one trust domain whose certificates are short.

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use http::{HeaderMap, Request, StatusCode, Version, header};
use percent_encoding::percent_decode_str;
use prost::Message;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::control::join::backoff;
use crate::tls::Identities;
use crate::tls::identity::{Identity, IdentityProblem};
use crate::tls::revoked::Revocations;

/// How long connecting and the first message may take in all: an agent sends it at once (section 4.3), and one that starts
/// has some work before.
const FIRST_WITHIN: Duration = Duration::from_secs(30);

/// The longest wait after a stream that ended: the agent is on this machine, and nobody is kept from work by a call.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// No stream is given up for its silence before this.
const SILENCE_MIN: Duration = Duration::from_secs(60);

/// The longest message that is read, as long as those that gRPC's own libraries take: some certificates of a kilobyte, and
/// perhaps the bundles of many trust domains.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// What is asked: a message without fields.
const REQUEST: &[u8; PREFIX] = &[0; PREFIX];

/// `X509SVIDResponse` of workloadapi.proto.
#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<Svid>,
}

/// `X509SVID`: a certificate and what belongs to it.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    /// The certificate, then those between it and the root: DER, one behind the other.
    #[prost(bytes = "bytes", tag = "2")]
    chain: Bytes,
    /// PKCS#8, DER.
    #[prost(bytes = "bytes", tag = "3")]
    key: Bytes,
    /// The roots of its trust domain: DER, one behind the other.
    #[prost(bytes = "bytes", tag = "4")]
    bundle: Bytes,
}

impl fmt::Debug for Svid {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("spiffe_id", &self.spiffe_id)
            .finish_non_exhaustive()
    }
}

impl Response {
    /// The identity of a service's sidecar: of several the one whose path is its name, else the first, which is the default
    /// one (section 5.3).
    fn identity(
        &self,
        service: Option<&str>,
        revocations: &Arc<Revocations>,
        now: SystemTime,
    ) -> Result<Identity, IdentityProblem> {
        let is_ours = |svid: &&Svid| {
            let id = svid.spiffe_id.strip_prefix("spiffe://");
            let path = id.and_then(|id| Some(id.split_once('/')?.1));
            service.is_some() && path == service
        };
        let svid = self.svids.iter().find(is_ours).or_else(|| self.svids.first());
        let svid =
            svid.ok_or_else(|| IdentityProblem::NotGiven("there is none in its message".to_owned()))?;
        let identity = Identity::from_der(&svid.chain, &svid.key, &svid.bundle, revocations, now)?;
        if identity.id().as_str() != svid.spiffe_id {
            return Err(IdentityProblem::NotGiven(format!(
                "its message says `{}`, and the certificate in it `{}`",
                svid.spiffe_id.escape_default(),
                identity.id()
            )));
        }
        Ok(identity)
    }
}

/// Why a stream is over.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ended {
    /// Nothing came for long: the agent may have stopped without a word.
    Silent,
    /// The agent was not reached, or said something else, or the connection broke.
    Broken(String),
    /// The agent ended it with this status of gRPC.
    Status(u16, String),
}

/// The statuses of gRPC that the SPIFFE Workload Endpoint gives a meaning to (its appendix A).
const INVALID_ARGUMENT: u16 = 3;
const PERMISSION_DENIED: u16 = 7;
const UNIMPLEMENTED: u16 = 12;

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => f.write_str("nothing came for long"),
            Self::Broken(why) => f.write_str(why),
            Self::Status(PERMISSION_DENIED, words) => write!(
                f,
                "the agent has no identity for this process (PermissionDenied: {words}); register one whose selectors match it"
            ),
            Self::Status(UNIMPLEMENTED, words) => write!(
                f,
                "the agent does not hand out certificates (Unimplemented: {words}); is the socket that of a SPIFFE Workload API?"
            ),
            Self::Status(code, words) => write!(f, "the agent answered with grpc-status {code}: {words}"),
        }
    }
}

impl Ended {
    /// Whether somebody should know of it although the stream had brought an identity: streams end when agents are renewed.
    const fn is_news(&self) -> bool {
        matches!(self, Self::Status(PERMISSION_DENIED | UNIMPLEMENTED, _))
    }

    /// How long is waited after so many streams in a row that brought nothing, this one counted.
    fn wait(&self, failures: u32, draw: f64) -> Duration {
        match self {
            // The same will be said again, unless there is another agent behind the socket.
            Self::Status(INVALID_ARGUMENT | UNIMPLEMENTED, _) => BACKOFF_MAX,
            _ => backoff(failures, BACKOFF_MAX, draw),
        }
    }
}

/// Keeps the identity as the agent at this socket gives it to the sidecar of `service`, for as long as it is polled.
pub(super) async fn keep_current(
    socket: PathBuf,
    service: Option<String>,
    identities: Arc<Identities>,
) -> Infallible {
    let mut taker = Taker {
        service,
        identities,
        told: None,
    };
    let mut failures = 0;
    loop {
        let (brought, ended) = taker.follow(&socket).await;
        failures = if brought { 1 } else { failures + 1 };
        // Silence is no news either: what was wrong with the last message still is.
        if ended == Ended::Silent || brought && !ended.is_news() {
            tracing::info!(why = %ended, "the stream of the SPIFFE Workload API ended; it is asked for again");
        } else {
            taker.refuse(&IdentityProblem::NotGiven(format!(
                "{ended} ({})",
                socket.display()
            )));
        }
        tokio::time::sleep(ended.wait(failures, fastrand::f64())).await;
    }
}

/// What takes the agent's messages.
struct Taker {
    service: Option<String>,
    identities: Arc<Identities>,
    /// The last problem that was told, until an identity comes.
    told: Option<String>,
}

impl Taker {
    /// Follows one stream to its end. Says whether it brought an identity, and why it is over.
    async fn follow(&mut self, socket: &Path) -> (bool, Ended) {
        let opened = timeout(FIRST_WITHIN, async {
            let mut stream = Stream::open(socket).await?;
            let first = stream.next().await?;
            Ok((stream, first))
        });
        let (mut stream, mut response) = match opened.await {
            Ok(Ok(opened)) => opened,
            Ok(Err(ended)) => return (false, ended),
            Err(_) => {
                let late = format!("the agent sent nothing within {FIRST_WITHIN:?}");
                return (false, Ended::Broken(late));
            }
        };
        let mut brought = false;
        loop {
            let left = self.take(&response);
            brought |= left.is_some();
            response = match timeout(patience(left), stream.next()).await {
                Ok(Ok(response)) => response,
                Ok(Err(ended)) => return (brought, ended),
                Err(_) => return (brought, Ended::Silent),
            };
        }
    }

    /// Takes one message. Says how long its certificate is good for, where it is.
    fn take(&mut self, response: &Response) -> Option<Duration> {
        let now = SystemTime::now();
        match response.identity(self.service.as_deref(), self.identities.revocations(), now) {
            Ok(identity) => {
                let end = u64::try_from(identity.not_after()).unwrap_or_default();
                let end = SystemTime::UNIX_EPOCH + Duration::from_secs(end);
                self.told = None;
                self.identities.put(identity);
                Some(end.duration_since(now).unwrap_or_default())
            }
            Err(problem) => {
                self.refuse(&problem);
                None
            }
        }
    }

    /// Says that there is no identity, unless it has been said in the same words.
    fn refuse(&mut self, problem: &IdentityProblem) {
        let words = problem.to_string();
        if self.told.as_ref() != Some(&words) {
            self.identities.refuse(problem);
            self.told = Some(words);
        }
    }
}

/// How long the next message may take where a certificate is good for so long: agents renew at half of its life, and whoever
/// asks anew is told at once. An agent that is stuck is found out so while there is time.
fn patience(left: Option<Duration>) -> Duration {
    (left.unwrap_or_default() / 2).max(SILENCE_MIN)
}

/// The call, under way.
struct Stream {
    body: RecvStream,
    /// What has come and is no whole message yet.
    unread: BytesMut,
    _connection: AbortOnDropHandle<Result<(), h2::Error>>,
}

impl Stream {
    async fn open(socket: &Path) -> Result<Self, Ended> {
        let connected = UnixStream::connect(socket).await;
        let connected = connected.map_err(|error| {
            Ended::Broken(format!("{error}; does the agent run, and is its socket here?"))
        })?;
        let (sender, connection) = h2::client::handshake(connected).await.map_err(broken)?;
        let connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let mut sender = sender.ready().await.map_err(broken)?;
        // The name of the authority says nothing over a socket; gRPC's libraries say this one.
        let request = Request::post("http://localhost/SpiffeWorkloadAPI/FetchX509SVID")
            .version(Version::HTTP_2)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            // SPIFFE Workload Endpoint section 3: who can be made to send a request cannot be made to send this.
            .header("workload.spiffe.io", "true")
            .body(())
            .map_err(|error| Ended::Broken(error.to_string()))?;
        let (answer, mut body) = sender.send_request(request, false).map_err(broken)?;
        body.send_data(Bytes::from_static(REQUEST), true)
            .map_err(broken)?;
        let (head, body) = answer.await.map_err(broken)?.into_parts();
        if head.status != StatusCode::OK {
            let what = format!(
                "what listens there answered {}, and is no agent of SPIFFE",
                head.status
            );
            return Err(Ended::Broken(what));
        }
        // A call that fails at once says so in its head.
        match status(&head.headers) {
            Some(ended) => Err(ended),
            None => Ok(Self {
                body,
                unread: BytesMut::new(),
                _connection: connection,
            }),
        }
    }

    /// The next message, or why there is none.
    async fn next(&mut self) -> Result<Response, Ended> {
        loop {
            if let Some(message) = cut(&mut self.unread).map_err(Ended::Broken)? {
                return Response::decode(message).map_err(|error| {
                    Ended::Broken(format!("a message of the agent cannot be read: {error}"))
                });
            }
            let Some(data) = self.body.data().await else {
                let trailers = self.body.trailers().await.map_err(broken)?;
                let ended = trailers.as_ref().and_then(status);
                return Err(ended.unwrap_or_else(|| Ended::Broken("the agent ended the stream".to_owned())));
            };
            let data = data.map_err(broken)?;
            // What cannot be released was never held, which is no reason to fail.
            let _ = self.body.flow_control().release_capacity(data.len());
            self.unread.extend_from_slice(&data);
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "`map_err` hands it over")]
fn broken(error: h2::Error) -> Ended {
    Ended::Broken(format!("the connection to the agent broke: {error}"))
}

/// Takes one whole message from the front of what has come.
fn cut(unread: &mut BytesMut) -> Result<Option<Bytes>, String> {
    let Some((&[compressed, ref length @ ..], rest)) = unread.split_first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if compressed != 0 {
        return Err("a message of the agent is compressed, which was not offered".to_owned());
    }
    if length > MESSAGE_BYTES_MAX {
        return Err(format!(
            "a message of the agent has {length} bytes; {MESSAGE_BYTES_MAX} are the most"
        ));
    }
    if rest.len() < length {
        return Ok(None);
    }
    unread.advance(PREFIX);
    Ok(Some(unread.split_to(length).freeze()))
}

/// The status that a head or trailers tell, where it is not OK.
fn status(headers: &HeaderMap) -> Option<Ended> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let code = text("grpc-status")?.parse().unwrap_or(u16::MAX);
    let words = percent_decode_str(text("grpc-message").unwrap_or_default()).decode_utf8_lossy();
    (code != 0).then(|| Ended::Status(code, words.into_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

    use super::*;

    struct Root {
        issuer: Issuer<'static, KeyPair>,
        der: Vec<u8>,
    }

    fn new_root() -> Root {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let issuer = Issuer::new(params, key);
        Root { issuer, der }
    }

    fn svid(root: &Root, id: &str) -> Svid {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        let certificate = params.signed_by(&key, &root.issuer).unwrap();
        Svid {
            spiffe_id: id.to_owned(),
            chain: certificate.der().to_vec().into(),
            key: key.serialize_der().into(),
            bundle: root.der.clone().into(),
        }
    }

    fn taken(svids: Vec<Svid>, service: Option<&str>) -> Result<String, String> {
        let identity = Response { svids }.identity(service, &Arc::default(), SystemTime::now());
        identity
            .map(|identity| identity.id().to_string())
            .map_err(|problem| problem.to_string())
    }

    #[test]
    fn of_several_certificates_that_of_the_service_is_taken_and_else_the_first() {
        let root = new_root();
        let of = |id| svid(&root, id);
        let both = || vec![of("spiffe://shop/ops"), of("spiffe://shop/reviews")];
        for (service, id) in [
            (Some("reviews"), "spiffe://shop/reviews"),
            (Some("ratings"), "spiffe://shop/ops"),
            (None, "spiffe://shop/ops"),
        ] {
            assert_eq!(taken(both(), service), Ok(id.to_owned()), "{service:?}");
        }
        let deep = vec![of("spiffe://shop/ops"), of("spiffe://shop/ns/reviews")];
        assert_eq!(taken(deep, Some("reviews")), Ok("spiffe://shop/ops".to_owned()));
    }

    #[test]
    fn a_message_is_an_identity_only_if_all_of_it_is_good() {
        let (root, other) = (new_root(), new_root());
        let good = svid(&root, "spiffe://shop/reviews");
        let two = Svid {
            bundle: [other.der, root.der.clone()].concat().into(),
            // An intermediate more than it takes does no harm.
            chain: [good.chain.to_vec(), root.der.clone()].concat().into(),
            ..good.clone()
        };
        assert!(taken(vec![two], None).is_ok());
        let wrong = |change: fn(&mut Svid)| {
            let mut svid = good.clone();
            change(&mut svid);
            taken(vec![svid], None).unwrap_err()
        };
        for (said, words) in [
            (taken(Vec::new(), None).unwrap_err(), "none in its message"),
            (wrong(|svid| svid.chain = Bytes::new()), "there is none"),
            (wrong(|svid| svid.bundle = Bytes::new()), "there is none"),
            (wrong(|svid| svid.key = Bytes::new()), "the key"),
            (wrong(|svid| svid.spiffe_id.clear()), "its message says ``"),
            (wrong(|svid| svid.chain.truncate(100)), "cannot be read"),
            (
                wrong(|svid| svid.bundle = vec![svid.bundle.clone(); 33].concat().into()),
                "more than 32",
            ),
            (wrong(|svid| svid.bundle = new_root().der.into()), "roots"),
            (
                taken(vec![svid(&root, "https://shop/reviews")], None).unwrap_err(),
                "SPIFFE ID",
            ),
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
    }

    #[test]
    fn a_message_is_read_as_the_published_protobuf_has_it() {
        // Fields 1 to 5 of X509SVID in field 1 of X509SVIDResponse, then its fields 2 and 3, which are not taken.
        let svid = b"\x0a\x0aspiffe://a\x12\x01C\x1a\x01K\x22\x01B\x2a\x04hint";
        let mut bytes = vec![0x0a, u8::try_from(svid.len()).unwrap()];
        bytes.extend(svid);
        bytes.extend(b"\x12\x03crl\x1a\x05\x0a\x01d\x12\x00");
        let response = Response::decode(&bytes[..]).unwrap();
        let [svid] = &response.svids[..] else {
            panic!("{response:?}");
        };
        assert_eq!(svid.spiffe_id, "spiffe://a");
        assert_eq!([&svid.chain[..], &svid.key, &svid.bundle], [b"C", b"K", b"B"]);
        assert!(!format!("{response:?}").contains("key"));
    }

    #[test]
    fn messages_are_cut_where_they_end() {
        let mut unread = BytesMut::new();
        for (byte, whole) in [0, 0, 0, 0, 2, b'a', b'b', 0].into_iter().zip(1..) {
            unread.extend_from_slice(&[byte]);
            let message = cut(&mut unread).unwrap();
            assert_eq!(
                message,
                (whole == 7).then(|| Bytes::from_static(b"ab")),
                "{whole}"
            );
        }
        assert_eq!(&unread[..], [0]);
        for bad in [[1, 0, 0, 0, 0], [0, 0xFF, 0, 0, 0]] {
            assert!(cut(&mut BytesMut::from(&bad[..])).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_the_agent_says_is_told_in_words_and_decides_how_long_is_waited() {
        let said = |code: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", code.parse().unwrap());
            headers.insert("grpc-message", "no%20identity issued".parse().unwrap());
            status(&headers)
        };
        assert_eq!((status(&HeaderMap::new()), said("0")), (None, None));
        let denied = said("7").unwrap();
        assert!(
            denied
                .to_string()
                .contains("PermissionDenied: no identity issued")
        );
        assert!(denied.is_news() && !said("14").unwrap().is_news());
        assert!(said("x").is_some());
        for code in ["3", "12"] {
            assert_eq!(said(code).unwrap().wait(1, 0.0), BACKOFF_MAX);
        }
        assert_eq!(denied.wait(1, 0.0), Duration::from_millis(500));
        assert_eq!(denied.wait(20, 1.0), BACKOFF_MAX);
    }

    #[test]
    fn a_silent_agent_is_asked_again_while_there_is_time() {
        assert_eq!(
            patience(Some(Duration::from_secs(3600))),
            Duration::from_secs(1800)
        );
        assert_eq!(patience(Some(Duration::ZERO)), SILENCE_MIN);
        assert_eq!(patience(None), SILENCE_MIN);
    }

    proptest! {
        #[test]
        fn no_bytes_of_an_agent_make_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut unread = BytesMut::from(&bytes[..]);
            let _ = cut(&mut unread);
            if let Ok(response) = Response::decode(&bytes[..]) {
                prop_assert!(response.identity(None, &Arc::default(), SystemTime::now()).is_err());
            }
            let svid = Svid { chain: bytes.clone().into(), bundle: bytes.into(), ..Svid::default() };
            prop_assert!(taken(vec![svid], None).is_err());
        }
    }
}
