//! The journey of one request: read [`handle`], [`serve`] and [`attempts`] and you have read the proxy.
//!
//! Always produces a response. The steps stand here in their order; each is one concern in one file. It never asks
//! whether it serves the inbound or the outbound side: the entry chose the table, and that is all the difference.

mod actions;
pub(crate) mod attempt;
mod authority;
pub(crate) mod body;
mod crossing;
mod edge;
pub(crate) mod grpc;
pub(crate) mod headers;
mod path;
mod permit;
pub(crate) mod retry;
pub(crate) mod settling;
pub(crate) mod tcp;
mod traffic;
pub(crate) mod under_way;
pub(crate) mod upgrade;

use std::borrow::Cow;
use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, Version};
use tokio::sync::watch;

use crate::drain::Drain;
use crate::error::{Failure, Reason};
use crate::interim::Interim;
use crate::request::actions::Changes;
use crate::request::attempt::{Answer, Outgoing};
use crate::request::body::{Bounds, ResponseBody};
use crate::request::permit::Permit;
use crate::request::retry::{Decision, Progress, hedge};
use crate::request::under_way::Attempt;
use crate::request::upgrade::Upgrade;
use crate::snapshot::access::{Access, Asked, Source};
use crate::snapshot::actions::Action;
use crate::snapshot::routes::{Route, Target, VirtualHost};
use crate::snapshot::{Entry, Lease, Matched, Reader, Snapshots};
use crate::telemetry::request_log::{AccessLogger, RequestLog};
use crate::tls::Identities;
use crate::upstream::pool::Pool;

/// What one data thread works with. Nothing in it is shared with another thread but the snapshot that it reads.
#[derive(Debug)]
pub(crate) struct Worker {
    reader: RefCell<Reader>,
    /// Word of each push, for tunnels.
    changes: watch::Receiver<()>,
    rng: RefCell<fastrand::Rng>,
    logger: Rc<AccessLogger>,
    pub(crate) pool: Pool,
    pub(crate) identities: Arc<Identities>,
    pub(crate) drain: Drain,
}

impl Worker {
    pub(crate) fn new(
        snapshots: &Arc<Snapshots>,
        identities: Arc<Identities>,
        logger: AccessLogger,
        drain: Drain,
    ) -> Self {
        Self {
            reader: RefCell::new(snapshots.reader()),
            changes: snapshots.changes(),
            rng: RefCell::new(fastrand::Rng::new()),
            logger: Rc::new(logger),
            pool: Pool::default(),
            identities,
            drain,
        }
    }

    pub(crate) fn lease(&self) -> Lease {
        self.reader.borrow_mut().lease()
    }

    /// Closes idle connections and lets go of a snapshot that no longer serves. Called about once a second.
    pub(crate) fn sweep(&self, now: Instant, wall: SystemTime) {
        self.identities.look_at_clocks(wall, now);
        self.pool.sweep(now);
        self.lease();
    }
}

/// The journey of one request. Always produces a response, whose body carries the log to its last byte. What the
/// endpoint says before it is left in `interim`. The request is lent, and stays where its listener keeps it: a future holds
/// what it is given a second time as soon as it takes it apart.
pub(crate) async fn handle(
    worker: &Rc<Worker>,
    (entry, source): (&Entry, &Source),
    request: &mut Outgoing,
    interim: &Interim,
) -> Response<ResponseBody> {
    let lease = worker.lease();
    let series = Arc::clone(lease.unmatched(entry));
    let mut log = RequestLog::start(Rc::clone(&worker.logger), Instant::now(), &request.head, series);
    log.came_from(source.address);
    if let Some(id) = source.id() {
        log.comes_from(id);
    }
    let from = (entry, source, interim);
    let served = pin!(serve(worker, &lease, from, request, &mut log)).await;
    match served {
        Ok(Served::Relayed(answer, bounds)) => {
            body::relay(worker, (answer, request.permit.take()), bounds, log)
        }
        Ok(Served::Own(answer)) => body::own(*answer, log),
        Err(failure) => body::refusal(entry, &failure, log),
    }
}

/// What a request is answered with, if nothing failed.
enum Served {
    /// The answer of an upstream.
    Relayed(Box<Answer>, Bounds),
    /// The answer that its route gives by itself.
    Own(Box<Response<Bytes>>),
}

