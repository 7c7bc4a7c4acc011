//! What of TLS an inbound port takes, as a scanner finds out: TLS 1.3 with its three suites, a certificate, and nothing by
//! which a session could be resumed or a request come early.

use std::process::Stdio;

use outrigger_tests::cli::{Ended, finish};
use outrigger_tests::program::Program;
use outrigger_tests::tls::{HANDSHAKE, Hello, client};
use outrigger_tests::wait::within;
use outrigger_tests::{IdentityFiles, Pki, Sidecar, Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::mtls::{HANDSHAKES, STRICT, server};

struct Scene {
    app: Upstream,
    server: Sidecar,
    files: [IdentityFiles; 2],
}

impl Scene {
    async fn new() -> Self {
        let app = Upstream::start("a").await;
        let pki = Pki::new();
        let files = [pki.files("reviews"), pki.files("productpage")];
        let server = server(app.address(), STRICT, &files[0]).await;
        Self { app, server, files }
    }

    /// What openssl's client says with these arguments; it leaves as soon as it is through.
    async fn scan(&self, shows: bool, arguments: &[&str]) -> Ended {
        let mut command = std::process::Command::new("openssl");
        command.args(client(
            self.server.inbound(),
            shows.then_some(&self.files[1]),
            None,
        ));
        finish(Program::spawn("openssl", {
            command.args(arguments);
            command
        }))
        .await
    }

    async fn counted(&self, result: &str, count: f64) {
        let what = format!("{count} {result}");
        let passes = |metrics: &outrigger_tests::metrics::Metrics| {
            metrics.sum(HANDSHAKES, &[("result", result)]) == count
        };
        self.server.metrics_when(&what, passes).await;
    }
}

#[tokio::test]
async fn of_all_versions_only_tls_1_3_is_taken_whatever_the_cipher() {
    let scene = Scene::new().await;
    let mut refused = 0.0;
    let all = "ALL:COMPLEMENTOFALL:@SECLEVEL=0";
    let old = [
        ("-tls1", all),
        ("-tls1_1", all),
        ("-tls1_2", all),
        ("-tls1_2", "ECDHE-ECDSA-AES256-GCM-SHA384"),
        ("-tls1_2", "ECDHE-ECDSA-CHACHA20-POLY1305"),
        ("-tls1_2", "ECDHE-RSA-AES128-SHA:@SECLEVEL=0"),
        ("-tls1_2", "AES128-SHA:@SECLEVEL=0"),
        ("-tls1_2", "NULL-SHA256:eNULL:@SECLEVEL=0"),
        ("-tls1_2", "ADH-AES128-SHA256:aNULL:@SECLEVEL=0"),
    ];
    for (version, ciphers) in old {
        let ended = scene.scan(true, &[version, "-cipher", ciphers]).await;
        assert_ne!(ended.code, 0, "{version} {ciphers}");
        // Those of TLS 1.0 do not even say which signatures they know.
        let alerts = ["alert protocol version", "alert handshake failure"];
        let told = alerts.iter().any(|alert| ended.stderr.contains(alert));
        assert!(told, "{version} {ciphers}: {}", ended.stderr);
        refused += 1.0;
        scene.counted("tls-handshake", refused).await;
    }
    let mut taken = 0.0;
    for suite in [
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
    ] {
        let ended = scene.scan(true, &["-ciphersuites", suite]).await;
        let agreed = format!("New, TLSv1.3, Cipher is {suite}");
        assert!(
            ended.stdout.contains(&agreed),
            "{suite}: {} {}",
            ended.stdout,
            ended.stderr
        );
        assert!(
            ended.stdout.contains("Secure Renegotiation IS NOT supported"),
            "{}",
            ended.stdout
        );
        assert!(ended.stdout.contains("Compression: NONE"), "{}", ended.stdout);
        taken += 1.0;
        scene.counted("ok", taken).await;
    }
    for suite in ["TLS_AES_128_CCM_SHA256", "TLS_AES_128_CCM_8_SHA256:@SECLEVEL=0"] {
        let ended = scene.scan(true, &["-ciphersuites", suite]).await;
        assert!(
            ended.stderr.contains("alert handshake failure"),
            "{suite}: {}",
            ended.stderr
        );
        refused += 1.0;
        scene.counted("tls-handshake", refused).await;
    }
}

#[tokio::test]
async fn a_certificate_is_demanded_and_nothing_is_given_to_resume_a_session_by() {
    let scene = Scene::new().await;
    let folder = tempfile::tempdir().unwrap();
    let session = folder.path().join("session");
    let ended = scene
        .scan(true, &["-msg", "-sess_out", session.to_str().unwrap()])
        .await;
    assert!(ended.stdout.contains("CertificateRequest"), "{}", ended.stdout);
    assert!(!ended.stdout.contains("NewSessionTicket"), "{}", ended.stdout);
    assert!(!session.exists());
    scene.counted("ok", 1.0).await;
    let ended = scene.scan(false, &["-ign_eof"]).await;
    assert!(
        ended.stderr.contains("alert certificate required"),
        "{}",
        ended.stderr
    );
    scene.counted("peer-no-certificate", 1.0).await;
    assert_eq!(scene.app.requests(), 0);
}

/// The extensions of a server's hello (RFC 8446 section 4.1.3), by their numbers.
fn extensions(hello: &[u8]) -> Vec<u16> {
    let two = |at: usize| u16::from_be_bytes([hello[at], hello[at + 1]]);
    // Behind the head of the message, the version, and 32 bytes that mean nothing: the session, the suite, no compression.
    let mut at = 4 + 2 + 32 + 1 + usize::from(hello[38]) + 2 + 1 + 2;
    let mut found = Vec::new();
    while at < hello.len() {
        found.push(two(at));
        at += 4 + usize::from(two(at + 2));
    }
    found
}

#[tokio::test]
async fn a_session_that_is_said_to_be_known_is_not_and_what_comes_early_is_not_read() {
    let scene = Scene::new().await;
    let hello = Hello {
        resumes: true,
        ..Hello::default()
    };
    let early = outrigger_tests::tls::record(0x17, &[0x5a; 200]);
    let mut stream = tokio::net::TcpStream::connect(scene.server.inbound())
        .await
        .unwrap();
    stream
        .write_all(&[hello.records(1 << 14), early].concat())
        .await
        .unwrap();
    let mut head = [0; 5];
    within("an answer", stream.read_exact(&mut head)).await.unwrap();
    assert_eq!(head[0], HANDSHAKE);
    let mut said = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    within("a hello", stream.read_exact(&mut said)).await.unwrap();
    let told = extensions(&said);
    assert!(told.contains(&0x2b) && told.contains(&0x33), "{told:?}");
    // `pre_shared_key` would say that the session is taken up, and only then could what comes early be read.
    assert!(!told.contains(&0x29), "{told:?}");
    drop(stream);
    scene.counted("tls-handshake", 1.0).await;
    assert_eq!(scene.app.requests(), 0);
}

/// A client of openssl's that takes a letter at the begin of a line for a command; what it says, errors among it.
struct Talk {
    _child: tokio::process::Child,
    stdin: tokio::process::ChildStdin,
    stdout: tokio::process::ChildStdout,
    said: String,
}

impl Talk {
    fn start(scene: &Scene) -> Self {
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", "exec openssl \"$@\" 2>&1", "sh"]);
        command
            .args(client(scene.server.inbound(), Some(&scene.files[1]), None))
            .arg("-msg");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self {
            _child: child,
            stdin,
            stdout,
            said: String::new(),
        }
    }

    async fn writes(&mut self, text: &str) {
        self.stdin.write_all(text.as_bytes()).await.unwrap();
    }

    /// Waits until it has said this since the last time, or has ended.
    async fn says(&mut self, text: &str) -> String {
        let mut bytes = [0; 4096];
        while !self.said.contains(text) {
            let count = within(text, self.stdout.read(&mut bytes)).await.unwrap();
            if count == 0 {
                break;
            }
            self.said.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        std::mem::take(&mut self.said)
    }
}

#[tokio::test]
async fn keys_may_be_renewed_in_the_middle_of_a_connection() {
    const ASK: &str = "GET / HTTP/1.1\r\nHost: reviews\r\n\r\n";
    let scene = Scene::new().await;
    let mut talk = Talk::start(&scene);
    talk.says("Verify return code").await;
    for _ in 0..3 {
        talk.writes("K\n").await;
        talk.says("KEYUPDATE").await;
    }
    talk.writes(ASK).await;
    let said = talk.says("HTTP/1.1 200").await;
    // It was asked for ours too, and they are renewed with what is written next (RFC 8446 section 4.6.3).
    assert!(
        said.contains("<<< TLS 1.3, Handshake [length 0005], KeyUpdate"),
        "{said}"
    );
    assert!(said.contains("HTTP/1.1 200"), "{said}");
    scene.counted("ok", 1.0).await;
}
