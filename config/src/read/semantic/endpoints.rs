//! Balancing, health checks, ejection and limits, of a service and of the whole mesh.

use super::super::node::{Fault, shown};
use super::names::is_token;
use super::{At, exactly_one};
use crate::service::{Balance, Ejection, HashOn, HealthCheck, Limits, StaticEndpoint};
use crate::units::Duration;

/// The heaviest endpoint against one of weight 1: past this the lighter ones are asked so seldom that nobody learns
/// how they do.
const WEIGHT_MAX: u32 = 1_000;

/// The highest limit: more than any host has descriptors or streams for is none.
const LIMIT_MAX: u32 = 1_000_000;

/// Asking more often than this is load, not a question.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The longest of the times here: what is rarer than once an hour is not watched.
const TIME_MAX: Duration = Duration::from_secs(3600);

/// An answer that takes longer than this says nothing about health.
const CHECK_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// The most answers in a row that may be waited for.
const ANSWERS_MAX: u32 = 100;

/// The most failures in a row that may be waited for.
const FAILURES_MAX: u32 = 1_000;

/// The words that a service and the mesh's defaults share.
pub(super) struct Shared<'a> {
    pub(super) balance: Option<&'a Balance>,
    pub(super) limits: Option<&'a Limits>,
    pub(super) ejection: Option<&'a Ejection>,
    pub(super) slow_start: Option<Duration>,
}

/// Checks what a service or the mesh's defaults say about endpoints.
pub(super) fn endpoints(at: &At<'_>, said: &Shared<'_>, faults: &mut Vec<Fault>) {
    if let (Some(at), Some(Balance::HashOn(on))) = (at.field("balance"), said.balance)
        && let Some(at) = at.field("hash_on")
    {
        hash_on(&at, on, faults);
    }
    if let (Some(at), Some(limits)) = (at.field("limits"), said.limits) {
        self::limits(&at, *limits, faults);
    }
    if let (Some(at), Some(ejection)) = (at.field("ejection"), said.ejection) {
        self::ejection(&at, *ejection, faults);
    }
    if let (Some(at), Some(time)) = (at.field("slow_start"), said.slow_start)
        && time > TIME_MAX
    {
        faults.push(at.fault(format!("{time} is too long; at most {TIME_MAX}")));
    }
}

fn hash_on(at: &At<'_>, on: &HashOn, faults: &mut Vec<Fault>) {
    match on {
        HashOn::SourceAddress => {}
        HashOn::Header(name) => {
            if let Some(at) = at.field("header")
                && !is_token(name)
            {
                faults.push(at.fault(format!("`{}` is not the name of a header", shown(name))));
            }
        }
        // RFC 6265 section 4.1.1: the name of a cookie is a token, as the name of a header is.
        HashOn::Cookie(name) => {
            if let Some(at) = at.field("cookie")
                && !is_token(name)
            {
                faults.push(at.fault(format!("`{}` is not the name of a cookie", shown(name))));
            }
        }
    }
}

fn limits(at: &At<'_>, limits: Limits, faults: &mut Vec<Fault>) {
    for (key, limit) in [
        ("connections", limits.connections),
        ("pending", limits.pending),
        ("requests", limits.requests),
    ] {
        if let (Some(at), Some(limit)) = (at.field(key), limit)
            && !(1..=LIMIT_MAX).contains(&limit)
        {
            faults.push(at.fault(format!("a limit of {limit}; expected 1 to {LIMIT_MAX}")));
        }
    }
}

fn ejection(at: &At<'_>, ejection: Ejection, faults: &mut Vec<Fault>) {
    if let (Some(at), Some(failures)) = (at.field("consecutive_failures"), ejection.consecutive_failures)
        && !(1..=FAILURES_MAX).contains(&failures)
    {
        faults.push(at.fault(format!(
            "{failures} failures; expected 1 to {FAILURES_MAX} (`at_most: 0%` leaves no endpoint out)"
        )));
    }
    if let (Some(at), Some(time)) = (at.field("for"), ejection.time) {
        between(&at, time, INTERVAL_MIN, TIME_MAX, faults);
    }
}

/// Checks a health check.
pub(super) fn health_check(at: &At<'_>, check: &HealthCheck, faults: &mut Vec<Fault>) {
    exactly_one(at, &["path", "grpc", "tcp"], faults);
    if let (Some(at), Some(path)) = (at.field("path"), &check.path)
        && (!path.starts_with('/') || path.bytes().any(|byte| !byte.is_ascii_graphic()))
    {
        faults.push(at.fault("expected a path that begins with `/` and has no spaces, such as /healthz"));
    }
    if let Some(at) = at.field("interval") {
        between(&at, check.interval, INTERVAL_MIN, TIME_MAX, faults);
    }
    if let Some(at) = at.field("timeout") {
        between(
            &at,
            check.timeout,
            Duration::from_millis(1),
            CHECK_TIMEOUT_MAX,
            faults,
        );
    }
    for (key, answers) in [("healthy", check.healthy), ("unhealthy", check.unhealthy)] {
        if let Some(at) = at.field(key)
            && !(1..=ANSWERS_MAX).contains(&answers)
        {
            faults.push(at.fault(format!("{answers} answers; expected 1 to {ANSWERS_MAX}")));
        }
    }
}

fn between(at: &At<'_>, value: Duration, least: Duration, most: Duration, faults: &mut Vec<Fault>) {
    if value < least || value > most {
        faults.push(at.fault(format!("{value} is out of bounds; expected {least} to {most}")));
    }
}

/// Checks the endpoints that are written down.
pub(super) fn listed(at: &At<'_>, listed: &[StaticEndpoint], faults: &mut Vec<Fault>) {
    let mut seen = std::collections::HashSet::new();
    for (at, endpoint) in at.items_of("static").iter().zip(listed) {
        let StaticEndpoint { address, weight } = endpoint;
        if address.port() == 0 {
            faults.push(at.fault("port 0 cannot be reached; expected 1 to 65535"));
        } else if !seen.insert(address) {
            faults.push(at.fault(format!("{address} is listed twice")));
        }
        if let Some(at) = at.field("weight")
            && !(1..=WEIGHT_MAX).contains(weight)
        {
            faults.push(at.fault(format!(
                "weight {weight}; expected 1 to {WEIGHT_MAX}; leave the endpoint out to send it nothing"
            )));
        }
    }
}
