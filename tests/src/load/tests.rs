//! The load counts what happened: nothing lost, nothing made nice.

use super::*;
use crate::upstream::{Answer, Behaviour, Reuse, Upstream};

fn spec(upstream: &Upstream) -> LoadSpec {
    LoadSpec {
        requests: Some(100),
        ..LoadSpec::new(upstream.address(), "x", 4)
    }
}

#[tokio::test]
async fn every_answer_is_counted_by_status_and_upstream() {
    let upstream = Upstream::start("a").await;
    upstream.next([Behaviour::Answer(
        Answer::status(503).header("x-outrigger-reason", "no-endpoint"),
    )]);
    let report = Load::start(spec(&upstream)).finish().await;
    assert_eq!(
        (report.total(), report.status(200), report.status(503)),
        (100, 99, 1),
        "{report}"
    );
    assert_eq!(
        (report.upstream("a"), report.bad(), upstream.connections()),
        (100, 1, 4)
    );
    assert_eq!(report.latencies.len(), 100);
}

#[tokio::test]
async fn a_connection_closed_with_notice_is_no_failure_and_one_closed_without_is() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Answer(Answer::ok().header("connection", "close")));
    let report = Load::start(spec(&upstream)).finish().await;
    report.assert_clean();
    assert_eq!(upstream.connections(), 100);

    upstream.behave(Behaviour::Answer(Answer::ok()));
    upstream.reuse(Reuse::CloseAfterAnswer);
    let report = Load::start(spec(&upstream)).finish().await;
    assert_eq!(report.total(), 100);
    assert!(
        report.failures.keys().any(|what| what.contains("reused")),
        "{report}"
    );
}

#[tokio::test]
async fn refused_connections_and_cut_bodies_are_failures() {
    let mut upstream = Upstream::start("a").await;
    upstream.next([Behaviour::HalfBody(Answer::ok())]);
    let load = Load::start(LoadSpec::new(upstream.address(), "x", 2));
    load.has_done(50).await;
    let before = load.so_far();
    upstream.kill();
    load.has_done_more(5).await;
    let report = load.stop().await;
    assert!(
        report.failures.keys().any(|what| what.contains("cut short")),
        "{report}"
    );
    assert!(
        report.failures.keys().any(|what| what.contains("connect: ")),
        "{report}"
    );
    assert!(report.since(&before).total() >= 5);
}
