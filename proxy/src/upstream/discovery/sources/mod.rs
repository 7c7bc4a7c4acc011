//! One set of endpoints out of all that the sources of a backend know. Pure: what is known and how endpoints stand are
//! arguments.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use outrigger_config::discover::{DnsMode, Family};
use outrigger_config::service::StaticEndpoint;
use outrigger_config::units;

use crate::upstream::discovery::answer::{Record, Service};
use crate::upstream::discovery::directory::{Known, Name};
use crate::upstream::discovery::memory::Remembered;

/// What a weight of SRV is multiplied by, so that there is room for shares of it.
const WEIGHT_UNIT: u32 = 100;

/// The most endpoints of one backend. SRV records multiply: each of thousands may lead to thousands of addresses.
pub(super) const ENDPOINTS_MAX: usize = 4096;

/// The most hosts that the SRV records of one name lead to: each is asked for by itself.
pub(super) const TARGETS_MAX: usize = 256;

/// What one source knows.
#[derive(Debug)]
pub(super) enum Part<'a> {
    /// Endpoints that are written down.
    Listed(&'a [StaticEndpoint]),
    /// The addresses of a name.
    Addresses {
        known: About<'a>,
        port: u16,
        mode: DnsMode,
    },
    /// Places of a service, and what is known of the names that they are at.
    Services {
        known: About<'a>,
        targets: HashMap<&'a str, About<'a>>,
    },
}

/// What is known of one name.
#[derive(Clone, Copy, Debug)]
pub(super) struct About<'a> {
    pub(super) name: &'a str,
    pub(super) family: Family,
    pub(super) keep: std::time::Duration,
    pub(super) known: &'a Known,
}

impl<'a> About<'a> {
    pub(super) fn of(name: &'a Name, known: &'a Known) -> Self {
        Self {
            name: &name.key.question.name,
            family: name.key.question.family,
            keep: name.key.question.keep,
            known,
        }
    }
}

/// How an endpoint of the cluster stands that is known by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stands {
    /// There is none yet.
    Unknown,
    /// It takes requests.
    Well,
    /// It is ejected, fails its check, or refuses connections.
    Ill,
}

/// The endpoints of a backend.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Joined {
    pub(super) endpoints: Vec<StaticEndpoint>,
    /// How many of them are there only to be noticed when they are well again, because others stand in for them.
    pub(super) awaited: usize,
    /// Whether there are others that would take their place.
    pub(super) has_standbys: bool,
    /// Those of them that SRV records name, with their priorities.
    pub(super) standbys: Vec<(SocketAddr, u16)>,
    /// How many are not used because there are more than there may be, at least.
    pub(super) left_out: usize,
    /// Why there is none, if there is none.
    pub(super) absence: String,
}

