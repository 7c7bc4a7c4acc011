//! Upstreams: HTTP/1.1 servers that name themselves in their answers and misbehave on request.

mod serve;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::background::Background;
use crate::wait::eventually;
use crate::wire::{Body, Head};

/// Requests remembered whole; load is only counted.
const RECEIVED_MAX: usize = 1000;

/// Connections that may wait to be accepted: as many as a burst of load opens at once.
const BACKLOG: i32 = 1024;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    delay: Duration,
    chunked: bool,
}

impl Answer {
    /// 200 with a short body.
    pub fn ok() -> Self {
        Self::status(200)
    }

    /// This status with a short body.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: format!("status {status}\n").into_bytes(),
            delay: Duration::ZERO,
            chunked: false,
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Waits so long before it begins.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sends the body in chunks.
    #[must_use]
    pub fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }
}

/// What an upstream does with a request.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// Reads the whole request, then answers.
    Answer(Answer),
    /// Reads the whole request, then answers 200 with the body that it received.
    Echo,
    /// Reads the whole request, then answers what this says.
    Call(fn(&Received) -> Answer),
    /// Answers as soon as the head is there, then reads what remains of the request.
    AnswerEarly(Answer),
    /// Answers as soon as the head is there, then closes the connection with the rest of the request unread.
    AnswerUnread(Answer),
    /// Closes the connection as soon as the head is there.
    CloseAfterHead,
    /// Reads the whole request, then closes the connection.
    CloseBeforeAnswer,
    /// Resets the connection as soon as the head is there.
    Reset,
    /// Announces the whole body, sends half of it, closes.
    HalfBody(Answer),
    /// Announces the whole body, sends half of it, then nothing more until the other side goes.
    StallBody(Answer),
    /// Sends the body in so many equal chunks with a pause before each.
    Drip {
        /// How many.
        pieces: usize,
        /// The pause before each.
        pause: Duration,
    },
    /// Sends these bytes, then closes.
    Raw(Vec<u8>),
    /// Sends these bytes, and keeps the connection as if they had been one answer.
    RawKept(Vec<u8>),
    /// Reads the whole request, then says nothing until the other side goes.
    Hang,
}

/// What an upstream does with a connection that it has answered on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reuse {
    /// Keeps it for the next request.
    #[default]
    Keep,
    /// Closes it after the answer, without having said so.
    CloseAfterAnswer,
    /// Keeps it until the next request arrives, and resets it then, that request unread.
    ResetWhenUsedAgain,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// The request line and the headers.
    pub head: Head,
    /// The body, as far as it was read.
    pub body: Body,
    /// Which connection it came on, counted from 1.
    pub connection: u64,
}

impl Received {
    /// The method.
    pub fn method(&self) -> &str {
        self.head.word(0)
    }

    /// The target as it was on the wire.
    pub fn target(&self) -> &str {
        self.head.word(1)
    }
}

/// A server with a name.
#[derive(Debug)]
pub struct Upstream {
    name: String,
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Bound but not listening: the port stays ours, and refuses connections, while the server is dead.
    _reserved: Socket,
    running: Option<Background>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    state: Mutex<State>,
    requests: AtomicU64,
    connections: AtomicU64,
    open: AtomicU64,
    given_up: AtomicU64,
    unreadable: AtomicU64,
    close_idle: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    behaviour: Behaviour,
    next: VecDeque<Behaviour>,
    reuse: Reuse,
    received: VecDeque<Received>,
}

