//! Endpoints are asked whether they are well.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use outrigger_tests::program::Program;
use outrigger_tests::{Answer, Behaviour, ServiceFile, Sidecar, Upstream, eventually, simple};
use serde_json::Value;

/// Asked often, and every answer decides.
const OFTEN: &str = "interval: 100ms, timeout: 1s, healthy: 1, unhealthy: 1";

/// What `/clusters` says of the first cluster, once its endpoint at an address stands like this.
async fn cluster_when(sidecar: &Sidecar, address: SocketAddr, health: &str) -> Value {
    eventually(&format!("{address} to be {health}"), async || {
        let page = sidecar.page("/clusters").await.json();
        let cluster = page["clusters"][0].clone();
        let mut endpoints = cluster["endpoints"].as_array()?.iter();
        let address = address.to_string();
        endpoints
            .any(|endpoint| endpoint["address"] == *address && endpoint["health"] == *health)
            .then_some(cluster)
    })
    .await
}

/// What was found out about the endpoint at an address.
fn why(cluster: &Value, address: SocketAddr) -> String {
    let mut endpoints = cluster["endpoints"].as_array().unwrap().iter();
    let endpoint = endpoints.find(|endpoint| endpoint["address"] == *address.to_string());
    endpoint.unwrap()["why"].as_str().unwrap_or_default().to_owned()
}