/// Joins the parts. `left`: the addresses that were dropped because an answer lacked them and their endpoints were ill; they
/// come in again when an answer names them.
pub(super) fn join(
    parts: &[Part<'_>],
    stands: impl Fn(SocketAddr) -> Stands,
    left: &mut HashSet<SocketAddr>,
) -> Joined {
    let (mut joined, mut seen) = (Joined::default(), HashSet::new());
    let mut absences = Vec::new();
    let mut leaving = HashSet::new();
    for part in parts {
        let mut stays = |place: &Place| {
            let goes = place.is_lacked && (left.contains(&place.at) || stands(place.at) == Stands::Ill);
            if goes {
                leaving.insert(place.at);
            }
            !goes
        };
        match part {
            Part::Listed(endpoints) => joined.add(endpoints.iter().copied(), &mut seen),
            Part::Addresses {
                known,
                port,
                mode: DnsMode::Logical,
            } => {
                joined.add_one_of(
                    &in_order(known, *port),
                    (&stands, left),
                    (&mut leaving, &mut seen),
                );
                absences.extend(absence(known, "DNS"));
            }
            Part::Addresses {
                known,
                port,
                mode: DnsMode::Strict,
            } => {
                let found = places(known, *port).into_iter().filter(&mut stays);
                joined.add(found.map(|place| StaticEndpoint::from(place.at)), &mut seen);
                absences.extend(absence(known, "DNS"));
            }
            Part::Services { known, targets } => {
                let (groups, left_out) = groups(known, targets, &mut stays);
                joined.left_out += left_out;
                joined.add_groups(groups, &stands, &mut seen);
                absences.extend(absence(known, "SRV"));
                absences.extend(targets.values().filter_map(|target| absence(target, "DNS")));
            }
        }
    }
    *left = leaving;
    if joined.endpoints.is_empty() {
        absences.sort_unstable();
        joined.absence = match absences.is_empty() {
            true => "no address is listed".to_owned(),
            false => absences.join("; "),
        };
    }
    joined
}

impl Joined {
    fn add(&mut self, found: impl IntoIterator<Item = StaticEndpoint>, seen: &mut HashSet<SocketAddr>) {
        for endpoint in found {
            if seen.contains(&endpoint.address) {
                continue;
            }
            if self.endpoints.len() == ENDPOINTS_MAX {
                self.left_out += 1;
                continue;
            }
            seen.insert(endpoint.address);
            self.endpoints.push(endpoint);
        }
    }

    /// The first that is not ill. One that was found ill is passed by for as long as it is named beside others.
    fn add_one_of(
        &mut self,
        candidates: &[SocketAddr],
        (stands, left): (impl Fn(SocketAddr) -> Stands, &HashSet<SocketAddr>),
        (leaving, seen): (&mut HashSet<SocketAddr>, &mut HashSet<SocketAddr>),
    ) {
        self.has_standbys |= candidates.len() > 1;
        let is_ill = |at: &&SocketAddr| left.contains(*at) || stands(**at) == Stands::Ill;
        let well = candidates.iter().find(|at| !is_ill(at));
        if well.is_some() {
            leaving.extend(candidates.iter().filter(is_ill));
        }
        let chosen = well.or_else(|| candidates.first());
        self.add(chosen.map(|at| StaticEndpoint::from(*at)), seen);
    }

    /// RFC 2782: the places of the lowest priority that can be reached, all of them while one of them is well. Those before
    /// it stay in the set, ill as they are, so that it is noticed when they are well again.
    fn add_groups(
        &mut self,
        groups: BTreeMap<u16, Vec<StaticEndpoint>>,
        stands: impl Fn(SocketAddr) -> Stands,
        seen: &mut HashSet<SocketAddr>,
    ) {
        self.has_standbys |= groups.len() > 1;
        let mut ill = 0;
        let mut groups = groups.into_iter();
        while let Some((_, group)) = groups.next() {
            let reachable = group
                .iter()
                .any(|endpoint| stands(endpoint.address) != Stands::Ill);
            let before = self.endpoints.len();
            self.add(group, seen);
            if reachable {
                self.awaited += ill;
                let standing_by = groups.flat_map(|(priority, group)| {
                    let addresses = group.into_iter().map(|endpoint| endpoint.address);
                    addresses.map(move |address| (address, priority))
                });
                self.standbys
                    .extend(standing_by.filter(|(address, _)| !seen.contains(address)));
                return;
            }
            ill += self.endpoints.len() - before;
        }
        // None is well: all are in it alike.
    }
}

/// An address and port that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    at: SocketAddr,
    /// Whether the last answer lacked it.
    is_lacked: bool,
}

/// The places that a name stands for.
fn places(known: &About<'_>, port: u16) -> Vec<Place> {
    let six_alone = known.is_six_alone();
    let used = known
        .used()
        .filter(|(_, address)| address.is_ipv6() || !six_alone);
    let places = used.map(|(known, address)| Place {
        at: (address, port).into(),
        is_lacked: known.missed > 0,
    });
    let mut places: Vec<Place> = places.collect();
    // Servers turn the records round for every question; the order here must not make a new set.
    places.sort_unstable();
    places
}

/// The places that the last answer of a name led to, in its order, as far as they are used; where it led to none of them, all
/// that are used: a family that is preferred may be known from an earlier answer alone.
fn in_order(known: &About<'_>, port: u16) -> Vec<SocketAddr> {
    let places = places(known, port);
    let used: HashSet<SocketAddr> = places.iter().map(|place| place.at).collect();
    let last = known.known.memory.last().filter_map(Record::address);
    let last = last.map(|address| SocketAddr::new(address, port));
    let found: Vec<SocketAddr> = last.filter(|at| used.contains(at)).collect();
    match found.is_empty() {
        true => places.into_iter().map(|place| place.at).collect(),
        false => found,
    }
}

