//! A DNS server that misbehaves on request, for what no real one does when asked to.
//!
//! Every name has the same records. It answers over UDP and TCP, and counts what it was asked. Servers that behave are
//! in [`crate::dns`] and [`crate::dns_servers`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::background::Background;

/// How long the absence of a name may be remembered, in seconds.
const NEGATIVE_TTL: u32 = 1;

/// The largest question over UDP or TCP.
const QUESTION_MAX: usize = 4096;

/// The address in answers that were not asked for. Nobody listens there (RFC 5737).
const FORGED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);

/// The records of a truncated answer that still fit.
const FITTING: usize = 2;

/// What it does with a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// Answers with every record, cut to what the asker takes over UDP.
    Whole,
    /// Answers with so many records, chosen at random for each question.
    Sample(usize),
    /// Says over UDP that the answer is too long (TC), with the first few records; over TCP it is whole or, without TCP,
    /// the connection is closed.
    Truncated {
        /// Whether there is TCP behind it.
        tcp: bool,
    },
    /// Answers bytes that are no message, under the right id.
    Malformed,
    /// Answers first under a wrong id with a forged address, a moment later as it should.
    SpoofedId,
    /// Answers first from another port with a forged address, a moment later as it should.
    SpoofedPort,
    /// Answers that the name exists and has no record of that type (RFC 2308 section 2.2).
    Empty,
    /// Answers with this code and no record.
    Code(ResponseCode),
    /// Says nothing.
    Silent,
    /// Answers questions for A as it should and says nothing to those for AAAA, as some middleboxes do.
    SilentToSix,
    /// Answers questions for AAAA so long after.
    SixLate(Duration),
    /// Answers as it should, so long after.
    Late(Duration),
    /// Answers with a chain of so many aliases and the records at its end.
    Chain(u8),
    /// Answers each link of such a chain to a question of its own, as a server does that has but a part of it.
    Links(u8),
    /// Answers with two aliases that point at each other.
    Loop,
    /// Answers as it should, behind records of other names and types that nobody asked for.
    Strangers,
}

/// A DNS server that does as it is told.
#[derive(Debug)]
pub struct ScriptedDns {
    address: SocketAddr,
    shared: Arc<Shared>,
    _running: Background,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    asked: AtomicU64,
    asked_by_tcp: AtomicU64,
}

#[derive(Clone, Debug)]
struct State {
    script: Script,
    addresses: Vec<IpAddr>,
    ttl: u32,
    /// Of questions for names that end so nothing is heard.
    silent_zone: Option<String>,
}

impl State {
    fn is_silent_to(&self, question: &Message) -> bool {
        let zone = self.silent_zone.as_deref();
        zone.is_some_and(|zone| {
            let mut queries = question.queries.iter();
            queries.any(|query| query.name().to_ascii().trim_end_matches('.').ends_with(zone))
        })
    }
}

