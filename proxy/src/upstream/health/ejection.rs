//! When an endpoint that fails is left out: so many failures in a row, for a time that grows with every repetition.
//!
//! Two kinds of failures count less. A connection that is refused at once does not count at all: the endpoint is left
//! alone for moments and asked about once a second, so that one that restarts is found at once, and nobody has waited
//! for it. And connections that break together count as one: when an instance dies, all its requests do.
//!
//! It comes back through one request: when its time is over, the first that would choose it goes there, the others
//! still elsewhere; an answer lets it in again, another failure puts it out for longer. How many of a cluster may be
//! out at once is asked by `Cluster::settle`, which sees all of them.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use outrigger_config::mesh::EjectionPolicy;

use super::{AVOIDED, EJECTED, Health, PROBED, micros, millis};

/// The longest that an endpoint stays out, unless the policy's first time is longer: Envoy's bound.
const EJECTED_MAX: Duration = Duration::from_secs(300);

/// How an attempt ended, as far as its endpoint is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered.
    Success,
    /// It answered that it failed: a 5xx, or the like of another protocol.
    ServerError,
    /// It refused the connection, or its sidecar said so of its application.
    Refused,
    /// It broke off, or did not keep to the protocol.
    Reset,
    /// It took too long, be it for a connection or for an answer.
    Timeout,
    /// It had no part in how the attempt ended: the caller went away, or this sidecar was at a limit.
    Unknown,
}

impl Outcome {
    /// The words for it, after "N failures in a row, the last: ".
    fn words(self) -> &'static str {
        match self {
            Self::Success => "an answer",
            Self::ServerError => "an answer that says error",
            Self::Refused => "a refused connection",
            Self::Reset => "a broken connection",
            Self::Timeout => "no answer in time",
            Self::Unknown => "unknown",
        }
    }
}

/// What the end of an attempt changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Change {
    Nothing,
    /// It has failed so often that it should be ejected.
    HasFailedTooOften,
    /// Its probe failed: it is out again.
    OutAgain,
    /// Its probe was answered: it is in again.
    Back,
}

impl Health {
    /// An attempt ended.
    pub(in crate::upstream) fn settle(
        &self,
        outcome: Outcome,
        (took, now): (Duration, Instant),
        policy: Option<&EjectionPolicy>,
    ) -> Change {
        match outcome {
            Outcome::Success => {
                // Read first, as in `connected`: nothing is written for a request that went well.
                if self.failures.load(Ordering::Relaxed) != 0 {
                    self.failures.store(0, Ordering::Relaxed);
                }
                if self.marks.load(Ordering::Relaxed) & (AVOIDED | EJECTED) == 0 {
                    return Change::Nothing;
                }
                self.connected();
                self.answered_while_out(now)
            }
            Outcome::Unknown => {
                self.release_probe(now);
                Change::Nothing
            }
            Outcome::ServerError | Outcome::Refused | Outcome::Reset | Outcome::Timeout => {
                let Some(policy) = policy else {
                    return self.answered_while_out(now);
                };
                let began = now.checked_sub(took).unwrap_or(now);
                self.failed(outcome, (began, now), policy)
            }
        }
    }

    fn failed(&self, outcome: Outcome, (began, now): (Instant, Instant), policy: &EjectionPolicy) -> Change {
        if self.marks.load(Ordering::Relaxed) & EJECTED == 0 {
            return self.failed_while_in(outcome, (began, now), policy);
        }
        // Requests that were on their way when it was ejected tell nothing new; only the probe does.
        if self.marks.fetch_and(!PROBED, Ordering::Relaxed) & PROBED == 0 {
            return Change::Nothing;
        }
        self.put_out(outcome, now, policy);
        Change::OutAgain
    }