/// The hosts that SRV records lead to, those of the lowest priorities first, no more than are followed; and how many are
/// left out.
pub(super) fn hosts_of(records: &[Remembered]) -> (HashSet<&str>, usize) {
    let services = records.iter().filter_map(|known| match &known.record {
        Record::Service(service) if service.target != "." => Some(service),
        Record::Service(_) | Record::Address(_) => None,
    });
    let mut services: Vec<&Service> = services.collect();
    services.sort_by_key(|service| service.priority);
    let (mut hosts, mut others) = (HashSet::new(), HashSet::new());
    for service in services {
        let host = service.target.as_str();
        if hosts.contains(host) || hosts.len() < TARGETS_MAX {
            hosts.insert(host);
        } else {
            others.insert(host);
        }
    }
    (hosts, others.len())
}

/// The places of a service by their priority, the lowest first, no more than there may be of all; and how many are left
/// out, at least.
fn groups(
    known: &About<'_>,
    targets: &HashMap<&str, About<'_>>,
    mut stays: impl FnMut(&Place) -> bool,
) -> (BTreeMap<u16, Vec<StaticEndpoint>>, usize) {
    let services = known.known.memory.records().iter();
    let services = services.filter_map(|remembered| match &remembered.record {
        Record::Service(service) => Some((remembered, service)),
        Record::Address(_) => None,
    });
    let mut services: Vec<(&Remembered, &Service)> = services.collect();
    services.sort_by_key(|(_, service)| service.priority);
    let mut groups: BTreeMap<u16, Vec<StaticEndpoint>> = BTreeMap::new();
    let (mut room, mut left_out) = (ENDPOINTS_MAX, 0);
    for (remembered, service) in services {
        let Some(target) = targets.get(service.target.as_str()) else {
            continue;
        };
        if room == 0 {
            left_out += 1;
            continue;
        }
        let mut at = places(target, service.port);
        at.retain_mut(|place| {
            place.is_lacked |= remembered.missed > 0;
            stays(place)
        });
        // Of one priority all without weight are equal; beside others they have a very small share (RFC 2782).
        let weight = u32::from(service.weight).saturating_mul(WEIGHT_UNIT).max(1);
        // What a host has of it is shared by its addresses.
        let share = weight / u32::try_from(at.len()).unwrap_or(u32::MAX).max(1);
        left_out += at.len().saturating_sub(room);
        at.truncate(room);
        room -= at.len();
        let group = groups.entry(service.priority).or_default();
        group.extend(at.into_iter().map(|place| StaticEndpoint {
            address: place.at,
            weight: share.max(1),
        }));
    }
    groups.retain(|_, group| !group.is_empty());
    let weights = groups.values().flatten().map(|endpoint| endpoint.weight);
    let divisor = weights.fold(0, greatest_common_divisor).max(1);
    for group in groups.values_mut() {
        group.sort_unstable_by_key(|endpoint| endpoint.address);
        for endpoint in group {
            endpoint.weight /= divisor;
        }
    }
    (groups, left_out)
}

const fn greatest_common_divisor(mut one: u32, mut other: u32) -> u32 {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

impl<'a> About<'a> {
    /// Whether its IPv4 addresses do not count, because it has others.
    fn is_six_alone(&self) -> bool {
        self.family == Family::PreferV6 && self.used().any(|(_, address)| address.is_ipv6())
    }

    /// The addresses that are known of it.
    fn used(&self) -> impl Iterator<Item = (&'a Remembered, IpAddr)> + use<'a> {
        let records = self.known.memory.records().iter();
        records.filter_map(|known| Some((known, known.record.address()?)))
    }
}

/// Why a name stands for nothing, if it does.
fn absence(about: &About<'_>, what: &str) -> Option<String> {
    let About {
        name, keep, known, ..
    } = about;
    if !known.memory.records().is_empty() {
        let gone = known.memory.records().iter().all(|known| match &known.record {
            // RFC 2782: a target of `.` says that the service is decidedly not there.
            Record::Service(service) => service.target == ".",
            Record::Address(_) => false,
        });
        return gone.then(|| format!("{what} for {name} says that there is no such service"));
    }
    let Some(failing) = known.memory.failing() else {
        return Some(format!("{what} for {name} has not answered yet"));
    };
    let since = time_of_day(failing.since_clock);
    let kept = match failing.is_over {
        true => format!(" (kept for {})", units::Duration(*keep)),
        false => String::new(),
    };
    Some(format!("{what} for {name}: {} since {since}{kept}", failing.why))
}

/// The time of day in UTC, as `12:01:07`.
pub(super) fn time_of_day(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let second = since.as_secs() % (24 * 3600);
    format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests;
