//! Who may do what operators do: whoever is on this machine, unless that was forbidden at the start, and whoever brings the
//! operator token.
//!
//! A browser on this machine asks what pages of anybody tell it to. So without the token a request must be one that no such
//! page can send: see [`outrigger_proxy::browsers`]. Nor are pages sidecars, by whose routes all documents can be read.
//!
//! Where a peer is, is the address of its connection and nothing that it says: `X-Forwarded-For` and its like are never
//! looked at. So whatever passes requests on from this machine passes them on as an operator's, unless loopback has to
//! bring the token too.
//!
//! The token is 256 random bits, kept here as its SHA-256, as join tokens are (see [`crate::ca::tokens`]). A right one is
//! always heard. What wrong ones may cost is limited: otherwise whoever shares an operator's address could keep it out.
//!
//! **Does not** tell operators apart: there is one token.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use http_body_util::BodyExt;
use outrigger_proxy::browsers::{Foreign, OwnNames, is_of_a_page};
use subtle::ConstantTimeEq;
use tokio::time::timeout;

use super::answer::ApiError;
use super::documents::PUSH_BYTES_MAX;
use super::{Peer, Shared, StartError};
use crate::ca::join::Now;
use crate::ca::limits::{self, Limits};
use crate::ca::{random, rfc3339};
use crate::secrets;
use crate::store::ledger::{AuditRow, Deed};

/// What an operator token begins with: its kind and version.
const PREFIX: &str = "oro1.";

/// Random bytes of a token, which nobody guesses.
const SECRET_BYTES: usize = 32;

/// The file of the token in the folder of `--data`.
const FILE: &str = "operator.token";

/// How long the rest of a refused body is read and forgotten, so that a large push is not cut before its answer is read.
const REST_WITHIN: Duration = Duration::from_secs(5);

/// What is known of operators.
#[derive(Debug)]
pub(super) struct Operators {
    token_sha256: [u8; 32],
    /// Where the token is, for the log.
    path: PathBuf,
    /// Loopback has to bring the token too.
    everywhere: bool,
    /// By what names a request from loopback may ask without it.
    own: OwnNames,
    limits: Mutex<Limits>,
}

/// What a request shows of its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is an operator's.
    Operator,
    /// It brings no token and had to.
    Missing,
    /// What it brings is not the token.
    Wrong,
    /// It comes from this machine, and may be sent by a browser for a page of somebody else.
    Foreign(Foreign),
}

impl Operators {
    /// Reads the token of the folder of `--data`; at the first start it is made.
    pub(super) fn open(data: &Path, everywhere: bool, own: OwnNames) -> Result<Self, StartError> {
        let path = data.join(FILE);
        let refused = |cause: String| StartError::OperatorToken {
            path: path.clone(),
            cause,
        };
        let token = match secrets::read(&path, "the operator token") {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let secret = random::bytes::<SECRET_BYTES>().map_err(refused)?;
                let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(secret));
                let written = secrets::write(data, &path, format!("{token}\n").as_bytes());
                written.map_err(|error| refused(error.to_string()))?;
                token
            }
            Err(error) => return Err(refused(error.to_string())),
        };
        if !is_token(token.trim()) {
            return Err(refused("it holds no operator token".to_owned()));
        }
        Ok(Self {
            token_sha256: sha256(token.trim()),
            path,
            everywhere,
            own,
            limits: Mutex::new(Limits::new()),
        })
    }

    /// Where the token is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Decides by the address of the connection and what the request says of the page that it comes of, and by the token
    /// if that is not enough.
    fn judge(&self, peer: IpAddr, uri: &Uri, headers: &HeaderMap) -> Verdict {
        let by_token = by_token(headers, &self.token_sha256);
        // An IPv4 peer of a socket of both families is `::ffff:127.0.0.1`.
        let has_to_bring_it = self.everywhere || !peer.to_canonical().is_loopback();
        if has_to_bring_it || by_token == Verdict::Operator {
            return by_token;
        }
        match self.own.judge(uri, headers) {
            Ok(()) => Verdict::Operator,
            Err(foreign) => Verdict::Foreign(foreign),
        }
    }

    /// Counts a wrong token. How long until one is heard again if there were too many, and whether to write it down.
    fn failed(&self, peer: IpAddr, now: &Now) -> (Option<Duration>, bool) {
        let source = peer.into();
        // Each change of it is whole before the next can panic.
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let mut verdict = limits.before(&source, now.clock);
        if verdict == limits::Verdict::Heard {
            verdict = limits.failed(&source, now.clock);
        }
        match verdict {
            limits::Verdict::Heard => (None, true),
            limits::Verdict::Over { retry_after, note } => (Some(retry_after), note),
        }
    }
}

