//! The certificate authority of the control API, seen by openssl and curl: what it issues, and what it refuses.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use outrigger_tests::cli::{Ended, finish};
use outrigger_tests::outrigger;
use outrigger_tests::program::{Program, binary};
use serde_json::{Value, json};

/// A control API with a folder for keys and requests.
struct Desk {
    api: Program,
    url: String,
    folder: tempfile::TempDir,
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

/// Runs a program of the system, which must succeed unless `may_fail`.
fn run(folder: &Path, name: &str, arguments: &[&str]) -> Output {
    let ended = Command::new(name).args(arguments).current_dir(folder).output();
    ended.unwrap_or_else(|error| panic!("cannot run {name}: {error}"))
}

fn ran(folder: &Path, name: &str, arguments: &[&str]) -> String {
    let ended = run(folder, name, arguments);
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{name} {arguments:?}: {errors}");
    String::from_utf8(ended.stdout).unwrap()
}

impl Desk {
    async fn new(further: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (api, url) = serve(&folder.path().join("data"), "127.0.0.1:0", further).await;
        let desk = Self { api, url, folder };
        // A request that asks for much more than it is given.
        ran(
            desk.path(),
            "openssl",
            &[
                "req",
                "-new",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-keyout",
                "key.pem",
                "-out",
                "csr.pem",
                "-subj",
                "/CN=admin",
                "-addext",
                "basicConstraints=critical,CA:TRUE",
                "-addext",
                "subjectAltName=URI:spiffe://mesh.local/admin,DNS:admin.example",
            ],
        );
        desk
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        let mut all: Vec<&str> = arguments.to_vec();
        all.extend(["--api", &self.url]);
        outrigger(&all).await
    }

    async fn token(&self, service: &str, uses: &str, ttl: &str) -> String {
        let arguments = [
            "token",
            "create",
            "--service",
            service,
            "--uses",
            uses,
            "--ttl",
            ttl,
        ];
        self.run(&arguments).await.ok().stdout.trim().to_owned()
    }

    /// Posts this body by curl, and gives the status and the answer.
    fn post(&self, body: &Value, further: &[&str]) -> (u16, Value) {
        let file = self.path().join(format!("body-{}.json", fastrand::u64(..)));
        std::fs::write(&file, body.to_string()).unwrap();
        let (url, data) = (
            format!("{}/v1/identity", self.url),
            format!("@{}", file.display()),
        );
        let mut arguments = vec![
            "-sS",
            "-w",
            "\n%{http_code}",
            "-H",
            "content-type: application/json",
            "--data",
            &data,
            &url,
        ];
        arguments.extend(further);
        let answer = ran(self.path(), "curl", &arguments);
        let (body, status) = answer.rsplit_once('\n').unwrap();
        (
            status.parse().unwrap(),
            serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON: {answer}")),
        )
    }

    fn csr(&self) -> String {
        std::fs::read_to_string(self.path().join("csr.pem")).unwrap()
    }

