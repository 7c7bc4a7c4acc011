//! A sidecar's identity from the control API: joins by a token, renews by the certificate that it was given.
//!
//! The key is made here and never leaves the memory of this process; a sidecar that starts again joins again. At first
//! the control API is known by the root's fingerprint at the end of the token, later by the roots that came with the
//! certificate. An answer is looked at before it is used: for our key, our service, and led to by a root that is known.
//!
//! **Does not** use the certificate: whoever asks is handed the PEM of all of it. Does not write anything to disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use outrigger_config::join::{
    IdentityAnswer, IdentityRefusal, IdentityRequest, JoinToken, RefusalReason, service_of,
};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::control::address::Address;
use crate::tls::LOOK_AT_CLOCK;
use crate::tls::identity::{Identity, IdentityProblem};
use crate::tls::pin::{Pinned, Shown, Trust, end_of_chain, fingerprint, public_key, verify_chain};
use crate::tls::revoked::Revocations;
use crate::upstream::discovery::Resolver;

/// How long one attempt may take in all: the control API itself makes a request wait for its turn for 20 s at most.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(30);

/// The longest answer that is read: two chains of eight certificates of 4 KiB, and some roots.
const ANSWER_BYTES_MAX: usize = 128 * 1024;

/// After an attempt that failed, this long is waited, then twice as long, and so on.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);

/// The longest wait after an attempt that failed: with certificates of a day there are a hundred tries in the second half
/// of its life.
const BACKOFF_MAX: Duration = Duration::from_secs(5 * 60);

/// The longest wait after an attempt that failed while there is no certificate that is good: nothing by mTLS is served until
/// there is one.
const BACKOFF_WITHOUT: Duration = Duration::from_secs(10);

/// By how much the moment of renewal is drawn about half the life: sidecars that started together part.
const JITTER: f64 = 0.1;

/// Sidecars that are told at once that the roots have changed renew within so long, not all in one moment.
const SPREAD: Duration = Duration::from_secs(5);

/// After a refusal for good this long is waited: short enough for an operator who puts a new token in its file, and
/// nothing to the control API's limits.
const REFUSED_WAIT: Duration = Duration::from_secs(10);

/// A token has less than 200 bytes.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Where the control API is, and who we are to be.
#[derive(Clone, Debug)]
pub struct Asker {
    address: Address,
    service: String,
    resolver: Resolver,
    /// The roots of the mesh as the control API names them, told by whoever polls it; empty before it was polled.
    told: Option<watch::Receiver<String>>,
}

/// Where the join token comes from.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// It was given when the sidecar started.
    Given(JoinToken),
    /// It stands in a file, and may be exchanged there.
    File(PathBuf),
}

impl TokenSource {
    /// The token as it is now.
    ///
    /// # Errors
    /// In words, when its file cannot be read or holds something else.
    pub fn read(&self) -> Result<JoinToken, String> {
        match self {
            Self::Given(token) => Ok(token.clone()),
            Self::File(path) => {
                // On the control thread, which waits for the disk: it has a hundred bytes and is read once for each join, and
                // requests are served by others. What would make it wait for longer is not read: a pipe, or a large file.
                let text = small_file(path, TOKEN_BYTES_MAX);
                let text = text.map_err(|error| format!("the token file {}: {error}", path.display()))?;
                text.trim()
                    .parse()
                    .map_err(|error| format!("the token file {}: {error}", path.display()))
            }
        }
    }
}

/// An identity, whole: PEM throughout.
#[derive(Clone)]
pub struct Joined {
    /// Our certificate, then every intermediate.
    pub certificates: Vec<String>,
    /// Its private key.
    pub key: String,
    /// The roots that are to be trusted.
    pub bundle: Vec<String>,
    /// What the control API calls those roots and which of them signs.
    pub roots: String,
    /// Our name.
    pub spiffe_id: String,
    /// When it was received.
    pub since: SystemTime,
    /// Until when it is good.
    pub not_after: SystemTime,
}

