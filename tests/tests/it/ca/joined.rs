//! Sidecars that join by a token: mTLS between them with nothing but the control API, and what becomes of them when it is
//! away or refuses.

use std::time::Duration;

use outrigger_tests::client::Reply;
use outrigger_tests::wait::eventually_in;
use outrigger_tests::{Ask, Load, LoadSpec, Sidecar, SidecarSpec, Upstream};
use serde_json::Value;

use super::*;

/// Pushes `reviews`, which is strict, with its endpoint here.
pub(super) async fn push(desk: &Desk, app: std::net::SocketAddr, endpoint: std::net::SocketAddr) {
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
    let load = Load::start(LoadSpec {
        rate: Some(200),
        ..LoadSpec::new(caller.outbound(), "reviews", 2)
    });
    desk.run("ca rotate start").await.ok();
    // In CI until each has been given a second certificate with both roots; at length until the old root is gone.
    let first = [certificate(&server).await, certificate(&caller).await];
    for (at, sidecar) in [&server, &caller].into_iter().enumerate() {
        let patience = Duration::from_secs(90);
        eventually_in(patience, "a second certificate, with both roots", async || {
            let now = certificate(sidecar).await;
            let roots = now["roots"].as_array().map_or(0, Vec::len);
            (roots == 2 && now["certificate"]["serial"] != first[at]["certificate"]["serial"]).then_some(())
        })
        .await;
    }
    if std::env::var_os("OUTRIGGER_TESTS_LONG").is_some() {
        eventually_in(Duration::from_secs(300), "the old root to be gone", async || {
            (desk.run("ca rotate finish").await.code == 0).then_some(())
        })
        .await;
        load.has_done_more(1_000).await;
    }
    // Told by their polls they renew at once, and some load is to come after that too.
    load.has_done_more(1_000).await;
    load.stop().await.assert_clean();
}

/// Seconds since 1970.
fn clock() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.unwrap().as_secs()).unwrap()
}

/// Until when its certificate is good, that second included.
async fn ends(sidecar: &Sidecar) -> i64 {
    certificate(sidecar).await["certificate"]["not_after"]
        .as_i64()
        .unwrap()
}

/// The first answer for `/` of `reviews` that is not 200, within the life of a certificate of a minute.
async fn refused(caller: &Sidecar) -> Reply {
    eventually_in(Duration::from_secs(90), "a request to be refused", async || {
        let reply = caller.client().get("reviews", "/").await;
        (reply.status() != 200).then_some(reply)
    })
    .await
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
    // One more caller, whose certificate is good for longer than that of `server`.
    let listen = desk.url.trim_start_matches("https://").to_owned();
    desk.api.kill();
    let (api, _) = serve(&desk.data(), &listen, &["--tls", "--certificate-ttl", "1h"]).await;
    desk.api = api;
    let token = desk.token("ratings", 1, "10m").await;
    let lasting = joining(&desk, "lasting", "ratings").environment("OUTRIGGER_TOKEN", &token);
    let lasting = Sidecar::launch(lasting).await;
    lasting.is_ready().await;
    desk.api.kill();

    let (server_ends, caller_ends) = (ends(&server).await, ends(&caller).await);
    assert!(ends(&lasting).await > server_ends + 600);
    // Each finds out by itself: who asks with a good certificate that the endpoint's is over, and who asks with one that is
    // over that it is its own.
    let (of_endpoint, of_own) = tokio::join!(refused(&lasting), refused(&caller));
    assert!(
        clock() > server_ends.min(caller_ends),
        "{of_endpoint:?} {of_own:?}"
    );
    assert_eq!(
        (of_endpoint.status(), of_endpoint.reason()),
        (503, Some("peer-expired")),
        "{of_endpoint:?}"
    );
    let first = match caller_ends <= server_ends {
        true => "identity-expired",
        false => "peer-expired",
    };
    assert_eq!(
        (of_own.status(), of_own.reason()),
        (503, Some(first)),
        "{of_own:?}"
    );
    let told = server.program().logged("that it is its own", |line| {
        line["message"] == "a TLS handshake failed" && line["reason"] == "identity-expired"
    });
    told.await;
    let reply = eventually("its own certificate to have ended", async || {
        let reply = caller.client().get("reviews", "/").await;
        (reply.reason() == Some("identity-expired")).then_some(reply)
    })
    .await;
    assert!(reply.text().contains("expired"), "{}", reply.text());

    // Their tokens are used up, so that no certificate comes; but what is pushed does, and how it was served once more.
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
async fn a_sidecar_whose_certificate_is_younger_than_the_backup_of_the_api_joins_again_by_its_token() {
    let mut desk = Desk::over_tls(&[]).await;
    let token = desk.token("reviews", 2, "10m").await;
    let address = desk.url.strip_prefix("https://").unwrap().to_owned();
    let store = desk.data().join("store.redb");
    let backup = desk.path().join("backup.redb");
    desk.api.kill();
    std::fs::copy(&store, &backup).unwrap();
    (desk.api, desk.url) = serve(&desk.data(), &address, &["--tls"]).await;
    let spec = joining(&desk, "reviews-1", "reviews").environment("OUTRIGGER_TOKEN", &token);
    let mut sidecar = Sidecar::launch(spec).await;
    sidecar.is_ready().await;
    let first = certificate(&sidecar).await["certificate"]["serial"].clone();
    desk.api.kill();
    std::fs::copy(&backup, &store).unwrap();
    (desk.api, desk.url) = serve(&desk.data(), &address, &["--tls"]).await;
    assert_eq!(desk.listed(&token).await["uses"], 0);

    // Told of another root it would renew at once, and is not known here.
    desk.run("ca rotate start").await.ok();
    let told = sidecar.program().logged("why", |line| {
        line["why"]
            .as_str()
            .is_some_and(|why| why.contains("(certificate-unknown)"))
    });
    told.await;
    eventually("another certificate", async || {
        let held = certificate(&sidecar).await["certificate"]["serial"].clone();
        (held != first).then_some(())
    })
    .await;
    assert_eq!(desk.listed(&token).await["uses"], 1);
    let words = desk.audited().await;
    assert_eq!(times(&words, "certificate-unknown"), 1, "{words:?}");
    assert_eq!(words.last().unwrap(), "issued");
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
