//! One root follows another: one command starts it, one finishes it, and in between who knows either is at home.

use outrigger_tests::eventually;
use serde_json::{Value, json};

use super::{Desk, ran, run, serve};

/// A desk over TLS whose first root stands in `old.pem`.
async fn desk() -> Desk {
    let desk = Desk::over_tls(&[]).await;
    let old = desk.run("ca bundle").await.ok().stdout;
    std::fs::write(desk.path().join("old.pem"), old).unwrap();
    desk
}

impl Desk {
    /// How the CA stands.
    async fn status(&self) -> Value {
        self.run("ca rotate status --json").await.ok().json()
    }

    /// The states of the roots, oldest first.
    async fn states(&self) -> Vec<String> {
        let status = self.status().await;
        let roots = status["roots"].as_array().unwrap().iter();
        roots
            .map(|root| root["state"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Writes the newest root into `new.pem` and gives its fingerprint.
    async fn newest_root(&self) -> String {
        let status = self.status().await;
        let root = status["roots"].as_array().unwrap().last().unwrap();
        std::fs::write(self.path().join("new.pem"), root["certificate"].as_str().unwrap()).unwrap();
        root["fingerprint"].as_str().unwrap().to_owned()
    }

    /// Whether curl, which trusts this file alone, takes the API for what it is.
    fn is_known_by(&self, file: &str) -> bool {
        let command = format!("curl -sS -o /dev/null --cacert {file} {}/v1/services", self.url);
        run(self.path(), &command).status.success()
    }

    /// The rows of the audit log about roots: what, which, by whom.
    async fn root_rows(&self) -> Vec<(String, String, String)> {
        let list = self.run("audit --json").await.ok().json();
        let word = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
        let rows = list["rows"].as_array().unwrap().iter();
        rows.filter(|row| row["deed"].as_str().unwrap().starts_with("root-"))
            .map(|row| (word(row, "deed"), word(row, "serial"), word(row, "who")))
            .collect()
    }
}

#[tokio::test]
async fn while_two_roots_overlap_who_knows_either_joins_and_afterwards_the_new_one_alone_is_known() {
    let mut desk = desk().await;
    let early = desk.token("reviews", 5, "1h").await;
    desk.run("ca rotate start").await.ok();
    assert_eq!(desk.states().await, ["active", "next"]);
    let again = desk.run("ca rotate start").await;
    assert!(
        again.code == 1 && again.stderr.contains("under way already"),
        "{again:?}"
    );
    let of_new = desk.newest_root().await;

    // No sidecar has to be told of the new root first, so it signs what is asked for next.
    let body = json!({ "csr": desk.csr(), "token": early });
    let (status, answer) = desk.post(&body, "--cacert old.pem");
    assert_eq!(status, 200, "{answer}");
    desk.keep(&answer);
    assert_eq!(answer["bundle"].as_array().unwrap().len(), 2);
    ran(
        desk.path(),
        "openssl verify -x509_strict -CAfile new.pem chain.pem",
    );
    assert!(
        !run(desk.path(), "openssl verify -CAfile old.pem chain.pem")
            .status
            .success()
    );
    assert_eq!(desk.states().await, ["retiring", "active"]);

    // The API is under the new root, and the old one vouches for it.
    eventually("the API under the new root", async || {
        desk.is_known_by("new.pem").then_some(())
    })
    .await;
    assert!(desk.is_known_by("old.pem"));
    assert_eq!(desk.post(&body, "--cacert old.pem").0, 200);
    let by_old = desk.known_by.clone();
    desk.run("status").await.ok();
    desk.known_by[1].clone_from(&of_new);
    desk.run("status").await.ok();
    let late = desk.token("reviews", 1, "1h").await;
    assert!(late.ends_with(&of_new) && early.ends_with(&by_old[1]));

    // Who joins by a token that names the old root would be lost: it is held until there is none.
    let held = desk.run("ca rotate finish").await;
    let said = "1 tokens that are good name the old root";
    assert!(held.code == 1 && held.stderr.contains(said), "{held:?}");
    let id = early.split('.').nth(1).unwrap();
    assert!(held.stderr.contains(id), "{held:?}");
    desk.run(&format!("token revoke {id}")).await.ok();
    let finished = desk.run("ca rotate finish").await.ok().stdout;
    let known_by = format!("\nexport OUTRIGGER_CA_FINGERPRINT={of_new}\n");
    assert!(finished.contains(&known_by), "{finished}");
    assert_eq!(desk.states().await, ["active"]);
    assert!(!desk.data().join("ca/root-1.key").exists());
    assert!(desk.data().join("ca/root-2.key").exists());
    eventually("the old root to be unknown", async || {
        (!desk.is_known_by("old.pem")).then_some(())
    })
    .await;
    let body = json!({ "csr": desk.csr(), "token": late });
    let (status, answer) = desk.post(&body, "--cacert new.pem");
    assert_eq!((status, answer["bundle"].as_array().unwrap().len()), (200, 1));
    desk.known_by = by_old;
    assert_eq!(desk.run("status").await.code, 1);
}

#[tokio::test]
async fn a_new_root_waits_for_the_sidecars_that_do_not_know_it_and_a_restart_does_not_change_that() {
    let mut desk = desk().await;
    let token = desk.token("reviews", 1, "1h").await;
    let (_, first) = desk.post(&json!({ "csr": desk.csr(), "token": token }), "--cacert old.pem");
    desk.keep(&first);
    desk.run("ca rotate start").await.ok();
    desk.api.kill();
    let address = desk.url.strip_prefix("https://").unwrap().to_owned();
    (desk.api, desk.url) = serve(&desk.data(), &address, &["--tls"]).await;

    // It is told of both, and still signed by the one that all know.
    let shown = "--cacert old.pem --cert chain.pem --key key.pem";
    let (status, second) = desk.post(&json!({ "csr": desk.csr() }), shown);
    assert_eq!(status, 200, "{second}");
    assert_eq!(second["bundle"].as_array().unwrap().len(), 2);
    desk.keep(&second);
    ran(
        desk.path(),
        "openssl verify -x509_strict -CAfile old.pem chain.pem",
    );
    let status = desk.status().await;
    assert_eq!(
        (&status["certificates"], &status["without_newest_root"]),
        (&json!(2), &json!(1)),
        "{status}"
    );
    let held = desk.run("ca rotate finish").await;
    let said = "the new root does not sign yet: 1 certificates are alive that were handed out without it";
    assert!(held.code == 1 && held.stderr.contains(said), "{held:?}");
    assert_eq!(desk.states().await, ["active", "next"]);
}

#[tokio::test]
async fn the_audit_log_says_when_which_root_came_signed_and_went_and_by_whose_word() {
    let desk = Desk::new(&[]).await;
    desk.run("ca rotate start").await.ok();
    desk.join(&desk.token("reviews", 1, "1h").await);
    desk.run("ca rotate finish").await.ok();
    let rows = desk.root_rows().await;
    let told: Vec<_> = rows
        .iter()
        .map(|(deed, root, who)| (deed.as_str(), root.as_str(), who.ends_with("from 127.0.0.1")))
        .collect();
    let expected = [
        ("root-added", "1", false),
        ("root-added", "2", true),
        ("root-active", "2", false),
        ("root-removed", "1", true),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_rotation_that_cannot_be_is_refused_with_what_to_do() {
    let desk = Desk::new(&[]).await;
    let none = desk.run("ca rotate finish").await;
    assert!(
        none.code == 1 && none.stderr.contains("`outrigger ca rotate start` begins one"),
        "{none:?}"
    );
    let none = desk.run("ca rotate sign").await;
    assert!(
        none.code == 1 && none.stderr.contains("there is no root that does not sign yet"),
        "{none:?}"
    );
    assert_eq!(desk.states().await, ["active"]);
}