impl ScriptedDns {
    /// Starts one whose names have these records, and which behaves.
    pub async fn start(addresses: &[IpAddr], ttl_seconds: u32) -> Self {
        let (udp, tcp) = crate::dns::sockets().await;
        let address = udp.local_addr().expect("a bound socket has an address");
        let (udp, tcp) = (
            udp.into_std().expect("a socket"),
            tcp.into_std().expect("a socket"),
        );
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                script: Script::Whole,
                addresses: addresses.to_vec(),
                ttl: ttl_seconds,
                silent_zone: None,
            }),
            asked: AtomicU64::new(0),
            asked_by_tcp: AtomicU64::new(0),
        });
        let running = Background::start("scripted dns");
        let held = Arc::clone(&shared);
        running.spawn(async move {
            let socket = Arc::new(UdpSocket::from_std(udp).expect("a socket"));
            // It ends with its thread.
            let _ = over_udp(socket, held).await;
        });
        let held = Arc::clone(&shared);
        running.spawn(async move {
            let listener = TcpListener::from_std(tcp).expect("a socket");
            while let Ok((stream, _)) = listener.accept().await {
                let held = Arc::clone(&held);
                // A connection that breaks is the asker's affair.
                tokio::spawn(async move { over_tcp(stream, held).await });
            }
        });
        Self {
            address,
            shared,
            _running: running,
        }
    }

    /// Where it answers, over UDP and TCP.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Does this from the next question on.
    pub fn play(&self, script: Script) {
        self.shared.state().script = script;
    }

    /// From the next question on nothing is heard of names that end so, whatever is played.
    pub fn fall_silent_for(&self, zone: &str) {
        self.shared.state().silent_zone = Some(zone.to_owned());
    }

    /// From the next question on every name has these records.
    pub fn set(&self, addresses: &[IpAddr], ttl_seconds: u32) {
        let mut state = self.shared.state();
        state.addresses = addresses.to_vec();
        state.ttl = ttl_seconds;
    }

    /// How many questions came, over UDP and TCP.
    pub fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// How many of them came over TCP.
    pub fn asked_by_tcp(&self) -> u64 {
        self.shared.asked_by_tcp.load(Ordering::SeqCst)
    }

    /// Waits until so many more questions have come than there had been.
    pub async fn is_asked_more(&self, count: u64) {
        let enough = self.asked() + count;
        crate::eventually(&format!("{count} more questions for DNS"), async || {
            (self.asked() >= enough).then_some(())
        })
        .await;
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn over_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) -> std::io::Result<()> {
    let mut buffer = vec![0; QUESTION_MAX];
    loop {
        let (length, asker) = socket.recv_from(&mut buffer).await?;
        let Ok(question) = Message::from_vec(&buffer[..length]) else {
            continue;
        };
        shared.asked.fetch_add(1, Ordering::SeqCst);
        let (state, socket) = (shared.state().clone(), Arc::clone(&socket));
        tokio::spawn(async move { answer_by_udp(&socket, asker, &question, &state).await });
    }
}

async fn answer_by_udp(
    socket: &UdpSocket,
    asker: SocketAddr,
    question: &Message,
    state: &State,
) -> std::io::Result<()> {
    let room = usize::from(question.max_payload());
    let six = question
        .queries
        .iter()
        .any(|query| query.query_type() == RecordType::AAAA);
    match state.script {
        _ if state.is_silent_to(question) => return Ok(()),
        Script::Silent => return Ok(()),
        Script::SilentToSix if six => return Ok(()),
        Script::Malformed => {
            socket.send_to(&garbage(question), asker).await?;
            return Ok(());
        }
        Script::SpoofedId => {
            let mut forged = forged(question, state);
            forged.metadata.id = !question.metadata.id;
            socket.send_to(&bytes(&forged), asker).await?;
        }
        Script::SpoofedPort => {
            let other = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            other.send_to(&bytes(&forged(question, state)), asker).await?;
        }
        Script::Late(delay) => tokio::time::sleep(delay).await,
        Script::SixLate(delay) if six => tokio::time::sleep(delay).await,
        _ => {}
    }
    let mut answer = answer(question, state);
    if matches!(state.script, Script::Truncated { .. }) || bytes(&answer).len() > room {
        // RFC 1035 section 4.1.1: TC, and what fits.
        answer.metadata.truncation = true;
        answer.answers.truncate(FITTING);
    }
    socket.send_to(&bytes(&answer), asker).await?;
    Ok(())
}

