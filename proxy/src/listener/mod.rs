//! Bytes in: sockets are bound, connections accepted, handed to the worker with the fewest, and served.
//!
//! Accepting stands on a thread of its own and is all that it does, so that a worker deep in requests delays no new
//! connection, and connections are spread by count and not by the kernel's hash. What a request means is not known
//! here.

mod addressed;
mod announced;
mod callers;
mod connection;
mod edge;
mod http1;
mod http2;
mod opening;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use outrigger_config::names::Range;
use tokio::sync::mpsc;

pub(crate) use callers::Silence;
pub(crate) use worker::Workers;

use crate::drain::Drain;
use crate::snapshot::Entry;
use crate::telemetry::metrics::Connections;
use crate::tls::gateway::Server;

/// Connections that the kernel may hold for us while the accepting thread is busy: Linux's own default ceiling.
const BACKLOG: i32 = 4096;

/// After an accept that failed for want of descriptors or memory, this long is waited: trying again at once would
/// only burn the CPU that closing connections needs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound socket and what comes in by it.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) entry: Entry,
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    /// Whether its connections begin with the PROXY protocol.
    announced: bool,
    /// What it shows of itself, where callers from outside of the mesh speak TLS to it.
    pub(crate) server: Option<Arc<Server>>,
    /// The virtual addresses that it takes connections to.
    range: Option<Range>,
    socket: std::net::TcpListener,
}

impl Listener {
    /// Binds a socket. `announced`: its connections begin with the PROXY protocol.
    ///
    /// # Errors
    /// When the address is taken or not ours, with its name and address.
    pub(crate) fn bind(entry: Entry, address: SocketAddr, announced: bool) -> anyhow::Result<Self> {
        let name = match &entry {
            Entry::Inbound => "inbound".to_owned(),
            Entry::Outbound => "outbound".to_owned(),
            Entry::Local(service) => format!("local:{service}"),
            Entry::Virtual(service) => format!("virtual:{service}"),
            Entry::Gateway(name) => format!("gateway:{name}"),
        };
        let socket = bind(address).with_context(|| {
            format!("cannot listen on {address} for {name}: is another program using it? set another address in the bootstrap")
        })?;
        let address = socket.local_addr()?;
        tracing::info!(listener = name, %address, "listening");
        Ok(Self {
            entry,
            name,
            address,
            announced,
            server: None,
            range: None,
            socket,
        })
    }

    /// The same, which shows this of itself.
    pub(crate) fn showing(self, server: Option<Server>) -> Self {
        let server = server.map(Arc::new);
        Self { server, ..self }
    }

    /// The same, which tells by the address whom a connection is for, and takes none from elsewhere.
    pub(crate) fn addressed(self, range: Option<Range>) -> Self {
        // Who listens at one address takes no connection to another.
        let range = range.filter(|_| self.address.ip().is_unspecified());
        Self { range, ..self }
    }

    /// Whether it takes connections to virtual addresses.
    pub(crate) fn is_addressed(&self) -> bool {
        self.range.is_some()
    }
}

