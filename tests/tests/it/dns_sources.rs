//! How names become endpoints: SRV records, several sources, one address at a time, families, and what of the system counts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use outrigger_tests::dns::{DnsServer, Place};
use outrigger_tests::wait::eventually;
use outrigger_tests::{Answer, Behaviour, ServiceFile, Sidecar, SidecarSpec, Upstream};
use serde_json::Value;

const ONE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const OFTEN: &str = "refresh: { floor: 100ms, ceiling: 100ms }";

/// The spec of a sidecar whose service has one backend, found so.
fn spec(dns: &DnsServer, discover: &str) -> SidecarSpec {
    let file = format!(
        "kind: Service\nname: reviews\nbackends:\n  - name: v1\n    discover: {discover}\nroutes:\n  - name: default\n    to: [{{ backend: v1 }}]\n"
    );
    SidecarSpec::text("a", &file).dns(dns.address())
}

/// Two upstreams with one port on two addresses of this machine.
async fn two_upstreams() -> (Upstream, Upstream) {
    let one = Upstream::start("one").await;
    let two = Upstream::start_at("two", SocketAddr::new(TWO, one.address().port())).await;
    (one, two)
}

async fn answers(sidecar: &Sidecar, upstream: &str) {
    eventually(&format!("{upstream} to answer"), async || {
        (sidecar.client().get("reviews", "/").await.upstream() == upstream).then_some(())
    })
    .await;
}

