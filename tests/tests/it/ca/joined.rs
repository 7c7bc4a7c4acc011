//! Sidecars that join by a token: mTLS between them with nothing but the control API, and what becomes of them when it is
//! away or refuses.

use std::time::Duration;

use outrigger_tests::{Ask, Sidecar, SidecarSpec, Upstream};
use serde_json::Value;

use super::*;

/// Pushes `reviews`, which is strict, with its endpoint here.
async fn push(desk: &Desk, app: std::net::SocketAddr, endpoint: std::net::SocketAddr) {
    let file = desk.path().join("reviews.yaml");
    let text = format!(
        "kind: Service\nname: reviews\napp: {app}\ntls: {{ mode: strict }}\n\
         backends: [{{ name: v1, discover: {{ static: [\"{endpoint}\"] }} }}]\n"
    );
    std::fs::write(&file, text).unwrap();
    desk.run(&format!("push {}", file.display())).await.ok();
}

/// A sidecar that waits for its certificate.
fn joining(desk: &Desk, id: &str, service: &str) -> SidecarSpec {
    SidecarSpec::control(id, &desk.url).beside(service)
}

/// The sidecar of `reviews` and that of `productpage`, which have joined and speak mTLS.
async fn pair(desk: &Desk, app: &Upstream) -> (Sidecar, Sidecar) {
    let start = async |id: &str, service: &str| {
        let token = desk.token(service, 1, "10m").await;
        Sidecar::launch(joining(desk, id, service).environment("OUTRIGGER_TOKEN", &token)).await
    };
    let server = start("server", "reviews").await;
    push(desk, app.address(), server.inbound()).await;
    let caller = start("caller", "productpage").await;
    caller.is_ready().await;
    eventually("an answer by mTLS", async || {
        (caller.client().get("reviews", "/").await.status() == 200).then_some(())
    })
    .await;
    (server, caller)
}

async fn certificate(sidecar: &Sidecar) -> Value {
    sidecar.page("/certs").await.json()["identity"].clone()
}

#[tokio::test]
async fn two_sidecars_with_nothing_but_a_token_speak_mtls() {
    let desk = Desk::over_tls(&[]).await;
    let app = Upstream::start("a").await;
    let token = desk.token("reviews", 1, "10m").await;
    let server = joining(&desk, "server", "reviews").environment("OUTRIGGER_TOKEN", &token);
    let server = Sidecar::launch(server).await;
    push(&desk, app.address(), server.inbound()).await;
    let file = desk.path().join("token");
    std::fs::write(&file, desk.token("productpage", 1, "10m").await + "\n").unwrap();
    let caller = joining(&desk, "caller", "productpage").with("--token-file", file.to_str().unwrap());
    let caller = Sidecar::launch(caller).await;
    caller.is_ready().await;
    let reply = eventually("an answer by mTLS", async || {
        let reply = caller.client().get("reviews", "/").await;
        (reply.status() == 200).then_some(reply)
    })
    .await;
    assert_eq!(reply.upstream(), "a");
    let said = app.last();
    let said = said.head.header("x-forwarded-client-cert").unwrap();
    assert!(said.starts_with("By=spiffe://mesh.local/reviews;Hash="), "{said}");
    assert!(said.ends_with(";URI=spiffe://mesh.local/productpage"), "{said}");

    // By plaintext nobody gets in.
    let refused = outrigger_tests::Client::new(server.inbound());
    let refused = refused.send(Ask::get("/").host("reviews")).await;
    assert_eq!(
        (refused.status(), refused.head.header("x-outrigger-reason")),
        (403, Some("tls-required"))
    );
    let shown = eventually("both identities in the status", async || {
        let status = desk.run("status").await.ok().stdout;
        status.contains("spiffe://mesh.local/reviews").then_some(status)
    })
    .await;
    let left = ["23h", "24h"].iter().any(|left| shown.contains(left));
    assert!(shown.contains("IDENTITY") && left, "{shown}");

    let audit = desk.run("audit --json").await.ok().stdout;
    assert_eq!(audit.matches("\"issued\"").count(), 2, "{audit}");
}

