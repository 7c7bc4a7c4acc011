//! How this machine resolves names: what its resolv.conf and hosts files say, and what follows for one name. Pure, but for
//! reading the files.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use hickory_resolver::Hosts;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::Name;
use outrigger_config::discover::Question;

use crate::upstream::discovery::answer::{AnsweredBy, FOR_EVER, Good, Heard, Record};
use crate::upstream::discovery::asking::servers::{absolute, addresses, record_type, versions};

/// The shortest time that one try is given, whatever resolv.conf says.
const TRY_MIN: Duration = Duration::from_secs(1);

/// The longest: what the C library allows.
const TRY_MAX: Duration = Duration::from_secs(30);

/// Search domains that are used: each costs a question for a name that is none of theirs. Kubernetes allows 32.
const SEARCH_MAX: usize = 32;

/// The files that say how the system resolves names.
#[derive(Clone, Debug)]
pub struct SystemFiles {
    /// `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// `/etc/hosts`.
    pub hosts: PathBuf,
}

impl Default for SystemFiles {
    fn default() -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
        }
    }
}

/// What the files say.
#[derive(Debug)]
pub(super) struct System {
    pub(super) servers: Vec<SocketAddr>,
    pub(super) search: Vec<String>,
    pub(super) ndots: usize,
    /// How long one try may take.
    pub(super) timeout: Duration,
    hosts: Hosts,
}

impl System {
    /// Reads both texts. What cannot be understood is as if it were not there: other programs of the machine go on too.
    fn of(resolv_conf: &str, hosts: &str) -> Self {
        let mut read = Hosts::default();
        if let Err(error) = read.read_hosts_conf(hosts.as_bytes()) {
            tracing::warn!(%error, "the hosts file cannot be read to its end");
        }
        // resolv.conf(5): without a name server the one of this machine is asked. Said here, for the parser refuses such a
        // file as a whole, with its search domains.
        let names_server = |line: &str| line.trim_start().starts_with("nameserver");
        let resolv_conf = match resolv_conf.lines().any(names_server) {
            true => resolv_conf.to_owned(),
            false => format!("{resolv_conf}\nnameserver {}\n", Ipv4Addr::LOCALHOST),
        };
        let (config, options) =
            hickory_resolver::system_conf::parse_resolv_conf(resolv_conf).unwrap_or_default();
        // Without a `search` line the domain of the host is searched, as the C library does.
        let domain = config.domain().filter(|_| config.search().is_empty());
        let search = config.search().iter().chain(domain);
        let servers = config
            .name_servers()
            .iter()
            .map(|server| SocketAddr::new(server.ip, 53));
        let mut servers: Vec<SocketAddr> = servers.collect();
        if servers.is_empty() {
            servers.push((Ipv4Addr::LOCALHOST, 53).into());
        }
        Self {
            servers,
            search: search.take(SEARCH_MAX).map(absolute).collect(),
            ndots: options.ndots,
            timeout: options.timeout.clamp(TRY_MIN, TRY_MAX),
            hosts: read,
        }
    }
}

/// What shows that a file changed, without reading it.
pub(super) type Mark = Option<(SystemTime, u64)>;

pub(super) fn marks(files: &SystemFiles) -> [Mark; 2] {
    [&files.resolv_conf, &files.hosts].map(|path| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.modified().ok()?, file.len()))
    })
}

pub(super) fn read(files: &SystemFiles) -> System {
    let text = |path| std::fs::read_to_string(path).unwrap_or_default();
    System::of(&text(&files.resolv_conf), &text(&files.hosts))
}