/// The endpoints of the only cluster.
async fn endpoints(sidecar: &Sidecar) -> Vec<String> {
    let page: Value = sidecar.page("/clusters").await.json();
    let endpoints = page["clusters"][0]["endpoints"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    endpoints
        .iter()
        .map(|endpoint| endpoint["address"].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[tokio::test]
async fn srv_records_say_the_ports_and_the_lowest_priority_that_is_well_serves() {
    let dns = DnsServer::start("mesh.test").await;
    let (mut first, standby) = (Upstream::start("first").await, Upstream::start("standby").await);
    dns.set("host.mesh.test", &[ONE], 0).await;
    let place = |priority, upstream: &Upstream| Place {
        priority,
        weight: 1,
        port: upstream.address().port(),
        host: "host.mesh.test",
    };
    let places = [place(1, &first), place(2, &standby)];
    dns.set_services("_reviews._tcp.mesh.test", &places, 0).await;
    let discover = format!("{{ srv: _reviews._tcp.mesh.test, {OFTEN} }}");
    let sidecar = Sidecar::start(spec(&dns, &discover)).await;
    for _ in 0..10 {
        assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "first");
    }
    assert_eq!(endpoints(&sidecar).await, [first.address().to_string()]);
    first.kill();
    answers(&sidecar, "standby").await;
    first.revive().await;
    answers(&sidecar, "first").await;
    eventually("the standby to stand by again", async || {
        (endpoints(&sidecar).await == [first.address().to_string()]).then_some(())
    })
    .await;
    // What was found stays when the records go, and what takes their place counts.
    dns.set_services("_reviews._tcp.mesh.test", &[], 0).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "first");
    dns.set_services("_reviews._tcp.mesh.test", &[place(1, &standby)], 0)
        .await;
    answers(&sidecar, "standby").await;
}

#[tokio::test]
async fn srv_records_share_requests_by_weight() {
    let dns = DnsServer::start("mesh.test").await;
    let (light, heavy) = (Upstream::start("light").await, Upstream::start("heavy").await);
    dns.set("host.mesh.test", &[ONE], 60).await;
    let place = |weight, upstream: &Upstream| Place {
        priority: 0,
        weight,
        port: upstream.address().port(),
        host: "host.mesh.test",
    };
    let places = [place(10, &light), place(30, &heavy)];
    dns.set_services("_reviews._tcp.mesh.test", &places, 60).await;
    let mut spec = spec(&dns, "{ srv: _reviews._tcp.mesh.test }");
    if let outrigger_tests::sidecar::Source::Text(text) = &mut spec.source {
        text.push_str("balance: round_robin\n");
    }
    let sidecar = Sidecar::start(spec.with("--workers", "1")).await;
    for _ in 0..40 {
        assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    }
    assert!((25..=35).contains(&heavy.requests()), "{}", heavy.requests());
}

#[tokio::test]
async fn what_several_sources_find_is_one_set() {
    let dns = DnsServer::start("mesh.test").await;
    let (one, two) = two_upstreams().await;
    let three = Upstream::start("three").await;
    let port = one.address().port();
    dns.set("east.mesh.test", &[ONE], 0).await;
    dns.set("west.mesh.test", &[TWO], 0).await;
    let discover = format!(
        "[{{ dns: east.mesh.test, port: {port}, {OFTEN} }}, {{ dns: west.mesh.test, port: {port}, {OFTEN} }}, \
         {{ dns: nowhere.mesh.test, port: {port} }}, {{ static: [{}] }}]",
        three.address()
    );
    let sidecar = Sidecar::start(spec(&dns, &discover)).await;
    let mut expected = [one.address(), two.address(), three.address()].map(|address| address.to_string());
    expected.sort();
    let mut found = endpoints(&sidecar).await;
    found.sort();
    assert_eq!(found, expected);
    for name in ["one", "two", "three"] {
        answers(&sidecar, name).await;
    }
    dns.set("west.mesh.test", &[ONE], 0).await;
    sidecar
        .metrics_when("two endpoints", |metrics| {
            metrics.sum("outrigger_endpoints", &[]) == 2.0
        })
        .await;
}

#[tokio::test]
async fn a_logical_name_sends_new_requests_to_its_first_address_and_ends_none_under_way() {
    let dns = DnsServer::start("mesh.test").await;
    let (mut one, _two) = two_upstreams().await;
    let port = one.address().port();
    dns.set("lb.mesh.test", &[ONE], 0).await;
    let discover = format!("{{ dns: lb.mesh.test, port: {port}, mode: logical, {OFTEN} }}");
    let sidecar = Sidecar::start(spec(&dns, &discover)).await;
    answers(&sidecar, "one").await;
    one.behave(Behaviour::Answer(Answer::ok().after(Duration::from_secs(2))));
    let client = sidecar.client();
    let before = one.requests();
    let slow = tokio::spawn(async move { client.get("reviews", "/slow").await });
    one.has_requests(before + 1).await;
    dns.set("lb.mesh.test", &[TWO], 0).await;
    sidecar
        .metrics_when("the address to change", |metrics| {
            metrics.sum("outrigger_endpoints", &[]) == 1.0
        })
        .await;
    eventually("the other address", async || {
        (endpoints(&sidecar).await == [SocketAddr::new(TWO, port).to_string()]).then_some(())
    })
    .await;
    for _ in 0..5 {
        assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "two");
    }
    let slow = slow.await.unwrap();
    assert_eq!((slow.status(), slow.upstream()), (200, "one"));
    // Several addresses are one endpoint all the same, and one that refuses connections is left for the next.
    one.kill();
    dns.set("lb.mesh.test", &[ONE, TWO], 0).await;
    answers(&sidecar, "two").await;
    let asked = dns.asked("lb.mesh.test");
    eventually("some answers more", async || {
        (dns.asked("lb.mesh.test") > asked + 6).then_some(())
    })
    .await;
    assert_eq!(endpoints(&sidecar).await.len(), 1);
}

#[tokio::test]
async fn the_family_that_is_wanted_is_asked_for() {
    let dns = DnsServer::start("mesh.test").await;
    let six = IpAddr::V6(Ipv6Addr::LOCALHOST);
    dns.set("both.mesh.test", &[ONE, six], 60).await;
    dns.set("four.mesh.test", &[ONE], 60).await;
    for (family, name, expected) in [
        ("any", "both", &["127.0.0.1:80", "[::1]:80"][..]),
        ("v4", "both", &["127.0.0.1:80"]),
        ("v6", "both", &["[::1]:80"]),
        ("prefer_v6", "both", &["[::1]:80"]),
        ("prefer_v6", "four", &["127.0.0.1:80"]),
        ("v6", "four", &[]),
    ] {
        let discover = format!("{{ dns: {name}.mesh.test, port: 80, family: {family} }}");
        let sidecar = Sidecar::start(spec(&dns, &discover)).await;
        assert_eq!(endpoints(&sidecar).await, expected, "{family} of {name}");
    }
}

