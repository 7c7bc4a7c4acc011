//! Tunnels whose ground is taken away while they live: by a push that no longer allows them, or a root that is trusted no more.

use outrigger_tests::background::Background;
use outrigger_tests::client::Connection;
use outrigger_tests::{IdentityFiles, Leaf, Pki, Sidecar, SidecarSpec, within};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::mtls::{STRICT, beside, caller, file, server};
use crate::mtls_revoked::{echo, is_over, parrot, talks};

const ENDED: &str = "outrigger_tcp_connections_total";
const TCP: &str = "protocol: tcp";

/// Whether a connection that is there still carries a byte both ways.
async fn still_talks(stream: &mut TcpStream) {
    stream.write_all(b"y").await.unwrap();
    assert_eq!(within("an echo", stream.read_u8()).await.unwrap(), b'y');
}

#[tokio::test]
async fn a_push_that_no_longer_allows_a_tcp_connection_ends_it_and_one_that_does_leaves_it() {
    let app = echo().await;
    let pki = Pki::new();
    let files = [pki.files("reviews"), pki.files("productpage")];
    let first = format!("{TCP}\n{STRICT}");
    let server = server(app, &first, &files[0]).await;
    let caller = caller(&server, &first, &files[1]).await;
    let of = |service: &str| format!("allow: [{{ from: [\"spiffe://shop/{service}\"] }}]");
    let forbidden = async |count: f64| {
        let metrics = server.metrics_when("the end", |metrics| {
            metrics.sum(ENDED, &[("reason", "forbidden")]) == count
        });
        metrics.await;
    };
    let push = async |rules: &str| server.apply(&beside(app, &format!("{first}\n{rules}"))).await;
    for (count, end) in [(1.0, of("admin")), (2.0, "allow: []".to_owned())] {
        let mut stream = talks(&caller).await;
        // Rules that it keeps to, and rules that are only tried out, are none of its business.
        push(&of("productpage")).await;
        push(&format!("{end}\naudit: true")).await;
        still_talks(&mut stream).await;
        push(&end).await;
        is_over(&mut stream).await;
        forbidden(count).await;
        server.apply(&beside(app, &first)).await;
    }
}

#[tokio::test]
async fn a_service_that_becomes_strict_ends_what_speaks_plaintext_and_nothing_that_speaks_mtls() {
    let app = echo().await;
    let pki = Pki::new();
    let permissive = format!("{TCP}\ntls: {{ mode: permissive }}");
    let server = server(app, &permissive, &pki.files("reviews")).await;
    let secure = caller(&server, &permissive, &pki.files("productpage")).await;
    let text = file(server.inbound(), TCP).to_string();
    let plain = Sidecar::start(SidecarSpec::text("plain", &text).local("reviews")).await;
    let (mut secured, mut in_the_clear) = (talks(&secure).await, talks(&plain).await);
    server.apply(&beside(app, &format!("{TCP}\n{STRICT}"))).await;
    is_over(&mut in_the_clear).await;
    still_talks(&mut secured).await;
    let required = [("reason", "tls-required")];
    server
        .metrics_when("the end", |metrics| metrics.sum(ENDED, &required) == 1.0)
        .await;
}

async fn says(connection: &mut Connection, line: &str) {
    connection
        .wire()
        .send(format!("{line}\r\n").as_bytes())
        .await
        .unwrap();
    assert_eq!(within("an echo", connection.wire().line()).await.unwrap(), line);
}

