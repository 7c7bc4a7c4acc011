//! What an endpoint says about coming again: `Retry-After` and gRPC's pushback. Read only after a failure.

use std::time::{Duration, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName};

use super::peek::Ended;
use crate::error::Failure;
use crate::request::attempt::Answer;

/// What an endpoint asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushback {
    /// To come again, but not before.
    Wait(Duration),
    /// Not to come again.
    Never,
}

const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// What the endpoint asked for with its answer, if anything.
pub(super) fn asked(outcome: &Result<Box<Answer>, Failure>) -> Option<Pushback> {
    let answer = outcome.as_ref().ok()?;
    if let Some(ended) = answer.head.extensions.get::<Ended>() {
        return ended.pushback;
    }
    match answer.head.status.as_u16() {
        429 | 503 => retry_after(&answer.head.headers, SystemTime::now),
        _ => None,
    }
}

/// RFC 9110 section 10.2.3: seconds, or a date. What is neither is nothing said.
fn retry_after(headers: &HeaderMap, now: impl FnOnce() -> SystemTime) -> Option<Pushback> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            date.duration_since(now()).unwrap_or_default()
        }
    };
    Some(Pushback::Wait(wait))
}

/// gRFC A6: milliseconds; a negative number, or none at all, asks not to try again.
pub(super) fn of_call(trailers: &HeaderMap) -> Option<Pushback> {
    let text = trailers.get(GRPC_PUSHBACK)?;
    let millis = text.to_str().ok().and_then(|text| text.trim().parse().ok());
    Some(millis.map_or(Pushback::Never, |millis| {
        Pushback::Wait(Duration::from_millis(millis))
    }))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn wait(seconds: u64) -> Option<Pushback> {
        Some(Pushback::Wait(Duration::from_secs(seconds)))
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        // 784111777 s after 1970, the date that RFC 9110 itself shows.
        let now = || SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 30);
        for (text, read) in [
            ("0", wait(0)),
            ("120", wait(120)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", wait(30)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", wait(30)),
            ("Sun Nov  6 08:49:37 1994", wait(30)),
            ("Sat, 05 Nov 1994 08:49:37 GMT", wait(0)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("99999999999999999999", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            assert_eq!(retry_after(&headers, now), read, "{text}");
        }
    }

    #[test]
    fn a_pushback_of_grpc_that_is_no_time_asks_not_to_come_again() {
        for (text, read) in [
            ("2000", wait(2)),
            ("-1", Some(Pushback::Never)),
            ("later", Some(Pushback::Never)),
        ] {
            let trailers = HeaderMap::from_iter([(GRPC_PUSHBACK, HeaderValue::from_static(text))]);
            assert_eq!(of_call(&trailers), read, "{text}");
        }
        assert_eq!(of_call(&HeaderMap::new()), None);
    }
}