    /// Joins with a token.
    fn join(&self, token: &str) -> (u16, Value) {
        self.post(&json!({ "csr": self.csr(), "token": token }), &[])
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
        let list = self.run(&["audit", "--json"]).await.ok().json();
        let word = |row: &Value| {
            row["reason"]
                .as_str()
                .or(row["deed"].as_str())
                .unwrap()
                .to_owned()
        };
        list["rows"].as_array().unwrap().iter().map(word).collect()
    }
}

/// How often a word stands in the log.
fn times(words: &[String], word: &str) -> usize {
    words.iter().filter(|found| *found == word).count()
}

#[tokio::test]
async fn a_workload_that_joins_is_given_a_certificate_that_openssl_verifies() {
    let desk = Desk::new(&[]).await;
    let token = desk.token("reviews", "1", "1h").await;
    let (status, answer) = desk.join(&token);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["spiffe_id"], "spiffe://mesh.local/reviews");
    desk.keep(&answer);
    let folder = desk.path();
    ran(
        folder,
        "openssl",
        &[
            "verify",
            "-x509_strict",
            "-CAfile",
            "roots.pem",
            "-purpose",
            "sslclient",
            "chain.pem",
        ],
    );
    ran(
        folder,
        "openssl",
        &[
            "verify",
            "-x509_strict",
            "-CAfile",
            "roots.pem",
            "-purpose",
            "sslserver",
            "chain.pem",
        ],
    );
    let text = ran(
        folder,
        "openssl",
        &["x509", "-in", "chain.pem", "-noout", "-text"],
    );
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
    let good_in = |seconds: &str| {
        run(
            folder,
            "openssl",
            &["x509", "-in", "chain.pem", "-noout", "-checkend", seconds],
        )
    };
    assert!(good_in("86000").status.success());
    assert!(!good_in("86401").status.success());
    // The key of the request is the key of the certificate.
    let of_request = ran(folder, "openssl", &["req", "-in", "csr.pem", "-noout", "-pubkey"]);
    let of_certificate = ran(
        folder,
        "openssl",
        &["x509", "-in", "chain.pem", "-noout", "-pubkey"],
    );
    assert_eq!(of_request, of_certificate);
    // The token ends with the fingerprint of the root.
    let bundle = desk.run(&["ca", "bundle"]).await.ok().stdout;
    assert_eq!(bundle, std::fs::read_to_string(folder.join("roots.pem")).unwrap());
    let status = desk.run(&["ca", "status", "--json"]).await.ok().json();
    assert!(
        token.ends_with(status["roots"][0]["fingerprint"].as_str().unwrap()),
        "{status}"
    );
}

