//! Timeouts and retries, of a route and of the whole mesh.

use std::collections::HashSet;

use super::super::node::Fault;
use super::At;
use crate::mesh::Mesh;
use crate::service::{Retry, Timeout};
use crate::units::Duration;

/// The longest time limit: what takes longer is not a request; `0s` is for what must not be limited.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// The most attempts: each may go to another endpoint, and after ten the fault is not the endpoint's.
const ATTEMPTS_MAX: u32 = 10;

/// Checks what holds for every service.
pub(in super::super) fn mesh(at: &At<'_>, mesh: &Mesh, faults: &mut Vec<Fault>) {
    let Some(at) = at.field("defaults") else {
        return;
    };
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
            faults.push(at.fault("this failure is listed twice"));
        }
    }
}
