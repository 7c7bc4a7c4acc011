//! The DNS listener: names of the mesh lead to this sidecar, all others are asked of the name servers.
//!
//! Runs on a thread of its own until the sidecar's end, so that neither a push nor a request waits for it nor it for them.
//! Names and their addresses are the snapshot's; what DNS's bytes mean is in [`question`], who else is asked in [`forward`].
//! It caches nothing: what it forwards is remembered by the servers, and for what it knows itself no memory is faster.

mod forward;
mod question;
mod servers;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use outrigger_config::bootstrap::Listeners;
use outrigger_config::names::DnsListener;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::LocalOptions;
use tokio::sync::Semaphore;

use crate::drain::Drain;
use crate::names::forward::{Forwarder, Way};
use crate::names::question::{Question, Read};
use crate::names::servers::RESOLV_CONF;
use crate::snapshot::{Named, Snapshots};
use crate::telemetry::metrics::{NameMetrics, QueryResult};

/// So many questions may wait for name servers at once, each with a socket of its own; with the 4 s that one may wait, far more
/// than an application asks. Names of the mesh are answered all the same.
const WAITING_MAX: usize = 512;

/// So many connections over TCP may be open: only answers that are too long for UDP come that way.
const CONNECTIONS_MAX: usize = 64;

/// A connection without a question is closed after this: RFC 7766 section 6.2.3 speaks of some seconds.
const QUIET_MAX: Duration = Duration::from_secs(10);

/// After a socket could not be read or accepted from, this long is waited, as for connections of callers.
const PAUSE: Duration = Duration::from_millis(50);

/// Where the port is any that is free, so many are tried for one that is free for UDP and TCP.
const PORTS_TRIED_MAX: usize = 16;

/// The largest message over UDP.
const DATAGRAM_MAX: usize = 65_535;

/// A DNS listener whose sockets are bound.
#[derive(Debug)]
pub(crate) struct Names {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
    /// Who is asked for what the mesh does not know.
    servers: Vec<SocketAddr>,
    /// Whether the system's own questions come here.
    is_the_system_s: bool,
    own: Vec<IpAddr>,
    ttl_seconds: u32,
}

impl Names {
    /// Binds its sockets. `flags`: the name servers of the command line, which stand before those of the system.
    ///
    /// # Errors
    /// When the address is taken or not ours, with the address.
    pub(crate) fn bind(
        dns: &DnsListener,
        listeners: &Listeners,
        flags: &[SocketAddr],
    ) -> anyhow::Result<Self> {
        let (udp, tcp) = sockets(dns.address).with_context(|| {
            format!(
                "cannot listen on {} for dns: is another program using it, or may this one not use the port? set another \
                 address in `listeners.dns`",
                dns.address
            )
        })?;
        let address = udp.local_addr()?;
        tracing::info!(listener = "dns", %address, "listening");
        if !address.ip().is_loopback() {
            tracing::warn!(
                %address,
                "the DNS listener is not on loopback: it forwards the questions of everybody who reaches it, and answers them \
                 with addresses that lead to the sidecar of who asks"
            );
        }
        let (of_system, is_the_system_s) = servers::of_system(Path::new(RESOLV_CONF), address);
        let said: Vec<_> = dns.servers.iter().map(|server| server.0).collect();
        let servers = [said, flags.to_vec(), of_system];
        let servers = servers.into_iter().find(|servers| !servers.is_empty());
        let servers = servers.unwrap_or_default();
        if servers.is_empty() {
            tracing::warn!(
                "{RESOLV_CONF} names no name server but this listener: only names of the mesh are answered; set `listeners.dns.servers`"
            );
        }
        Ok(Self {
            udp,
            tcp,
            servers,
            is_the_system_s,
            own: own_addresses(listeners.outbound.ip()),
            ttl_seconds: u32::try_from(dns.ttl.0.as_secs()).unwrap_or(u32::MAX),
        })
    }

