//! The PROXY protocol: where a connection says that it comes from is where it comes from, on listeners that expect it.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;

use outrigger_tests::cli::finish;
use outrigger_tests::client::Connection;
use outrigger_tests::http2::{Caller, Raw, frame};
use outrigger_tests::program::Program;
use outrigger_tests::wait::{eventually, within};
use outrigger_tests::{Ask, Client, ServiceFile, Sidecar, SidecarSpec, Upstream, simple};

/// A sidecar all of whose listeners expect it, beside `reviews`; and where its local port is.
async fn expecting(yaml: &str) -> (Sidecar, SocketAddr, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy.yaml");
    let bootstrap = "kind: Proxy\naccess_log: all\nlisteners:\n  proxy_protocol: [inbound, outbound]\n  \
                     local: [{ address: 127.0.0.1:0, service: reviews, proxy_protocol: true }]\n";
    std::fs::write(&file, bootstrap).unwrap();
    let spec = SidecarSpec::text("a", yaml).beside("reviews");
    let mut sidecar = Sidecar::start(spec.with("--config", file.to_str().unwrap())).await;
    let local = sidecar.program().listening("local:reviews").await;
    (sidecar, local, folder)
}

/// Where the last line of the access log says that a request came from, once there are so many lines.
async fn callers(sidecar: &mut Sidecar, count: usize) -> Vec<String> {
    let program = sidecar.program();
    eventually("the access log", async || {
        let lines = program.output();
        (lines.len() >= count).then(|| {
            let caller = |line: &String| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                line["caller"].as_str().unwrap_or_default().to_owned()
            };
            lines.iter().map(caller).collect()
        })
    })
    .await
}

fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, rest].concat()
}

const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: reviews\r\n\r\n";

#[tokio::test]
async fn every_listener_takes_the_source_from_either_version_of_the_header() {
    let upstream = Upstream::start("a").await;
    let yaml = simple("reviews", &[&upstream], "")
        .app(upstream.address())
        .to_string();
    let (mut sidecar, local, _folder) = expecting(&yaml).await;
    let addresses = [192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 0, 80];
    let with_fields = [&addresses[..], &[0x04, 0, 2, 9, 9]].concat();
    let headers = [
        b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 80\r\n".to_vec(),
        binary(0x21, 0x11, &addresses),
        binary(0x21, 0x11, &with_fields),
    ];
    let mut count = 0;
    for address in [sidecar.inbound(), sidecar.outbound(), local] {
        for header in &headers {
            let mut connection = Connection::open(address).await.unwrap();
            connection.wire().send(&[header, ASK].concat()).await.unwrap();
            let reply = within("an answer", connection.reply_to("GET")).await.unwrap();
            assert_eq!((reply.status(), reply.upstream()), (200, "a"));
            // The second request of the connection has the same source, and no header.
            let reply = connection.send(&Ask::get("/").host("reviews")).await.unwrap();
            assert_eq!(reply.status(), 200);
            count += 2;
        }
    }
    let callers: BTreeSet<_> = callers(&mut sidecar, count).await.into_iter().collect();
    assert_eq!(callers, BTreeSet::from(["192.0.2.7:12345".to_owned()]));
}

#[tokio::test]
async fn a_header_that_tells_no_source_leaves_the_one_that_is_seen() {
    let upstream = Upstream::start("a").await;
    let (mut sidecar, _, _folder) = expecting(&simple("reviews", &[&upstream], "").to_string()).await;
    let mut expected = Vec::new();
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        binary(0x20, 0x11, &[1; 12]),
        binary(0x21, 0, &[]),
    ] {
        let mut connection = Connection::open(sidecar.outbound()).await.unwrap();
        connection.wire().send(&[&header, ASK].concat()).await.unwrap();
        let reply = within("an answer", connection.reply_to("GET")).await.unwrap();
        assert_eq!(reply.status(), 200);
        expected.push(connection.wire().stream().local_addr().unwrap().to_string());
        assert_eq!(callers(&mut sidecar, expected.len()).await, expected);
    }
}

