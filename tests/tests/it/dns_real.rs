//! Endpoints found by DNS servers that people run: Knot as the authority, dnsmasq with its hosts and as a cache.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use outrigger_tests::dns_servers::{Dnsmasq, Knot};
use outrigger_tests::{Sidecar, Upstream};

use crate::dns_hostile::{
    FOUR, NAME, ONE, THREE, TWO, asks, has_endpoints, load, many, settled_on, settled_on_names, upstreams,
};

const ZONE: &str = "mesh.test";

/// A sidecar whose service is found under [`NAME`] at this port.
async fn sidecar(dns: SocketAddr, port: u16) -> Sidecar {
    asks(&[dns], &format!("dns: {NAME}, port: {port}")).await
}

#[tokio::test]
async fn an_authority_s_records_are_followed_up_and_down_and_no_request_fails() {
    let dns = Knot::start(ZONE).await;
    let (_upstreams, port) = upstreams(&[ONE, TWO, THREE, FOUR]).await;
    dns.set_addresses("reviews", &[ONE], 1);
    let sidecar = sidecar(dns.address(), port).await;
    let load = load(&sidecar);
    for addresses in [&[ONE][..], &[ONE, TWO, THREE], &[THREE], &[FOUR]] {
        dns.set_addresses("reviews", addresses, 1);
        settled_on(&load, addresses).await;
    }
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn a_cache_between_the_sidecar_and_the_authority_delays_a_change_by_its_ttl_alone() {
    let authority = Knot::start(ZONE).await;
    let cache = Dnsmasq::before(authority.address()).await;
    let (_upstreams, port) = upstreams(&[ONE, TWO]).await;
    authority.set_addresses("reviews", &[ONE], 2);
    let sidecar = sidecar(cache.address(), port).await;
    let load = load(&sidecar);
    for addresses in [&[ONE][..], &[ONE, TWO], &[TWO]] {
        authority.set_addresses("reviews", addresses, 2);
        settled_on(&load, addresses).await;
    }
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn the_hosts_of_dnsmasq_are_followed_and_its_restart_under_load_is_not_felt() {
    let mut dns = Dnsmasq::start(NAME, &[ONE], 1).await;
    let (_upstreams, port) = upstreams(&[ONE, TWO]).await;
    let sidecar = sidecar(dns.address(), port).await;
    let load = load(&sidecar);
    settled_on(&load, &[ONE]).await;
    dns.set(NAME, &[ONE, TWO]);
    settled_on(&load, &[ONE, TWO]).await;
    dns.kill();
    // Its socket refuses questions meanwhile; what was known serves.
    load.has_done_more(500).await;
    settled_on(&load, &[ONE, TWO]).await;
    dns.set_while_dead(NAME, &[TWO]);
    dns.revive().await;
    settled_on(&load, &[TWO]).await;
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn addresses_of_both_families_are_endpoints() {
    let dns = Knot::start(ZONE).await;
    let six = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let (_upstreams, port) = upstreams(&[ONE, six]).await;
    dns.set_addresses("reviews", &[ONE, six], 1);
    let sidecar = sidecar(dns.address(), port).await;
    let load = load(&sidecar);
    settled_on(&load, &[ONE, six]).await;
    dns.set_addresses("reviews", &[six], 1);
    settled_on(&load, &[six]).await;
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn an_alias_is_followed_when_it_points_elsewhere() {
    let dns = Knot::start(ZONE).await;
    let (_upstreams, port) = upstreams(&[ONE, TWO]).await;
    dns.set_addresses("blue", &[ONE], 1);
    dns.set_addresses("green", &[TWO], 1);
    dns.set("reviews", &["CNAME stage.mesh.test.".to_owned()], 60);
    dns.set("stage", &["CNAME blue.mesh.test.".to_owned()], 1);
    let sidecar = sidecar(dns.address(), port).await;
    let load = load(&sidecar);
    settled_on(&load, &[ONE]).await;
    // The shortest TTL of the chain counts, not that of its first link.
    dns.set("stage", &["CNAME green.mesh.test.".to_owned()], 1);
    settled_on(&load, &[TWO]).await;
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn more_addresses_than_a_datagram_holds_are_all_endpoints() {
    let dns = Knot::start(ZONE).await;
    // 1,600 bytes, more than any sidecar says that it takes.
    dns.set_addresses("reviews", &many(100), 1);
    let sidecar = sidecar(dns.address(), 9).await;
    has_endpoints(&sidecar, 100.0).await;
}

#[tokio::test]
async fn the_second_server_answers_while_the_first_is_away() {
    let mut first = Dnsmasq::start(NAME, &[ONE], 1).await;
    let second = Knot::start(ZONE).await;
    second.set_addresses("reviews", &[ONE], 1);
    let (_upstreams, port) = upstreams(&[ONE, TWO]).await;
    first.kill();
    let servers = [first.address(), second.address()];
    let sidecar = asks(&servers, &format!("dns: {NAME}, port: {port}")).await;
    let load = load(&sidecar);
    settled_on(&load, &[ONE]).await;
    second.set_addresses("reviews", &[TWO], 1);
    settled_on(&load, &[TWO]).await;
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn srv_records_of_an_authority_say_where_and_in_which_order() {
    let dns = Knot::start(ZONE).await;
    let [blue, green, spare] = ["blue", "green", "spare"].map(Upstream::start);
    let (blue, green, spare) = (blue.await, green.await, spare.await);
    dns.set_addresses("host", &[ONE], 1);
    let record = |priority: u16, upstream: &Upstream| {
        let port = upstream.address().port();
        format!("SRV {priority} 10 {port} host.mesh.test.")
    };
    let set = |records: &[String]| dns.set("_reviews._tcp", records, 1);
    set(&[record(1, &blue), record(1, &green), record(2, &spare)]);
    let sidecar = asks(&[dns.address()], "srv: _reviews._tcp.mesh.test").await;
    let load = load(&sidecar);
    settled_on_names(&load, &["blue", "green"]).await;
    // What was the standby is now the one and only.
    set(&[record(2, &spare)]);
    settled_on_names(&load, &["spare"]).await;
    set(&[record(1, &blue), record(2, &spare)]);
    settled_on_names(&load, &["blue"]).await;
    load.stop().await.assert_clean();
}
