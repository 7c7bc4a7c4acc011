//! What a route does to its requests on purpose, in the order in which it is done: refuse what is over its limit, put
//! faults in, and copy them ([`mirror`]).
//!
//! What is decided is decided in `snapshot::traffic`; here the request is told.

pub(super) mod mirror;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::error::{Failure, Reason, Told};
use crate::request::Worker;
use crate::request::retry::Progress;
use crate::snapshot::traffic::limit::Caller;
use crate::snapshot::traffic::{Drawn, Fault, Traffic};

/// Counts a request against the limit of its route.
///
/// # Errors
/// When it is over the limit: the answer says after how many seconds there is room again.
pub(super) fn limit(traffic: &Traffic, source: IpAddr, now: Instant) -> Result<(), Failure> {
    let Some(limit) = &traffic.limit else {
        return Ok(());
    };
    limit.take(Caller::Address(source), now).map_err(|wait| {
        let detail = format!("{source} is over the limit of {}", limit.words().requests);
        Failure::new(Reason::RateLimited, detail).telling(Told {
            retry_after: Some(seconds(wait)),
            ..Told::default()
        })
    })
}

/// Whole seconds, rounded up and at least one: `Retry-After` has no others (RFC 9110 section 10.2.3), and 0 would say
/// to come at once.
fn seconds(wait: Duration) -> u64 {
    let begun = u64::from(wait.subsec_nanos() > 0);
    wait.as_secs().saturating_add(begun).max(1)
}

/// Puts in the faults that are drawn for a request: keeps it waiting, then fails it.
///
/// # Errors
/// When it is aborted, or its time is over before its delay is.
pub(super) async fn inject(worker: &Worker, fault: &Fault, progress: &mut Progress) -> Result<(), Failure> {
    let Drawn { delay, abort } = fault.draw(&mut worker.rng.borrow_mut());
    if let Some(delay) = delay {
        fault.metrics.delayed();
        progress.wait(delay).await;
        if progress.is_over() {
            let detail =
                format!("the request's time was over within a delay of {delay:?} that its route puts in");
            return Err(Failure::new(Reason::RequestTimeout, detail));
        }
    }
    let Some(status) = abort else {
        return Ok(());
    };
    fault.metrics.aborted();
    let detail = format!("aborted with {}, as its route says", status.0);
    Err(Failure::new(Reason::FaultInjected, detail).telling(Told {
        status: Some(status),
        ..Told::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_in_whole_seconds_rounded_up_and_never_as_none() {
        for (wait, told) in [
            (Duration::from_nanos(1), 1),
            (Duration::from_millis(999), 1),
            (Duration::from_secs(1), 1),
            (Duration::from_millis(1001), 2),
            (Duration::from_secs(3600), 3600),
        ] {
            assert_eq!(seconds(wait), told, "{wait:?}");
        }
    }
}