/// Whether this has the form of an operator token.
pub(crate) fn is_token(text: &str) -> bool {
    let secret = text.strip_prefix(PREFIX).map(|text| URL_SAFE_NO_PAD.decode(text));
    matches!(secret, Some(Ok(secret)) if secret.len() == SECRET_BYTES)
}

/// Lets operators through and refuses everybody else. Stands before every route that is not for sidecars.
pub(super) async fn only_operators(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let source = peer.address.ip().to_canonical();
    let verdict = shared.operators.judge(source, request.uri(), request.headers());
    let retry_after = match &verdict {
        Verdict::Operator => return next.run(request).await,
        Verdict::Missing => None,
        Verdict::Wrong => refused(&shared, source, "a wrong operator token".to_owned()).await,
        Verdict::Foreign(foreign) => {
            refused(&shared, source, format!("no operator's request: {foreign}")).await;
            None
        }
    };
    forget(request.into_body()).await;
    refusal(&verdict, retry_after)
}

/// Refuses whatever a browser sends for a page, of whatever origin: pages are no sidecars. Stands before the routes that are
/// for sidecars alone, which are asked by whatever name leads here.
pub(super) async fn no_pages(request: Request, next: Next) -> Response {
    if !is_of_a_page(request.headers()) {
        return next.run(request).await;
    }
    forget(request.into_body()).await;
    let sentence = "sidecars ask this, and this request comes of a web page in a browser (`Origin` or `Sec-Fetch-Site`): ask \
                    by a tool such as curl, without these fields";
    ApiError::Sentence(StatusCode::FORBIDDEN, sentence.to_owned()).into_response()
}

/// Counts a refusal, and writes it down if not too many were. How long until a token is heard again if there were.
async fn refused(shared: &Arc<Shared>, source: IpAddr, why: String) -> Option<Duration> {
    let now = Now::read();
    let (retry_after, note) = shared.operators.failed(source, &now);
    if note {
        let shared = shared.clone();
        let noted = tokio::task::spawn_blocking(move || note_refusal(&shared, source, why, &now)).await;
        if let Err(error) = noted {
            tracing::error!(%error, "noting that no operator asked ended by a fault of this program");
        }
    }
    retry_after
}

/// Decides by the token alone.
fn by_token(headers: &HeaderMap, token_sha256: &[u8; 32]) -> Verdict {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let token = match (given.next(), given.next()) {
        (None, _) => return Verdict::Missing,
        (Some(value), None) => bearer(value),
        // Two of them are read by each as it likes (RFC 9110, section 5.3).
        (Some(_), Some(_)) => None,
    };
    let right = token.is_some_and(|token| sha256(token).ct_eq(token_sha256).into());
    if right { Verdict::Operator } else { Verdict::Wrong }
}

/// The token of `Bearer …`; the scheme may be written in any case (RFC 9110, section 11.1).
pub(crate) fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn sha256(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

/// Reads a body no further than any request may be long nor for longer than a moment, and keeps nothing of it.
pub(super) async fn forget(mut body: Body) {
    let all = async {
        let mut left = PUSH_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, bytes::Bytes::len);
            let Some(rest) = left.checked_sub(bytes) else {
                return;
            };
            left = rest;
        }
    };
    let _ = timeout(REST_WITHIN, all).await;
}

