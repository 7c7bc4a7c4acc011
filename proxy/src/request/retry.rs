//! Whether a failed attempt is made again. The only place that causes a second attempt.
//!
//! The rule: the policy must name the failure; the upstream must surely not have seen the request, or the method must
//! be one that may be done twice (RFC 9110 section 9.2.2); the body must still be whole; attempts, time and budget
//! must be left. A retry of what surely never arrived is free of the budget: it cannot add load to a backend.

use std::time::{Duration, Instant};

use http::Method;
use outrigger_config::mesh::RetryPolicy;
use outrigger_config::service::RetryOn;

use crate::error::{Failure, Reached, Reason};
use crate::request::attempt::Answer;
use crate::snapshot::routes::Route;
use crate::telemetry::metrics::RetryResult;
use crate::upstream::health::Budget;

/// The first wait before a retry is drawn from nothing to this, the next from nothing to twice this: Envoy's base.
const BACKOFF_BASE: Duration = Duration::from_millis(25);

/// The longest wait before a retry: Envoy's ten times the base.
const BACKOFF_MAX: Duration = Duration::from_millis(250);

/// As many attempts as a policy may ask for.
const ATTEMPTS_MAX: usize = 10;

/// Where a request stands between its attempts.
#[derive(Debug)]
pub(crate) struct Progress {
    attempts_max: u32,
    attempts: u32,
    idempotent: bool,
    tried: [u64; ATTEMPTS_MAX],
    /// When the next attempt begins; the clock is read as seldom as may be.
    now: Instant,
    request_deadline: Option<Instant>,
    /// Whether that deadline is the caller's own, which the next hop is told.
    call: bool,
    attempt_timeout: Option<Duration>,
    attempt_deadline: Option<Instant>,
}

/// What to do after an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Hand the outcome to the caller, be it an answer or a failure.
    HandOver,
    /// Make another attempt, after a wait.
    Again { after: Duration },
}

impl Progress {
    pub(crate) fn start(route: &Route, method: &Method, started: Instant) -> Self {
        Self {
            attempts_max: route.retry.attempts.min(ATTEMPTS_MAX as u32),
            attempts: 0,
            idempotent: is_idempotent(method),
            tried: [0; ATTEMPTS_MAX],
            now: started,
            request_deadline: route.timeouts.request.map(|timeout| started + timeout),
            call: false,
            attempt_timeout: route.timeouts.attempt,
            attempt_deadline: None,
        }
    }

    /// The caller gives its call so much time, of which the route may allow less.
    pub(crate) fn must_end_within(&mut self, time: Option<Duration>) {
        let Some(until) = time.and_then(|time| self.now.checked_add(time)) else {
            return;
        };
        self.call = true;
        self.request_deadline = Some(
            self.request_deadline
                .map_or(until, |deadline| deadline.min(until)),
        );
    }

    /// What is left of the time that the caller gave its call, if it gave one.
    pub(crate) fn left_of_call(&self) -> Option<Duration> {
        let deadline = self.request_deadline.filter(|_| self.call)?;
        Some(deadline.saturating_duration_since(self.now))
    }

    /// When the next attempt begins.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// The endpoints that have been tried.
    pub(crate) fn tried(&self) -> &[u64] {
        &self.tried[..self.attempts as usize]
    }

    /// Whether the policy has another attempt left after the one that is under way or about to begin, so that the
    /// request must be kept for it.
    pub(crate) fn may_go_again(&self) -> bool {
        self.attempts.max(1) < self.attempts_max
    }

    /// An attempt begins.
    pub(crate) fn attempt(&mut self, endpoint: u64, now: Instant) {
        self.tried[self.attempts as usize % ATTEMPTS_MAX] = endpoint;
        self.attempts += 1;
        self.attempt_deadline = self.attempt_timeout.map(|timeout| now + timeout);
    }

    /// When the whole request must be over.
    pub(crate) fn request_deadline(&self) -> Option<Instant> {
        self.request_deadline
    }

