//! The journey of one TCP connection: route, pick, connect, move bytes.
//!
//! Nothing is read before the endpoint is connected, and nothing is waited for: who speaks first is the two ends' affair.
//! An endpoint that takes no connection has seen nothing, so another is asked; once bytes have gone, nothing can be done
//! again. What the bytes mean is not known here.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{Request, Response, StatusCode};
use tokio_util::either::Either;

use crate::arriving::Arriving;
use crate::error::{Failure, Reason};
use crate::pump::{self, Side, Why};
use crate::request::attempt::Answer;
use crate::request::body::Bounds;
use crate::request::permit::Permit;
use crate::request::{Worker, upgrade};
use crate::snapshot::access::Source;
use crate::snapshot::routes::{Route, Target};
use crate::snapshot::{Lease, Matched};
use crate::stream::Stream;
use crate::telemetry::metrics::Ending;
use crate::telemetry::request_log::RequestLog;
use crate::telemetry::tcp_log::TcpLog;
use crate::timer::Deadline;
use crate::tls::{self, Session};
use crate::upstream::balance::Wanted;
use crate::upstream::limits::Counted;
use crate::upstream::pool::{Carrier, Switched};
use crate::upstream::{Dialled, Outcome, Pick};

/// The longest that callers wait for an endpoint, all attempts together: where all are silent, ten attempts of a second.
const ATTEMPTS_MAX: usize = 10;

/// Serves a connection for a service that speaks TCP to its end.
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    lease: Lease,
    virtual_host: usize,
    (mut caller, source): (Stream, Source),
) {
    let Some(route) = Matched::of_raw(&lease, virtual_host) else {
        return;
    };
    let first = route.choose();
    let Some(series) = &first.tcp else { return };
    let mut log = TcpLog::start(
        Rc::clone(&worker.logger),
        Instant::now(),
        Some(source.address),
        series,
    );
    if let Some(id) = source.id() {
        log.comes_from(id);
    }
    let access = lease.virtual_hosts[virtual_host].access.as_deref();
    if let Some(Err(failure)) = access.map(|access| access.authorize(&source, None)) {
        log.failed(&failure);
        reset(&caller);
        return;
    }
    let tried = |target: &Target, address| {
        if let Some(series) = &target.tcp {
            log.attempted(address, series);
        }
    };
    let mut upstream = match connect(worker, &route, (first, source.address.ip()), tried).await {
        Ok(connected) => connected,
        Err(failure) => {
            log.failed(&failure);
            // An end of the bytes would look like an answer; there is none.
            reset(&caller);
            return;
        }
    };
    log.opened();
    let permit = Permit::of_connection(&lease, virtual_host);
    let over = Permit::over(permit.as_ref(), (worker, &source), upstream.session.as_ref());
    let bounds = (route.timeouts.idle, &log.moved);
    let why = match pump::pump_until(over, &mut caller, &mut upstream.stream, bounds).await {
        Ok(why) => why,
        Err(failure) => {
            log.failed(&failure);
            reset(&caller);
            reset(&upstream.stream);
            return;
        }
    };
    match why {
        Why::Finished => log.complete(),
        Why::Silent => log.failed(&Failure::new(
            Reason::IdleTimeout,
            "neither side said anything for the idle time",
        )),
        Why::Broken(side, error) => {
            let (reason, who) = match side {
                Side::Caller => (Reason::ClientGone, "the caller".to_owned()),
                // TLS 1.3 tells so late: see `tls::Session::refusal`.
                Side::Upstream if tls::refused_us(&error).is_some() => {
                    (Reason::IdentityRefused, upstream.pick.address.to_string())
                }
                Side::Upstream => (Reason::UpstreamReset, upstream.pick.address.to_string()),
            };
            log.failed(&Failure::new(
                reason,
                format!("{who} broke the connection: {error}"),
            ));
            // What broke on one side must not look ended on the other.
            reset(&caller);
            reset(&upstream.stream);
        }
    }
}

