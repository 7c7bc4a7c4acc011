//! The edge: HTTP in front of the store and the nodes.
//!
//! Connections are accepted here one by one and handed to the router, so that TLS and the peer's identity can be
//! put between the two without touching a route.
//!
//! **Does not** decide anything: pushes are [`crate::push`], polls are [`crate::discovery`].
//!
//! **Invariant:** once stopping began, no poll is held and no connection is taken; what was begun is finished.

mod answer;
mod connections;
mod documents;
mod identity;
mod operators;
mod polls;
mod routes;
mod standing;
#[cfg(test)]
mod tests;
mod tls;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_proxy::browsers::OwnNames;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::ca::join::{Now, Proof};
use crate::ca::{self, Ca, CaError};
use crate::nodes::Nodes;
use crate::store::{Store, StoreError};

use self::connections::{Place, Sources};
use self::operators::Operators;
use self::standing::Standing;
use self::tls::Tls;
pub(crate) use answer::ErrorBody;
pub(crate) use documents::{AUTHOR, PUSH_BYTES_MAX, WholeConfig, split_all};
pub use documents::{PushBody, PushText};
pub(crate) use identity::{AuditList, TokenList};
#[cfg(any(test, fuzzing))]
pub(crate) use operators::bearer as read_bearer;
pub(crate) use operators::is_token as is_operator_token;
pub use tls::TlsOptions;

/// Connections at a time: every sidecar that one control API serves, and room for those who reconnect before their
/// old connection is seen to be gone, for operators and for scrapes.
const CONNECTIONS_MAX: usize = 12_000;

/// Connections that may wait to be accepted: after a restart every sidecar comes back at once. The system cuts it to
/// its own limit, which is 4,096 on Linux today.
const BACKLOG: u32 = 8192;

/// How long the head of a request may take, and how long a connection may be idle between two requests.
const HEAD_WITHIN: Duration = Duration::from_secs(30);

/// The longest head of a request, and as much as is read ahead of a body: whoever connects may make us keep it. That of a
/// sidecar or the tool has some hundred bytes, a browser's some thousand.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// How long stopping waits for what was begun: shorter than the 30 s after which orchestrators kill.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// How long accepting rests after the system refused a socket, which is mostly for want of file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Where to serve, and from what.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address to listen on; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The folder of the store.
    pub data: PathBuf,
    /// DNS names and IP addresses by which the API is reached: those that its certificate shows, and that may be asked for
    /// without the operator token on this machine.
    pub names: Vec<String>,
    /// What the operator says of the CA.
    pub ca: ca::Options,
    /// Serve TLS, under a certificate of that CA. Absent: plaintext.
    pub tls: Option<TlsOptions>,
    /// Operators bring the operator token from loopback too.
    pub require_operator_token: bool,
    /// Connections that one source may have at a time. Absent: 1,000, and no bound for this machine.
    pub connections_per_source: Option<NonZeroU32>,
}

/// Why the control API did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The CA cannot do its work.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The operator token cannot be read or made.
    #[error(
        "the operator token at {}: {cause}; make it readable, or take it away and another is made at the next start",
        path.display()
    )]
    OperatorToken {
        /// Its file.
        path: PathBuf,
        /// What happened.
        cause: String,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {cause}; name another address with --listen")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        cause: std::io::Error,
    },
}

/// A control API that runs in this process.
#[derive(Debug)]
pub struct Handle {
    /// Where it listens.
    pub address: SocketAddr,
    /// SHA-256 of the mesh's root at the start, by which it is known over TLS.
    pub root: [u8; 32],
    stop: CancellationToken,
    served: JoinHandle<()>,
}

impl Handle {
    /// Ends held polls at once, finishes what was begun, and gives back the store.
    pub async fn shutdown(self) {
        self.stop.cancel();
        if let Err(error) = self.served.await {
            tracing::error!(%error, "the accept loop failed");
        }
    }
}

/// What every handler shares.
#[derive(Debug)]
pub(crate) struct Shared {
    store: Store,
    ca: Ca,
    operators: Operators,
    /// Turns of making a certificate.
    joins: Semaphore,
    nodes: Arc<Nodes>,
    long_polls: polls::LongPolls,
    fragments: polls::Fragments,
    standing: Standing,
    stop: CancellationToken,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Its address.
    address: SocketAddr,
    /// The certificate of the mesh that it has shown, if it has.
    proof: Option<Arc<Proof>>,
}

