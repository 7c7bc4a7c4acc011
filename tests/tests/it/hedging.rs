//! A request that is slow to be answered is sent a second time, elsewhere, and the first answer is taken.

use std::time::Duration;

use outrigger_tests::metrics::Metrics;
use outrigger_tests::{Answer, Ask, Behaviour, ServiceFile, Sidecar, Upstream, eventually, simple, within};

/// A hedge that comes at once, so that no test waits for it.
const HEDGE: &str = "hedge: { after: 50ms }";

fn hedges(metrics: &Metrics) -> [f64; 4] {
    let result = |result| metrics.sum("outrigger_hedges_total", &[("result", result)]);
    ["won", "lost", "budget", "nowhere"].map(result)
}

/// A slow upstream that is asked first, a quick one, and a sidecar before the two.
async fn slow_and_quick(fields: &str) -> (Upstream, Upstream, Sidecar) {
    let (slow, quick) = (Upstream::start("slow").await, Upstream::start("quick").await);
    slow.behave(Behaviour::Hang);
    let file = simple("reviews", &[&slow, &quick], fields).field("balance: round_robin");
    let sidecar = Sidecar::of(file).await;
    (slow, quick, sidecar)
}

#[tokio::test]
async fn a_slow_request_is_answered_by_another_endpoint_and_the_slow_one_is_let_go() {
    let (slow, quick, sidecar) = slow_and_quick(HEDGE).await;
    for _ in 0..6 {
        let reply = sidecar.client().get("reviews", "/").await;
        assert_eq!((reply.status(), reply.upstream()), (200, "quick"));
    }
    let hedged = slow.requests();
    assert!(hedged >= 2, "{hedged}");
    assert_eq!(quick.requests(), 6);
    eventually("the slow attempts to be given up", async || {
        (slow.given_up() == hedged).then_some(())
    })
    .await;
    let metrics = sidecar.metrics().await;
    let [won, lost, ..] = hedges(&metrics);
    // On a machine that stalls the quick one may be hedged by the slow one as well.
    assert!(
        won >= 2.0 && won + lost == hedged as f64,
        "{won} won, {lost} lost, {hedged} hedged"
    );
    let outrun = [("reason", "outrun")];
    assert_eq!(metrics.sum("outrigger_attempts_total", &outrun), hedged as f64);
    assert_eq!(
        metrics.sum("outrigger_attempts_total", &[("reason", "client-gone")]),
        0.0
    );
    assert_eq!(
        metrics.sum("outrigger_requests_total", &[("status_class", "2xx")]),
        6.0
    );
    assert_eq!(metrics.sum("outrigger_retries_total", &[("result", "made")]), 0.0);
}

#[tokio::test]
async fn the_first_answer_is_taken_even_if_it_is_the_first_attempts() {
    let (first, second) = (Upstream::start("first").await, Upstream::start("second").await);
    first.behave(Behaviour::Answer(Answer::ok().after(Duration::from_millis(600))));
    second.behave(Behaviour::Hang);
    let file = simple("reviews", &[&first, &second], HEDGE).field("balance: round_robin");
    let sidecar = Sidecar::of(file).await;
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.upstream()), (200, "first"));
    eventually("the hedge to be given up", async || {
        (second.given_up() == 1).then_some(())
    })
    .await;
    assert_eq!(hedges(&sidecar.metrics().await), [0.0, 1.0, 0.0, 0.0]);
}

#[tokio::test]
async fn a_request_that_is_answered_in_time_or_has_no_hedge_is_sent_once() {
    for (fields, attempts) in [("hedge: { after: 30s }", 6), ("", 6)] {
        let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
        for upstream in [&a, &b] {
            upstream.behave(Behaviour::Answer(Answer::ok().after(Duration::from_millis(150))));
        }
        let sidecar = Sidecar::of(simple("reviews", &[&a, &b], fields)).await;
        for _ in 0..6 {
            assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
        }
        assert_eq!(a.requests() + b.requests(), attempts, "{fields}");
    }
}

#[tokio::test]
async fn a_post_is_not_doubled_unless_its_policy_calls_it_idempotent() {
    for (fields, status, doubled) in [
        (format!("timeout: {{ request: 500ms }}\n{HEDGE}"), 504, 0),
        (
            format!("{HEDGE}\nretry: {{ treat_as_idempotent: [POST] }}"),
            200,
            1,
        ),
    ] {
        let (slow, quick, sidecar) = slow_and_quick(&fields).await;
        let reply = sidecar
            .client()
            .send(Ask::post("/", "order").host("reviews"))
            .await;
        assert_eq!(reply.status(), status, "{fields}");
        assert_eq!((slow.requests(), quick.requests()), (1, doubled), "{fields}");
        if doubled == 1 {
            assert_eq!(quick.last().body.bytes, b"order");
        }
    }
}

