//! The servers of one list: who of them is asked, how many questions at once, and what their words mean.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::Resolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record as Line, RecordType};
use outrigger_config::discover::Family;
use tokio::sync::Semaphore;

use crate::upstream::discovery::answer::{
    Answer, AnsweredBy, Bad, Found, Good, Heard, Record, Service, Version, Why, Word,
};
use crate::upstream::discovery::asking::Kind;
use crate::upstream::discovery::asking::chain::{own, ttl};
use crate::upstream::discovery::asking::cut::Cuts;
use crate::upstream::discovery::asking::families::{Asked, LATE_MAX, ask_addresses};
use crate::upstream::discovery::asking::places::{AT_ONCE_MAX, Places};

/// Where there are several servers, one that is silent is left for the next after this.
const SERVER_MAX: Duration = Duration::from_secs(2);

/// The first server is tried again after this, when another answered in its place.
const PREFERRED_FOR: Duration = Duration::from_secs(30);

/// TCP is given so long when there is a truncated answer, which is then used: a firewall that lets nothing through to it is
/// silent, and what the answer names is better than what was known.
const TCP_MAX: Duration = Duration::from_secs(1);

/// A server that answered no question for AAAA is not waited for, for so long, where A tells that there is no address.
const SILENT_FOR: Duration = Duration::from_secs(30);

/// Why nothing is heard of a server at which nobody listens.
const UNREACHABLE: &str = "the server cannot be reached";

/// The servers of one list.
pub(super) struct Servers {
    each: Vec<Arc<Server>>,
    /// Each list has its own, so that one that is silent holds up no other.
    pub(super) places: Places,
    /// For questions that nobody waits for.
    late: Arc<Semaphore>,
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
pub(super) struct Server {
    address: SocketAddr,
    client: Client,
    /// Without EDNS.
    plain: Client,
    /// Whether it has shown that it does not understand EDNS.
    is_plain: AtomicBool,
    /// Since when it has been silent to questions for AAAA, if it is.
    silent_to_six: Mutex<Option<Instant>>,
}

/// A client of one server, shared by all names.
struct Client {
    resolver: Resolver<Cuts>,
    cuts: Cuts,
}

impl Client {
    fn new(address: SocketAddr, timeout: Duration, edns: bool) -> Result<Self, NetError> {
        let on_port = |mut connection: ConnectionConfig| {
            connection.port = address.port();
            connection
        };
        // A truncated answer over UDP is asked for again over TCP (RFC 7766 section 5).
        let connections = vec![on_port(ConnectionConfig::udp()), on_port(ConnectionConfig::tcp())];
        let config = NameServerConfig::new(address.ip(), true, connections);
        let config = ResolverConfig::from_parts(None, vec![], vec![config]);
        let cuts = Cuts::default();
        let mut builder = Resolver::builder_with_config(config, cuts.clone());
        *builder.options_mut() = options(timeout);
        // RFC 6891: so that larger answers come by UDP.
        builder.options_mut().edns0 = edns;
        Ok(Self {
            resolver: builder.build()?,
            cuts,
        })
    }

    /// The records that answer a question, and whether they are but some of them.
    async fn look_up(&self, name: Name, kind: RecordType) -> Result<(Vec<Line>, bool), Bad> {
        let question = self.cuts.watch((name.clone(), kind));
        let asked = name.clone();
        let found = tokio::select! {
            biased;
            found = self.resolver.lookup(name, kind) => found.map_err(bad),
            () = async {
                question.is_cut().await;
                tokio::time::sleep(TCP_MAX).await;
            } => Err(Bad { why: Why::TimedOut, ttl: None }),
        };
        let cut = question.take().filter(|records| !records.is_empty());
        match (found, cut) {
            (Ok(lookup), _) => Ok((own(lookup.answers().to_vec(), &asked, kind), false)),
            (Err(bad), Some(cut)) if !bad.why.is_negative() => Ok((own(cut, &asked, kind), true)),
            (Err(bad), _) => Err(bad),
        }
    }
}

impl Server {
    fn new(address: SocketAddr, timeout: Duration) -> Result<Self, NetError> {
        Ok(Self {
            address,
            client: Client::new(address, timeout, true)?,
            plain: Client::new(address, timeout, false)?,
            is_plain: AtomicBool::new(false),
            silent_to_six: Mutex::new(None),
        })
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    const fn client(&self, edns: bool) -> &Client {
        if edns { &self.client } else { &self.plain }
    }

    async fn ask(
        self: &Arc<Self>,
        kind: Kind,
        (name, family): (&str, Family),
        late: &Arc<Semaphore>,
    ) -> Asked {
        let ask = async |edns: bool| match kind {
            Kind::Addresses => ask_addresses(self, edns, (name, family), late).await,
            Kind::Services => self.services(edns, name).await.into(),
        };
        if !self.is_plain.load(Ordering::Relaxed) {
            let asked = ask(true).await;
            let why = asked.answer.as_ref().err().map(|bad| &bad.why);
            if why != Some(&Why::NotUnderstood) {
                return asked;
            }
        }
        // RFC 6891 section 7: FORMERR or NOTIMP is what servers say that do not know EDNS.
        let asked = ask(false).await;
        let understood = asked
            .answer
            .as_ref()
            .map_or_else(|bad| bad.why.is_negative(), |_| true);
        self.is_plain.store(understood, Ordering::Relaxed);
        asked
    }

    /// The addresses of one family.
    pub(super) async fn find(&self, edns: bool, name: Name, version: Version) -> Found {
        let found = match self.client(edns).look_up(name, record_type(version)).await {
            Err(bad) => Found::Nothing(bad),
            Ok((records, cut)) => {
                let addresses = addresses(&records);
                let ttl = ttl(&records);
                match addresses.is_empty() {
                    true => Found::Nothing(Bad { why: Why::Empty, ttl }),
                    false => Found::Addresses {
                        addresses,
                        ttl: ttl.unwrap_or_default(),
                        cut,
                    },
                }
            }
        };
        if version == Version::V6 {
            let is_silent = matches!(&found, Found::Nothing(bad) if bad.why == Why::TimedOut);
            *self.silent_to_six.lock().unwrap_or_else(PoisonError::into_inner) = is_silent.then(Instant::now);
        }
        found
    }

    /// Whether it was silent to a question for AAAA a short time ago.
    pub(super) fn is_silent_to_six(&self) -> bool {
        let since = *self.silent_to_six.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() < SILENT_FOR)
    }

