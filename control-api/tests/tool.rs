//! The program as its users run it: exit codes, words, signals.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use outrigger_config::Problem;
use outrigger_config::discovery::{DiscoveryRequest, DiscoveryResponse, Node, Refusal};
use outrigger_control::client::{Api, Ask};
use outrigger_control::nodes::NodeList;
use outrigger_control::push::Outcome;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_outrigger");

/// A control API as a process of its own, killed when dropped.
struct Served {
    child: Child,
    url: String,
}

impl Served {
    fn new(folder: &tempfile::TempDir) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(folder.path().join("data"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        let log: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (log["message"].as_str(), log["listener"].as_str()),
            (Some("listening"), Some("api")),
            "{line}"
        );
        let url = format!("http://{}", log["address"].as_str().unwrap());
        // What it logs later is read so that it never waits for a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, url }
    }

    fn api(&self) -> Api {
        Api::new(&self.url).unwrap()
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap()
    }

    /// Runs a subcommand against it, with `input` on stdin.
    fn run(&self, arguments: &[&str], input: &str) -> Output {
        run(&self.url, arguments, input)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(url: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(PROGRAM)
        .args(["--api", url])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn words(output: &Output) -> String {
    let out = String::from_utf8(output.stdout.clone()).unwrap();
    out + std::str::from_utf8(&output.stderr).unwrap()
}

#[track_caller]
fn expect(output: &Output, code: i32, parts: &[&str]) {
    let words = words(output);
    assert_eq!(output.status.code(), Some(code), "{words}");
    for part in parts {
        assert!(words.contains(part), "no `{part}` in: {words}");
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "kind: Service\nname: {name}\nbackends:\n  - name: v1\n    discover: {{ static: [\"127.0.0.1:{port}\"] }}\n"
    )
}

/// What a scripted sidecar does with what it is told.
#[derive(Clone, Copy)]
enum Script {
    Accept,
    RefuseAfterFirst,
}

/// A sidecar that follows its script until it is aborted.
async fn sidecar(api: Api, id: &'static str, script: Script) {
    let mut request = DiscoveryRequest {
        node: Node {
            id: id.into(),
            service: "reviews".into(),
            version: "v1".into(),
            ..Node::default()
        },
        want: vec!["*".into()],
        ..DiscoveryRequest::default()
    };
    let mut told = 0;
    loop {
        let body = serde_json::to_vec(&request).unwrap();
        let ask = Ask::post("/v1/discovery", "application/json", body);
        let (status, body) = api.exchange(ask, "application/json").await.unwrap();
        if status == 204 {
            continue;
        }
        let response: DiscoveryResponse = serde_json::from_slice(&body).unwrap();
        request.nonce.clone_from(&response.nonce);
        told += 1;
        if told > 1 && matches!(script, Script::RefuseAfterFirst) {
            let problem = Problem {
                file: "reviews.yaml".into(),
                line: 4,
                column: 1,
                path: "backends[0]".into(),
                message: "this sidecar cannot".into(),
            };
            request.error = Some(Refusal {
                problems: vec![problem],
            });
        } else {
            request.version = response.version;
            request.error = None;
        }
    }
}

/// Waits until the list of nodes is as `ready` wants it.
async fn nodes_until(api: &Api, ready: impl Fn(&NodeList) -> bool) -> NodeList {
    let mut after = String::new();
    loop {
        let ask = Ask::get(format!("/v1/nodes?hold=25s{after}"));
        let list: NodeList = api.json(ask).await.unwrap();
        if ready(&list) {
            return list;
        }
        after = format!("&after={}", list.seen);
    }
}

// The tool is waited for on a thread of its own; the sidecars must go on meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_push_tells_what_every_sidecar_said_and_ends_accordingly() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::new(&folder);
    let api = served.api();
    let text = service("reviews", 1);
    expect(
        &served.run(&["push", "-"], &text),
        0,
        &["+ reviews new, 5 lines", "no sidecar is connected"],
    );

    let good = tokio::spawn(sidecar(api.clone(), "good", Script::Accept));
    nodes_until(&api, |list| list.nodes.iter().any(|node| node.holds == "1")).await;
    let pushed = served.run(&["push", "-"], &service("reviews", 2));
    expect(
        &pushed,
        0,
        &[
            "~ reviews +1 -1",
            "good (reviews v1): applied",
            "version 2: 1 applied",
        ],
    );

    let bad = tokio::spawn(sidecar(api.clone(), "bad", Script::RefuseAfterFirst));
    nodes_until(&api, |list| {
        list.nodes.iter().filter(|node| node.holds == "2").count() == 2
    })
    .await;
    let problem = "reviews.yaml:4:1: backends[0]: this sidecar cannot";
    let pushed = served.run(&["push", "-"], &service("reviews", 3));
    expect(
        &pushed,
        3,
        &["bad (reviews v1): refused", problem, "1 applied, 1 refused"],
    );
    expect(
        &served.run(&["status"], ""),
        0,
        &["in-sync", "refused version 3", problem],
    );
    let json: Value = serde_json::from_slice(&served.run(&["status", "--json"], "").stdout).unwrap();
    assert_eq!(json["nodes"][0]["state"], "refused");

    bad.abort();
    nodes_until(&api, |list| {
        list.nodes.iter().any(|node| node.id == "bad" && !node.connected)
    })
    .await;
    let pushed = served.run(&["push", "-", "--json"], &service("reviews", 4));
    expect(&pushed, 0, &[]);
    let report: Value = serde_json::from_slice(&pushed.stdout).unwrap();
    assert_eq!(
        (&report["version"], &report["sidecars"][0]["answer"]),
        (&"4".into(), &"applied".into())
    );
    good.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_does_not_answer_in_time_ends_a_push_with_4() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::new(&folder);
    let api = served.api();
    let silent = api.clone();
    // It waits for news, is told, and is never heard of again.
    let held = tokio::spawn(async move {
        let poll = r#"{"node":{"id":"silent"},"want":["*"],"version":"0"}"#;
        let ask = Ask::post("/v1/discovery", "application/json", poll.into());
        silent.json::<DiscoveryResponse>(ask).await
    });
    nodes_until(&api, |list| !list.nodes.is_empty()).await;
    let pushed = served.run(&["push", "-", "--timeout", "50ms"], &service("reviews", 1));
    expect(&pushed, 4, &["silent: no answer", "1 did not answer within 50ms"]);
    assert_eq!(held.await.unwrap().unwrap().version, "1");
}

#[test]
fn bad_files_are_refused_in_the_same_words_by_check_and_push() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::new(&folder);
    let file = folder.path().join("bad.yaml");
    std::fs::write(&file, service("reviews", 1).replace("backends", "backnds")).unwrap();
    let path = file.to_str().unwrap();
    let problem = format!("{path}:3:1: backnds: unknown field; did you mean `backends`?");
    expect(&served.run(&["check", path], ""), 1, &[&problem, "1 problem"]);
    expect(
        &served.run(&["push", path], ""),
        1,
        &[&problem, "nothing was stored"],
    );
    expect(
        &served.run(&["check", folder.path().to_str().unwrap()], ""),
        1,
        &[&problem],
    );
    expect(
        &served.run(&["check", "/nowhere.yaml"], ""),
        1,
        &["cannot read /nowhere.yaml"],
    );
    let json: Value = serde_json::from_slice(&served.run(&["check", "--json", path], "").stdout).unwrap();
    assert_eq!(json["problems"][0]["line"], 3);
    expect(&served.run(&["get"], ""), 0, &[]);
    assert_eq!(words(&served.run(&["get"], "")), "");
}

#[test]
fn diff_get_and_delete_tell_what_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::new(&folder);
    let text = service("reviews", 1);
    expect(
        &served.run(&["diff", "-"], &text),
        1,
        &["--- /dev/null", "+name: reviews"],
    );
    expect(&served.run(&["push", "-"], &text), 0, &[]);
    expect(&served.run(&["diff", "-"], &text), 0, &[]);
    let changed = served.run(&["diff", "-"], &service("reviews", 2));
    expect(
        &changed,
        1,
        &[
            "-    discover: { static: [\"127.0.0.1:1\"] }",
            "+    discover: { static: [\"127.0.0.1:2\"] }",
        ],
    );
    expect(&served.run(&["diff", "-"], "kind: Nothing\n"), 2, &[]);
    assert_eq!(words(&served.run(&["get", "reviews"], "")), text);
    expect(
        &served.run(&["get", "ratings"], ""),
        1,
        &["no document `ratings`"],
    );
    let stale = served.run(&["push", "-", "--if-match", "7"], &service("reviews", 2));
    expect(&stale, 1, &["is at version 1, not 7"]);
    expect(
        &served.run(&["delete", "reviews"], ""),
        0,
        &["- reviews", "version 2 is stored"],
    );
    expect(
        &served.run(&["delete", "reviews"], ""),
        1,
        &["no document `reviews`"],
    );
}

