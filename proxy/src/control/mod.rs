//! Config in: from the control API by long poll, from watched files, or from disk when the API is away.
//!
//! Whatever the source, out comes a [`Push`] and back goes a [`Verdict`]; what applies it does not know the difference. The
//! sidecar never needs the control API to keep serving: when it cannot be reached this waits, asks again, and what
//! serves goes on serving.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use outrigger_config::discovery::{
    DiscoveryRequest, DiscoveryResponse, HOLD_DEFAULT, Node, ROOTS_HEADER, Refusal, Shown, Versioned,
};
use outrigger_config::{Document, Problem, units};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::control::address::Address;
use crate::control::notices::Notices;
use crate::control::refusal::TurnedAway;
use crate::snapshot::Origin;
use crate::tls::Identities;
use crate::tls::pin::{Pinned, Trust};
use crate::upstream::discovery::Resolver;

pub(crate) mod address;
pub(crate) mod files;
pub(crate) mod identity;
pub mod join;
mod last_good;
mod notices;
mod refusal;
#[cfg(feature = "spiffe")]
mod workload_api;

/// After a poll that failed, this long is waited, then twice as long, and so on.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);

/// The longest wait after a poll that failed: when the control API is back, its sidecars are back within this.
const BACKOFF_MAX: Duration = Duration::from_secs(3);

/// How long the control API may take to answer beyond the hold that it was asked for.
const ANSWER_SLACK: Duration = Duration::from_secs(10);

/// How long the first poll may take in all while nothing serves and a last good configuration waits on disk: a control
/// API that is well answers a first poll in milliseconds, and traffic does not wait for one that is not.
const ANSWER_BEFORE_DISK: Duration = Duration::from_secs(2);

/// How long a TLS handshake with the control API may take: it may be far away, and busy with a thousand others.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// So many reasons for which polls fail are told in one outage, each once: a new one, such as that TLS is spoken there now,
/// says what to do, and reasons that take turns must not fill the log.
const REASONS_TOLD_MAX: usize = 8;

/// One end of a connection to the control API.
type Sender = http1::SendRequest<Full<Bytes>>;

/// The head of an answer.
type Head = http::response::Parts;

/// The largest answer that is read: thousands of services fit; an endless one does not fill the memory.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// The hold of the first poll after a start from disk: it should soon be known whether what was on disk still holds.
const HOLD_FROM_DISK: units::Duration = units::Duration::from_millis(200);

/// A configuration that came in, whole.
#[derive(Clone, Debug)]
pub(crate) struct Push {
    /// The version of the whole.
    pub(crate) version: String,
    /// Where it came from.
    pub(crate) origin: Origin,
    /// What it says, or why it could not even be taken apart.
    pub(crate) documents: Result<Vec<Document>, Vec<Problem>>,
}

/// What became of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It serves.
    Applied,
    /// It was refused; what served before serves on.
    Refused(Vec<Problem>),
}

/// Where configurations come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// The control API.
    Control(Box<ControlApi>),
    /// A watched file or folder.
    Files(files::Files),
}

impl Source {
    /// The next configuration. Waits for as long as there is none.
    pub(crate) async fn next(&mut self) -> Push {
        match self {
            Self::Control(api) => api.next().await,
            Self::Files(files) => files.next().await,
        }
    }

    /// What became of the last one.
    pub(crate) fn answer(&mut self, verdict: Verdict) {
        match self {
            Self::Control(api) => api.answer(verdict),
            Self::Files(_) => {}
        }
    }
}

/// The sidecar's end of the long poll.
#[derive(Debug)]
pub(crate) struct ControlApi {
    address: Address,
    /// `host:port`.
    authority: String,
    known: Known,
    resolver: Resolver,
    node: Node,
    want: Vec<String>,
    last_good: Option<PathBuf>,
    /// Whether the last good file was read, whatever was in it: it is read once.
    disk_was_read: bool,
    /// The connection of the last poll, and the identity that it was made with, as [`Identities::exchanges`] counts.
    connection: Option<(u64, Sender)>,
    exchanges: watch::Receiver<u64>,
    notices: Notices,
    /// What is applied: documents by key.
    held: BTreeMap<String, Versioned>,
    version: String,
    /// The store of the control API that `version` and `held` came from.
    store: String,
    /// The answer to the last response, sent with the next poll.
    nonce: String,
    error: Option<Refusal>,
    /// Whether the two sides may disagree on what is held.
    unsure: bool,
    /// What was handed to `apply` and not answered yet.
    pending: Option<Pending>,
    /// What serves came from disk, or nothing serves yet.
    origin: Origin,
    failures: u32,
    /// The reasons of this outage that were told.
    told: Vec<String>,
}

