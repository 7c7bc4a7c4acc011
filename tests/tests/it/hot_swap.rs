//! The table is swapped under load, and nobody notices but by the answers.

use std::time::{Duration, Instant};

use outrigger_tests::load::Report;
use outrigger_tests::{Ask, ControlApi, Load, LoadSpec, ServiceFile, Sidecar, SidecarSpec, Upstream};
use serde_json::Value;

/// A loose bound for the acknowledgement of a push by every sidecar. The promise is one second and the figure that
/// was measured is printed; what a busy machine with two cores makes of it must not decide a test.
const ACKNOWLEDGED_MAX: Duration = Duration::from_secs(5);

/// Set to run the minute of load that the promise speaks of.
const LONG: &str = "OUTRIGGER_TESTS_LONG";

struct Size {
    pushes: u32,
    time: Duration,
}

fn size() -> Size {
    match std::env::var_os(LONG) {
        Some(_) => Size {
            pushes: 200,
            time: Duration::from_secs(60),
        },
        None => Size {
            pushes: 40,
            time: Duration::from_secs(10),
        },
    }
}

/// A client's sidecar, two server's sidecars with an application each, and an endpoint without a sidecar.
struct Mesh {
    api: ControlApi,
    client: Sidecar,
    servers: [Sidecar; 2],
    apps: [Upstream; 2],
    third: Upstream,
}

impl Mesh {
    async fn start() -> Self {
        let api = ControlApi::start().await;
        let apps = [Upstream::start("v1").await, Upstream::start("v2").await];
        let server =
            |service: &str| Sidecar::launch(SidecarSpec::control(service, &api.url()).beside(service));
        let servers = [server("reviews-v1").await, server("reviews-v2").await];
        let client = Sidecar::launch(SidecarSpec::control("client", &api.url())).await;
        let third = Upstream::start("v3").await;
        let mesh = Self {
            api,
            client,
            servers,
            apps,
            third,
        };
        let (version, pushed) = mesh.push(50, 0).await;
        // One may be ready with the nothing that there was before.
        mesh.acknowledged(&version, pushed).await;
        for sidecar in mesh.sidecars() {
            sidecar.is_ready().await;
        }
        mesh
    }

    fn sidecars(&self) -> [&Sidecar; 3] {
        [&self.client, &self.servers[0], &self.servers[1]]
    }

    /// Pushes a table in which v1 has this weight out of 100. The number decides which of the routes and backends
    /// that come and go are there. Gives the version and the moment of its acknowledgement.
    async fn push(&self, weight: u32, number: u32) -> (String, Instant) {
        let mut text = String::new();
        for (index, app) in self.apps.iter().enumerate() {
            let name = format!("reviews-v{}", index + 1);
            let file = ServiceFile::new(&name).app(app.address());
            text.push_str(&format!(
                "{}---\n",
                file.backend("v1", &[self.servers[index].inbound()])
            ));
        }
        let mut file = ServiceFile::new("reviews")
            .backend("v1", &[self.servers[0].inbound()])
            .backend("v2", &[self.servers[1].inbound()]);
        let beta = "match: [{ path: { prefix: /beta } }]";
        if number.is_multiple_of(3) {
            file = file.backend("v3", &[self.third.address()]);
            file = file.route("beta", &[("v3", 1)], beta);
        } else if number % 3 == 1 {
            file = file.route("beta", &[("v2", 1)], beta);
        }
        file = file.route("default", &[("v1", weight), ("v2", 100 - weight)], "");
        text.push_str(&file.to_string());
        let version = self.api.pushed(&text).await;
        (version, Instant::now())
    }

    /// Waits until every sidecar has acknowledged this version, and gives how long that took since `pushed`.
    async fn acknowledged(&self, version: &str, pushed: Instant) -> Duration {
        let holds = |node: &Value| node["holds"] == version;
        self.api
            .nodes_when("that all hold it", |list| {
                let nodes = list["nodes"].as_array().unwrap();
                nodes.len() == 3 && nodes.iter().all(holds)
            })
            .await;
        pushed.elapsed()
    }
}

/// How far the split of some answers is from a weight, as a share of all.
fn off(report: &Report, weight: u32) -> f64 {
    (report.share("v1") - f64::from(weight) / 100.0).abs()
}