/// Opens the store, binds the address and serves until [`Handle::shutdown`].
pub async fn start(config: Config) -> Result<Handle, StartError> {
    let (path, options) = (config.data.clone(), config.ca.clone());
    let own = OwnNames::new(config.listen.ip(), &config.names).map_err(|name| {
        CaError::Wrong(format!(
            "--name `{}` is neither a DNS name nor an IP address",
            name.escape_default()
        ))
    })?;
    let open = move || {
        let store = Store::open(&path)?;
        let ca = Ca::open(&store, &path, options, Now::read().wall)?;
        let operators = Operators::open(&path, config.require_operator_token, own)?;
        Ok((store, ca, operators))
    };
    let opened = tokio::task::spawn_blocking(open).await;
    let (store, ca, operators) = opened.unwrap_or_else(|fault| {
        Err(StartError::Store(StoreError::Open {
            path: config.data.clone(),
            cause: fault.to_string(),
        }))
    })?;
    let refused = |cause| StartError::Listen {
        address: config.listen,
        cause,
    };
    let listener = bind(config.listen).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    tracing::info!(listener = "api", %address, tls = config.tls.is_some(), "listening");
    say_who_operates(&config, address, &operators);
    let stop = CancellationToken::new();
    let shared = Arc::new(Shared {
        nodes: Arc::new(Nodes::of_store(store.head().store.clone())),
        store,
        ca,
        operators,
        joins: Semaphore::new(identity::JOINS_MAX),
        long_polls: polls::LongPolls::new(),
        fragments: polls::Fragments::default(),
        standing: Standing::new(config.tls.as_ref().is_some_and(|tls| tls.require_identity)),
        stop: stop.clone(),
    });
    let told = shared.clone();
    let announce = move || told.ca.announce(&told.store, Now::read().wall);
    let announced = tokio::task::spawn_blocking(announce).await;
    let root = announced.unwrap_or_else(|fault| Err(CaError::Sign(fault.to_string())))?;
    let tls = match &config.tls {
        Some(_) => Some(Tls::start(&shared, &config.names, address, stop.clone()).await?),
        None => None,
    };
    let sources = Arc::new(Sources::new(config.connections_per_source));
    let router = routes::router(shared);
    let served = tokio::spawn(accept((listener, sources), tls, router, stop.clone()));
    Ok(Handle {
        address,
        root,
        stop,
        served,
    })
}

/// Says in the log who is an operator, where others than this machine reach the API.
fn say_who_operates(config: &Config, address: SocketAddr, operators: &Operators) {
    if address.ip().to_canonical().is_loopback() {
        return;
    }
    let operator_token = operators.path().display();
    if config.tls.is_none() {
        tracing::warn!(
            %address, %operator_token,
            "the API is served in plaintext beyond this machine: whoever is on the way can read join tokens and operator \
             tokens and change what is pushed, and the tool sends no operator token there; give --tls, or listen on 127.0.0.1"
        );
    }
    if config.require_operator_token {
        tracing::info!(%address, %operator_token, "operators bring the operator token");
    } else {
        tracing::info!(
            %address, %operator_token,
            "operators elsewhere bring the operator token; whatever runs on this machine, or in its network namespace, is an \
             operator without it (--require-operator-token asks it there too)"
        );
    }
}

/// Binds the address. It may be bound again at once after a stop, and many may knock together.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Takes connections until stopping begins, then waits for those that are open.
async fn accept(
    (listener, sources): (TcpListener, Arc<Sources>),
    tls: Option<Tls>,
    router: Router,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = async {
            let permit = room.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(place) = sources.enter(peer.ip().into()) else {
                    continue;
                };
                // Answers are small and people wait for them.
                let _ = stream.set_nodelay(true);
                let (tls, router, stop) = (tls.clone(), router.clone(), stop.clone());
                connections.spawn(async move {
                    open((stream, peer, place), tls, router, stop).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(STOP_WITHIN, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(left = connections.len(), "stopped with connections still open");
    }
}

/// Shakes hands, if the API is served over TLS, and serves the connection to its end.
async fn open(
    (stream, address, place): (TcpStream, SocketAddr, Place),
    tls: Option<Tls>,
    router: Router,
    stop: CancellationToken,
) {
    let Some(tls) = tls else {
        let peer = Peer { address, proof: None };
        serve((stream, peer), router, stop, std::future::pending()).await;
        return drop(place);
    };
    let accepted = tokio::select! {
        () = stop.cancelled() => return,
        accepted = tls.accept(stream) => accepted,
    };
    match accepted {
        Ok((stream, proof)) => {
            let place = match &proof {
                Some(proof) => place.proved(proof.bearer()),
                None => Some(place),
            };
            if place.is_some() {
                let lapsed = tls.root_gone(proof.clone());
                serve((stream, Peer { address, proof }), router, stop, lapsed).await;
            }
        }
        Err(error) => tls.note_failure(&error, address).await,
    }
}

/// Serves one connection to its end, which comes after the request under way once what it was made with has lapsed.
async fn serve<S>(
    (stream, peer): (S, Peer),
    router: Router,
    stop: CancellationToken,
    lapsed: impl Future<Output = ()>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let address = peer.address;
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = lapsed => {
            tracing::info!(peer = %address, "a connection ends: the root that its certificate leads to was taken away");
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, peer = %address, "connection ended early");
    }
}
