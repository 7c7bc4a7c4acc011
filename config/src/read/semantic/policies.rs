//! Timeouts and retries, of a route and of the whole mesh.

use std::collections::HashSet;

use super::super::node::{Fault, shown};
use super::discover;
use super::endpoints::{Shared, endpoints};
use super::names::is_token;
use super::revoked::revoked;
use super::{At, identity};
use crate::mesh::Mesh;
use crate::service::{Backoff, Hedge, Retry, RetryOn, Route, Timeout};
use crate::units::Duration;

/// The longest time limit: what takes longer is not a request; `0s` is for what must not be limited.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// The most attempts: each may go to another endpoint, and after ten the fault is not the endpoint's.
const ATTEMPTS_MAX: u32 = 10;

/// The longest ceiling of a wait before a retry: whoever waits is held, and so is its connection.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// The most attempts that may begin beside the first: with each the load on a slow backend grows by as much again.
const HEDGES_MAX: u32 = 3;

/// The statuses that say that something went wrong, and so may be worth another attempt.
const FAILURES: std::ops::RangeInclusive<u16> = 400..=599;

/// Checks what holds for every service.
pub(in super::super) fn mesh(at: &At<'_>, mesh: &Mesh, faults: &mut Vec<Fault>) {
    identity::mesh(at, mesh, faults);
    revoked(at, mesh, faults);
    let Some(at) = at.field("defaults") else {
        return;
    };
    let said = Shared {
        balance: mesh.defaults.balance.as_ref(),
        limits: mesh.defaults.limits.as_ref(),
        ejection: mesh.defaults.ejection.as_ref(),
        slow_start: mesh.defaults.slow_start,
    };
    endpoints(&at, &said, faults);
    discover::defaults(&at, mesh.defaults.discover.as_ref(), faults);
    policies(
        &at,
        mesh.defaults.timeout.as_ref(),
        mesh.defaults.retry.as_ref(),
        faults,
    );
}

/// Checks the `timeout` and `retry` fields of a mapping.
pub(super) fn policies(at: &At<'_>, time: Option<&Timeout>, again: Option<&Retry>, faults: &mut Vec<Fault>) {
    if let (Some(at), Some(time)) = (at.field("timeout"), time) {
        timeout(&at, time, faults);
    }
    if let (Some(at), Some(again)) = (at.field("retry"), again) {
        retry(&at, again, faults);
    }
}

fn timeout(at: &At<'_>, timeout: &Timeout, faults: &mut Vec<Fault>) {
    for (key, value) in [
        ("request", timeout.request),
        ("attempt", timeout.attempt),
        ("idle", timeout.idle),
    ] {
        if let (Some(at), Some(value)) = (at.field(key), value)
            && value > TIMEOUT_MAX
        {
            faults.push(at.fault(format!(
                "{value} is too long; at most {TIMEOUT_MAX}, or 0s for no limit"
            )));
        }
    }
    if let (Some(at), Some(attempt), Some(request)) = (at.field("attempt"), timeout.attempt, timeout.request)
        && attempt > request
        && !request.0.is_zero()
    {
        faults.push(at.fault(format!(
            "one attempt may take {attempt}, but the whole request only {request}; it must not be longer"
        )));
    }
}

fn retry(at: &At<'_>, retry: &Retry, faults: &mut Vec<Fault>) {
    if let (Some(at), Some(attempts)) = (at.field("attempts"), retry.attempts)
        && !(1..=ATTEMPTS_MAX).contains(&attempts)
    {
        faults.push(at.fault(format!(
            "{attempts} attempts; expected 1 to {ATTEMPTS_MAX}, the first time included (1: never again)"
        )));
    }
    let mut seen = HashSet::new();
    for (at, failure) in at.items_of("on").iter().zip(retry.on.iter().flatten()) {
        if !seen.insert(failure) {
            let word = serde_json::to_value(failure).unwrap_or_default();
            let word = word.as_str().unwrap_or_default();
            faults.push(at.fault(format!("this failure is listed twice; it is `{word}`")));
        }
    }
    statuses(at, retry, faults);
    methods(at, retry, faults);
    if let (Some(at), Some(wait)) = (at.field("backoff"), retry.backoff) {
        backoff(&at, wait, faults);
    }
}