fn refusal(verdict: &Verdict, retry_after: Option<Duration>) -> Response {
    if let Verdict::Foreign(foreign) = verdict {
        return ApiError::Sentence(StatusCode::FORBIDDEN, for_foreign(foreign)).into_response();
    }
    if let Some(wait) = retry_after {
        // Whole seconds (RFC 9110, section 10.2.3), rounded up: never too early.
        let seconds = wait.as_secs() + 1;
        let sentence = format!(
            "too many wrong operator tokens came from here: try again in {seconds}s, or with the right one"
        );
        let mut response = ApiError::Sentence(StatusCode::TOO_MANY_REQUESTS, sentence).into_response();
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
        return response;
    }
    let what = if *verdict == Verdict::Missing {
        "this is for operators, and the request brings no operator token"
    } else {
        "the operator token is wrong"
    };
    let sentence = format!(
        "{what}. It is in the file `{FILE}` of the folder of --data, on the machine of the control API: give it with \
         OUTRIGGER_OPERATOR_TOKEN or --operator-token-file (`Authorization: Bearer {PREFIX}…`)"
    );
    let mut response = ApiError::Sentence(StatusCode::UNAUTHORIZED, sentence).into_response();
    // Every 401 says how to be let in (RFC 9110, section 15.5.2).
    response
        .headers_mut()
        .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// What is said to who may be a browser, in which a person may read it.
fn for_foreign(foreign: &Foreign) -> String {
    let instead = match foreign {
        Foreign::Host(host) => format!(
            "Ask by 127.0.0.1 or localhost, or, if the name is one of this control API, start `outrigger serve` with \
             --name {host}"
        ),
        Foreign::Origin(_) => "Ask by a tool, such as `outrigger` or curl".to_owned(),
        Foreign::Site(_) => "Ask by a tool, such as `outrigger` or curl, or type the address".to_owned(),
    };
    format!(
        "whoever is on this machine is an operator, and web pages of others are not: {foreign}. Nothing was done. {instead}; \
         the operator token is heard in any case (`Authorization: Bearer {PREFIX}…`)"
    )
}

/// Writes a refusal into the audit log. That it cannot be written changes nothing for the asker.
fn note_refusal(shared: &Shared, source: IpAddr, why: String, now: &Now) {
    tracing::warn!(%source, "{why}");
    let mut row = AuditRow::of(Deed::OperatorRefused, rfc3339(now.wall));
    row.source = source.to_string();
    row.note = why;
    let written = shared.store.ledger().and_then(|ledger| {
        ledger.audit(row)?;
        ledger.commit()
    });
    if let Err(error) = written {
        tracing::error!(%error, "a refusal could not be written to the audit log");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> OwnNames {
        OwnNames::new("127.0.0.1".parse().unwrap(), &[]).unwrap()
    }

    /// Who know the token `oro1.right`.
    fn operators(everywhere: bool) -> Operators {
        Operators {
            token_sha256: sha256("oro1.right"),
            path: PathBuf::new(),
            everywhere,
            own: own(),
            limits: Mutex::new(Limits::new()),
        }
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let value = |text: &&str| (AUTHORIZATION, HeaderValue::from_str(text).unwrap());
        let mut headers: HeaderMap = HeaderMap::new();
        for (name, value) in values.iter().map(value) {
            headers.append(name, value);
        }
        // What a client says of where it comes from counts for nothing.
        headers.insert("x-forwarded-for", HeaderValue::from_static("127.0.0.1"));
        headers.insert("forwarded", HeaderValue::from_static("for=127.0.0.1"));
        headers
    }

    #[test]
    fn loopback_is_an_operator_unless_told_otherwise_and_others_bring_the_token() {
        use Verdict::{Missing, Operator, Wrong};
        let (right, wrong) = ("Bearer oro1.right", "Bearer oro1.wrong");
        let (asked_here, asked_everywhere) = (operators(false), operators(true));
        let uri = Uri::from_static("/v1/ca");
        let here = ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"];
        let away = [
            "10.0.0.1",
            "::ffff:10.0.0.1",
            "2001:db8::1",
            // Addresses that look like loopback and are not.
            "::127.0.0.1",
            "::",
            "0.0.0.0",
            "128.0.0.1",
        ];
        let cases: [(&[&str], Verdict); 12] = [
            (&[], Missing),
            (&[right], Operator),
            (&["bEARER   oro1.right"], Operator),
            (&[wrong], Wrong),
            (&["Bearer"], Wrong),
            (&["Bearer "], Wrong),
            (&["oro1.right"], Wrong),
            (&["Basic oro1.right"], Wrong),
            (&["Bearer oro1.right2"], Wrong),
            (&["Bearer oro1.righ"], Wrong),
            (&[right, wrong], Wrong),
            (&[right, right], Wrong),
        ];
        for (values, expected) in cases {
            let headers = headers(values);
            for peer in here.map(|peer| peer.parse().unwrap()) {
                let judged = asked_here.judge(peer, &uri, &headers);
                assert_eq!(judged, Operator, "{peer} {values:?}");
                let judged = asked_everywhere.judge(peer, &uri, &headers);
                assert_eq!(judged, expected, "{peer} {values:?}");
            }
            for peer in away.map(|peer| peer.parse().unwrap()) {
                for operators in [&asked_here, &asked_everywhere] {
                    let judged = operators.judge(peer, &uri, &headers);
                    assert_eq!(judged, expected, "{peer} {values:?}");
                }
            }
        }
    }

    #[test]
    fn a_page_of_another_is_no_operator_on_this_machine_but_by_the_token() {
        let (right, wrong) = ("Bearer oro1.right", "Bearer oro1.wrong");
        let uri = Uri::from_static("/v1/ca");
        let judged = |everywhere, peer: &str, values: &[&str]| {
            let mut headers = headers(values);
            headers.insert("host", HeaderValue::from_static("evil.example"));
            operators(everywhere).judge(peer.parse().unwrap(), &uri, &headers)
        };
        let foreign = Verdict::Foreign(Foreign::Host("evil.example".to_owned()));
        for values in [[].as_slice(), &[wrong]] {
            assert_eq!(judged(false, "127.0.0.1", values), foreign);
        }
        assert_eq!(judged(false, "127.0.0.1", &[right]), Verdict::Operator);
        // Where the token decides, no page has it, and people ask by whatever name leads here.
        assert_eq!(judged(true, "127.0.0.1", &[]), Verdict::Missing);
        assert_eq!(judged(false, "10.0.0.1", &[right]), Verdict::Operator);
    }

    #[test]
    fn a_token_is_made_once_for_its_owner_alone_and_one_that_is_cut_short_is_said() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let first = Operators::open(folder.path(), false, own()).unwrap();
        let text = std::fs::read_to_string(first.path()).unwrap();
        assert!(is_token(text.trim()), "not a token");
        assert_eq!(
            std::fs::metadata(first.path()).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let again = Operators::open(folder.path(), false, own()).unwrap();
        assert_eq!(again.token_sha256, first.token_sha256);
        assert_eq!(first.token_sha256, sha256(text.trim()));
        let other = tempfile::tempdir().unwrap();
        assert_ne!(
            Operators::open(other.path(), false, own()).unwrap().token_sha256,
            first.token_sha256
        );
        for broken in ["", "\n", "oro1.", &text[..20]] {
            std::fs::write(first.path(), broken).unwrap();
            let error = Operators::open(folder.path(), false, own())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("operator.token") && error.contains("take it away"),
                "{error}"
            );
        }
    }
}