#[tokio::test]
async fn a_header_in_pieces_is_read_and_http2_follows_it_as_well() {
    let upstream = Upstream::start("a").await;
    let (mut sidecar, _, _folder) = expecting(&simple("reviews", &[&upstream], "").to_string()).await;
    let header = b"PROXY TCP6 2001:db8::1 ::1 12345 80\r\n";
    let mut connection = Connection::open(sidecar.outbound()).await.unwrap();
    for byte in [&header[..], ASK].concat() {
        connection.wire().send(&[byte]).await.unwrap();
        // They go one by one, so that the sidecar may see each by itself.
        tokio::task::yield_now().await;
    }
    let reply = within("an answer", connection.reply_to("GET")).await.unwrap();
    assert_eq!(reply.status(), 200);
    let mut raw = Raw::connect(sidecar.outbound()).await.unwrap();
    let head = frame::headers(
        1,
        frame::flag::END_STREAM,
        &outrigger_tests::http2::request("GET", "reviews", "/"),
    );
    let opening = [header, frame::PREFACE, &frame::settings(&[]), &head[..]].concat();
    raw.send(&opening).await.unwrap();
    let mut caller = Caller::of(raw);
    let reply = within("an answer", caller.reply(1)).await.unwrap();
    assert_eq!(reply.status(), 200);
    assert_eq!(
        callers(&mut sidecar, 2).await,
        ["[2001:db8::1]:12345", "[2001:db8::1]:12345"]
    );
}