    /// When this attempt must have its head, and which bound that is. On the last attempt the attempt's own bound
    /// gives way to the request's: cutting it short could only lose an answer.
    pub(crate) fn deadline(&self) -> Option<(Instant, Reason)> {
        let request = self.request_deadline.map(|until| (until, Reason::RequestTimeout));
        let last = self.attempts >= self.attempts_max && request.is_some();
        let attempt = self
            .attempt_deadline
            .filter(|_| !last)
            .map(|until| (until, Reason::AttemptTimeout));
        match (request, attempt) {
            (Some(request), Some(attempt)) => Some(if attempt.0 < request.0 { attempt } else { request }),
            (request, attempt) => request.or(attempt),
        }
    }

    /// Decides what to do after an attempt, and counts the decision.
    pub(crate) fn decide(
        &mut self,
        outcome: &Result<Answer, Failure>,
        body_is_kept: bool,
        now: Instant,
        route: &Route,
    ) -> Decision {
        self.now = now;
        let event = match outcome {
            Ok(answer) => match answer.said {
                Some(reason) if reason.reached() == Reached::No => Event::NotDelivered,
                _ => Event::Answered(answer.head.status.as_u16()),
            },
            Err(failure) => Event::Failed(failure.reason),
        };
        let (decision, result) = self.judge(event, body_is_kept, &route.retry, &route.budget);
        if let Some(result) = result {
            route.retries.decided(result);
        }
        decision
    }

    /// The rule itself.
    fn judge(
        &self,
        event: Event,
        body_is_kept: bool,
        policy: &RetryPolicy,
        budget: &Budget,
    ) -> (Decision, Option<RetryResult>) {
        if !event
            .condition()
            .is_some_and(|condition| policy.on.contains(&condition))
        {
            return (Decision::HandOver, None);
        }
        let unseen = event.reached() == Reached::No;
        if !unseen && !self.idempotent || !body_is_kept && self.attempts < self.attempts_max {
            return (Decision::HandOver, Some(RetryResult::NotReplayable));
        }
        // A request whose time is nearly over would only be cut off again.
        let time_left = self.request_deadline.is_none_or(|deadline| deadline > self.now);
        if self.attempts >= self.attempts_max || !time_left {
            return (Decision::HandOver, Some(RetryResult::Limit));
        }
        if unseen {
            return (
                Decision::Again {
                    after: Duration::ZERO,
                },
                Some(RetryResult::Made),
            );
        }
        if !budget.spend(self.now) {
            return (Decision::HandOver, Some(RetryResult::Budget));
        }
        let ceiling = BACKOFF_BASE
            .saturating_mul(1 << (self.attempts - 1).min(8))
            .min(BACKOFF_MAX);
        // Full jitter: those that failed together do not come back together.
        (
            Decision::Again {
                after: ceiling.mul_f64(fastrand::f64()),
            },
            Some(RetryResult::Made),
        )
    }

    /// Waits before the next attempt, at most as long as the request has.
    pub(crate) async fn wait(&mut self, after: Duration) {
        if !after.is_zero() {
            let until = self.now + after;
            let until = self
                .request_deadline
                .map_or(until, |deadline| until.min(deadline));
            tokio::time::sleep_until(until.into()).await;
            self.now = Instant::now();
        }
    }
}

/// How an attempt ended, as far as a retry is concerned.
#[derive(Clone, Copy, Debug)]
enum Event {
    Answered(u16),
    /// The sidecar of the endpoint answered that the request did not reach its application.
    NotDelivered,
    Failed(Reason),
}

impl Event {
    /// The condition of a policy that it falls under.
    fn condition(self) -> Option<RetryOn> {
        match self {
            Self::Answered(502..=504) => Some(RetryOn::GatewayError),
            Self::Answered(_) => None,
            Self::NotDelivered => Some(RetryOn::ConnectFailure),
            Self::Failed(reason) => match reason {
                Reason::ConnectFailed | Reason::ConnectTimeout | Reason::Overloaded => {
                    Some(RetryOn::ConnectFailure)
                }
                Reason::RefusedStream => Some(RetryOn::RefusedStream),
                Reason::UpstreamReset | Reason::UpstreamProtocol => Some(RetryOn::Reset),
                Reason::AttemptTimeout => Some(RetryOn::GatewayError),
                Reason::BadRequest
                | Reason::NotReady
                | Reason::NoService
                | Reason::NoRoute
                | Reason::NoEndpoint
                | Reason::RequestTimeout
                | Reason::IdleTimeout
                | Reason::Draining
                | Reason::ClientGone
                | Reason::Internal => None,
            },
        }
    }