/// The statuses and the word that means them stand together or not at all: either alone would do nothing.
fn statuses(at: &At<'_>, retry: &Retry, faults: &mut Vec<Fault>) {
    let named = retry.on.iter().flatten().any(|on| *on == RetryOn::StatusCodes);
    match (at.field("on"), at.field("status")) {
        (Some(on), None) if named && at.given(&["status"]) == 0 => faults.push(on.fault(
            "`retriable-status-codes` stands here, and which they are is not said; add `status`, such as `status: [429]`",
        )),
        (on, Some(status)) if !named && on.as_ref().is_none_or(At::is_whole) => faults.push(status.fault(
            "these statuses change nothing without `retriable-status-codes` in `on` beside them",
        )),
        _ => {}
    }
    let mut seen = HashSet::new();
    for (at, status) in at.items_of("status").iter().zip(retry.status.iter().flatten()) {
        if !FAILURES.contains(status) {
            let (first, last) = (FAILURES.start(), FAILURES.end());
            faults.push(at.fault(format!(
                "{status} is not a status of a failure; expected {first} to {last}"
            )));
        } else if !seen.insert(status) {
            faults.push(at.fault(format!("{status} is listed twice")));
        }
    }
}

fn methods(at: &At<'_>, retry: &Retry, faults: &mut Vec<Fault>) {
    let methods = retry.treat_as_idempotent.iter().flatten();
    for (at, method) in at.items_of("treat_as_idempotent").iter().zip(methods) {
        if !is_token(method) {
            faults.push(at.fault(format!("`{}` is not an HTTP method", shown(method))));
        } else if method.bytes().any(|byte| byte.is_ascii_lowercase()) {
            let upper = method.to_ascii_uppercase();
            faults.push(at.fault(format!("methods are written in capitals: `{}`", shown(&upper))));
        }
    }
}

fn backoff(at: &At<'_>, backoff: Backoff, faults: &mut Vec<Fault>) {
    let Backoff { base, max } = backoff;
    if let Some(at) = at.field("max")
        && max > BACKOFF_MAX
    {
        faults.push(at.fault(format!("{max} is too long; at most {BACKOFF_MAX}")));
    } else if base > max {
        faults.push(at.fault(format!(
            "the first wait may be {base}, but the longest only {max}; `base` must not be longer than `max`"
        )));
    }
}

/// Checks the `hedge` of a route against the rest of it.
pub(super) fn hedge(at: &At<'_>, route: &Route, faults: &mut Vec<Fault>) {
    let (Some(at), Some(Hedge { after, at_most })) = (at.field("hedge"), route.hedge) else {
        return;
    };
    if let Some(at) = at.field("at_most")
        && !(1..=HEDGES_MAX).contains(&at_most)
    {
        faults.push(at.fault(format!("{at_most} more attempts; expected 1 to {HEDGES_MAX}")));
    }
    if let Some(at) = at.field("after") {
        if after.0.is_zero() {
            faults.push(at.fault("every request would be sent twice; give the time that most answers take"));
        }
        let timeout = route.timeout.unwrap_or_default();
        for (name, bound) in [("attempt", timeout.attempt), ("request", timeout.request)] {
            if let Some(bound) = bound.filter(|bound| !bound.0.is_zero() && after >= *bound) {
                faults.push(at.fault(format!(
                    "after {after} there is nothing left to wait for: `timeout.{name}` is {bound}"
                )));
                break;
            }
        }
    }
    if route.retry.as_ref().and_then(|retry| retry.attempts) == Some(1) {
        faults.push(at.fault(
            "`retry.attempts` is 1, the first attempt, so there is none left beside it; say 2 or more",
        ));
    }
}