async fn over_tcp(mut stream: TcpStream, shared: Arc<Shared>) -> std::io::Result<()> {
    loop {
        // RFC 1035 section 4.2.2: each message has its length before it.
        let length = usize::from(stream.read_u16().await?);
        let mut buffer = vec![0; length.min(QUESTION_MAX)];
        stream.read_exact(&mut buffer).await?;
        let Ok(question) = Message::from_vec(&buffer) else {
            return Ok(());
        };
        shared.asked.fetch_add(1, Ordering::SeqCst);
        shared.asked_by_tcp.fetch_add(1, Ordering::SeqCst);
        let state = shared.state().clone();
        let answer = match state.script {
            Script::Truncated { tcp: false } => return Ok(()),
            Script::Silent => std::future::pending().await,
            Script::Malformed => garbage(&question),
            Script::Late(delay) => {
                tokio::time::sleep(delay).await;
                bytes(&answer(&question, &state))
            }
            _ => bytes(&answer(&question, &state)),
        };
        let length = u16::try_from(answer.len()).expect("an answer of a test is short");
        stream.write_u16(length).await?;
        stream.write_all(&answer).await?;
    }
}

fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().expect("a message that can be written")
}

/// The right id, flags of an answer, and then nonsense: counts that promise records and a name that points at itself.
fn garbage(question: &Message) -> Vec<u8> {
    let [high, low] = question.metadata.id.to_be_bytes();
    vec![
        high, low, 0x81, 0x80, 0, 1, 0xff, 0xff, 0, 0, 0, 0, 0xc0, 12, 0, 1,
    ]
}

fn forged(question: &Message, state: &State) -> Message {
    let state = State {
        script: Script::Whole,
        addresses: vec![FORGED.into()],
        ttl: state.ttl,
        silent_zone: None,
    };
    answer(question, &state)
}

/// An answer as it is over TCP, where everything fits.
fn answer(question: &Message, state: &State) -> Message {
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.queries.clone_from(&question.queries);
    let Some(query) = question.queries.first() else {
        answer.metadata.response_code = ResponseCode::FormErr;
        return answer;
    };
    match state.script {
        Script::Code(code) => answer.metadata.response_code = code,
        Script::Empty => {}
        Script::Loop => {
            let (here, there) = (query.name().clone(), alias(query.name(), 1));
            answer.add_answer(link(&here, &there, state.ttl));
            answer.add_answer(link(&there, &here, state.ttl));
        }
        Script::Links(count) => match links_left(query.name(), count) {
            0 => records(query.name(), query, state, &mut answer),
            left => {
                let next = alias(query.name(), left - 1);
                answer.add_answer(link(query.name(), &next, state.ttl));
            }
        },
        Script::Strangers => {
            // Short-lived, so that whoever takes their TTL for that of the answer asks too often.
            let other = alias(query.name(), 0);
            answer.add_answer(Record::from_rdata(other.clone(), 0, RData::A(A(FORGED))));
            answer.add_answer(link(&other, &alias(query.name(), 1), 0));
            answer.add_answer(Record::from_rdata(
                query.name().clone(),
                0,
                RData::TXT(TXT::new(vec!["no address".to_owned()])),
            ));
            if query.query_type() == RecordType::AAAA {
                answer.add_answer(Record::from_rdata(query.name().clone(), 0, RData::A(A(FORGED))));
            }
            records(query.name(), query, state, &mut answer);
        }
        Script::Chain(count) => {
            let mut at = query.name().clone();
            for left in (0..count).rev() {
                let next = alias(query.name(), left);
                answer.add_answer(link(&at, &next, state.ttl));
                at = next;
            }
            records(&at, query, state, &mut answer);
        }
        _ => records(query.name(), query, state, &mut answer),
    }
    // RFC 2308 section 3: how long absence may be remembered.
    let absent = matches!(state.script, Script::Empty | Script::Code(ResponseCode::NXDomain));
    if absent || answer.answers.is_empty() && answer.metadata.response_code == ResponseCode::NoError {
        let zone = query.name().base_name();
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 60, 60, 60, NEGATIVE_TTL);
        answer.add_authority(Record::from_rdata(zone, NEGATIVE_TTL, RData::SOA(soa)));
    }
    answer
}

/// The name in the zone of `name` from which so many links are left.
fn alias(name: &Name, left: u8) -> Name {
    Name::from_ascii(format!("link-{left}."))
        .and_then(|first| first.append_domain(&name.base_name()))
        .expect("a name of a test is short")
}

