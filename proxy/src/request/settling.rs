//! The end of a gRPC call whose answer has begun: its status comes in the trailers, and only then is it known how the
//! attempt went.
//!
//! A head that says 200 is no success of a call: an endpoint whose every call fails in its trailers would be counted as
//! well. So the attempt is counted, and its endpoint judged, when the status is there or the stream breaks. How long it
//! took stays the time to the head. Requests that are none of gRPC, and calls whose head tells all, are settled by
//! [`under_way`] and never come here.
//!
//! [`under_way`]: super::under_way

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use http_body::Body;

use crate::error::Reason;
use crate::request::attempt::Answer;
use crate::request::retry::peek;
use crate::request::{Worker, grpc, under_way};
use crate::telemetry::metrics::Ending;
use crate::upstream::{Cluster, Endpoint, Outcome};

/// A call whose status is still to come. Dropping it tells that nobody waits for it any more.
#[derive(Debug)]
pub(crate) struct Settling {
    worker: Rc<Worker>,
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    began: Instant,
    head_at: Instant,
    /// Whether a message has come.
    has_spoken: bool,
    settled: bool,
}

/// Whether the status of a call is still to come after this head.
pub(super) fn is_to_come(answer: &Answer) -> bool {
    answer.head.status == StatusCode::OK
        && answer.said.is_none()
        && answer.switched.is_none()
        && !answer.body.is_end_stream()
        && peek::status(&answer.head).is_none()
}

impl Settling {
    /// A call that began and had its head then.
    pub(super) fn new(
        worker: &Rc<Worker>,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        (began, head_at): (Instant, Instant),
    ) -> Self {
        Self {
            worker: Rc::clone(worker),
            cluster: Arc::clone(cluster),
            endpoint: Arc::clone(endpoint),
            began,
            head_at,
            has_spoken: false,
            settled: false,
        }
    }

    /// A message has come: how long the head took is known from now on, and an endpoint that was asked whether it is well
    /// again has answered, however long the call goes on. It is no success yet.
    pub(super) fn speaks(&mut self) {
        if !self.has_spoken {
            self.has_spoken = true;
            self.cluster
                .speaks(&self.endpoint, self.took_to_head(), self.head_at);
        }
    }

    /// It ended, with this status. Without any it is what answers in another protocol, such as gRPC-Web, whose trailers are
    /// a part of the body: nothing is known against it.
    pub(super) fn ended(mut self, status: Option<u16>) {
        let (ending, outcome) = judge(status, self.has_spoken);
        self.settle(ending, outcome);
    }

    /// It broke off for this reason.
    pub(super) fn broke(mut self, reason: Reason) {
        let outcome = match reason {
            // A stream that goes on until its caller's time is over is how callers bound such streams.
            Reason::RequestTimeout if self.has_spoken => Outcome::Unknown,
            reason => under_way::of_failure(reason),
        };
        self.settle(Ending::failed(Some(StatusCode::OK), reason), outcome);
    }

    /// It was given up, without any part of the endpoint's.
    pub(super) fn given_up(mut self, reason: Reason) {
        self.settle(Ending::failed(Some(StatusCode::OK), reason), Outcome::Unknown);
    }

    fn took_to_head(&self) -> Duration {
        self.head_at.saturating_duration_since(self.began)
    }

    fn settle(&mut self, ending: Ending, outcome: Outcome) {
        self.settled = true;
        let took = self.took_to_head();
        self.cluster.metrics.attempt(ending, took);
        let times = (self.began, Instant::now());
        // The time to the head counts once.
        let latency = (!self.has_spoken || outcome != Outcome::Success).then_some(took);
        self.cluster.settle_late(&self.endpoint, outcome, latency, times);
    }
}

/// What the end of a call says, to those who count and of its endpoint.
fn judge(status: Option<u16>, has_spoken: bool) -> (Ending, Outcome) {
    match status {
        // As above: the endpoint, or its sidecar, ends it a moment before we do.
        Some(grpc::DEADLINE_EXCEEDED) if has_spoken => (Ending::answered(StatusCode::OK), Outcome::Unknown),
        Some(status) if grpc::is_server_failure(status) => (
            Ending::answered(StatusCode::INTERNAL_SERVER_ERROR),
            Outcome::ServerError,
        ),
        _ => (Ending::answered(StatusCode::OK), Outcome::Success),
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        if !self.settled {
            let reason = under_way::given_up_for(false, self.worker.drain.has_ended());
            self.settle(Ending::failed(Some(StatusCode::OK), reason), Outcome::Unknown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statuses_that_tell_of_a_server_that_failed_count_against_it_and_no_other() {
        for status in 0..20 {
            let failed = [2, 4, 13, 14, 15].contains(&status);
            let outcome = judge(Some(status), false).1;
            assert_eq!(outcome == Outcome::ServerError, failed, "{status}");
            assert_eq!(outcome == Outcome::Success, !failed, "{status}");
        }
        assert_eq!(judge(None, false).1, Outcome::Success);
    }

    #[test]
    fn a_stream_that_has_spoken_until_its_time_was_over_tells_nothing() {
        assert_eq!(judge(Some(4), true).1, Outcome::Unknown);
        assert_eq!(judge(Some(14), true).1, Outcome::ServerError);
    }
}