/// Steps three to five, route, authorize and prepare, where the route says so limit, put faults in and mirror, and then
/// the rest: [`attempts`].
async fn serve(
    worker: &Rc<Worker>,
    lease: &Lease,
    (entry, source, interim): (&Entry, &Source, &Interim),
    request: &mut Outgoing,
    log: &mut RequestLog,
) -> Result<Served, Failure> {
    let bodiless = request.is_bodiless();
    let head = &mut request.head;
    crossing::arrive(head, bodiless)?;
    let asked = headers::asked(head)?;
    let (wants_upgrade, grpc, expects, found) = (asked.upgrade, asked.grpc, asked.expects, asked.found);
    if grpc {
        log.is_grpc();
    }
    let place = lease.virtual_host(entry, asked.host.unwrap_or(""))?;
    let virtual_host = &lease.virtual_hosts[place];
    log.counts_as(&virtual_host.unrouted);
    if let Some(secure) = source.edge {
        edge::arrive(head, source.address.ip(), secure);
    }
    if virtual_host.raw {
        authorize(virtual_host, source, head)?;
        request.permit = Permit::of_request(entry, head);
        let route = Matched::of_raw(lease, place);
        let tunnel = Box::pin(tcp::tunnel(worker, route, head, source.address.ip(), log)).await;
        return tunnel.map(|(answer, bounds)| Served::Relayed(answer, bounds));
    }
    // First, so that routes and rules see one request, whichever version it came by.
    let upgrade = wants_upgrade.then(|| Upgrade::asked(head)).transpose()?.flatten();
    let route = route(lease, place, head)?;
    authorize(virtual_host, source, head)?;
    if upgrade.is_some() {
        request.permit = Permit::of_request(entry, head);
    }
    let changes = match &route.action {
        Action::Forward => None,
        Action::Edit(edits) => Some(Changes::to(head, edits, (&route, virtual_host))?),
        Action::Answer(own) => {
            log.counts_as(&own.series);
            let answer = actions::answer(own, (&route, virtual_host), head, grpc)?;
            return Ok(Served::Own(Box::new(answer)));
        }
    };
    let target = route.choose();
    log.counts_as(&target.series);

    let key = target.cluster.key(head, source.address.ip());
    headers::prepare_request(head, &virtual_host.authority, found);
    headers::name_caller(head, source);
    if let Some(changes) = changes {
        changes.make(head);
    }
    let mut progress = Progress::of(&route, head, (grpc, key), log.started());
    if progress.may_go_again() {
        request.keep();
    }
    if let Some(said) = &route.traffic {
        traffic::limit(said, source.address.ip(), progress.now())?;
        if let Some(fault) = &said.fault {
            Box::pin(traffic::inject(worker, fault, &mut progress)).await?;
        }
        traffic::mirror::copy(worker, said, request, (key, upgrade.is_some()));
    }
    request.hold_if(expects, interim);
    route.budget.request();
    let prepared = (target, upgrade.as_ref(), &mut progress, interim);
    pin!(attempts(worker, &route, prepared, request, log)).await
}

/// Steps five to eight: pick, send and settle until there is an answer or no point in going on.
async fn attempts(
    worker: &Rc<Worker>,
    route: &Route,
    (mut target, upgrade, progress, interim): (&Target, Option<&Upgrade>, &mut Progress, &Interim),
    request: &mut Outgoing,
    log: &mut RequestLog,
) -> Result<Served, Failure> {
    loop {
        let now = progress.now();
        let pick = target
            .cluster
            .pick(&progress.wanted(now), &mut worker.rng.borrow_mut())?;
        log.attempted(pick.address);
        progress.attempt(pick.id, now);

        let attempt = Attempt {
            worker,
            route,
            target,
            pick,
            upgrade,
            interim,
        };
        let (outcome, ended) = match &route.hedge {
            Some(hedge) if progress.may_hedge() && upgrade.is_none() => {
                let race = hedge::race(hedge, attempt, progress, request, log);
                let (made, at) = Box::pin(race).await;
                target = at;
                made
            }
            _ => pin!(attempt.make(progress, request, None)).await,
        };

        match progress.decide(&outcome, request.is_kept(), ended, route) {
            Decision::HandOver => {
                let mut answer = outcome?;
                actions::edit_answer(&mut answer, route, target);
                return Ok(Served::Relayed(answer, Bounds::of_body(ended, progress, route)));
            }
            Decision::Again { after } => {
                body::put_by(worker, outcome, ended);
                progress.wait(after).await;
                target = progress.next_target(route, target, &mut worker.rng.borrow_mut());
                log.counts_as(&target.series);
            }
        }
    }
}

/// Whether the caller may ask for this, where anything is said of it. The path has its one form by now, unless the service
/// keeps paths as they come.
fn authorize(virtual_host: &VirtualHost, source: &Source, head: &Parts) -> Result<(), Failure> {
    let Some(access) = &virtual_host.access else {
        return Ok(());
    };
    let readings = Readings::of(access, head.uri.path(), virtual_host.normalizes);
    access.authorize(source, Some(readings.asked(&head.method)))
}

/// A path in all the ways in which the application may read it, as far as they matter to who may call.
struct Readings<'a> {
    path: &'a str,
    form: Option<Cow<'a, str>>,
    /// The widest; the inner `None`: it is the form.
    wide: Option<Option<String>>,
}

impl<'a> Readings<'a> {
    /// `normalized`: it has its one form already.
    fn of(access: &Access, path: &'a str, normalized: bool) -> Self {
        let form = match normalized {
            true => Some(Cow::Borrowed(path)),
            false => path::one_form(path).ok(),
        };
        // Where no rule says paths nobody asks.
        let read = form.as_deref().filter(|_| access.looks_at_paths());
        let wide = read.and_then(path::widest).map(|wide| match wide {
            Cow::Borrowed(_) => None,
            Cow::Owned(other) => Some(other),
        });
        Self { path, form, wide }
    }

    fn asked<'b>(&'b self, method: &'b Method) -> Asked<'b> {
        let form = self.form.as_deref();
        let wide = self.wide.as_ref();
        Asked {
            method,
            path: self.path,
            form,
            wide: wide.and_then(|wide| wide.as_deref().or(form)),
        }
    }
}

/// The route of a request whose service is known, once its path and its names have the form that the service asks for.
fn route(lease: &Lease, virtual_host: usize, head: &mut Parts) -> Result<Matched, Failure> {
    let host = &lease.virtual_hosts[virtual_host];
    if !host.keeps_case && head.version < Version::HTTP_2 {
        // Another service of the same listener may keep the case of names, and then hyper has noted that of these too.
        head.extensions.clear();
    }
    if host.normalizes {
        path::normalize(head)?;
    }
    Matched::find(lease, virtual_host, head).ok_or_else(|| {
        Failure::new(
            Reason::NoRoute,
            format!("no route matches {} {}", head.method, head.uri.path()),
        )
    })
}
