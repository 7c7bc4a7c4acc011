//! What is known of names, as operators see it on `/clusters`.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::upstream::Cluster;
use crate::upstream::discovery::Following;
use crate::upstream::discovery::answer::Why;
use crate::upstream::discovery::asking::Kind;
use crate::upstream::discovery::directory::{Known, Name};
use crate::upstream::discovery::sources::time_of_day;

/// A name at one moment.
#[derive(Debug, Serialize)]
pub(in crate::upstream) struct NameReport {
    name: String,
    /// Which records are asked for: addresses, srv.
    records: &'static str,
    /// With a search domain, where it was found under one.
    #[serde(skip_serializing_if = "Option::is_none")]
    found_as: Option<String>,
    /// The servers that are asked, in their order.
    servers: Vec<SocketAddr>,
    /// Who gave the last good answer, and how long ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    answered_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answered_ms: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_left_ms: Option<u128>,
    /// The last result: `ok`, or why there was none.
    result: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    failing: Option<FailingReport>,
    /// The questions for one family that are in vain, or whose answers are cut, while the name is answered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    troubles: Vec<TroubleReport>,
    /// How many records are used.
    known: usize,
    /// Whether an answer names only some of them.
    sampled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_question_ms: Option<u128>,
}

#[derive(Debug, Serialize)]
struct FailingReport {
    /// The time of day, UTC.
    since: String,
    since_ms: u128,
    /// How long what was found is kept yet; `None`: nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_for_ms: Option<u128>,
}

#[derive(Debug, Serialize)]
struct TroubleReport {
    /// The type of the records.
    records: &'static str,
    result: String,
    /// The time of day, UTC.
    since: String,
}

/// How an endpoint was found.
#[derive(Clone, Debug, Serialize)]
pub(in crate::upstream) struct FoundReport {
    name: String,
    /// That of the SRV record, if one led to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answered_by: Option<String>,
    /// How long ago an answer named it last.
    seen_ms: u128,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_left_ms: Option<u128>,
    /// How many answers in a row have lacked it since.
    lacked_by: u32,
}

/// A place that takes no requests while those of lower priority numbers are well.
#[derive(Debug, Serialize)]
pub(in crate::upstream) struct StandbyReport {
    address: SocketAddr,
    priority: u16,
}

/// What leads from a name to endpoints: its addresses on this port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Via {
    /// That of the SRV record.
    pub(super) priority: Option<u16>,
    pub(super) port: u16,
}

/// What a cluster follows, for operators.
#[derive(Debug, Default)]
pub(super) struct Shown {
    pub(super) names: Vec<(Arc<Name>, Vec<Via>)>,
    pub(super) standbys: Vec<(SocketAddr, u16)>,
}

/// What is found out about a cluster's discovery.
#[derive(Debug, Default)]
pub(in crate::upstream) struct DiscoveryReport {
    pub(in crate::upstream) names: Vec<NameReport>,
    pub(in crate::upstream) found: HashMap<SocketAddr, FoundReport>,
    pub(in crate::upstream) standbys: Vec<StandbyReport>,
}

/// What a line of the log lists of many.
const LISTED_MAX: usize = 8;

/// Several in one line.
pub(super) fn listed(mut all: Vec<String>) -> String {
    let more = all.len().saturating_sub(LISTED_MAX);
    all.truncate(LISTED_MAX);
    match more {
        0 => all.join(", "),
        more => format!("{} and {more} more", all.join(", ")),
    }
}

/// The names that these clusters still wait for, with who was asked, in one line.
pub(crate) fn unanswered(clusters: &[Arc<Cluster>]) -> String {
    let mut all = BTreeSet::new();
    for following in clusters.iter().filter_map(|cluster| cluster.following.get()) {
        for (name, _) in &following.shown.load().names {
            if !name.known().is_answered() {
                let servers = name.servers().iter().map(ToString::to_string).collect();
                all.insert(format!("{} (asked {})", name.key.question.name, listed(servers)));
            }
        }
    }
    listed(all.into_iter().collect())
}

fn ms(from: Instant, to: Instant) -> u128 {
    to.saturating_duration_since(from).as_millis()
}

impl Following {
    /// The names, and how each endpoint was found.
    pub(in crate::upstream) fn report(&self, now: Instant) -> DiscoveryReport {
        let shown = self.shown.load();
        let mut report = DiscoveryReport::default();
        for (name, vias) in &shown.names {
            let known = name.known();
            for (address, found) in found_by(name, &known, now) {
                for via in vias {
                    let at = SocketAddr::new(address, via.port);
                    report.found.entry(at).or_insert_with(|| FoundReport {
                        priority: via.priority,
                        ..found.clone()
                    });
                }
            }
            report.names.push(name_report(name, &known, now));
        }
        let standbys = shown.standbys.iter();
        report.standbys = standbys
            .map(|(address, priority)| StandbyReport {
                address: *address,
                priority: *priority,
            })
            .collect();
        report
    }
}

fn ttl_left(known: &Known, now: Instant) -> Option<u128> {
    let good = known.memory.good()?;
    Some(
        good.ttl
            .saturating_sub(now.saturating_duration_since(good.at))
            .as_millis(),
    )
}

fn found_by(name: &Arc<Name>, known: &Known, now: Instant) -> Vec<(IpAddr, FoundReport)> {
    let answered_by = known.memory.good().map(|good| good.from.clone());
    let ttl_left_ms = ttl_left(known, now);
    let records = known.memory.records().iter();
    let found = records.filter_map(|remembered| {
        let report = FoundReport {
            name: name.key.question.name.clone(),
            priority: None,
            answered_by: answered_by.clone(),
            seen_ms: ms(remembered.seen, now),
            ttl_left_ms,
            lacked_by: remembered.missed,
        };
        Some((remembered.record.address()?, report))
    });
    found.collect()
}

fn name_report(name: &Arc<Name>, known: &Known, now: Instant) -> NameReport {
    let Known { memory, next } = known;
    let good = memory.good();
    let failing = memory.failing().map(|failing| FailingReport {
        since: time_of_day(failing.since_clock),
        since_ms: ms(failing.since, now),
        kept_for_ms: memory
            .ends(name.key.question.keep)
            .filter(|_| !memory.records().is_empty())
            .map(|end| ms(now, end)),
    });
    let troubles = memory.troubles().map(|(version, trouble)| TroubleReport {
        records: match name.key.kind {
            Kind::Addresses => version.word(),
            Kind::Services => "SRV",
        },
        result: trouble.why.to_string(),
        since: time_of_day(trouble.since_clock),
    });
    let is_cut = memory
        .troubles()
        .any(|(_, trouble)| trouble.why == Why::Truncated);
    let asked = &name.key.question.name;
    NameReport {
        name: asked.clone(),
        records: match name.key.kind {
            Kind::Addresses => "addresses",
            Kind::Services => "srv",
        },
        found_as: good
            .map(|good| good.found_as.clone())
            .filter(|found| found != asked),
        servers: name.servers(),
        answered_by: good.map(|good| good.from.clone()),
        answered_ms: good.map(|good| ms(good.at, now)),
        ttl_left_ms: ttl_left(known, now),
        result: match (memory.failing(), next) {
            (Some(failing), _) => failing.why.to_string(),
            (None, _) if is_cut => Why::Truncated.to_string(),
            (None, None) if good.is_none() => "not answered yet".to_owned(),
            (None, _) => "ok".to_owned(),
        },
        failing,
        troubles: troubles.collect(),
        known: memory.records().len(),
        sampled: memory.is_sampled(),
        next_question_ms: next.map(|next| ms(now, next)),
    }
}
