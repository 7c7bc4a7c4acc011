//! Copies of a request, sent to other backends and forgotten.
//!
//! A copy is made when its request is ready to leave, and leaves by itself as soon as the request's body has come. It is
//! tried once, its answer is read and dropped, and nothing that becomes of it is seen by the request: it has no retry,
//! teaches ejection nothing, and counts into series of its own. Only that an endpoint takes no connections is learnt
//! from it, as from every other.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderValue, Request, StatusCode, Version};
use http_body::Body;

use crate::error::{Failure, Reason};
use crate::interim::Interim;
use crate::request::attempt::{self, Answer, Outgoing};
use crate::request::headers::MIRROR;
use crate::request::{Worker, body, grpc};
use crate::snapshot::traffic::{Mirror, Place, Traffic};
use crate::telemetry::metrics::MirrorResult;
use crate::upstream::balance::Wanted;
use crate::upstream::outgoing::{Coming, OutgoingBody};
use crate::upstream::{Cluster, Outcome};

/// Sends copies of a request to the mirrors of its route that want one. `switches`: it asks to speak something else,
/// which nobody can copy. `key`: what leads it to its endpoint.
pub(in crate::request) fn copy(
    worker: &Rc<Worker>,
    traffic: &Traffic,
    request: &mut Outgoing,
    (key, switches): (Option<u64>, bool),
) {
    // A copy is not copied again: two services that mirror to each other would never come to an end.
    if switches || traffic.mirrors.is_empty() || request.head.headers.contains_key(MIRROR) {
        return;
    }
    for mirror in &traffic.mirrors {
        if !mirror.wants(&mut worker.rng.borrow_mut()) {
            continue;
        }
        let Some(bytes) = request.copied_bytes_max() else {
            mirror.metrics.ended(MirrorResult::TooLarge);
            continue;
        };
        let Some(place) = mirror.place(bytes) else {
            mirror.metrics.ended(MirrorResult::Full);
            continue;
        };
        let (head, coming) = request.copy();
        let sent = send(Rc::clone(worker), Arc::clone(mirror), (head, coming), key, place);
        // Not one of the tasks that a drain waits for: it ends with its worker.
        tokio::task::spawn_local(sent);
    }
}

/// A copy from the end of its request's body to the end of its answer.
async fn send(
    worker: Rc<Worker>,
    mirror: Arc<Mirror>,
    (mut head, coming): (Parts, Option<Coming>),
    key: Option<u64>,
    place: Place,
) {
    let body = match coming {
        None => Ok(OutgoingBody::Empty),
        Some(coming) => match coming.await {
            Ok(Some(copied)) => Ok(OutgoingBody::Copied(Box::new(copied))),
            Ok(None) => Err(MirrorResult::TooLarge),
            Err(_) => Err(MirrorResult::Cut),
        },
    };
    let result = match body {
        Ok(body) => {
            head.headers.insert(MIRROR, HeaderValue::from_static("1"));
            let request = Request::from_parts(head, body);
            let until = Instant::now() + mirror.time;
            let whole = pin!(exchange(&worker, &mirror.cluster, request, (key, until)));
            match tokio::time::timeout_at(until.into(), whole).await {
                Ok(Ok(status)) => MirrorResult::Answered(status),
                Ok(Err(failure)) => result_of(&failure),
                Err(_) => MirrorResult::Timeout,
            }
        }
        Err(result) => result,
    };
    mirror.metrics.ended(result);
    drop(place);
}

fn result_of(failure: &Failure) -> MirrorResult {
    match failure.reason {
        Reason::RequestTimeout | Reason::ConnectTimeout => MirrorResult::Timeout,
        // A limit of its backend.
        Reason::Overloaded => MirrorResult::Full,
        _ => MirrorResult::Failed,
    }
}

/// Sends a copy to an endpoint and reads its answer to the end. Its status, or what a call of gRPC says instead.
async fn exchange(
    worker: &Rc<Worker>,
    cluster: &Cluster,
    request: Request<OutgoingBody>,
    (key, until): (Option<u64>, Instant),
) -> Result<StatusCode, Failure> {
    let now = Instant::now();
    let wanted = Wanted { tried: &[], key, now };
    let pick = cluster.pick(&wanted, &mut worker.rng.borrow_mut())?;
    let _probe = Probe {
        cluster,
        endpoint: pick.id,
    };
    let deadline = Some((until, Reason::RequestTimeout));
    let to = (pick, cluster.http2);
    // Nobody is there for what may be said before the answer, as for the answer itself.
    let interim = Interim::new(Version::HTTP_10);
    let request = &mut Some(request);
    let answer = pin!(attempt::send(worker, to, request, deadline, None, &interim)).await?;
    read(worker, answer).await
}

/// Reads an answer to its end, drops it, and gives its connection back.
async fn read(worker: &Rc<Worker>, answer: Box<Answer>) -> Result<StatusCode, Failure> {
    let Answer {
        head,
        mut body,
        mut carrier,
        pick,
        ..
    } = *answer;
    let mut failed = grpc::says_server_failed(&head.headers);
    // Bounded by the copy's time.
    while !body.is_end_stream() {
        match std::future::poll_fn(|cx| carrier.poll_body(&mut body, cx)).await {
            None => break,
            Some(Ok(frame)) => failed |= frame.trailers_ref().is_some_and(grpc::says_server_failed),
            Some(Err(error)) => {
                let detail = format!("{} broke off its answer: {error}", pick.address);
                return Err(Failure::new(Reason::UpstreamReset, detail));
            }
        }
    }
    body::give_back(worker, carrier, Instant::now());
    Ok(if failed {
        StatusCode::INTERNAL_SERVER_ERROR
    } else {
        head.status
    })
}

/// The endpoint of a copy that is under way. An ejected one may have been chosen in order to find out whether it is well
/// again; a copy finds nothing out, and leaves that to the next request.
struct Probe<'a> {
    cluster: &'a Cluster,
    endpoint: u64,
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        self.cluster
            .settle_by_id(self.endpoint, Outcome::Unknown, Duration::ZERO, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_has_no_answer_is_counted_by_why() {
        for (reason, result) in [
            (Reason::RequestTimeout, MirrorResult::Timeout),
            (Reason::ConnectTimeout, MirrorResult::Timeout),
            (Reason::Overloaded, MirrorResult::Full),
            (Reason::ConnectFailed, MirrorResult::Failed),
            (Reason::NoEndpoint, MirrorResult::Failed),
            (Reason::UpstreamReset, MirrorResult::Failed),
        ] {
            assert_eq!(result_of(&Failure::new(reason, "")), result);
        }
    }
}
