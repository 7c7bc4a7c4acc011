//! The API over TLS: who is known by what, and renewal by the certificate itself.

use std::process::Command;

use outrigger_tests::outrigger;
use outrigger_tests::program::Program;
use serde_json::json;

use super::{Desk, run};

/// What curl is told to show the certificate that was kept.
pub(super) const SHOWN: &str = "--cacert known.pem --cert chain.pem --key key.pem";

/// A desk over TLS whose roots stand in `known.pem` and whose first certificate was kept, and its serial number.
pub(super) async fn joined() -> (Desk, String) {
    let desk = Desk::over_tls(&["--name", "control.example"]).await;
    let roots = desk.run("ca bundle").await.ok().stdout;
    std::fs::write(desk.path().join("known.pem"), &roots).unwrap();
    let token = desk.token("reviews", 1, "1h").await;
    // curl verifies the chain and the address by the roots.
    let (status, first) = desk.post(
        &json!({ "csr": desk.csr(), "token": token }),
        "--cacert known.pem",
    );
    assert_eq!(status, 200, "{first}");
    desk.keep(&first);
    let serial = first["serial"].as_str().unwrap().to_owned();
    (desk, serial)
}

#[tokio::test]
async fn a_certificate_renews_itself_and_nothing_else() {
    let (desk, serial) = joined().await;
    let (status, second) = desk.post(&json!({ "csr": desk.csr() }), SHOWN);
    assert_eq!(
        (status, &second["spiffe_id"]),
        (200, &json!("spiffe://mesh.local/reviews")),
        "{second}"
    );
    assert_ne!(second["serial"], serial);
    let (status, refused) = desk.post(&json!({ "csr": desk.csr(), "service": "ratings" }), SHOWN);
    assert_eq!((status, &refused["reason"]), (403, &json!("other-service")));
    let (status, refused) = desk.post(&json!({ "csr": desk.csr() }), "--cacert known.pem");
    assert_eq!((status, &refused["reason"]), (401, &json!("no-credential")));
    let words = desk.audited().await;
    assert_eq!(super::times(&words, "renewed"), 1, "{words:?}");
}

#[tokio::test]
async fn a_certificate_that_is_refused_in_the_handshake_is_written_down_and_no_more_often_than_it_helps() {
    let (desk, _) = joined().await;
    let other = joined().await.0;
    let stranger = other.path().display();
    let shown = format!("--cacert known.pem --cert {stranger}/chain.pem --key {stranger}/key.pem");
    let call = format!("curl -sS {shown} {}/live", desk.url);
    for _ in 0..25 {
        assert!(!run(desk.path(), &call).status.success());
    }
    let told = desk.api.logged("the refusal", |line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.starts_with("a client certificate was refused"))
    });
    let told = told.await;
    assert_eq!(
        (&told["level"], &told["source"]),
        (&json!("WARN"), &json!("127.0.0.1"))
    );
    let list = desk.run("audit --json").await.ok().json();
    let rows = list["rows"].as_array().unwrap().iter();
    let rows: Vec<_> = rows.filter(|row| row["deed"] == "handshake-refused").collect();
    // As many as a source may have in a row, and few more for the time that it took.
    assert!((20..25).contains(&rows.len()), "{rows:?}");
    let note = rows[0]["note"].as_str().unwrap();
    assert!(note.contains("none of the roots that are trusted here"), "{note}");
    assert_eq!(rows[0]["source"], "127.0.0.1");
    // Who is no client of TLS at all is no news.
    let _ = run(
        desk.path(),
        &format!("curl -sS {}", desk.url.replace("https", "http")),
    );
    let words = desk.audited().await;
    assert_eq!(super::times(&words, "handshake-refused"), rows.len());
    let shown = desk.run("audit").await.ok().stdout;
    assert!(shown.contains("handshake-refused"), "{shown}");
}

#[tokio::test]
async fn the_tool_knows_the_api_by_its_root_and_by_nothing_else() {
    let (mut desk, _) = joined().await;
    desk.run("status").await.ok();
    let known = desk.path().join("known.pem").display().to_string();
    desk.known_by.clear();
    desk.run(&format!("status --api-ca {known}")).await.ok();
    let not_meant = "not the control API that was meant";
    for first in ["A", "-"] {
        let other = format!("{first}{}", "A".repeat(42));
        let ended = desk.run(&format!("status --ca-fingerprint {other}")).await;
        assert!(
            ended.code == 1 && ended.stderr.contains(not_meant),
            "{}",
            ended.stderr
        );
        let why = format!("it shows no root of the fingerprint {other}, by which it is to be known");
        assert!(ended.stderr.contains(&why), "{}", ended.stderr);
        assert!(!ended.stderr.contains("Is it running?"), "{}", ended.stderr);
    }
    let ended = desk.run("status").await;
    assert!(
        ended.code == 1 && ended.stderr.contains("--ca-fingerprint"),
        "{}",
        ended.stderr
    );

    // A workload of the mesh is not the control API, though the same root vouches for it.
    let mut command = Command::new("openssl");
    let arguments = "s_server -accept 127.0.0.1:0 -cert chain.pem -key key.pem -cert_chain known.pem -www";
    command.current_dir(desk.path()).args(arguments.split(' '));
    let impostor = Program::spawn("an impostor", command);
    let line = impostor
        .printed("that it accepts", |line| line.starts_with("ACCEPT "))
        .await;
    let address = line.strip_prefix("ACCEPT ").unwrap().trim();
    let url = format!("https://{address}");
    let ended = outrigger(&["status", "--api", &url, "--api-ca", &known]).await;
    let why = "it is spiffe://mesh.local/reviews, and spiffe://…/outrigger/control is meant";
    assert!(
        ended.code == 1 && ended.stderr.contains(not_meant) && ended.stderr.contains(why),
        "{}",
        ended.stderr
    );
    // Plaintext where TLS is spoken, and TLS where plaintext is.
    let plain = desk.url.replace("https", "http");
    let ended = outrigger(&["status", "--api", &plain]).await;
    assert!(ended.stderr.contains("ask it by https://"), "{}", ended.stderr);
    let other = Desk::new(&[]).await;
    let url = other.url.replace("http", "https");
    let ended = outrigger(&["status", "--api", &url, "--api-ca", &known]).await;
    let why = "does it speak plaintext there?";
    assert!(ended.stderr.contains(why), "{}", ended.stderr);
}
