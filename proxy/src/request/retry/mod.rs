//! Whether a failed attempt is made again. This folder alone causes a second attempt.
//!
//! The rule: the policy must name the failure ([`conditions`]); the upstream must surely not have seen the request, or
//! the request must be one that may be done twice: by its method (RFC 9110 section 9.2.2), or because its policy says
//! so; the body must still be whole; attempts, time and budget must be left; the endpoint must not ask for more
//! patience than there is ([`pushback`]). A retry of what surely never arrived is free of the budget: it cannot add
//! load to a backend. An attempt beside one that is slow, and not after it, is [`hedge`]'s.

mod conditions;
pub(crate) mod hedge;
pub(crate) mod peek;
mod pushback;

use std::time::{Duration, Instant};

use http::Method;
use http::request::Parts;
use outrigger_config::mesh::RetryPolicy;

use self::conditions::End;
use self::pushback::Pushback;
use crate::error::{Failure, Reached, Reason};
use crate::request::attempt::Answer;
use crate::request::grpc;
use crate::snapshot::routes::{Route, Target};
use crate::telemetry::metrics::RetryResult;
use crate::upstream::balance::Wanted;
use crate::upstream::health::Budget;

/// The longest wait that an endpoint may ask for. A caller that has no deadline of its own would otherwise be held, and
/// its connection with it, for as long as an endpoint likes; past this the answer itself tells it when to come again.
const PUSHBACK_MAX: Duration = Duration::from_secs(30);

/// As many attempts as a policy may ask for.
const ATTEMPTS_MAX: usize = 10;

/// Where a request stands between its attempts.
#[derive(Debug)]
pub(crate) struct Progress {
    attempts_max: u32,
    attempts: u32,
    /// Whether it may be done twice.
    idempotent: bool,
    /// Whether it is a gRPC call.
    is_call: bool,
    /// Whether it is a gRPC call whose policy names statuses of gRPC.
    by_grpc_status: bool,
    /// The targets of the route that it has left, by their places. Those past the 64th it may choose again.
    left: u64,
    tried: [u64; ATTEMPTS_MAX],
    /// What leads it to its endpoint, if its balancing asks for anything.
    key: Option<u64>,
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
    /// Where a request stands that is ready to leave. `grpc`: it is a gRPC call. `key`: what leads it to its endpoint, if
    /// anything does.
    pub(crate) fn of(
        route: &Route,
        head: &Parts,
        (grpc, key): (bool, Option<u64>),
        started: Instant,
    ) -> Self {
        let mut progress = Self::start(route, &head.method, grpc, started);
        if grpc {
            progress.must_end_within(grpc::timeout(&head.headers));
        }
        progress.key = key;
        progress
    }

    /// `grpc`: it is a gRPC call.
    fn start(route: &Route, method: &Method, grpc: bool, started: Instant) -> Self {
        Self {
            attempts_max: route.retry.attempts.min(ATTEMPTS_MAX as u32),
            attempts: 0,
            idempotent: may_be_done_twice(method, &route.retry),
            is_call: grpc,
            by_grpc_status: route.retries_calls && grpc,
            left: 0,
            tried: [0; ATTEMPTS_MAX],
            key: None,
            now: started,
            request_deadline: route.timeouts.request.map(|timeout| started + timeout),
            call: false,
            attempt_timeout: route.timeouts.attempt,
            attempt_deadline: None,
        }
    }

