//! What the application is told of a caller with a certificate.

use std::fmt::Write as _;

use http::HeaderValue;
use outrigger_config::identity::SpiffeId;

#[cfg(any(test, fuzzing))]
use crate::tls::identity::Certificate;
use crate::tls::identity::sha256;

/// `x-forwarded-client-cert` as Envoy writes it: who was asked, the hash of the caller's certificate, who asks. None of the
/// three can hold a byte that would have to be quoted.
pub(super) fn forwarded(by: &SpiffeId, from: &SpiffeId, certificate: &[u8]) -> HeaderValue {
    let mut text = format!("By={by};Hash=");
    for byte in sha256(certificate) {
        let _ = write!(text, "{byte:02x}");
    }
    let _ = write!(text, ";URI={from}");
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Who a caller with this certificate would be, and what would be told of it, for `fuzzing`.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_of_a_caller(certificate: &[u8]) -> Option<(SpiffeId, HeaderValue)> {
    let id = Certificate::read(certificate)
        .and_then(|read| read.spiffe_id())
        .ok()?;
    let forwarded = forwarded(&id, &id, certificate);
    Some((id, forwarded))
}
