//! What is not to be trusted any more: the CA renews it no longer, and every sidecar is told.

use outrigger_tests::sidecar::SidecarSpec;
use outrigger_tests::{Sidecar, eventually};
use serde_json::{Value, json};

use super::Desk;
use super::over_tls::{SHOWN, joined};

/// The reason that a renewal by the certificate that was kept is refused with, or nothing.
fn renewal_refused(desk: &Desk) -> Option<String> {
    let (status, answer) = desk.post(&json!({ "csr": desk.csr() }), SHOWN);
    (status != 200).then(|| answer["reason"].as_str().unwrap().to_owned())
}

impl Desk {
    /// The serial numbers of the living certificates that these words ask for.
    async fn certificates(&self, words: &str) -> Vec<String> {
        let list = self
            .run(&format!("ca certificates --json {words}"))
            .await
            .ok()
            .json();
        let certificates = list["certificates"].as_array().unwrap().iter();
        certificates
            .map(|found| found["serial"].as_str().unwrap().to_owned())
            .collect()
    }
}

#[tokio::test]
async fn a_revocation_is_pushed_with_the_mesh_and_ends_renewal() {
    let (desk, serial) = joined().await;
    desk.run(&format!("revoke --serial {serial}")).await.ok();
    let mesh = desk.run("get @mesh").await.ok().stdout;
    assert!(mesh.contains(&serial), "{mesh}");
    assert_eq!(renewal_refused(&desk).as_deref(), Some("identity-revoked"));
    let again = desk.run(&format!("revoke --serial {serial}")).await.ok();
    assert!(again.stdout.contains("revoked already"), "{}", again.stdout);
    let ended = desk.run("revoke --serial not-hexadecimal").await;
    assert!(
        ended.code == 1 && ended.stdout.contains("is not a serial number"),
        "{ended:?}"
    );
    assert!(!ended.stdout.contains("denied all the same"), "{ended:?}");
    let ended = desk.run("revoke --token 0123456789abcdef").await;
    assert!(
        ended.code == 1 && ended.stderr.contains("there is no token"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn who_has_renewed_before_it_was_revoked_is_not_let_off() {
    let (desk, first) = joined().await;
    let (_, second) = desk.post(&json!({ "csr": desk.csr() }), SHOWN);
    desk.keep(&second);
    assert_eq!(renewal_refused(&desk), None);
    desk.run(&format!("revoke --serial {}", first.to_uppercase()))
        .await
        .ok();
    assert_eq!(renewal_refused(&desk).as_deref(), Some("identity-revoked"));
    // All three certificates of it are among what the sidecars are told.
    let mesh = desk.run("get @mesh").await.ok().stdout;
    let all = desk.certificates("--service reviews").await;
    assert_eq!(all.len(), 3);
    assert!(all.iter().all(|serial| mesh.contains(serial)), "{mesh}");
}

#[tokio::test]
async fn who_renews_at_the_very_moment_is_not_let_off() {
    let (desk, serial) = joined().await;
    let body = desk.path().join("body.json");
    std::fs::write(&body, json!({ "csr": desk.csr() }).to_string()).unwrap();
    let (folder, url) = (desk.path().to_owned(), &desk.url);
    let data = body.display();
    let ask = format!("curl -sS -H content-type:application/json --data @{data} {SHOWN} {url}/v1/identity");
    // Until it is refused.
    let renewing = std::thread::spawn(move || while super::ran(&folder, &ask).contains("not_after") {});
    desk.run(&format!("revoke --serial {serial}")).await.ok();
    let mesh = desk.run("get @mesh").await.ok().stdout;
    renewing.join().unwrap();
    let all = desk.certificates("--service reviews").await;
    let spared: Vec<_> = all.iter().filter(|serial| !mesh.contains(*serial)).collect();
    assert!(spared.is_empty(), "{spared:?} of {} are not revoked", all.len());
}

#[tokio::test]
async fn what_a_token_let_in_is_revoked_together_with_it_and_nobody_else() {
    let (desk, elsewhere) = joined().await;
    let stolen = desk.token("reviews", 3, "1h").await;
    let body = json!({ "csr": desk.csr(), "token": stolen });
    let (_, one) = desk.post(&body, "--cacert known.pem");
    let (_, other) = desk.post(&body, "--cacert known.pem");
    let id = stolen.split('.').nth(1).unwrap();
    let came_of_it = desk.certificates(&format!("--token {id}")).await;
    assert_eq!(came_of_it.len(), 2);
    desk.run(&format!("revoke --token {id}")).await.ok();

    let (status, refused) = desk.post(&body, "--cacert known.pem");
    assert_eq!((status, &refused["reason"]), (403, &json!("token-revoked")));
    let mesh = desk.run("get @mesh").await.ok().stdout;
    assert!(
        came_of_it.iter().all(|serial| mesh.contains(serial)) && !mesh.contains(&elsewhere),
        "{mesh}"
    );
    assert_eq!(renewal_refused(&desk), None);
    for answer in [&one, &other] {
        desk.keep(answer);
        assert_eq!(renewal_refused(&desk).as_deref(), Some("identity-revoked"));
    }
    // The list of what is alive says so, and what is trusted again it says of too.
    let marks = async || {
        let list = desk.run("ca certificates --json").await.ok().json();
        let all = list["certificates"].as_array().unwrap().clone();
        let of_token = all.into_iter().filter(|found| found["token"] == id);
        of_token.map(|found| found["revoked"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(marks().await, vec![json!(["serial", "join", "token"]); 2]);
    let table = desk.run("ca certificates").await.ok().stdout;
    assert_eq!(table.matches("serial, join, token").count(), 2, "{table}");
    desk.run(&format!("revoke --undo --token {id}")).await.ok();
    assert_eq!(marks().await, vec![json!(["token"]); 2]);
    assert_eq!(renewal_refused(&desk), None);
    let (_, refused) = desk.post(&body, "--cacert known.pem");
    assert_eq!(
        refused["reason"], "token-revoked",
        "the token itself stays taken back"
    );
    desk.run("revoke --identity spiffe://mesh.local/reviews")
        .await
        .ok();
    // One of the two was renewed meanwhile.
    assert_eq!(marks().await, vec![json!(["identity", "token"]); 3]);
}

#[tokio::test]
async fn a_push_of_a_file_from_before_lets_nobody_in_again() {
    let desk = Desk::new(&[]).await;
    let file = desk.path().join("mesh.yaml");
    std::fs::write(&file, "# ours\nkind: Mesh\ntrust_domain: shop\n").unwrap();
    let push = format!("push {}", file.display());
    desk.run(&push).await.ok();
    let (_, alive) = desk.join(&desk.token("reviews", 1, "1h").await);
    let alive = alive["serial"].as_str().unwrap();
    let identity = "spiffe://shop/old-batch";
    desk.run(&format!(
        "revoke --serial {alive} --serial 4f1c --identity {identity}"
    ))
    .await
    .ok();

    let refused = desk.run(&push).await;
    let said = "revoked: the push would trust again what is revoked, 3 in all";
    assert!(
        refused.code == 1 && refused.stdout.contains(said) && refused.stdout.contains("mesh.yaml:1:1"),
        "{refused:?}"
    );
    let refused = desk.run("delete @mesh").await;
    assert!(
        refused.code == 1 && refused.stdout.contains("would trust again"),
        "{refused:?}"
    );

    // One at a time is taken back: of what is not known here nobody can say that it has expired.
    desk.run(&format!("revoke --undo --serial {alive}")).await.ok();
    assert_eq!(desk.run(&push).await.code, 1);
    desk.run("revoke --undo --serial 4F:1c").await.ok();
    assert_eq!(desk.run(&push).await.code, 1);
    desk.run(&format!("revoke --undo --identity {identity}"))
        .await
        .ok();
    desk.run(&push).await.ok();
    let mesh = desk.run("get @mesh").await.ok().stdout;
    assert!(!mesh.contains("revoked"), "{mesh}");

    let list = desk.run("audit --json").await.ok().json();
    let rows = list["rows"].as_array().unwrap().iter();
    let told: Vec<String> = rows
        .filter(|row| row["deed"] == "revoked" || row["deed"] == "restored")
        .inspect(|row| assert!(row["who"].as_str().unwrap().ends_with("from 127.0.0.1"), "{row}"))
        .map(|row| {
            format!(
                "{} {}",
                row["deed"].as_str().unwrap(),
                row["note"].as_str().unwrap()
            )
        })
        .collect();
    let expected = [
        format!("revoked {alive} 4f1c {identity}"),
        format!("restored {alive}"),
        "restored 4f1c".to_owned(),
        format!("restored {identity}"),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_serial_number_is_the_same_with_zeros_before_it_wherever_it_is_named() {
    let (desk, serial) = joined().await;
    let file = desk.path().join("mesh.yaml");
    let push = async |text: &str| {
        std::fs::write(&file, text).unwrap();
        desk.run(&format!("push {}", file.display())).await
    };
    let revoked = format!("kind: Mesh\nrevoked: {{ serials: [\"00{serial}\"] }}\n");
    push(&revoked).await.ok();
    assert_eq!(renewal_refused(&desk).as_deref(), Some("identity-revoked"));
    let refused = push("kind: Mesh\n").await;
    assert!(
        refused.code == 1 && refused.stdout.contains("would trust again"),
        "{refused:?}"
    );
    // Written in another way it is the same: nothing is trusted again.
    push(&revoked.replace("\"00", "\"0")).await.ok();
    let again = desk.run(&format!("revoke --serial {serial}")).await.ok();
    assert!(again.stdout.contains("revoked already"), "{}", again.stdout);
    desk.run(&format!("revoke --undo --serial {serial}")).await.ok();
    let mesh = desk.run("get @mesh").await.ok().stdout;
    assert!(!mesh.contains(&serial), "{mesh}");
    assert_eq!(renewal_refused(&desk), None);
    // What came of the same join is found by it too.
    desk.run(&format!("revoke --serial 00{serial}")).await.ok();
    let all = desk.certificates("--service reviews").await;
    let mesh = desk.run("get @mesh").await.ok().stdout;
    assert!(
        all.len() == 2 && all.iter().all(|serial| mesh.contains(serial)),
        "{mesh}"
    );
}

#[tokio::test]
async fn sidecars_are_told_what_is_revoked_by_discovery_and_keep_it_on_disk() {
    let desk = Desk::new(&[]).await;
    let disk = desk.path().join("last-good.yaml");
    let spec = SidecarSpec::control("a", &desk.url).last_good(&disk);
    let sidecar = Sidecar::launch(spec).await;
    let identity = "spiffe://mesh.local/old-batch";
    desk.run(&format!(
        "revoke --serial 4f1c2a90d3b7e6815f0c9ab2d4e8f701 --identity {identity}"
    ))
    .await
    .ok();
    let told = |config: &Value| {
        let text = config.to_string();
        text.contains("4f1c2a90d3b7e6815f0c9ab2d4e8f701") && text.contains(identity)
    };
    sidecar.config_when("what is revoked", told).await;
    eventually("it to be on disk", async || {
        let kept = std::fs::read_to_string(&disk).ok()?;
        kept.contains(identity).then_some(())
    })
    .await;
    // The operator sees that it has it.
    let version = desk.run("get @mesh --json").await.ok().json()["version"].clone();
    eventually("the sidecar to be listed with it", async || {
        let list = desk.run("status --json").await.ok().json();
        let node = &list["nodes"][0];
        (node["state"] == "in-sync" && node["holds"] == version).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_identity_that_nobody_can_have_is_not_revoked_and_one_that_nobody_has_is_with_a_word() {
    let (desk, _) = joined().await;
    let revoke = async |identity: &str| desk.run(&format!("revoke --identity spiffe://{identity}")).await;
    let ended = revoke("other.domain/reviews").await;
    let why = "it is of the trust domain `other.domain`, and the mesh's is `mesh.local`";
    assert!(ended.code == 1 && ended.stderr.contains(why), "{ended:?}");
    let mesh = desk.run("get @mesh").await;
    assert!(!mesh.stdout.contains("other.domain"), "{mesh:?}");
    let word = "no certificate of this CA that is alive has the identity spiffe://mesh.local/ratings";
    let ended = revoke("mesh.local/ratings").await.ok();
    assert!(ended.stdout.contains(word), "{ended:?}");
    let ended = revoke("mesh.local/reviews").await.ok();
    assert!(!ended.stdout.contains("no certificate"), "{ended:?}");
}
