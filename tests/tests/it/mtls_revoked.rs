//! What the mesh has revoked: it gets into no handshake, and what it has begun ends.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_tests::background::Background;
use outrigger_tests::dns::{DnsServer, Manner};
use outrigger_tests::http2::frame::{self, kind};
use outrigger_tests::http2::{Caller, Http2Upstream, Raw};
use outrigger_tests::metrics::Metrics;
use outrigger_tests::pki::{Issued, serial};
use outrigger_tests::wire::Wire;
use outrigger_tests::{
    Answer, Behaviour, ControlApi, IdentityFiles, Leaf, Load, LoadSpec, Pki, ServiceFile, Sidecar,
    SidecarSpec, Upstream, eventually, outrigger, within,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::mtls::{ASKED, HANDSHAKES, STRICT, beside, caller, file, server};

const CUT: &str = "outrigger_connections_cut_total";
const ENDED: &str = "outrigger_tcp_connections_total";
const REVOKED: &[(&str, &str)] = &[("reason", "peer-revoked")];

/// A configuration of which the mesh has revoked this.
pub(crate) fn revoking(what: &str, text: &str) -> String {
    format!("kind: Mesh\nrevoked: {{ {what} }}\n---\n{text}")
}

pub(crate) fn by_serial(serial: &str) -> String {
    format!("serials: [\"{serial}\"]")
}

fn by_identity(service: &str) -> String {
    format!("identities: [\"spiffe://shop/{service}\"]")
}

/// A workload whose certificate an intermediate has signed, the three ways to revoke it, and what the log says of each.
struct Revocable {
    files: IdentityFiles,
    ways: [(String, String); 3],
}

impl Revocable {
    fn new(pki: &Pki, service: &str) -> Self {
        let between = pki.below();
        let issued: Issued = between.issue(&Leaf::service(service));
        let id = format!("spiffe://shop/{service}");
        let (own, above) = (serial(&issued.certificate), serial(between.chain()));
        // openssl writes whole bytes, and a zero before them counts for nothing.
        let bare = |serial: &str| serial.trim_start_matches('0').to_owned();
        let ways = [
            (
                by_serial(&own),
                format!("the certificate of {id} is revoked: its serial is {}", bare(&own)),
            ),
            (
                by_serial(&above),
                format!(
                    "a certificate that vouches for the one of {id} is revoked: its serial is {}",
                    bare(&above)
                ),
            ),
            (by_identity(service), format!("the identity {id} is revoked")),
        ];
        Self {
            files: IdentityFiles::new(&issued, pki.root()),
            ways,
        }
    }
}

/// An application for each version of HTTP, and the field that says so.
async fn applications() -> (Upstream, Http2Upstream) {
    (
        Upstream::start("a").await,
        Http2Upstream::answering(Default::default()).await,
    )
}

/// An application that repeats what it hears.
pub(crate) async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    address
}

/// A connection by a local port that has carried a byte both ways.
pub(crate) async fn talks(caller: &Sidecar) -> TcpStream {
    let mut stream = TcpStream::connect(caller.local("reviews")).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    assert_eq!(within("an echo", stream.read_u8()).await.unwrap(), b'x');
    stream
}

/// Reads until it is over, reset or ended.
pub(crate) async fn is_over(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let _ = within("the connection's end", stream.read_to_end(&mut rest)).await;
}

