//! A DNS server with one zone whose records change while it runs.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_proto::rr::{LowerName, Name, RData, Record, RecordSet, RecordType, RrKey};
use hickory_server::Server;
use hickory_server::store::in_memory::InMemoryZoneHandler;
use hickory_server::zone_handler::{AxfrPolicy, Catalog, ZoneType};
use tokio::net::{TcpListener, UdpSocket};

use crate::background::Background;

/// How long the absence of a name may be remembered, in seconds.
const NEGATIVE_TTL: u32 = 1;

/// A connection over TCP without a question is closed after this.
const QUIET_MAX: Duration = Duration::from_secs(5);

/// What the server keeps ready for the answers of one TCP connection.
const ANSWERS_MAX: usize = 16;

/// A DNS server for the names of one zone.
#[expect(missing_debug_implementations, reason = "the zone of hickory-server has none")]
pub struct DnsServer {
    address: SocketAddr,
    zone: Arc<InMemoryZoneHandler>,
    door: Arc<Door>,
    _running: Background,
}

/// What stands before the server for questions over UDP.
#[derive(Debug)]
struct Door {
    manner: AtomicU8,
    refused: AtomicU64,
    /// How often each name was asked for, whatever the type.
    asked: Mutex<HashMap<String, u64>>,
    /// The name whose answers are samples, and what they are samples of.
    sampled: Mutex<Option<Sampled>>,
}

/// A name of whose addresses each answer has some, at random.
#[derive(Clone, Debug)]
struct Sampled {
    name: String,
    addresses: Vec<IpAddr>,
    count: usize,
    rng: fastrand::Rng,
}

/// Where a service is, as an SRV record says it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The lower comes first.
    pub priority: u16,
    /// The share of those of one priority.
    pub weight: u16,
    /// The port.
    pub port: u16,
    /// The host.
    pub host: &'a str,
}

/// How it takes questions over UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Manner {
    /// It answers from its zone.
    Answers,
    /// It answers that it failed (SERVFAIL).
    Fails,
    /// It says nothing.
    Silent,
    /// It answers that it does not want to (REFUSED).
    Refuses,
    /// It answers with no record, and no word about for how long.
    Empty,
    /// It answers from its zone, but to a question with EDNS that it does not understand it (FORMERR).
    Old,
}

impl DnsServer {
    /// Starts it for the names under `zone`, of which there is none yet.
    pub async fn start(zone: &str) -> Self {
        let origin = Name::from_ascii(format!("{zone}.")).expect("a name");
        let zone: InMemoryZoneHandler =
            InMemoryZoneHandler::empty(origin.clone(), ZoneType::Primary, AxfrPolicy::Deny);
        let soa = SOA::new(origin.clone(), origin.clone(), 1, 60, 60, 60, NEGATIVE_TTL);
        let soa = Record::from_rdata(origin.clone(), NEGATIVE_TTL, RData::SOA(soa));
        assert!(zone.upsert(soa, 1).await, "the zone takes its own SOA");
        let zone = Arc::new(zone);
        let mut catalog = Catalog::new();
        catalog.upsert(LowerName::from(&origin), vec![zone.clone()]);

        let (udp, tcp) = sockets().await;
        let address = udp.local_addr().expect("a bound socket has an address");
        let inside = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port");
        let answering = inside.local_addr().expect("a bound socket has an address");
        let [udp, inside] = [udp, inside].map(|socket| socket.into_std().expect("a socket"));
        let tcp = tcp.into_std().expect("a socket");
        let door = Arc::new(Door {
            manner: AtomicU8::new(Manner::Answers as u8),
            refused: AtomicU64::new(0),
            asked: Mutex::default(),
            sampled: Mutex::default(),
        });
        let running = Background::start("dns");
        let (held, records) = (Arc::clone(&door), Arc::clone(&zone));
        running.spawn(async move {
            let outside = Arc::new(UdpSocket::from_std(udp).expect("a socket"));
            // It ends with its thread.
            let _ = at_the_door(outside, answering, (held, records)).await;
        });
        running.spawn(async move {
            let mut server = Server::new(catalog);
            server.register_socket(UdpSocket::from_std(inside).expect("a socket"));
            let tcp = TcpListener::from_std(tcp).expect("a socket");
            server.register_listener(tcp, QUIET_MAX, ANSWERS_MAX);
            // It ends with its thread.
            let _ = server.block_until_done().await;
        });
        Self {
            address,
            zone,
            door,
            _running: running,
        }
    }

