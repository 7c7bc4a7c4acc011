//! Who a caller is, its certificate says and nothing else: what it claims of itself reaches no application.

use std::net::SocketAddr;

use outrigger_tests::http2::{Caller as Http2, frame, frame::flag, request};
use outrigger_tests::upstream::Received;
use outrigger_tests::wait::within;
use outrigger_tests::{Ask, Client, Pki, TlsRelay, Upstream};

use crate::mtls::{caller, server};

/// What every forged line holds.
const CLAIM: &str = "By=spiffe://shop/reviews;Hash=00;URI=spiffe://shop/admin";

const PERMISSIVE: &str = "tls: { mode: permissive }";

/// What a caller may write in the hope that it is taken for what its sidecar says.
fn forgeries() -> Vec<(&'static str, Ask)> {
    let ask = || Ask::post("/", "0123456789").host("reviews");
    let line = "x-forwarded-client-cert";
    vec![
        ("one line", ask().header(line, CLAIM)),
        (
            "several lines among others",
            ask()
                .header(line, CLAIM)
                .header("x-kept", "1")
                .header(line, "URI=spiffe://shop/admin")
                .header(line, CLAIM),
        ),
        ("odd case", ask().header("X-FORWARDED-client-CERT", CLAIM)),
        (
            "underscores, which a CGI or WSGI server takes for hyphens",
            ask()
                .header("x_forwarded_client_cert", CLAIM)
                .header("X-Forwarded_Client-Cert", CLAIM)
                .header("x_outrigger_source", CLAIM),
        ),
        (
            "named in Connection, so that what the sidecar says would go",
            ask()
                .header(line, CLAIM)
                .header("connection", "X-Forwarded-Client-Cert, x-outrigger-source")
                .header("x-outrigger-source", CLAIM),
        ),
    ]
}

fn is_clean(what: &str, received: &Received, identity: Option<&str>) {
    let all = received.head.headers.iter().chain(&received.body.trailers);
    let forged: Vec<_> = all.filter(|(_, value)| value.contains("admin")).collect();
    assert_eq!(forged, Vec::<&(String, String)>::new(), "{what}");
    let said: Vec<_> = received.head.all("x-forwarded-client-cert").collect();
    match identity {
        None => assert_eq!(said, Vec::<&str>::new(), "{what}"),
        Some(identity) => {
            let [said] = said[..] else {
                panic!("{what}: {said:?}")
            };
            assert!(
                said.starts_with("By=spiffe://shop/reviews;Hash="),
                "{what}: {said}"
            );
            assert!(said.ends_with(&format!(";URI={identity}")), "{what}: {said}");
        }
    }
}

#[tokio::test]
async fn no_claim_about_itself_that_a_caller_sends_reaches_the_application_by_either_version() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let files = [pki.files("reviews"), pki.files("productpage")];
    let server = server(app.address(), PERMISSIVE, &files[0]).await;
    let sidecar = caller(&server, PERMISSIVE, &files[1]).await;
    let relay = async |alpn| TlsRelay::start(server.inbound(), Some(&files[1]), Some(alpn)).await;
    let (http1, http2) = (relay("http/1.1").await, relay("h2").await);
    let caller = Some("spiffe://shop/productpage");

    for (way, address, identity) in [
        ("plaintext", server.inbound(), None),
        ("TLS", http1.address(), caller),
        ("the caller's sidecar", sidecar.outbound(), caller),
    ] {
        for (what, ask) in forgeries() {
            let reply = Client::new(address).send(ask).await;
            assert_eq!(reply.status(), 200, "{way}, {what}: {reply:?}");
            is_clean(&format!("{way}, {what}"), &app.last(), identity);
        }
        let trailers = format!(
            "POST / HTTP/1.1\r\nhost: reviews\r\ntransfer-encoding: chunked\r\n\
             trailer: x-kept, x-forwarded-client-cert, x_forwarded_client_cert\r\n\r\n1\r\nx\r\n0\r\n\
             X-Forwarded-Client-Cert: {CLAIM}\r\nx_forwarded_client_cert: {CLAIM}\r\nx-kept: 1\r\n\r\n"
        );
        let mut connection = Client::new(address).connect().await;
        connection.wire().send(trailers.as_bytes()).await.unwrap();
        let reply = within("an answer", connection.reply_to("POST")).await.unwrap();
        assert_eq!(reply.status(), 200, "{way}: {reply:?}");
        let received = app.last();
        is_clean(&format!("{way}, trailers"), &received, identity);
        let kept = ("x-kept".to_owned(), "1".to_owned());
        assert_eq!(received.body.trailers, [kept], "{way}");
    }
    for (way, address, identity) in [
        ("plaintext", server.inbound(), None),
        ("TLS", http2.address(), caller),
        ("the caller's sidecar", sidecar.outbound(), caller),
    ] {
        forged_by_http2(way, address, &app, identity).await;
    }
}

async fn forged_by_http2(way: &str, address: SocketAddr, app: &Upstream, identity: Option<&str>) {
    let field = |name: &str| (name.to_owned(), CLAIM.to_owned());
    let mut caller = Http2::open(address).await.unwrap();
    let names = [
        "x-forwarded-client-cert",
        "x-forwarded-client-cert",
        "x_forwarded_client_cert",
        "x-outrigger-source",
    ];
    let mut head = request("POST", "reviews", "/");
    head.extend(names.map(field));
    let stream = caller.stream();
    let trailers = [field("x-forwarded-client-cert"), field("x_forwarded_client_cert")];
    let frames = [
        frame::headers(stream, 0, &head),
        frame::data(stream, 0, b"x"),
        frame::headers(stream, flag::END_STREAM, &trailers),
    ];
    caller.raw.send(&frames.concat()).await.unwrap();
    let reply = within("an answer", caller.reply(stream)).await.unwrap();
    assert_eq!(reply.status(), 200, "{way}: {reply:?}");
    is_clean(&format!("{way} by HTTP/2"), &app.last(), identity);
    // What would be another field by HTTP/1.1 is none by HTTP/2 (RFC 9113 section 8.2.1).
    let asked = app.requests();
    let mut head = request("GET", "reviews", "/");
    head.push(field("X-Forwarded-Client-Cert"));
    let stream = caller.stream();
    let odd = frame::headers(stream, flag::END_STREAM, &head);
    caller.raw.send(&odd).await.unwrap();
    let refused = within("a refusal", caller.reply(stream)).await;
    assert!(refused.is_err() || refused.unwrap().reset.is_some(), "{way}");
    assert_eq!(app.requests(), asked, "{way}");
}
