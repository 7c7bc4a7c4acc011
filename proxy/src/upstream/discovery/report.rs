//! What is known of names, as operators see it on `/clusters`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

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
    #[serde(skip_serializing_if = "Option::is_none")]
    answered_by: Option<String>,
    /// How long ago an answer named it last.
    seen_ms: u128,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_left_ms: Option<u128>,
    /// How many answers in a row have lacked it since.
    lacked_by: u32,
}

fn ms(from: Instant, to: Instant) -> u128 {
    to.saturating_duration_since(from).as_millis()
}

impl Following {
    /// The names, and how each address was found.
    pub(in crate::upstream) fn report(
        &self,
        now: Instant,
    ) -> (Vec<NameReport>, HashMap<IpAddr, FoundReport>) {
        let names = self.names.load();
        let mut found = HashMap::new();
        let mut reports = Vec::with_capacity(names.len());
        for name in names.iter() {
            let known = name.known();
            for (address, report) in found_by(name, &known, now) {
                found.entry(address).or_insert(report);
            }
            reports.push(name_report(name, &known, now));
        }
        (reports, found)
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
