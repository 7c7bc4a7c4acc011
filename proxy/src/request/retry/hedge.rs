//! Attempts beside one that is slow: the first head is taken, the others are given up.
//!
//! Only for requests that may be done twice and whose body is there already, out of the same budget as retries.
//! Routes without a hedge never come here.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use super::Progress;
use crate::interim::Interim;
use crate::request::Worker;
use crate::request::attempt::Outgoing;
use crate::request::under_way::{Attempt, Made};
use crate::snapshot::routes::{Hedge, Route, Target};
use crate::telemetry::metrics::HedgeResult;
use crate::telemetry::request_log::RequestLog;

/// A request on its way, as far as another attempt needs it.
struct Racing<'a, 'b> {
    worker: &'a Rc<Worker>,
    route: &'a Route,
    interim: &'a Interim,
    progress: &'b mut Progress,
    outgoing: &'b mut Outgoing,
    log: &'b mut RequestLog,
}

/// One of the attempts.
struct Runner<'a, 'c> {
    target: &'a Target,
    address: std::net::SocketAddr,
    is_hedge: bool,
    attempt: Pin<Box<dyn Future<Output = Made> + 'c>>,
}

/// Makes an attempt, and others beside it while no head has come. A failure that is worth another attempt ends the
/// race only if no other is under way. The target that it ended at comes back with the outcome.
pub(crate) async fn race<'a>(
    hedge: &Hedge,
    first: Attempt<'a>,
    progress: &mut Progress,
    outgoing: &mut Outgoing,
    log: &mut RequestLog,
) -> (Made, &'a Target) {
    let mut racing = Racing {
        worker: first.worker,
        route: first.route,
        interim: first.interim,
        progress,
        outgoing,
        log,
    };
    let outrun = Cell::new(false);
    let after = hedge.policy.after.0;
    let mut left = hedge.policy.at_most;
    let mut slow = pin!(tokio::time::sleep(after));
    let mut last = first.target;
    let mut runners = vec![racing.runner(first, false, &outrun)];
    loop {
        // One of them has ended, or all are still slow.
        let ended = std::future::poll_fn(|cx| {
            for (place, runner) in runners.iter_mut().enumerate() {
                if let Poll::Ready(made) = runner.attempt.as_mut().poll(cx) {
                    return Poll::Ready(Some((place, made)));
                }
            }
            if left == 0 {
                return Poll::Pending;
            }
            slow.as_mut().poll(cx).map(|()| None)
        });
        match ended.await {
            Some((place, made)) => {
                let runner = runners.swap_remove(place);
                let failed = racing.progress.is_worth_another(&made.0, &racing.route.retry);
                let taken = !failed || runners.is_empty();
                if runner.is_hedge {
                    let won = taken && !failed;
                    let result = if won { HedgeResult::Won } else { HedgeResult::Lost };
                    hedge.metrics.ended(result);
                }
                if taken {
                    outrun.set(true);
                    for _ in runners.iter().filter(|runner| runner.is_hedge) {
                        hedge.metrics.ended(HedgeResult::Lost);
                    }
                    racing.log.taken(runner.address);
                    racing.log.counts_as(&runner.target.series);
                    return (made, runner.target);
                }
            }
            None => {
                slow.as_mut().reset((Instant::now() + after).into());
                // A body that still comes is asked about again.
                if !racing.outgoing.has_all_come() {
                    continue;
                }
                left -= 1;
                match racing.another(last) {
                    Ok(attempt) => {
                        last = attempt.target;
                        runners.push(racing.runner(attempt, true, &outrun));
                    }
                    Err(why_not) => {
                        left = 0;
                        hedge.metrics.ended(why_not);
                    }
                }
            }
        }
    }
}

impl<'a> Racing<'a, '_> {
    fn runner<'c>(&mut self, attempt: Attempt<'a>, is_hedge: bool, outrun: &'c Cell<bool>) -> Runner<'a, 'c>
    where
        'a: 'c,
    {
        let (target, address) = (attempt.target, attempt.pick.address);
        Runner {
            target,
            address,
            is_hedge,
            attempt: Box::pin(attempt.make(self.progress, self.outgoing, Some(outrun))),
        }
    }

    /// Another attempt at an endpoint that was not tried: of the same target if it has one.
    fn another(&mut self, last: &'a Target) -> Result<Attempt<'a>, HedgeResult> {
        if !self.progress.may_go_again() {
            return Err(HedgeResult::Nowhere);
        }
        let now = Instant::now();
        let mut rng = self.worker.rng.borrow_mut();
        let mut target = last;
        if !target.cluster.has_other_than(self.progress.tried()) {
            target = self.progress.next_target(self.route, last, &mut rng);
        }
        if !target.cluster.has_other_than(self.progress.tried()) {
            return Err(HedgeResult::Nowhere);
        }
        if !self.route.budget.spend(now) {
            return Err(HedgeResult::Budget);
        }
        let pick = target.cluster.pick(&self.progress.wanted(now), &mut rng);
        let pick = pick.map_err(|_| HedgeResult::Nowhere)?;
        self.log.attempted(pick.address);
        self.progress.attempt(pick.id, now);
        Ok(Attempt {
            worker: self.worker,
            route: self.route,
            target,
            pick,
            // Such requests are not hedged.
            upgrade: None,
            interim: self.interim,
        })
    }
}
