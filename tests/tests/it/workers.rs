//! How connections are spread over the data threads: seen by how often each thread has gone to sleep, which it does at least
//! once for each request of a caller that sends them one after the other.

use std::collections::BTreeMap;

use outrigger_tests::http2::Caller;
use outrigger_tests::wait::within;
use outrigger_tests::{ServiceFile, Sidecar, SidecarSpec, Upstream, simple};

async fn two_workers(file: &ServiceFile) -> Sidecar {
    Sidecar::start(SidecarSpec::text("a", &file.to_string()).with("--workers", "2")).await
}

/// How often each data thread has gone to sleep.
fn sleeps(sidecar: &mut Sidecar) -> BTreeMap<String, u64> {
    let threads = format!("/proc/{}/task", sidecar.program().id());
    let mut sleeps = BTreeMap::new();
    for thread in std::fs::read_dir(threads).unwrap() {
        let thread = thread.unwrap().path();
        let name = std::fs::read_to_string(thread.join("comm")).unwrap();
        if !name.starts_with("worker-") {
            continue;
        }
        let status = std::fs::read_to_string(thread.join("status")).unwrap();
        let count = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sleeps.insert(name.trim().to_owned(), count.unwrap().trim().parse().unwrap());
    }
    assert_eq!(sleeps.len(), 2, "{sleeps:?}");
    sleeps
}

/// The share of the requests since `before` that the less busy thread had, in per cent.
fn lesser_share(sidecar: &mut Sidecar, before: &BTreeMap<String, u64>) -> u64 {
    let now = sleeps(sidecar);
    let since: Vec<u64> = now.iter().map(|(name, count)| count - before[name]).collect();
    since.iter().min().unwrap() * 100 / since.iter().sum::<u64>()
}

#[tokio::test]
async fn two_connections_by_http2_that_stay_have_a_data_thread_each() {
    let upstream = Upstream::start("a").await;
    let mut sidecar = two_workers(&simple("reviews", &[&upstream], "")).await;
    let address = sidecar.outbound();
    let before = sleeps(&mut sidecar);
    let mut callers = [
        Caller::open(address).await.unwrap(),
        Caller::open(address).await.unwrap(),
    ];
    for _ in 0..200 {
        for caller in &mut callers {
            let stream = caller.get("reviews", "/").await.unwrap();
            let reply = within("an answer", caller.reply(stream)).await.unwrap();
            assert_eq!(reply.status(), 200);
        }
    }
    let share = lesser_share(&mut sidecar, &before);
    assert!(share >= 30, "one thread had {share} % of them");
}

#[tokio::test]
async fn short_connections_are_spread_evenly_even_if_there_is_only_one_at_a_time() {
    let upstream = Upstream::start("a").await;
    let mut sidecar = two_workers(&simple("reviews", &[&upstream], "")).await;
    let before = sleeps(&mut sidecar);
    for _ in 0..400 {
        assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    }
    let share = lesser_share(&mut sidecar, &before);
    assert!(share >= 30, "one thread had {share} % of them");
}

/// How nice each thread is, by its name.
fn niceness(sidecar: &mut Sidecar) -> BTreeMap<String, i32> {
    let threads = format!("/proc/{}/task", sidecar.program().id());
    let mut niceness = BTreeMap::new();
    for thread in std::fs::read_dir(threads).unwrap() {
        let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
        // proc_pid_stat(5): the name stands in brackets, niceness is field 19, the 17th after them.
        let (name, fields) = stat.rsplit_once(')').unwrap();
        let (_, name) = name.split_once('(').unwrap();
        let nice = fields.split_whitespace().nth(16).unwrap().parse().unwrap();
        niceness.insert(name.to_owned(), nice);
    }
    niceness
}

#[tokio::test]
async fn the_control_thread_lets_the_data_threads_go_before() {
    let upstream = Upstream::start("a").await;
    let mut sidecar = two_workers(&simple("reviews", &[&upstream], "")).await;
    let niceness = niceness(&mut sidecar);
    let data = niceness["worker-0"];
    assert_eq!(niceness["worker-1"], data, "{niceness:?}");
    assert_eq!(niceness["accept"], data, "{niceness:?}");
    assert_eq!(niceness["outrigger-proxy"], (data + 10).min(19), "{niceness:?}");
}
