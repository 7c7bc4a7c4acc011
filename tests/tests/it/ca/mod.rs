//! The certificate authority of the control API, seen by openssl and curl: what it issues, and what it refuses.

mod abuse;
mod given;
mod joined;
mod long_polls;
mod over_tls;
mod polls;
mod revocation;
mod rotation;
mod stolen_root;

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use outrigger_tests::cli::Ended;
use outrigger_tests::program::Program;
use outrigger_tests::{eventually, outrigger};
use serde_json::{Value, json};

/// A control API with a folder for keys and requests.
struct Desk {
    api: Program,
    url: String,
    folder: tempfile::TempDir,
    /// By what the tool knows the API, if that is served over TLS.
    known_by: Vec<String>,
}

/// Starts `outrigger serve` on this folder, with these further arguments.
async fn serve(data: &Path, listen: &str, further: &[&str]) -> (Program, String) {
    let mut arguments: Vec<OsString> = ["serve", "--listen", listen, "--data"]
        .map(OsString::from)
        .to_vec();
    arguments.push(data.into());
    arguments.extend(further.iter().map(OsString::from));
    let program = Program::start("control API", "outrigger", &arguments);
    let address = program.listening("api").await;
    let scheme = if further.contains(&"--tls") {
        "https"
    } else {
        "http"
    };
    (program, format!("{scheme}://{address}"))
}

/// Runs a program of the system with these words as arguments.
fn run(folder: &Path, command: &str) -> Output {
    let mut words = command.split_whitespace();
    let name = words.next().unwrap();
    let ended = Command::new(name).args(words).current_dir(folder).output();
    ended.unwrap_or_else(|error| panic!("cannot run {name}: {error}"))
}

/// The same, which must succeed; gives what it printed.
fn ran(folder: &Path, command: &str) -> String {
    let ended = run(folder, command);
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{command}: {errors}");
    String::from_utf8(ended.stdout).unwrap()
}

/// What openssl needs to be told to make a key.
const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

impl Desk {
    async fn new(further: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (api, url) = serve(&folder.path().join("data"), "127.0.0.1:0", further).await;
        // A request that asks for much more than it is given.
        let asks = "-subj /CN=admin -addext basicConstraints=critical,CA:TRUE \
                    -addext subjectAltName=URI:spiffe://mesh.local/admin,DNS:admin.example";
        ran(
            folder.path(),
            &format!("openssl req -new {NEW_KEY} -keyout key.pem -out csr.pem {asks}"),
        );
        let known_by = Vec::new();
        Self {
            api,
            url,
            folder,
            known_by,
        }
    }