    fn failed_while_in(
        &self,
        outcome: Outcome,
        (began, now): (Instant, Instant),
        policy: &EjectionPolicy,
    ) -> Change {
        let last = self.failed_at.swap(micros(now), Ordering::Relaxed);
        let counts = match outcome {
            Outcome::Refused => false,
            Outcome::Reset => micros(began) > last,
            _ => true,
        };
        if !counts {
            return Change::Nothing;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        if failures.saturating_add(1) >= policy.consecutive_failures {
            Change::HasFailedTooOften
        } else {
            Change::Nothing
        }
    }

    /// Puts it out, for longer than the last time unless it has been in for long since.
    pub(in crate::upstream) fn put_out(&self, outcome: Outcome, now: Instant, policy: &EjectionPolicy) {
        let in_since = self.in_since.load(Ordering::Relaxed);
        let well_for = if self.marks.load(Ordering::Relaxed) & EJECTED == 0 {
            Duration::from_millis(millis(now).saturating_sub(in_since))
        } else {
            Duration::ZERO
        };
        // Each time out is forgiven by as long a time in.
        let forgiven =
            u32::try_from(well_for.as_millis() / policy.time.as_millis().max(1)).unwrap_or(u32::MAX);
        let times = self
            .ejections
            .load(Ordering::Relaxed)
            .saturating_sub(forgiven)
            .saturating_add(1);
        self.ejections.store(times, Ordering::Relaxed);
        self.ejected.fetch_add(1, Ordering::Relaxed);
        let time = policy
            .time
            .saturating_mul(times)
            .min(EJECTED_MAX.max(policy.time));
        self.ejected_until.store(millis(now + time), Ordering::Relaxed);
        let failures = self.failures.swap(0, Ordering::Relaxed);
        self.marks.fetch_or(EJECTED, Ordering::Relaxed);
        self.tell(
            now,
            format!("{failures} failures in a row, the last: {}", outcome.words()),
        );
    }

    /// Lets it in again at once: it should not have been put out.
    pub(in crate::upstream) fn take_back(&self) {
        self.marks.fetch_and(!(EJECTED | PROBED), Ordering::Relaxed);
        self.ejected.fetch_sub(1, Ordering::Relaxed);
        let _ = self
            .ejections
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |times| times.checked_sub(1));
    }

    /// Whether it is ejected.
    pub(in crate::upstream) fn is_ejected(&self) -> bool {
        self.marks.load(Ordering::Relaxed) & EJECTED != 0
    }

    /// The answer of a request that has not ended goes on: whoever is out and was asked whether it is well is back, and a
    /// row of failures stays one until the end is known.
    pub(in crate::upstream) fn speaks(&self, now: Instant) -> Change {
        self.answered_while_out(now)
    }

