//! The journey of one request: read [`handle`] and [`serve`] and you have read the proxy.
//!
//! Always produces a response. The steps stand here in their order; each is one concern in one file. It never asks
//! whether it serves the inbound or the outbound side: the entry chose the table, and that is all the difference.

pub(crate) mod attempt;
pub(crate) mod body;
mod crossing;
pub(crate) mod grpc;
pub(crate) mod headers;
mod path;
pub(crate) mod retry;
pub(crate) mod tcp;
pub(crate) mod under_way;
pub(crate) mod upgrade;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;
use http::{Request, Response};

use crate::arriving::Arriving;
use crate::drain::Drain;
use crate::error::{Failure, Reason};
use crate::interim::Interim;
use crate::request::attempt::{Answer, Outgoing};
use crate::request::body::{Bounds, ResponseBody};
use crate::request::retry::{Decision, Progress, hedge};
use crate::request::under_way::Attempt;
use crate::request::upgrade::Upgrade;
use crate::snapshot::{Entry, Lease, Matched, Reader, Snapshots};
use crate::telemetry::request_log::{AccessLogger, RequestLog};
use crate::upstream::pool::Pool;

/// What one data thread works with. Nothing in it is shared with another thread but the snapshot that it reads.
#[derive(Debug)]
pub(crate) struct Worker {
    reader: RefCell<Reader>,
    rng: RefCell<fastrand::Rng>,
    logger: Rc<AccessLogger>,
    pub(crate) pool: Pool,
    pub(crate) drain: Drain,
}

impl Worker {
    pub(crate) fn new(snapshots: &Arc<Snapshots>, logger: AccessLogger, drain: Drain) -> Self {
        Self {
            reader: RefCell::new(snapshots.reader()),
            rng: RefCell::new(fastrand::Rng::new()),
            logger: Rc::new(logger),
            pool: Pool::default(),
            drain,
        }
    }

    pub(crate) fn lease(&self) -> Lease {
        self.reader.borrow_mut().lease()
    }

    /// Closes idle connections and lets go of a snapshot that no longer serves. Called about once a second.
    pub(crate) fn sweep(&self, now: Instant) {
        self.pool.sweep(now);
        self.lease();
    }
}

/// The journey of one request. Always produces a response, whose body carries the log to its last byte. What the
/// endpoint says before it is left in `interim`.
pub(crate) async fn handle(
    worker: &Rc<Worker>,
    (entry, source): (&Entry, SocketAddr),
    request: Request<Arriving>,
    interim: &Interim,
) -> Response<ResponseBody> {
    let (head, body) = request.into_parts();
    let mut request = Outgoing::new(head, body);
    let lease = worker.lease();
    let series = Arc::clone(lease.unmatched(entry));
    let mut log = RequestLog::start(Rc::clone(&worker.logger), Instant::now(), &request.head, series);
    log.came_from(source);
    let from = (entry, source.ip(), interim);
    let served = pin!(serve(worker, &lease, from, &mut request, &mut log)).await;
    match served {
        Ok((answer, bounds)) => body::relay(worker, answer, bounds, log),
        Err(failure) => body::refusal(&failure, log),
    }
}

/// Steps three to eight: route, prepare, then pick, send and settle until there is an answer or no point in going on.
async fn serve(
    worker: &Rc<Worker>,
    lease: &Lease,
    (entry, source, interim): (&Entry, std::net::IpAddr, &Interim),
    request: &mut Outgoing,
    log: &mut RequestLog,
) -> Result<(Box<Answer>, Bounds), Failure> {
    let bodiless = request.is_bodiless();
    let head = &mut request.head;
    crossing::arrive(head, bodiless)?;
    let asked = headers::asked(head)?;
    let (wants_upgrade, grpc, expects) = (asked.upgrade, asked.grpc, asked.expects);
    if grpc {
        log.is_grpc();
    }
    let virtual_host = lease.virtual_host(entry, asked.host.unwrap_or(""))?;
    log.counts_as(&lease.virtual_hosts[virtual_host].unrouted);
    if lease.virtual_hosts[virtual_host].raw {
        let route = Matched::of_raw(lease, virtual_host);
        return Box::pin(tcp::tunnel(worker, route, head, source, log)).await;
    }
    let route = route(lease, virtual_host, head)?;
    let mut target = route.choose();
    log.counts_as(&target.series);

    let upgrade = wants_upgrade.then(|| Upgrade::asked(head));
    let upgrade = upgrade.transpose()?.flatten();
    let key = target.cluster.key(head, source);
    headers::prepare_request(head, &lease.virtual_hosts[virtual_host].authority);
    let mut progress = Progress::start(&route, &head.method, grpc, log.started());
    if grpc {
        progress.must_end_within(grpc::timeout(&head.headers));
    }
    progress.is_led_by(key);
    if progress.may_go_again() {
        request.keep();
    }
    request.hold_if(expects, interim);
    route.budget.request();
    loop {
        let now = progress.now();
        let pick = target
            .cluster
            .pick(&progress.wanted(now), &mut worker.rng.borrow_mut())?;
        log.attempted(pick.address);
        progress.attempt(pick.id, now);

        let attempt = Attempt {
            worker,
            route: &route,
            target,
            pick,
            upgrade: upgrade.as_ref(),
            interim,
        };
        let (outcome, ended) = match &route.hedge {
            Some(hedge) if progress.may_hedge() && upgrade.is_none() => {
                let race = hedge::race(hedge, attempt, &mut progress, request, log);
                let (made, at) = Box::pin(race).await;
                target = at;
                made
            }
            _ => pin!(attempt.make(&progress, request, None)).await,
        };

        match progress.decide(&outcome, request.is_kept(), ended, &route) {
            Decision::HandOver => {
                return outcome.map(|answer| (answer, Bounds::of_body(ended, &progress, &route)));
            }
            Decision::Again { after } => {
                body::put_by(worker, outcome, ended);
                progress.wait(after).await;
                target = progress.next_target(&route, target, &mut worker.rng.borrow_mut());
                log.counts_as(&target.series);
            }
        }
    }
}

/// The route of a request whose service is known, once its path has its one form.
fn route(lease: &Lease, virtual_host: usize, head: &mut Parts) -> Result<Matched, Failure> {
    if lease.virtual_hosts[virtual_host].normalizes {
        path::normalize(head)?;
    }
    Matched::find(lease, virtual_host, head).ok_or_else(|| {
        Failure::new(
            Reason::NoRoute,
            format!("no route matches {} {}", head.method, head.uri.path()),
        )
    })
}
