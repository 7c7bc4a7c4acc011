//! The checks of where endpoints are found.

use super::super::node::Fault;
use super::endpoints::listed;
use super::names::host;
use super::{At, exactly_one};
use crate::discover::{Discover, DiscoverDefaults, DiscoverSource, Refresh};
use crate::units::Duration;

/// The most sources of one backend: each is asked by itself, and a backend of more is several.
const SOURCES_MAX: usize = 16;

/// The most servers: of more than a few the others are never asked.
const SERVERS_MAX: usize = 8;

/// Asking more often than this is load, not a question.
const FLOOR_MIN: Duration = Duration::from_millis(100);

/// The highest floor: an address that has gone is served for as long.
const FLOOR_MAX: Duration = Duration::from_secs(3600);

/// The highest ceiling: what is asked more rarely than once a day is not looked up but written down.
const CEILING_MAX: Duration = Duration::from_secs(24 * 3600);

/// The longest memory: after a week an address has another owner.
const KEEP_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// The fields that say how DNS is asked.
const OF_DNS: [&str; 4] = ["family", "refresh", "keep", "servers"];

/// Checks where the endpoints of a backend are found.
pub(super) fn discover(at: &At<'_>, said: &Discover, faults: &mut Vec<Fault>) {
    if !at.is_list() {
        let nothing = DiscoverSource::default();
        source(at, said.sources.first().unwrap_or(&nothing), faults);
        return;
    }
    let count = at.node.items().len();
    if count == 0 {
        faults.push(at.fault("the list is empty; a backend needs at least one source of endpoints"));
    } else if count > SOURCES_MAX {
        faults.push(at.fault(format!("{count} sources; at most {SOURCES_MAX} are allowed")));
    }
    let items: Vec<At<'_>> = at.items().collect();
    for (place, (item, said_here)) in items.iter().zip(&said.sources).enumerate() {
        source(item, said_here, faults);
        let before = said.sources[..place].iter().zip(&items);
        if let Some((_, first)) = before.into_iter().find(|(earlier, _)| *earlier == said_here)
            && item.is_whole()
        {
            let line = first.mark().line;
            faults.push(item.fault(format!("this source is listed already, on line {line}")));
        }
    }
}

fn source(at: &At<'_>, said: &DiscoverSource, faults: &mut Vec<Fault>) {
    exactly_one(at, &["static", "dns", "srv"], faults);
    listed(at, said.addresses.as_deref().unwrap_or_default(), faults);
    for (key, name) in [("dns", &said.dns), ("srv", &said.srv)] {
        if let (Some(at), Some(name)) = (at.field(key), name) {
            faults.extend(host(name.strip_suffix('.').unwrap_or(name)).map(|why| at.fault(why)));
        }
    }
    let given = |key: &str| at.given(&[key]) == 1;
    let (listed, dns, srv) = (given("static"), given("dns"), given("srv"));
    if let Some(at) = at.field("port") {
        if said.port == Some(0) {
            faults.push(at.fault("port 0 cannot be reached; expected 1 to 65535"));
        }
        if listed && !dns {
            faults.push(at.fault("`port` goes with `dns`; a static endpoint has its port in its address"));
        } else if srv && !dns {
            faults.push(at.fault("`port` goes with `dns`; SRV records have the port in them"));
        }
    }
    if dns && !given("port") && !listed && !srv {
        faults.push(at.fault("the field `port` is missing; DNS finds addresses only"));
    }
    if let Some(at) = at.field("mode")
        && !dns
        && (listed || srv)
    {
        faults.push(at.fault("`mode` goes with `dns`: it says what is made of the addresses of one name"));
    }
    for key in OF_DNS {
        if let Some(at) = at.field(key)
            && listed
            && !dns
            && !srv
        {
            faults.push(at.fault(format!(
                "`{key}` goes with `dns` or `srv`; nothing is asked for static endpoints"
            )));
        }
    }
    asking(at, (said.refresh, said.keep, said.servers.as_deref()), faults);
}

/// Checks the mesh's defaults.
pub(super) fn defaults(at: &At<'_>, said: Option<&DiscoverDefaults>, faults: &mut Vec<Fault>) {
    if let (Some(at), Some(said)) = (at.field("discover"), said) {
        asking(&at, (said.refresh, said.keep, said.servers.as_deref()), faults);
    }
}

/// How DNS is asked.
type Asking<'a> = (
    Option<Refresh>,
    Option<Duration>,
    Option<&'a [std::net::SocketAddr]>,
);

fn asking(at: &At<'_>, (refresh, keep, servers): Asking<'_>, faults: &mut Vec<Fault>) {
    if let (Some(at), Some(Refresh { floor, ceiling })) = (at.field("refresh"), refresh) {
        for (key, time, most) in [("floor", floor, FLOOR_MAX), ("ceiling", ceiling, CEILING_MAX)] {
            if let (Some(at), Some(time)) = (at.field(key), time)
                && !(FLOOR_MIN..=most).contains(&time)
            {
                faults.push(at.fault(format!("{time} is out of bounds; expected {FLOOR_MIN} to {most}")));
            }
        }
        if let (Some(floor), Some(ceiling)) = (floor, ceiling)
            && floor > ceiling
            && at.is_whole()
        {
            faults.push(at.fault(format!(
                "not sooner than after {floor} and not later than after {ceiling}: `floor` must not be longer than `ceiling`"
            )));
        }
    }
    if let (Some(at), Some(keep)) = (at.field("keep"), keep)
        && keep > KEEP_MAX
    {
        faults.push(at.fault(format!(
            "{keep} is too long; at most {KEEP_MAX}, or 0s to keep nothing"
        )));
    }
    let Some(servers) = servers else { return };
    if let Some(at) = at.field("servers")
        && at.is_whole()
        && !(1..=SERVERS_MAX).contains(&servers.len())
    {
        faults.push(at.fault(format!("{} servers; expected 1 to {SERVERS_MAX}", servers.len())));
    }
    for (place, (at, server)) in at.items_of("servers").iter().zip(servers).enumerate() {
        if server.port() == 0 {
            faults.push(at.fault("port 0 cannot be reached; DNS listens on port 53"));
        } else if servers[..place].contains(server) {
            faults.push(at.fault(format!("{server} is listed twice")));
        }
    }
}
