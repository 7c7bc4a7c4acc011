//! One attempt with its bookkeeping: counted when it ends, and when nobody waits for its end any more.
//!
//! What happens on the wire is [`attempt`]'s; whether there is another is `retry`'s.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Instant;

use http::StatusCode;

use crate::error::{Failure, Reason};
use crate::interim::Interim;
use crate::request::attempt::{self, Answer, Outgoing};
use crate::request::retry::{Progress, peek};
use crate::request::settling::{self, Settling};
use crate::request::upgrade::Upgrade;
use crate::request::{Worker, grpc};
use crate::snapshot::routes::{Route, Target};
use crate::telemetry::metrics::Ending;
use crate::upstream::outgoing::Upload;
use crate::upstream::{Outcome, Pick};

/// An attempt that is about to be made.
#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) route: &'a Route,
    pub(crate) target: &'a Target,
    pub(crate) pick: Pick,
    /// What it asks to switch to, if it does.
    pub(crate) upgrade: Option<&'a Upgrade>,
    /// Where what the endpoint says before its answer goes.
    pub(crate) interim: &'a Interim,
}

/// How an attempt ended, and when.
pub(crate) type Made = (Result<Box<Answer>, Failure>, Instant);

impl<'a> Attempt<'a> {
    /// Makes it. `outrun`: set when it is given up for another one that was quicker.
    pub(crate) fn make(
        self,
        progress: &Progress,
        outgoing: &mut Outgoing,
        outrun: Option<&'a Cell<bool>>,
    ) -> impl Future<Output = Made> + use<'a> {
        let Self {
            worker,
            route,
            target,
            pick,
            upgrade,
            interim,
        } = self;
        let deadline = progress.deadline();
        let looks = progress.looks_at_calls().then(|| progress.may_go_again());
        let (began, is_call) = (progress.now(), progress.is_call());
        let mut sent = outgoing.next(progress);
        if let (Some(edits), Some(sent)) = (&target.edits, &mut sent) {
            // In what leaves now alone: the next attempt may go to another backend.
            edits.request.apply(sent.headers_mut());
        }
        async move {
            let counted = UnderWay {
                worker,
                target,
                endpoint: pick.id,
                began,
                is_call,
                outrun,
                ended: false,
            };
            let upload = looks.and_then(|_| sent.as_ref()?.body().upload());
            let to = (pick, target.cluster.http2);
            let outcome = match upgrade {
                None => {
                    pin!(attempt::send(
                        worker,
                        to,
                        &mut sent,
                        deadline,
                        route.timeouts.idle,
                        interim
                    ))
                    .await
                }
                Some(upgrade) => Box::pin(attempt::switch(worker, to, sent.take(), upgrade, deadline)).await,
            };
            let outcome = match (looks, outcome) {
                (Some(may_go_again), Ok(answer)) => {
                    let wait = may_go_again && has_ended(upload.as_ref());
                    Box::pin(peek::look(answer, wait, deadline.map(|(until, _)| until))).await
                }
                (_, outcome) => outcome,
            };
            let now = Instant::now();
            (counted.ended(outcome, now), now)
        }
    }
}

/// An attempt under way.
struct UnderWay<'a> {
    worker: &'a Rc<Worker>,
    target: &'a Target,
    endpoint: u64,
    began: Instant,
    /// Whether it is a gRPC call, which tells its failures beside the status of HTTP.
    is_call: bool,
    outrun: Option<&'a Cell<bool>>,
    ended: bool,
}

