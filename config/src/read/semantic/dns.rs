//! The checks of a DNS listener.

use std::net::SocketAddr;

use super::super::node::Fault;
use super::At;
use crate::bootstrap::Listeners;

/// More ports than the services of one application are asked at; each is a socket of its own.
const PORTS_MAX: usize = 64;

/// A question waits for so many servers at most; resolver libraries take three.
const SERVERS_MAX: usize = 8;

/// Checks what is said of the DNS listener. `at` is the listeners.
pub(super) fn listener(at: &At<'_>, listeners: &Listeners, faults: &mut Vec<Fault>) {
    let (Some(at), Some(dns)) = (at.field("dns"), &listeners.dns) else {
        return;
    };
    for (field, count, max) in [
        ("ports", dns.ports.len(), PORTS_MAX),
        ("servers", dns.servers.len(), SERVERS_MAX),
    ] {
        if let Some(at) = at.field(field).filter(|_| count > max) {
            faults.push(at.fault(format!("{count} {field}; at most {max} are taken")));
        }
    }
    for (at, port) in at.items_of("ports").iter().zip(&dns.ports) {
        if *port == 0 {
            faults.push(at.fault("0 is no port: its number is in no URL and no connection string"));
        }
    }
    for (at, server) in at.items_of("servers").iter().zip(&dns.servers) {
        let (server, here) = (server.0, dns.address);
        let is_here = server.ip() == here.ip() || here.ip().is_unspecified() && server.ip().is_loopback();
        if is_here && server.port() == here.port() {
            faults.push(at.fault(format!(
                "{server} is this listener itself; name the servers that are to be asked for what the mesh does not know"
            )));
        }
    }
}

/// The addresses where it listens over TCP, each with what it is called and where it is written.
pub(super) fn addresses<'a>(at: &At<'a>, listeners: &Listeners) -> Vec<(String, SocketAddr, Option<At<'a>>)> {
    let (Some(at), Some(dns)) = (at.field("dns"), &listeners.dns) else {
        return Vec::new();
    };
    let address = at.field("address").or_else(|| at.node.text().map(|_| at.clone()));
    let own = ("`dns`".to_owned(), dns.address, address);
    let ports = at.items_of("ports");
    let ports = ports.into_iter().zip(dns.port_addresses(listeners.outbound));
    let ports = ports.map(|(at, address)| ("`ports` of `dns`".to_owned(), address, Some(at)));
    std::iter::once(own).chain(ports).collect()
}
