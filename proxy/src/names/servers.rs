//! The name servers that are asked for what the mesh does not know.
//!
//! A listener that asked itself would go round for ever, so it is never among them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

/// Where a system says who its name servers are.
pub(super) const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The port of DNS; resolv.conf names no other.
const DNS_PORT: u16 = 53;

/// The servers of the system without this listener, and whether it was among them.
pub(super) fn of_system(path: &Path, listener: SocketAddr) -> (Vec<SocketAddr>, bool) {
    let text = std::fs::read(path).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "cannot read who the name servers are");
        Vec::new()
    });
    without(listener, &of(&text))
}

/// The servers that a resolv.conf names. What cannot be read of it is passed by, as resolver libraries do it.
fn of(text: &[u8]) -> Vec<SocketAddr> {
    let (config, _) = resolv_conf::Config::parse_with_errors(text);
    let servers = config.nameservers.into_iter();
    servers
        .map(|server| SocketAddr::new(server.into(), DNS_PORT))
        .collect()
}

/// These without the listener itself, and whether it was among them.
fn without(listener: SocketAddr, servers: &[SocketAddr]) -> (Vec<SocketAddr>, bool) {
    let others = servers.iter().filter(|server| !is_itself(listener, **server));
    let others: Vec<_> = others.copied().collect();
    let was_there = others.len() < servers.len();
    (others, was_there)
}

/// Whether what is sent to this server comes to the listener.
fn is_itself(listener: SocketAddr, server: SocketAddr) -> bool {
    let here = listener.ip() == server.ip() || listener.ip().is_unspecified() && is_of_this_host(server.ip());
    here && listener.port() == server.port()
}

/// Whether an address is one of this host's: one can listen there.
fn is_of_this_host(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(listener: &str, text: &str) -> (Vec<String>, bool) {
        let (servers, was_there) = without(listener.parse().unwrap(), &of(text.as_bytes()));
        (servers.iter().map(ToString::to_string).collect(), was_there)
    }

    #[test]
    fn the_listener_itself_is_never_among_the_servers_of_the_system() {
        let text = "# a comment\nsearch shop.internal\nnameserver 127.0.0.1\nnameserver 192.0.2.1\nnameserver ::1\nnameserver fe80::1%lo\nwhat is this\noptions ndots:5\n";
        let others = |these: &[&str]| these.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (listener, servers, was_there) in [
            (
                "127.0.0.1:53",
                &["192.0.2.1:53", "[::1]:53", "[fe80::1]:53"][..],
                true,
            ),
            (
                "127.0.0.1:15053",
                &["127.0.0.1:53", "192.0.2.1:53", "[::1]:53", "[fe80::1]:53"],
                false,
            ),
            (
                "[::1]:53",
                &["127.0.0.1:53", "192.0.2.1:53", "[fe80::1]:53"],
                true,
            ),
            ("0.0.0.0:53", &["192.0.2.1:53", "[fe80::1]:53"], true),
        ] {
            assert_eq!(kept(listener, text), (others(servers), was_there), "{listener}");
        }
        assert_eq!(kept("127.0.0.1:53", ""), (Vec::new(), false));
    }
}
