//! Who may poll for a configuration over TLS: whoever its certificate says, and nobody else in its name.

use outrigger_tests::pki::Issued;
use outrigger_tests::{IdentityFiles, Sidecar, SidecarSpec, within};
use serde_json::{Value, json};

use super::over_tls::{SHOWN, joined};
use super::*;

/// Polls once by curl as this node, and gives the status and the answer.
fn poll(desk: &Desk, id: &str, service: &str, further: &str) -> (u16, String) {
    let body = json!({ "node": { "id": id, "service": service }, "want": ["*"], "hold": "0s" });
    let file = desk.path().join("poll.json");
    std::fs::write(&file, body.to_string()).unwrap();
    let command = format!(
        "curl -sS -w \\n%{{http_code}} --data @{} {further} {}/v1/discovery",
        file.display(),
        desk.url
    );
    let answer = ran(desk.path(), &command);
    let (body, status) = answer.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

async fn nodes(desk: &Desk) -> Vec<Value> {
    let list = desk.run("status --json").await.ok().json();
    list["nodes"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_poll_by_a_certificate_is_of_the_service_that_the_certificate_names() {
    let (desk, serial) = joined().await;
    let (status, said) = poll(&desk, "a", "ratings", SHOWN);
    assert_eq!(status, 403, "{said}");
    for words in ["spiffe://mesh.local/reviews", "`ratings`", "--service reviews"] {
        assert!(said.contains(words), "{words} is not in {said}");
    }
    assert!(nodes(&desk).await.is_empty(), "who was refused is no node");
    assert!(poll(&desk, "a", "reviews", SHOWN).0 < 300);
    // Without a certificate the same name is another node, which takes nothing from the first.
    assert!(poll(&desk, "a", "reviews", "--cacert known.pem").0 < 300);
    let seen = nodes(&desk).await;
    let verified: Vec<_> = seen.iter().map(|node| node["verified"].clone()).collect();
    assert_eq!(verified, [false, true], "{seen:?}");
    assert_eq!(seen[1]["identity"]["spiffe_id"], "spiffe://mesh.local/reviews");

    desk.run(&format!("revoke --serial {serial}")).await.ok();
    let node = |seen: &[Value], verified: bool| {
        let mut of = seen.iter().filter(|node| node["verified"] == verified);
        of.next().unwrap().clone()
    };
    assert_eq!(node(&nodes(&desk).await, true)["revoked"], true);
    assert_eq!(node(&nodes(&desk).await, false)["revoked"], false);
    assert!(poll(&desk, "b", "reviews", SHOWN).0 < 300);
    let seen = nodes(&desk).await;
    let b = seen.iter().find(|node| node["id"] == "b").unwrap();
    assert_eq!(
        (&b["verified"], &b["revoked"]),
        (&json!(false), &json!(true)),
        "what is revoked proves nothing"
    );
    let shown = desk.run("status").await.ok().stdout;
    assert!(shown.contains("spiffe://mesh.local/reviews revoked"), "{shown}");
}

#[tokio::test]
async fn where_identity_is_required_nobody_without_a_certificate_is_told_the_configuration() {
    let desk = Desk::over_tls(&["--require-identity"]).await;
    let roots = desk.run("ca bundle").await.ok().stdout;
    std::fs::write(desk.path().join("known.pem"), &roots).unwrap();
    let (status, said) = poll(&desk, "a", "reviews", "--cacert known.pem");
    assert_eq!(status, 401, "{said}");
    assert!(
        said.contains("token") && said.contains("--require-identity"),
        "{said}"
    );
    let told = desk.api.logged("the refusal", |line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.starts_with("a poll was refused"))
    });
    assert_eq!(told.await["node"], "a");

    // One that joins is told as soon as it has its certificate.
    let token = desk.token("reviews", 1, "10m").await;
    let spec = SidecarSpec::control("reviews-1", &desk.url).beside("reviews");
    let sidecar = Sidecar::launch(spec.environment("OUTRIGGER_TOKEN", &token)).await;
    sidecar.is_ready().await;
    let seen = nodes(&desk).await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(
        (&seen[0]["id"], &seen[0]["verified"]),
        (&json!("reviews-1"), &json!(true))
    );
}

#[tokio::test]
async fn a_poll_that_is_held_is_not_answered_to_who_is_revoked_meanwhile() {
    let desk = Desk::over_tls(&["--require-identity"]).await;
    let roots = desk.run("ca bundle").await.ok().stdout;
    std::fs::write(desk.path().join("known.pem"), &roots).unwrap();
    let body = json!({ "csr": desk.csr(), "token": desk.token("reviews", 1, "1h").await });
    let (status, answer) = desk.post(&body, "--cacert known.pem");
    assert_eq!(status, 200, "{answer}");
    desk.keep(&answer);
    // It holds the version that there is, so that the next news is its own revocation.
    let body =
        json!({ "node": { "id": "a", "service": "reviews" }, "want": ["*"], "version": "0", "hold": "50s" });
    let poll = format!(
        "-sS -w \\n%{{http_code}} --data {body} {SHOWN} {}/v1/discovery",
        desk.url
    );
    let mut curl = tokio::process::Command::new("curl");
    curl.args(poll.split(' '))
        .current_dir(desk.path())
        .kill_on_drop(true);
    let held = tokio::spawn(async move { curl.output().await.unwrap() });
    eventually("the poll to be held", async || {
        let seen = nodes(&desk).await;
        seen.iter().any(|node| node["connected"] == true).then_some(())
    })
    .await;
    let serial = answer["serial"].as_str().unwrap();
    desk.run(&format!("revoke --serial {serial}")).await.ok();
    let answer = within("the answer", held).await.unwrap();
    let answer = String::from_utf8(answer.stdout).unwrap();
    let (said, status) = answer.rsplit_once('\n').unwrap();
    assert_eq!(status, "403", "{said}");
    assert!(said.contains("is revoked") && !said.contains("changed"), "{said}");
}

#[tokio::test]
async fn a_sidecar_polls_by_its_new_certificate_as_soon_as_it_has_it() {
    let (desk, first) = joined().await;
    let read = |name: &str| std::fs::read_to_string(desk.path().join(name)).unwrap();
    let issued = Issued {
        certificate: read("chain.pem"),
        key: read("key.pem"),
    };
    let files = IdentityFiles::new(&issued, &read("known.pem"));
    let spec = SidecarSpec::control("reviews-1", &desk.url).beside("reviews");
    let _sidecar = Sidecar::launch(spec.identity(&files)).await;
    let shows = async |what: &str, revoked: bool| {
        eventually(what, async || {
            let seen = nodes(&desk).await;
            let is = |node: &&Value| node["revoked"] == revoked && node["connected"] == true;
            seen.iter().find(is).map(|_| ())
        })
        .await;
    };
    shows("the sidecar by its first certificate", false).await;
    let (status, second) = desk.post(&json!({ "csr": desk.csr() }), SHOWN);
    assert_eq!(status, 200, "{second}");
    let file = desk.path().join("mesh.yaml");
    std::fs::write(
        &file,
        format!("kind: Mesh\nrevoked: {{ serials: [\"{first}\"] }}\n"),
    )
    .unwrap();
    desk.run(&format!("push {}", file.display())).await.ok();
    shows("that its certificate is revoked", true).await;
    // A connection that was kept would go on under the first certificate, and a poll that is held tell of the second up to
    // 25 s later.
    desk.keep(&second);
    files.write("certificate.pem", &read("chain.pem"));
    shows("the sidecar by its second certificate", false).await;
}

#[tokio::test]
async fn a_sidecar_that_speaks_plaintext_to_an_api_over_tls_is_told_so_in_its_log() {
    let desk = Desk::over_tls(&[]).await;
    let spec = SidecarSpec::control("reviews-1", &desk.url.replace("https", "http"));
    let mut sidecar = Sidecar::launch(spec).await;
    let told = sidecar.program().logged("why", |line| {
        line["error"]
            .as_str()
            .is_some_and(|error| error.contains("name it by https://"))
    });
    told.await;
}

#[tokio::test]
async fn a_sidecar_says_so_when_the_api_speaks_tls_where_it_did_not_and_the_other_way() {
    let mut desk = Desk::new(&[]).await;
    let listen = desk.url.trim_start_matches("http://").to_owned();
    let mut sidecar = Sidecar::launch(SidecarSpec::control("a", &desk.url)).await;
    desk.api.kill();
    let said = |words: &'static str| {
        move |line: &Value| line["error"].as_str().is_some_and(|error| error.contains(words))
    };
    sidecar.program().logged("the outage", said("refused")).await;
    (desk.api, _) = serve(&desk.data(), &listen, &["--tls"]).await;
    sidecar
        .program()
        .logged("that TLS is spoken now", said("name it by https://"))
        .await;
    desk.api.kill();
    let files = outrigger_tests::Pki::new().files("reviews");
    let other = SidecarSpec::control("b", &format!("https://{listen}")).identity(&files);
    let mut other = Sidecar::launch(other).await;
    other.program().logged("the outage", said("refused")).await;
    (desk.api, _) = serve(&desk.data(), &listen, &[]).await;
    other
        .program()
        .logged(
            "that plaintext is spoken now",
            said("does it speak plaintext there?"),
        )
        .await;
}

#[tokio::test]
async fn over_tls_who_has_shown_no_certificate_is_unverified_though_it_is_the_only_one() {
    let desk = Desk::over_tls(&[]).await;
    let roots = desk.run("ca bundle").await.ok().stdout;
    std::fs::write(desk.path().join("known.pem"), roots).unwrap();
    assert!(poll(&desk, "a", "reviews", "--cacert known.pem").0 < 300);
    let shown = desk.run("status").await.ok().stdout;
    assert!(
        shown.contains("IDENTITY") && shown.contains("unverified"),
        "{shown}"
    );
}