/// How many links lie before the records: all of them for a name that is no link itself.
fn links_left(name: &Name, count: u8) -> u8 {
    let first = name.iter().next().map(String::from_utf8_lossy);
    let left = first.and_then(|label| label.strip_prefix("link-")?.parse().ok());
    left.unwrap_or(count)
}

fn link(from: &Name, to: &Name, ttl: u32) -> Record {
    Record::from_rdata(from.clone(), ttl, RData::CNAME(CNAME(to.clone())))
}

/// Adds the records of the type that is asked for.
fn records(name: &Name, query: &Query, state: &State, answer: &mut Message) {
    let mut data: Vec<RData> = state
        .addresses
        .iter()
        .filter_map(|address| match (address, query.query_type()) {
            (IpAddr::V4(address), RecordType::A) => Some(RData::A(A(*address))),
            (IpAddr::V6(address), RecordType::AAAA) => Some(RData::AAAA(AAAA(*address))),
            _ => None,
        })
        .collect();
    // Servers turn their records round.
    fastrand::shuffle(&mut data);
    if let Script::Sample(count) = state.script {
        data.truncate(count);
    }
    for data in data {
        answer.add_answer(Record::from_rdata(name.clone(), state.ttl, data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));

    async fn ask(server: &ScriptedDns, name: &str) -> Message {
        let mut question = Message::query();
        question.metadata.id = 7;
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.send_to(&bytes(&question), server.address()).await.unwrap();
        let mut answer = [0; 4096];
        let received = crate::within("an answer", socket.recv(&mut answer)).await;
        Message::from_vec(&answer[..received.unwrap()]).unwrap()
    }

    #[tokio::test]
    async fn each_script_answers_as_it_says() {
        let many: Vec<IpAddr> = (1..=60)
            .map(|last| Ipv4Addr::new(127, 0, 0, last).into())
            .collect();
        let server = ScriptedDns::start(&[ONE], 0x8000_0000).await;
        let first = ask(&server, "a.test.").await;
        assert_eq!((first.answers.len(), first.answers[0].ttl), (1, 0x8000_0000));
        for (script, code, count, cut) in [
            (Script::Sample(8), ResponseCode::NoError, 8, false),
            (Script::Whole, ResponseCode::NoError, FITTING, true),
            (
                Script::Truncated { tcp: true },
                ResponseCode::NoError,
                FITTING,
                true,
            ),
            (Script::Empty, ResponseCode::NoError, 0, false),
            (
                Script::Code(ResponseCode::Refused),
                ResponseCode::Refused,
                0,
                false,
            ),
            (Script::Loop, ResponseCode::NoError, 2, false),
            (Script::SpoofedPort, ResponseCode::NoError, 1, false),
        ] {
            server.set(&many, 1);
            server.play(script);
            let answer = ask(&server, "a.test.").await;
            let found = (
                answer.metadata.response_code,
                answer.answers.len(),
                answer.metadata.truncation,
            );
            if script == Script::SpoofedPort {
                // Here both are taken, and the forged one is first.
                assert_eq!(found.1, count, "{script:?}");
                continue;
            }
            assert_eq!(found, (code, count, cut), "{script:?}");
        }
        server.set(&[ONE], 1);
        server.play(Script::Chain(3));
        assert_eq!(ask(&server, "a.test.").await.answers.len(), 4);
        server.play(Script::Links(2));
        for (name, next) in [("a.test.", "link-1.test."), ("link-1.test.", "link-0.test.")] {
            let answer = ask(&server, name).await;
            let RData::CNAME(CNAME(to)) = &answer.answers[0].data else {
                panic!("{answer:?}")
            };
            assert_eq!(to.to_ascii(), next);
        }
        let answer = ask(&server, "link-0.test.").await;
        assert_eq!(answer.answers[0].data, RData::A(A(Ipv4Addr::LOCALHOST)));
    }
}