#[tokio::test]
async fn a_push_that_no_longer_allows_what_switched_protocols_ends_it_by_what_it_had_asked_for() {
    let background = Background::start("parrot");
    let app = parrot(&background);
    let pki = Pki::new();
    let mut server = server(app, STRICT, &pki.files("reviews")).await;
    let caller = caller(&server, STRICT, &pki.files("productpage")).await;
    let mut connection = caller.client().connect().await;
    let ask = b"GET /chat/./room HTTP/1.1\r\nhost: reviews\r\nconnection: upgrade\r\nupgrade: parrot\r\n\r\n";
    connection.wire().send(ask).await.unwrap();
    let reply = within("the switch", connection.wire().head()).await;
    assert_eq!(reply.unwrap().unwrap().status(), 101);
    says(&mut connection, "hello").await;
    let rules =
        |paths: &str| format!("{STRICT}\nallow: [{{ methods: [GET], paths: [{{ prefix: {paths} }}] }}]");
    server.apply(&beside(app, &rules("/chat/room"))).await;
    says(&mut connection, "still here").await;
    server.apply(&beside(app, &rules("/other"))).await;
    within("the end", connection.wire().until_end()).await;
    let cut =
        |line: &Value| line["message"] == "a switched connection was cut" && line["reason"] == "forbidden";
    server.program().logged("why", cut).await;
}

#[tokio::test]
async fn what_switches_protocols_is_allowed_as_the_get_that_it_is_by_h1_and_h2_between_the_sidecars() {
    let background = Background::start("parrot");
    let app = parrot(&background);
    for version in ["", "\nprotocol: http2"] {
        let pki = Pki::new();
        let rules = |method: &str| format!("{STRICT}\nallow: [{{ methods: [{method}] }}]");
        let files = [pki.files("reviews"), pki.files("productpage")];
        let mut server = server(app, &rules("GET"), &files[0]).await;
        let caller = caller(&server, &format!("{STRICT}{version}"), &files[1]).await;
        let mut connection = caller.client().connect().await;
        let ask = b"GET /chat HTTP/1.1\r\nhost: reviews\r\nconnection: upgrade\r\nupgrade: parrot\r\n\r\n";
        connection.wire().send(ask).await.unwrap();
        let reply = within("the switch", connection.wire().head()).await;
        assert_eq!(reply.unwrap().unwrap().status(), 101, "{version}");
        says(&mut connection, "hello").await;
        // Another push that allows it, and one that would allow what it came as by HTTP/2.
        server
            .apply(&beside(app, &format!("{}\naudit: false", rules("GET"))))
            .await;
        says(&mut connection, "still here").await;
        server.apply(&beside(app, &rules("CONNECT"))).await;
        within("the end", connection.wire().until_end()).await;
        let cut = |line: &Value| {
            line["message"] == "a switched connection was cut" && line["reason"] == "forbidden"
        };
        server.program().logged("why", cut).await;
    }
}

#[tokio::test]
async fn a_root_that_is_trusted_no_more_ends_the_tcp_connections_that_lead_to_it_and_no_others() {
    let app = echo().await;
    let fields = format!("{TCP}\n{STRICT}");
    let (old, new) = (Pki::new(), Pki::new());
    let both = format!("{}{}", old.root(), new.root());
    let files = |pki: &Pki, service: &str| IdentityFiles::new(&pki.issue(&Leaf::service(service)), &both);
    // On the callee's side, by the callers' roots; then on the caller's, by its endpoint's.
    let own = files(&new, "reviews");
    let server_of_new = server(app, &fields, &own).await;
    let old_caller = caller(&server_of_new, &fields, &files(&old, "productpage")).await;
    let new_files = files(&new, "productpage");
    let new_caller = caller(&server_of_new, &fields, &new_files).await;
    let (mut gone, mut stays) = (talks(&old_caller).await, talks(&new_caller).await);
    own.write("roots.pem", new.root());
    is_over(&mut gone).await;
    still_talks(&mut stays).await;
    let untrusted = [("reason", "peer-untrusted")];
    let one = async |sidecar: &Sidecar| {
        sidecar
            .metrics_when("the end", |metrics| metrics.sum(ENDED, &untrusted) == 1.0)
            .await;
    };
    one(&server_of_new).await;

    let server_of_old = server(app, &fields, &files(&old, "reviews")).await;
    let calling = files(&new, "productpage");
    let caller = caller(&server_of_old, &fields, &calling).await;
    let mut gone = talks(&caller).await;
    calling.write("roots.pem", new.root());
    is_over(&mut gone).await;
    one(&caller).await;
    still_talks(&mut stays).await;
}