#[tokio::test]
async fn a_connection_without_the_header_is_closed_and_counted() {
    let upstream = Upstream::start("a").await;
    let (sidecar, _, _folder) = expecting(&simple("reviews", &[&upstream], "").to_string()).await;
    for bytes in [ASK, frame::PREFACE, b"PROXY TCP4 nonsense\r\n"] {
        let mut connection = Connection::open(sidecar.outbound()).await.unwrap();
        connection.wire().send(bytes).await.unwrap();
        let (answer, _) = within("the end", connection.wire().until_end()).await;
        assert_eq!(answer, b"");
    }
    let cut = [("listener", "outbound"), ("reason", "protocol")];
    let count =
        |metrics: &outrigger_tests::metrics::Metrics| metrics.sum("outrigger_connections_cut_total", &cut);
    sidecar
        .metrics_when("the cuts", |metrics| count(metrics) == 3.0)
        .await;
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn a_sidecar_that_does_not_expect_the_header_takes_it_for_a_bad_request() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let mut connection = sidecar.client().connect().await;
    let bytes = [b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 80\r\n", ASK].concat();
    connection.wire().send(&bytes).await.unwrap();
    let reply = within("an answer", connection.reply_to("GET")).await.unwrap();
    assert_eq!(reply.status(), 400);
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn requests_are_spread_by_the_source_that_the_header_tells() {
    let (first, second) = (Upstream::start("a").await, Upstream::start("b").await);
    let yaml = simple("reviews", &[&first, &second], "").field("balance: { hash_on: source_address }");
    let (sidecar, _, _folder) = expecting(&yaml.to_string()).await;
    let mut chosen = BTreeSet::new();
    for host in 1..=20 {
        let mut of_this = BTreeSet::new();
        for port in [1000, 2000] {
            let header = format!("PROXY TCP4 192.0.2.{host} 10.0.0.1 {port} 80\r\n");
            let mut connection = Connection::open(sidecar.outbound()).await.unwrap();
            let bytes = [header.as_bytes(), ASK].concat();
            connection.wire().send(&bytes).await.unwrap();
            let reply = within("an answer", connection.reply_to("GET")).await.unwrap();
            of_this.insert(reply.upstream().to_owned());
        }
        assert_eq!(of_this.len(), 1, "{host}");
        chosen.extend(of_this);
    }
    assert_eq!(chosen.len(), 2);
}

#[tokio::test]
async fn the_bytes_behind_the_header_are_the_tcp_services_own() {
    let upstream = Upstream::start("a").await;
    let yaml = ServiceFile::new("reviews").field("protocol: tcp");
    let yaml = yaml.backend("v1", &[upstream.address()]).to_string();
    let (mut sidecar, local, _folder) = expecting(&yaml).await;
    let mut connection = Connection::open(local).await.unwrap();
    let header = b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 80\r\n";
    connection.wire().send(&[header, ASK].concat()).await.unwrap();
    let reply = within("an answer", connection.reply_to("GET")).await.unwrap();
    assert_eq!((reply.status(), reply.upstream()), (200, "a"));
    assert_eq!(upstream.last().head.first_line, "GET / HTTP/1.1");
    connection.wire().finish().await.unwrap();
    assert_eq!(callers(&mut sidecar, 1).await, ["192.0.2.7:12345"]);
}

#[tokio::test]
async fn haproxy_tells_both_versions_and_checks_by_local() {
    let upstream = Upstream::start("a").await;
    let (mut sidecar, _, folder) = expecting(&simple("reviews", &[&upstream], "").to_string()).await;
    let address = sidecar.outbound();
    let free = || {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap()
            .local_addr()
            .unwrap()
    };
    let mut config =
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 9s\n timeout server 9s\n".to_owned();
    let mut doors = Vec::new();
    for how in [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 check check-send-proxy inter 100ms",
    ] {
        let door = free();
        config.push_str(&format!(
            "listen l{}\n bind {door}\n server s {address} {how}\n",
            doors.len()
        ));
        doors.push(door);
    }
    let file = folder.path().join("haproxy.cfg");
    std::fs::write(&file, config).unwrap();
    let found = ["/usr/sbin/haproxy", "/usr/bin/haproxy"].map(std::path::Path::new);
    let program = found.iter().find(|path| path.exists());
    let program = program.unwrap_or_else(|| panic!("haproxy is not installed; tests/run installs it"));
    let mut command = Command::new(program);
    command.arg("-db").arg("-f").arg(&file);
    let _haproxy = Program::spawn("haproxy", command);
    let mut expected = Vec::new();
    for door in doors {
        let mut connection = eventually("HAProxy", async || Connection::open(door).await.ok()).await;
        let reply = within("an answer", connection.send(&Ask::get("/").host("reviews"))).await;
        assert_eq!(reply.unwrap().status(), 200);
        expected.push(connection.wire().stream().local_addr().unwrap().to_string());
        let seen = callers(&mut sidecar, expected.len()).await;
        assert_eq!(seen, expected);
    }
    let cut = [("reason", "protocol")];
    assert_eq!(
        sidecar
            .metrics()
            .await
            .sum("outrigger_connections_cut_total", &cut),
        0.0
    );
}

#[tokio::test]
async fn curl_tells_where_it_comes_from() {
    let upstream = Upstream::start("a").await;
    let (mut sidecar, local, _folder) = expecting(&simple("reviews", &[&upstream], "").to_string()).await;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let mut command = Command::new("curl");
        command.args([
            "-q",
            "-sS",
            "--max-time",
            "15",
            "--noproxy",
            "*",
            "--haproxy-protocol",
            version,
        ]);
        command.arg(format!("http://{local}/"));
        let ended = finish(Program::spawn("curl", command)).await.ok();
        assert_eq!(ended.stdout.trim(), "status 200", "{ended:?}");
    }
    let callers = callers(&mut sidecar, 2).await;
    assert!(
        callers.iter().all(|caller| caller.starts_with("127.0.0.1:")),
        "{callers:?}"
    );
    // Its pages for operators are no listeners of traffic.
    assert_eq!(Client::new(sidecar.admin()).get("x", "/live").await.status(), 200);
}