#[derive(Debug)]
struct Pending {
    version: String,
    store: String,
    nonce: String,
    held: BTreeMap<String, Versioned>,
    origin: Origin,
}

/// What the control API said to a poll.
enum Reply {
    Changes(DiscoveryResponse),
    NothingNew,
    /// It does not know the version that was named, and asks what is held.
    SayWhatYouHold,
    /// Nothing yet: the identity has been exchanged meanwhile, or there is more to tell, and the poll is to be made again.
    AskAgain,
}

impl ControlApi {
    /// A client of the control API at an address.
    pub(crate) fn new(
        (address, known): (Address, Known),
        resolver: Resolver,
        node: Node,
        want: Vec<String>,
        last_good: Option<PathBuf>,
    ) -> Self {
        let node = Node {
            // The standard library keys its maps by the system's randomness: that no two processes share.
            instance: format!("{:016x}", RandomState::new().hash_one(std::process::id())),
            ..node
        };
        Self {
            authority: address.to_string(),
            address,
            exchanges: known.identities.exchanges(),
            known,
            notices: Notices::new(resolver.told()),
            resolver,
            node,
            want: if want.is_empty() { vec!["*".into()] } else { want },
            last_good,
            disk_was_read: false,
            connection: None,
            held: BTreeMap::new(),
            version: String::new(),
            store: String::new(),
            nonce: String::new(),
            error: None,
            unsure: true,
            pending: None,
            origin: Origin::Nothing,
            failures: 0,
            told: Vec::new(),
        }
    }

    async fn next(&mut self) -> Push {
        loop {
            match self.poll().await {
                Ok(reply) => {
                    if self.failures > 0 {
                        tracing::info!(control = self.authority, "the control API answers again");
                    }
                    self.failures = 0;
                    self.told.clear();
                    if let Some(push) = self.read(reply) {
                        return push;
                    }
                }
                Err(error) => {
                    self.connection = None;
                    self.say_it_all();
                    self.failures += 1;
                    self.tell(&error);
                    if self.origin == Origin::Nothing
                        && let Some(push) = self.read_last_good()
                    {
                        return push;
                    }
                    self.back_off().await;
                }
            }
        }
    }

    /// Says why a poll failed, unless this outage has said so already.
    fn tell(&mut self, error: &anyhow::Error) {
        let words = format!("{error:#}");
        if self.told.len() == REASONS_TOLD_MAX || self.told.contains(&words) {
            return;
        }
        let what = if error.is::<TurnedAway>() {
            "the control API refuses this sidecar; going on with what is known and asking again"
        } else {
            "the control API does not answer; going on with what is known and asking again"
        };
        tracing::warn!(control = self.authority, error = words, "{what}");
        self.told.push(words);
    }

    /// The next poll says what is held and answers nothing: what the answer to the last response was worth is not
    /// known. A response that was refused is told again, and refused again.
    fn say_it_all(&mut self) {
        self.unsure = true;
        self.nonce.clear();
        self.error = None;
    }

    /// Waits before the next poll; no longer once the identity is another, by which it may be heard.
    async fn back_off(&mut self) {
        let wait = BACKOFF_FIRST
            .saturating_mul(1 << (self.failures - 1).min(10))
            .min(BACKOFF_MAX);
        // Half fixed, half drawn: sidecars that lost the same API do not come back in one moment.
        let wait = wait / 2 + wait.mul_f64(fastrand::f64() / 2.0);
        // That the sender is gone cannot be: it is shared with this.
        let _ = tokio::time::timeout(wait, self.exchanges.changed()).await;
    }

