//! Which service a connection is for, by the address that it was made to, where services have virtual addresses.
//!
//! A range can be listened on only by listening on every address of the machine, and the application's side of a sidecar is
//! for the application alone. So a connection from elsewhere, which came to another address, is not taken.

use std::net::IpAddr;
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
    let local = stream.local_addr().ok()?;
    made_to(entry, (local.ip(), range), &worker.lease())
}

/// For whom a connection is that was made to this address; `None`: it is not the application's.
fn made_to(entry: Arc<Entry>, (local, range): (IpAddr, Range), snapshot: &Snapshot) -> Option<Arc<Entry>> {
    // A listener for both families shows addresses of IPv4 as ones of IPv6.
    let local = local.to_canonical();
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
            ("::ffff:240.1.2.3", true),
            ("::1", true),
            ("10.0.0.1", false),
            ("::ffff:10.0.0.1", false),
            ("fd00::1", false),
        ] {
            let local = local.parse().unwrap();
            let entry = made_to(Arc::new(Entry::Outbound), (local, range), &snapshot);
            assert_eq!(entry.is_some(), taken, "{local}");
        }
    }
}