impl UnderWay<'_> {
    /// Counts it, or leaves that to the answer, if it is that of a call whose status is still to come.
    fn ended(
        mut self,
        mut outcome: Result<Box<Answer>, Failure>,
        now: Instant,
    ) -> Result<Box<Answer>, Failure> {
        self.ended = true;
        let cluster = &self.target.cluster;
        if self.is_call
            && let Ok(answer) = &mut outcome
            && settling::is_to_come(answer)
        {
            let settling = Settling::new(self.worker, cluster, &answer.pick, (self.began, now));
            answer.settling = Some(Box::new(settling));
            return outcome;
        }
        let result = for_endpoint(&outcome, self.is_call);
        let ending = match &outcome {
            Ok(answer) => match answer.said {
                Some(reason) => Ending::failed(Some(answer.head.status), reason),
                None if result == Outcome::ServerError => Ending::answered(StatusCode::INTERNAL_SERVER_ERROR),
                None => Ending::answered(answer.head.status),
            },
            Err(failure) => Ending::failed(None, failure.reason),
        };
        let took = now.saturating_duration_since(self.began);
        cluster.metrics.attempt(ending, took);
        match &outcome {
            Ok(answer) => cluster.settle(&answer.pick, result, took, now),
            Err(_) => cluster.settle_by_id(self.endpoint, result, took, now),
        }
        outcome
    }
}

impl Drop for UnderWay<'_> {
    /// It was given up while the upstream had not answered: that must show, or an upstream that hangs would look like
    /// one that is never asked.
    fn drop(&mut self) {
        if !self.ended {
            let outrun = self.outrun.is_some_and(Cell::get);
            let given_up = Ending::failed(None, given_up_for(outrun, self.worker.drain.has_ended()));
            let now = Instant::now();
            let took = now.saturating_duration_since(self.began);
            let cluster = &self.target.cluster;
            cluster.metrics.attempt(given_up, took);
            cluster.settle_by_id(self.endpoint, Outcome::Unknown, took, now);
        }
    }
}

/// Whether the caller has sent all that it will. While it still sends, it may wait for the head before it says more.
fn has_ended(upload: Option<&Upload>) -> bool {
    upload.is_none_or(Upload::has_ended)
}

/// How an attempt ended, as far as its endpoint is concerned. `is_call`: whether it was one of gRPC.
fn for_endpoint(outcome: &Result<Box<Answer>, Failure>, is_call: bool) -> Outcome {
    match outcome {
        Ok(answer) if answer.said.is_some() => match answer.said {
            Some(Reason::ConnectFailed) => Outcome::Refused,
            Some(Reason::ConnectTimeout) => Outcome::Timeout,
            // It keeps a limit that it was told to keep, and is well.
            Some(Reason::RateLimited) => Outcome::Success,
            _ => Outcome::ServerError,
        },
        Ok(answer) if answer.head.status.is_server_error() => Outcome::ServerError,
        Ok(answer) if is_call && peek::status(&answer.head).is_some_and(grpc::is_server_failure) => {
            Outcome::ServerError
        }
        Ok(_) => Outcome::Success,
        Err(failure) => of_failure(failure.reason),
    }
}

/// The same of one that failed for this reason.
pub(super) fn of_failure(reason: Reason) -> Outcome {
    match reason {
        Reason::ConnectFailed => Outcome::Refused,
        reason if reason.is_of_handshake() => Outcome::Refused,
        Reason::RefusedStream | Reason::UpstreamReset | Reason::UpstreamProtocol => Outcome::Reset,
        Reason::ConnectTimeout | Reason::AttemptTimeout | Reason::RequestTimeout => Outcome::Timeout,
        _ => Outcome::Unknown,
    }
}

/// Why an attempt was given up. What is still under way when the time to drain is over was cut by this sidecar, not by
/// its caller.
pub(super) fn given_up_for(outrun: bool, drain_has_ended: bool) -> Reason {
    match (outrun, drain_has_ended) {
        (true, _) => Reason::Outrun,
        (false, true) => Reason::Draining,
        (false, false) => Reason::ClientGone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_first_frame_is_waited_for_while_the_caller_still_sends() {
        assert!(has_ended(None), "there is nothing to send");
        assert!(!has_ended(Some(&Upload::default())));
    }

    #[test]
    fn an_attempt_that_is_given_up_is_blamed_on_who_gave_it_up() {
        assert_eq!(given_up_for(false, false), Reason::ClientGone);
        assert_eq!(given_up_for(false, true), Reason::Draining);
        assert_eq!(given_up_for(true, false), Reason::Outrun);
        assert_eq!(given_up_for(true, true), Reason::Outrun);
    }
}