    /// One that is served over TLS, which the tool knows by the fingerprint that it logs.
    async fn over_tls(further: &[&str]) -> Self {
        let mut desk = Self::new(&[&["--tls"], further].concat()).await;
        let ready = desk
            .api
            .logged("its root", |line| line["message"] == "the CA is ready")
            .await;
        desk.known_by = vec![
            "--ca-fingerprint".to_owned(),
            ready["root"].as_str().unwrap().to_owned(),
        ];
        desk
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// Runs the tool with these words as arguments.
    async fn run(&self, words: &str) -> Ended {
        let mut all: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        all.extend(["--api".to_owned(), self.url.clone()]);
        all.extend(self.known_by.iter().cloned());
        outrigger(&all).await
    }

    async fn token(&self, service: &str, uses: u32, ttl: &str) -> String {
        let ended = self
            .run(&format!(
                "token create --service {service} --uses {uses} --ttl {ttl}"
            ))
            .await;
        ended.ok().stdout.trim().to_owned()
    }

    /// Posts this body by curl, and gives the status and the answer.
    fn post(&self, body: &Value, further: &str) -> (u16, Value) {
        let file = self.path().join(format!("body-{}.json", fastrand::u64(..)));
        std::fs::write(&file, body.to_string()).unwrap();
        let command = format!(
            "curl -sS -w \\n%{{http_code}} -H content-type:application/json --data @{} {further} {}/v1/identity",
            file.display(),
            self.url
        );
        let answer = ran(self.path(), &command);
        let (body, status) = answer.rsplit_once('\n').unwrap();
        let body = serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON: {answer}"));
        (status.parse().unwrap(), body)
    }

    fn csr(&self) -> String {
        std::fs::read_to_string(self.path().join("csr.pem")).unwrap()
    }

    /// Joins with a token.
    fn join(&self, token: &str) -> (u16, Value) {
        self.post(&json!({ "csr": self.csr(), "token": token }), "")
    }

    /// The request of somebody else: for another key.
    fn other_csr(&self) -> String {
        let name = format!("other-{}", fastrand::u64(..));
        let files = format!("-keyout {name}.key -out {name}.csr -subj /CN=other");
        ran(self.path(), &format!("openssl req -new {NEW_KEY} {files}"));
        std::fs::read_to_string(self.path().join(format!("{name}.csr"))).unwrap()
    }

    /// Joins as somebody else: the same key is answered again, since the answer may have been lost.
    fn join_as_other(&self, token: &str) -> (u16, Value) {
        self.post(&json!({ "csr": self.other_csr(), "token": token }), "")
    }

    /// Writes the certificates and the roots of an answer into files.
    fn keep(&self, answer: &Value) {
        for (name, field) in [("chain.pem", "certificates"), ("roots.pem", "bundle")] {
            let parts = answer[field]
                .as_array()
                .unwrap()
                .iter()
                .map(|part| part.as_str().unwrap());
            std::fs::write(self.path().join(name), parts.collect::<String>()).unwrap();
        }
    }

    /// What the audit log says of each row: the deed, or the reason of a refusal.
    async fn audited(&self) -> Vec<String> {
        let list = self.run("audit --json").await.ok().json();
        let word = |row: &Value| {
            let reason = row["reason"].as_str();
            reason.or_else(|| row["deed"].as_str()).unwrap().to_owned()
        };
        list["rows"].as_array().unwrap().iter().map(word).collect()
    }

    /// What is listed of a token.
    async fn listed(&self, token: &str) -> Value {
        let id = token.split('.').nth(1).unwrap();
        let list = self.run("token list --json").await.ok().json();
        let mut tokens = list["tokens"].as_array().unwrap().iter();
        tokens.find(|token| token["id"] == id).unwrap().clone()
    }
}

/// How often a word stands in the log.
fn times(words: &[String], word: &str) -> usize {
    words.iter().filter(|found| *found == word).count()
}

#[tokio::test]
async fn a_workload_that_joins_is_given_a_certificate_that_openssl_verifies() {
    let desk = Desk::new(&[]).await;
    let token = desk.token("reviews", 1, "1h").await;
    let (status, answer) = desk.join(&token);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["spiffe_id"], "spiffe://mesh.local/reviews");
    desk.keep(&answer);
    let folder = desk.path();
    for purpose in ["sslclient", "sslserver"] {
        ran(
            folder,
            &format!("openssl verify -x509_strict -CAfile roots.pem -purpose {purpose} chain.pem"),
        );
    }
    let text = ran(folder, "openssl x509 -in chain.pem -noout -text");
    for said in [
        "URI:spiffe://mesh.local/reviews",
        "CA:FALSE",
        "Digital Signature",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "Subject: CN = reviews",
    ] {
        assert!(text.contains(said), "{said} is not in {text}");
    }
    assert!(!text.contains("admin") && !text.contains("CA:TRUE"), "{text}");
    // It is good for a day: not for a second longer, nor for much less.
    let good_in = |seconds: u32| {
        run(
            folder,
            &format!("openssl x509 -in chain.pem -noout -checkend {seconds}"),
        )
    };
    assert!(good_in(86_000).status.success());
    assert!(!good_in(86_401).status.success());
    // The key of the request is the key of the certificate.
    let of_request = ran(folder, "openssl req -in csr.pem -noout -pubkey");
    assert_eq!(
        of_request,
        ran(folder, "openssl x509 -in chain.pem -noout -pubkey")
    );
    // The token ends with the fingerprint of the root.
    let bundle = desk.run("ca bundle").await.ok().stdout;
    assert_eq!(bundle, std::fs::read_to_string(folder.join("roots.pem")).unwrap());
    let status = desk.run("ca status --json").await.ok().json();
    let fingerprint = status["roots"][0]["fingerprint"].as_str().unwrap();
    assert!(token.ends_with(fingerprint), "{status}");
}

