//! How much a backend is sent at once.

use outrigger_tests::upstream::Deaf;
use outrigger_tests::{Answer, Ask, Behaviour, ServiceFile, Sidecar, Upstream, eventually, simple};

const LIMITED: &str = "outrigger_limited_total";

/// One that answers nothing, behind a sidecar with these limits that tries once.
async fn behind(limits: &str) -> (Upstream, Sidecar) {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Hang);
    let file =
        simple("reviews", &[&upstream], "retry: { attempts: 1 }").field(&format!("limits: {{ {limits} }}"));
    (upstream, Sidecar::of(file).await)
}

#[tokio::test]
async fn a_request_over_a_limit_is_answered_at_once_in_words_and_counted() {
    for (limits, limit) in [("requests: 2", "requests"), ("connections: 2", "connections")] {
        let (upstream, mut sidecar) = behind(limits).await;
        let ask = Ask::get("/").host("reviews");
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut caller = sidecar.client().connect().await;
            caller.wire().send(&ask.to_bytes()).await.unwrap();
            held.push(caller);
        }
        upstream.has_requests(2).await;
        let reply = sidecar.client().send(ask.clone()).await;
        assert_eq!(
            (reply.status(), reply.reason()),
            (503, Some("overloaded")),
            "{limits}"
        );
        let metrics = sidecar.metrics().await;
        assert_eq!(metrics.sum(LIMITED, &[("limit", limit)]), 1.0);
        let words = format!("is at its limit of 2 {limit}");
        sidecar
            .program()
            .printed("the limit", |line| line.contains(&words))
            .await;

        // What was over its limit is welcome when there is room.
        drop(held);
        upstream.behave(Behaviour::Answer(Answer::ok()));
        eventually("room for a request", async || {
            (sidecar.client().send(ask.clone()).await.status() == 200).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn more_requests_than_may_wait_for_a_connection_are_not_kept_waiting() {
    let deaf = Deaf::start();
    let file = ServiceFile::new("reviews")
        .field("limits: { pending: 1 }")
        .backend("v1", &[deaf.address()])
        .route("default", &[("v1", 1)], "retry: { attempts: 1 }");
    let sidecar = Sidecar::of(file).await;
    let (one, other) = (sidecar.client(), sidecar.client());
    let (one, other) = tokio::join!(one.get("reviews", "/"), other.get("reviews", "/"));
    // Which of them came first is left open; it waits in vain, since the endpoint is deaf.
    let mut reasons = [one.reason(), other.reason()];
    reasons.sort_unstable();
    assert_eq!(reasons, [Some("connect-timeout"), Some("overloaded")]);
    assert!([one, other].iter().any(|reply| reply.status() == 503));
    let metrics = sidecar.metrics().await;
    assert!(metrics.sum(LIMITED, &[("limit", "pending")]) >= 1.0);
}

#[tokio::test]
async fn a_push_changes_the_limits_and_does_not_forget_what_is_under_way() {
    let (upstream, sidecar) = behind("requests: 1").await;
    let ask = Ask::get("/").host("reviews");
    let mut caller = sidecar.client().connect().await;
    caller.wire().send(&ask.to_bytes()).await.unwrap();
    upstream.has_requests(1).await;
    let file = |requests: u32| {
        simple("reviews", &[&upstream], "retry: { attempts: 1 }")
            .field(&format!("limits: {{ requests: {requests} }}"))
            .field("balance: round_robin")
            .to_string()
    };
    sidecar.apply(&file(1)).await;
    assert_eq!(
        sidecar.client().send(ask.clone()).await.reason(),
        Some("overloaded")
    );
    sidecar.apply(&file(2)).await;
    upstream.behave(Behaviour::Answer(Answer::ok()));
    assert_eq!(sidecar.client().send(ask).await.status(), 200);
}
