//! Real clients, as people have them.

use std::process::Command;
use std::time::Duration;

use outrigger_tests::cli::{Ended, finish};
use outrigger_tests::program::Program;
use outrigger_tests::{Answer, Behaviour, Sidecar, SidecarSpec, Upstream, simple};
use serde_json::Value;

/// A program that a test needs and does not find is a failure: a test that is skipped in silence tests nothing.
fn program(name: &str, package: &str) -> Command {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()));
    assert!(
        found || name.contains('/'),
        "{name} is not installed. On Debian: apt-get install {package}; tests/run does it by itself."
    );
    let mut command = Command::new(name);
    for variable in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(variable).env_remove(variable.to_uppercase());
    }
    command
}

async fn run(mut command: Command, arguments: &[&str]) -> Ended {
    command.args(arguments);
    finish(Program::spawn("client", command)).await
}

/// Two services, and a sidecar with a local port for the first.
async fn mesh() -> (Upstream, Upstream, Sidecar) {
    let (reviews, ratings) = (Upstream::start("reviews").await, Upstream::start("ratings").await);
    let yaml = format!(
        "{}---\n{}",
        simple("reviews", &[&reviews], ""),
        simple("ratings", &[&ratings], "")
    );
    let sidecar = Sidecar::start(SidecarSpec::text("a", &yaml).local("reviews")).await;
    (reviews, ratings, sidecar)
}

/// `curl` with its own settings left out, printing `STATUS UPSTREAM` after the body.
async fn curl(arguments: &[&str]) -> Ended {
    let mut all = vec![
        "-q",
        "-sS",
        "--max-time",
        "15",
        "-w",
        "%{http_code} %header{x-upstream}",
    ];
    all.extend(arguments);
    run(program("curl", "curl"), &all).await
}

#[tokio::test]
async fn curl_asks_by_host_by_http_proxy_and_by_the_local_port() {
    let (reviews, _ratings, sidecar) = mesh().await;
    let outbound = format!("http://{}", sidecar.outbound());
    let local = format!("http://{}/x", sidecar.local("reviews"));
    let url = format!("{outbound}/x");
    let body = "status 200\n";
    for (arguments, expected) in [
        (vec!["-H", "Host: reviews", &url], "200 reviews"),
        (vec!["-H", "Host: ratings", &url], "200 ratings"),
        (vec!["--proxy", &outbound, "http://ratings/x"], "200 ratings"),
        (vec![local.as_str()], "200 reviews"),
        (vec!["--http1.0", "-H", "Host: reviews", &url], "200 reviews"),
    ] {
        let ended = curl(&arguments).await.ok();
        // Older versions of curl do not know %header, and print nothing for it.
        let known = format!("{body}{expected}");
        let status_only = format!("{body}200 ");
        let out = ended.stdout.trim_end_matches('\n');
        assert!(out == known || out == status_only, "{arguments:?}: {ended:?}");
    }
    assert_eq!(reviews.requests(), 3);
    let mut command = program("curl", "curl");
    command.env("http_proxy", &outbound);
    let ended = run(command, &["-q", "-sS", "http://reviews/y", "http://reviews/z"])
        .await
        .ok();
    assert_eq!(ended.stdout, "status 200\nstatus 200\n");
    assert_eq!(reviews.last().target(), "/z");
}

#[tokio::test]
async fn curl_uploads_downloads_and_sees_a_cut_body() {
    let (reviews, _ratings, sidecar) = mesh().await;
    let url = format!("http://{}/x", sidecar.local("reviews"));
    let folder = tempfile::tempdir().unwrap();
    let (sent, got) = (folder.path().join("sent"), folder.path().join("got"));
    let body: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 249) as u8).collect();
    std::fs::write(&sent, &body).unwrap();
    let data = format!("@{}", sent.display());
    let (upload, into) = (sent.display().to_string(), got.display().to_string());
    reviews.behave(Behaviour::Echo);
    for how in [
        vec!["--data-binary", &data],
        vec!["-T", &upload],
        vec!["-T", &upload, "-H", "Transfer-Encoding: chunked"],
    ] {
        let mut arguments = vec!["-o", &into, &url];
        arguments.extend(&how);
        curl(&arguments).await.ok();
        assert!(std::fs::read(&got).unwrap() == body, "{how:?}: the echo differs");
    }
    reviews.behave(Behaviour::HalfBody(Answer::ok().body(body)));
    let ended = curl(&["-o", &into, &url]).await;
    // 18: transfer closed with outstanding data; 56: failure in receiving.
    assert!([18, 56].contains(&ended.code), "{ended:?}");
    reviews.behave(Behaviour::Answer(Answer::ok()));
    let ended = curl(&["-I", &url]).await.ok();
    assert!(ended.stdout.starts_with("HTTP/1.1 200"), "{ended:?}");
}

const PYTHON: &str = r#"
import json, sys, requests
outbound, local = sys.argv[1:]
session = requests.Session()
session.trust_env = False
proxies = {"http": outbound}
out = {}
out["host"] = [session.get(outbound + "/h", headers={"Host": "ratings"}).headers["x-upstream"] for _ in range(50)]
out["proxy"] = [session.get("http://reviews/p", proxies=proxies).headers["x-upstream"] for _ in range(50)]
out["local"] = [session.get(local + "/l").headers["x-upstream"] for _ in range(50)]
out["post"] = session.post(local + "/post", json={"a": 1}).status_code
out["chunked"] = session.post(local + "/chunked", data=(b"x" * 1000 for _ in range(100))).status_code
nobody = session.get("http://nobody/", proxies=proxies)
out["nobody"] = [nobody.status_code, nobody.headers["x-outrigger-reason"]]
print(json.dumps(out))
"#;

