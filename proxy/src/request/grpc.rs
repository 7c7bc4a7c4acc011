//! What gRPC says in headers and trailers: a call's deadline, and how a call failed.
//!
//! Only what a proxy must read or say; messages pass unread. The rules are those of gRPC's "PROTOCOL-HTTP2" and
//! "HTTP to gRPC Status Code Mapping" documents.

use std::fmt::Write;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::error::Reason;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The digits that a timeout may have.
const TIMEOUT_DIGITS_MAX: usize = 8;

/// The time that a call is given by its caller. One that cannot be read is none: the endpoint will refuse the call.
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.is_empty()
        || number.len() > TIMEOUT_DIGITS_MAX
        || !number.bytes().all(|byte| byte.is_ascii_digit())
    {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Tells the next hop what is left of the call's time, in the finest unit that has digits enough.
pub(crate) fn tell_what_is_left(headers: &mut HeaderMap, left: Duration) {
    let fits = |number: u128| number < 10_u128.pow(TIMEOUT_DIGITS_MAX as u32);
    let (number, unit) = match left {
        _ if fits(left.as_nanos()) => (left.as_nanos(), 'n'),
        _ if fits(left.as_micros()) => (left.as_micros(), 'u'),
        _ if fits(left.as_millis()) => (left.as_millis(), 'm'),
        _ => (u128::from(left.as_secs()).min(99_999_999), 'S'),
    };
    if let Ok(text) = HeaderValue::try_from(format!("{number}{unit}")) {
        headers.insert(GRPC_TIMEOUT, text);
    }
}

/// The status that trailers, or the head of an answer without a body, tell. `None`: none, or no number.
pub(crate) fn status(headers: &HeaderMap) -> Option<u16> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// The status of a call whose time was over.
pub(crate) const DEADLINE_EXCEEDED: u16 = 4;

/// Whether a status tells that the server failed, and not that the call was wrong: what Linkerd counts so, as it would
/// be a 5xx in HTTP.
pub(crate) fn is_server_failure(status: u16) -> bool {
    const UNKNOWN: u16 = 2;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const DATA_LOSS: u16 = 15;
    matches!(
        status,
        UNKNOWN | DEADLINE_EXCEEDED | INTERNAL | UNAVAILABLE | DATA_LOSS
    )
}

/// The same of a head, or of trailers.
pub(crate) fn says_server_failed(headers: &HeaderMap) -> bool {
    status(headers).is_some_and(is_server_failure)
}

/// Says a failure of our own as gRPC says it.
pub(crate) fn say(headers: &mut HeaderMap, reason: Reason) {
    say_as(headers, reason, u16::from(reason.grpc_status()));
}

/// The same with another status than the reason's own.
pub(crate) fn say_as(headers: &mut HeaderMap, reason: Reason, status: u16) {
    let message = format!("outrigger: {}: {}", reason.word(), reason.advice());
    say_status(headers, status, &message);
}

/// The longest message, before it is encoded: a head by HTTP/2 may often have 8 KiB, and a byte becomes three.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Says how a call ended, with the beginning of a message that is too long for a head.
pub(crate) fn say_status(headers: &mut HeaderMap, status: u16, message: &str) {
    headers.insert(GRPC_STATUS, HeaderValue::from(status));
    let message = &message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)];
    if let Ok(message) = HeaderValue::try_from(percent_encoded(message.trim_end())) {
        headers.insert(GRPC_MESSAGE, message);
    }
}

/// What a call is told instead of a status of HTTP: gRPC's document "HTTP to gRPC Status Code Mapping".
pub(crate) fn status_of_http(status: StatusCode) -> u16 {
    const UNKNOWN: u16 = 2;
    const PERMISSION_DENIED: u16 = 7;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    match status.as_u16() {
        400 => INTERNAL,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        429 | 502 | 503 | 504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

/// `grpc-message` is printable ASCII without `%`; the rest is percent-encoded UTF-8.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &'static str) -> Option<Duration> {
        timeout(&HeaderMap::from_iter([(
            GRPC_TIMEOUT,
            HeaderValue::from_static(text),
        )]))
    }

    #[test]
    fn a_timeout_is_read_in_each_of_its_units_and_what_is_none_is_none() {
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("7u"), Some(Duration::from_micros(7)));
        assert_eq!(read("8n"), Some(Duration::from_nanos(8)));
        for wrong in ["", "m", "5", "5s", "-5m", "+5m", "123456789m", "1.5S", "5 m"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_is_left_is_told_in_eight_digits_and_never_more_than_is_left() {
        for (left, told) in [
            (Duration::ZERO, "0n"),
            (Duration::from_millis(50), "50000000n"),
            (Duration::from_millis(250), "250000u"),
            (Duration::from_secs(2), "2000000u"),
            (Duration::from_secs(3600), "3600000m"),
            (Duration::from_secs(u64::MAX), "99999999S"),
        ] {
            let mut headers = HeaderMap::new();
            tell_what_is_left(&mut headers, left);
            assert_eq!(headers[GRPC_TIMEOUT], told);
            assert!(timeout(&headers).unwrap() <= left);
        }
    }

    #[test]
    fn every_reason_can_be_said() {
        for reason in Reason::ALL {
            let mut headers = HeaderMap::new();
            say(&mut headers, reason);
            assert_eq!(status(&headers), Some(u16::from(reason.grpc_status())));
            assert!(headers[GRPC_MESSAGE].to_str().unwrap().contains(reason.word()));
        }
        assert_eq!(percent_encoded("50 % é"), "50 %25 %C3%A9");
    }
}