async fn is_answered(caller: &Sidecar) {
    eventually("an answer", async || {
        (caller.client().get("reviews", "/").await.status() == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_caller_is_refused_by_its_serial_by_its_intermediate_s_and_by_its_name_until_that_is_taken_back() {
    let (one, two) = applications().await;
    for (protocol, app) in [("", one.address()), ("\nprotocol: http2", two.address())] {
        let fields = format!("{STRICT}{protocol}");
        let pki = Pki::new();
        let called = Revocable::new(&pki, "productpage");
        let mut server = server(app, &fields, &pki.files("reviews")).await;
        let caller = caller(&server, &fields, &called.files).await;
        let text = beside(app, &fields);
        is_answered(&caller).await;
        for (way, words) in &called.ways {
            let found = async || {
                let metrics = server.metrics().await;
                metrics.sum(HANDSHAKES, &[("side", "inbound"), ("result", "peer-revoked")])
            };
            let before = found().await;
            let asked = one.requests() + two.requests();
            server.apply(&revoking(way, &text)).await;
            // The connection from before may answer it: see below.
            eventually(&format!("a refusal by {way}"), async || {
                let reply = caller.client().get("reviews", "/").await;
                assert_ne!(reply.status(), 200, "{protocol} {way}");
                ((reply.status(), reply.reason()) == (503, Some("identity-refused"))).then_some(())
            })
            .await;
            assert!(found().await > before, "{protocol} {way}");
            assert_eq!(one.requests() + two.requests(), asked, "{protocol} {way}");
            server
                .program()
                .logged("who was refused", |line| line["why"] == words.as_str())
                .await;
            server.apply(&text).await;
            is_answered(&caller).await;
        }
        server
            .program()
            .logged("a handshake that failed", |line| {
                line["reason"] == "peer-revoked" && line["side"] == "inbound"
            })
            .await;
    }
}

#[tokio::test]
async fn an_endpoint_is_refused_by_each_of_them_too_and_the_answer_says_so() {
    let (one, two) = applications().await;
    for (protocol, app) in [("", one.address()), ("\nprotocol: http2", two.address())] {
        let fields = format!("{STRICT}{protocol}");
        let pki = Pki::new();
        let called = Revocable::new(&pki, "reviews");
        let server = server(app, &fields, &called.files).await;
        let mut caller = caller(&server, &fields, &pki.files("productpage")).await;
        let text = file(server.inbound(), &fields).to_string();
        is_answered(&caller).await;
        for (way, words) in &called.ways {
            let asked = one.requests() + two.requests();
            caller.apply(&revoking(way, &text)).await;
            eventually(&format!("a refusal of {way}"), async || {
                let reply = caller.client().get("reviews", "/").await;
                assert_ne!(reply.status(), 200, "{protocol} {way}");
                ((reply.status(), reply.reason()) == (503, Some("peer-revoked"))).then_some(())
            })
            .await;
            assert_eq!(one.requests() + two.requests(), asked, "{protocol} {way}");
            caller
                .program()
                .logged("who was refused", |line| line["why"] == words.as_str())
                .await;
            caller.apply(&text).await;
            is_answered(&caller).await;
        }
        let labels = [("side", "outbound"), ("result", "peer-revoked")];
        assert!(
            caller.metrics().await.sum(HANDSHAKES, &labels) >= 3.0,
            "{protocol}"
        );
        caller
            .program()
            .printed("the access log to say why", |line| {
                line.contains("\"reason\":\"peer-revoked\"")
            })
            .await;
    }
}

#[tokio::test]
async fn a_tcp_connection_ends_when_either_of_its_ends_is_revoked_and_no_other_is_made() {
    let app = echo().await;
    let fields = format!("protocol: tcp\n{STRICT}");
    let pki = Pki::new();
    let (called, calling) = (
        Revocable::new(&pki, "reviews"),
        Revocable::new(&pki, "productpage"),
    );
    let server = server(app, &fields, &called.files).await;
    let caller = caller(&server, &fields, &calling.files).await;
    let texts = [beside(app, &fields), file(server.inbound(), &fields).to_string()];
    let handshakes = [("side", "inbound"), ("result", "peer-revoked")];
    for (sidecar, text, way) in [
        (&server, &texts[0], &calling.ways[0].0),
        (&caller, &texts[1], &called.ways[1].0),
    ] {
        let mut stream = talks(&caller).await;
        sidecar.apply(&revoking(way, text)).await;
        is_over(&mut stream).await;
        let over = sidecar.metrics_when("the connection's end", |metrics| {
            metrics.sum(ENDED, REVOKED) == 1.0
        });
        over.await;
        let mut stream = TcpStream::connect(caller.local("reviews")).await.unwrap();
        let _ = stream.write_all(b"x").await;
        is_over(&mut stream).await;
        match std::ptr::eq(sidecar, &raw const server) {
            true => {
                server
                    .metrics_when("a refusal", |metrics| metrics.sum(HANDSHAKES, &handshakes) >= 1.0)
                    .await;
                let refused = [("reason", "identity-refused")];
                caller
                    .metrics_when("it too", |metrics| metrics.sum(ENDED, &refused) >= 1.0)
                    .await;
            }
            false => {
                caller
                    .metrics_when("a refusal", |metrics| metrics.sum(ENDED, REVOKED) == 2.0)
                    .await;
            }
        }
        sidecar.apply(text).await;
        eventually("an echo", async || {
            let mut stream = TcpStream::connect(caller.local("reviews")).await.ok()?;
            stream.write_all(b"x").await.ok()?;
            stream.read_u8().await.ok()
        })
        .await;
    }
}

/// Switches to a protocol of its own, and then repeats each line.
pub(crate) fn parrot(background: &Background) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    background.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut wire = Wire::new(stream);
                wire.head().await.unwrap();
                let switched =
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: parrot\r\n\r\n";
                wire.send(switched).await.unwrap();
                while let Ok(line) = wire.line().await {
                    wire.send(format!("{line}\r\n").as_bytes()).await.unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn what_switched_protocols_and_what_connect_opened_ends_when_an_end_of_it_is_revoked() {
    let background = Background::start("parrot");
    let app = parrot(&background);
    let pki = Pki::new();
    let files = [pki.files("reviews"), pki.files("productpage")];
    let mut web = server(app, STRICT, &files[0]).await;
    let caller = caller(&web, STRICT, &files[1]).await;
    let mut connection = caller.client().connect().await;
    let ask = b"GET / HTTP/1.1\r\nhost: reviews\r\nconnection: upgrade\r\nupgrade: parrot\r\n\r\n";
    connection.wire().send(ask).await.unwrap();
    let reply = within("the switch", connection.wire().head())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(reply.status(), 101);
    connection.wire().send(b"hello\r\n").await.unwrap();
    assert_eq!(
        within("an echo", connection.wire().line()).await.unwrap(),
        "hello"
    );
    let text = beside(app, STRICT);
    web.apply(&revoking(&by_identity("productpage"), &text)).await;
    within("the end", connection.wire().until_end()).await;
    let cut = |line: &serde_json::Value| {
        line["message"] == "a switched connection was cut" && line["reason"] == "peer-revoked"
    };
    web.program().logged("why", cut).await;

    let fields = format!("protocol: tcp\n{STRICT}");
    let server = server(echo().await, &fields, &files[0]).await;
    let text = file(server.inbound(), &fields).to_string();
    let mut caller = Sidecar::start(SidecarSpec::text("caller", &text).identity(&files[1])).await;
    let mut connection = caller.client().connect().await;
    let ask = b"CONNECT reviews:80 HTTP/1.1\r\nhost: reviews:80\r\n\r\n";
    connection.wire().send(ask).await.unwrap();
    let reply = within("a tunnel", connection.wire().head())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(reply.status(), 200);
    connection.wire().send(b"hello\r\n").await.unwrap();
    assert_eq!(
        within("an echo", connection.wire().line()).await.unwrap(),
        "hello"
    );
    caller.apply(&revoking(&by_identity("reviews"), &text)).await;
    within("the end", connection.wire().until_end()).await;
    caller.program().logged("why", cut).await;
}

#[tokio::test]
async fn connections_that_were_kept_to_a_revoked_instance_are_not_used_again_and_no_get_fails_by_it() {
    for protocol in ["", "\nprotocol: http2"] {
        let fields = format!("{STRICT}{protocol}");
        let (one, other) = (applications().await, applications().await);
        let (app, elsewhere) = match protocol {
            "" => (one.0.address(), other.0.address()),
            _ => (one.1.address(), other.1.address()),
        };
        let pki = Pki::new();
        let issued = pki.issue(&Leaf::service("reviews"));
        let revoked = server(app, &fields, &IdentityFiles::new(&issued, pki.root())).await;
        let good = server(elsewhere, &fields, &pki.files("reviews")).await;
        let text = fields
            .lines()
            .fold(ServiceFile::new("reviews"), ServiceFile::field);
        let text = text
            .backend("v1", &[revoked.inbound(), good.inbound()])
            .to_string();
        let spec = SidecarSpec::text("caller", &text);
        let caller = Sidecar::start(spec.identity(&pki.files("productpage"))).await;
        let load = Load::start(LoadSpec::new(caller.outbound(), "reviews", 4));
        load.has_done(100).await;
        let asked = || one.0.requests() + one.1.requests();
        assert!(asked() > 0);
        caller
            .apply(&revoking(&by_serial(&serial(&issued.certificate)), &text))
            .await;
        // What was under way at that moment is over by then.
        load.has_done_more(50).await;
        let before = asked();
        load.has_done_more(200).await;
        assert_eq!(asked(), before, "{protocol}");
        load.stop().await.assert_clean();
        // None stands either, idle as they are.
        revoked
            .metrics_when("no connection", |metrics| {
                metrics.sum("outrigger_connections_open", &[("listener", "inbound")]) == 0.0
            })
            .await;
    }
}

/// A request of curl's for `reviews` with these files, in this version of HTTP.
fn curl(server: &Sidecar, files: &IdentityFiles, version: &str) -> Command {
    let path = |name: &str| files.path(name).to_string_lossy().into_owned();
    let mut curl = Command::new("curl");
    curl.args(["-sSN", "--insecure", version, "-H", "Host: reviews"]);
    curl.args(["--cert", &path("certificate.pem"), "--key", &path("key.pem")]);
    curl.arg(format!("https://{}/", server.inbound()));
    curl.stdout(std::process::Stdio::piped()).kill_on_drop(true);
    curl
}

#[tokio::test]
async fn an_answer_under_way_to_a_revoked_caller_is_cut_by_h1_and_h2() {
    let app = Upstream::start("a").await;
    app.behave(Behaviour::StallBody(Answer::ok().body(vec![b'x'; 1000])));
    let pki = Pki::new();
    let files = pki.files("productpage");
    let mut server = server(app.address(), STRICT, &pki.files("reviews")).await;
    let text = beside(app.address(), STRICT);
    for (count, version) in [(1.0, "--http1.1"), (2.0, "--http2")] {
        let mut curl = curl(&server, &files, version).spawn().unwrap();
        let mut stdout = curl.stdout.take().unwrap();
        within("the first half", stdout.read_u8()).await.unwrap();
        server.apply(&revoking(&by_identity("productpage"), &text)).await;
        let ended = within("curl's end", curl.wait()).await.unwrap();
        assert!(!ended.success(), "{version}: {ended}");
        server
            .metrics_when("the cut", |metrics| {
                metrics.sum(CUT, &[("listener", "inbound"), ("reason", "revoked")]) == count
                    && metrics.sum("outrigger_requests_total", REVOKED) == count
            })
            .await;
        server.apply(&text).await;
    }
    server
        .program()
        .printed("who it was", |line| {
            line.contains("\"source\":\"spiffe://shop/productpage\"")
                && line.contains("\"reason\":\"peer-revoked\"")
        })
        .await;
    assert_eq!(app.given_up(), 2, "the application is let go of too");
}

#[tokio::test]
async fn an_answer_under_way_from_a_revoked_endpoint_is_cut_where_it_shows() {
    let pki = Pki::new();
    // It sends a byte now and then for as long as anybody listens.
    let drip = Behaviour::Drip {
        pieces: 1_000_000,
        pause: Duration::from_millis(50),
    };
    let app = Upstream::start("a").await;
    app.behave(drip);
    let server = server(app.address(), STRICT, &pki.files("reviews")).await;
    let caller = caller(&server, STRICT, &pki.files("productpage")).await;
    let mut connection = caller.client().connect().await;
    connection
        .wire()
        .send(b"GET / HTTP/1.1\r\nhost: reviews\r\n\r\n")
        .await
        .unwrap();
    let head = within("the head", connection.wire().head())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(head.status(), 200);
    let text = file(server.inbound(), STRICT).to_string();
    caller.apply(&revoking(&by_identity("reviews"), &text)).await;
    within("the end", connection.wire().until_end()).await;
    caller
        .metrics_when("why", |metrics| {
            metrics.sum("outrigger_requests_total", &[("reason", "upstream-reset")]) == 1.0
        })
        .await;
}

/// An endpoint by HTTP/2 that begins each answer and says no more.
async fn falls_silent() -> Http2Upstream {
    Http2Upstream::start(|stream, _, _| async move {
        let mut raw = Raw::accept(stream, &[]).await?;
        while let Some(frame) = raw.frame().await? {
            if frame.kind == kind::HEADERS {
                raw.fields(&frame).await?;
                let head = frame::headers(frame.stream, 0, &[(":status", "200")]);
                let piece = frame::data(frame.stream, 0, "x");
                raw.send(&[head, piece].concat()).await?;
            }
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_stream_on_which_a_revoked_endpoint_says_nothing_ends_too() {
    let app = falls_silent().await;
    let fields = format!("{STRICT}\nprotocol: http2");
    let pki = Pki::new();
    let server = server(app.address(), &fields, &pki.files("reviews")).await;
    let text = file(server.inbound(), &fields).route(
        "default",
        &[("v1", 1)],
        "timeout: { request: 60s, attempt: 60s, idle: 60s }",
    );
    let spec = SidecarSpec::text("caller", &text.to_string());
    let caller = Sidecar::start(spec.identity(&pki.files("productpage"))).await;
    let mut client = Caller::open(caller.outbound()).await.unwrap();
    let stream = client.get("reviews", "/").await.unwrap();
    while client.so_far(stream).body.is_empty() {
        assert!(within("a piece", client.take()).await.unwrap());
    }
    caller
        .apply(&revoking(&by_identity("reviews"), &text.to_string()))
        .await;
    let reply = within("the stream's end", client.reply(stream)).await.unwrap();
    assert!(!reply.ended, "{reply:?}");
}

#[tokio::test]
async fn a_request_on_a_connection_from_before_is_answered_403_with_the_reason() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let server = server(app.address(), STRICT, &pki.files("reviews")).await;
    let once = file(server.inbound(), STRICT).route("default", &[("v1", 1)], "retry: { attempts: 1 }");
    // The second request comes by the connection of the first only where both are one thread's.
    let spec = SidecarSpec::text("caller", &once.to_string()).with("--workers", "1");
    let caller = Sidecar::start(spec.identity(&pki.files("productpage"))).await;
    let text = beside(app.address(), STRICT);
    // The look that cuts the connection comes once a second, and now and then before the request.
    let refused = eventually("a refusal that came before the cut", async || {
        is_answered(&caller).await;
        let asked = app.requests();
        server.apply(&revoking(&by_identity("productpage"), &text)).await;
        let reply = caller.client().get("reviews", "/").await;
        assert_ne!(reply.status(), 200);
        assert_eq!(app.requests(), asked);
        server.apply(&text).await;
        ((reply.status(), reply.reason()) == (403, Some("peer-revoked"))).then_some(())
    });
    Box::pin(refused).await;
    let labels = [("source", "spiffe://shop/productpage"), ("result", "refused")];
    assert!(server.metrics().await.sum(ASKED, &labels) >= 1.0);
}

#[tokio::test]
async fn what_is_revoked_does_not_wait_for_the_names_of_other_backends() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let dns = DnsServer::start("test").await;
    dns.behave(Manner::Silent);
    let text = beside(app.address(), STRICT);
    let spec = SidecarSpec::text("server", &text).beside("reviews");
    let server = Sidecar::start(spec.identity(&pki.files("reviews")).dns(dns.address())).await;
    let served = |metrics: &Metrics| metrics.sum("outrigger_config_pushes_total", &[("result", "applied")]);
    let before = served(&server.metrics().await);
    let slow =
        "kind: Service\nname: slow\nbackends: [{ name: v1, discover: { dns: slow.test, port: 80 } }]\n";
    server.rewrite(&revoking(
        &by_identity("productpage"),
        &format!("{text}\n---\n{slow}"),
    ));
    server
        .metrics_when("what is revoked, before the rest is served", |metrics| {
            let denied = metrics.sum("outrigger_revoked", &[("what", "identities")]);
            denied == 1.0 && served(metrics) == before
        })
        .await;
}

#[tokio::test]
async fn a_sidecar_that_is_revoked_itself_says_so_and_goes_on_and_a_refused_push_denies_nobody() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let mut server = server(app.address(), STRICT, &pki.files("reviews")).await;
    let caller = caller(&server, STRICT, &pki.files("productpage")).await;
    let text = beside(app.address(), STRICT);
    let denied = json!({ "serials": 0, "identities": 0, "own": null });
    assert_eq!(server.page("/certs").await.json()["revoked"], denied);
    let own = format!("serials: [\"4f\", \"5a\"], {}", by_identity("reviews"));
    server.apply(&revoking(&own, &text)).await;
    server
        .program()
        .logged("that it is revoked", |line| {
            line["level"] == "ERROR" && line["why"] == "the identity spiffe://shop/reviews is revoked"
        })
        .await;
    let denied =
        json!({ "serials": 2, "identities": 1, "own": "the identity spiffe://shop/reviews is revoked" });
    assert_eq!(server.page("/certs").await.json()["revoked"], denied);
    let metrics = server.metrics().await;
    let shown = |what| metrics.sum("outrigger_revoked", &[("what", what)]);
    assert_eq!((shown("serials"), shown("identities")), (2.0, 1.0));
    assert_eq!(caller.client().get("reviews", "/").await.status(), 200);

    let refused = revoking(&by_identity("productpage"), &format!("{text}no_such_field: 1\n"));
    server.rewrite(&refused);
    server
        .metrics_when("a refusal", |metrics| {
            metrics.sum("outrigger_config_pushes_total", &[("result", "refused")]) == 1.0
        })
        .await;
    assert_eq!(server.page("/certs").await.json()["revoked"], denied);
    assert_eq!(caller.client().get("reviews", "/").await.status(), 200);
    assert_eq!(server.metrics().await.sum(HANDSHAKES, &[]), 1.0);
}

#[tokio::test]
async fn what_an_operator_revokes_is_refused_by_every_sidecar_and_after_a_start_without_the_control_api_too()
{
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let files = [pki.files("reviews"), pki.files("productpage")];
    let mut api = ControlApi::start().await;
    let kept = tempfile::tempdir().unwrap();
    let last_good = kept.path().join("last-good.json");
    let spec = SidecarSpec::control("server", &api.url())
        .beside("reviews")
        .identity(&files[0])
        .last_good(&last_good);
    let mut server = Sidecar::launch(spec.clone()).await;
    let text = file(server.inbound(), STRICT).app(app.address());
    api.pushed(&format!("kind: Mesh\ntrust_domain: shop\n---\n{text}"))
        .await;
    server.is_ready().await;
    let caller = Sidecar::start(SidecarSpec::control("caller", &api.url()).identity(&files[1])).await;
    assert_eq!(caller.client().get("reviews", "/").await.status(), 200);

    let revoke = ["revoke", "--identity", "spiffe://shop/productpage", "--api"];
    let revoke: Vec<String> = revoke.map(str::to_owned).into_iter().chain([api.url()]).collect();
    outrigger(&revoke).await.ok();
    let refused = async || {
        eventually("a refusal", async || {
            let reply = caller.client().get("reviews", "/").await;
            (reply.reason() == Some("identity-refused")).then_some(())
        })
        .await;
    };
    refused().await;
    // The caller's own sidecar has been told as well.
    eventually("it to say so", async || {
        caller.page("/certs").await.json()["revoked"]["own"]
            .is_string()
            .then_some(())
    })
    .await;

    eventually("the list on disk", async || {
        let text = std::fs::read_to_string(&last_good).ok()?;
        text.contains("spiffe://shop/productpage").then_some(())
    })
    .await;
    api.kill();
    let inbound = server.inbound();
    server.program().kill();
    let asked = app.requests();
    let server = Sidecar::start(spec.inbound_at(inbound)).await;
    assert_eq!(server.config().await["source"], "disk");
    refused().await;
    assert_eq!(app.requests(), asked);
}