#[test]
fn slips_of_names_and_times_are_told_with_what_is_meant() {
    let ended = run(
        "http://127.0.0.1:1",
        &["serve", "--tls", "--name", "https://control.shop.internal"],
        "",
    );
    expect(
        &ended,
        2,
        &["neither a DNS name nor an IP address", "without https://"],
    );
    let ended = run(
        "http://127.0.0.1:1",
        &["token", "create", "--service", "reviews", "--ttl", "90d"],
        "",
    );
    expect(&ended, 2, &["days are written in hours", "720h is the longest"]);
}

#[test]
fn an_api_that_is_not_there_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let mut served = Served::new(&folder);
    assert_eq!(served.end(Signal::TERM).code(), Some(0));
    for arguments in [&["status"][..], &["get"], &["delete", "x"]] {
        let output = served.run(arguments, "");
        expect(&output, 1, &[&served.url, "refused", "outrigger serve", "--api"]);
    }
    expect(
        &served.run(&["diff", "-"], &service("reviews", 1)),
        2,
        &[&served.url],
    );
    expect(&run("ftp://x", &["status"], ""), 1, &["`ftp://x`", "http://"]);
}

#[tokio::test]
async fn a_server_killed_amid_pushes_has_every_push_that_it_acknowledged_and_none_by_half() {
    let folder = tempfile::tempdir().unwrap();
    let mut served = Served::new(&folder);
    for round in 0..3_u16 {
        let api = served.api();
        let (send, mut acknowledged) = tokio::sync::mpsc::unbounded_channel();
        let pusher = tokio::spawn(async move {
            for port in 1.. {
                let port = round * 1000 + port;
                let both = format!("{}---\n{}", service("reviews", port), service("ratings", port));
                let ask = Ask::put("/v1/config", "application/yaml", both.into());
                let Ok(outcome) = api.json::<Outcome>(ask).await else {
                    return;
                };
                let _ = send.send((outcome.version, port));
            }
        });
        let mut last = None;
        for _ in 0..20 {
            last = acknowledged.recv().await;
        }
        served.end(Signal::KILL);
        pusher.await.unwrap();
        while let Ok(more) = acknowledged.try_recv() {
            last = Some(more);
        }
        let (version, port) = last.unwrap();

        served = Served::new(&folder);
        let whole: Value = served.api().json(Ask::get("/v1/config")).await.unwrap();
        let now: u64 = whole["version"].as_str().unwrap().parse().unwrap();
        let then: u64 = version.parse().unwrap();
        // The push that was under way when the process died may be there, whole, or not.
        assert!(now == then || now == then + 1, "{now} after {then}");
        let port = port + u16::try_from(now - then).unwrap();
        for document in whole["documents"].as_array().unwrap() {
            assert_eq!(document["version"], now.to_string(), "both are of one push");
            assert!(
                document["text"].as_str().unwrap().contains(&format!(":{port}\"")),
                "{document}"
            );
        }
    }
}
