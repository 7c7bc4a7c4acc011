//! What is done to traffic on purpose: mirrors, faults, limits on rates.

use std::collections::HashMap;

use super::super::node::{Fault as Problem, shown};
use super::At;
use super::routes::Known;
use crate::service::{Protocol, Route, Service};
use crate::traffic::{Fault, Per, RateLimit};
use crate::units::Duration;

/// The most mirrors of a route: each is as many requests again, made by the caller's sidecar.
const MIRRORS_MAX: usize = 4;

/// The longest delay: as long as the longest time limit, past which nothing waits.
const DELAY_MAX: Duration = Duration::from_secs(3600);

/// The statuses that an abort may answer with: those of failures. A success without the application's words would be a
/// lie that no caller can see through.
const FAILURES: std::ops::RangeInclusive<u16> = 400..=599;

/// The highest `grpc-status` that gRPC knows; 0 is OK, which is no failure.
const GRPC_STATUS_MAX: u8 = 16;

/// The highest rate in a unit, and the largest burst: a microsecond for each request, past which no sidecar gets.
const REQUESTS_MAX: u32 = 1_000_000;

/// Checks what a route says.
pub(super) fn traffic(at: &At<'_>, route: &Route, known: Option<&Known<'_>>, problems: &mut Vec<Problem>) {
    if let (Some(at), Some(limit)) = (at.field("rate_limit"), &route.rate_limit) {
        rate_limit(&at, limit, problems);
    }
    if let (Some(at), Some(said)) = (at.field("fault"), &route.fault) {
        fault(&at, said, problems);
    }
    mirrors(at, route, known, problems);
}

/// Checks what a service says for its own sidecar.
pub(super) fn of_service(at: &At<'_>, service: &Service, problems: &mut Vec<Problem>) {
    let (Some(field), Some(limit)) = (at.field("rate_limit"), &service.rate_limit) else {
        return;
    };
    if at.given(&["rate_limit"]) == 0 {
        return;
    }
    if service.protocol == Protocol::Tcp {
        problems.push(field.fault(
            "`rate_limit` is about requests, and this service speaks tcp, where there are none; take it out",
        ));
        return;
    }
    if at.given(&["app"]) == 0 {
        problems.push(field.fault(
            "the service's own sidecar keeps this limit, and without `app` there is none; say `app`, or put the limit \
             on the routes, where the callers' sidecars keep it",
        ));
    }
    if limit.per == Some(Per::Route)
        && let Some(per) = field.field("per")
    {
        problems.push(per.fault(
            "a limit of the whole service counts all of its requests together; leave `per` out, or say `caller`",
        ));
    }
    rate_limit(&field, limit, problems);
}

fn rate_limit(at: &At<'_>, limit: &RateLimit, problems: &mut Vec<Problem>) {
    let counts = [
        (
            "requests",
            Some(limit.requests.count),
            "requests in a unit of time",
        ),
        ("burst", limit.burst, "requests at once"),
    ];
    for (key, count, what) in counts {
        if let (Some(at), Some(count)) = (at.field(key), count)
            && !(1..=REQUESTS_MAX).contains(&count)
        {
            problems.push(at.fault(format!("{count} {what}; expected 1 to {REQUESTS_MAX}")));
        }
    }
}

fn fault(at: &At<'_>, fault: &Fault, problems: &mut Vec<Problem>) {
    if at.given(&["delay", "abort"]) == 0 && !at.is_damaged() {
        problems.push(at.fault("nothing is said here; give `delay`, `abort` or both"));
    }
    if let (Some(at), Some(delay)) = (at.field("delay"), fault.delay)
        && let Some(at) = at.field("for")
    {
        if delay.time.0.is_zero() {
            problems.push(at.fault("a delay of 0s is none; give a time, such as 2s"));
        } else if delay.time > DELAY_MAX {
            problems.push(at.fault(format!("{} is too long; at most {DELAY_MAX}", delay.time)));
        }
    }
    let (Some(at), Some(abort)) = (at.field("abort"), fault.abort) else {
        return;
    };
    if let Some(at) = at.field("status")
        && !FAILURES.contains(&abort.status)
    {
        let (first, last) = (FAILURES.start(), FAILURES.end());
        problems.push(at.fault(format!(
            "{} is not a status of a failure; expected {first} to {last}",
            abort.status
        )));
    }
    if let (Some(at), Some(status)) = (at.field("grpc_status"), abort.grpc_status)
        && !(1..=GRPC_STATUS_MAX).contains(&status)
    {
        problems.push(at.fault(format!(
            "{status} is not a status of a failed call; expected 1 to {GRPC_STATUS_MAX}, such as 14, UNAVAILABLE"
        )));
    }
}

fn mirrors(at: &At<'_>, route: &Route, known: Option<&Known<'_>>, problems: &mut Vec<Problem>) {
    let Some(list) = at.field("mirror") else {
        return;
    };
    let count = list.node.items().len();
    if count > MIRRORS_MAX {
        problems.push(list.fault(format!(
            "{count} mirrors; at most {MIRRORS_MAX}: each is as many requests again"
        )));
        return;
    }
    let mut seen = HashMap::new();
    for (at, mirror) in list.items().zip(&route.mirror) {
        let Some(at) = at.field("backend") else {
            continue;
        };
        let name = mirror.backend.as_str();
        let unknown = known.and_then(|known| known.miss(name));
        if unknown.is_none() && takes_all(route, name) {
            problems.push(at.fault(format!(
                "the route sends all of its requests to `{}` already; a mirror is another backend",
                shown(name)
            )));
        }
        problems.extend(unknown.map(|why| at.fault(why)));
        if let Some(line) = seen.insert(name, at.mark().line) {
            problems.push(at.fault(format!(
                "this route mirrors to `{}` twice, first on line {line}; give it one percentage",
                shown(name)
            )));
        }
    }
}

/// Whether a backend is sent all requests of a route.
fn takes_all(route: &Route, backend: &str) -> bool {
    let mut weighted = route.to.iter().filter(|target| target.weight > 0).peekable();
    weighted.peek().is_some() && weighted.all(|target| target.backend == backend)
}