    /// The name servers that the sidecar asks itself, where those of the system would ask it. It must not be told of its own
    /// addresses where it looks for the endpoints behind them.
    pub(crate) fn instead_of_the_system(&self) -> Option<&[SocketAddr]> {
        self.is_the_system_s.then_some(&self.servers)
    }

    /// Answers on a thread of its own until the end of the drain.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn start(
        self,
        snapshots: &Arc<Snapshots>,
        metrics: NameMetrics,
        drain: &Drain,
    ) -> io::Result<()> {
        let (snapshots, drain) = (Arc::clone(snapshots), drain.clone());
        let answering = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default());
            let answered = runtime.and_then(|runtime| runtime.block_on(self.run(snapshots, metrics, drain)));
            if let Err(error) = answered {
                tracing::error!(%error, "no name is answered any more");
            }
        };
        std::thread::Builder::new().name("dns".into()).spawn(answering)?;
        Ok(())
    }

    async fn run(self, snapshots: Arc<Snapshots>, metrics: NameMetrics, drain: Drain) -> io::Result<()> {
        let udp = Rc::new(UdpSocket::from_std(self.udp)?);
        let tcp = TcpListener::from_std(self.tcp)?;
        let names = Rc::new(Answering {
            snapshots,
            metrics,
            forwarder: Forwarder::new(self.servers),
            waiting: Semaphore::new(WAITING_MAX),
            own: self.own,
            ttl_seconds: self.ttl_seconds,
        });
        tokio::select! {
            () = by_udp(&names, &udp) => {}
            () = by_tcp(&names, &tcp) => {}
            () = drain.ended() => {}
        }
        Ok(())
    }
}

/// What questions are answered with.
#[derive(Debug)]
struct Answering {
    snapshots: Arc<Snapshots>,
    metrics: NameMetrics,
    forwarder: Forwarder,
    waiting: Semaphore,
    /// The addresses of the application's side, for services that have none of their own.
    own: Vec<IpAddr>,
    ttl_seconds: u32,
}

/// What becomes of a message.
enum Outcome {
    /// It is answered so, or not at all.
    Answered(Option<Vec<u8>>),
    /// The name servers are to be asked.
    Forward(Box<Question>),
}

impl Answering {
    /// What can be said without asking anybody.
    fn look(&self, bytes: &[u8]) -> Outcome {
        let question = match question::read(bytes) {
            Read::Nothing => {
                self.metrics.count(QueryResult::Refused);
                return Outcome::Answered(None);
            }
            Read::Refused(answer) => {
                self.metrics.count(QueryResult::Refused);
                return Outcome::Answered(Some(answer));
            }
            Read::Asked(question) => question,
        };
        let named = question
            .is_of_a_host()
            .then(|| self.snapshots.load().named(&question.name));
        let virtual_address;
        let addresses = match named.flatten() {
            None => return Outcome::Forward(question),
            Some(Named::Mesh) => &self.own[..],
            Some(Named::Virtual(address)) => {
                virtual_address = [IpAddr::V4(address)];
                &virtual_address
            }
            Some(Named::WithoutAddress) => {
                self.metrics.count(QueryResult::Failed);
                return Outcome::Answered(question.unanswered());
            }
        };
        self.metrics.count(QueryResult::Mesh);
        Outcome::Answered(question.answered(addresses, self.ttl_seconds))
    }

    /// The answer of the name servers, or that there is none.
    async fn forward(&self, question: &Question, bytes: &Bytes, way: Way) -> Option<Vec<u8>> {
        let Ok(_waiting) = self.waiting.try_acquire() else {
            self.metrics.count(QueryResult::Refused);
            return question.one_too_many();
        };
        let answer = self.forwarder.ask(question, bytes, way).await;
        self.metrics.count(match answer {
            Some(_) => QueryResult::Forwarded,
            None => QueryResult::Failed,
        });
        answer.or_else(|| question.unanswered())
    }
}