#[tokio::test]
async fn weights_routes_and_backends_change_under_load_and_no_request_fails() {
    const CONNECTIONS: u64 = 12;
    let size = size();
    let mesh = Mesh::start().await;
    let load = Load::start(LoadSpec::new(
        mesh.client.outbound(),
        "reviews",
        CONNECTIONS as usize,
    ));
    let beta = Load::start(LoadSpec {
        asks: vec![
            Ask::get("/beta/x").host("reviews"),
            Ask::post("/beta/x", "hello").host("reviews"),
        ],
        rate: Some(100),
        ..LoadSpec::new(mesh.client.outbound(), "reviews", 2)
    });
    let mut rng = fastrand::Rng::with_seed(2);
    let mut slowest = Duration::ZERO;
    // Expected and actual answers of v1 over all the times between two pushes: one such time is too short for two
    // percent to be more than chance.
    let (mut expected, mut actual, mut counted) = (0.0, 0.0, 0.0);
    let began = Instant::now();
    for number in 1..=size.pushes {
        let weight = rng.u32(0..=100);
        let (version, pushed) = mesh.push(weight, number).await;
        slowest = slowest.max(mesh.acknowledged(&version, pushed).await);
        // Whatever was on its way at that moment may still have seen the old table.
        load.has_done_more(CONNECTIONS).await;
        let before = load.so_far();
        tokio::time::sleep_until((began + size.time * number / size.pushes).into()).await;
        load.has_done_more(20).await;
        let between = load.so_far().since(&before);
        expected += f64::from(weight) / 100.0 * between.total() as f64;
        actual += between.upstream("v1") as f64;
        counted += between.total() as f64;
    }
    // And twice long enough to be judged by itself.
    for weight in [90, 25] {
        let (version, pushed) = mesh.push(weight, 0).await;
        mesh.acknowledged(&version, pushed).await;
        load.has_done_more(CONNECTIONS).await;
        let before = load.so_far();
        load.has_done_more(5_000).await;
        let between = load.so_far().since(&before);
        assert!(off(&between, weight) <= 0.02, "{weight} % for v1\n{between}");
    }
    let seconds = began.elapsed().as_secs_f64();
    let (report, beta) = (load.stop().await, beta.stop().await);
    let rate = report.total() as f64 / seconds;
    println!(
        "{} pushes under {rate:.0} requests a second; slowest acknowledgement of all sidecars {} ms; p99 {:.1} ms",
        size.pushes,
        slowest.as_millis(),
        report.quantile(0.99)
    );
    report.assert_clean();
    beta.assert_clean();
    let off = (expected - actual).abs() / counted;
    assert!(
        off <= 0.02,
        "{:.2} % off the weights over all pushes\n{report}",
        off * 100.0
    );
    assert!(slowest <= ACKNOWLEDGED_MAX, "{slowest:?}");
}

#[tokio::test]
async fn a_request_under_way_keeps_the_table_that_it_began_with() {
    use outrigger_tests::{Answer, Behaviour};
    let (old, new) = (Upstream::start("old").await, Upstream::start("new").await);
    old.behave(Behaviour::Answer(Answer::ok().after(Duration::from_secs(2))));
    let sidecar = Sidecar::of(outrigger_tests::simple("reviews", &[&old], "")).await;
    let mut connection = sidecar.client().connect().await;
    connection
        .wire()
        .send(&Ask::get("/").host("reviews").to_bytes())
        .await
        .unwrap();
    old.has_requests(1).await;
    // The backend that it waits for is gone from the table, and so is its service.
    sidecar
        .apply(&outrigger_tests::simple("ratings", &[&new], "").to_string())
        .await;
    assert_eq!(
        sidecar.client().get("reviews", "/").await.reason(),
        Some("no-service")
    );
    let reply = outrigger_tests::within("the answer", connection.reply_to("GET"))
        .await
        .unwrap();
    assert_eq!((reply.status(), reply.upstream()), (200, "old"));
    // The connection itself lives on, and its next request sees the new table.
    let reply = connection.send(&Ask::get("/").host("ratings")).await.unwrap();
    assert_eq!((reply.status(), reply.upstream()), (200, "new"));
}

#[tokio::test]
async fn a_push_of_something_else_keeps_the_connections_to_an_endpoint() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let reviews = outrigger_tests::simple("reviews", &[&a], "");
    let spec = SidecarSpec::text("a", &reviews.to_string()).with("--workers", "1");
    let sidecar = Sidecar::start(spec).await;
    for _ in 0..5 {
        sidecar.client().get("reviews", "/").await;
    }
    assert_eq!(a.connections(), 1);
    let ratings = outrigger_tests::simple("ratings", &[&b], "");
    sidecar.apply(&format!("{reviews}---\n{ratings}")).await;
    for _ in 0..5 {
        sidecar.client().get("reviews", "/").await;
    }
    assert_eq!(
        a.connections(),
        1,
        "the pool survives a push that does not concern it"
    );
}

#[tokio::test]
async fn the_same_push_again_changes_nothing_and_is_acknowledged() {
    let upstream = Upstream::start("a").await;
    let api = ControlApi::start().await;
    let text = outrigger_tests::simple("reviews", &[&upstream], "").to_string();
    let version = api.pushed(&text).await;
    let sidecar = Sidecar::start(SidecarSpec::control("a", &api.url())).await;
    assert_eq!(api.pushed(&text).await, version);
    let other = api
        .pushed(&outrigger_tests::simple("ratings", &[&upstream], "").to_string())
        .await;
    assert_ne!(other, version);
    sidecar
        .config_when("the other push", |config| config["version"] == other.as_str())
        .await;
    let deleted = api
        .client()
        .send(Ask::new("DELETE", "/v1/services/ratings"))
        .await;
    assert_eq!(deleted.status(), 200, "{}", deleted.text());
    let version = deleted.json()["version"].clone();
    sidecar
        .config_when("the deletion", |config| config["version"] == version)
        .await;
    assert_eq!(
        sidecar.client().get("ratings", "/").await.reason(),
        Some("no-service")
    );
    assert_eq!(sidecar.client().get("reviews", "/").await.status(), 200);
}
