//! Endpoints that fail are left out for a while.

use outrigger_tests::{
    Answer, Ask, Behaviour, Load, LoadSpec, ServiceFile, Sidecar, Upstream, eventually, simple,
};
use serde_json::Value;

/// What `/clusters` says of the endpoint at an upstream.
async fn endpoint(sidecar: &Sidecar, upstream: &Upstream) -> Value {
    let page = sidecar.page("/clusters").await.json();
    let clusters = page["clusters"].as_array().unwrap().iter();
    let mut endpoints = clusters.flat_map(|cluster| cluster["endpoints"].as_array().unwrap());
    let address = upstream.address().to_string();
    let found = endpoints.find(|endpoint| endpoint["address"] == *address);
    found
        .unwrap_or_else(|| panic!("{address} is not in {page}"))
        .clone()
}

/// A service with these endpoints in turn, one attempt, and this ejection.
fn file(upstreams: &[&Upstream], ejection: &str) -> ServiceFile {
    simple("reviews", upstreams, "retry: { attempts: 1 }")
        .field("balance: round_robin")
        .field(&format!("ejection: {{ {ejection} }}"))
}

#[tokio::test]
async fn five_failures_in_a_row_put_an_endpoint_out_by_default() {
    let (good, bad) = (Upstream::start("good").await, Upstream::start("bad").await);
    let file = simple("reviews", &[&good, &bad], "retry: { attempts: 1 }").field("balance: round_robin");
    for behaviour in [
        Behaviour::Answer(Answer::status(500)),
        Behaviour::CloseBeforeAnswer,
    ] {
        let sidecar = Sidecar::of(&file).await;
        let before = bad.requests();
        // Four and an answer, then four again: never five in a row.
        for failures in [4, 1, 4, 1] {
            bad.behave(match failures {
                1 => Behaviour::Answer(Answer::ok()),
                _ => behaviour.clone(),
            });
            for _ in 0..failures * 2 {
                sidecar.client().get("reviews", "/").await;
            }
        }
        assert_eq!(endpoint(&sidecar, &bad).await["health"], "in");
        bad.behave(behaviour.clone());
        for _ in 0..10 {
            sidecar.client().get("reviews", "/").await;
        }
        let state = endpoint(&sidecar, &bad).await;
        assert_eq!(
            (&state["health"], &state["ejections"]),
            (&"ejected".into(), &1.into())
        );
        assert!(
            state["why"].as_str().unwrap().starts_with("5 failures in a row"),
            "{state}"
        );
        let left = state["ejected_for_ms"].as_u64().unwrap();
        assert!((1..=30_000).contains(&left), "{state}");
        for _ in 0..20 {
            assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "good");
        }
        assert_eq!(bad.requests() - before, 15, "{behaviour:?}");
        let metrics = sidecar.metrics().await;
        assert_eq!(metrics.sum("outrigger_ejections_total", &[]), 1.0);
        assert_eq!(metrics.sum("outrigger_endpoints_in", &[]), 1.0);
    }
}

#[tokio::test]
async fn with_every_endpoint_failing_the_last_is_never_put_out_and_their_own_answers_come_through() {
    let upstreams = [Upstream::start("a").await, Upstream::start("b").await];
    for upstream in &upstreams {
        upstream.behave(Behaviour::Answer(Answer::status(500)));
    }
    for at_most in ["50%", "100%"] {
        let ejection = format!("consecutive_failures: 2, at_most: {at_most}");
        let sidecar = Sidecar::of(file(&[&upstreams[0], &upstreams[1]], &ejection)).await;
        for _ in 0..50 {
            let reply = sidecar.client().get("reviews", "/").await;
            assert_eq!((reply.status(), reply.reason()), (500, None), "{reply:?}");
        }
        let metrics = sidecar.metrics().await;
        assert_eq!(metrics.sum("outrigger_ejections_total", &[]), 1.0, "{at_most}");
    }
}

#[tokio::test]
async fn an_endpoint_that_was_out_comes_back_through_one_request() {
    let (good, bad) = (Upstream::start("good").await, Upstream::start("bad").await);
    bad.behave(Behaviour::Answer(Answer::status(503)));
    let fields = "retry: { attempts: 2 }\ntimeout: { attempt: 500ms }";
    let file = simple("reviews", &[&good, &bad], fields)
        .field("balance: round_robin")
        .field("ejection: { consecutive_failures: 2, for: 100ms }");
    let sidecar = Sidecar::of(file).await;
    let load = Load::start(LoadSpec::new(sidecar.outbound(), "reviews", 8));
    eventually("the endpoint to be out", async || {
        (endpoint(&sidecar, &bad).await["ejections"] == 1).then_some(())
    })
    .await;
    // What comes from now on is never answered, so that each probe stays for as long as an attempt may.
    bad.behave(Behaviour::Hang);
    let seen = |state: &Value| {
        let number = |field: &str| state[field].as_u64().unwrap();
        (number("ejections"), number("in_flight"))
    };
    let (first, _) = seen(&endpoint(&sidecar, &bad).await);
    let mut most = 0;
    eventually("three probes to have failed", async || {
        let (ejections, in_flight) = seen(&endpoint(&sidecar, &bad).await);
        most = most.max(in_flight);
        (ejections >= first + 3).then_some(())
    })
    .await;
    assert!(most <= 1, "{most} requests at once to an endpoint that is out");
    bad.behave(Behaviour::Answer(Answer::ok()));
    eventually("the endpoint to be in again", async || {
        (endpoint(&sidecar, &bad).await["health"] == "in").then_some(())
    })
    .await;
    let before = load.so_far();
    load.has_done_more(200).await;
    let report = load.stop().await;
    report.assert_clean();
    assert!(report.since(&before).share("bad") > 0.4, "{report}");
}

#[tokio::test]
async fn a_caller_that_goes_away_is_no_failure_of_the_endpoint() {
    let (good, slow) = (Upstream::start("good").await, Upstream::start("slow").await);
    slow.behave(Behaviour::Hang);
    let sidecar = Sidecar::of(file(&[&good, &slow], "consecutive_failures: 2")).await;
    for gone in 1..=8 {
        let before = slow.requests();
        eventually("a request at the slow one", async || {
            let mut caller = sidecar.client().connect().await;
            let ask = Ask::get("/").host("reviews");
            caller.wire().send(&ask.to_bytes()).await.ok()?;
            let there = good.requests() + slow.requests();
            eventually("the request to arrive", async || {
                let arrived = good.requests() + slow.requests() > there || slow.requests() > before;
                arrived.then_some(())
            })
            .await;
            (slow.requests() > before).then_some(())
        })
        .await;
        eventually("the endpoint to notice that the caller went", async || {
            (slow.given_up() >= gone).then_some(())
        })
        .await;
    }
    let state = endpoint(&sidecar, &slow).await;
    assert_eq!(
        (&state["health"], &state["ejections"]),
        (&"in".into(), &0.into()),
        "{state}"
    );
}