/// The real nginx on this port, ill by its own word while the file `down` is in its folder.
fn nginx(folder: &Path, address: SocketAddr) -> Program {
    let folder_name = folder.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {folder_name}/{what};"))
        .join(" ");
    let config = format!(
        "daemon off; pid {folder_name}/pid; error_log stderr; events {{}}\n\
         http {{ access_log off; {temporary}\n\
         server {{ listen {address}; add_header x-upstream nginx always;\n\
         location / {{ return 200; }}\n\
         location /healthz {{ if (-f {folder_name}/down) {{ return 503; }} return 204; }} }} }}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder).arg("-c").arg(file);
    Program::spawn("nginx", command)
}

#[tokio::test]
async fn an_nginx_that_says_that_it_is_ill_or_dies_gets_no_requests_until_it_is_well_again() {
    let folder = tempfile::tempdir().unwrap();
    let place = Upstream::dead("nginx");
    let other = Upstream::start("other").await;
    let mut server = nginx(folder.path(), place.address());
    let file = simple("reviews", &[&place, &other], "retry: { attempts: 1 }")
        .field("balance: round_robin")
        .field(&format!("health_check: {{ path: /healthz, {OFTEN} }}"));
    let mut sidecar = Sidecar::of(file).await;
    // The first question may have come before nginx did.
    cluster_when(&sidecar, place.address(), "in").await;
    let only_other = async |sidecar: &Sidecar| {
        for _ in 0..20 {
            assert_eq!(sidecar.client().get("reviews", "/").await.upstream(), "other");
        }
    };
    let both = async |sidecar: &Sidecar| {
        eventually("an answer of nginx", async || {
            let reply = sidecar.client().get("reviews", "/").await;
            (reply.upstream() == "nginx").then_some(())
        })
        .await;
    };
    both(&sidecar).await;

    let down = folder.path().join("down");
    std::fs::write(&down, "").unwrap();
    let cluster = cluster_when(&sidecar, place.address(), "failing-check").await;
    assert!(why(&cluster, place.address()).contains("503"), "{cluster}");
    only_other(&sidecar).await;
    std::fs::remove_file(&down).unwrap();
    cluster_when(&sidecar, place.address(), "in").await;
    both(&sidecar).await;

    server.kill();
    let cluster = cluster_when(&sidecar, place.address(), "failing-check").await;
    assert!(
        why(&cluster, place.address()).contains("no connection"),
        "{cluster}"
    );
    only_other(&sidecar).await;
    let _again = nginx(folder.path(), place.address());
    cluster_when(&sidecar, place.address(), "in").await;
    both(&sidecar).await;

    let metrics = sidecar.metrics().await;
    for result in ["well", "ill"] {
        assert!(metrics.sum("outrigger_health_checks_total", &[("result", result)]) >= 2.0);
    }
    assert!(sidecar.program().is_running());
}

#[tokio::test]
async fn the_first_answer_decides_at_once_however_seldom_is_asked() {
    let (ill, well) = (Upstream::start("ill").await, Upstream::start("well").await);
    ill.behave(Behaviour::Answer(
        Answer::status(302).header("location", "/login"),
    ));
    let file = simple("reviews", &[&ill, &well], "").field("health_check: { path: /healthz, interval: 1h }");
    let sidecar = Sidecar::of(file).await;
    let cluster = cluster_when(&sidecar, ill.address(), "failing-check").await;
    assert!(why(&cluster, ill.address()).contains("302"), "{cluster}");
    let asked = ill.last();
    assert_eq!((asked.method(), asked.target()), ("GET", "/healthz"));
    assert_eq!(asked.head.header("host"), Some("reviews"));
}

#[tokio::test]
async fn with_every_endpoint_ill_all_are_chosen_from_and_that_is_said() {
    let upstreams = [
        Upstream::start("a").await,
        Upstream::start("b").await,
        Upstream::start("c").await,
    ];
    let ill: fn(&outrigger_tests::upstream::Received) -> Answer = |received| match received.target() {
        "/healthz" => Answer::status(500),
        _ => Answer::ok(),
    };
    for upstream in &upstreams {
        upstream.behave(Behaviour::Call(ill));
    }
    let endpoints: Vec<&Upstream> = upstreams.iter().collect();
    let file = simple("reviews", &endpoints, "")
        .field("balance: round_robin")
        .field(&format!("health_check: {{ path: /healthz, {OFTEN} }}"));
    let mut sidecar = Sidecar::of(file).await;
    for upstream in &upstreams {
        cluster_when(&sidecar, upstream.address(), "failing-check").await;
    }
    let panics = "outrigger_cluster_panics_total";
    sidecar
        .metrics_when("the panic", |metrics| metrics.sum(panics, &[]) == 1.0)
        .await;
    assert_eq!(
        sidecar.page("/clusters").await.json()["clusters"][0]["panic"],
        true
    );
    let mut seen = Vec::new();
    for _ in 0..12 {
        let reply = sidecar.client().get("reviews", "/").await;
        assert_eq!(reply.status(), 200, "{reply:?}");
        seen.push(reply.upstream().to_owned());
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen, ["a", "b", "c"]);
    sidecar
        .program()
        .logged("that all are chosen from", |line| {
            line["message"]
                .as_str()
                .is_some_and(|message| message.contains("choosing among all"))
        })
        .await;
    for upstream in &upstreams {
        upstream.behave(Behaviour::Answer(Answer::ok()));
        cluster_when(&sidecar, upstream.address(), "in").await;
    }
    assert_eq!(
        sidecar.page("/clusters").await.json()["clusters"][0]["panic"],
        false
    );
}

#[tokio::test]
async fn checks_follow_a_push_and_what_is_not_checked_any_more_is_taken_for_well() {
    let (ill, well) = (Upstream::start("ill").await, Upstream::start("well").await);
    let ill_by: fn(&outrigger_tests::upstream::Received) -> Answer = |received| match received.target() {
        "/one" => Answer::status(500),
        _ => Answer::ok(),
    };
    ill.behave(Behaviour::Call(ill_by));
    let plain = simple("reviews", &[&ill, &well], "");
    let file = |path: &str| {
        plain
            .clone()
            .field(&format!("health_check: {{ path: {path}, {OFTEN} }}"))
            .to_string()
    };
    let sidecar = Sidecar::of(file("/one")).await;
    cluster_when(&sidecar, ill.address(), "failing-check").await;
    sidecar.apply(&file("/two")).await;
    cluster_when(&sidecar, ill.address(), "in").await;
    let asked = |path: &str| {
        let received = ill.received();
        received
            .iter()
            .filter(|received| received.target() == path)
            .count()
    };
    // One question by the old words may have been under way.
    let (before, twos) = (asked("/one"), asked("/two"));
    eventually("five more questions", async || {
        (asked("/two") >= twos + 5).then_some(())
    })
    .await;
    assert!(asked("/one") <= before + 1);

    sidecar.apply(&file("/one")).await;
    cluster_when(&sidecar, ill.address(), "failing-check").await;
    sidecar.apply(&plain.to_string()).await;
    cluster_when(&sidecar, ill.address(), "in").await;
}

#[tokio::test]
async fn a_grpc_server_is_asked_by_its_own_health_protocol() {
    let folder = tempfile::tempdir().unwrap();
    let down = folder.path().join("down");
    let python = std::env::var("OUTRIGGER_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/peers/health_peer.py");
    let mut command = Command::new(python);
    command.arg(script).arg(&down);
    let server = Program::spawn("the gRPC health server", command);
    let line = server
        .printed("its port", |line| line.starts_with("listening on"))
        .await;
    let port: u16 = line.rsplit(' ').next().unwrap().parse().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let file = |service: &str| {
        ServiceFile::new("reviews")
            .field("protocol: grpc")
            .field(&format!(
                "health_check: {{ grpc: {{ service: {service} }}, {OFTEN} }}"
            ))
            .backend("v1", &[address])
    };
    let sidecar = Sidecar::of(file("shop.Reviews")).await;
    let checks = "outrigger_health_checks_total";
    sidecar
        .metrics_when("a good answer", |metrics| {
            metrics.sum(checks, &[("result", "well")]) >= 1.0
        })
        .await;
    cluster_when(&sidecar, address, "in").await;
    std::fs::write(&down, "").unwrap();
    let cluster = cluster_when(&sidecar, address, "failing-check").await;
    assert!(why(&cluster, address).contains("NotServing"), "{cluster}");
    std::fs::remove_file(&down).unwrap();
    cluster_when(&sidecar, address, "in").await;
    // A service that it does not know is answered with NOT_FOUND, in the head alone.
    sidecar.apply(&file("shop.Unknown").to_string()).await;
    let cluster = cluster_when(&sidecar, address, "failing-check").await;
    assert!(why(&cluster, address).contains("grpc-status 5"), "{cluster}");
}

#[tokio::test]
async fn an_endpoint_is_well_by_tcp_while_it_takes_connections() {
    let (mut one, other) = (Upstream::start("one").await, Upstream::start("other").await);
    let file =
        simple("reviews", &[&one, &other], "").field(&format!("health_check: {{ tcp: {{}}, {OFTEN} }}"));
    let sidecar = Sidecar::of(file).await;
    cluster_when(&sidecar, one.address(), "in").await;
    one.kill();
    cluster_when(&sidecar, one.address(), "failing-check").await;
    one.revive().await;
    cluster_when(&sidecar, one.address(), "in").await;
}