    fn reached(self) -> Reached {
        match self {
            Self::Answered(_) => Reached::Maybe,
            Self::NotDelivered => Reached::No,
            Self::Failed(reason) => reason.reached(),
        }
    }
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

#[cfg(test)]
mod tests {
    use outrigger_config::service;
    use outrigger_config::units::{Percent, Rate};

    use super::*;

    const ALL: [RetryOn; 4] = [
        RetryOn::ConnectFailure,
        RetryOn::RefusedStream,
        RetryOn::Reset,
        RetryOn::GatewayError,
    ];

    fn policy(attempts: u32, on: &[RetryOn]) -> RetryPolicy {
        RetryPolicy {
            attempts,
            on: on.to_vec(),
            budget: service::Budget::default(),
        }
    }

    fn progress(policy: &RetryPolicy, method: &Method, attempts: u32) -> Progress {
        let now = Instant::now();
        Progress {
            call: false,
            attempts_max: policy.attempts,
            attempts,
            idempotent: is_idempotent(method),
            tried: [0; ATTEMPTS_MAX],
            now,
            request_deadline: Some(now + Duration::from_secs(15)),
            attempt_timeout: None,
            attempt_deadline: None,
        }
    }

    /// After the first attempt of `method` ended in `event`, with everything else in favour.
    fn again(method: &Method, event: Event) -> bool {
        let policy = policy(3, &ALL);
        let budget = Budget::new(policy.budget);
        matches!(
            progress(&policy, method, 1)
                .judge(event, true, &policy, &budget)
                .0,
            Decision::Again { .. }
        )
    }

    #[test]
    fn what_never_left_is_tried_again_for_any_method() {
        for reason in [Reason::ConnectFailed, Reason::ConnectTimeout, Reason::Overloaded] {
            assert!(again(&Method::POST, Event::Failed(reason)), "{reason:?}");
            assert!(again(&Method::GET, Event::Failed(reason)), "{reason:?}");
        }
    }

    #[test]
    fn what_the_endpoints_own_sidecar_could_not_deliver_is_tried_again_for_any_method() {
        assert!(again(&Method::POST, Event::NotDelivered));
    }

    #[test]
    fn what_may_have_been_done_is_tried_again_only_if_it_may_be_done_twice() {
        let events = [
            Event::Failed(Reason::UpstreamReset),
            Event::Failed(Reason::UpstreamProtocol),
            Event::Failed(Reason::AttemptTimeout),
            Event::Answered(502),
            Event::Answered(503),
            Event::Answered(504),
        ];
        for event in events {
            for method in [
                Method::GET,
                Method::HEAD,
                Method::OPTIONS,
                Method::PUT,
                Method::DELETE,
                Method::TRACE,
            ] {
                assert!(again(&method, event), "{method} {event:?}");
            }
            for method in [Method::POST, Method::PATCH] {
                assert!(!again(&method, event), "{method} {event:?}");
            }
        }
    }

    #[test]
    fn answers_that_are_answers_are_not_tried_again() {
        for status in [200, 301, 400, 404, 429, 500, 501, 505] {
            assert!(!again(&Method::GET, Event::Answered(status)), "{status}");
        }
        for reason in [
            Reason::BadRequest,
            Reason::NoEndpoint,
            Reason::RequestTimeout,
            Reason::ClientGone,
        ] {
            assert!(!again(&Method::GET, Event::Failed(reason)), "{reason:?}");
        }
    }

