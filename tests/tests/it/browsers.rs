//! Web pages of anybody, in a browser on this machine: what trusts whoever is here does not take them for that.

use std::ffi::OsString;
use std::net::SocketAddr;

use outrigger_tests::client::{Ask, Client, Reply};
use outrigger_tests::program::Program;
use outrigger_tests::{ControlApi, Sidecar, SidecarSpec, outrigger};

/// What a browser says of a page: the name that it asks by, the origin of the page, and how both stand to each other.
type Said<'a> = (&'a str, Option<&'a str>, Option<&'a str>);

async fn asked(address: SocketAddr, ask: Ask, (host, origin, site): Said<'_>) -> Reply {
    let mut ask = ask.host(host).header("content-type", "text/plain");
    for (name, value) in [("origin", origin), ("sec-fetch-site", site)] {
        if let Some(value) = value {
            ask = ask.header(name, value);
        }
    }
    Client::new(address).send(ask).await
}

/// Pages that are not of the address that they ask, which is `own`.
fn pages_of_others(own: &str) -> Vec<Said<'_>> {
    vec![
        // A form, or a script, of some page.
        (own, Some("http://evil.example"), Some("cross-site")),
        (own, Some("http://evil.example"), None),
        (own, Some("null"), None),
        // Another program of this machine, whose page says what its users want it to.
        (own, Some("http://localhost:1"), Some("same-site")),
        (own, Some("http://127.0.0.1"), None),
        // A link or a picture.
        (own, None, Some("cross-site")),
        // A name of the page's own that resolves to this machine: for the browser all is of one origin.
        ("evil.example:9900", Some("http://evil.example:9900"), None),
        ("evil.example:9900", None, Some("same-origin")),
        ("127.0.0.1.evil.example", None, None),
        ("localhost.evil.example", None, None),
        ("10.1.2.3:9900", None, None),
    ]
}

#[tokio::test]
async fn a_web_page_in_a_browser_on_this_machine_is_no_operator() {
    let api = ControlApi::start().await;
    let (address, own) = (api.address(), api.address().to_string());
    let token = || Ask::post("/v1/tokens", r#"{"service":"payments","uses":100,"ttl":"720h"}"#);
    let asks = [
        token(),
        Ask::post("/v1/ca/rotation", ""),
        Ask::new("PUT", "/v1/config").body("kind: Mesh\n"),
        Ask::get("/v1/config"),
        Ask::get("/v1/nodes"),
    ];
    for said in pages_of_others(&own) {
        for ask in &asks {
            let reply = asked(address, ask.clone(), said).await;
            assert_eq!(reply.status(), 403, "{ask:?} {said:?}: {}", reply.text());
            let sentence = reply.json()["error"].as_str().unwrap().to_owned();
            assert!(sentence.contains("operator token"), "{sentence}");
        }
    }
    let reply = asked(address, Ask::get("/v1/ca"), ("evil.example", None, None)).await;
    assert!(reply.text().contains("--name evil.example"), "{}", reply.text());
    // Nothing was done, and it is written down who asked.
    let tokens = api.get("/v1/tokens").await.json();
    assert_eq!(tokens["tokens"].as_array().unwrap().len(), 0, "{tokens}");
    let audit = api.get("/v1/audit").await.json();
    let rows = audit["rows"].as_array().unwrap();
    let refused = rows.iter().find(|row| row["deed"] == "operator-refused").unwrap();
    let note = refused["note"].as_str().unwrap();
    assert!(note.contains("http://evil.example"), "{note}");
    // Whoever is meant: tools, a page of the API's own, and an address that a person has typed.
    let origin = format!("http://{own}");
    for said in [
        (own.as_str(), None, None),
        (own.as_str(), Some(origin.as_str()), Some("same-origin")),
        (own.as_str(), None, Some("none")),
        ("localhost:8080", Some("http://localhost:8080"), None),
        ("LOCALHOST", None, None),
        ("127.9.9.9:9900", None, None),
        ("[::1]:9900", None, None),
    ] {
        let reply = asked(address, token(), said).await;
        assert_eq!(reply.status(), 201, "{said:?}: {}", reply.text());
    }
    let by_name = format!("http://localhost:{}", address.port());
    outrigger(&["status", "--api", &by_name]).await.ok();
}

#[tokio::test]
async fn a_web_page_is_no_sidecar_and_a_sidecar_asks_by_whatever_name() {
    let api = ControlApi::start().await;
    let poll = || Ask::post("/v1/discovery", r#"{"node":{"id":"a"},"want":["*"],"hold":"0s"}"#);
    let identity = || Ask::post("/v1/identity", "{}");
    for (origin, site) in [(Some("http://evil.example"), None), (None, Some("same-origin"))] {
        for ask in [poll(), identity()] {
            let said = ("evil.example", origin, site);
            let reply = asked(api.address(), ask, said).await;
            assert_eq!(reply.status(), 403, "{said:?}: {}", reply.text());
        }
    }
    assert_eq!(api.nodes().await["nodes"].as_array().unwrap().len(), 0);
    let reply = asked(api.address(), poll(), ("control.shop.internal:9900", None, None)).await;
    assert!(reply.status() < 300, "{}", reply.text());
}

#[tokio::test]
async fn a_name_that_the_api_was_given_is_its_own_and_the_operator_token_is_heard_by_any_name() {
    let data = tempfile::tempdir().unwrap();
    let mut arguments: Vec<OsString> = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--name",
        "Control.internal",
        "--data",
    ]
    .map(OsString::from)
    .to_vec();
    arguments.push(data.path().into());
    let program = Program::start("control API", "outrigger", &arguments);
    let address = program.listening("api").await;
    let ask = |host: &str| {
        let ask = Ask::get("/v1/ca").host(host);
        async move { Client::new(address).send(ask).await.status() }
    };
    for (host, status) in [
        ("control.internal:9900", 200),
        ("control.internal.", 200),
        ("127.0.0.1", 200),
        ("other.internal", 403),
    ] {
        assert_eq!(ask(host).await, status, "{host}");
    }
    let token = std::fs::read_to_string(data.path().join("operator.token")).unwrap();
    let by_token = Ask::get("/v1/ca")
        .host("other.internal")
        .header("authorization", &format!("Bearer {}", token.trim()));
    assert_eq!(Client::new(address).send(by_token).await.status(), 200);
}

#[tokio::test]
async fn a_web_page_in_a_browser_on_this_machine_reads_no_admin_page() {
    let sidecar = Sidecar::start(SidecarSpec::text("reviews-1", "kind: Mesh\n")).await;
    let own = sidecar.admin().to_string();
    for said in pages_of_others(&own) {
        for path in ["/config", "/certs", "/clusters"] {
            let reply = asked(sidecar.admin(), Ask::get(path), said).await;
            assert_eq!(reply.status(), 403, "{path} {said:?}: {}", reply.text());
            assert!(reply.text().contains("127.0.0.1"), "{}", reply.text());
        }
        // What the network may ask too is for everybody.
        for path in ["/live", "/metrics"] {
            assert_eq!(asked(sidecar.admin(), Ask::get(path), said).await.status(), 200);
        }
    }
    for host in [own.as_str(), "localhost:9902", "[::1]"] {
        let reply = asked(sidecar.admin(), Ask::get("/config"), (host, None, Some("none"))).await;
        assert_eq!(reply.status(), 200, "{host}");
    }
}