    fn answered_while_out(&self, now: Instant) -> Change {
        // As above: an answer to what was sent before it was ejected is no sign that it is well again.
        if self.marks.load(Ordering::Relaxed) & PROBED == 0 {
            return Change::Nothing;
        }
        self.in_since.store(millis(now), Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
        self.marks.fetch_and(!(EJECTED | PROBED), Ordering::Relaxed);
        self.tell(now, "a request was answered after it had been out".to_owned());
        Change::Back
    }

    /// A probe found nothing out: another may be sent.
    fn release_probe(&self, now: Instant) {
        if self.marks.load(Ordering::Relaxed) & PROBED != 0 {
            self.marks.fetch_and(!PROBED, Ordering::Relaxed);
            self.ejected_until.store(millis(now), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use outrigger_config::units::Percent;

    use super::*;

    const POLICY: EjectionPolicy = EjectionPolicy {
        consecutive_failures: 3,
        time: Duration::from_secs(30),
        at_most: Percent(50),
    };

    fn settle(health: &Health, outcome: Outcome, now: Instant) -> Change {
        health.settle(outcome, (Duration::ZERO, now), Some(&POLICY))
    }

    /// Fails until it should be ejected, and puts it out.
    fn eject(health: &Health, now: Instant) {
        for _ in 0..2 {
            assert_eq!(settle(health, Outcome::Timeout, now), Change::Nothing);
        }
        assert_eq!(settle(health, Outcome::Timeout, now), Change::HasFailedTooOften);
        health.put_out(Outcome::Timeout, now, &POLICY);
    }

    #[test]
    fn failures_in_a_row_count_and_an_answer_begins_anew() {
        let now = Instant::now();
        let health = Health::new(now);
        for _ in 0..10 {
            assert_eq!(settle(&health, Outcome::ServerError, now), Change::Nothing);
            assert_eq!(settle(&health, Outcome::Timeout, now), Change::Nothing);
            assert_eq!(settle(&health, Outcome::Unknown, now), Change::Nothing);
            assert_eq!(settle(&health, Outcome::Success, now), Change::Nothing);
        }
        eject(&health, now);
        assert!(!health.is_in());
    }

    #[test]
    fn it_comes_back_through_one_request() {
        let start = Instant::now();
        let health = Health::new(start);
        eject(&health, start);
        assert!(!health.may_be_tried(start + Duration::from_secs(29), || false));
        let over = start + Duration::from_secs(31);
        assert_eq!(
            settle(&health, Outcome::Success, over),
            Change::Nothing,
            "that was sent before"
        );
        let tries = (0..100).filter(|_| health.may_be_tried(over, || false)).count();
        assert_eq!(tries, 1);
        assert_eq!(settle(&health, Outcome::Success, over), Change::Back);
        assert!(health.may_be_tried(over, || false) && health.may_be_tried(over, || false));
    }

    #[test]
    fn a_probe_that_fails_puts_it_out_for_longer_and_one_that_found_nothing_makes_room_for_another() {
        let start = Instant::now();
        let health = Health::new(start);
        eject(&health, start);
        let over = start + Duration::from_secs(31);
        assert!(health.may_be_tried(over, || false));
        assert_eq!(settle(&health, Outcome::Unknown, over), Change::Nothing);
        assert!(health.may_be_tried(over, || false));
        assert_eq!(settle(&health, Outcome::Refused, over), Change::OutAgain);
        assert!(!health.may_be_tried(over + Duration::from_secs(59), || false));
        assert!(health.may_be_tried(over + Duration::from_secs(61), || false));
    }

    #[test]
    fn an_answer_that_goes_on_brings_it_back_and_ends_no_row_of_failures() {
        let start = Instant::now();
        let health = Health::new(start);
        for _ in 0..2 {
            assert_eq!(settle(&health, Outcome::ServerError, start), Change::Nothing);
            assert_eq!(health.speaks(start), Change::Nothing);
        }
        assert_eq!(
            settle(&health, Outcome::ServerError, start),
            Change::HasFailedTooOften
        );
        health.put_out(Outcome::ServerError, start, &POLICY);
        let over = start + Duration::from_secs(31);
        assert_eq!(health.speaks(over), Change::Nothing, "that was sent before");
        assert!(health.may_be_tried(over, || false));
        assert_eq!(health.speaks(over), Change::Back);
        assert!(health.is_in());
    }

    #[test]
    fn the_time_out_has_a_bound_and_a_long_time_in_is_forgiven() {
        let mut now = Instant::now();
        let health = Health::new(now);
        eject(&health, now);
        for _ in 0..20 {
            now += EJECTED_MAX + Duration::from_secs(1);
            assert!(health.may_be_tried(now, || false), "never longer than the bound");
            assert_eq!(settle(&health, Outcome::Reset, now), Change::OutAgain);
        }
        now += EJECTED_MAX + Duration::from_secs(1);
        assert!(health.may_be_tried(now, || false));
        assert_eq!(settle(&health, Outcome::Success, now), Change::Back);
        now += Duration::from_secs(3600);
        eject(&health, now);
        assert!(health.may_be_tried(now + Duration::from_secs(31), || false));
    }

    #[test]
    fn requests_that_break_one_after_the_other_count_each_within_one_millisecond_too() {
        let start = Instant::now() + Duration::from_secs(1);
        let health = Health::new(start);
        let took = Duration::from_micros(50);
        let changes = [60, 120, 180].map(|at| {
            let now = start + Duration::from_micros(at);
            health.settle(Outcome::Reset, (took, now), Some(&POLICY))
        });
        assert_eq!(changes[2], Change::HasFailedTooOften, "{changes:?}");
    }

    #[test]
    fn without_a_policy_nothing_is_ejected() {
        let now = Instant::now();
        let health = Health::new(now);
        for _ in 0..1_000 {
            assert_eq!(
                health.settle(Outcome::Timeout, (Duration::ZERO, now), None),
                Change::Nothing
            );
        }
        assert!(health.is_in());
    }

    #[test]
    fn an_instance_that_dies_with_all_its_requests_and_refuses_others_is_not_ejected() {
        let start = Instant::now() + Duration::from_secs(1);
        let health = Health::new(start);
        let (dies, took) = (start + Duration::from_secs(5), Duration::from_secs(2));
        for request in 0..100 {
            let now = dies + Duration::from_millis(request);
            assert_eq!(
                health.settle(Outcome::Reset, (took, now), Some(&POLICY)),
                Change::Nothing
            );
        }
        for _ in 0..100 {
            assert_eq!(settle(&health, Outcome::Refused, dies), Change::Nothing);
        }
        // One that breaks every request, one after the other, is, however quickly.
        let mut later = dies + Duration::from_secs(1);
        let mut change = Change::Nothing;
        for _ in 0..2 {
            later += Duration::from_millis(10);
            change = health.settle(Outcome::Reset, (Duration::from_millis(5), later), Some(&POLICY));
        }
        assert_eq!(change, Change::HasFailedTooOften);
    }
}