    #[test]
    fn only_what_the_policy_names_is_tried_again() {
        let policy = policy(3, &[RetryOn::Reset]);
        let budget = Budget::new(policy.budget);
        let judged = |event| progress(&policy, &Method::GET, 1).judge(event, true, &policy, &budget);
        assert_eq!(judged(Event::Answered(503)), (Decision::HandOver, None));
        assert_eq!(
            judged(Event::Failed(Reason::ConnectFailed)),
            (Decision::HandOver, None)
        );
        assert!(matches!(
            judged(Event::Failed(Reason::UpstreamReset)).0,
            Decision::Again { .. }
        ));
    }

    #[test]
    fn attempts_count_the_first_one() {
        let policy = policy(3, &ALL);
        let budget = Budget::new(policy.budget);
        let event = Event::Failed(Reason::ConnectFailed);
        for (made, again) in [(1, true), (2, true), (3, false)] {
            let (decision, result) =
                progress(&policy, &Method::GET, made).judge(event, true, &policy, &budget);
            assert_eq!(matches!(decision, Decision::Again { .. }), again, "after {made}");
            assert_eq!(
                result,
                Some(if again {
                    RetryResult::Made
                } else {
                    RetryResult::Limit
                })
            );
        }
    }

    #[test]
    fn a_body_that_is_no_longer_whole_is_not_sent_again() {
        let policy = policy(3, &ALL);
        let budget = Budget::new(policy.budget);
        let judged = progress(&policy, &Method::PUT, 1).judge(Event::Answered(503), false, &policy, &budget);
        assert_eq!(judged, (Decision::HandOver, Some(RetryResult::NotReplayable)));
    }

    #[test]
    fn a_spent_budget_stops_retries_but_not_those_of_what_never_left() {
        let nothing = service::Budget {
            ratio: Percent(0),
            floor: Rate(0),
        };
        let policy = RetryPolicy {
            budget: nothing,
            ..policy(3, &ALL)
        };
        let budget = Budget::new(nothing);
        let judged = |event| progress(&policy, &Method::GET, 1).judge(event, true, &policy, &budget);
        assert_eq!(
            judged(Event::Answered(503)),
            (Decision::HandOver, Some(RetryResult::Budget))
        );
        assert!(matches!(
            judged(Event::Failed(Reason::ConnectFailed)).0,
            Decision::Again { .. }
        ));
    }

    #[test]
    fn a_request_whose_time_is_over_is_not_tried_again() {
        let policy = policy(3, &ALL);
        let budget = Budget::new(policy.budget);
        let mut late = progress(&policy, &Method::GET, 1);
        late.request_deadline = Some(late.now);
        assert_eq!(
            late.judge(Event::Answered(503), true, &policy, &budget).1,
            Some(RetryResult::Limit)
        );
    }

    #[test]
    fn waits_grow_from_nothing_to_at_most_a_quarter_of_a_second() {
        let policy = policy(10, &ALL);
        for made in 1..10 {
            let budget = Budget::new(policy.budget);
            let (decision, _) =
                progress(&policy, &Method::GET, made).judge(Event::Answered(503), true, &policy, &budget);
            let Decision::Again { after } = decision else {
                panic!("after {made}: {decision:?}")
            };
            let ceiling = (BACKOFF_BASE * 2_u32.pow(made - 1)).min(BACKOFF_MAX);
            assert!(after <= ceiling, "after {made}: {after:?}");
        }
    }

    #[test]
    fn on_the_last_attempt_the_attempts_own_bound_gives_way_to_the_requests() {
        let policy = policy(2, &ALL);
        let mut progress = progress(&policy, &Method::GET, 0);
        progress.attempt_timeout = Some(Duration::from_millis(100));
        let now = progress.now;
        progress.attempt(1, now);
        assert_eq!(
            progress.deadline(),
            Some((now + Duration::from_millis(100), Reason::AttemptTimeout))
        );
        progress.attempt(2, now);
        assert_eq!(
            progress.deadline(),
            Some((now + Duration::from_secs(15), Reason::RequestTimeout))
        );
        assert_eq!(progress.tried(), [1, 2]);
    }
}
