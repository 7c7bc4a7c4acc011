//! Until when a chain of certificates is good: what is made with it lasts no longer.
//!
//! That is until the first certificate ends without which the chain leads to no root. One that is shown and not needed
//! shortens nothing: a root, or the old half of a pair while roots are exchanged. rustls says that a chain leads to a root
//! and not by which way, so it is asked again for the moment after each end that comes before that of the first certificate;
//! of nearly every chain there is none.
//!
//! **Does not** verify: who asks says how.

use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::tls::identity::IdentityProblem;
use crate::tls::seconds;

/// For so many ends it is asked again, since each costs what a handshake does. A chain has one or two certificates between
/// its first and the root; what shows more ends with the earliest.
const LOOKS_MAX: usize = 4;

/// Until when a chain is good that is good now, in seconds since 1970, that second included. `holds`: whether it leads to a
/// root at this moment.
pub(super) fn end_of(
    chain: &[CertificateDer<'_>],
    now: SystemTime,
    holds: impl Fn(UnixTime) -> bool,
) -> Result<i64, IdentityProblem> {
    let ends = chain.iter().map(|certificate| not_after(certificate));
    let mut ends = ends.collect::<Result<Vec<_>, _>>()?;
    let first = ends.first().copied().unwrap_or_default();
    let now = seconds(now);
    ends.retain(|end| (now..first).contains(end));
    ends.sort_unstable();
    ends.dedup();
    let goes_on = |end: i64| {
        let after = u64::try_from(end).unwrap_or_default() + 1;
        holds(UnixTime::since_unix_epoch(Duration::from_secs(after)))
    };
    let mut earlier = ends.iter().copied();
    let found = match ends.len() > LOOKS_MAX {
        true => earlier.next(),
        false => earlier.find(|end| !goes_on(*end)),
    };
    Ok(found.unwrap_or(first))
}

fn not_after(der: &CertificateDer<'_>) -> Result<i64, IdentityProblem> {
    let read = X509Certificate::from_der(der);
    let (_, certificate) = read.map_err(|error| IdentityProblem::BadCertificate(error.to_string()))?;
    Ok(certificate.validity().not_after.timestamp())
}