    async fn services(&self, edns: bool, name: &str) -> Answer {
        let looked_up = Box::pin(self.client(edns).look_up(parsed(name)?, RecordType::SRV));
        let (lines, cut) = looked_up.await?;
        let records = lines.iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(Record::Service(Service {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                target: absolute(&srv.target),
            })),
            _ => None,
        });
        let records: Vec<Record> = records.collect();
        let ttl = ttl(&lines);
        if records.is_empty() {
            return Err(Bad { why: Why::Empty, ttl });
        }
        let mut heard = Heard::WHOLE;
        if cut {
            heard.four = Word::Cut;
        }
        let good = Good {
            records,
            ttl: ttl.unwrap_or_default(),
            heard,
            found_as: name.to_owned(),
            from: AnsweredBy::Server(self.address),
        };
        Ok(good.tidied())
    }
}

impl Servers {
    pub(super) fn new(servers: &[SocketAddr], timeout: Duration) -> Result<Self, NetError> {
        let timeout = match servers.len() {
            0 | 1 => timeout,
            _ => timeout.min(SERVER_MAX),
        };
        let server = |address: &SocketAddr| Server::new(*address, timeout).map(Arc::new);
        Ok(Self {
            each: servers.iter().map(server).collect::<Result<_, NetError>>()?,
            places: Places::new(),
            late: Arc::new(Semaphore::new(LATE_MAX)),
            preferred: Mutex::new((0, Instant::now())),
        })
    }

    /// Asks for these absolute names, one after the other until there is one.
    pub(super) async fn ask_each(
        &self,
        kind: Kind,
        names: &[String],
        family: Family,
        settled: Option<&str>,
    ) -> Asked {
        let mut worst: Option<Bad> = None;
        for name in names {
            let asked = self.ask(kind, name, family).await;
            let Err(bad) = asked.answer else { return asked };
            let failed = !bad.why.is_negative();
            if worst
                .as_ref()
                .is_none_or(|worst| failed && worst.why.is_negative())
            {
                worst = Some(bad);
            }
            if failed && settled == Some(name.as_str()) {
                break;
            }
        }
        Err(worst.unwrap_or(Bad {
            why: Why::NoSuchName,
            ttl: None,
        }))
        .into()
    }

    /// Asks for one absolute name, one server after the other until one speaks for it.
    async fn ask(&self, kind: Kind, name: &str, family: Family) -> Asked {
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
            let asked = self.each[place].ask(kind, (name, family), &self.late).await;
            match asked.answer {
                Err(bad) if !bad.why.is_negative() => failed = failed.or(Some(bad)),
                _ => {
                    if place != first {
                        let until = Instant::now() + PREFERRED_FOR;
                        *self.preferred.lock().unwrap_or_else(PoisonError::into_inner) = (place, until);
                    }
                    return asked;
                }
            }
        }
        Err(failed.unwrap_or_else(|| Bad {
            why: Why::Other("no server to ask".to_owned()),
            ttl: None,
        }))
        .into()
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
    // Each question is two, some that nobody waits for go on, and over TCP they share a connection: never "busy".
    options.max_active_requests = 4 * AT_ONCE_MAX;
    options
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

pub(super) fn addresses(records: &[Line]) -> Vec<IpAddr> {
    let data = records.iter().map(|record| &record.data);
    data.filter_map(RData::ip_addr).collect()
}

pub(super) fn absolute(name: &Name) -> String {
    let text = name.to_ascii();
    if text.ends_with('.') { text } else { text + "." }
}

/// Underscores are let through: container platforms make names with them.
pub(super) fn parsed(name: &str) -> Result<Name, Bad> {
    Name::from_ascii(name).map_err(|error| bad(error.into()))
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
        // A closed port (ECONNREFUSED) comes as the first, for hickory says of several failures the least telling.
        NetError::NoConnections => (Why::Other(UNREACHABLE.to_owned()), None),
        NetError::Io(error) if error.kind() == ErrorKind::ConnectionRefused => {
            (Why::Other(UNREACHABLE.to_owned()), None)
        }
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
