//! How a gRPC call ended, as far as that shows before its first message.
//!
//! gRPC answers 200 and says in `grpc-status` how the call went: in the head, if there is nothing else to say, or in
//! the trailers. So for calls that may be retried by their status the first frame of the answer is waited for, and
//! handed on if it is a message. It does not decide.

use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode, response};
use http_body::Frame;

use super::pushback::{self, Pushback};
use crate::arriving::Arriving;
use crate::error::{Failure, Reason};
use crate::request::attempt::Answer;
use crate::request::grpc;

/// The longest wait for the first frame of an answer whose head is there. Servers that fail at once say so in the
/// head or right behind it; one that sends its head early and its first message late should not seem slower by more.
const PEEK_MAX: Duration = Duration::from_secs(1);

/// The code UNAVAILABLE of gRPC.
pub(super) const UNAVAILABLE: u16 = 14;

/// How a call ended that ended before its first message. Kept among the extensions of the answer's head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) status: u16,
    pub(super) pushback: Option<Pushback>,
}

impl Ended {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let status = grpc::status(headers)?;
        let pushback = pushback::of_call(headers);
        Some(Self { status, pushback })
    }
}

/// The status of a call, if it is known by now: from its head, or from trailers that came instead of a message.
pub(crate) fn status(head: &response::Parts) -> Option<u16> {
    match head.extensions.get::<Ended>() {
        Some(ended) => Some(ended.status),
        None => grpc::status(&head.headers),
    }
}

/// Finds out whether the call has ended already. `wait`: until the first frame of the answer has come, at most until
/// the deadline, since nothing more is to come from the caller before it.
///
/// # Errors
/// When the answer breaks off before its first frame.
pub(crate) async fn look(
    mut answer: Box<Answer>,
    wait: bool,
    deadline: Option<Instant>,
) -> Result<Box<Answer>, Failure> {
    if answer.head.status != StatusCode::OK {
        return Ok(answer);
    }
    if let Some(ended) = Ended::of(&answer.head.headers) {
        answer.head.extensions.insert(ended);
        return Ok(answer);
    }
    if !wait || !matches!(answer.body, Arriving::Http2(_)) {
        return Ok(answer);
    }
    let until = Instant::now() + PEEK_MAX;
    let until = deadline.map_or(until, |deadline| deadline.min(until));
    let Ok(frame) = tokio::time::timeout_at(until.into(), first_frame(&mut answer)).await else {
        return Ok(answer);
    };
    let Some(frame) = frame? else { return Ok(answer) };
    if let Some(ended) = frame.trailers_ref().and_then(Ended::of) {
        answer.head.extensions.insert(ended);
    }
    answer.body.put_back(frame);
    Ok(answer)
}

/// The first frame that says something; `None` if the answer ends without any.
async fn first_frame(answer: &mut Answer) -> Result<Option<Frame<bytes::Bytes>>, Failure> {
    let Answer {
        body, carrier, pick, ..
    } = answer;
    loop {
        match std::future::poll_fn(|cx| carrier.poll_body(body, cx)).await {
            None => return Ok(None),
            Some(Ok(frame)) if frame.data_ref().is_some_and(bytes::Bytes::is_empty) => {}
            Some(Ok(frame)) => return Ok(Some(frame)),
            Some(Err(error)) => {
                let detail = format!("{} broke off its answer before it began: {error}", pick.address);
                return Err(Failure::new(Reason::UpstreamReset, detail));
            }
        }
    }
}

/// What gRPC makes of a status of HTTP that comes without one of its own.
pub(super) const fn grpc_status_of_http(status: u16) -> u16 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => UNAVAILABLE,
        _ => 2,
    }
}