/// Opens a tunnel to a service that speaks TCP for a caller that asks with CONNECT (RFC 9110 section 9.3.6).
///
/// # Errors
/// When no connection can be made, and for any other request.
pub(super) async fn tunnel(
    worker: &Rc<Worker>,
    route: Option<Matched>,
    head: &Parts,
    source: IpAddr,
    log: &mut RequestLog,
) -> Result<(Box<Answer>, Bounds), Failure> {
    let Some(route) = route.filter(|_| upgrade::is_plain_connect(head)) else {
        return Err(Failure::new(
            Reason::NoRoute,
            "the service speaks TCP: connect to its local port, or ask for a tunnel with CONNECT",
        ));
    };
    let tried = |target: &Target, address| {
        log.counts_as(&target.series);
        log.attempted(address);
    };
    let connected = connect(worker, &route, (route.choose(), source), tried).await?;
    let Connected {
        pick,
        stream,
        counted,
        session,
    } = connected;
    let (mut head, ()) = Response::new(()).into_parts();
    head.status = StatusCode::OK;
    let now = Instant::now();
    let answer = Answer {
        head,
        body: Arriving::Nothing,
        carrier: Carrier::Apart(Deadline::new(now)),
        pick,
        said: None,
        switched: Some(Box::new(Switched {
            bytes: Either::Left(Either::Right(stream)),
            counted: Some(counted),
            idle: Some(route.timeouts.idle),
            session,
        })),
        settling: None,
    };
    Ok((Box::new(answer), Bounds::of_tunnel(now)))
}

/// A connection to an endpoint, counted there.
struct Connected {
    pick: Pick,
    stream: Stream,
    counted: Counted,
    session: Option<Session>,
}

/// Connects to an endpoint of the route: of the first target, and where it takes no connection to another, as often as the
/// route's `retry.attempts` says. `tried` is told of each.
async fn connect<'a>(
    worker: &Worker,
    route: &'a Route,
    (first, source): (&'a Target, IpAddr),
    mut tried: impl FnMut(&'a Target, SocketAddr),
) -> Result<Connected, Failure> {
    let attempts = usize::try_from(route.retry.attempts)
        .unwrap_or(ATTEMPTS_MAX)
        .min(ATTEMPTS_MAX);
    let (nobody, ()) = Request::new(()).into_parts();
    let (mut target, mut left) = (first, 0);
    let mut before = Vec::with_capacity(attempts);
    loop {
        let began = Instant::now();
        let wanted = Wanted {
            tried: &before,
            key: target.cluster.key(&nobody, source),
            now: began,
        };
        let pick = target.cluster.pick(&wanted, &mut worker.rng.borrow_mut())?;
        before.push(pick.id);
        tried(target, pick.address);
        let connected = pick.connect().await;
        let now = Instant::now();
        let took = now.saturating_duration_since(began);
        let failure = match connected {
            Ok(Dialled {
                stream,
                counted,
                session,
            }) => {
                watch(&stream);
                target.cluster.settle(&pick, Outcome::Success, took, now);
                return Ok(Connected {
                    pick,
                    stream,
                    counted,
                    session,
                });
            }
            Err(failure) => failure,
        };
        let outcome = match failure.reason {
            Reason::ConnectFailed => Outcome::Refused,
            reason if reason.is_of_handshake() => Outcome::Refused,
            Reason::ConnectTimeout => Outcome::Timeout,
            _ => Outcome::Unknown,
        };
        target.cluster.settle(&pick, outcome, took, now);
        target
            .cluster
            .metrics
            .attempt(Ending::failed(None, failure.reason), took);
        if before.len() >= attempts {
            return Err(failure);
        }
        target = route.choose_again(target, &mut left, &before, &mut worker.rng.borrow_mut());
        if !target.cluster.has_other_than(&before) {
            return Err(failure);
        }
    }
}

/// A silent connection is asked after this long whether its endpoint still lives, then this often, so many times: as for
/// those of callers, one minute until an endpoint that vanished is noticed.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// Lets the kernel find out that an endpoint is gone without a word: nobody else asks, for up to an hour.
fn watch(stream: &Stream) {
    let (idle, interval, probes) = KEEPALIVE;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(idle)
        .with_interval(interval)
        .with_retries(probes);
    let _ = socket2::SockRef::from(stream.tcp()).set_tcp_keepalive(&keepalive);
}

/// Makes the close of a connection a reset.
fn reset(stream: &Stream) {
    // Where it cannot be said, an ordinary close is the next best.
    let _ = socket2::SockRef::from(stream.tcp()).set_linger(Some(Duration::ZERO));
}
