//! Faults that a review found, each kept out by a test.

use outrigger_tests::{
    Ask, Behaviour, Client, ServiceFile, Sidecar, SidecarSpec, Upstream, eventually, simple,
};

#[tokio::test]
async fn a_dead_application_behind_a_live_sidecar_costs_no_post() {
    let (app, dead) = (Upstream::start("app").await, Upstream::dead("dead"));
    let beside = async |id: &str, app: &Upstream| {
        let file = ServiceFile::new("reviews")
            .app(app.address())
            .backend("v1", &[app.address()]);
        Sidecar::start(SidecarSpec::text(id, &file.to_string()).beside("reviews")).await
    };
    let (good, bad) = (beside("good", &app).await, beside("bad", &dead).await);
    let called = ServiceFile::new("reviews")
        .field("balance: round_robin")
        .backend("v1", &[good.inbound(), bad.inbound()]);
    let caller = Sidecar::start(SidecarSpec::text("caller", &called.to_string())).await;
    for round in 0..20 {
        let reply = caller.client().send(Ask::post("/", "x").host("reviews")).await;
        assert_eq!(reply.status(), 200, "round {round}: {reply:?}");
    }
    let counted = [("reason", "connect-failed")];
    let metrics = caller.metrics().await;
    assert!(
        metrics.sum("outrigger_attempts_total", &counted) >= 1.0,
        "the caller counts the reason too"
    );
}

#[tokio::test]
async fn a_backend_called_app_is_not_taken_for_the_application() {
    let (app, elsewhere) = (
        Upstream::start("application").await,
        Upstream::start("elsewhere").await,
    );
    let file = ServiceFile::new("reviews")
        .app(app.address())
        .backend("app", &[elsewhere.address()]);
    let sidecar = Sidecar::start(SidecarSpec::text("a", &file.to_string()).beside("reviews")).await;
    assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "elsewhere");
    let inbound = Client::new(sidecar.inbound());
    assert_eq!(inbound.get("reviews", "/").await.upstream(), "application");
}

#[tokio::test]
async fn a_length_beside_chunked_does_not_cut_the_answer_short() {
    let upstream = Upstream::start("a").await;
    let both = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\nb\r\nhello world\r\n0\r\n\r\n";
    upstream.behave(Behaviour::RawKept(both.to_vec()));
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.text().as_str()), (200, "hello world"));
}

#[tokio::test]
async fn an_answer_in_another_coding_or_another_protocol_is_refused() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "retry: { attempts: 1 }")).await;
    for raw in [
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    ] {
        upstream.behave(Behaviour::Raw(raw.as_bytes().to_vec()));
        let reply = sidecar.client().get("reviews", "/").await;
        assert_eq!(
            (reply.status(), reply.reason()),
            (502, Some("upstream-protocol")),
            "{raw}"
        );
    }
}

#[tokio::test]
async fn an_attempt_that_the_caller_gave_up_is_counted() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Hang);
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let mut connection = sidecar.client().connect().await;
    connection
        .wire()
        .send(&Ask::get("/").host("reviews").to_bytes())
        .await
        .unwrap();
    upstream.has_requests(1).await;
    drop(connection);
    let counted = [("reason", "client-gone")];
    sidecar
        .metrics_when("the attempt", |metrics| {
            metrics.sum("outrigger_attempts_total", &counted) == 1.0
        })
        .await;
}

#[tokio::test]
async fn an_endpoint_that_failed_once_is_used_again_though_its_connections_are_kept() {
    let (mut first, second) = (Upstream::start("first").await, Upstream::start("second").await);
    let file = ServiceFile::new("reviews")
        .field("balance: round_robin")
        .backend("v1", &[first.address(), second.address()]);
    let sidecar = Sidecar::of(file).await;
    first.kill();
    for _ in 0..4 {
        assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "second");
    }
    first.revive().await;
    // One kept connection to each from here on; the first answer by it must bring the endpoint back for good.
    eventually("half of the answers to come from the first", async || {
        let mut from_first = 0;
        for _ in 0..10 {
            from_first += usize::from(sidecar.client().get("reviews", "/").await.upstream() == "first");
        }
        (from_first == 5).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_sidecar_without_configuration_says_that_it_is_not_ready() {
    let sidecar = Sidecar::launch(SidecarSpec::control("a", "http://127.0.0.1:9")).await;
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (503, Some("not-ready")));
}

#[tokio::test]
async fn a_file_that_becomes_empty_is_refused_and_the_table_serves_on() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    sidecar.rewrite("");
    let config = sidecar
        .config_when("the refusal", |config| !config["refused"].is_null())
        .await;
    assert!(
        config["refused"]["problems"][0]["message"]
            .as_str()
            .unwrap()
            .contains("no document"),
        "{config}"
    );
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
}

/// What `outrigger-proxy --check-ready` ends with for a sidecar's scrape address.
async fn check_ready(sidecar: &Sidecar) -> Option<i32> {
    let mut command = std::process::Command::new(outrigger_tests::program::binary("outrigger-proxy"));
    command.args(["--check-ready", "--scrape", &sidecar.scrape().to_string()]);
    let mut check = outrigger_tests::program::Program::spawn("check", command);
    check.exited().await.code()
}

#[tokio::test]
async fn the_health_check_says_whether_the_sidecar_is_ready() {
    let upstream = Upstream::start("a").await;
    let ready = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    assert_eq!(check_ready(&ready).await, Some(0));
    let waiting = Sidecar::launch(SidecarSpec::control("waiting", "http://127.0.0.1:9")).await;
    assert_eq!(check_ready(&waiting).await, Some(1));
}

#[tokio::test]
async fn a_request_that_is_cut_at_the_end_of_the_drain_is_not_blamed_on_its_caller() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Hang);
    let file = simple("reviews", &[&upstream], "").to_string();
    let mut sidecar = Sidecar::start(SidecarSpec::text("a", &file).with("--drain", "1s")).await;
    let mut connection = sidecar.client().connect().await;
    connection
        .wire()
        .send(&Ask::get("/").host("reviews").to_bytes())
        .await
        .unwrap();
    upstream.has_requests(1).await;
    sidecar.program().terminate();
    sidecar
        .program()
        .printed("the cut request", |line| line.contains("\"reason\":\"draining\""))
        .await;
}
