//! What reaches an inbound port before anybody knows who it is: handshakes that do not end, that make no sense, that come in
//! floods. Each ends in time with the alert of its fault, is counted, and keeps nobody else waiting.

use std::time::Duration;

use outrigger_tests::tls::{ALERT, HANDSHAKE, Hello, record};
use outrigger_tests::wait::{eventually, within};
use outrigger_tests::{IdentityFiles, Pki, Sidecar, SidecarSpec, Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::mtls::{HANDSHAKES, STRICT, beside, caller, server};

const OPEN: &str = "outrigger_connections_open";
const BROKEN: &[(&str, &str)] = &[("side", "inbound"), ("result", "tls-handshake")];

/// The codes of alerts (RFC 8446 section 6).
mod alert {
    pub(super) const UNEXPECTED_MESSAGE: u8 = 10;
    pub(super) const DECODE_ERROR: u8 = 50;
    pub(super) const PROTOCOL_VERSION: u8 = 70;
}

/// A strict service between both sidecars.
struct Scene {
    _app: Upstream,
    server: Sidecar,
    caller: Sidecar,
    _files: [IdentityFiles; 2],
}

impl Scene {
    async fn new() -> Self {
        let app = Upstream::start("a").await;
        let pki = Pki::new();
        let files = [pki.files("reviews"), pki.files("productpage")];
        let server = server(app.address(), STRICT, &files[0]).await;
        let caller = caller(&server, STRICT, &files[1]).await;
        Self {
            _app: app,
            server,
            caller,
            _files: files,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server.inbound()).await.unwrap()
    }

    async fn is_well(&mut self) {
        let reply = self.caller.client().get("reviews", "/").await;
        assert_eq!((reply.status(), reply.upstream()), (200, "a"), "{reply:?}");
        assert!(self.server.program().is_running());
        let log = self.server.program().log();
        let panics: Vec<_> = log.iter().filter(|line| line.contains("panicked")).collect();
        assert_eq!(panics, Vec::<&String>::new());
    }

    /// Waits until so many handshakes have failed.
    async fn have_failed(&self, count: usize) {
        let what = format!("{count} handshakes that failed");
        let passes =
            |metrics: &outrigger_tests::metrics::Metrics| metrics.sum(HANDSHAKES, BROKEN) == count as f64;
        self.server.metrics_when(&what, passes).await;
    }
}

fn may_open_thousands() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        ..limit
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
}

#[tokio::test]
async fn two_thousand_half_hellos_are_cut_in_time_hold_little_and_keep_nobody_waiting() {
    const CONNECTIONS: usize = 2_000;
    // A kilobyte of hello is kept for each, and its task: 17 KiB were seen, with buffers.
    const MEMORY_MAX: u64 = 64 * 1024 * 1024;
    may_open_thousands();
    let mut scene = Scene::new().await;
    scene.is_well().await;
    let before = scene.server.program().memory_peak();
    let hello = Hello {
        padding: 800,
        ..Hello::default()
    };
    let hello = hello.records(1 << 14);
    let mut ends = tokio::task::JoinSet::new();
    for count in 0..CONNECTIONS {
        let mut stream = scene.connect().await;
        let hello = hello.clone();
        ends.spawn(async move {
            let (mut from, mut to) = stream.split();
            let sending = async {
                match count % 4 {
                    // All but the end.
                    0 | 1 => to.write_all(&hello[..hello.len() - 1]).await?,
                    // No more than the head of a record.
                    2 => to.write_all(&hello[..5]).await?,
                    // One byte after the other, which would take longer than anybody is waited for.
                    _ => {
                        for byte in hello.chunks(1) {
                            to.write_all(byte).await?;
                            tokio::time::sleep(Duration::from_millis(40)).await;
                        }
                    }
                }
                std::future::pending::<std::io::Result<()>>().await
            };
            let mut rest = Vec::new();
            tokio::select! {
                _ = sending => {}
                _ = from.read_to_end(&mut rest) => {}
            }
            assert!(!rest.starts_with(b"HTTP/"), "{rest:?}");
        });
    }
    scene.is_well().await;
    within("the end of every one of them", async {
        while let Some(ended) = ends.join_next().await {
            ended.unwrap();
        }
    })
    .await;
    scene.have_failed(CONNECTIONS).await;
    let gone = scene.server.metrics_when("them gone", |metrics| {
        metrics.sum(OPEN, &[("listener", "inbound")]) <= 1.0
    });
    gone.await;
    let held = scene.server.program().memory_peak() - before;
    assert!(held < MEMORY_MAX, "{held} bytes for {CONNECTIONS} half hellos");
    scene.is_well().await;
}

/// What is no hello of TLS 1.3, and the alert that it ends with.
fn no_hellos() -> Vec<(&'static str, Vec<u8>, u8)> {
    let hello = Hello::default();
    let of_versions = |versions: &[u16]| {
        let versions = versions.to_vec();
        Hello {
            versions,
            ..Hello::default()
        }
        .records(1 << 14)
    };
    let mut cut_short = hello.message();
    cut_short.truncate(40);
    let length = cut_short.len() - 4;
    cut_short[3] = u8::try_from(length).unwrap();
    cut_short[2] = 0;
    vec![
        ("TLS 1.2 alone", of_versions(&[0x0303]), alert::PROTOCOL_VERSION),
        (
            "TLS 1.1 and 1.0",
            of_versions(&[0x0302, 0x0301]),
            alert::PROTOCOL_VERSION,
        ),
        (
            "a hello older than the extension",
            of_versions(&[]),
            alert::PROTOCOL_VERSION,
        ),
        (
            "a version that is none",
            of_versions(&[0x7f1c]),
            alert::PROTOCOL_VERSION,
        ),
        (
            "garbage",
            record(HANDSHAKE, &[&[1, 0, 1, 40][..], &[0xff; 296]].concat()),
            alert::DECODE_ERROR,
        ),
        (
            "a hello that is cut short",
            record(HANDSHAKE, &cut_short),
            alert::DECODE_ERROR,
        ),
        (
            "text",
            b"\x16GET / HTTP/1.1\r\nHost: reviews\r\n\r\n".to_vec(),
            alert::DECODE_ERROR,
        ),
        (
            "a record that is too long",
            [&[0x16, 3, 1, 0xff, 0xff][..], &[0; 100]].concat(),
            alert::DECODE_ERROR,
        ),
        (
            "another message",
            record(HANDSHAKE, &[20, 0, 0, 1, 0]),
            alert::UNEXPECTED_MESSAGE,
        ),
        (
            "an empty record",
            [record(HANDSHAKE, &[]), hello.records(1 << 14)].concat(),
            alert::DECODE_ERROR,
        ),
    ]
}