    /// The caller gives its call so much time, of which the route may allow less.
    fn must_end_within(&mut self, time: Option<Duration>) {
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

    /// Whether it is a gRPC call.
    pub(crate) fn is_call(&self) -> bool {
        self.is_call
    }

    /// Whether the end of this call must be looked for before it is decided upon.
    pub(crate) fn looks_at_calls(&self) -> bool {
        self.by_grpc_status
    }

    /// Whether another attempt may begin beside one that has not failed.
    pub(crate) fn may_hedge(&self) -> bool {
        self.idempotent && self.may_go_again()
    }

    /// When the next attempt begins.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// What an endpoint is chosen by for an attempt at this time.
    pub(crate) fn wanted(&self, now: Instant) -> Wanted<'_> {
        Wanted {
            tried: self.tried(),
            key: self.key,
            now,
        }
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
        self.now = now;
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

    /// Whether the time of the whole request is over.
    pub(crate) fn is_over(&self) -> bool {
        self.request_deadline.is_some_and(|deadline| self.now >= deadline)
    }

    /// Decides what to do after an attempt, and counts the decision.
    pub(crate) fn decide(
        &mut self,
        outcome: &Result<Box<Answer>, Failure>,
        body_is_kept: bool,
        now: Instant,
        route: &Route,
    ) -> Decision {
        self.now = now;
        let end = End::of(outcome, self.by_grpc_status);
        if end.is_fine() {
            return Decision::HandOver;
        }
        let asked = pushback::asked(outcome);
        let (decision, result) = self.judge(end, asked, body_is_kept, &route.retry, &route.budget);
        if let Some(result) = result {
            route.retries.decided(result);
        }
        decision
    }

    /// Whether the policy would have another attempt made after this one, as far as its end goes.
    fn is_worth_another(&self, outcome: &Result<Box<Answer>, Failure>, policy: &RetryPolicy) -> bool {
        let end = End::of(outcome, self.by_grpc_status);
        !end.is_fine() && end.is_named(policy)
    }

    /// The rule itself.
    fn judge(
        &self,
        end: End,
        asked: Option<Pushback>,
        body_is_kept: bool,
        policy: &RetryPolicy,
        budget: &Budget,
    ) -> (Decision, Option<RetryResult>) {
        if !end.is_named(policy) {
            return (Decision::HandOver, None);
        }
        let unseen = end.event.reached() == Reached::No;
        let repeatable = unseen || self.idempotent || end.is_named_for_grpc(policy);
        if !repeatable || !body_is_kept && self.attempts < self.attempts_max {
            return (Decision::HandOver, Some(RetryResult::NotReplayable));
        }
        // A request whose time is nearly over would only be cut off again.
        let time_left = self.request_deadline.is_none_or(|deadline| deadline > self.now);
        if self.attempts >= self.attempts_max || !time_left {
            return (Decision::HandOver, Some(RetryResult::Limit));
        }
        if unseen {
            let after = Duration::ZERO;
            return (Decision::Again { after }, Some(RetryResult::Made));
        }
        let Some(at_least) = self.patience(asked) else {
            return (Decision::HandOver, Some(RetryResult::Pushback));
        };
        if !budget.spend(self.now) {
            return (Decision::HandOver, Some(RetryResult::Budget));
        }
        let backoff = policy.backoff;
        let ceiling = (backoff.base.0)
            .saturating_mul(1 << (self.attempts - 1).min(ATTEMPTS_MAX as u32))
            .min(backoff.max.0);
        // Full jitter: those that failed together do not come back together.
        let after = at_least + ceiling.mul_f64(fastrand::f64());
        (Decision::Again { after }, Some(RetryResult::Made))
    }

    /// How long to wait at least. `None`: longer than there is time, or for ever.
    fn patience(&self, asked: Option<Pushback>) -> Option<Duration> {
        match asked {
            None => Some(Duration::ZERO),
            Some(Pushback::Never) => None,
            Some(Pushback::Wait(wait)) => {
                let left = |deadline: Instant| deadline.saturating_duration_since(self.now);
                let fits = self.request_deadline.is_none_or(|deadline| wait < left(deadline));
                (fits && wait <= PUSHBACK_MAX).then_some(wait)
            }
        }
    }

    /// The target of the next attempt, after one at `last` failed.
    pub(crate) fn next_target<'a>(
        &mut self,
        route: &'a Route,
        last: &'a Target,
        rng: &mut fastrand::Rng,
    ) -> &'a Target {
        let tried = &self.tried[..self.attempts as usize];
        route.choose_again(last, &mut self.left, tried, rng)
    }

    /// Waits before an attempt, at most as long as the request has.
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