#[tokio::test]
async fn every_abuse_of_a_token_is_refused_with_its_reason_and_written_down() {
    let desk = Desk::new(&[]).await;
    let refused = |body: &Value| {
        let (status, answer) = desk.post(body, &[]);
        assert!((400..500).contains(&status), "{status} {answer}");
        assert!(!answer["error"].as_str().unwrap().is_empty());
        answer["reason"].as_str().unwrap().to_owned()
    };
    let with = |token: &str| json!({ "csr": desk.csr(), "token": token });
    let once = desk.token("reviews", "1", "1h").await;
    assert_eq!(desk.join(&once).0, 200);
    let short = desk.token("reviews", "1", "1s").await;
    let revoked = desk.token("reviews", "1", "1h").await;
    let id = revoked.split('.').nth(1).unwrap();
    desk.run(&["token", "revoke", id]).await.ok();
    let good = desk.token("reviews", "9", "1h").await;
    let other_secret: Vec<&str> = good
        .split('.')
        .zip(revoked.split('.'))
        .enumerate()
        .map(|(at, (mine, theirs))| if at == 2 { theirs } else { mine })
        .collect();
    let id = short.split('.').nth(1).unwrap();
    outrigger_tests::eventually("a token of one second to expire", async || {
        let tokens = desk.run(&["token", "list", "--json"]).await.ok().json();
        let mut tokens = tokens["tokens"].as_array().unwrap().iter();
        tokens
            .any(|token| token["id"] == id && token["state"] == "expired")
            .then_some(())
    })
    .await;
    let mut expected = Vec::new();
    for (body, reason) in [
        (with(&short), "token-expired"),
        (with(&once), "token-used-up"),
        (with(&revoked), "token-revoked"),
        (with(&other_secret.join(".")), "token-unknown"),
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
    ] {
        assert_eq!(refused(&body), reason, "{body}");
        expected.push(reason);
    }
    let words = desk.audited().await;
    for reason in expected {
        assert!(
            times(&words, reason) >= 1,
            "{reason} is not in the audit log: {words:?}"
        );
    }
    // What was refused used nothing up, and no secret is shown anywhere.
    let list = desk.run(&["token", "list", "--json"]).await.ok();
    let id = good.split('.').nth(1).unwrap();
    let tokens = list.json();
    let row = tokens["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .find(|token| token["id"] == id)
        .cloned();
    assert_eq!(row.unwrap()["uses"], 0);
    let everything = [
        list.stdout,
        desk.run(&["audit", "--json"]).await.ok().stdout,
        desk.api.log().join("\n"),
    ];
    let secret = good.split('.').nth(2).unwrap();
    assert!(everything.iter().all(|text| !text.contains(secret)));
}

#[tokio::test]
async fn a_token_that_is_replayed_at_once_from_many_sides_lets_in_as_many_as_it_has_uses() {
    let desk = Desk::new(&[]).await;
    let token = desk.token("reviews", "2", "1h").await;
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..10).map(|_| scope.spawn(|| desk.join(&token).0)).collect();
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
    let token = desk.token("reviews", "1", "1h").await;
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
    let token = desk.token("reviews", "2", "1h").await;
    let (_, first) = desk.join(&token);
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(desk.data().join("ca/root-1.key")), 0o600);
    let before = desk.audited().await;
    desk.api.kill();
    let address = desk.url.strip_prefix("http://").unwrap().to_owned();
    (desk.api, desk.url) = serve(&desk.data(), &address, &[]).await;
    let (status, second) = desk.join(&token);
    assert_eq!((status, &second["bundle"]), (200, &first["bundle"]), "{second}");
    assert_eq!(desk.join(&token).1["reason"], "token-used-up");
    let after = desk.audited().await;
    assert_eq!(after[..before.len()], before[..]);
    // The root without its key is said, with what to do.
    desk.api.kill();
    std::fs::remove_file(desk.data().join("ca/root-1.key")).unwrap();
    let data = desk.data();
    let arguments = [
        "serve".as_ref(),
        "--listen".as_ref(),
        "127.0.0.1:0".as_ref(),
        "--data".as_ref(),
        data.as_os_str(),
    ];
    let ended = outrigger(&arguments).await;
    assert_eq!(ended.code, 1);
    assert!(
        ended.stderr.contains("restore it from a backup"),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn an_intermediate_of_the_operator_signs_and_a_bad_one_is_refused_with_all_that_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let openssl = |arguments: &[&str]| ran(folder.path(), "openssl", arguments);
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let with_curve = |arguments: &[&str]| openssl(&[arguments, &curve].concat());
    with_curve(&[
        "req",
        "-x509",
        "-keyout",
        "root.key",
        "-out",
        "root.crt",
        "-days",
        "30",
        "-subj",
        "/O=Shop/CN=Shop root",
    ]);
    with_curve(&[
        "req",
        "-new",
        "-keyout",
        "ca.key",
        "-out",
        "ca.csr",
        "-subj",
        "/O=Shop/CN=Mesh CA",
    ]);
    std::fs::write(
        folder.path().join("ext"),
        "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=keyCertSign\n",
    )
    .unwrap();
    let sign = [
        "x509",
        "-req",
        "-in",
        "ca.csr",
        "-CA",
        "root.crt",
        "-CAkey",
        "root.key",
        "-CAcreateserial",
        "-days",
        "20",
    ];
    openssl(&[&sign[..], &["-extfile", "ext", "-out", "ca.crt"]].concat());
    openssl(&[&sign[..], &["-out", "leaf.crt"]].concat());
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    std::fs::write(
        folder.path().join("chain.crt"),
        read("ca.crt") + &read("root.crt"),
    )
    .unwrap();
    std::fs::write(
        folder.path().join("bad.crt"),
        read("leaf.crt") + &read("root.crt"),
    )
    .unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let desk = Desk::new(&[
        "--ca-cert",
        &file("chain.crt"),
        "--ca-key",
        &file("ca.key"),
        "--trust-domain",
        "shop",
    ])
    .await;
    let (status, answer) = desk.join(&desk.token("reviews", "1", "1h").await);
    assert_eq!(
        (status, &answer["spiffe_id"]),
        (200, &json!("spiffe://shop/reviews")),
        "{answer}"
    );
    desk.keep(&answer);
    assert_eq!(answer["certificates"].as_array().unwrap().len(), 2);
    ran(
        desk.path(),
        "openssl",
        &[
            "verify",
            "-CAfile",
            "roots.pem",
            "-untrusted",
            "chain.pem",
            "chain.pem",
        ],
    );

    let data = tempfile::tempdir().unwrap();
    for (certificate, key, said) in [
        ("bad.crt", "ca.key", "does not say CA:TRUE"),
        (
            "chain.crt",
            "root.key",
            "the key is not the one of the first certificate",
        ),
        ("ca.crt", "ca.key", "is the last and is not a root"),
        ("ca.key", "ca.crt", "it holds 0 certificates"),
        ("absent.crt", "ca.key", "No such file"),
    ] {
        let mut command = Command::new(binary("outrigger"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data.path());
        command.args(["--ca-cert", &file(certificate), "--ca-key", &file(key)]);
        let ended = finish(Program::spawn("outrigger", command)).await;
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(ended.stderr.contains(said), "{said}: {}", ended.stderr);
        assert!(
            ended.stderr.contains(certificate) || ended.stderr.contains(key),
            "{}",
            ended.stderr
        );
    }
}

#[tokio::test]
async fn over_tls_a_certificate_renews_itself_and_the_tool_knows_the_api_by_its_root() {
    let desk = Desk::new(&["--tls", "--name", "control.example"]).await;
    let ready = desk
        .api
        .logged("the root", |line| line["message"] == "the CA is ready")
        .await;
    let fingerprint = ready["root"].as_str().unwrap().to_owned();
    let pinned = |arguments: &[&str]| {
        let all: Vec<String> = arguments
            .iter()
            .map(|part| (*part).to_owned())
            .chain([
                "--api".into(),
                desk.url.clone(),
                "--ca-fingerprint".into(),
                fingerprint.clone(),
            ])
            .collect();
        async move { outrigger(&all).await }
    };
    let token = pinned(&["token", "create", "--service", "reviews"])
        .await
        .ok()
        .stdout
        .trim()
        .to_owned();
    let roots = pinned(&["ca", "bundle"]).await.ok().stdout;
    std::fs::write(desk.path().join("known.pem"), &roots).unwrap();
    // curl verifies the chain and the address by the roots.
    let (status, first) = desk.post(
        &json!({ "csr": desk.csr(), "token": token }),
        &["--cacert", "known.pem"],
    );
    assert_eq!(status, 200, "{first}");
    desk.keep(&first);
    let shown = ["--cacert", "known.pem", "--cert", "chain.pem", "--key", "key.pem"];
    let (status, second) = desk.post(&json!({ "csr": desk.csr() }), &shown);
    assert_eq!(
        (status, &second["spiffe_id"]),
        (200, &first["spiffe_id"]),
        "{second}"
    );
    assert_ne!(second["serial"], first["serial"]);
    let (status, refused) = desk.post(&json!({ "csr": desk.csr(), "service": "ratings" }), &shown);
    assert_eq!((status, &refused["reason"]), (403, &json!("other-service")));
    let (status, refused) = desk.post(&json!({ "csr": desk.csr() }), &["--cacert", "known.pem"]);
    assert_eq!((status, &refused["reason"]), (401, &json!("no-credential")));

    // The tool: by roots, by a wrong fingerprint, by nothing.
    let known = desk.path().join("known.pem");
    desk.run(&["status", "--api-ca", known.to_str().unwrap()])
        .await
        .ok();
    let other = "A".repeat(43);
    let ended = desk.run(&["status", "--ca-fingerprint", &other]).await;
    assert!(
        ended.code == 1 && ended.stderr.contains("not the control API that was meant"),
        "{}",
        ended.stderr
    );
    let ended = desk.run(&["status"]).await;
    assert!(
        ended.code == 1 && ended.stderr.contains("--ca-fingerprint"),
        "{}",
        ended.stderr
    );

    // A workload of the mesh is not the control API, though the same root vouches for it.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    drop(listener);
    std::fs::write(desk.path().join("with-root.pem"), roots).unwrap();
    let mut command = Command::new("openssl");
    command.current_dir(desk.path()).args([
        "s_server",
        "-accept",
        &format!("127.0.0.1:{port}"),
        "-cert",
        "chain.pem",
        "-key",
        "key.pem",
        "-cert_chain",
        "with-root.pem",
        "-www",
    ]);
    let impostor = Program::spawn("an impostor", command);
    impostor
        .printed("that it accepts", |line| line.contains("ACCEPT"))
        .await;
    let ended = outrigger(&[
        "status",
        "--api",
        &format!("https://127.0.0.1:{port}"),
        "--api-ca",
        known.to_str().unwrap(),
    ])
    .await;
    assert!(
        ended.code == 1 && ended.stderr.contains("not the control API that was meant"),
        "{}",
        ended.stderr
    );
}

#[tokio::test]
async fn a_revocation_is_pushed_with_the_mesh_and_ends_renewal() {
    let desk = Desk::new(&["--tls"]).await;
    let ready = desk
        .api
        .logged("the root", |line| line["message"] == "the CA is ready")
        .await;
    let fingerprint = ready["root"].as_str().unwrap().to_owned();
    let pinned = |arguments: &[&str]| {
        let all: Vec<String> = arguments
            .iter()
            .map(|part| (*part).to_owned())
            .chain([
                "--api".into(),
                desk.url.clone(),
                "--ca-fingerprint".into(),
                fingerprint.clone(),
            ])
            .collect();
        async move { outrigger(&all).await }
    };
    let token = pinned(&["token", "create", "--service", "reviews"])
        .await
        .ok()
        .stdout
        .trim()
        .to_owned();
    let (_, first) = desk.post(&json!({ "csr": desk.csr(), "token": token }), &["-k"]);
    desk.keep(&first);
    pinned(&["revoke", "--serial", first["serial"].as_str().unwrap()])
        .await
        .ok();
    let mesh = pinned(&["get", "@mesh"]).await.ok().stdout;
    assert!(mesh.contains(first["serial"].as_str().unwrap()), "{mesh}");
    let shown = ["-k", "--cert", "chain.pem", "--key", "key.pem"];
    let (status, refused) = desk.post(&json!({ "csr": desk.csr() }), &shown);
    assert_eq!(
        (status, &refused["reason"]),
        (403, &json!("identity-revoked")),
        "{refused}"
    );
    let ended = pinned(&["revoke", "--serial", "not hexadecimal"]).await;
    assert!(
        ended.code == 1 && ended.stdout.contains("is not a serial number"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_push_of_another_trust_domain_is_refused_while_certificates_are_alive() {
    let desk = Desk::new(&[]).await;
    let file = desk.path().join("mesh.yaml");
    let pushed = async |domain: &str| {
        std::fs::write(&file, format!("kind: Mesh\n# ours\ntrust_domain: {domain}\n")).unwrap();
        desk.run(&["push", file.to_str().unwrap()]).await
    };
    pushed("one").await.ok();
    pushed("shop").await.ok();
    let (_, answer) = desk.join(&desk.token("reviews", "1", "1h").await);
    assert_eq!(answer["spiffe_id"], "spiffe://shop/reviews");
    let ended = pushed("other").await;
    assert_eq!(ended.code, 1);
    assert!(
        ended
            .stdout
            .contains("mesh.yaml:3:1: trust_domain: `other` would part the mesh"),
        "{}",
        ended.stdout
    );
    pushed("shop").await.ok();
}
