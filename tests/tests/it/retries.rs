//! When a failed attempt is made again, and when it is not.

use std::time::Instant;

use outrigger_tests::upstream::Reuse;
use outrigger_tests::{Answer, Ask, Behaviour, Load, LoadSpec, Sidecar, Upstream, simple};

/// The three ways to break before the answer.
const BREAKS: [Behaviour; 3] = [
    Behaviour::Reset,
    Behaviour::CloseAfterHead,
    Behaviour::CloseBeforeAnswer,
];

#[tokio::test]
async fn a_connection_that_cannot_be_made_is_tried_elsewhere_for_any_method() {
    let (dead, alive) = (Upstream::dead("dead"), Upstream::start("alive").await);
    let file = simple("reviews", &[&dead, &alive], "").field("balance: round_robin");
    let sidecar = Sidecar::of(file).await;
    for method in ["GET", "POST", "PATCH", "DELETE"] {
        for _ in 0..5 {
            let reply = sidecar.client().send(Ask::new(method, "/").host("reviews")).await;
            assert_eq!((reply.status(), reply.upstream()), (200, "alive"), "{method}");
        }
    }
    let metrics = sidecar.metrics().await;
    assert!(metrics.sum("outrigger_retries_total", &[("result", "made")]) >= 1.0);
    let failed = [("reason", "connect-failed"), ("status_class", "none")];
    assert!(metrics.sum("outrigger_attempts_total", &failed) >= 1.0);
    assert_eq!(
        metrics.sum("outrigger_requests_total", &[("status_class", "2xx")]),
        20.0
    );
}

#[tokio::test]
async fn a_break_before_the_answer_is_retried_for_get() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    for behaviour in BREAKS {
        let before = upstream.requests();
        upstream.next([behaviour.clone()]);
        let reply = sidecar.client().get("reviews", "/").await;
        assert_eq!(reply.status(), 200, "{behaviour:?}");
        assert_eq!(upstream.requests() - before, 2, "{behaviour:?}");
    }
}

#[tokio::test]
async fn a_break_before_the_answer_is_retried_for_put_with_its_whole_body() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let body = "0123456789".repeat(4_000);
    for behaviour in BREAKS {
        for chunked in [false, true] {
            upstream.next([behaviour.clone()]);
            let ask = Ask::new("PUT", "/").host("reviews").body(body.clone());
            let reply = sidecar
                .client()
                .send(if chunked { ask.chunked() } else { ask })
                .await;
            assert_eq!(reply.status(), 200, "{behaviour:?}, chunked: {chunked}");
            assert!(
                upstream.last().body.bytes == body.as_bytes(),
                "{behaviour:?}, chunked: {chunked}"
            );
        }
    }
}

#[tokio::test]
async fn a_break_before_the_answer_is_not_retried_for_post() {
    for behaviour in BREAKS {
        let upstream = Upstream::start("a").await;
        let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
        upstream.next([behaviour.clone()]);
        let reply = sidecar.client().send(Ask::post("/", "x").host("reviews")).await;
        assert_eq!(
            (reply.status(), reply.reason()),
            (502, Some("upstream-reset")),
            "{behaviour:?}"
        );
        assert_eq!(upstream.requests(), 1, "{behaviour:?}");
        // Nor on a connection that has answered before: this one has read the request.
        assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
        let before = upstream.requests();
        upstream.next([behaviour.clone()]);
        let reply = sidecar.client().send(Ask::post("/", "x").host("reviews")).await;
        assert_eq!(upstream.requests() - before, 1, "{behaviour:?}, sent twice");
        assert_eq!(
            (reply.status(), reply.reason()),
            (502, Some("upstream-reset")),
            "{behaviour:?}"
        );
    }
}

#[tokio::test]
async fn a_503_is_retried_for_get_and_handed_on_for_post() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    for status in [502, 503, 504] {
        upstream.next([Behaviour::Answer(Answer::status(status))]);
        assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
        upstream.next([Behaviour::Answer(Answer::status(status).body("mine"))]);
        let reply = sidecar.client().send(Ask::post("/", "x").host("reviews")).await;
        assert_eq!(
            (reply.status(), reply.reason(), reply.upstream()),
            (status, None, "a")
        );
        assert_eq!(reply.text(), "mine", "it is the upstream's own answer");
    }
    assert_eq!(upstream.requests(), 3 * (2 + 1));
}

#[tokio::test]
async fn a_500_and_a_404_are_answers_and_not_failures() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    for status in [400, 404, 429, 500, 501] {
        upstream.next([Behaviour::Answer(Answer::status(status))]);
        let reply = sidecar.client().get("reviews", "/").await;
        assert_eq!((reply.status(), reply.reason()), (status, None));
    }
    assert_eq!(upstream.requests(), 5);
}

