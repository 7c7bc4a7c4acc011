use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::*;

/// How far a share may be from its weight. The sidecar's choice is even to a few requests, of hundreds.
const SHARE_TOLERANCE: f64 = 0.03;

fn settings(time: Duration) -> Settings {
    Settings {
        time: Some(time),
        api: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        port_base: 0,
        // Few, so that the numbers hold on a machine that is busy with other tests.
        rate: 60,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_seconds_of_the_demo_add_up() {
    let mut lines = Vec::new();
    let mut keep = |line: &str| lines.push(line.to_owned());
    let settings = settings(Duration::from_secs(3));
    let demo = run(&settings, Audience::Lines(&mut keep));
    let summary = tokio::time::timeout(Duration::from_secs(60), demo)
        .await
        .unwrap()
        .unwrap();

    let row = |name: &str| {
        let found = summary.edges.iter().find(|row| edge(row) == name);
        found.unwrap_or_else(|| panic!("{name} is not in {:#?}", summary.edges))
    };
    let (entrance, v1) = (row("shoppers → frontend"), row("frontend → reviews v1"));
    let (v2, ratings) = (row("frontend → reviews v2"), row("reviews-v2 → ratings v1"));
    assert_eq!(summary.edges.len(), 4, "{:#?}", summary.edges);
    assert_eq!(summary.version, "1");

    // What the shoppers saw is what the sidecars counted, hop by hop.
    let shoppers = summary.shoppers;
    assert!(shoppers.sent > 100, "{shoppers:?}");
    assert_eq!(
        shoppers.sent,
        shoppers.pages + shoppers.errors + shoppers.unanswered
    );
    assert_eq!(entrance.requests, shoppers.sent);
    assert_eq!(v1.requests + v2.requests, shoppers.sent);
    let reached_ratings = v2.requests as f64 * v2.success.unwrap();
    assert!(
        (ratings.requests as f64 - reached_ratings).abs() < 2.0,
        "{ratings:?} {v2:?}"
    );

    for (row, weight) in [(v1, 0.9), (v2, 0.1)] {
        let share = row.share.unwrap();
        assert!((share - weight).abs() < SHARE_TOLERANCE, "{row:?}");
    }
    for row in [entrance, v1, ratings] {
        assert!(row.success.unwrap() >= 0.99, "{row:?}");
        assert!(row.p50_ms.unwrap() <= row.p99_ms.unwrap(), "{row:?}");
    }
    assert!(v2.attempt_success <= v2.success, "{v2:?}");
    assert!(lines.iter().any(|line| line.contains("push")), "{lines:?}");
    no_thread_of_a_sidecar_is_left().await;
}

/// The data threads end a moment after their sidecar has.
#[cfg(target_os = "linux")]
async fn no_thread_of_a_sidecar_is_left() {
    let names = || -> Vec<String> {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        // A thread may end between the two reads.
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names
            .filter(|name| {
                matches!(
                    name.trim(),
                    "frontend" | "ratings" | "accept" | "worker-0" | "access-log"
                )
            })
            .collect()
    };
    let gone = async {
        while !names().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), gone).await;
    assert!(waited.is_ok(), "left: {:?}", names());
}

#[cfg(not(target_os = "linux"))]
async fn no_thread_of_a_sidecar_is_left() {}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_told_in_a_sentence() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut settings = settings(Duration::from_secs(3));
    settings.api = taken.local_addr().unwrap();
    let error = run(&settings, Audience::Nobody).await.unwrap_err().to_string();
    assert!(
        error.contains(&format!("cannot listen on {} for the control API", settings.api)),
        "{error}"
    );
    assert!(error.contains("--api-listen"), "{error}");
}
