//! The checks of what the mesh says is revoked.

use super::super::node::{Fault, shown};
use super::At;
use crate::join::{Revoked, trust_domain_problem};
use crate::mesh::Mesh;

/// The most entries of each list of what is revoked: every sidecar holds both and looks at them in each handshake.
/// Certificates that expire leave the list, so a mesh that comes near it is better served by a new root.
const REVOKED_MAX: usize = 10_000;

/// A serial number has at most 20 bytes (RFC 5280, section 4.1.2.2).
const SERIAL_DIGITS_MAX: usize = 40;

/// Checks the `revoked` field of a mesh.
pub(super) fn revoked(at: &At<'_>, mesh: &Mesh, faults: &mut Vec<Fault>) {
    if let (Some(at), Some(revoked)) = (at.field("revoked"), &mesh.revoked) {
        revocations(&at, revoked, faults);
    }
}

fn revocations(at: &At<'_>, revoked: &Revoked, faults: &mut Vec<Fault>) {
    for (item, serial) in at.items_of("serials").iter().zip(&revoked.serials) {
        let digits = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if serial.is_empty() || serial.len() > SERIAL_DIGITS_MAX || !serial.bytes().all(digits) {
            faults.push(item.fault(format!(
                "`{}` is not a serial number: expected 1 to {SERIAL_DIGITS_MAX} hexadecimal digits in lower case, as \
                 `outrigger audit` shows them",
                shown(serial)
            )));
        }
    }
    for (item, identity) in at.items_of("identities").iter().zip(&revoked.identities) {
        let rest = identity.strip_prefix("spiffe://");
        let parts = rest.and_then(|rest| rest.split_once('/'));
        let good =
            parts.is_some_and(|(domain, path)| trust_domain_problem(domain).is_none() && !path.is_empty());
        if !good {
            faults.push(item.fault(format!(
                "`{}` is not a SPIFFE ID: expected one such as spiffe://mesh.local/reviews",
                shown(identity)
            )));
        }
    }
    for (key, length) in [
        ("serials", revoked.serials.len()),
        ("identities", revoked.identities.len()),
    ] {
        if length > REVOKED_MAX
            && let Some(at) = at.field(key)
        {
            faults.push(at.fault(format!(
                "{length} are revoked here; at most {REVOKED_MAX} are allowed"
            )));
        }
    }
}
