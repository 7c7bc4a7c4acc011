//! The checks of what is said about TLS to the outside.

use std::net::IpAddr;

use super::super::node::{Fault, shown};
use super::At;
use super::names::host;
use crate::outside::{OutsideTls, Roots};

/// Checks how servers outside of the mesh are spoken to. `found_by_name`: DNS finds them, so that they have a name.
pub(super) fn outside(at: &At<'_>, said: &OutsideTls, found_by_name: bool, faults: &mut Vec<Fault>) {
    match (&said.server_name, at.field("server_name")) {
        (Some(name), Some(at)) => faults.extend(server_name(name).map(|why| at.fault(why))),
        (None, _) if !found_by_name && at.given(&["server_name"]) == 0 && !at.is_damaged() => {
            faults.push(at.fault(
                "the field `server_name` is missing: an address has no name for which the certificate could be good; write \
                 the one that it is made out to, such as server_name: api.example.com",
            ));
        }
        _ => {}
    }
    if let (Some(at), Roots::File(path)) = (at.field("roots"), &said.roots)
        && !path.is_absolute()
    {
        faults.push(at.fault(format!(
            "`{}` is neither `system` nor an absolute path; expected a PEM file on the sidecar's machine, such as \
             /etc/ssl/payments-root.pem",
            shown(&path.to_string_lossy())
        )));
    }
}

/// Why a text cannot be the name of a server: it is a DNS name, or an address.
fn server_name(name: &str) -> Option<String> {
    if name.parse::<IpAddr>().is_ok() {
        return None;
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    // RFC 1123 section 2.1: the last label is not all digits, which is what tells a name from an address.
    if host(name).is_none() && last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(format!(
            "`{}` is neither a host name nor an IP address",
            shown(name)
        ));
    }
    host(name)
}