#[tokio::test]
async fn a_post_survives_a_kept_connection_that_was_closed_meanwhile() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    for round in 0..30 {
        let reply = sidecar.client().send(Ask::post("/", "x").host("reviews")).await;
        assert_eq!(reply.status(), 200, "round {round}: {reply:?}");
        upstream.close_idle().await;
    }
    assert_eq!(upstream.requests(), 30);
}

#[tokio::test]
async fn a_get_survives_a_kept_connection_that_dies_as_it_is_used() {
    let upstream = Upstream::start("a").await;
    upstream.reuse(Reuse::ResetWhenUsedAgain);
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    for round in 0..10 {
        let reply = sidecar.client().get("reviews", "/").await;
        assert_eq!(reply.status(), 200, "round {round}: {reply:?}");
    }
}

#[tokio::test]
async fn no_more_attempts_are_made_than_the_route_says() {
    for attempts in [1, 2, 4] {
        let upstream = Upstream::start("a").await;
        upstream.behave(Behaviour::Answer(Answer::status(503)));
        let retry = format!("retry: {{ attempts: {attempts} }}");
        let sidecar = Sidecar::of(simple("reviews", &[&upstream], &retry)).await;
        let reply = sidecar.client().get("reviews", "/").await;
        assert_eq!(
            (reply.status(), reply.upstream()),
            (503, "a"),
            "the last answer is handed on"
        );
        assert_eq!(upstream.requests(), attempts);
    }
}

#[tokio::test]
async fn only_the_named_failures_are_retried() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "retry: { on: [reset] }")).await;
    upstream.next([Behaviour::Answer(Answer::status(503))]);
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 503);
    upstream.next([Behaviour::CloseBeforeAnswer]);
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    assert_eq!(upstream.requests(), 3);
}

#[tokio::test]
async fn a_retry_goes_to_an_endpoint_that_was_not_tried() {
    let (bad, good) = (Upstream::start("bad").await, Upstream::start("good").await);
    bad.behave(Behaviour::Answer(Answer::status(503)));
    let sidecar = Sidecar::of(simple("reviews", &[&bad, &good], "retry: { attempts: 2 }")).await;
    for _ in 0..20 {
        let reply = sidecar.client().get("reviews", "/").await;
        assert_eq!((reply.status(), reply.upstream()), (200, "good"));
    }
    assert!(bad.requests() > 0, "the bad one was asked as well");
}

#[tokio::test]
async fn a_body_of_64_kib_is_sent_again_and_a_larger_one_is_not() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let body: Vec<u8> = (0..64 * 1024_u32).map(|number| (number % 251) as u8).collect();
    for (chunked, length) in [(false, 1), (false, body.len()), (true, body.len())] {
        upstream.next([Behaviour::CloseBeforeAnswer]);
        let ask = Ask::new("PUT", "/").host("reviews").body(&body[..length]);
        let reply = sidecar
            .client()
            .send(if chunked { ask.chunked() } else { ask })
            .await;
        assert_eq!(reply.status(), 200, "{length} bytes, chunked: {chunked}");
        assert!(
            upstream.last().body.bytes == body[..length],
            "the second time is like the first"
        );
    }
    let before = upstream.requests();
    upstream.next([Behaviour::CloseBeforeAnswer]);
    let ask = Ask::new("PUT", "/").host("reviews").body(vec![7; 1024 * 1024]);
    let reply = sidecar.client().send(ask).await;
    assert_eq!((reply.status(), reply.reason()), (502, Some("upstream-reset")));
    assert_eq!(upstream.requests() - before, 1);
    let metrics = sidecar.metrics().await;
    assert_eq!(
        metrics.sum("outrigger_retries_total", &[("result", "not-replayable")]),
        1.0
    );
}

#[tokio::test]
async fn the_budget_keeps_retries_from_becoming_the_outage() {
    const REQUESTS: u64 = 3_000;
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Answer(Answer::status(503)));
    let retry = "retry: { attempts: 3, budget: { ratio: 20%, floor: 10/s } }";
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], retry)).await;
    let began = Instant::now();
    let report = Load::start(LoadSpec {
        requests: Some(REQUESTS),
        ..LoadSpec::new(sidecar.outbound(), "reviews", 8)
    })
    .finish()
    .await;
    let seconds = began.elapsed().as_secs() + 1;
    assert_eq!(report.status(503), REQUESTS, "{report}");
    let retries = upstream.requests() - REQUESTS;
    // The floor is paid every second, and what the last ten seconds left over may be spent as well.
    let allowed = REQUESTS / 5 + 10 * (seconds + 10);
    assert!(
        retries <= allowed,
        "{retries} retries in {seconds} s, {allowed} are allowed"
    );
    assert!(retries >= 10, "the floor is there to be used: {retries} retries");
    let metrics = sidecar.metrics().await;
    assert!(metrics.sum("outrigger_retries_total", &[("result", "budget")]) > 0.0);
}