#[tokio::test]
async fn python_requests_asks_in_all_three_ways() {
    let (reviews, ratings, sidecar) = mesh().await;
    let python = std::env::var("OUTRIGGER_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = run(program(&python, "python3"), &["-c", "import requests"]).await;
    assert_eq!(
        there.code, 0,
        "{python} has no `requests`. Run the tests by tests/run, which makes an environment with it, or name a \
         Python that has it in OUTRIGGER_TEST_PYTHON.\n{}",
        there.stderr
    );
    let outbound = format!("http://{}", sidecar.outbound());
    let local = format!("http://{}", sidecar.local("reviews"));
    let out = run(program(&python, "python3"), &["-c", PYTHON, &outbound, &local])
        .await
        .ok()
        .json();
    let all = |name: &str| vec![Value::from(name); 50];
    assert_eq!(out["host"], Value::from(all("ratings")));
    assert_eq!(out["proxy"], Value::from(all("reviews")));
    assert_eq!(out["local"], Value::from(all("reviews")));
    assert_eq!(
        (&out["post"], &out["chunked"]),
        (&Value::from(200), &Value::from(200))
    );
    assert_eq!(out["nobody"], serde_json::json!([404, "no-service"]));
    assert_eq!(reviews.last().body.bytes.len(), 100_000);
    assert_eq!((reviews.requests(), ratings.requests()), (102, 50));
}

const NODE: &str = r#"
const http = require('node:http');
const [outbound, local] = process.argv.slice(1);
const { hostname, port } = new URL(outbound);
const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
// fetch cannot set Host, so the ways that need one are asked by the http module.
const ask = (path, host) => new Promise((resolve, reject) => {
  http.get({ hostname, port, path, agent, headers: { Host: host } }, (answer) => {
    answer.resume();
    answer.on('end', () => resolve([answer.statusCode, answer.headers['x-upstream'] ?? answer.headers['x-outrigger-reason']]));
    answer.on('aborted', () => reject(new Error('aborted')));
  }).on('error', reject);
});
const fetched = async (path, options) => {
  const answer = await fetch(local + path, options);
  return [answer.status, answer.headers.get('x-upstream'), (await answer.text()).length];
};
(async () => {
  const many = (one) => Promise.all(Array.from({ length: 50 }, one));
  const out = {
    host: await many(() => ask('/h', 'ratings')),
    proxy: await many(() => ask('http://reviews/p', 'reviews')),
    fetch: await many(() => fetched('/f')),
    post: await fetched('/post', { method: 'POST', body: 'x'.repeat(100000) }),
    nobody: await ask('/', 'nobody'),
  };
  agent.destroy();
  console.log(JSON.stringify(out));
})().catch((error) => { console.error(error); process.exit(1); });
"#;

#[tokio::test]
async fn node_asks_in_all_three_ways() {
    let (reviews, _ratings, sidecar) = mesh().await;
    let outbound = format!("http://{}", sidecar.outbound());
    let local = format!("http://{}", sidecar.local("reviews"));
    let ended = run(program("node", "nodejs"), &["-e", NODE, &outbound, &local])
        .await
        .ok();
    let out = ended.json();
    let all = |answer: Value| Value::from(vec![answer; 50]);
    assert_eq!(out["host"], all(serde_json::json!([200, "ratings"])));
    assert_eq!(out["proxy"], all(serde_json::json!([200, "reviews"])));
    assert_eq!(out["fetch"], all(serde_json::json!([200, "reviews", 11])));
    assert_eq!(out["post"], serde_json::json!([200, "reviews", 11]));
    assert_eq!(out["nobody"], serde_json::json!([404, "no-service"]));
    assert_eq!(reviews.requests(), 101);
}

#[tokio::test]
async fn wrk_finds_no_error_under_load() {
    let (reviews, _ratings, sidecar) = mesh().await;
    let url = format!("http://{}/", sidecar.outbound());
    let arguments = ["-t1", "-c16", "-d2s", "-H", "Host: reviews", &url];
    let out = run(program("wrk", "wrk"), &arguments).await.ok().stdout;
    assert!(out.contains("requests in"), "{out}");
    assert!(
        !out.contains("Socket errors") && !out.contains("Non-2xx"),
        "{out}"
    );
    assert!(reviews.requests() > 100, "{out}");
    // What is still on its way when wrk hangs up is a caller that went away, never a failure of the mesh.
    let metrics = sidecar
        .metrics_when("that all is quiet", |metrics| {
            metrics.sum("outrigger_connections_open", &[("listener", "outbound")]) == 0.0
        })
        .await;
    let failed = metrics
        .matching("outrigger_requests_total", &[])
        .filter(|sample| {
            !["", "client-gone"].contains(&sample.labels["reason"].as_str()) && sample.value > 0.0
        });
    assert_eq!(failed.count(), 0);
}

#[tokio::test]
async fn a_client_that_hangs_up_in_the_middle_leaves_the_sidecar_well() {
    let (reviews, _ratings, sidecar) = mesh().await;
    reviews.behave(Behaviour::Answer(Answer::ok().after(Duration::from_secs(10))));
    let url = format!("http://{}/x", sidecar.local("reviews"));
    // 28: the time was over.
    assert_eq!(curl(&["--max-time", "0.3", &url]).await.code, 28);
    reviews.behave(Behaviour::Answer(Answer::ok()));
    curl(&[&url]).await.ok();
}