#[tokio::test]
async fn what_is_no_hello_of_tls_1_3_ends_with_the_alert_of_its_fault_and_is_counted() {
    let mut scene = Scene::new().await;
    let mut failed = 0;
    for (what, bytes, expected) in no_hellos() {
        let mut stream = scene.connect().await;
        stream.write_all(&bytes).await.unwrap();
        let mut said = Vec::new();
        // It ends and is not reset, so that the alert is read.
        within("an end", stream.read_to_end(&mut said)).await.unwrap();
        // Of a fatal alert there is no other level (RFC 8446 section 6.2).
        assert_eq!(said, [ALERT, 3, 3, 0, 2, 2, expected], "{what}");
        failed += 1;
        scene.have_failed(failed).await;
    }
    scene.is_well().await;
}

#[tokio::test]
async fn a_hello_in_many_records_is_taken_and_one_without_end_is_not() {
    let mut scene = Scene::new().await;
    let mut failed = 0;
    // Real ones have two kilobytes at most. 64 KiB are kept of one, the heads of its records among them.
    for (padding, size) in [(8_000, 1), (30_000, 10), (60_000, 1 << 14)] {
        let hello = Hello {
            padding,
            ..Hello::default()
        };
        let mut stream = scene.connect().await;
        stream.write_all(&hello.records(size)).await.unwrap();
        let first = within("an answer", stream.read_u8()).await.unwrap();
        assert_eq!(first, HANDSHAKE, "{padding} bytes in records of {size}");
        failed += 1;
    }
    // One that says that it has 64 KiB more than may be, one that has so many heads, and one of 16 MiB.
    let many = Hello {
        padding: 30_000,
        ..Hello::default()
    };
    let huge = |length: [u8; 3]| {
        let begun = [&[1][..], &length, &[0; (1 << 14) - 4]].concat();
        let more = record(HANDSHAKE, &[0; 1 << 14]);
        [record(HANDSHAKE, &begun), more.repeat(20)].concat()
    };
    for bytes in [huge([1, 0xff, 0xff]), many.records(1), huge([0xff; 3])] {
        let mut stream = scene.connect().await;
        // It may be closed on while it still sends.
        let _ = stream.write_all(&bytes).await;
        let mut said = Vec::new();
        let _ = within("an end", stream.read_to_end(&mut said)).await;
        assert_ne!(said.first(), Some(&HANDSHAKE), "{} bytes", bytes.len());
        failed += 1;
        scene.have_failed(failed).await;
    }
    scene.is_well().await;
}

#[tokio::test]
async fn a_flood_of_handshakes_that_are_broken_off_keeps_nobody_waiting() {
    const HANDSHAKES_BROKEN_OFF: usize = 300;
    let mut scene = Scene::new().await;
    let hello = Hello::default().records(1 << 14);
    for count in 0..HANDSHAKES_BROKEN_OFF {
        let mut stream = scene.connect().await;
        stream.write_all(&hello).await.unwrap();
        // Once its answer is there, the costly part has been done.
        assert_eq!(within("an answer", stream.read_u8()).await.unwrap(), HANDSHAKE);
        if count % 2 == 0 {
            socket2::SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        }
        drop(stream);
        if count % 50 == 0 {
            scene.is_well().await;
        }
    }
    scene.have_failed(HANDSHAKES_BROKEN_OFF).await;
    scene.is_well().await;
}

#[tokio::test]
async fn a_half_hello_to_a_service_that_speaks_tcp_is_hung_up_on_by_a_drain() {
    let app = Upstream::start("a").await;
    let pki = Pki::new();
    let files = pki.files("reviews");
    let text = beside(app.address(), &format!("protocol: tcp\n{STRICT}"));
    let spec = SidecarSpec::text("server", &text)
        .beside("reviews")
        .identity(&files);
    // It hangs up after half of it, and cuts what is left at its end.
    let mut server = Sidecar::start(spec.with("--drain", "4s")).await;
    let mut stream = TcpStream::connect(server.inbound()).await.unwrap();
    stream
        .write_all(&Hello::default().records(1 << 14)[..20])
        .await
        .unwrap();
    eventually("the connection to be taken", async || {
        let metrics = server.metrics().await;
        (metrics.sum(OPEN, &[("listener", "inbound")]) == 1.0).then_some(())
    })
    .await;
    server.program().terminate();
    let mut rest = Vec::new();
    let _ = within("its end", stream.read_to_end(&mut rest)).await;
    server.program().exited().await;
    let log = server.program().log();
    let cut: Vec<_> = log.iter().filter(|line| line.contains("were cut")).collect();
    assert_eq!(cut, Vec::<&String>::new());
}