/// The names to ask for, in their order: absolute ones, each once.
pub(super) fn names(name: &str, search: &[String], ndots: usize) -> Vec<String> {
    if name.ends_with('.') {
        return vec![name.to_owned()];
    }
    let absolute = format!("{name}.");
    let searched = search.iter().map(|domain| match domain.as_str() {
        "." => absolute.clone(),
        domain => format!("{name}.{domain}"),
    });
    let first = name.matches('.').count() >= ndots.min(1);
    let mut names: Vec<String> = searched.collect();
    names.insert(if first { 0 } else { names.len() }, absolute);
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// What needs no question: a name that is an address, or stands in the hosts file.
pub(super) fn without_dns(system: &System, question: &Question) -> Option<Good> {
    let wanted = versions(question.family);
    let good = |records: Vec<Record>, from| Good {
        records,
        ttl: FOR_EVER,
        heard: Heard::WHOLE,
        found_as: question.name.clone(),
        from,
    };
    if let Ok(address) = question.name.parse::<IpAddr>() {
        return Some(good(vec![Record::Address(address)], AnsweredBy::Itself));
    }
    let name = Name::from_ascii(&question.name).ok()?;
    let listed = wanted.iter().flat_map(|version| {
        let query = Query::query(name.clone(), record_type(*version));
        let lookup = system.hosts.lookup_static_host(&query);
        lookup
            .map(|lookup| addresses(lookup.answers()))
            .unwrap_or_default()
    });
    let records: Vec<Record> = listed.map(Record::Address).collect();
    (!records.is_empty()).then(|| good(records, AnsweredBy::Hosts))
}

#[cfg(test)]
mod tests {
    use outrigger_config::discover::Family;

    use super::*;

    #[test]
    fn a_name_with_a_dot_is_asked_for_as_it_stands_first_and_one_that_ends_with_a_dot_never_otherwise() {
        let search = [
            "shop.svc.cluster.local.".to_owned(),
            "svc.cluster.local.".to_owned(),
        ];
        for (name, ndots, expected) in [
            ("reviews.", 5, &["reviews."][..]),
            ("reviews.shop.", 5, &["reviews.shop."]),
            (
                "reviews.shop",
                5,
                &[
                    "reviews.shop.",
                    "reviews.shop.shop.svc.cluster.local.",
                    "reviews.shop.svc.cluster.local.",
                ],
            ),
            (
                "reviews",
                1,
                &[
                    "reviews.shop.svc.cluster.local.",
                    "reviews.svc.cluster.local.",
                    "reviews.",
                ],
            ),
            (
                "reviews",
                0,
                &[
                    "reviews.",
                    "reviews.shop.svc.cluster.local.",
                    "reviews.svc.cluster.local.",
                ],
            ),
        ] {
            assert_eq!(names(name, &search, ndots), expected, "{name} {ndots}");
        }
        assert_eq!(names("a", &[".".to_owned()], 1), ["a."]);
    }

    #[test]
    fn the_files_of_the_system_are_read_as_the_c_library_reads_them() {
        let system = System::of(
            "nameserver 10.0.0.2\nnameserver ::1\nsearch a.internal b.internal.\noptions ndots:3 timeout:1\n",
            "10.0.0.9 db db.internal # the old one\n::9 db\n",
        );
        let servers: [SocketAddr; 2] = ["10.0.0.2:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(system.servers, servers);
        assert_eq!(system.search, ["a.internal.", "b.internal."]);
        assert_eq!((system.ndots, system.timeout), (3, Duration::from_secs(1)));
        let ask = |name: &str, family| {
            let question = Question {
                name: name.to_owned(),
                family,
                floor: Duration::ZERO,
                ceiling: Duration::ZERO,
                keep: Duration::ZERO,
                servers: Vec::new(),
            };
            without_dns(&system, &question).map(|good| good.records.len())
        };
        assert_eq!(ask("db", Family::Any), Some(2));
        assert_eq!(ask("DB.internal.", Family::Any), Some(1));
        assert_eq!(ask("db", Family::V6), Some(1));
        assert_eq!(ask("10.1.2.3", Family::V4), Some(1));
        assert_eq!(ask("elsewhere", Family::Any), None);
        let searching = System::of("search a.internal\noptions timeout:0\n", "");
        assert_eq!((searching.search.len(), searching.timeout), (1, TRY_MIN));
        assert_eq!(searching.servers, ["127.0.0.1:53".parse().unwrap()]);
        let nothing = System::of("", "");
        assert_eq!(nothing.servers, ["127.0.0.1:53".parse().unwrap()]);
    }
}