    /// Takes questions so from now on.
    pub fn behave(&self, manner: Manner) {
        self.door.manner.store(manner as u8, Ordering::SeqCst);
    }

    /// How many questions it has failed or left without a word.
    pub fn refused(&self) -> u64 {
        self.door.refused.load(Ordering::SeqCst)
    }

    /// How often this name was asked for over UDP, each type of record by itself.
    pub fn asked(&self, name: &str) -> u64 {
        let asked = self.door.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.get(name).copied().unwrap_or_default()
    }

    /// From now on each answer for this name has so many of these addresses, drawn at random, and a TTL of 0.
    pub fn sample(&self, name: &str, addresses: &[IpAddr], count: usize, seed: u64) {
        *self.door.sampled.lock().unwrap_or_else(PoisonError::into_inner) = Some(Sampled {
            name: name.to_owned(),
            addresses: addresses.to_vec(),
            count,
            rng: fastrand::Rng::with_seed(seed),
        });
    }

    /// From now on this name has these SRV records; none of them: it does not exist.
    pub async fn set_services(&self, name: &str, places: &[Place<'_>], ttl_seconds: u32) {
        let name = Name::from_ascii(format!("{name}.")).expect("a name");
        let lower = LowerName::from(&name);
        let mut set = RecordSet::with_ttl(name, RecordType::SRV, ttl_seconds);
        for place in places {
            let host = Name::from_ascii(format!("{}.", place.host)).expect("a name");
            set.add_rdata(RData::SRV(SRV::new(
                place.priority,
                place.weight,
                place.port,
                host,
            )));
        }
        let mut records = self.zone.records_mut().await;
        records.retain(|key, _| *key.name() != lower);
        if !places.is_empty() {
            records.insert(RrKey::new(lower, RecordType::SRV), Arc::new(set));
        }
    }

    /// Where it answers, over UDP and TCP.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on this name, such as `reviews.mesh.test`, has these addresses; none of them: it does not exist.
    pub async fn set(&self, name: &str, addresses: &[IpAddr], ttl_seconds: u32) {
        set(&self.zone, name, addresses, ttl_seconds).await;
    }
}

async fn set(zone: &InMemoryZoneHandler, name: &str, addresses: &[IpAddr], ttl_seconds: u32) {
    let name = Name::from_ascii(format!("{name}.")).expect("a name");
    let lower = LowerName::from(&name);
    let mut sets = [RecordType::A, RecordType::AAAA]
        .map(|record_type| RecordSet::with_ttl(name.clone(), record_type, ttl_seconds));
    for address in addresses {
        let [four, six] = &mut sets;
        match address {
            IpAddr::V4(address) => four.add_rdata(RData::A(A(*address))),
            IpAddr::V6(address) => six.add_rdata(RData::AAAA(AAAA(*address))),
        };
    }
    // One lock for the whole change: no question is answered between the old set and the new.
    let mut records = zone.records_mut().await;
    records.retain(|key, _| *key.name() != lower);
    for set in sets.into_iter().filter(|set| !set.is_empty()) {
        records.insert(RrKey::new(lower.clone(), set.record_type()), Arc::new(set));
    }
}

impl Door {
    /// Notes a question, and gives the addresses that are drawn for its answer, if its name is one for that.
    fn note(&self, message: &[u8]) -> Option<(String, Vec<IpAddr>)> {
        let message = Message::from_vec(message).ok()?;
        let name = message.queries.first()?.name().to_ascii().to_lowercase();
        let name = name.trim_end_matches('.').to_owned();
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        *asked.entry(name.clone()).or_default() += 1;
        let mut sampled = self.sampled.lock().unwrap_or_else(PoisonError::into_inner);
        let sampled = sampled.as_mut().filter(|sampled| sampled.name == name)?;
        let Sampled {
            addresses,
            count,
            rng,
            ..
        } = sampled;
        Some((name, rng.choose_multiple(addresses.iter().copied(), *count)))
    }
}

/// The largest message over UDP.
const MESSAGE_MAX: usize = 64 * 1024;

/// Hands questions to the server inside, or not, as the manner is.
async fn at_the_door(
    outside: Arc<UdpSocket>,
    inside: SocketAddr,
    (door, zone): (Arc<Door>, Arc<InMemoryZoneHandler>),
) -> std::io::Result<()> {
    let mut buffer = vec![0; MESSAGE_MAX];
    loop {
        let (length, asker) = outside.recv_from(&mut buffer).await?;
        let mut message = buffer[..length].to_vec();
        if let Some((name, drawn)) = door.note(&message) {
            set(&zone, &name, &drawn, 0).await;
        }
        let manner = door.manner.load(Ordering::SeqCst);
        // RFC 1035 section 4.1.1: the count of additional records, of which EDNS is the one that questions have.
        let edns = length >= 12 && message[10..12] != [0, 0];
        if manner == Manner::Answers as u8 || manner == Manner::Old as u8 && !edns {
            pass_on(Arc::clone(&outside), inside, message, asker);
            continue;
        }
        door.refused.fetch_add(1, Ordering::SeqCst);
        if manner == Manner::Silent as u8 || length < 4 {
            continue;
        }
        // The same section: a response, and its code.
        message[2] |= 0x80;
        let code = match manner {
            manner if manner == Manner::Fails as u8 => 2,
            manner if manner == Manner::Refuses as u8 => 5,
            manner if manner == Manner::Old as u8 => 1,
            _ => 0,
        };
        message[3] = message[3] & 0xf0 | code;
        outside.send_to(&message, asker).await?;
    }
}

/// Hands one question to the server inside, and its answer back.
fn pass_on(outside: Arc<UdpSocket>, inside: SocketAddr, message: Vec<u8>, asker: SocketAddr) {
    tokio::spawn(async move {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        socket.send_to(&message, inside).await?;
        let mut answer = vec![0; MESSAGE_MAX];
        let length = socket.recv(&mut answer).await?;
        outside.send_to(&answer[..length], asker).await
    });
}

/// A UDP and a TCP socket with the same port.
pub(crate) async fn sockets() -> (UdpSocket, TcpListener) {
    crate::eventually("a port that is free for UDP and TCP", async || {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.ok()?;
        let tcp = TcpListener::bind(udp.local_addr().ok()?).await.ok()?;
        Some((udp, tcp))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The addresses in an answer to a question for A records, asked as plain bytes.
    async fn ask(server: &DnsServer, labels: &[&str]) -> (u8, Vec<Ipv4Addr>) {
        let mut question = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in labels {
            question.push(u8::try_from(label.len()).unwrap());
            question.extend_from_slice(label.as_bytes());
        }
        question.extend_from_slice(&[0, 0, 1, 0, 1]);
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.send_to(&question, server.address()).await.unwrap();
        let mut answer = [0; 512];
        let length = crate::within("an answer of the DNS server", socket.recv(&mut answer))
            .await
            .unwrap();
        let code = answer[3] & 0x0f;
        let count = usize::from(answer[7]);
        let mut rest = &answer[question.len()..length];
        let mut addresses = Vec::new();
        for _ in 0..count {
            // The name ends with an empty label or a pointer; type, class, TTL and length are 10 bytes.
            let name_end = rest.iter().position(|byte| *byte == 0 || *byte >= 0xc0).unwrap();
            let data = name_end + if rest[name_end] == 0 { 1 } else { 2 } + 10;
            addresses.push(Ipv4Addr::new(
                rest[data],
                rest[data + 1],
                rest[data + 2],
                rest[data + 3],
            ));
            rest = &rest[data + 4..];
        }
        (code, addresses)
    }

    #[tokio::test]
    async fn records_appear_change_and_go() {
        const NAME: &[&str] = &["reviews", "mesh", "test"];
        let server = DnsServer::start("mesh.test").await;
        assert_eq!(ask(&server, NAME).await, (3, vec![]));
        let (one, two) = (Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2));
        server.set("reviews.mesh.test", &[one.into()], 1).await;
        assert_eq!(ask(&server, NAME).await, (0, vec![one]));
        server
            .set("reviews.mesh.test", &[one.into(), two.into()], 1)
            .await;
        let (code, mut found) = ask(&server, NAME).await;
        found.sort();
        assert_eq!((code, found), (0, vec![one, two]));
        server.set("reviews.mesh.test", &[], 1).await;
        assert_eq!(ask(&server, NAME).await, (3, vec![]));
    }
}
