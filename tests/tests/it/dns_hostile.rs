//! Endpoints found by a DNS server that fails, lies, cuts and delays: what was known serves, and no request fails.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use outrigger_tests::dns_scripted::{Script, ScriptedDns};
use outrigger_tests::wait::eventually;
use outrigger_tests::{Load, LoadSpec, ServiceFile, Sidecar, SidecarSpec, Upstream};

pub(crate) const NAME: &str = "reviews.mesh.test";
pub(crate) const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
pub(crate) const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
pub(crate) const THREE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
pub(crate) const FOUR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 4));

/// Asked again soon, so that many answers come in a short test.
const OFTEN: &str = "refresh: { floor: 100ms, ceiling: 200ms }";

/// As it is without a word about it.
const AS_IT_COMES: &str = "family: any";

/// A question for each family.
const FAMILIES: u64 = 2;

/// A sidecar whose service is found under [`NAME`] at this port.
async fn sidecar(dns: &ScriptedDns, port: u16, asking: &str) -> Sidecar {
    asks(&[dns.address()], &format!("dns: {NAME}, port: {port}, {asking}")).await
}

/// A sidecar that asks these servers, with the `discover` of its one service.
pub(crate) async fn asks(servers: &[SocketAddr], discover: &str) -> Sidecar {
    let file = ServiceFile::new("reviews").discover("v1", discover);
    asks_of(servers, &file.to_string()).await
}

/// A sidecar that asks these servers, with this configuration.
pub(crate) async fn asks_of(servers: &[SocketAddr], text: &str) -> Sidecar {
    let mut spec = SidecarSpec::text("a", text);
    spec.dns.extend(servers);
    Sidecar::start(spec).await
}

/// Upstreams with one port on these addresses, each named by its address.
pub(crate) async fn upstreams(addresses: &[IpAddr]) -> (Vec<Upstream>, u16) {
    let first = Upstream::start_at(&addresses[0].to_string(), SocketAddr::new(addresses[0], 0)).await;
    let port = first.address().port();
    let mut all = vec![first];
    for address in &addresses[1..] {
        all.push(Upstream::start_at(&address.to_string(), SocketAddr::new(*address, port)).await);
    }
    (all, port)
}

/// A load that must not fail, at a rate that a shared machine bears.
pub(crate) fn load(sidecar: &Sidecar) -> Load {
    Load::start(LoadSpec {
        rate: Some(200),
        ..LoadSpec::new(sidecar.outbound(), "reviews", 4)
    })
}

/// So many addresses on which nobody need listen.
pub(crate) fn many(count: u8) -> Vec<IpAddr> {
    (1..=count)
        .map(|last| Ipv4Addr::new(127, 0, 2, last).into())
        .collect()
}

/// Who answers the load, a hundred requests long.
async fn answered_by(load: &Load) -> Vec<String> {
    let before = load.so_far();
    load.has_done_more(100).await;
    let answers = load.so_far().since(&before).answers;
    let mut seen: Vec<String> = answers.into_keys().map(|outcome| outcome.upstream).collect();
    seen.sort();
    seen.dedup();
    seen
}

fn names(addresses: &[IpAddr]) -> Vec<String> {
    let mut names: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    names.sort();
    names
}

/// Waits until the load is answered by all of these and by no other.
pub(crate) async fn settled_on(load: &Load, addresses: &[IpAddr]) {
    let wanted = names(addresses);
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    settled_on_names(load, &wanted).await;
}

/// The same by the upstreams' names, in order.
pub(crate) async fn settled_on_names(load: &Load, wanted: &[&str]) {
    eventually(
        &format!("the load to be answered by {wanted:?} alone"),
        async || (answered_by(load).await == wanted).then_some(()),
    )
    .await;
}

/// The endpoints that the sidecar has, by its own metric.
pub(crate) async fn has_endpoints(sidecar: &Sidecar, count: f64) {
    sidecar
        .metrics_when(&format!("{count} endpoints"), |metrics| {
            metrics.sum("outrigger_endpoints", &[]) == count
        })
        .await;
}

