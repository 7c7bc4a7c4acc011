//! Programs that people try HTTP/2 and WebSockets with, through both sidecars: h2load, nghttp, curl, `ws` of npm.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use outrigger_tests::cli::{Ended, finish};
use outrigger_tests::program::Program;
use outrigger_tests::{Answer, Behaviour, ServiceFile, Sidecar, SidecarSpec, Upstream};
use serde_json::json;

use super::both_sidecars;

/// A tool without the settings of the machine.
fn tool(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(arguments);
    for variable in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(variable).env_remove(variable.to_uppercase());
    }
    command
}

async fn run(name: &str, arguments: &[&str]) -> Ended {
    finish(Program::spawn(name, tool(name, arguments))).await.ok()
}

/// An application that is asked through its caller's sidecar and its own, which speak HTTP/2 to one another.
struct Mesh {
    upstream: Upstream,
    _server: Sidecar,
    client: Sidecar,
}

impl Mesh {
    async fn new() -> Self {
        let upstream = Upstream::start("web").await;
        let beside_app = ServiceFile::new("web")
            .app(upstream.address())
            .backend("v1", &[upstream.address()]);
        let server = Sidecar::start(SidecarSpec::text("server", &beside_app.to_string()).beside("web")).await;
        let beside_caller = ServiceFile::new("web")
            .field("protocol: http2")
            .backend("v1", &[server.inbound()]);
        let client =
            Sidecar::start(SidecarSpec::text("client", &beside_caller.to_string()).local("web")).await;
        Self {
            upstream,
            _server: server,
            client,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.client.local("web"))
    }
}

/// The numbers of a line of h2load's summary: `requests: 10 total, 10 started, …`.
fn numbers(summary: &str, line: &str) -> BTreeMap<String, u64> {
    let found = summary.lines().find_map(|text| text.strip_prefix(line));
    let found = found.unwrap_or_else(|| panic!("no `{line}` in:\n{summary}"));
    found
        .split(',')
        .filter_map(|part| part.trim().split_once(' '))
        .map(|(number, name)| (name.to_owned(), number.parse().unwrap()))
        .collect()
}

#[tokio::test]
async fn h2load_s_own_summary_has_nothing_but_2xx_through_both_sidecars() {
    const REQUESTS: u64 = 10_000;
    let mesh = Mesh::new().await;
    for (path, body) in [("/small", 10), ("/large", 100_000)] {
        mesh.upstream
            .behave(Behaviour::Answer(Answer::ok().body(vec![b'x'; body])));
        let count = if body > 1_000 { REQUESTS / 20 } else { REQUESTS };
        let number = count.to_string();
        let url = mesh.url(path);
        let out = run(
            "h2load",
            &[
                "-n",
                &number,
                "-c",
                "8",
                "-m",
                "32",
                "-H",
                ":authority: web",
                &url,
            ],
        )
        .await;
        let requests = numbers(&out.stdout, "requests: ");
        for (name, expected) in [
            ("total", count),
            ("started", count),
            ("done", count),
            ("succeeded", count),
            ("failed", 0),
            ("errored", 0),
            ("timeout", 0),
        ] {
            assert_eq!(requests[name], expected, "{name}: {}", out.stdout);
        }
        let codes = numbers(&out.stdout, "status codes: ");
        assert_eq!(
            (codes["2xx"], codes["3xx"], codes["4xx"], codes["5xx"]),
            (count, 0, 0, 0),
            "{}",
            out.stdout
        );
        let traffic = format!("({}) data", count * body as u64);
        assert!(
            out.stdout.contains(&traffic),
            "not every byte came: {}",
            out.stdout
        );
    }
    let asked = [("service", "web")];
    let metrics = mesh.client.metrics().await;
    let served = metrics.sum("outrigger_requests_total", &asked);
    assert!(
        (served - (REQUESTS + REQUESTS / 20) as f64).abs() < 0.5,
        "{served}"
    );
}

#[tokio::test]
async fn nghttp_sees_orderly_frames_while_it_fetches_many_streams_at_once() {
    let mesh = Mesh::new().await;
    mesh.upstream
        .behave(Behaviour::Answer(Answer::ok().body(vec![b'x'; 40_000])));
    let url = mesh.url("/x");
    let out = run("nghttp", &["-nv", "-m", "40", "-H", ":authority: web", &url]).await;
    let count = |text: &str| out.stdout.lines().filter(|line| line.contains(text)).count();
    assert_eq!(count(":status: 200"), 40, "{}", out.stdout);
    assert!(
        count("recv SETTINGS frame <length=0, flags=0x01") == 1,
        "no ACK: {}",
        out.stdout
    );
    assert!(
        out.stdout.contains("[SETTINGS_MAX_CONCURRENT_STREAMS(0x03):250]"),
        "{}",
        out.stdout
    );
    assert!(
        out.stdout.contains("[SETTINGS_ENABLE_CONNECT_PROTOCOL(0x08):1]"),
        "{}",
        out.stdout
    );
    // It takes its leave first; nothing was reset and nothing refused.
    assert_eq!(count("send GOAWAY frame"), 1, "{}", out.stdout);
    assert_eq!(count("recv RST_STREAM frame"), 0, "{}", out.stdout);
    assert_eq!(count("recv GOAWAY frame"), 0, "{}", out.stdout);
}

