//! Which service a connection is for, by the address that it was made to, where services have virtual addresses.
//!
//! A range can be listened on only by listening on every address of the machine, and the application's side of a sidecar is
//! for the application alone. So a connection is taken only if it came to an address of the range or of loopback, and from this
//! host: a neighbour on the link can send packets for any address here, and the kernel takes those that it holds for its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;

use outrigger_config::names::Range;
use tokio::net::TcpStream;

use crate::request::Worker;
use crate::snapshot::{Entry, Snapshot};

/// For whom a connection is; `None`: it is not the application's, or it is gone. Nothing is asked where its listener has no
/// `range`.
pub(super) fn entry(
    worker: &Worker,
    entry: Arc<Entry>,
    (stream, range): (&TcpStream, Option<Range>),
) -> Option<Arc<Entry>> {
    let Some(range) = range else {
        return Some(entry);
    };
    // A listener for both families shows addresses of IPv4 as ones of IPv6.
    let peer = stream.peer_addr().ok()?.ip().to_canonical();
    let local = stream.local_addr().ok()?.ip().to_canonical();
    if !is_of_this_host(peer, range, is_own) {
        return None;
    }
    made_to(entry, (local, range), &worker.lease())
}

/// Whether a peer is on this host. The kernel lets nobody in from outside whose source is loopback or an address that is its
/// own, as those of the range are; and who connects to such an address without choosing a source has that address as its own.
fn is_of_this_host(peer: IpAddr, range: Range, is_own: impl FnOnce(IpAddr) -> bool) -> bool {
    let in_range = matches!(peer, IpAddr::V4(address) if range.contains(address));
    peer.is_loopback() || in_range || is_own(peer)
}

/// Whether this is an address of this host: only to its own does the kernel speak from the same address. Nothing is sent.
/// Binding to it would tell less, since `ip_nonlocal_bind` lets a host bind to any. A second address of the same subnet is
/// spoken to from the first, and so not known here: an application would have to choose it as its source.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        // Any port will do: none is reached.
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address)
}

/// For whom a connection is that was made to this address; `None`: it is not the application's.
fn made_to(entry: Arc<Entry>, (local, range): (IpAddr, Range), snapshot: &Snapshot) -> Option<Arc<Entry>> {
    match local {
        IpAddr::V4(address) if range.contains(address) => {
            let service = snapshot.service_at(address);
            // One whose service has gone is told by its `Host`, as far as that goes.
            Some(service.map_or(entry, |service| Arc::new(Entry::Virtual(service))))
        }
        _ => local.is_loopback().then_some(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::compile;
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn what_came_to_another_address_than_loopback_and_the_range_is_not_taken() {
        let snapshot = compile::nothing(&Arc::new(Metrics::new().unwrap()));
        let range = "240.0.0.0/4".parse().unwrap();
        for (local, taken) in [
            ("127.0.0.1", true),
            ("127.64.0.1", true),
            ("240.1.2.3", true),
            ("::1", true),
            ("10.0.0.1", false),
            ("fd00::1", false),
        ] {
            let local = local.parse().unwrap();
            let entry = made_to(Arc::new(Entry::Outbound), (local, range), &snapshot);
            assert_eq!(entry.is_some(), taken, "{local}");
        }
    }

    #[test]
    fn a_peer_is_of_this_host_by_loopback_by_the_range_and_by_an_address_of_the_host() {
        let range = "240.0.0.0/8".parse().unwrap();
        let own: IpAddr = "10.0.0.1".parse().unwrap();
        for (peer, is) in [
            ("127.0.0.1", true),
            ("127.64.0.1", true),
            ("::1", true),
            ("240.1.2.3", true),
            ("10.0.0.1", true),
            ("10.0.0.2", false),
            ("241.1.2.3", false),
            ("fd00::1", false),
        ] {
            let found = is_of_this_host(peer.parse().unwrap(), range, |peer| peer == own);
            assert_eq!(found, is, "{peer}");
        }
    }

    #[test]
    fn an_address_is_the_host_s_own_if_the_host_speaks_from_it() {
        // The second is for documentation (RFC 5737), the third everybody's.
        for (address, is) in [("127.0.0.1", true), ("192.0.2.77", false), ("0.0.0.0", false)] {
            assert_eq!(is_own(address.parse().unwrap()), is, "{address}");
        }
    }
}
