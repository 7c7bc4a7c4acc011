//! The servers of one list: who of them is asked, how many questions at once, and what their words mean.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use outrigger_config::discover::Family;
use tokio::sync::Semaphore;

use crate::upstream::discovery::answer::{
    Answer, AnsweredBy, Bad, Good, Part, Record, Service, Version, Why, joined,
};
use crate::upstream::discovery::asking::Kind;

/// Questions under way at the servers of one list: thousands of names are asked within seconds, and no server is flooded.
/// Each list has its own, so that one that is silent holds up no other.
const AT_ONCE_MAX: usize = 32;

/// Where there are several servers, one that is silent is left for the next after this.
const SERVER_MAX: Duration = Duration::from_secs(2);

/// The first server is tried again after this, when another answered in its place.
const PREFERRED_FOR: Duration = Duration::from_secs(30);

/// The servers of one list.
pub(super) struct Servers {
    each: Vec<Server>,
    pub(super) places: Semaphore,
    /// The server that is asked first, and until when.
    preferred: Mutex<(usize, Instant)>,
}

impl std::fmt::Debug for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let servers = self.each.iter().map(|server| server.address);
        f.debug_list().entries(servers).finish()
    }
}

/// One server. It has a client of its own: which one answered is worth knowing, and one that fails is left for the next,
/// which a client with several does for silence alone.
struct Server {
    address: SocketAddr,
    client: TokioResolver,
    /// Without EDNS.
    plain: TokioResolver,
    /// Whether it has shown that it does not understand EDNS.
    is_plain: AtomicBool,
}

impl Server {
    fn new(address: SocketAddr, timeout: Duration) -> Result<Self, NetError> {
        let client = |edns: bool| {
            let on_port = |mut connection: ConnectionConfig| {
                connection.port = address.port();
                connection
            };
            // A truncated answer over UDP is asked for again over TCP (RFC 7766 section 5).
            let connections = vec![on_port(ConnectionConfig::udp()), on_port(ConnectionConfig::tcp())];
            let config = NameServerConfig::new(address.ip(), true, connections);
            let config = ResolverConfig::from_parts(None, vec![], vec![config]);
            let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            *builder.options_mut() = options(timeout);
            // RFC 6891: so that larger answers come by UDP.
            builder.options_mut().edns0 = edns;
            builder.build()
        };
        Ok(Self {
            address,
            client: client(true)?,
            plain: client(false)?,
            is_plain: AtomicBool::new(false),
        })
    }

    async fn ask(&self, kind: Kind, name: &str, family: Family) -> Answer {
        let from = AnsweredBy::Server(self.address);
        let ask = async |client: &TokioResolver| match kind {
            Kind::Addresses => ask_addresses(client, name, family, &from).await,
            Kind::Services => ask_services(client, name, &from).await,
        };
        if !self.is_plain.load(Ordering::Relaxed) {
            let answer = ask(&self.client).await;
            let why = answer.as_ref().err().map(|bad| &bad.why);
            if why != Some(&Why::NotUnderstood) {
                return answer;
            }
        }
        // RFC 6891 section 7: FORMERR or NOTIMP is what servers say that do not know EDNS.
        let answer = ask(&self.plain).await;
        let understood = answer.as_ref().map_or_else(|bad| bad.why.is_negative(), |_| true);
        self.is_plain.store(understood, Ordering::Relaxed);
        answer
    }
}

impl Servers {
    pub(super) fn new(servers: &[SocketAddr], timeout: Duration) -> Result<Self, NetError> {
        let timeout = match servers.len() {
            0 | 1 => timeout,
            _ => timeout.min(SERVER_MAX),
        };
        let server = |address: &SocketAddr| Server::new(*address, timeout);
        Ok(Self {
            each: servers.iter().map(server).collect::<Result<_, NetError>>()?,
            places: Semaphore::new(AT_ONCE_MAX),
            preferred: Mutex::new((0, Instant::now())),
        })
    }

    /// Asks for one absolute name, one server after the other until one speaks for it.
    pub(super) async fn ask(&self, kind: Kind, name: &str, family: Family) -> Answer {
        let count = self.each.len();
        let first = {
            let preferred = self.preferred.lock().unwrap_or_else(PoisonError::into_inner);
            if Instant::now() < preferred.1 {
                preferred.0
            } else {
                0
            }
        };
        let mut failed = None;
        for step in 0..count {
            let place = (first + step) % count;
            let answer = self.each[place].ask(kind, name, family).await;
            match answer {
                Err(bad) if !bad.why.is_negative() => failed = failed.or(Some(bad)),
                spoken => {
                    if place != first {
                        let until = Instant::now() + PREFERRED_FOR;
                        *self.preferred.lock().unwrap_or_else(PoisonError::into_inner) = (place, until);
                    }
                    return spoken;
                }
            }
        }
        Err(failed.unwrap_or_else(|| Bad {
            why: Why::Other("no server to ask".to_owned()),
            ttl: None,
        }))
    }
}