impl Joined {
    /// The same, checked as a whole and ready for handshakes.
    ///
    /// # Errors
    /// When it is none, which the control API would have to answer for.
    pub(crate) fn identity(&self, revocations: &Arc<Revocations>) -> Result<Identity, IdentityProblem> {
        let (chain, roots) = (self.certificates.join("\n"), self.bundle.join("\n"));
        Identity::from_pem(
            chain.as_bytes(),
            self.key.as_bytes(),
            roots.as_bytes(),
            revocations,
            SystemTime::now(),
        )
    }
}

impl std::fmt::Debug for Joined {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joined")
            .field("spiffe_id", &self.spiffe_id)
            .finish_non_exhaustive()
    }
}

/// Why there is no certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinError {
    /// The control API refused.
    Refused(RefusalReason, String),
    /// It was not reached, was another, or answered something else.
    Failed(String),
}

impl std::fmt::Display for JoinError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(reason, sentence) => write!(f, "{sentence} ({})", reason.word()),
            Self::Failed(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for JoinError {}

impl JoinError {
    /// Whether the same may succeed later.
    pub const fn is_passing(&self) -> bool {
        match self {
            Self::Refused(reason, _) => reason.is_passing(),
            Self::Failed(_) => true,
        }
    }
}

impl Asker {
    /// One who is to be this service, at a control API such as `https://control.example:9900`.
    ///
    /// # Errors
    /// In words, when the URL is none or not `https`: a token is not sent in plaintext.
    pub fn new(url: &str, service: &str, resolver: Resolver) -> Result<Self, String> {
        let address = Address::parse(url).map_err(|error| format!("{error:#}"))?;
        if !address.tls {
            return Err(format!(
                "`{url}` is not https: a token and a certificate are asked for over TLS only; start the control API with \
                 --tls"
            ));
        }
        Ok(Self {
            address,
            service: service.to_owned(),
            resolver,
            told: None,
        })
    }

    /// Lets it be told of the roots that the control API names with its answers to polls.
    pub(crate) fn hear_roots(&mut self) -> watch::Sender<String> {
        let (tell, told) = watch::channel(String::new());
        self.told = Some(told);
        tell
    }

    /// Waits until other roots were told of than those that came with what is held, and than those that were `heard` of:
    /// each is worth one renewal.
    async fn other_roots(&self, held: Option<&Joined>, heard: &mut String) {
        let (Some(told), Some(held)) = (&self.told, held) else {
            return std::future::pending().await;
        };
        let mut told = told.clone();
        let others = |now: &String| !now.is_empty() && *now != held.roots && now != heard;
        match told.wait_for(others).await.map(|now| now.clone()) {
            Ok(now) => *heard = now,
            // Nobody polls any more.
            Err(_) => std::future::pending().await,
        }
    }

    /// Joins by a token, with a new key.
    ///
    /// # Errors
    /// When it is refused, not reached, or answered with what is not for us.
    pub async fn join(&self, token: &JoinToken) -> Result<Joined, JoinError> {
        self.join_with(token, &new_key()?).await
    }

    /// Joins by a token, for this key. Whoever asks again for the same one, because the answer was lost, is answered without
    /// another use of the token, for a minute.
    ///
    /// # Errors
    /// When it is refused, not reached, or answered with what is not for us.
    pub async fn join_with(&self, token: &JoinToken, key: &KeyPair) -> Result<Joined, JoinError> {
        let trust = (Trust::Fingerprint(token.root), None);
        let joined = self.ask(trust, None, (Some(token.to_string()), key)).await?;
        // The roots came over a connection that the pinned one vouches for; it must be among them.
        if joined
            .bundle
            .iter()
            .any(|root| fingerprint(root) == Ok(token.root))
        {
            Ok(joined)
        } else {
            Err(JoinError::Failed(
                "the root that the token names is not among those of the answer".to_owned(),
            ))
        }
    }

    /// Renews by what is held, with a new key.
    ///
    /// # Errors
    /// When it is refused, not reached, or answered with what is not for us.
    pub async fn renew(&self, held: &Joined) -> Result<Joined, JoinError> {
        let shown = Shown {
            certificates: &held.certificates,
            key: &held.key,
        };
        let trust = Trust::Roots(held.bundle.clone());
        let trust = (trust, domain_of(&held.spiffe_id));
        self.ask(trust, Some(shown), (None, &new_key()?)).await
    }

    /// Joins, hands over what it was given, and renews it at half its life, or at once where the roots are said to have
    /// changed, for as long as it is polled. What failed is handed over too, and tried again: the token may be another by then, or the control API be back.
    pub async fn keep_current(
        &self,
        token: &TokenSource,
        mut put: impl FnMut(Result<&Joined, &JoinError>),
    ) -> std::convert::Infallible {
        let mut held: Option<Joined> = None;
        let (mut failures, mut heard) = (0, String::new());
        // What is held is not known there: a token may help, and if it does not, an operator may.
        let mut is_unknown = false;
        // Kept while it is not known whether the token was spent for it.
        let mut key: Option<KeyPair> = None;
        loop {
            let now = SystemTime::now();
            let alive = held.as_ref().filter(|held| held.not_after > now && !is_unknown);
            let asked = match (alive, token.read()) {
                (Some(alive), _) => self.renew(alive).await,
                (None, Ok(token)) => match key.take().map_or_else(new_key, Ok) {
                    Ok(fresh) => {
                        let joined = self.join_with(&token, &fresh).await;
                        key = matches!(joined, Err(JoinError::Failed(_))).then_some(fresh);
                        joined
                    }
                    Err(error) => Err(error),
                },
                (None, Err(unreadable)) => Err(JoinError::Failed(unreadable)),
            };
            is_unknown = matches!(
                asked,
                Err(JoinError::Refused(RefusalReason::CertificateUnknown, _))
            );
            let wait = match asked {
                Ok(joined) => {
                    failures = 0;
                    put(Ok(&joined));
                    let wait = renew_in(joined.since, joined.not_after, fastrand::f64());
                    held = Some(joined);
                    wait
                }
                Err(error) => {
                    put(Err(&error));
                    failures += 1;
                    match error.is_passing() {
                        true => wait_without(failures, held.as_ref().map(|held| held.not_after)),
                        // The token has not been tried yet.
                        false if is_unknown => BACKOFF_FIRST,
                        // It takes somebody to change something.
                        false => REFUSED_WAIT,
                    }
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = self.other_roots(held.as_ref(), &mut heard) => {
                    tracing::info!("the roots of the mesh have changed: renewing the certificate");
                    tokio::time::sleep(SPREAD.mul_f64(fastrand::f64())).await;
                }
            }
        }
    }

    async fn ask(
        &self,
        (trust, domain): (Trust, Option<&str>),
        shown: Option<Shown<'_>>,
        (token, key): (Option<String>, &KeyPair),
    ) -> Result<Joined, JoinError> {
        let failed = |what: String| JoinError::Failed(what);
        let csr = CertificateParams::default()
            .serialize_request(key)
            .and_then(|request| request.pem());
        let request = IdentityRequest {
            csr: csr.map_err(|error| failed(error.to_string()))?,
            token,
            service: Some(self.service.clone()),
        };
        let body = serde_json::to_vec(&request).map_err(|error| failed(error.to_string()))?;
        let pinned = Pinned::in_domain(trust, domain, shown).map_err(failed)?;
        let exchanged = timeout(ATTEMPT_WITHIN, self.exchange(&pinned, body)).await;
        let late = |_| failed(format!("no answer within {ATTEMPT_WITHIN:?}"));
        let (is_good, body) = exchanged.map_err(late)?.map_err(failed)?;
        if is_good {
            let answer = serde_json::from_slice(&body);
            let answer = answer.map_err(|error| failed(format!("the answer is not understood ({error})")))?;
            return accept(answer, key, &self.service, SystemTime::now()).map_err(failed);
        }
        match serde_json::from_slice::<IdentityRefusal>(&body) {
            Ok(refusal) => Err(JoinError::Refused(refusal.reason, refusal.error)),
            Err(_) => Err(failed(
                "the answer is neither a certificate nor a refusal".to_owned(),
            )),
        }
    }

    /// One request over a connection of its own. Says whether the answer is a success, and its body.
    async fn exchange(&self, pinned: &Pinned, body: Vec<u8>) -> Result<(bool, Bytes), String> {
        let Self {
            address, resolver, ..
        } = self;
        let stream = address.connect(resolver).await;
        let stream = stream.map_err(|error| format!("{error:#}"))?;
        let stream = pinned.connect(&address.host, stream).await;
        let stream =
            stream.map_err(|error| format!("{address} is not the control API that was meant ({error})"))?;
        let broke = |error: hyper::Error| format!("the connection broke ({error})");
        let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
        let driver = tokio::spawn(driver);
        let request = Request::post("/v1/identity")
            .header(header::HOST, address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(broke)?;
        let is_good = response.status().is_success();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await;
        driver.abort();
        let body = body.map_err(|error| format!("the answer broke off ({error})"))?;
        Ok((is_good, body.to_bytes()))
    }
}

fn small_file(path: &Path, longest: u64) -> std::io::Result<String> {
    let found = std::fs::metadata(path)?;
    if !found.is_file() || found.len() > longest {
        let what = format!("it is no file, or longer than {longest} bytes");
        return Err(std::io::Error::other(what));
    }
    std::fs::read_to_string(path)
}

fn new_key() -> Result<KeyPair, JoinError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| JoinError::Failed(error.to_string()))
}

/// Looks at an answer: it must be for our key and our service, and lead to one of the roots that come with it.
fn accept(answer: IdentityAnswer, key: &KeyPair, service: &str, now: SystemTime) -> Result<Joined, String> {
    let first = answer
        .certificates
        .first()
        .ok_or("the answer holds no certificate")?;
    if public_key(first)? != key.subject_public_key_info() {
        return Err("the certificate of the answer is for another key".to_owned());
    }
    let spiffe_id = verify_chain(&answer.certificates, &answer.bundle)?;
    let domain = domain_of(&spiffe_id);
    let ours = domain.is_some_and(|domain| service_of(&spiffe_id, domain) == Some(service));
    if !ours || spiffe_id != answer.spiffe_id {
        return Err(format!(
            "the certificate of the answer is of `{spiffe_id}`, and not of `{service}`"
        ));
    }
    Ok(Joined {
        not_after: end_of_chain(&answer.certificates, &answer.bundle)?,
        certificates: answer.certificates,
        key: key.serialize_pem(),
        bundle: answer.bundle,
        roots: answer.roots,
        spiffe_id,
        since: now,
    })
}

/// The trust domain of a SPIFFE ID with a path.
fn domain_of(spiffe_id: &str) -> Option<&str> {
    let (domain, _) = spiffe_id.strip_prefix("spiffe://")?.split_once('/')?;
    Some(domain)
}

/// How long after it was received a certificate is renewed: half its life, drawn a little by `draw` of 0 to 1.
fn renew_in(since: SystemTime, not_after: SystemTime, draw: f64) -> Duration {
    let life = not_after.duration_since(since).unwrap_or_default();
    let wait = life.mul_f64(0.5 * (1.0 + JITTER * (2.0 * draw - 1.0)));
    // Of a certificate with no time left there would be no end of asking.
    wait.max(BACKOFF_FIRST)
}

/// Waits for so long, by whichever of the two clocks is there first.
async fn sleep(wait: Duration) {
    let (began, since) = (tokio::time::Instant::now(), SystemTime::now());
    while let Some(nap) = nap(wait, began.elapsed(), since.elapsed().unwrap_or_default()) {
        tokio::time::sleep(nap).await;
    }
}

/// How long to sleep until the next look, of a wait of which so much has passed by either clock; none if it is over. A wall
/// clock that was put back has passed nothing.
fn nap(wait: Duration, by_timers: Duration, by_the_wall: Duration) -> Option<Duration> {
    let left = wait.saturating_sub(by_timers.max(by_the_wall));
    (!left.is_zero()).then(|| left.min(LOOK_AT_CLOCK))
}

/// How long is waited after so many failures in a row by who holds a certificate to this moment: not past its end, and less
/// after it.
fn wait_without(failures: u32, not_after: Option<SystemTime>) -> Duration {
    let left = not_after.and_then(|end| end.duration_since(SystemTime::now()).ok());
    match left.filter(|left| !left.is_zero()) {
        Some(left) => backoff(failures, BACKOFF_MAX, fastrand::f64()).min(left),
        None => backoff(failures, BACKOFF_WITHOUT, fastrand::f64()),
    }
}

/// How long is waited after so many failures in a row, `max` at the most: half fixed, half drawn by `draw` of 0 to 1.
pub(super) fn backoff(failures: u32, max: Duration, draw: f64) -> Duration {
    let wait = BACKOFF_FIRST
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(max);
    wait / 2 + wait.mul_f64(draw / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_about_half_its_life_whatever_is_drawn() {
        let since = SystemTime::UNIX_EPOCH;
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(renew_in(since, since + day, 0.5), day / 2);
        assert_eq!(renew_in(since, since + day, 0.0), Duration::from_secs(38_880));
        assert_eq!(renew_in(since, since + day, 1.0), Duration::from_secs(47_520));
        assert_eq!(renew_in(since + day, since, 0.5), BACKOFF_FIRST);
    }

    #[test]
    fn a_machine_that_slept_renews_within_a_minute_of_its_waking() {
        let seconds = Duration::from_secs;
        let hours = |count: u64| seconds(count * 3600);
        for (by_timers, by_the_wall, expected) in [
            (seconds(0), seconds(0), Some(seconds(60))),
            (seconds(60), hours(13), None),
            (seconds(60), seconds(60), Some(seconds(60))),
            // The wall clock was put back.
            (hours(12), seconds(0), None),
            (hours(12) - seconds(5), seconds(0), Some(seconds(5))),
        ] {
            assert_eq!(nap(hours(12), by_timers, by_the_wall), expected);
        }
    }

    #[test]
    fn waits_grow_to_their_bound_and_are_never_nothing() {
        let max = BACKOFF_MAX;
        assert_eq!(backoff(1, max, 0.0), Duration::from_millis(500));
        assert_eq!(backoff(1, max, 1.0), BACKOFF_FIRST);
        assert_eq!(backoff(4, max, 1.0), BACKOFF_FIRST * 8);
        for failures in [20, 40, u32::MAX] {
            assert_eq!(backoff(failures, max, 1.0), max);
        }
    }

    #[test]
    fn who_holds_no_good_certificate_asks_again_soon_and_who_holds_one_at_its_end() {
        let now = SystemTime::now();
        let seconds = Duration::from_secs;
        for (not_after, longest) in [
            (None, BACKOFF_WITHOUT),
            (Some(now - seconds(1)), BACKOFF_WITHOUT),
            (Some(now + seconds(20)), seconds(20)),
            (Some(now + seconds(3600)), BACKOFF_MAX),
        ] {
            let wait = wait_without(40, not_after);
            assert!(wait <= longest && wait > longest / 3, "{not_after:?}: {wait:?}");
        }
    }

    #[test]
    fn a_token_is_not_sent_in_plaintext() {
        let resolver = Resolver::new(&[]).unwrap();
        let error = Asker::new("http://127.0.0.1:9900", "reviews", resolver).unwrap_err();
        assert!(error.contains("over TLS only"), "{error}");
    }
}