impl Upstream {
    /// A server that answers 200 on a port of its own.
    pub async fn start(name: &str) -> Self {
        Self::start_at(name, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
    }

    /// A server that answers 200 at this address.
    pub async fn start_at(name: &str, address: SocketAddr) -> Self {
        let mut upstream = Self::dead_at(name, address);
        upstream.revive().await;
        upstream
    }

    /// A server that is not there: its port refuses connections until it is revived.
    pub fn dead(name: &str) -> Self {
        Self::dead_at(name, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    fn dead_at(name: &str, address: SocketAddr) -> Self {
        let reserved = bound(address);
        let address = reserved
            .local_addr()
            .ok()
            .and_then(|address| address.as_socket())
            .expect("a bound socket has an address");
        let shared = Shared {
            name: name.to_owned(),
            state: Mutex::new(State {
                behaviour: Behaviour::Answer(Answer::ok()),
                next: VecDeque::new(),
                reuse: Reuse::Keep,
                received: VecDeque::new(),
            }),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            open: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            unreadable: AtomicU64::new(0),
            close_idle: watch::Sender::new(0),
        };
        Self {
            name: name.to_owned(),
            address,
            shared: Arc::new(shared),
            _reserved: reserved,
            running: None,
        }
    }

    /// What it puts into `x-upstream`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what it does from the next request on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.shared.state().behaviour = behaviour;
    }

    /// Does these first, one for each request, then what it did before.
    pub fn next(&self, behaviours: impl IntoIterator<Item = Behaviour>) {
        self.shared.state().next.extend(behaviours);
    }

    /// Changes what it does with connections between requests.
    pub fn reuse(&self, reuse: Reuse) {
        self.shared.state().reuse = reuse;
    }

    /// How many requests have arrived; their heads, at least.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// How many connections have been accepted.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many connections are open now.
    pub fn open_connections(&self) -> u64 {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// How many requests the other side gave up: it went while they were read or before they were answered.
    pub fn given_up(&self) -> u64 {
        self.shared.given_up.load(Ordering::SeqCst)
    }

    /// How many connections ended because what came on them was not HTTP/1.1.
    pub fn unreadable(&self) -> u64 {
        self.shared.unreadable.load(Ordering::SeqCst)
    }

    /// The last requests that arrived, up to a thousand, oldest first.
    pub fn received(&self) -> Vec<Received> {
        self.shared.state().received.iter().cloned().collect()
    }

    /// The last request, which must have arrived.
    pub fn last(&self) -> Received {
        let last = self.shared.state().received.back().cloned();
        last.unwrap_or_else(|| panic!("{} has received no request", self.name))
    }

    /// Waits until so many requests have arrived.
    pub async fn has_requests(&self, count: u64) {
        let what = format!("{count} requests at {}", self.name);
        eventually(&what, async || (self.requests() >= count).then_some(())).await;
    }

    /// Closes every connection that waits for its next request, and waits until they are closed.
    pub async fn close_idle(&self) {
        self.shared.close_idle.send_modify(|times| *times += 1);
        let what = format!("the idle connections of {} to close", self.name);
        eventually(&what, async || (self.open_connections() == 0).then_some(())).await;
    }

    /// Ends it and all its connections, as a crash does. Its port refuses connections from then on.
    pub fn kill(&mut self) {
        self.running = None;
        self.shared.open.store(0, Ordering::SeqCst);
    }

    /// Starts it again on the same port.
    #[expect(clippy::unused_async, reason = "it belongs to the other calls, which wait")]
    pub async fn revive(&mut self) {
        let socket = bound(self.address);
        socket
            .listen(BACKLOG)
            .unwrap_or_else(|error| panic!("{} cannot listen on {}: {error}", self.name, self.address));
        let background = Background::start(&self.name);
        let shared = Arc::clone(&self.shared);
        background.spawn(async move {
            let listener = TcpListener::from_std(socket.into()).expect("a listening socket");
            serve::accept(listener, shared).await;
        });
        self.running = Some(background);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn remember(&self, received: Received) {
        let mut state = self.state();
        if state.received.len() == RECEIVED_MAX {
            state.received.pop_front();
        }
        state.received.push_back(received);
    }
}

/// A port that stays ours while nobody listens on it, for a process that comes and goes there: bound, not listening, so
/// that it refuses connections meanwhile.
#[derive(Debug)]
pub struct Reserved(Socket);

impl Reserved {
    /// Takes a free one.
    pub fn port() -> Self {
        Self(bound(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        let address = self.0.local_addr().expect("a bound socket has an address");
        address.as_socket().expect("an address of IPv4")
    }
}

/// A listening socket that never takes a connection and has no room for one more, so that the attempt to connect
/// is neither accepted nor refused.
#[derive(Debug)]
pub struct Deaf {
    socket: Socket,
    _waiting: Vec<Socket>,
}

impl Deaf {
    /// Opens it and fills it up.
    pub fn start() -> Self {
        let socket = bound(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        socket.listen(0).expect("a bound socket can listen");
        let address = socket.local_addr().expect("a bound socket has an address");
        // Linux takes one more than the backlog says; what is more than that waits for ever, as is wanted.
        let connect = |_| {
            let waiting = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).expect("a socket");
            // It does not block, so that it is on its way and nothing more.
            let _ = waiting.connect(&address);
            waiting
        };
        let waiting = (0..3).map(connect).collect();
        Self {
            socket,
            _waiting: waiting,
        }
    }

    /// Where it does not answer.
    pub fn address(&self) -> SocketAddr {
        let address = self.socket.local_addr().expect("a bound socket has an address");
        address.as_socket().expect("an address of IPv4")
    }
}

/// A socket bound to this address, which others of our own may be bound to as well.
fn bound(address: SocketAddr) -> Socket {
    let make = || -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    make().unwrap_or_else(|error| panic!("cannot bind {address}: {error}"))
}
