//! Bytes without measure and without sense. Whatever comes, the sidecar answers or closes, and serves the next. What
//! single faults of framing come to is in `framing`.

use outrigger_tests::wait::{eventually, within};
use outrigger_tests::{Answer, Ask, Behaviour, Client, Sidecar, Upstream, simple};

/// What comes back for these bytes: the status, and the reason; 0 for a connection that is closed without a word.
async fn told(sidecar: &Sidecar, bytes: &[u8]) -> (u16, Option<String>) {
    let mut connection = sidecar.client().connect().await;
    // The sidecar may close while this is still being sent, and that is an answer as well.
    let _ = connection.wire().send(bytes).await;
    let _ = connection.wire().finish().await;
    match within("an answer or an end", connection.reply_to("GET")).await {
        Ok(reply) => (reply.status(), reply.reason().map(str::to_owned)),
        Err(_) => (0, None),
    }
}

#[tokio::test]
async fn heads_without_measure_are_refused() {
    let upstream = Upstream::start("a").await;
    let mut sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let long = "x".repeat(900_000);
    let many: String = (0..5_000).map(|number| format!("x-{number}: 1\r\n")).collect();
    for bytes in [
        format!("GET /{long} HTTP/1.1\r\nHost: reviews\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: reviews\r\nx: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: reviews\r\n{many}\r\n"),
    ] {
        let (status, _) = told(&sidecar, bytes.as_bytes()).await;
        assert!(status == 0 || (400..500).contains(&status), "{status}");
    }
    assert_eq!(upstream.requests(), 0);
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    assert!(sidecar.program().is_running());
}

#[tokio::test]
async fn noise_never_ends_the_sidecar() {
    let upstream = Upstream::start("a").await;
    let mut sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let seed = 20_261_123;
    let mut rng = fastrand::Rng::with_seed(seed);
    let whole = Ask::post("/a?b=c", "0123456789")
        .host("reviews")
        .chunked()
        .to_bytes();
    for round in 0..300 {
        let mut bytes = whole.clone();
        for _ in 0..rng.usize(1..6) {
            let at = rng.usize(..bytes.len());
            match rng.u8(..3) {
                0 => bytes[at] = rng.u8(..),
                1 => bytes.insert(at, rng.u8(..)),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let (status, _) = told(&sidecar, &bytes).await;
        assert_ne!(
            status,
            500,
            "round {round} of seed {seed}: {:?}",
            String::from_utf8_lossy(&bytes)
        );
    }
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
    assert!(sidecar.program().is_running());
    let panics = sidecar
        .program()
        .log()
        .into_iter()
        .filter(|line| line.contains("panicked"));
    assert_eq!(panics.collect::<Vec<_>>(), Vec::<String>::new());
}

#[tokio::test]
async fn a_reader_that_is_slow_does_not_fill_the_sidecar() {
    const BODY: usize = 128 * 1024 * 1024;
    // The sockets of the kernel take some megabytes by themselves; those are not the sidecar's.
    const MEMORY_MAX: f64 = 64.0 * 1024.0 * 1024.0;
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Answer(Answer::ok().body(vec![7; BODY])));
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "timeout: { request: 0s }")).await;
    let mut connection = sidecar.client().connect().await;
    connection
        .wire()
        .send(&Ask::get("/").host("reviews").to_bytes())
        .await
        .unwrap();
    let head = within("the head", connection.wire().head())
        .await
        .unwrap()
        .unwrap();
    // Until the sidecar has stopped taking more from the upstream: its memory is the same twice in a row.
    let mut before = 0.0;
    let memory = eventually("the sidecar to stop taking more", async || {
        let now = sidecar.metrics().await.sum("process_resident_memory_bytes", &[]);
        let settled = (now - before).abs() < 1.0;
        before = now;
        settled.then_some(now)
    })
    .await;
    assert!(memory < MEMORY_MAX, "{memory} bytes for a body that nobody reads");
    let framing = head.answer_framing("GET").unwrap();
    let body = within("the body", connection.wire().body(framing, 1)).await;
    assert_eq!(body.cut, None);
}

#[tokio::test]
async fn a_caller_that_does_not_read_its_answer_is_cut_when_its_time_is_over() {
    for (fields, reason) in [
        ("timeout: { request: 1s }", "request-timeout"),
        ("timeout: { request: 0s, idle: 1s }", "idle-timeout"),
    ] {
        let upstream = Upstream::start("a").await;
        upstream.behave(Behaviour::Answer(Answer::ok().body(vec![7; 64 * 1024 * 1024])));
        let sidecar = Sidecar::of(simple("reviews", &[&upstream], fields)).await;
        let mut connection = sidecar.client().connect().await;
        let ask = Ask::get("/").host("reviews").to_bytes();
        connection.wire().send(&ask).await.unwrap();
        let counted = [("reason", reason)];
        sidecar
            .metrics_when(reason, |metrics| {
                let open = [("listener", "outbound")];
                metrics.sum("outrigger_requests_total", &counted) == 1.0
                    && metrics.sum("outrigger_connections_open", &open) == 0.0
            })
            .await;
    }
}

#[tokio::test]
async fn silent_connections_do_not_keep_probes_out() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let mut silent = Vec::new();
    for _ in 0..70 {
        silent.push(tokio::net::TcpStream::connect(sidecar.scrape()).await.unwrap());
    }
    let prober = Client::new(sidecar.scrape());
    let asked = prober.get("scrape", "/live");
    let limit = std::time::Duration::from_secs(10);
    let reply = tokio::time::timeout(limit, asked)
        .await
        .expect("an answer in time");
    assert_eq!(reply.status(), 200);
}