fn options(timeout: Duration) -> ResolverOpts {
    let mut options = ResolverOpts::default();
    // What is remembered is remembered in one place: two clocks would double the age of what is believed.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = timeout;
    // Over UDP a question is repeated within that time; more would only hold up the next server.
    options.attempts = 0;
    // Those of the chain of names too, whose TTLs count.
    options.preserve_intermediates = true;
    // Each question is two, and over TCP they share a connection: never "busy".
    options.max_active_requests = 4 * AT_ONCE_MAX;
    options
}

async fn ask_addresses(client: &TokioResolver, text: &str, family: Family, from: &AnsweredBy) -> Answer {
    let name = parsed(text)?;
    let one = async |version: Version| -> Part {
        let found = client.lookup(name.clone(), record_type(version)).await;
        let found = found.map_err(bad).and_then(|lookup| {
            let addresses = addresses(&lookup);
            let ttl = ttl(&lookup);
            match addresses.is_empty() {
                true => Err(Bad {
                    why: Why::Empty,
                    ttl: Some(ttl),
                }),
                false => Ok((addresses, ttl)),
            }
        });
        (version, found)
    };
    let parts = match versions(family) {
        [first, second] => {
            let (first, second) = tokio::join!(one(*first), one(*second));
            vec![first, second]
        }
        only => {
            let mut parts = Vec::with_capacity(only.len());
            for version in only {
                parts.push(one(*version).await);
            }
            parts
        }
    };
    joined(parts, text, from)
}

async fn ask_services(client: &TokioResolver, name: &str, from: &AnsweredBy) -> Answer {
    let lookup = client.lookup(parsed(name)?, RecordType::SRV).await;
    let lookup = lookup.map_err(bad)?;
    let records = lookup.answers().iter().filter_map(|record| match &record.data {
        RData::SRV(srv) => Some(Record::Service(Service {
            priority: srv.priority,
            weight: srv.weight,
            port: srv.port,
            target: absolute(&srv.target),
        })),
        _ => None,
    });
    let records: Vec<Record> = records.collect();
    if records.is_empty() {
        return Err(Bad {
            why: Why::Empty,
            ttl: Some(ttl(&lookup)),
        });
    }
    let good = Good {
        records,
        ttl: ttl(&lookup),
        unanswered: None,
        found_as: name.to_owned(),
        from: from.clone(),
    };
    Ok(good.tidied())
}

/// The record types of a family, the preferred one first.
pub(super) const fn versions(family: Family) -> &'static [Version] {
    match family {
        Family::Any => &[Version::V4, Version::V6],
        Family::V4 => &[Version::V4],
        Family::V6 => &[Version::V6],
        Family::PreferV6 => &[Version::V6, Version::V4],
    }
}

pub(super) const fn record_type(version: Version) -> RecordType {
    match version {
        Version::V4 => RecordType::A,
        Version::V6 => RecordType::AAAA,
    }
}

pub(super) fn addresses(lookup: &Lookup) -> Vec<IpAddr> {
    let data = lookup.answers().iter().map(|record| &record.data);
    data.filter_map(RData::ip_addr).collect()
}

pub(super) fn absolute(name: &Name) -> String {
    let text = name.to_ascii();
    if text.ends_with('.') { text } else { text + "." }
}

/// Underscores are let through: container platforms make names with them.
fn parsed(name: &str) -> Result<Name, Bad> {
    Name::from_ascii(name).map_err(|error| bad(error.into()))
}

/// The shortest of an answer, the names of its chain included.
fn ttl(lookup: &Lookup) -> Duration {
    let shortest = lookup.answers().iter().map(|record| record.ttl).min();
    Duration::from_secs(shortest.unwrap_or_default().into())
}

pub(super) fn bad(error: NetError) -> Bad {
    let (why, ttl) = match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            let why = match none.response_code {
                ResponseCode::NXDomain => Why::NoSuchName,
                ResponseCode::NoError => Why::Empty,
                code => of_code(code),
            };
            (why, none.negative_ttl)
        }
        NetError::Dns(DnsError::ResponseCode(code)) => (of_code(code), None),
        NetError::Timeout => (Why::TimedOut, None),
        other => (Why::Other(other.to_string()), None),
    };
    let ttl = ttl.map(|seconds| Duration::from_secs(seconds.into()));
    Bad { why, ttl }
}

fn of_code(code: ResponseCode) -> Why {
    match code {
        ResponseCode::ServFail => Why::ServerFailed,
        ResponseCode::Refused => Why::Refused,
        ResponseCode::FormErr | ResponseCode::NotImp => Why::NotUnderstood,
        other => Why::Other(other.to_string()),
    }
}
