//! What an operator is told of names that are not found, and of where endpoints came from.

use std::net::Ipv4Addr;

use hickory_proto::op::ResponseCode;
use outrigger_tests::dns::{DnsServer, Place};
use outrigger_tests::dns_scripted::{Script, ScriptedDns};
use outrigger_tests::{ServiceFile, Sidecar};
use serde_json::Value;

use crate::dns_hostile::{NAME, ONE, asks, asks_of, has_endpoints};

/// The line of the log with these words.
async fn says(sidecar: &mut Sidecar, words: &str) -> String {
    let owned = words.to_owned();
    let line = sidecar
        .program()
        .logged(words, move |line| line.to_string().contains(&owned))
        .await;
    line["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_name_that_was_never_found_is_named_with_who_wants_it_and_nothing_is_said_to_be_kept() {
    let dns = ScriptedDns::start(&[ONE], 1).await;
    dns.play(Script::Code(ResponseCode::NXDomain));
    let mut sidecar = asks(&[dns.address()], &format!("dns: {NAME}, port: 9")).await;
    let said = says(&mut sidecar, "never been found").await;
    let expected = format!(
        "{NAME} has never been found (A and AAAA: NXDOMAIN, asked {}): reviews/v1 has no endpoint from it",
        dns.address()
    );
    assert_eq!(said, expected);
    let log = sidecar.program().log().join("\n");
    assert!(!log.contains("is kept"), "{log}");
}

#[tokio::test]
async fn a_server_that_does_not_answer_at_the_start_is_named_with_what_it_was_asked() {
    let dns = ScriptedDns::start(&[ONE], 1).await;
    dns.play(Script::Silent);
    let mut sidecar = asks(&[dns.address()], &format!("dns: {NAME}, port: 9")).await;
    let asked = format!("{NAME} (asked {})", dns.address());
    assert_eq!(
        says(&mut sidecar, "waiting up to").await,
        format!("waiting up to 5 s for DNS of {asked}")
    );
    // What is said next, as the time is over: whether as a question in vain or as a wait in vain.
    says(&mut sidecar, "never been found").await;
}

#[tokio::test]
async fn a_closed_port_is_seen_at_once_and_passed_over() {
    let closed = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let nobody = closed.local_addr().unwrap();
    drop(closed);
    let mut alone = asks(&[nobody], &format!("dns: {NAME}, port: 9")).await;
    let said = says(&mut alone, "never been found").await;
    assert!(said.contains("the server cannot be reached"), "{said}");

    let dns = ScriptedDns::start(&[ONE], 1).await;
    let beside = asks(&[nobody, dns.address()], &format!("dns: {NAME}, port: 9")).await;
    has_endpoints(&beside, 1.0).await;
}

/// The one cluster on `/clusters`.
async fn cluster(sidecar: &Sidecar) -> Value {
    let mut page: Value = sidecar.page("/clusters").await.json();
    page["clusters"][0].take()
}

#[tokio::test]
async fn standbys_are_shown_with_their_priority() {
    let dns = DnsServer::start("mesh.test").await;
    dns.set("host.mesh.test", &[ONE], 60).await;
    let place = |priority, port| Place {
        priority,
        weight: 1,
        port,
        host: "host.mesh.test",
    };
    dns.set_services("_reviews._tcp.mesh.test", &[place(7, 8002), place(1, 8001)], 60)
        .await;
    let sidecar = asks(&[dns.address()], "srv: _reviews._tcp.mesh.test").await;
    has_endpoints(&sidecar, 1.0).await;
    let shown = cluster(&sidecar).await;
    let endpoint = &shown["endpoints"][0];
    assert_eq!(
        (
            endpoint["address"].as_str(),
            endpoint["found"]["priority"].as_u64()
        ),
        (Some("127.0.0.1:8001"), Some(1)),
        "{shown:#}"
    );
    assert_eq!(
        shown["standbys"],
        serde_json::json!([{ "address": "127.0.0.1:8002", "priority": 7 }])
    );
}

#[tokio::test]
async fn each_endpoint_is_shown_with_the_name_that_led_to_it_though_another_has_its_address() {
    let dns = ScriptedDns::start(&[ONE], 1).await;
    let file = ServiceFile::new("reviews").sources(
        "v1",
        "{ dns: one.mesh.test, port: 8001 }, { dns: two.mesh.test, port: 8002 }",
    );
    let sidecar = asks_of(&[dns.address()], &file.to_string()).await;
    has_endpoints(&sidecar, 2.0).await;
    let shown = cluster(&sidecar).await;
    let endpoints = shown["endpoints"].as_array().unwrap().iter();
    let mut pairs: Vec<(&str, &str)> = endpoints
        .map(|endpoint| {
            let name = endpoint["found"]["name"].as_str().unwrap();
            (endpoint["address"].as_str().unwrap(), name)
        })
        .collect();
    pairs.sort_unstable();
    assert_eq!(
        pairs,
        [
            ("127.0.0.1:8001", "one.mesh.test"),
            ("127.0.0.1:8002", "two.mesh.test")
        ]
    );
}