#[tokio::test]
async fn every_abuse_of_a_token_is_refused_with_its_reason_and_written_down() {
    let desk = Desk::new(&[]).await;
    let with = |token: &str| json!({ "csr": desk.csr(), "token": token });
    let once = desk.token("reviews", 1, "1h").await;
    assert_eq!(desk.join(&once).0, 200);
    let short = desk.token("reviews", 1, "1s").await;
    let revoked = desk.token("reviews", 1, "1h").await;
    desk.run(&format!("token revoke {}", revoked.split('.').nth(1).unwrap()))
        .await
        .ok();
    let good = desk.token("reviews", 9, "1h").await;
    let secret = |token: &str| token.split('.').nth(2).unwrap().to_owned();
    let other_secret = good.replace(&secret(&good), &secret(&revoked));
    eventually("a token of one second to expire", async || {
        (desk.listed(&short).await["state"] == "expired").then_some(())
    })
    .await;
    let table = [
        (with(&short), "token-expired"),
        (json!({ "csr": desk.other_csr(), "token": once }), "token-used-up"),
        (with(&revoked), "token-revoked"),
        (with(&other_secret), "token-unknown"),
        (with("ort1.0000000000000000.AAAA.AAAA"), "token-malformed"),
        (
            json!({ "csr": desk.csr(), "token": good, "service": "ratings" }),
            "other-service",
        ),
        (json!({ "csr": desk.csr() }), "no-credential"),
        (json!({ "csr": "hello", "token": good }), "malformed-csr"),
        (json!({ "token": good }), "malformed-request"),
        (
            json!({ "csr": desk.csr(), "token": good, "subject": "admin" }),
            "malformed-request",
        ),
    ];
    for (body, reason) in &table {
        let (status, answer) = desk.post(body, "");
        assert!((400..500).contains(&status), "{status} {answer}");
        assert_eq!(answer["reason"], *reason, "{body}");
        assert!(!answer["error"].as_str().unwrap().is_empty());
    }
    let words = desk.audited().await;
    for (_, reason) in &table {
        assert!(
            times(&words, reason) >= 1,
            "{reason} is not in the audit log: {words:?}"
        );
    }
    // What was refused used nothing up, and no secret is shown anywhere.
    assert_eq!(desk.listed(&good).await["uses"], 0);
    let audit = desk.run("audit --json").await.ok().stdout;
    let everything = [
        desk.run("token list --json").await.ok().stdout,
        audit,
        desk.api.log().join("\n"),
    ];
    assert!(everything.iter().all(|text| !text.contains(&secret(&good))));
}

#[tokio::test]
async fn a_token_that_is_replayed_at_once_from_many_sides_lets_in_as_many_as_it_has_uses() {
    let desk = Desk::new(&[]).await;
    let token = desk.token("reviews", 2, "1h").await;
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..10)
            .map(|_| scope.spawn(|| desk.join_as_other(&token).0))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(
        statuses.iter().filter(|status| **status == 200).count(),
        2,
        "{statuses:?}"
    );
    let words = desk.audited().await;
    assert_eq!(
        (times(&words, "issued"), times(&words, "token-used-up")),
        (2, 8),
        "{words:?}"
    );
}