/// A listening socket, with the options that every listener of ours has.
pub(crate) fn bind(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    // A restarted sidecar must not wait for the last one's connections to be forgotten.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A connection on its way to a worker.
#[derive(Debug)]
struct Arrival {
    stream: std::net::TcpStream,
    /// Where it comes from.
    source: SocketAddr,
    /// Whether it says first where it really comes from.
    announced: bool,
    entry: Arc<Entry>,
    /// What is shown to it, where it comes from outside of the mesh to speak TLS.
    server: Option<Arc<Server>>,
    /// The virtual addresses of its listener.
    range: Option<Range>,
    open: Connections,
}

/// One worker as the accepting thread sees it.
#[derive(Clone, Debug)]
struct Seat {
    arrivals: mpsc::Sender<Arrival>,
    /// Connections that it has, those on their way to it included.
    connections: Arc<AtomicUsize>,
}

/// Accepts until the door is closed. Draining alone does not close it: a caller that has not heard yet must not be
/// refused.
async fn accept(
    listener: tokio::net::TcpListener,
    (entry, announced, server, range): (Arc<Entry>, bool, Option<Arc<Server>>, Option<Range>),
    open: Connections,
    seats: Vec<Seat>,
    drain: Drain,
) {
    let (mut failing, mut turn) = (false, 0_usize);
    loop {
        let accepted = tokio::select! {
            // First, so that the door is closed only when nobody waits in it: a connection that the kernel has made
            // already would be reset.
            biased;
            accepted = listener.accept() => accepted,
            () = drain.closed() => return,
        };
        let accepted = accepted.and_then(|(stream, source)| Ok((stream.into_std()?, source)));
        let (stream, source) = match accepted {
            Ok(accepted) => {
                failing = false;
                accepted
            }
            Err(error) => {
                // EMFILE and its like pass when connections close; a connection that was reset while it waited is
                // no reason to stop either.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "cannot accept a connection; trying again until it can");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Of those with equally few each has its turn, so that short connections are not all the first one's.
        turn = (turn + 1).checked_rem(seats.len()).unwrap_or_default();
        let (before, from) = seats.split_at(turn);
        let Some(seat) = from
            .iter()
            .chain(before)
            // A worker that died would for ever be the one with the fewest.
            .filter(|seat| !seat.arrivals.is_closed())
            .min_by_key(|seat| seat.connections.load(Ordering::Relaxed))
        else {
            return;
        };
        seat.connections.fetch_add(1, Ordering::Relaxed);
        let arrival = Arrival {
            stream,
            source,
            announced,
            entry: Arc::clone(&entry),
            server: server.clone(),
            range,
            open: open.clone(),
        };
        // If it dies just now this connection is lost with its others; the next goes elsewhere.
        let _ = seat.arrivals.send(arrival).await;
    }
}

/// Starts the accepting thread. It ends when the drain closes the door.
pub(crate) fn start_accepting(
    listeners: Vec<Listener>,
    workers: &Workers,
    metrics: &crate::telemetry::metrics::Metrics,
    drain: &Drain,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let drain = drain.clone();
    let seats = workers.seats();
    let opened: Vec<_> = listeners
        .iter()
        .map(|listener| metrics.connections(&listener.name))
        .collect();
    std::thread::Builder::new().name("accept".into()).spawn(move || {
        runtime.block_on(async move {
            let mut accepting = tokio::task::JoinSet::new();
            for (listener, open) in listeners.into_iter().zip(opened) {
                match tokio::net::TcpListener::from_std(listener.socket) {
                    Ok(socket) => {
                        let (entry, server) = (Arc::new(listener.entry), listener.server);
                        let entry = (entry, listener.announced, server, listener.range);
                        accepting.spawn(accept(socket, entry, open, seats.clone(), drain.clone()));
                    }
                    Err(error) => {
                        tracing::error!(listener = listener.name, %error, "cannot accept on this listener");
                    }
                }
            }
            while accepting.join_next().await.is_some() {}
        });
    })?;
    Ok(())
}

/// What is read of a caller before anything is known of it, for `fuzzing`.
#[cfg(any(test, fuzzing))]
pub(crate) mod unknown {
    use super::{announced, opening};

    /// The length of the header of the PROXY protocol that these bytes begin with; `None`: there must be more.
    pub(crate) fn announced(bytes: &[u8]) -> Result<Option<usize>, &'static str> {
        announced::parse(bytes).map(|header| header.map(|header| header.length))
    }

    /// Whether these bytes open HTTP/2; `None`: not enough yet.
    pub(crate) fn speaks_http2(bytes: &[u8]) -> Option<bool> {
        opening::told(bytes).map(|speaks| speaks == opening::Speaks::Http2)
    }
}
