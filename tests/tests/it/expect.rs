//! `Expect: 100-continue`: the body is asked for when the endpoint asks for it, and not before.

use outrigger_tests::cli::{Ended, finish};
use outrigger_tests::ends::{Asking, Endpoint, Http, PAIRS};
use outrigger_tests::program::Program;
use outrigger_tests::wait::within;
use outrigger_tests::{Answer, Ask, Behaviour, Sidecar, Upstream, simple};

const EXPECTS: [(&str, &str); 2] = [("expect", "100-continue"), ("content-length", "5")];

async fn post(caller: Http, sidecar: &Sidecar) -> Asking {
    Asking::begin(caller, sidecar.outbound(), ("POST", "reviews"), &EXPECTS, false).await
}

#[tokio::test]
async fn the_body_is_asked_for_when_the_endpoint_asks_for_it() {
    for (caller, endpoint) in PAIRS {
        let endpoint = Endpoint::start(endpoint).await;
        let sidecar = Sidecar::of(endpoint.service("reviews", "")).await;
        let mut asking = post(caller, &sidecar).await;
        let mut taken = endpoint.take().await;
        assert_eq!(taken.request.header("expect"), Some("100-continue"));
        taken.inform(100, &[]).await;
        assert_eq!(asking.interim().await.status, 100, "{caller:?}");
        asking.send(b"hello").await;
        asking.end(&[]).await;
        assert_eq!(taken.body().await.body, b"hello");
        taken.answer(200, &[], b"thanks", &[]).await;
        assert_eq!(asking.reply().await.body, b"thanks");
    }
}

#[tokio::test]
async fn an_answer_that_refuses_the_head_reaches_the_caller_before_it_has_sent_the_body() {
    for (caller, endpoint) in PAIRS {
        for status in [401, 413, 417] {
            let endpoint = Endpoint::start(endpoint).await;
            let sidecar = Sidecar::of(endpoint.service("reviews", "")).await;
            let mut asking = post(caller, &sidecar).await;
            let mut taken = endpoint.take().await;
            taken.answer(status, &[], b"no", &[]).await;
            // It would fail at a 100 before it.
            let reply = asking.reply().await;
            assert_eq!((reply.status, reply.body.as_slice()), (status, &b"no"[..]));
        }
    }
}

#[tokio::test]
async fn early_hints_come_between_100_and_the_answer() {
    for (caller, endpoint) in PAIRS {
        let endpoint = Endpoint::start(endpoint).await;
        let sidecar = Sidecar::of(endpoint.service("reviews", "")).await;
        let mut asking = post(caller, &sidecar).await;
        let mut taken = endpoint.take().await;
        taken.inform(100, &[]).await;
        assert_eq!(asking.interim().await.status, 100);
        taken.inform(103, &[]).await;
        assert_eq!(asking.interim().await.status, 103);
        asking.send(b"hello").await;
        asking.end(&[]).await;
        taken.body().await;
        taken.answer(200, &[], b"thanks", &[]).await;
        assert_eq!(asking.reply().await.status, 200);
    }
}

#[tokio::test]
async fn an_endpoint_that_does_not_know_of_it_gets_the_body_all_the_same() {
    for (caller, endpoint) in PAIRS {
        let endpoint = Endpoint::start(endpoint).await;
        let sidecar = Sidecar::of(endpoint.service("reviews", "")).await;
        let mut asking = post(caller, &sidecar).await;
        let mut taken = endpoint.take().await;
        assert_eq!(asking.interim().await.status, 100);
        asking.send(b"hello").await;
        asking.end(&[]).await;
        assert_eq!(taken.body().await.body, b"hello");
        taken.answer(200, &[], b"thanks", &[]).await;
        assert_eq!(asking.reply().await.body, b"thanks");
    }
}

#[tokio::test]
async fn a_request_that_is_sent_again_still_has_its_body() {
    // The first endpoint says 100 and dies with the whole body; the second wants it too.
    let (dying, sound) = (Upstream::start("dying").await, Upstream::start("sound").await);
    dying.behave(Behaviour::CloseBeforeAnswer);
    sound.behave(Behaviour::Echo);
    let yaml = simple("reviews", &[&dying, &sound], "").field("balance: round_robin");
    let sidecar = Sidecar::of(yaml).await;
    for _ in 0..4 {
        let ask = Ask::new("PUT", "/").body("hello").host("reviews");
        let reply = sidecar.client().send(ask.header("expect", "100-continue")).await;
        assert_eq!((reply.status(), reply.text().as_str()), (200, "hello"));
    }
    assert!(dying.requests() > 0);
}

#[tokio::test]
async fn http_1_0_and_a_request_without_a_body_expect_nothing() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    upstream.behave(Behaviour::Echo);
    let mut connection = sidecar.client().connect().await;
    let ask = b"POST / HTTP/1.0\r\nHost: reviews\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello";
    connection.wire().send(ask).await.unwrap();
    let (bytes, _) = within("the end", connection.wire().until_end()).await;
    let text = String::from_utf8(bytes).unwrap();
    assert!(
        text.starts_with("HTTP/1.0 200") && text.ends_with("hello"),
        "{text}"
    );
    assert_eq!(upstream.last().head.header("expect"), None);
    let ask = Ask::get("/").host("reviews").header("expect", "100-continue");
    assert_eq!(sidecar.client().send(ask).await.status(), 200);
    assert_eq!(upstream.last().head.header("expect"), None);
}

/// Uploads a file of 3 MB with curl, and prints the statuses heard, and how much was sent.
async fn curl(sidecar: &Sidecar, version: &str, file: &str) -> Ended {
    let mut command = std::process::Command::new("curl");
    let url = format!("http://{}/", sidecar.outbound());
    command.args(["-q", "-sS", "-v", "--max-time", "15", "-o", "/dev/null", version]);
    command.args([
        "-w",
        "%{http_code} %{size_upload}",
        "-T",
        file,
        "-H",
        "Host: reviews",
    ]);
    command.args([
        "-H",
        "Expect: 100-continue",
        "--expect100-timeout",
        "10",
        "--noproxy",
        "*",
        &url,
    ]);
    finish(Program::spawn("curl", command)).await
}

#[tokio::test]
async fn curl_sends_three_megabytes_when_it_is_told_to_and_none_when_it_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sent");
    std::fs::write(&file, vec![b'x'; 3_000_000]).unwrap();
    let file = file.display().to_string();
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        upstream.behave(Behaviour::Answer(Answer::ok()));
        let ended = curl(&sidecar, version, &file).await.ok();
        assert_eq!(ended.stdout.trim(), "200 3000000", "{version}: {ended:?}");
        assert_eq!(upstream.last().body.bytes.len(), 3_000_000);
        // curl would go on by itself after its ten seconds, which nobody waits for.
        let heard = ended
            .stderr
            .lines()
            .any(|line| line.starts_with("< HTTP/") && line.contains(" 100"));
        assert!(heard, "{version}: {}", ended.stderr);
    }
    // By HTTP/2, curl of Debian 12 sends before it is told to, and does not read an answer that comes meanwhile.
    upstream.behave(Behaviour::AnswerEarly(Answer::status(413)));
    let ended = curl(&sidecar, "--http1.1", &file).await;
    assert_eq!(ended.stdout.trim(), "413 0", "{ended:?}");
}
