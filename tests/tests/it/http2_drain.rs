//! Stopping while HTTP/2 is spoken: callers are told in two steps, and what they have begun is finished.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use outrigger_tests::http2::{Answers, Caller, Http2Upstream, WINDOW_MAX};
use outrigger_tests::wait::within;
use outrigger_tests::{
    Answer, Ask, Behaviour, Load, LoadSpec, ServiceFile, Sidecar, SidecarSpec, Upstream, simple,
};

/// Requests that one connection has under way at once.
const AT_ONCE: u64 = 20;

/// What a connection has seen until its end.
#[derive(Debug, Default)]
struct Seen {
    answered: u64,
    failed: Vec<String>,
    goaways: Vec<(u32, u32)>,
}

/// Keeps a connection full until it is told to go, finishes what it began, and waits for the end.
async fn keep_busy(address: SocketAddr, tell: tokio::sync::mpsc::UnboundedSender<()>) -> io::Result<Seen> {
    let (mut caller, mut seen, mut under_way) = (Caller::open(address).await?, Seen::default(), 0);
    loop {
        while caller.goaway.is_none() && under_way < AT_ONCE {
            let begun = match seen.answered % 2 {
                0 => caller.get("reviews", "/").await,
                _ => caller.post("reviews", "/", b"x").await,
            };
            begun?;
            under_way += 1;
        }
        if under_way == 0 {
            break;
        }
        if !caller.take().await? {
            seen.failed.push(format!("{under_way} cut off"));
            break;
        }
        while let Some((stream, reply)) = caller.over() {
            under_way -= 1;
            seen.answered += 1;
            if reply.status() != 200 || !reply.ended {
                seen.failed.push(format!("{stream}: {reply:?}"));
            }
            let _ = tell.send(());
        }
    }
    caller.until_end().await;
    seen.goaways = caller.goaways;
    Ok(seen)
}

#[tokio::test]
async fn callers_are_told_in_two_steps_and_no_request_of_theirs_fails() {
    let upstream = Upstream::start("a").await;
    upstream.behave(Behaviour::Answer(Answer::ok().after(Duration::from_millis(20))));
    let file = simple("reviews", &[&upstream], "").to_string();
    let mut sidecar = Sidecar::start(SidecarSpec::text("a", &file).with("--drain", "10s")).await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let mut busy = tokio::task::JoinSet::new();
    for _ in 0..4 {
        busy.spawn(keep_busy(sidecar.outbound(), tell.clone()));
    }
    for _ in 0..500 {
        within("an answer", told.recv()).await;
    }
    sidecar.program().terminate();
    while let Some(seen) = within("the end of a connection", busy.join_next()).await {
        let seen = seen.unwrap().unwrap();
        assert_eq!(seen.failed, Vec::<String>::new());
        // RFC 9113 section 6.8: first that there will be an end, then where it is.
        let [(first, 0), (last, 0)] = seen.goaways[..] else {
            panic!("{:?}", seen.goaways)
        };
        assert_eq!(first, WINDOW_MAX);
        assert!(
            u64::from(last) < 2 * (seen.answered + 1),
            "{last} after {} answers",
            seen.answered
        );
    }
    assert_eq!(sidecar.program().exited().await.code(), Some(0));
}

#[tokio::test]
async fn a_server_s_sidecar_stops_under_load_by_http2_and_no_request_fails() {
    let app = Http2Upstream::answering(Answers::default()).await;
    let file = ServiceFile::new("reviews")
        .field("protocol: http2")
        .app(app.address())
        .backend("v1", &[app.address()]);
    let server = |id: &str| {
        let spec = SidecarSpec::text(id, &file.to_string()).beside("reviews");
        Sidecar::start(spec.with("--drain", "10s"))
    };
    let (mut first, second) = (server("first").await, server("second").await);
    let called = ServiceFile::new("reviews")
        .field("protocol: http2")
        .backend("v1", &[first.inbound(), second.inbound()]);
    let client = Sidecar::start(SidecarSpec::text("client", &called.to_string())).await;
    let asks = vec![Ask::get("/").host("reviews"), Ask::post("/", "x").host("reviews")];
    let load = Load::start(LoadSpec {
        asks,
        ..LoadSpec::new(client.outbound(), "reviews", 8)
    });
    load.has_done(1_000).await;
    first.program().terminate();
    load.has_done_more(1_000).await;
    let status = first.program().exited().await;
    load.has_done_more(500).await;
    load.stop().await.assert_clean();
    assert_eq!(status.code(), Some(0));
}