/// Answers datagrams.
async fn by_udp(names: &Rc<Answering>, socket: &Rc<UdpSocket>) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let Ok((length, asker)) = socket.recv_from(&mut buffer).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let bytes = &buffer[..length];
        match names.look(bytes) {
            Outcome::Answered(None) => {}
            Outcome::Answered(Some(answer)) => {
                // Who has gone needs no answer; who is slow asks again.
                let _ = socket.try_send_to(&answer, asker);
            }
            // Past the bound there is no task that could wait.
            Outcome::Forward(question) if names.waiting.available_permits() == 0 => {
                names.metrics.count(QueryResult::Refused);
                let answer = question.one_too_many().unwrap_or_default();
                let _ = socket.try_send_to(&answer, asker);
            }
            Outcome::Forward(question) => {
                let bytes = Bytes::copy_from_slice(bytes);
                let (names, socket) = (Rc::clone(names), Rc::clone(socket));
                tokio::task::spawn_local(async move {
                    if let Some(answer) = names.forward(&question, &bytes, Way::Udp).await {
                        let _ = socket.send_to(&answer, asker).await;
                    }
                });
            }
        }
    }
}

/// Takes connections, on which questions come one after another.
async fn by_tcp(names: &Rc<Answering>, listener: &TcpListener) {
    let open = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // One too many is closed at once, which its caller understands sooner than silence.
        let Ok(place) = Arc::clone(&open).try_acquire_owned() else {
            names.metrics.count(QueryResult::Refused);
            continue;
        };
        let names = Rc::clone(names);
        tokio::task::spawn_local(async move {
            let _place = place;
            // It ends when its caller has asked all, says nothing, or breaks it.
            let _ = converse(&names, stream).await;
        });
    }
}

/// Answers the questions of a connection.
async fn converse(names: &Answering, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let message = tokio::time::timeout(QUIET_MAX, async {
            let length = stream.read_u16().await?;
            let mut message = vec![0; length.into()];
            stream.read_exact(&mut message).await?;
            io::Result::Ok(message)
        });
        let message = message.await??;
        let answer = match names.look(&message) {
            Outcome::Answered(answer) => answer,
            Outcome::Forward(question) => names.forward(&question, &message.into(), Way::Tcp).await,
        };
        // What is no question ends the connection: what follows it means nothing either.
        let Some(answer) = answer else { return Ok(()) };
        tokio::time::timeout(QUIET_MAX, forward::write(&mut stream, &answer)).await??;
    }
}

/// What is answered to a message as if its name were of the mesh, for `fuzzing`.
#[cfg(any(test, fuzzing))]
pub(crate) fn answer(bytes: &[u8]) -> Option<Vec<u8>> {
    match question::read(bytes) {
        Read::Nothing => None,
        Read::Refused(answer) => Some(answer),
        Read::Asked(question) => {
            assert!(question.end <= bytes.len());
            question::answers(([bytes[0], bytes[1]], bytes), question.end, bytes);
            question.answered(&[Ipv4Addr::LOCALHOST.into()], 1)
        }
    }
}

/// The addresses at which the application reaches the listener of its requests.
fn own_addresses(outbound: IpAddr) -> Vec<IpAddr> {
    let (four, six) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    match outbound {
        // Who asks shares our loopback, which is there whatever the network.
        IpAddr::V4(address) if address.is_unspecified() => vec![four],
        IpAddr::V6(address) if address.is_unspecified() => vec![four, six],
        one => vec![one],
    }
}

/// A UDP and a TCP socket of one address.
fn sockets(address: SocketAddr) -> io::Result<(std::net::UdpSocket, std::net::TcpListener)> {
    let tries = if address.port() == 0 { PORTS_TRIED_MAX } else { 1 };
    let mut last = io::ErrorKind::AddrInUse.into();
    for _ in 0..tries {
        let tcp = std::net::TcpListener::bind(address)?;
        match std::net::UdpSocket::bind(tcp.local_addr()?) {
            Ok(udp) => {
                udp.set_nonblocking(true)?;
                tcp.set_nonblocking(true)?;
                return Ok((udp, tcp));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