/// For a while the server does this under load. Every endpoint is used meanwhile, and a change after it is found.
async fn serves_through(scripts: &[Script], questions: u64) {
    let dns = ScriptedDns::start(&[ONE, TWO, THREE], 1).await;
    let (_upstreams, port) = upstreams(&[ONE, TWO, THREE, FOUR]).await;
    let sidecar = sidecar(&dns, port, OFTEN).await;
    let load = load(&sidecar);
    let (mut now, mut then) = ([ONE, TWO, THREE], [TWO, THREE, FOUR]);
    settled_on(&load, &now).await;
    for script in scripts {
        dns.play(*script);
        dns.is_asked_more(questions).await;
        assert_eq!(answered_by(&load).await, names(&now), "{script:?}");
        assert_eq!(
            sidecar.metrics().await.sum("outrigger_endpoints", &[]),
            3.0,
            "{script:?}"
        );
        dns.set(&then, 1);
        dns.play(Script::Whole);
        settled_on(&load, &then).await;
        std::mem::swap(&mut now, &mut then);
    }
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn a_server_that_fails_or_refuses_takes_no_endpoint_away() {
    let failing = [ResponseCode::ServFail, ResponseCode::Refused].map(Script::Code);
    serves_through(&failing, 3 * FAMILIES).await;
}

#[tokio::test]
async fn a_name_that_is_denied_or_empty_for_a_while_keeps_its_endpoints() {
    serves_through(
        &[Script::Code(ResponseCode::NXDomain), Script::Empty],
        2 * FAMILIES,
    )
    .await;
}

#[tokio::test]
async fn a_server_that_falls_silent_takes_no_endpoint_away() {
    serves_through(&[Script::Silent], 2 * FAMILIES).await;
}

#[tokio::test]
async fn an_answer_that_is_cut_with_no_tcp_behind_it_takes_no_endpoint_away() {
    serves_through(&[Script::Truncated { tcp: false }], 3 * FAMILIES).await;
}

#[tokio::test]
async fn aliases_that_run_in_a_circle_take_no_endpoint_away() {
    serves_through(&[Script::Loop], 3 * FAMILIES).await;
}

#[tokio::test]
async fn bytes_that_are_no_message_take_no_endpoint_away() {
    serves_through(&[Script::Malformed], 2 * FAMILIES).await;
}

#[tokio::test]
async fn answers_under_a_wrong_id_or_from_a_wrong_port_are_not_believed() {
    let dns = ScriptedDns::start(&[ONE], 1).await;
    let (_upstreams, port) = upstreams(&[ONE, TWO]).await;
    dns.play(Script::SpoofedId);
    let sidecar = sidecar(&dns, port, OFTEN).await;
    let load = load(&sidecar);
    settled_on(&load, &[ONE]).await;
    for (script, addresses) in [
        (Script::SpoofedId, &[TWO][..]),
        (Script::SpoofedPort, &[ONE, TWO]),
        (Script::SpoofedPort, &[ONE]),
    ] {
        dns.play(script);
        dns.set(addresses, 1);
        settled_on(&load, addresses).await;
        // The forged address would be an endpoint more.
        let clusters = sidecar.page("/clusters").await.text();
        assert!(!clusters.contains("192.0.2.66"), "{script:?}: {clusters}");
    }
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn a_server_that_is_silent_to_questions_for_ipv6_is_followed_for_ipv4() {
    let dns = ScriptedDns::start(&[ONE], 1).await;
    let (_upstreams, port) = upstreams(&[ONE, TWO]).await;
    let sidecar = sidecar(&dns, port, OFTEN).await;
    let load = load(&sidecar);
    settled_on(&load, &[ONE]).await;
    dns.play(Script::SilentToSix);
    dns.set(&[TWO], 1);
    settled_on(&load, &[TWO]).await;
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn an_answer_that_comes_late_is_taken() {
    let dns = ScriptedDns::start(&[ONE], 1).await;
    let (_upstreams, port) = upstreams(&[ONE, TWO]).await;
    let sidecar = sidecar(&dns, port, OFTEN).await;
    let load = load(&sidecar);
    dns.play(Script::Late(Duration::from_secs(1)));
    dns.set(&[TWO], 1);
    settled_on(&load, &[TWO]).await;
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn a_chain_of_aliases_is_followed_in_one_answer_and_link_by_link() {
    let dns = ScriptedDns::start(&[ONE], 1).await;
    let (_upstreams, port) = upstreams(&[ONE, TWO]).await;
    dns.play(Script::Chain(6));
    let sidecar = sidecar(&dns, port, OFTEN).await;
    let load = load(&sidecar);
    settled_on(&load, &[ONE]).await;
    dns.play(Script::Links(4));
    dns.set(&[TWO], 1);
    settled_on(&load, &[TWO]).await;
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn instances_that_restart_in_turn_under_their_old_addresses_cost_no_request() {
    let all = [ONE, TWO, THREE];
    let dns = ScriptedDns::start(&all, 1).await;
    let (mut upstreams, port) = upstreams(&all).await;
    let sidecar = sidecar(&dns, port, OFTEN).await;
    let load = load(&sidecar);
    settled_on(&load, &all).await;
    for out in 0..all.len() {
        let others: Vec<IpAddr> = all.into_iter().filter(|address| *address != all[out]).collect();
        dns.set(&others, 1);
        // As long as a careful deployment waits; whether the sidecar has let go of the address by then or takes it for one
        // that a partial answer lacked, the instance ends.
        dns.is_asked_more(3 * FAMILIES).await;
        upstreams[out].kill();
        settled_on(&load, &others).await;
        upstreams[out].revive().await;
        dns.set(&all, 1);
        settled_on(&load, &all).await;
    }
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn a_record_that_comes_or_goes_is_found_by_the_next_question() {
    let dns = ScriptedDns::start(&[ONE], 1).await;
    let (_upstreams, port) = upstreams(&[ONE, TWO]).await;
    let sidecar = sidecar(&dns, port, AS_IT_COMES).await;
    has_endpoints(&sidecar, 1.0).await;
    for addresses in [&[ONE, TWO][..], &[TWO], &[ONE, TWO], &[ONE]] {
        dns.set(addresses, 1);
        let before = dns.asked();
        #[expect(clippy::cast_precision_loss, reason = "one or two")]
        has_endpoints(&sidecar, addresses.len() as f64).await;
        // The next question finds it. One may be under way when the record changes, and further ones may be asked until
        // this test has looked.
        let asked = dns.asked() - before;
        assert!(
            asked <= 4 * FAMILIES,
            "{asked} questions until {addresses:?} was found"
        );
    }
}

/// Ten answers with this TTL take as long as the floor says, or longer; never less, which a storm would.
async fn is_no_storm(ttl_seconds: u32) {
    let dns = ScriptedDns::start(&[ONE], ttl_seconds).await;
    let (_upstreams, port) = upstreams(&[ONE, TWO]).await;
    let sidecar = sidecar(&dns, port, "refresh: { floor: 300ms, ceiling: 600ms }").await;
    let began = Instant::now();
    dns.is_asked_more(10 * FAMILIES).await;
    let took = began.elapsed();
    // One of the ten may have been due at once.
    assert!(
        took >= Duration::from_millis(9 * 300),
        "ten answers within {took:?}"
    );
    // And what has moved is found.
    dns.set(&[TWO], ttl_seconds);
    eventually("the new address to be used", async || {
        let reply = sidecar.client().get("reviews", "/").await;
        (reply.upstream() == TWO.to_string()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_ttl_of_zero_makes_no_storm_of_questions() {
    is_no_storm(0).await;
}

#[tokio::test]
async fn a_ttl_with_its_highest_bit_set_is_neither_a_storm_nor_for_ever() {
    is_no_storm(0x8000_0000).await;
}

#[tokio::test]
async fn sixty_addresses_are_had_over_tcp_when_the_datagram_was_cut() {
    let dns = ScriptedDns::start(&many(60), 1).await;
    dns.play(Script::Truncated { tcp: true });
    let sidecar = sidecar(&dns, 9, OFTEN).await;
    has_endpoints(&sidecar, 60.0).await;
    assert!(dns.asked_by_tcp() > 0);
}

#[tokio::test]
async fn eight_of_thirty_at_random_end_with_all_thirty_in_use_and_no_coming_and_going() {
    let all: Vec<IpAddr> = (1..=30)
        .map(|last| Ipv4Addr::new(127, 0, 0, last).into())
        .collect();
    let (_upstreams, port) = upstreams(&all).await;
    let dns = ScriptedDns::start(&all, 1).await;
    dns.play(Script::Sample(8));
    let mut sidecar = sidecar(&dns, port, OFTEN).await;
    let load = load(&sidecar);
    has_endpoints(&sidecar, 30.0).await;
    let changes = |sidecar: &mut Sidecar| {
        let log = sidecar.program().log();
        log.iter()
            .filter(|line| line.contains("endpoints changed"))
            .count()
    };
    let before = changes(&mut sidecar);
    // An address is missing from eight such answers in a row once in twelve times; some of the thirty are, surely.
    dns.is_asked_more(24 * FAMILIES).await;
    has_endpoints(&sidecar, 30.0).await;
    assert_eq!(changes(&mut sidecar), before, "an endpoint went or came");
    settled_on(&load, &all).await;
    load.stop().await.assert_clean();
}