#[tokio::test]
async fn a_request_whose_body_still_comes_or_is_too_large_is_not_doubled() {
    let fields = format!("timeout: {{ request: 700ms }}\n{HEDGE}");
    let large = Ask::new("PUT", "/").host("reviews").body(vec![7; 65 * 1024]);
    let half = b"PUT / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 10\r\n\r\n01234".to_vec();
    for bytes in [large.to_bytes(), half] {
        let (slow, quick, sidecar) = slow_and_quick(&fields).await;
        let mut connection = sidecar.client().connect().await;
        connection.wire().send(&bytes).await.unwrap();
        let reply = within("an answer", connection.reply_to("PUT")).await;
        assert_eq!(reply.unwrap().status(), 504);
        assert_eq!((slow.requests(), quick.requests()), (1, 0));
        assert_eq!(hedges(&sidecar.metrics().await), [0.0; 4]);
    }
}

#[tokio::test]
async fn a_hedge_that_fails_does_not_end_the_request_while_the_first_attempt_goes_on() {
    let (slow, bad) = (Upstream::start("slow").await, Upstream::start("bad").await);
    slow.behave(Behaviour::Answer(Answer::ok().after(Duration::from_millis(600))));
    bad.behave(Behaviour::Answer(Answer::status(503)));
    let file = simple("reviews", &[&slow, &bad], HEDGE).field("balance: round_robin");
    let sidecar = Sidecar::of(file).await;
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.upstream()), (200, "slow"));
    assert_eq!((slow.requests(), bad.requests()), (1, 1));
    assert_eq!(hedges(&sidecar.metrics().await), [0.0, 1.0, 0.0, 0.0]);
}

#[tokio::test]
async fn hedges_are_paid_from_the_budget_of_retries() {
    let fields = "timeout: { request: 500ms }\nhedge: { after: 50ms }\n\
                  retry: { budget: { ratio: 0%, floor: 0/s } }";
    let (slow, quick, sidecar) = slow_and_quick(fields).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 504);
    assert_eq!((slow.requests(), quick.requests()), (1, 0));
    assert_eq!(hedges(&sidecar.metrics().await), [0.0, 0.0, 1.0, 0.0]);
}

#[tokio::test]
async fn where_there_is_no_other_endpoint_there_is_no_hedge() {
    let slow = Upstream::start("slow").await;
    slow.behave(Behaviour::Hang);
    let fields = format!("timeout: {{ request: 500ms }}\n{HEDGE}");
    let sidecar = Sidecar::of(simple("reviews", &[&slow], &fields)).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 504);
    assert_eq!(slow.requests(), 1);
    assert_eq!(hedges(&sidecar.metrics().await), [0.0, 0.0, 0.0, 1.0]);
}

#[tokio::test]
async fn no_more_hedges_are_made_than_the_route_says() {
    for (at_most, requests) in [(1, 2), (2, 3)] {
        let upstreams = [
            Upstream::start("a").await,
            Upstream::start("b").await,
            Upstream::start("c").await,
            Upstream::start("d").await,
        ];
        for upstream in &upstreams {
            upstream.behave(Behaviour::Hang);
        }
        let fields = format!("timeout: {{ request: 1500ms }}\nhedge: {{ after: 50ms, at_most: {at_most} }}");
        let all: Vec<&Upstream> = upstreams.iter().collect();
        let sidecar = Sidecar::of(simple("reviews", &all, &fields)).await;
        assert_eq!(sidecar.client().get("reviews", "/").await.status(), 504);
        let sent: u64 = upstreams.iter().map(Upstream::requests).sum();
        assert_eq!(sent, requests, "at most {at_most}");
        assert!(
            upstreams.iter().all(|upstream| upstream.requests() <= 1),
            "each at most once"
        );
    }
}

#[tokio::test]
async fn a_slow_release_is_hedged_by_the_other_and_the_request_counts_as_that_ones() {
    let (slow, quick) = (Upstream::start("slow").await, Upstream::start("quick").await);
    slow.behave(Behaviour::Hang);
    let file = ServiceFile::new("reviews")
        .backend("slow", &[slow.address()])
        .backend("quick", &[quick.address()])
        .route("default", &[("slow", 1), ("quick", 1)], HEDGE);
    let sidecar = Sidecar::of(file).await;
    for _ in 0..6 {
        assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "quick");
    }
    let hedged = slow.requests();
    assert!(hedged >= 2, "{hedged}");
    let metrics = sidecar.metrics().await;
    assert_eq!(
        metrics.sum("outrigger_requests_total", &[("backend", "quick")]),
        6.0
    );
    let outrun = [("backend", "slow"), ("reason", "outrun")];
    assert_eq!(metrics.sum("outrigger_attempts_total", &outrun), hedged as f64);
}