    /// Makes a push of what the API said, if there is anything to do.
    fn read(&mut self, reply: Reply) -> Option<Push> {
        match reply {
            Reply::SayWhatYouHold => {
                self.say_it_all();
                None
            }
            Reply::AskAgain => None,
            Reply::NothingNew => {
                // The nonce is said again with the next poll: it goes on being the last one, and so does a refusal.
                self.unsure = false;
                // What was on disk is what the API holds: from now on it counts as the API's.
                (self.origin == Origin::Disk).then(|| {
                    let (version, store) = (self.version.clone(), self.store.clone());
                    let held = self.held.clone();
                    self.hand_over(Pending {
                        version,
                        store,
                        nonce: String::new(),
                        held,
                        origin: Origin::Control,
                    })
                })
            }
            Reply::Changes(response) => {
                self.unsure = false;
                let mut held = self.held.clone();
                for key in &response.removed {
                    held.remove(key);
                }
                for changed in response.changed {
                    held.insert(changed.document.key().to_owned(), changed);
                }
                let DiscoveryResponse {
                    version,
                    store,
                    nonce,
                    ..
                } = response;
                let loses_all = held.is_empty() && !self.held.is_empty() && store != self.store;
                let mut push = self.hand_over(Pending {
                    version,
                    store,
                    nonce,
                    held,
                    origin: Origin::Control,
                });
                if loses_all {
                    push.documents = Err(vec![self.would_lose_all()]);
                }
                Some(push)
            }
        }
    }

    /// Another store has nothing for this sidecar: it was likelier lost than meant, so that what is held is kept.
    fn would_lose_all(&self) -> Problem {
        Problem {
            line: 1,
            column: 1,
            message: format!(
                "the control API has another store than the one that gave version {}, and would take away all {} documents that are held: they are kept; push what this sidecar wants, or start it again without its last good file",
                self.version,
                self.held.len()
            ),
            ..Problem::default()
        }
    }

    fn hand_over(&mut self, pending: Pending) -> Push {
        let documents = pending
            .held
            .values()
            .map(|versioned| versioned.document.clone())
            .collect();
        let push = Push {
            version: pending.version.clone(),
            origin: pending.origin,
            documents: Ok(documents),
        };
        self.pending = Some(pending);
        push
    }

    fn answer(&mut self, verdict: Verdict) {
        let Some(pending) = self.pending.take() else {
            return;
        };
        self.nonce = pending.nonce;
        match verdict {
            Verdict::Applied => {
                self.error = None;
                self.version = pending.version;
                self.store = pending.store;
                self.held = pending.held;
                self.origin = pending.origin;
                if pending.origin == Origin::Control {
                    self.keep();
                }
            }
            Verdict::Refused(problems) => self.error = Some(refusal::bounded(problems)),
        }
    }

    /// One poll: the answer to the last response goes out, and what changed since comes back.
    async fn poll(&mut self) -> anyhow::Result<Reply> {
        let hold = if self.origin == Origin::Disk {
            HOLD_FROM_DISK
        } else {
            HOLD_DEFAULT
        };
        let versions = || {
            self.held
                .iter()
                .map(|(key, held)| (key.clone(), held.version.clone()))
                .collect()
        };
        let question = DiscoveryRequest {
            node: self.node.clone(),
            want: self.want.clone(),
            have: self.unsure.then(versions),
            store: self.store.clone(),
            version: self.version.clone(),
            nonce: self.nonce.clone(),
            error: self.error.clone(),
            identity: self.known.shown(),
            roots: self.known.roots_told(),
            notices: self.notices.tell(),
            hold: Some(hold),
        };
        let question = Bytes::from(serde_json::to_vec(&question)?);
        let within = if self.disk_is_next() {
            ANSWER_BEFORE_DISK
        } else {
            hold.0 + ANSWER_SLACK
        };
        let answer = tokio::time::timeout(within, self.exchange(question));
        let answer = answer
            .await
            .map_err(|_| anyhow!("no answer within {within:?}"))??;
        let Some((head, body)) = answer else {
            return Ok(Reply::AskAgain);
        };
        self.known.tell_roots(&head.headers);
        match head.status {
            StatusCode::OK => Ok(Reply::Changes(
                serde_json::from_slice(&body).context("the answer is not understood")?,
            )),
            StatusCode::NO_CONTENT => Ok(Reply::NothingNew),
            StatusCode::CONFLICT if !self.unsure => Ok(Reply::SayWhatYouHold),
            other => Err(TurnedAway::of(other, &body).into()),
        }
    }