#[tokio::test]
async fn guessing_is_cut_off_by_429_and_fills_no_log() {
    let desk = Desk::new(&[]).await;
    let token = desk.token("reviews", 1, "1h").await;
    let guess = token.replace(token.split('.').nth(1).unwrap(), "0123456789abcdef");
    let statuses: Vec<u16> = (0..60).map(|_| desk.join(&guess).0).collect();
    assert_eq!(statuses[..20], [403; 20]);
    assert!(statuses.contains(&429), "{statuses:?}");
    let words = desk.audited().await;
    assert!(times(&words, "rate-limited") >= 1, "{words:?}");
    assert!(words.len() < 60, "{words:?}");
}

#[tokio::test]
async fn a_restart_keeps_the_root_the_tokens_and_the_log_and_the_key_is_for_its_owner_alone() {
    let mut desk = Desk::new(&[]).await;
    let token = desk.token("reviews", 2, "1h").await;
    let (_, first) = desk.join(&token);
    let key = desk.data().join("ca/root-1.key");
    assert_eq!(
        std::fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let before = desk.audited().await;
    desk.api.kill();
    let address = desk.url.strip_prefix("http://").unwrap().to_owned();
    (desk.api, desk.url) = serve(&desk.data(), &address, &[]).await;
    let (status, second) = desk.join_as_other(&token);
    assert_eq!((status, &second["bundle"]), (200, &first["bundle"]), "{second}");
    assert_eq!(desk.join_as_other(&token).1["reason"], "token-used-up");
    let after = desk.audited().await;
    assert_eq!(after[..before.len()], before[..]);
    // The root without its key is said, with what to do.
    desk.api.kill();
    std::fs::remove_file(&key).unwrap();
    let data = desk.data();
    let ended = desk
        .run(&format!("serve --listen 127.0.0.1:0 --data {}", data.display()))
        .await;
    assert_eq!(ended.code, 1);
    assert!(
        ended.stderr.contains("restore it from a backup"),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn the_data_folder_and_the_store_are_for_their_owner_alone_and_a_store_that_is_not_is_said() {
    let mut desk = Desk::new(&[]).await;
    let (data, store) = (desk.data(), desk.data().join("store.redb"));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&data), mode(&store)), (0o700, 0o600));
    desk.api.kill();
    for (path, mode) in [(&data, 0o755), (&store, 0o644)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    (desk.api, desk.url) = serve(&data, "127.0.0.1:0", &[]).await;
    is_said(&desk.api, "store.redb").await;
    // What somebody has set is left as it is.
    assert_eq!((mode(&data), mode(&store)), (0o755, 0o644));
}

/// Waits until it says in its log that others can read this file.
async fn is_said(program: &Program, file: &str) {
    let said = program.logged("that others can read it", |line| {
        let path = line["path"].as_str().unwrap_or_default();
        path.ends_with(file) && line["message"].as_str().unwrap_or_default().contains("chmod 600")
    });
    let said = said.await;
    assert_eq!(
        (&said["level"], &said["mode"]),
        (&json!("WARN"), &json!("644")),
        "{said}"
    );
}

#[tokio::test]
async fn a_push_of_another_trust_domain_is_refused_while_certificates_are_alive() {
    let desk = Desk::new(&[]).await;
    let file = desk.path().join("mesh.yaml");
    let pushed = async |domain: &str| {
        std::fs::write(&file, format!("kind: Mesh\n# ours\ntrust_domain: {domain}\n")).unwrap();
        desk.run(&format!("push {}", file.display())).await
    };
    pushed("one").await.ok();
    pushed("shop").await.ok();
    let (_, answer) = desk.join(&desk.token("reviews", 1, "1h").await);
    assert_eq!(answer["spiffe_id"], "spiffe://shop/reviews");
    let ended = pushed("other").await;
    assert_eq!(ended.code, 1);
    let said = "mesh.yaml:3:1: trust_domain: `other` would part the mesh";
    assert!(ended.stdout.contains(said), "{}", ended.stdout);
    pushed("shop").await.ok();
}
