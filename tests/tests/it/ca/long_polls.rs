//! Polls as long as they can be: what they cost the API whoever sends them, and that those which are long for a reason are
//! answered.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use outrigger_tests::client::{Ask, Client};
use outrigger_tests::{Sidecar, SidecarSpec, within};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::{Desk, serve};

const MIB: usize = 1024 * 1024;

/// How long a sidecar of a debug build may take for thousands of services.
const CONFIGURED_WITHIN: Duration = Duration::from_secs(120);

fn address(desk: &Desk) -> SocketAddr {
    desk.url.split_once("://").unwrap().1.parse().unwrap()
}

/// A poll of a node that holds all there is, with this among the rest of it.
fn poll(id: usize, further: &str) -> Vec<u8> {
    format!(r#"{{"node":{{"id":"n{id}"}},"version":"1","hold":"1s",{further}}}"#).into_bytes()
}

/// A list, or what stands between the braces of a map, of about a mebibyte.
fn mebibyte(item: impl Fn(usize) -> String) -> String {
    let mut text = item(0);
    for number in 1.. {
        if text.len() > MIB - 1024 {
            break;
        }
        let _ = write!(text, ",{}", item(number));
    }
    text
}

/// Whether it is answered as ever.
async fn is_well(address: SocketAddr) {
    let ask = Ask::post("/v1/discovery", poll(0, r#""want":["*"],"have":{"reviews":"1"}"#));
    let reply = within("a poll like any to be answered", Client::new(address).send(ask)).await;
    assert!(reply.status() < 300, "{}", reply.text());
}

#[tokio::test]
async fn polls_of_who_has_proved_nothing_hold_little_memory_however_many_and_however_long() {
    const EACH: usize = 30;
    // Sixteen are read at a time, of a mebibyte, and of each is kept what it may say. Without bounds it was 400 MiB and more.
    const MEMORY_MAX: u64 = 128 * 1024 * 1024;
    let desk = Desk::new(&[]).await;
    let file = desk.path().join("reviews.yaml");
    let service = "kind: Service\nname: reviews\nbackends: [{ name: v1, discover: { static: [\"127.0.0.1:9080\"] } }]\n";
    std::fs::write(&file, service).unwrap();
    desk.run(&format!("push {}", file.display())).await.ok();
    let address = address(&desk);
    is_well(address).await;
    let before = desk.api.memory_peak();
    let bodies = [
        format!(r#""want":[{}]"#, mebibyte(|_| r#""a""#.to_owned())),
        format!(
            r#""want":["*"],"have":{{{}}}"#,
            mebibyte(|number| format!(r#""{number}":"1""#))
        ),
        format!(r#""want":["*"],"notices":[{}]"#, mebibyte(|_| r#""""#.to_owned())),
    ];
    let mut asked = tokio::task::JoinSet::new();
    for id in 0..EACH {
        for body in &bodies {
            let ask = Ask::post("/v1/discovery", poll(id, body));
            asked.spawn(async move { Client::new(address).send(ask).await.status() });
        }
    }
    let statuses = within("an answer to each", asked.join_all()).await;
    assert!(
        statuses.iter().all(|status| (200..500).contains(status)),
        "{statuses:?}"
    );
    // Those that never come to an end: of the body, and of the head.
    let head = format!("POST /v1/discovery HTTP/1.1\r\nhost: x\r\ncontent-length: {MIB}\r\n\r\n");
    let body = [head.into_bytes(), vec![b' '; MIB - 1]].concat();
    let head = format!("POST /v1/discovery HTTP/1.1\r\nx: {}", "x".repeat(MIB / 3)).into_bytes();
    let mut unfinished = Vec::new();
    for bytes in [&body, &head] {
        for _ in 0..EACH {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // What is not read stays in the sockets, and whoever says too much is cut.
            let sending = tokio::spawn({
                let bytes = bytes.clone();
                async move {
                    let _ = stream.write_all(&bytes).await;
                    std::future::pending::<()>().await;
                }
            });
            unfinished.push(sending);
        }
    }
    is_well(address).await;
    let more = desk.api.memory_peak().saturating_sub(before);
    assert!(more < MEMORY_MAX, "{} MiB more than before", more / MIB as u64);
    unfinished.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Thousands of services, whose names alone are more than is read of who has proved nothing without a turn. A sidecar of a
/// debug build takes half a minute for five thousand.
fn thousands() -> String {
    let count = match std::env::var_os("OUTRIGGER_TESTS_LONG") {
        Some(_) => 5_000,
        None => 1_500,
    };
    let one = |number: usize| {
        format!(
            "kind: Service\nname: a-service-of-a-team-with-a-long-name-{number:04}\nbackends: [{{ name: v1, discover: {{ \
             static: [\"127.0.0.1:9080\"] }} }}]\n"
        )
    };
    (0..count).map(one).collect::<Vec<_>>().join("---\n")
}

async fn is_in_sync(desk: &Desk, version: &str) {
    let look = async || {
        loop {
            let list = desk.run("status --json").await.ok().json();
            let holds = |node: &serde_json::Value| node["holds"] == version && node["state"] == "in-sync";
            if list["nodes"].as_array().unwrap().iter().any(holds) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let looked = tokio::time::timeout(CONFIGURED_WITHIN, look()).await;
    assert!(looked.is_ok(), "no sidecar holds version {version}");
}

/// Configures a sidecar with thousands of services, and takes the API away for a moment: it then polls with all that it has.
async fn comes_back(mut desk: Desk, flags: &[&str], spec: SidecarSpec) {
    let file = desk.path().join("all.yaml");
    std::fs::write(&file, thousands()).unwrap();
    desk.run(&format!("push {}", file.display())).await.ok();
    let sidecar = Sidecar::launch(spec).await;
    is_in_sync(&desk, "1").await;
    desk.api.kill();
    let listen = address(&desk).to_string();
    (desk.api, desk.url) = serve(&desk.data(), &listen, flags).await;
    is_in_sync(&desk, "1").await;
    let file = desk.path().join("mesh.yaml");
    std::fs::write(&file, "kind: Mesh\n").unwrap();
    desk.run(&format!("push {}", file.display())).await.ok();
    is_in_sync(&desk, "2").await;
    drop(sidecar);
}

#[tokio::test]
async fn a_sidecar_of_thousands_of_services_that_has_proved_nothing_comes_back_after_a_break() {
    let desk = Desk::new(&[]).await;
    let spec = SidecarSpec::control("reviews-1", &desk.url);
    comes_back(desk, &[], spec).await;
}

#[tokio::test]
async fn a_sidecar_of_thousands_of_services_that_has_joined_comes_back_after_a_break() {
    let flags = ["--tls", "--require-identity"];
    let desk = Desk::over_tls(&flags[1..]).await;
    let token = desk.token("reviews", 1, "10m").await;
    let spec = SidecarSpec::control("reviews-1", &desk.url).beside("reviews");
    comes_back(desk, &flags, spec.environment("OUTRIGGER_TOKEN", &token)).await;
}
