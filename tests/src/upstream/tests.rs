//! The upstreams do what they say, seen through the harness's own client.

use super::*;
use crate::client::{Ask, Client};

#[tokio::test]
async fn an_upstream_names_itself_counts_and_remembers() {
    let upstream = Upstream::start("a").await;
    let client = Client::new(upstream.address());
    let reply = client
        .send(Ask::post("/x?y=1", "hello").header("x-mine", "1"))
        .await;
    assert_eq!((reply.status(), reply.upstream()), (200, "a"));
    let received = upstream.last();
    assert_eq!((received.method(), received.target()), ("POST", "/x?y=1"));
    assert_eq!(received.body.bytes, b"hello");
    assert_eq!(received.head.header("X-Mine"), Some("1"));
    assert_eq!((upstream.requests(), upstream.connections()), (1, 1));
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_request_unless_told_otherwise() {
    let upstream = Upstream::start("a").await;
    let mut connection = Client::new(upstream.address()).connect().await;
    for _ in 0..3 {
        assert_eq!(connection.send(&Ask::get("/")).await.unwrap().status(), 200);
    }
    assert_eq!((upstream.requests(), upstream.connections()), (3, 1));

    upstream.reuse(Reuse::CloseAfterAnswer);
    let mut connection = Client::new(upstream.address()).connect().await;
    assert_eq!(connection.send(&Ask::get("/")).await.unwrap().status(), 200);
    assert!(connection.send(&Ask::get("/")).await.is_err());

    upstream.reuse(Reuse::Keep);
    let mut connection = Client::new(upstream.address()).connect().await;
    connection.send(&Ask::get("/")).await.unwrap();
    upstream.close_idle().await;
    assert!(connection.send(&Ask::get("/")).await.is_err());
}

#[tokio::test]
async fn a_dead_upstream_refuses_and_is_revived_on_the_same_port() {
    let mut upstream = Upstream::dead("a");
    let client = Client::new(upstream.address());
    let refused = client.try_send(&Ask::get("/")).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    for _ in 0..3 {
        upstream.revive().await;
        assert_eq!(client.get("x", "/").await.status(), 200);
        upstream.kill();
        assert!(client.try_send(&Ask::get("/")).await.is_err());
    }
}

#[tokio::test]
async fn each_way_to_misbehave_is_seen_by_a_strict_client() {
    let upstream = Upstream::start("a").await;
    let client = Client::new(upstream.address());
    for behaviour in [
        Behaviour::CloseAfterHead,
        Behaviour::CloseBeforeAnswer,
        Behaviour::Reset,
        Behaviour::Raw(b"what?\r\n\r\n".to_vec()),
    ] {
        upstream.next([behaviour.clone()]);
        assert!(
            client.try_send(&Ask::post("/", "x")).await.is_err(),
            "{behaviour:?}"
        );
    }
    upstream.next([Behaviour::HalfBody(Answer::ok().body("0123456789"))]);
    let reply = client.get("x", "/").await;
    assert_eq!((reply.text().as_str(), reply.body.cut.is_some()), ("01234", true));
    upstream.next([Behaviour::HalfBody(Answer::ok().body("0123456789").chunked())]);
    assert!(client.get("x", "/").await.body.cut.is_some());
    assert_eq!(client.get("x", "/").await.status(), 200);
}

#[tokio::test]
async fn bodies_travel_both_ways_in_both_framings() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Echo);
    let client = Client::new(upstream.address());
    let long: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();
    for ask in [
        Ask::post("/", long.clone()),
        Ask::post("/", long.clone()).chunked(),
        Ask::post("/", ""),
    ] {
        let sent = ask.clone();
        let reply = client.send(ask).await;
        assert_eq!(reply.body.cut, None);
        assert!(sent.to_bytes().len() < 1000 || reply.body.bytes == long);
    }
    upstream.behave(Behaviour::Drip {
        pieces: 3,
        pause: Duration::from_millis(1),
    });
    assert_eq!(client.get("x", "/").await.text(), "piece 0\npiece 1\npiece 2\n");
    upstream.behave(Behaviour::Answer(Answer::ok()));
    let reply = client.send(Ask::new("HEAD", "/")).await;
    assert_eq!(reply.head.header("content-length"), Some("11"));
}

#[tokio::test]
async fn a_client_that_goes_away_is_noticed() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Hang);
    let mut connection = Client::new(upstream.address()).connect().await;
    connection.wire().send(&Ask::get("/").to_bytes()).await.unwrap();
    upstream.has_requests(1).await;
    drop(connection);
    eventually("the upstream to notice", async || {
        (upstream.given_up() == 1).then_some(())
    })
    .await;
}
