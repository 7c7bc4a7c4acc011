//! Asking the name servers: the question goes as it came and the answer comes back as it was given, but for their identity.
//!
//! A server that is silent does not lose a question: the next is asked beside it, and with one server it is asked again.
//! The server that answered last is asked first, so that one that has gone costs one wait and not one for each question.
//! Whatever is asked comes to an end: see [`ASK_MAX`] and [`Forwarder::ask`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::names::question::{self, HEAD_LENGTH, Question};

/// A question is asked for so long: resolver libraries wait for 5 s and must hear of a failure, not guess it.
const ASK_MAX: Duration = Duration::from_secs(4);

/// A server that is silent for so long has lost the question or is gone: most answers come within a tenth of it.
const PATIENCE: Duration = Duration::from_secs(1);

/// A question is asked at least so often while nobody answers, and of every server at least once.
const ASKED_MIN: u32 = 4;

/// Questions for the same name and type that differ in their bytes, as by their cookies, may be under way so many at once.
/// Only a loop through another server makes more, if that server writes each anew.
const VARIANTS_MAX: usize = 16;

/// The largest message over UDP.
const DATAGRAM_MAX: usize = 65_535;

/// By what a question came, and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Way {
    Udp,
    Tcp,
}

/// The bytes of a question without its identity, and how it goes. They are shared with who asks it and with its attempts.
type Key = (Way, Bytes);

/// Who asks the name servers.
#[derive(Debug)]
pub(super) struct Forwarder {
    servers: Vec<SocketAddr>,
    /// The place of the one that is asked first.
    first: Cell<usize>,
    /// Whether the last question had no answer, so that it is told once.
    failing: Cell<bool>,
    under_way: RefCell<HashMap<Key, UnderWay>>,
    /// Where datagrams are received, one at a time.
    scratch: Rc<RefCell<Vec<u8>>>,
}

/// A question that is being asked.
#[derive(Debug)]
struct UnderWay {
    asks: (String, u16, u16),
    /// Its answer; none inside: there is none.
    answer: watch::Receiver<Option<Option<Bytes>>>,
}

impl Forwarder {
    pub(super) fn new(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            first: Cell::new(0),
            failing: Cell::new(false),
            under_way: RefCell::default(),
            scratch: Rc::new(RefCell::new(vec![0; DATAGRAM_MAX])),
        }
    }

    /// The answer of a name server, with the identity of the question; `None`: there is none.
    ///
    /// The same question is asked once, however many wait for it. So if a server asks us in its turn, that question waits
    /// for the first instead of going round, and both end together.
    pub(super) async fn ask(&self, question: &Question, bytes: &Bytes, way: Way) -> Option<Vec<u8>> {
        let key = (way, bytes.slice(2..));
        let joined = self.under_way.borrow().get(&key).map(|one| one.answer.clone());
        let answer = match joined {
            Some(mut answer) => answer.wait_for(Option::is_some).await.ok()?.clone().flatten(),
            None => self.ask_first(question, bytes, key).await,
        };
        let mut answer = Vec::from(answer?);
        answer[..2].copy_from_slice(&bytes[..2]);
        Some(answer)
    }

    /// Asks what nobody asks yet.
    async fn ask_first(&self, question: &Question, bytes: &Bytes, key: Key) -> Option<Bytes> {
        let asks = question.asks();
        let alike = |one: &&UnderWay| (one.asks.0.as_str(), one.asks.1, one.asks.2) == asks;
        if self.under_way.borrow().values().filter(alike).count() >= VARIANTS_MAX {
            return None;
        }
        let (tell, answer) = watch::channel(None);
        let asks = (asks.0.to_owned(), asks.1, asks.2);
        self.under_way
            .borrow_mut()
            .insert(key.clone(), UnderWay { asks, answer });
        let answer = self.race(bytes, question.end, key.0).await;
        self.under_way.borrow_mut().remove(&key);
        let _ = tell.send(Some(answer.clone()));
        self.tell(answer.is_some());
        answer
    }

    /// Logs the first failure of a row, and its end.
    fn tell(&self, answered: bool) {
        let (servers, waited) = (&self.servers, ASK_MAX);
        match (self.failing.replace(!answered), answered) {
            (false, false) => tracing::warn!(
                ?servers,
                ?waited,
                "no name server answers what the mesh does not know; if one of them asks this listener in its turn, name \
                 others in `listeners.dns.servers`"
            ),
            (true, true) => tracing::info!("a name server answers again"),
            _ => {}
        }
    }

    /// Asks one server after another, each for as long as there is no answer.
    async fn race(&self, bytes: &Bytes, end: usize, way: Way) -> Option<Bytes> {
        let (count, first) = (self.servers.len(), self.first.get());
        let asked_max = count.max(ASKED_MIN as usize);
        let patience = PATIENCE.min(ASK_MAX / u32::try_from(asked_max).unwrap_or(ASKED_MIN));
        let mut turn = tokio::time::interval(patience);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut over = std::pin::pin!(tokio::time::sleep(ASK_MAX));
        let (mut attempts, mut asked) = (JoinSet::<(usize, io::Result<Bytes>)>::new(), 0);
        let (mut cannot_tell, mut last) = (vec![false; count], None);
        while cannot_tell.contains(&false) {
            tokio::select! {
                Some(Ok((place, outcome))) = attempts.join_next() => match outcome {
                    Ok(answer) if !question::is_failure(&answer) => {
                        self.first.set(place);
                        return Some(answer);
                    }
                    failed => {
                        // What a server says of its failure is more than we could.
                        last = failed.ok().or(last);
                        cannot_tell[place] = true;
                        turn.reset_immediately();
                    }
                },
                _ = turn.tick(), if asked < asked_max => {
                    let places = (0..count).map(|further| (first + asked + further) % count);
                    let next = places.into_iter().find(|place| !cannot_tell[*place]);
                    asked += 1;
                    if let Some(place) = next {
                        let attempt = Attempt::new(self.servers[place], bytes, end, &self.scratch);
                        attempts.spawn_local(async move {
                            let made = async { attempt?.make(way).await };
                            (place, made.await)
                        });
                    }
                }
                () = &mut over => break,
            }
        }
        last
    }
}