#[tokio::test]
async fn certificates_are_renewed_under_load_while_the_root_is_replaced_and_no_request_fails() {
    let desk = Desk::over_tls(&["--certificate-ttl", "1m"]).await;
    let app = Upstream::start("a").await;
    let (server, caller) = pair(&desk, &app).await;
    desk.run("ca rotate start").await.ok();
    // In CI until each has been given a second certificate with both roots; at length until the old root is gone.
    let long = std::env::var_os("OUTRIGGER_TESTS_LONG").is_some();
    let first = [certificate(&server).await, certificate(&caller).await];
    let patience = Duration::from_secs(if long { 300 } else { 90 });
    let began = std::time::Instant::now();
    let (mut requests, mut renewed, mut finished) = (0, false, false);
    while if long { !finished } else { !renewed } {
        assert!(
            began.elapsed() < patience,
            "{requests} requests, renewed: {renewed}"
        );
        for _ in 0..50 {
            let reply = caller.client().get("reviews", "/").await;
            assert_eq!(reply.status(), 200, "after {requests} requests: {reply:?}");
            requests += 1;
        }
        let now = [certificate(&server).await, certificate(&caller).await];
        let both = |at: usize| {
            now[at]["roots"].as_array().is_some_and(|roots| roots.len() == 2)
                && now[at]["certificate"]["serial"] != first[at]["certificate"]["serial"]
        };
        renewed |= both(0) && both(1);
        if long && renewed {
            finished |= desk.run("ca rotate finish").await.code == 0;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(requests > 1_000, "{requests}");
}

/// Waits until the log has said that the certificate has ended, once, and that the token brings no other.
async fn says_once_that_its_certificate_has_ended(sidecar: &mut Sidecar) {
    sidecar
        .program()
        .logged("what is to be done", |line| {
            let problem = line["problem"].as_str().unwrap_or_default();
            line["level"] == "ERROR" && line["has_ended"] == true && problem.contains("(token-used-up)")
        })
        .await;
    let lines = sidecar.program().log();
    let end = "certificate has ended and no other has come";
    let ends = lines.iter().filter(|line| line.contains(end));
    assert_eq!(ends.count(), 1, "{lines:#?}");
    let after = lines.iter().skip_while(|line| !line.contains(end));
    let wrong: Vec<_> = after
        .filter(|line| line.contains("serves until its end"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    // It serves what needs no certificate; one that is started again would have to join all the same.
    sidecar.is_ready().await;
}

#[tokio::test]
async fn without_a_control_api_everything_serves_until_the_certificates_end_and_then_says_so() {
    let mut desk = Desk::over_tls(&["--certificate-ttl", "1m"]).await;
    let app = Upstream::start("a").await;
    let (mut server, mut caller) = pair(&desk, &app).await;
    desk.api.kill();
    let ends = certificate(&caller).await["certificate"]["not_after"]
        .as_i64()
        .unwrap();
    let ends = ends.min(
        certificate(&server).await["certificate"]["not_after"]
            .as_i64()
            .unwrap(),
    );
    let now = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().as_secs_f64()
    };
    // Kept connections end after some seconds without a request, so that there are new handshakes all the time.
    let reply = loop {
        let began = now();
        let reply = caller.client().get("reviews", "/").await;
        if began >= ends as f64 {
            break reply;
        }
        // One that was begun in the last moment may be served or not.
        assert!(
            reply.status() == 200 || now() >= ends as f64,
            "{} s before the end: {reply:?}",
            ends as f64 - began
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    // Whose certificate ends first by a second is chance; where it is the endpoint's, that says why in its own log.
    let expired = ["identity-expired", "peer-expired", "tls-handshake"];
    assert_eq!(reply.status(), 503, "{reply:?}");
    assert!(expired.contains(&reply.reason().unwrap()), "{reply:?}");
    let reply = eventually("its own certificate to have ended", async || {
        let reply = caller.client().get("reviews", "/").await;
        (reply.reason() == Some("identity-expired")).then_some(reply)
    })
    .await;
    assert!(reply.text().contains("expired"), "{}", reply.text());

    // Their tokens are used up, so that no certificate comes; but what is pushed does, and how it was served once more.
    let listen = desk.url.trim_start_matches("https://").to_owned();
    let (api, _) = serve(&desk.data(), &listen, &["--tls", "--certificate-ttl", "1m"]).await;
    desk.api = api;
    for sidecar in [&mut server, &mut caller] {
        says_once_that_its_certificate_has_ended(sidecar).await;
    }
    let file = desk.path().join("another.yaml");
    std::fs::write(&file, "kind: Mesh\ndefault_policy: deny\n").unwrap();
    desk.run(&format!("push {}", file.display())).await.ok();
    caller
        .config_when("what was pushed since", |config| {
            config.to_string().contains("default_policy: deny")
        })
        .await;
}

#[tokio::test]
async fn a_token_that_is_refused_leaves_a_sidecar_unready_until_another_is_in_its_file() {
    let desk = Desk::over_tls(&[]).await;
    let other = desk.token("ratings", 1, "10m").await;
    let file = desk.path().join("token");
    std::fs::write(&file, other).unwrap();
    let mut sidecar =
        Sidecar::launch(joining(&desk, "a", "reviews").with("--token-file", file.to_str().unwrap())).await;
    let line = sidecar
        .program()
        .logged("the refusal", |line| {
            line["message"] == "the identity cannot be used"
        })
        .await;
    let said = line["problem"].as_str().unwrap();
    assert!(said.contains("(other-service)"), "{said}");
    assert_eq!(sidecar.page("/ready").await.status(), 503);
    std::fs::write(&file, desk.token("reviews", 1, "10m").await).unwrap();
    eventually("the sidecar to have joined", async || {
        certificate(&sidecar).await.is_object().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_control_api_of_another_mesh_is_not_listened_to() {
    let (desk, stranger) = (Desk::over_tls(&[]).await, Desk::over_tls(&[]).await);
    let token = desk.token("reviews", 1, "10m").await;
    let mut spec = joining(&stranger, "a", "reviews");
    spec = spec.environment("OUTRIGGER_TOKEN", &token);
    let mut sidecar = Sidecar::launch(spec).await;
    let line = sidecar
        .program()
        .logged("that it is a stranger", |line| {
            line["message"] == "the identity cannot be used"
        })
        .await;
    let said = line["problem"].as_str().unwrap();
    assert!(said.contains("is not the control API that was meant"), "{said}");
    // Its configuration is not taken either.
    assert_eq!(sidecar.page("/ready").await.status(), 503);
    let audit = stranger.run("audit --json").await.ok().stdout;
    assert!(!audit.contains("issued"), "{audit}");
}

#[tokio::test]
async fn a_damaged_token_is_refused_without_being_repeated() {
    let desk = Desk::over_tls(&[]).await;
    let token = desk.token("reviews", 1, "10m").await;
    let secret = token.split('.').nth(2).unwrap().to_owned();
    for damaged in [token[..token.len() - 1].to_owned(), format!("\"{token}\"")] {
        let arguments = ["--service", "reviews", "--control", &desk.url].map(OsString::from);
        let environment = [("OUTRIGGER_TOKEN".to_owned(), damaged)];
        let program = Program::start_in("sidecar", "outrigger-proxy", &arguments, &environment);
        let ended = outrigger_tests::cli::finish(program).await;
        assert_eq!(ended.code, 2, "{}", ended.stderr);
        assert!(
            ended.stderr.contains("this is not a join token"),
            "{}",
            ended.stderr
        );
        assert!(!ended.stderr.contains(&secret), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn a_sidecar_that_is_told_no_configuration_for_want_of_an_identity_says_so_where_it_is_asked() {
    let desk = Desk::over_tls(&["--require-identity"]).await;
    let token = desk.token("ratings", 1, "10m").await;
    let mut sidecar =
        Sidecar::launch(joining(&desk, "a", "reviews").environment("OUTRIGGER_TOKEN", &token)).await;
    sidecar
        .program()
        .logged("the refusal", |line| {
            line["message"] == "the identity cannot be used"
        })
        .await;
    let ready = sidecar.page("/ready").await;
    let said = "no configuration has been applied yet, and no identity has been loaded; /certs says why";
    assert!(
        ready.status() == 503 && ready.text().contains(said),
        "{}",
        ready.text()
    );
}