#[tokio::test]
async fn the_servers_of_a_backend_win_over_the_mesh_s_and_those_over_the_flag_s() {
    let (flag, mesh, own) = (
        DnsServer::start("mesh.test").await,
        DnsServer::start("mesh.test").await,
        DnsServer::start("mesh.test").await,
    );
    let (one, _two) = two_upstreams().await;
    let port = one.address().port();
    mesh.set("reviews.mesh.test", &[ONE], 60).await;
    own.set("reviews.mesh.test", &[TWO], 60).await;
    let defaults = format!(
        "kind: Mesh\ndefaults:\n  discover: {{ servers: [\"{}\"] }}\n",
        mesh.address()
    );
    let discover = |servers: &str| format!("dns: reviews.mesh.test, port: {port}{servers}");
    let plain = ServiceFile::new("reviews").discover("v1", &discover(""));
    let of_its_own = discover(&format!(", servers: [\"{}\"]", own.address()));
    let special = ServiceFile::new("ratings").discover("v1", &of_its_own);
    let text = format!("{plain}---\n{special}---\n{defaults}");
    let sidecar = Sidecar::start(SidecarSpec::text("a", &text).dns(flag.address())).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "one");
    assert_eq!(sidecar.client().get("ratings", "/").await.upstream(), "two");
    assert_eq!(flag.asked("reviews.mesh.test"), 0);
}

#[tokio::test]
async fn a_server_that_fails_is_left_for_the_next() {
    let (broken, good) = (
        DnsServer::start("mesh.test").await,
        DnsServer::start("mesh.test").await,
    );
    broken.behave(outrigger_tests::dns::Manner::Fails);
    let one = Upstream::start("one").await;
    good.set("reviews.mesh.test", &[ONE], 0).await;
    let discover = format!(
        "{{ dns: reviews.mesh.test, port: {}, {OFTEN} }}",
        one.address().port()
    );
    let sidecar = Sidecar::start(spec(&broken, &discover).dns(good.address())).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "one");
    // From then on it is the first.
    let (refused, asked) = (broken.refused(), good.asked("reviews.mesh.test"));
    eventually("further questions", async || {
        (good.asked("reviews.mesh.test") > asked + 4).then_some(())
    })
    .await;
    assert_eq!(broken.refused(), refused);
}

#[tokio::test]
async fn a_server_that_does_not_know_edns_is_asked_without() {
    let dns = DnsServer::start("mesh.test").await;
    dns.behave(outrigger_tests::dns::Manner::Old);
    let one = Upstream::start("one").await;
    dns.set("reviews.mesh.test", &[ONE], 0).await;
    let discover = format!(
        "{{ dns: reviews.mesh.test, port: {}, {OFTEN} }}",
        one.address().port()
    );
    let sidecar = Sidecar::start(spec(&dns, &discover)).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "one");
    // It is remembered.
    let (refused, asked) = (dns.refused(), dns.asked("reviews.mesh.test"));
    eventually("further questions", async || {
        (dns.asked("reviews.mesh.test") > asked + 4).then_some(())
    })
    .await;
    assert_eq!(dns.refused(), refused);
}

#[tokio::test]
async fn search_domains_and_hosts_are_the_system_s_and_a_change_is_used_without_a_restart() {
    let dns = DnsServer::start("mesh.test").await;
    let (one, two) = two_upstreams().await;
    dns.set("reviews.east.mesh.test", &[ONE], 60).await;
    dns.set("reviews.west.mesh.test", &[TWO], 60).await;
    let folder = tempfile::tempdir().unwrap();
    let (resolv_conf, hosts) = (folder.path().join("resolv.conf"), folder.path().join("hosts"));
    let write = |path: &std::path::Path, text: &str| {
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, path).unwrap();
    };
    write(
        &resolv_conf,
        "nameserver 127.0.0.1\nsearch east.mesh.test\noptions ndots:5\n",
    );
    write(&hosts, "127.0.0.1 localhost\n");
    let discover = format!("{{ dns: reviews, port: {} }}", one.address().port());
    let spec = spec(&dns, &discover)
        .with("--resolv-conf", &resolv_conf.display().to_string())
        .with("--hosts", &hosts.display().to_string());
    let sidecar = Sidecar::start(spec).await;
    answers(&sidecar, "one").await;
    write(&resolv_conf, "nameserver 127.0.0.1\nsearch west.mesh.test\n");
    answers(&sidecar, "two").await;
    write(&hosts, "127.0.0.1 localhost reviews # by hand\n");
    answers(&sidecar, "one").await;
    drop(two);
}