/// Whether a request with this method may be done twice: by HTTP, or because its policy says so.
fn may_be_done_twice(method: &Method, policy: &RetryPolicy) -> bool {
    is_idempotent(method)
        || policy
            .treat_as_idempotent
            .iter()
            .any(|also| also == method.as_str())
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
    use outrigger_config::service::{self, Backoff, RetryOn};
    use outrigger_config::units::{self, Percent, Rate};

    use super::conditions::Event;
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
            ..RetryPolicy::default()
        }
    }

    /// The end of an attempt that nobody asks about in gRPC.
    fn end(event: Event) -> End {
        End {
            event,
            grpc_status: None,
        }
    }

    /// The end of a call of gRPC.
    fn called(grpc_status: u16) -> End {
        End {
            event: Event::Answered(200),
            grpc_status: Some(grpc_status),
        }
    }

    fn progress(policy: &RetryPolicy, method: &Method, attempts: u32) -> Progress {
        let now = Instant::now();
        Progress {
            attempts_max: policy.attempts,
            attempts,
            idempotent: may_be_done_twice(method, policy),
            is_call: false,
            by_grpc_status: false,
            left: 0,
            tried: [0; ATTEMPTS_MAX],
            key: None,
            now,
            request_deadline: Some(now + Duration::from_secs(15)),
            call: false,
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
                .judge(end(event), None, true, &policy, &budget)
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
        let judged =
            |event| progress(&policy, &Method::GET, 1).judge(end(event), None, true, &policy, &budget);
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
                progress(&policy, &Method::GET, made).judge(end(event), None, true, &policy, &budget);
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
        let judged = progress(&policy, &Method::PUT, 1).judge(
            end(Event::Answered(503)),
            None,
            false,
            &policy,
            &budget,
        );
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
        let judged =
            |event| progress(&policy, &Method::GET, 1).judge(end(event), None, true, &policy, &budget);
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
            late.judge(end(Event::Answered(503)), None, true, &policy, &budget)
                .1,
            Some(RetryResult::Limit)
        );
    }

    #[test]
    fn waits_grow_from_nothing_to_at_most_a_quarter_of_a_second() {
        let policy = policy(10, &ALL);
        for made in 1..10 {
            let budget = Budget::new(policy.budget);
            let (decision, _) = progress(&policy, &Method::GET, made).judge(
                end(Event::Answered(503)),
                None,
                true,
                &policy,
                &budget,
            );
            let Decision::Again { after } = decision else {
                panic!("after {made}: {decision:?}")
            };
            let ceiling = Duration::from_millis(25 << (made - 1)).min(Duration::from_millis(250));
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

    /// Whether a GET that ended so is tried again under a policy that names only this.
    fn again_on(on: RetryOn, event: Event) -> bool {
        let policy = RetryPolicy {
            status: vec![418, 429],
            ..policy(3, &[on])
        };
        let budget = Budget::new(policy.budget);
        let judged = progress(&policy, &Method::GET, 1).judge(end(event), None, true, &policy, &budget);
        matches!(judged.0, Decision::Again { .. })
    }

    #[test]
    fn each_condition_takes_its_failures_and_no_others() {
        use Event::{Answered, Failed, NotDelivered};
        let events = [
            Failed(Reason::ConnectFailed),
            Failed(Reason::ConnectTimeout),
            Failed(Reason::Overloaded),
            NotDelivered,
            Failed(Reason::RefusedStream),
            Failed(Reason::UpstreamReset),
            Failed(Reason::UpstreamProtocol),
            Failed(Reason::AttemptTimeout),
            Answered(500),
            Answered(501),
            Answered(502),
            Answered(503),
            Answered(504),
            Answered(511),
            Answered(404),
            Answered(409),
            Answered(418),
            Answered(429),
            Answered(200),
            Failed(Reason::RequestTimeout),
            Failed(Reason::ClientGone),
            Failed(Reason::BadRequest),
        ];
        for (on, taken) in [
            (RetryOn::ConnectFailure, "yyyy------------------"),
            (RetryOn::RefusedStream, "----y-----------------"),
            (RetryOn::Reset, "-----yy---------------"),
            (RetryOn::GatewayError, "---y---y--yyy---------"),
            (RetryOn::ServerError, "yyyyyyyyyyyyyy--------"),
            (RetryOn::ClientError, "---------------y------"),
            (RetryOn::StatusCodes, "----------------yy----"),
            (RetryOn::Unavailable, "----------------------"),
        ] {
            for (event, taken) in events.into_iter().zip(taken.chars()) {
                assert_eq!(again_on(on, event), taken == 'y', "{on:?} {event:?}");
            }
        }
    }

    #[test]
    fn a_call_is_tried_again_by_its_status_in_grpc_though_it_is_a_post() {
        let policy = policy(3, &[RetryOn::Unavailable, RetryOn::ResourceExhausted]);
        let budget = Budget::new(policy.budget);
        let judged = |end| progress(&policy, &Method::POST, 1).judge(end, None, true, &policy, &budget);
        for (status, again) in [
            (14, true),
            (8, true),
            (0, false),
            (1, false),
            (2, false),
            (13, false),
        ] {
            let decision = judged(called(status)).0;
            assert_eq!(matches!(decision, Decision::Again { .. }), again, "{status}");
        }
    }

    #[test]
    fn a_method_that_the_policy_calls_idempotent_is_tried_again() {
        let policy = RetryPolicy {
            treat_as_idempotent: vec!["POST".into()],
            ..policy(3, &ALL)
        };
        let budget = Budget::new(policy.budget);
        for (method, again) in [(Method::POST, true), (Method::PATCH, false), (Method::GET, true)] {
            let failed = end(Event::Answered(503));
            let judged = progress(&policy, &method, 1).judge(failed, None, true, &policy, &budget);
            assert_eq!(matches!(judged.0, Decision::Again { .. }), again, "{method}");
        }
    }

    #[test]
    fn an_endpoint_that_asks_for_patience_is_given_it_or_not_asked_again() {
        let policy = policy(3, &ALL);
        let budget = Budget::new(policy.budget);
        let judged = |deadline: Option<u64>, asked| {
            let mut progress = progress(&policy, &Method::GET, 1);
            progress.request_deadline = deadline.map(|seconds| progress.now + Duration::from_secs(seconds));
            progress.judge(end(Event::Answered(503)), Some(asked), true, &policy, &budget)
        };
        let wait = |seconds| Pushback::Wait(Duration::from_secs(seconds));
        let (decision, result) = judged(Some(15), wait(3));
        assert_eq!(result, Some(RetryResult::Made));
        let Decision::Again { after } = decision else {
            panic!("{decision:?}")
        };
        let ceiling = Duration::from_millis(25);
        assert!(after >= Duration::from_secs(3) && after <= Duration::from_secs(3) + ceiling);
        assert_eq!(judged(None, wait(30)).1, Some(RetryResult::Made));
        for (deadline, asked) in [
            (Some(15), wait(15)),
            (Some(15), wait(u64::MAX)),
            (None, wait(31)),
            (None, Pushback::Never),
        ] {
            let handed_over = (Decision::HandOver, Some(RetryResult::Pushback));
            assert_eq!(judged(deadline, asked), handed_over, "{deadline:?} {asked:?}");
        }
    }

    #[test]
    fn waits_follow_the_policys_backoff() {
        let policy = RetryPolicy {
            backoff: Backoff {
                base: units::Duration::from_millis(400),
                max: units::Duration::from_millis(500),
            },
            ..policy(10, &ALL)
        };
        let longest = |made| {
            let waits = (0..200).map(|_| {
                let budget = Budget::new(policy.budget);
                let failed = end(Event::Answered(503));
                let judged =
                    progress(&policy, &Method::GET, made).judge(failed, None, true, &policy, &budget);
                match judged.0 {
                    Decision::Again { after } => after,
                    Decision::HandOver => panic!("{judged:?}"),
                }
            });
            waits.max().unwrap()
        };
        // The longest of 200 draws is above three quarters of the ceiling but for one time in 10²⁵.
        for (made, ceiling) in [(1, 400), (2, 500), (9, 500)] {
            let longest = longest(made);
            let ceiling = Duration::from_millis(ceiling);
            assert!(
                longest <= ceiling && longest >= ceiling * 3 / 4,
                "{made}: {longest:?}"
            );
        }
    }

    #[test]
    fn the_first_attempt_has_the_attempts_bound_and_no_attempt_outlasts_the_request() {
        let policy = policy(3, &ALL);
        let mut progress = progress(&policy, &Method::GET, 0);
        let began = progress.now;
        progress.request_deadline = Some(began + Duration::from_secs(2));
        progress.attempt_timeout = Some(Duration::from_millis(900));
        let at = |millis| began + Duration::from_millis(millis);
        progress.attempt(1, began);
        assert_eq!(progress.deadline(), Some((at(900), Reason::AttemptTimeout)));
        progress.attempt(2, at(1_500));
        assert_eq!(progress.deadline(), Some((at(2_000), Reason::RequestTimeout)));
    }

    #[tokio::test]
    async fn a_wait_ends_with_the_time_of_the_request() {
        let policy = policy(3, &ALL);
        let mut progress = progress(&policy, &Method::GET, 1);
        let began = progress.now;
        progress.request_deadline = Some(began + Duration::from_millis(40));
        progress.wait(Duration::from_secs(3600)).await;
        assert!(progress.now >= began + Duration::from_millis(40));
        assert!(progress.now < began + Duration::from_secs(3600));
    }
}