#[tokio::test]
async fn nghttp_is_told_to_go_in_two_steps_when_the_sidecar_drains_and_has_all_its_answers() {
    let mut mesh = Mesh::new().await;
    mesh.upstream
        .behave(Behaviour::Answer(Answer::ok().after(Duration::from_secs(2))));
    let url = mesh.url("/slow");
    let arguments = ["-nv", "-m", "10", "-H", ":authority: web", &url];
    let fetching = Program::spawn("nghttp", tool("nghttp", &arguments));
    mesh.upstream.has_requests(10).await;
    mesh.client.program().terminate();
    let out = finish(fetching).await.ok().stdout;
    let count = |text: &str| out.lines().filter(|line| line.contains(text)).count();
    assert_eq!(count(":status: 200"), 10, "{out}");
    // RFC 9113 section 6.8: first that no more will be taken, then which was the last.
    assert_eq!(count("recv GOAWAY frame"), 2, "{out}");
    let first = out.find("(last_stream_id=2147483647, error_code=NO_ERROR(0x00)");
    let told: Vec<_> = out
        .lines()
        .filter(|line| line.contains("last_stream_id="))
        .collect();
    assert!(first.is_some(), "{told:?}");
    assert!(
        told.iter().all(|line| line.contains("error_code=NO_ERROR(0x00)")),
        "{told:?}"
    );
}

#[tokio::test]
async fn curl_speaks_http2_through_both_sidecars() {
    let mesh = Mesh::new().await;
    let body: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 249) as u8).collect();
    let folder = tempfile::tempdir().unwrap();
    let (sent, got) = (folder.path().join("sent"), folder.path().join("got"));
    std::fs::write(&sent, &body).unwrap();
    mesh.upstream.behave(Behaviour::Echo);
    let (data, into) = (format!("@{}", sent.display()), got.display().to_string());
    let url = mesh.url("/echo");
    let arguments = [
        "-q",
        "-sS",
        "--max-time",
        "15",
        "--http2-prior-knowledge",
        "-H",
        "Host: web",
        "--data-binary",
        &data,
        "-o",
        &into,
        "-w",
        "%{http_code} %{http_version}",
        &url,
    ];
    let out = run("curl", &arguments).await;
    assert_eq!(out.stdout.trim_end(), "200 2");
    assert!(std::fs::read(&got).unwrap() == body, "the echo differs");
}

/// Where tests/run puts the packages of npm, unless a variable of Node's own names another place.
fn node(role: &[&str]) -> Command {
    let own = format!("{}/../target/tests-node/node_modules", env!("CARGO_MANIFEST_DIR"));
    let packages = std::env::var("NODE_PATH").unwrap_or(own);
    let script = format!("{}/tests/it/peers/websocket_peer.cjs", env!("CARGO_MANIFEST_DIR"));
    let mut command = tool("node", &[&script]);
    command.args(role).env("NODE_PATH", packages);
    command
}

#[tokio::test]
async fn websockets_of_npm_s_ws_pass_both_sidecars() {
    let server = Program::spawn("ws server", node(&["server"]));
    let line = server
        .printed("its port; is npm's `ws` there? tests/run installs it", |line| {
            line.starts_with("listening on")
        })
        .await;
    let port: u16 = line
        .rsplit(' ')
        .next()
        .and_then(|port| port.parse().ok())
        .unwrap();
    let (_inbound, outbound) = both_sidecars("chat", "http", ([127, 0, 0, 1], port).into()).await;
    let url = format!("ws://{}/chat", outbound.local("chat"));
    let out = finish(Program::spawn("ws client", node(&["client", &url])))
        .await
        .ok();
    assert_eq!(
        out.json(),
        json!({
            "first": "welcome", "text": "word", "large": true, "many": true, "pong": "are you there", "closed": 1000
        })
    );
    let switched = [("service", "chat"), ("status_class", "1xx")];
    let metrics = outbound.metrics().await;
    assert!((metrics.sum("outrigger_requests_total", &switched) - 1.0).abs() < 0.5);
}
