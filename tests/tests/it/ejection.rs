//! Endpoints that fail are left out for a while.

use std::net::SocketAddr;

use outrigger_tests::grpc::{Call, GrpcUpstream};
use outrigger_tests::{
    Answer, Ask, Behaviour, Load, LoadSpec, ServiceFile, Sidecar, Upstream, eventually, simple, within,
};
use serde_json::Value;

/// What `/clusters` says of the endpoint at an upstream.
async fn endpoint(sidecar: &Sidecar, upstream: &Upstream) -> Value {
    endpoint_at(sidecar, upstream.address()).await
}

async fn endpoint_at(sidecar: &Sidecar, address: SocketAddr) -> Value {
    let page = sidecar.page("/clusters").await.json();
    let clusters = page["clusters"].as_array().unwrap().iter();
    let mut endpoints = clusters.flat_map(|cluster| cluster["endpoints"].as_array().unwrap());
    let address = address.to_string();
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
            let there = good.requests() + slow.requests();
            caller.wire().send(&ask.to_bytes()).await.ok()?;
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

/// A service of gRPC with these endpoints in turn, of which one goes after three failures in a row.
async fn of_calls(good: &GrpcUpstream, bad: &GrpcUpstream) -> Sidecar {
    let file = ServiceFile::new("reviews")
        .field("protocol: grpc")
        .field("balance: round_robin")
        .field("ejection: { consecutive_failures: 3 }")
        .backend("v1", &[good.address(), bad.address()]);
    Sidecar::of(file).await
}

/// Two calls with all they say, so that one goes to each endpoint.
async fn two_calls(sidecar: &Sidecar) {
    for _ in 0..2 {
        let ask = Ask::post("/shop.Reviews/Get", b"\0\0\0\0\x01x")
            .host("reviews")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        sidecar.client().send(ask).await;
    }
}

/// Two calls whose caller leaves when it has seen the head.
async fn two_calls_are_left(sidecar: &Sidecar, good: &GrpcUpstream, bad: &GrpcUpstream) {
    let given_up = || good.given_up() + bad.given_up();
    let before = given_up();
    for _ in 0..2 {
        let mut caller = sidecar.client().connect().await;
        let wire = caller.wire();
        let head = "POST /shop.Reviews/Talk HTTP/1.1\r\nhost: reviews\r\ncontent-type: application/grpc\r\n\
                    transfer-encoding: chunked\r\n\r\n6\r\n\0\0\0\0\x01x\r\n";
        wire.send(head.as_bytes()).await.unwrap();
        let head = within("the head", wire.head()).await.unwrap().unwrap();
        assert_eq!(head.status(), 200);
    }
    eventually("both streams to be given up", async || {
        (given_up() == before + 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_call_that_its_caller_leaves_before_the_trailers_neither_counts_as_a_failure_nor_ends_a_row() {
    let (good, bad) = (
        GrpcUpstream::start("good").await,
        GrpcUpstream::start("bad").await,
    );
    let sidecar = of_calls(&good, &bad).await;
    for failures in 0..3 {
        for upstream in [&good, &bad] {
            upstream.behave(Call::HeadFirst);
        }
        two_calls_are_left(&sidecar, &good, &bad).await;
        let state = endpoint_at(&sidecar, bad.address()).await;
        assert_eq!(
            state["health"], "in",
            "{failures} failures and a caller that left"
        );
        good.behave(Call::Message(0));
        bad.behave(Call::Message(14));
        two_calls(&sidecar).await;
    }
    assert_eq!(endpoint_at(&sidecar, bad.address()).await["health"], "ejected");
    sidecar
        .metrics_when("all attempts by how they ended", |metrics| {
            let attempts = |class: &str, reason: &str| {
                let labels = [("status_class", class), ("reason", reason)];
                metrics.sum("outrigger_attempts_total", &labels)
            };
            (
                attempts("2xx", "client-gone"),
                attempts("5xx", ""),
                attempts("2xx", ""),
            ) == (6.0, 3.0, 3.0)
        })
        .await;
}

#[tokio::test]
async fn a_call_whose_stream_is_reset_after_its_head_counts_as_a_failure() {
    let (good, bad) = (
        GrpcUpstream::start("good").await,
        GrpcUpstream::start("bad").await,
    );
    let sidecar = of_calls(&good, &bad).await;
    bad.behave(Call::HeadThenReset(2));
    for _ in 0..3 {
        assert_eq!(endpoint_at(&sidecar, bad.address()).await["health"], "in");
        two_calls(&sidecar).await;
    }
    assert_eq!(endpoint_at(&sidecar, bad.address()).await["health"], "ejected");
}