/// One question to one server.
struct Attempt {
    server: SocketAddr,
    /// An identity of its own: whoever would answer in the server's place must guess it, and the port.
    identity: [u8; 2],
    /// The question, with the identity of who asked it.
    question: Bytes,
    end: usize,
    scratch: Rc<RefCell<Vec<u8>>>,
}

impl Attempt {
    fn new(
        server: SocketAddr,
        bytes: &Bytes,
        end: usize,
        scratch: &Rc<RefCell<Vec<u8>>>,
    ) -> io::Result<Self> {
        let mut identity = [0; 2];
        aws_lc_rs::rand::fill(&mut identity).map_err(|_| io::Error::other("no randomness"))?;
        Ok(Self {
            server,
            identity,
            question: bytes.clone(),
            end,
            scratch: Rc::clone(scratch),
        })
    }

    /// The question as it is sent.
    fn written(&self) -> Vec<u8> {
        [&self.identity, &self.question[2..]].concat()
    }

    async fn make(self, way: Way) -> io::Result<Bytes> {
        match way {
            Way::Udp => self.by_udp().await,
            Way::Tcp => self.by_tcp().await,
        }
    }

    async fn by_udp(self) -> io::Result<Bytes> {
        let any: IpAddr = match self.server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        // The kernel then takes nothing from elsewhere, and tells if nobody listens there.
        socket.connect(self.server).await?;
        socket.send(&self.written()).await?;
        loop {
            let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
            // Where nobody listens the host says so, which is an error and nothing to read.
            if ready.is_error() {
                let error = socket.take_error()?;
                return Err(error.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into()));
            }
            let mut scratch = self.scratch.borrow_mut();
            match socket.try_recv(&mut scratch) {
                Ok(length) if self.is_answered_by(&scratch[..length]) => {
                    return Ok(Bytes::copy_from_slice(&scratch[..length]));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn by_tcp(self) -> io::Result<Bytes> {
        let mut stream = TcpStream::connect(self.server).await?;
        write(&mut stream, &self.written()).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await?;
        match self.is_answered_by(&answer) {
            true => Ok(answer.into()),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn is_answered_by(&self, answer: &[u8]) -> bool {
        answer.len() >= HEAD_LENGTH && question::answers((self.identity, &self.question), self.end, answer)
    }
}

/// Writes a message as it is written over TCP, its length first (RFC 1035 section 4.2.2), in one piece (RFC 7766 section 8).
pub(super) async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut bytes = Vec::with_capacity(message.len() + 2);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).await
}