    /// Asks, and gives the answer; none, if there is other to be told before it came, or the identity has been exchanged.
    /// Then there is a new connection, which shows the new one: what the control API knows of this sidecar, and how long it lets that connection go on, is by what
    /// was shown on it.
    async fn exchange(&mut self, question: Bytes) -> anyhow::Result<Option<(Head, Bytes)>> {
        let identity = *self.exchanges.borrow_and_update();
        let connection = match self.connection.take() {
            Some((made_with, connection)) if made_with == identity && !connection.is_closed() => connection,
            _ => self.connect().await?,
        };
        let mut asked = Box::pin(ask(connection, self.authority.clone(), question));
        let asked = tokio::select! {
            biased;
            asked = &mut asked => Some(asked),
            Ok(()) = self.exchanges.changed() => None,
            () = self.notices.changed() => None,
        };
        let Some(asked) = asked else {
            let identity = *self.exchanges.borrow_and_update();
            // The old poll is held until there is a new connection, so that this sidecar is hardly seen to be gone.
            self.connection = Some((identity, self.connect().await?));
            return Ok(None);
        };
        let (connection, head, body) = asked?;
        self.connection = Some((identity, connection));
        Ok(Some((head, body)))
    }

    async fn connect(&self) -> anyhow::Result<Sender> {
        let stream = self.address.connect(&self.resolver).await?;
        if !self.address.tls {
            return begin(stream).await;
        }
        let pinned = self.known.pinned()?;
        let shaken =
            tokio::time::timeout(HANDSHAKE_TIMEOUT, pinned.connect(&self.address.host, stream)).await;
        let shaken = shaken.map_err(|_| anyhow!("no TLS handshake within {HANDSHAKE_TIMEOUT:?}"))?;
        begin(shaken.context("this is not the control API of the mesh, or does not know this sidecar")?).await
    }
}

/// One poll on a connection, which is given back with the answer.
async fn ask(
    mut connection: Sender,
    authority: String,
    question: Bytes,
) -> anyhow::Result<(Sender, Head, Bytes)> {
    connection.ready().await?;
    let request = Request::post("/v1/discovery")
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(question))?;
    let answered = connection.send_request(request).await;
    let answered = answered.map_err(|error| match error.is_parse() {
        true => {
            anyhow!("what it says is not HTTP ({error}): if it is served with --tls, name it by https://")
        }
        false => error.into(),
    });
    let (head, body) = answered?.into_parts();
    let body = Limited::new(body, ANSWER_MAX)
        .collect()
        .await
        .map_err(|error| anyhow!("{error}"))?;
    Ok((connection, head, body.to_bytes()))
}

async fn begin<S: AsyncRead + AsyncWrite + Unpin + 'static>(stream: S) -> anyhow::Result<Sender> {
    let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(async move {
        // Its end shows at the sender, where it is dealt with.
        let _ = driver.await;
    });
    Ok(sender)
}

/// By what a control API over TLS is known.
#[derive(Debug)]
pub(crate) struct Known {
    /// The roots of this sidecar's identity, as soon as it has one; it shows its certificate then.
    pub(crate) identities: Arc<Identities>,
    /// Until then, the root that its join token names.
    pub(crate) token: Option<join::TokenSource>,
    /// Where to tell what it calls its roots, if this sidecar's identity comes from it.
    pub(crate) roots: Option<watch::Sender<String>>,
}

impl Known {
    /// The roots that were told of last.
    fn roots_told(&self) -> String {
        let told = self.roots.as_ref().map(|roots| roots.borrow().clone());
        told.unwrap_or_default()
    }

    /// Tells of the roots that an answer names.
    fn tell_roots(&self, answer: &HeaderMap) {
        let named = answer.get(ROOTS_HEADER).and_then(|name| name.to_str().ok());
        let (Some(roots), Some(named)) = (&self.roots, named) else {
            return;
        };
        roots.send_if_modified(|told| {
            let is_new = told != named;
            if is_new {
                named.clone_into(told);
            }
            is_new
        });
    }

    /// What the control API is told of this sidecar's identity.
    fn shown(&self) -> Option<Shown> {
        let identity = self.identities.current()?;
        Some(Shown {
            spiffe_id: identity.id().to_string(),
            not_after: identity.not_after(),
        })
    }

    fn pinned(&self) -> anyhow::Result<Pinned> {
        if let Some(identity) = self.identities.current() {
            return Ok(identity.control().clone());
        }
        let Some(token) = &self.token else {
            bail!("it is known by the roots of this sidecar's identity, and there is none yet");
        };
        let token = token.read().map_err(|error| anyhow!(error))?;
        Pinned::new(Trust::Fingerprint(token.root), None).map_err(|error| anyhow!(error))
    }
}
