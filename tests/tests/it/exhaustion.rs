//! What is scarce runs out: descriptors, patience for scrapers, room for series. The sidecar lives, and says so.

use std::net::SocketAddr;

use outrigger_tests::grpc::{Call, GrpcUpstream};
use outrigger_tests::http2::{Caller, frame, request};
use outrigger_tests::upstream::Reuse;
use outrigger_tests::wait::{eventually, within};
use outrigger_tests::{Ask, Client, ServiceFile, Sidecar, SidecarSpec, Upstream, simple};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn without_descriptors_it_waits_and_serves_again_as_soon_as_there_are_some() {
    let upstream = Upstream::start("a").await;
    // Each request needs a connection of its own.
    upstream.reuse(Reuse::CloseAfterAnswer);
    let file = simple("reviews", &[&upstream], "");
    // One thread, so that one connection at most is kept that has ended already and lends its descriptor to the next.
    let spec = SidecarSpec::text("a", &file.to_string()).with("--workers", "1");
    let mut sidecar = Sidecar::start(spec).await;
    let ask = Ask::get("/").host("reviews");
    let mut early = [sidecar.client().connect().await, sidecar.client().connect().await];
    for caller in &mut early {
        assert_eq!(caller.send(&ask).await.unwrap().status(), 200);
    }
    sidecar.program().limit_descriptors(100);
    // More than it may hold, so that accepting must fail.
    let mut held = Vec::new();
    for _ in 0..150 {
        held.push(TcpStream::connect(sidecar.outbound()).await.unwrap());
    }
    sidecar
        .program()
        .logged("that it cannot accept", |line| {
            line["message"]
                .as_str()
                .is_some_and(|text| text.contains("cannot accept"))
        })
        .await;
    // Who is in already is told why there is no connection to the endpoint, which is not to blame. The descriptor of a
    // connection that has just ended may still be found first, until one of those that wait outside has it.
    let [one, other] = &mut early;
    eventually("a request that finds no descriptor", async || {
        let both = async { tokio::join!(one.send(&ask), other.send(&ask)) };
        let (one, other) = within("two answers", both).await;
        let refused = [one, other].map(|reply| {
            let reply = reply.unwrap();
            match (reply.status(), reply.reason()) {
                (503, Some("overloaded")) => true,
                (200, None) => false,
                _ => panic!("{reply:?}"),
            }
        });
        refused.contains(&true).then_some(())
    })
    .await;
    drop(held);
    eventually("requests to be served again", async || {
        let reply = sidecar.client().try_send(&ask).await.ok()?;
        (reply.status() == 200).then_some(())
    })
    .await;
    let endpoints = sidecar.page("/clusters").await.json();
    assert_eq!(endpoints["clusters"][0]["endpoints"][0]["health"], "in");
    let refused = [("reason", "connect-failed")];
    let metrics = sidecar.metrics().await;
    assert_eq!(metrics.sum("outrigger_attempts_total", &refused), 0.0);
}

/// A connection with as little room for what it is sent as there can be.
async fn narrow(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    // The other side's buffer grows with the size of the segments.
    socket.set_tcp_mss(536).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    TcpStream::from_std(socket.into()).unwrap()
}

/// Scrapers at once: more than there are places for them.
const SCRAPERS: usize = 80;

#[tokio::test]
async fn scrapers_that_never_read_keep_nobody_waiting() {
    let upstream = Upstream::start("a").await;
    // Enough services that the page does not fit what lies between.
    let file = |number: usize| simple(&format!("reviews{number}"), &[&upstream], "").to_string();
    let files: Vec<_> = (0..100).map(file).collect();
    let sidecar = Sidecar::of(files.join("---\n")).await;
    for number in 0..100 {
        let host = format!("reviews{number}");
        assert_eq!(sidecar.client().get(&host, "/").await.status(), 200);
    }
    let page = sidecar.page("/metrics").await.body.bytes.len();
    let mut held = Vec::new();
    for _ in 0..SCRAPERS {
        let mut scraper = narrow(sidecar.scrape()).await;
        let ask = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n";
        scraper.write_all(ask).await.unwrap();
        held.push(scraper);
    }
    for _ in 0..200 {
        assert_eq!(sidecar.client().get("reviews7", "/").await.status(), 200);
    }
    // Those that read nothing are given up, and whoever comes after them has his turn.
    let reply = Client::new(sidecar.scrape()).get("scrape", "/metrics").await;
    assert_eq!(reply.status(), 200);
    assert!(reply.body.cut.is_none() && reply.body.bytes.len() >= page);
    let mut rest = Vec::new();
    let read = held[0].read_to_end(&mut rest);
    // It may end in a reset.
    let _ = within("what is left of a page that was given up", read).await;
    assert!(rest.len() < page, "{} of {page} bytes fitted", rest.len());
}

#[tokio::test]
async fn what_callers_make_up_adds_no_series() {
    let upstream = Upstream::start("a").await;
    let sidecar = Sidecar::of(simple("reviews", &[&upstream], "")).await;
    let series = async || sidecar.page("/metrics").await.text().lines().count();
    let mut connection = sidecar.client().connect().await;
    let mut ask = async |number: usize| {
        let path = format!("/{number}?q={number}");
        // A method, a path and a header of each one's own; every tenth a host that nobody has.
        let host = if number.is_multiple_of(10) {
            format!("host-{number}")
        } else {
            "reviews".into()
        };
        let ask = Ask::new(&format!("M{number}"), &path)
            .host(&host)
            .header("x-made-up", &path);
        let reply = connection.send(&ask).await.unwrap();
        assert_eq!(reply.status(), if number.is_multiple_of(10) { 404 } else { 200 });
    };
    for number in 0..20 {
        ask(number).await;
    }
    let before = series().await;
    for number in 20..2_000 {
        ask(number).await;
    }
    assert_eq!(series().await, before);
}

#[tokio::test]
async fn statuses_of_grpc_that_endpoints_make_up_add_one_series() {
    let upstream = GrpcUpstream::start("a").await;
    let file = ServiceFile::new("reviews")
        .field("protocol: grpc")
        .backend("v1", &[upstream.address()])
        .route("default", &[("v1", 1)], "");
    let sidecar = Sidecar::of(file).await;
    upstream.next((100..200).map(Call::Message));
    let mut caller = Caller::open(sidecar.outbound()).await.unwrap();
    for _ in 0..100 {
        let stream = caller.stream();
        let mut head = request("POST", "reviews", "/a.B/C");
        head.push(("content-type".into(), "application/grpc".into()));
        head.push(("te".into(), "trailers".into()));
        let bytes = frame::headers(stream, frame::flag::END_STREAM, &head);
        caller.raw.send(&bytes).await.unwrap();
        let reply = within("the end of a call", caller.reply(stream)).await.unwrap();
        assert_eq!(reply.status(), 200, "{reply:?}");
    }
    let metrics = sidecar
        .metrics_when("the calls", |metrics| {
            metrics.sum("outrigger_grpc_calls_total", &[]) == 100.0
        })
        .await;
    assert_eq!(metrics.matching("outrigger_grpc_calls_total", &[]).count(), 1);
}
