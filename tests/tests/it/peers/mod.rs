//! Real peers on both ends, with both sidecars between them: gRPC's own library, WebSockets, HTTP/2 by curl and h2load.

mod ejection;
mod mtls;
mod tools;

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use outrigger_tests::cli::finish;
use outrigger_tests::program::Program;
use outrigger_tests::service_file::ServiceFile;
use outrigger_tests::{Answer, Ask, Behaviour, Sidecar, SidecarSpec, Upstream, simple};
use serde_json::{Value, json};

/// A Python script of this folder, run by the Python that has the packages.
fn python(name: &str, arguments: &[&str]) -> Command {
    let python = std::env::var("OUTRIGGER_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = format!("{}/tests/it/peers/{name}_peer.py", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(python);
    command.arg(script).args(arguments);
    for variable in ["http_proxy", "https_proxy", "all_proxy", "no_proxy", "grpc_proxy"] {
        command.env_remove(variable).env_remove(variable.to_uppercase());
    }
    command
}

/// Starts a server script and says where it listens.
pub(crate) async fn server(name: &str, arguments: &[&str]) -> (Program, SocketAddr) {
    let arguments = [&["server"], arguments].concat();
    let program = Program::spawn(&format!("{name} server"), python(name, &arguments));
    let line = program
        .printed("its port", |line| line.starts_with("listening on"))
        .await;
    let port = line.rsplit(' ').next().and_then(|port| port.parse().ok());
    (program, SocketAddr::from(([127, 0, 0, 1], port.expect("a port"))))
}

/// The sidecar beside the application and the one beside its caller, which has a local port for the service.
async fn both_sidecars(service: &str, protocol: &str, app: SocketAddr) -> (Sidecar, Sidecar) {
    let file = || ServiceFile::new(service).field(&format!("protocol: {protocol}"));
    let beside_app = file().app(app).backend("v1", &[app]);
    let server = Sidecar::start(SidecarSpec::text("server", &beside_app.to_string()).beside(service)).await;
    let beside_caller = file().backend("v1", &[server.inbound()]);
    let client = Sidecar::start(SidecarSpec::text("client", &beside_caller.to_string()).local(service)).await;
    (server, client)
}

pub(crate) async fn answers_of(name: &str, arguments: &[&str]) -> Value {
    let ended = finish(Program::spawn(
        name,
        python(name, &[&["client"], arguments].concat()),
    ))
    .await;
    assert_eq!(
        ended.code, 0,
        "the {name} client failed. Are its packages there? tests/run makes an environment with them; a Python that \
         has them can be named in OUTRIGGER_TEST_PYTHON.\n{}",
        ended.stderr
    );
    ended.json()
}

#[tokio::test]
async fn grpc_calls_of_all_four_kinds_deadlines_failures_and_cancellation_pass_both_sidecars() {
    let (_server, app) = server("grpc", &[]).await;
    let (inbound, outbound) = both_sidecars("greeter", "grpc", app).await;
    let (target, nobody) = (
        outbound.local("greeter").to_string(),
        outbound.outbound().to_string(),
    );
    let out = answers_of("grpc", &[&target, &nobody]).await;
    let hello: Vec<String> = (0..20).map(|number| format!("hello {number}")).collect();
    assert_eq!(out["unary"], json!(hello));
    assert_eq!(out["parallel"], 200);
    let lengths: Vec<usize> = (0..100)
        .map(|number: u32| number.to_string().len() * 1000)
        .collect();
    assert_eq!(out["server_stream"], json!(lengths));
    assert_eq!(out["client_stream"], "1000000");
    assert_eq!(
        out["failure"],
        json!(["FAILED_PRECONDITION", "not like this: é", "because"])
    );
    let left = out["left"].as_f64().unwrap();
    // gRPC's library rounds what it says up.
    assert!(left > 10.0 && left <= 21.0, "the server was told {left} s");
    assert_eq!(out["deadline"], json!(["DEADLINE_EXCEEDED"]));
    assert_eq!(out["unknown"], json!(["UNIMPLEMENTED"]));
    assert_eq!(out["conversation"], json!(["echo one", "echo two", "echo three"]));
    assert_eq!(out["died"], json!(["DATA_LOSS", "in the middle"]));
    assert_eq!(out["cancelled"], "yes");
    assert_eq!(out["nobody"][0], "UNIMPLEMENTED");
    assert!(out["nobody"][1].as_str().unwrap().contains("no-service"), "{out}");
    let calls = |status: &'static str| [("service", "greeter"), ("grpc_status", status)];
    for sidecar in [&inbound, &outbound] {
        let metrics = sidecar.metrics().await;
        assert_eq!(
            metrics.sum("outrigger_grpc_calls_total", &calls("FAILED_PRECONDITION")),
            1.0
        );
        assert_eq!(
            metrics.sum("outrigger_grpc_calls_total", &calls("DATA_LOSS")),
            1.0
        );
        assert!(metrics.sum("outrigger_grpc_calls_total", &calls("OK")) >= 224.0);
    }
}

#[tokio::test]
async fn a_grpc_call_that_cannot_be_served_fails_as_grpc_fails() {
    let nobody = Upstream::dead("nobody").address();
    let file = ServiceFile::new("greeter")
        .field("protocol: grpc")
        .backend("v1", &[nobody]);
    let sidecar = Sidecar::of(file).await;
    let reply = sidecar
        .client()
        .send(
            Ask::post("/shop.Greeter/Unary", "")
                .host("greeter")
                .header("content-type", "application/grpc+proto"),
        )
        .await;
    assert_eq!(reply.status(), 200);
    assert_eq!(reply.head.header("content-type"), Some("application/grpc"));
    assert_eq!(reply.head.header("grpc-status"), Some("14"));
    assert_eq!(reply.head.header("x-outrigger-reason"), Some("connect-failed"));
    assert!(
        reply
            .head
            .header("grpc-message")
            .unwrap()
            .contains("connect-failed")
    );
    let metrics = sidecar.metrics().await;
    let unavailable = [("service", "greeter"), ("grpc_status", "UNAVAILABLE")];
    assert_eq!(metrics.sum("outrigger_grpc_calls_total", &unavailable), 1.0);
}

#[tokio::test]
async fn a_grpc_call_is_told_what_is_left_of_its_time_and_ends_when_it_is_over() {
    let upstream = Upstream::start("greeter").await;
    let sidecar = Sidecar::of(simple("greeter", &[&upstream], "")).await;
    let call = |time: &str| {
        Ask::post("/shop.Greeter/Unary", "x")
            .host("greeter")
            .header("content-type", "application/grpc")
            .header("grpc-timeout", time)
    };
    assert_eq!(sidecar.client().send(call("10S")).await.status(), 200);
    let told = upstream.last().head.header("grpc-timeout").unwrap().to_owned();
    let left: u64 = told.strip_suffix('u').unwrap().parse().unwrap();
    assert!((9_000_000..=10_000_000).contains(&left), "{told}");
    upstream.behave(Behaviour::Answer(Answer::ok().after(Duration::from_secs(30))));
    let reply = sidecar.client().send(call("100m")).await;
    assert_eq!(
        (reply.head.header("grpc-status"), reply.reason()),
        (Some("4"), Some("request-timeout"))
    );
}

#[tokio::test]
async fn websockets_pass_both_sidecars_over_http1_and_over_http2_between_them() {
    let (_server, app) = server("websocket", &[]).await;
    // The application speaks HTTP/1.1. Between the sidecars it is once HTTP/1.1 and once an extended CONNECT.
    let (server, client) = both_sidecars("chat", "http", app).await;
    let over_http2 = ServiceFile::new("chat")
        .field("protocol: http2")
        .backend("v1", &[server.inbound()]);
    let over_http2 = Sidecar::start(SidecarSpec::text("h2", &over_http2.to_string()).local("chat")).await;
    for sidecar in [&client, &over_http2] {
        let out = answers_of("websocket", &[&format!("ws://{}/chat", sidecar.local("chat"))]).await;
        assert_eq!(
            out,
            json!({ "first": "welcome", "text": "word", "large": true, "many": true, "closed": 1000 }),
            "{}",
            sidecar.id()
        );
        let metrics = sidecar.metrics().await;
        let switched = [("service", "chat"), ("status_class", "1xx")];
        assert_eq!(metrics.sum("outrigger_requests_total", &switched), 1.0);
    }
}

#[tokio::test]
async fn a_switch_to_what_the_sidecar_could_not_read_is_not_passed_on() {
    let upstream = Upstream::start("web").await;
    let sidecar = Sidecar::of(simple("web", &[&upstream], "")).await;
    let ask = Ask::get("/")
        .host("web")
        .header("connection", "upgrade, http2-settings")
        .header("upgrade", "h2c")
        .header("http2-settings", "AAMAAABkAAQCAAAAAAIAAAAA");
    let reply = sidecar.client().send(ask).await;
    assert_eq!(reply.status(), 200);
    let seen = upstream.last();
    for gone in ["connection", "upgrade", "http2-settings"] {
        assert_eq!(seen.head.header(gone), None, "{gone}");
    }
}

#[tokio::test]
async fn h2load_and_curl_find_no_error_in_either_version_towards_either_version() {
    let upstream = Upstream::start("web").await;
    let sidecar =
        Sidecar::start(SidecarSpec::text("a", &simple("web", &[&upstream], "").to_string()).local("web"))
            .await;
    let over_http2 = ServiceFile::new("web")
        .field("protocol: http2")
        .backend("v1", &[sidecar.outbound()]);
    let second = Sidecar::start(SidecarSpec::text("b", &over_http2.to_string()).local("web")).await;
    for (port, version) in [
        (sidecar.local("web"), "--http2-prior-knowledge"),
        (second.local("web"), "--http2-prior-knowledge"),
        (second.local("web"), "--http1.1"),
    ] {
        let url = format!("http://web:{}/x", port.port());
        let to = format!("::{port}");
        let arguments = [
            "-q",
            "-sS",
            "--max-time",
            "15",
            version,
            "--connect-to",
            &to,
            "-w",
            "%{http_code} %{http_version}",
            &url,
        ];
        let mut command = Command::new("curl");
        command.args(arguments).env_remove("http_proxy");
        let out = finish(Program::spawn("curl", command)).await.ok().stdout;
        assert!(out.contains("200 "), "{version}: {out}");
        let url = format!("http://{port}/x");
        let mut command = Command::new("h2load");
        command.args(["-n", "5000", "-c", "4", "-m", "20", "-H", ":authority: web", &url]);
        let out = finish(Program::spawn("h2load", command)).await.ok().stdout;
        assert!(
            out.contains("5000 succeeded, 0 failed, 0 errored, 0 timeout"),
            "{version}: {out}"
        );
    }
}
