//! Services that speak TCP: bytes both ways, of which the sidecar understands nothing.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_tests::wait::{eventually, within};
use outrigger_tests::{Load, LoadSpec, ServiceFile, Sidecar, SidecarSpec, Upstream, simple};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const ENDED: &str = "outrigger_tcp_connections_total";
const OPEN: &str = "outrigger_tcp_connections_open";
const BYTES: &str = "outrigger_tcp_bytes_total";

/// A server of bytes: what it does with each connection is its test's affair.
struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    async fn start<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        Self { address, task }
    }

    /// Stops listening; once this returns nobody is taken any more.
    async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Says back what it hears, until it hears no more.
    async fn echo() -> Self {
        Self::start(async |mut stream| {
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        })
        .await
    }

    /// Says this word, and then nothing more, at once.
    async fn says(word: &'static str) -> Self {
        Self::start(move |mut stream| async move {
            let _ = stream.write_all(word.as_bytes()).await;
            let _ = stream.shutdown().await;
        })
        .await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn file(backends: &[(&str, &[SocketAddr])], fields: &str) -> ServiceFile {
    let to: Vec<_> = backends.iter().map(|(name, _)| (*name, 1)).collect();
    let file = ServiceFile::new("db").field("protocol: tcp");
    let file = backends
        .iter()
        .fold(file, |file, (name, endpoints)| file.backend(name, endpoints));
    file.route("default", &to, fields)
}

async fn sidecar(file: ServiceFile) -> Sidecar {
    Sidecar::start(SidecarSpec::text("a", &file.to_string()).local("db")).await
}

async fn connect(sidecar: &Sidecar) -> TcpStream {
    TcpStream::connect(sidecar.local("db")).await.unwrap()
}

/// All that comes until the other side ends.
async fn rest(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut text = String::new();
    within("the end of a stream", stream.read_to_string(&mut text)).await?;
    Ok(text)
}

#[tokio::test]
async fn bytes_go_both_ways_through_both_sidecars_and_each_half_ends_by_itself() {
    let echo = Server::echo().await;
    let beside = file(&[("v1", &[echo.address])], "").app(echo.address);
    let spec = SidecarSpec::text("server", &beside.to_string()).beside("db");
    let server = Sidecar::start(spec).await;
    let client = sidecar(file(&[("v1", &[server.inbound()])], "")).await;

    let mut stream = connect(&client).await;
    // More than any buffer on the way, so that both directions must move at once.
    let sent: Vec<u8> = (0..3_000_000_u32)
        .map(|at| at.to_le_bytes()[at as usize % 3])
        .collect();
    let (mut from, mut to) = stream.split();
    let mut received = Vec::new();
    let speak = async {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    };
    within("the echo", async {
        tokio::join!(speak, from.read_to_end(&mut received)).1.unwrap()
    })
    .await;
    assert!(
        received == sent,
        "{} bytes came back of {}",
        received.len(),
        sent.len()
    );

    for (sidecar, listener) in [(&client, "outbound"), (&server, "inbound")] {
        let labels = [("listener", listener), ("service", "db"), ("reason", "")];
        let metrics = sidecar
            .metrics_when("the connection to be counted", |metrics| {
                metrics.sum(ENDED, &labels) == 1.0
            })
            .await;
        for direction in ["sent", "received"] {
            assert_eq!(
                metrics.sum(BYTES, &[("direction", direction)]),
                3e6,
                "{listener} {direction}"
            );
        }
        assert_eq!(metrics.sum(OPEN, &[]), 0.0);
    }
}

#[tokio::test]
async fn an_end_of_the_server_s_side_leaves_the_caller_s_open() {
    let server = Server::start(async |mut stream| {
        stream.write_all(b"all that I say").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "and I go on");
    })
    .await;
    let sidecar = sidecar(file(&[("v1", &[server.address])], "")).await;
    let mut stream = connect(&sidecar).await;
    assert_eq!(rest(&mut stream).await.unwrap(), "all that I say");
    stream.write_all(b"and I go on").await.unwrap();
    stream.shutdown().await.unwrap();
    sidecar
        .metrics_when("both ends to have ended in peace", |metrics| {
            metrics.sum(ENDED, &[("reason", "")]) == 1.0
                && metrics.sum(BYTES, &[("direction", "sent")]) == 11.0
        })
        .await;
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_before_the_caller_has_said_a_word() {
    let greeter = Server::start(async |mut stream| {
        stream.write_all(b"220 ready\r\n").await.unwrap();
        let mut word = [0; 4];
        stream.read_exact(&mut word).await.unwrap();
        stream.write_all(b"221 bye\r\n").await.unwrap();
    })
    .await;
    let sidecar = sidecar(file(&[("v1", &[greeter.address])], "")).await;
    let mut stream = connect(&sidecar).await;
    let mut greeting = [0; 11];
    within("the greeting", stream.read_exact(&mut greeting))
        .await
        .unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    stream.write_all(b"QUIT").await.unwrap();
    assert_eq!(rest(&mut stream).await.unwrap(), "221 bye\r\n");
}

#[tokio::test]
async fn a_reset_on_one_side_is_a_reset_on_the_other() {
    let resets = Server::start(async |mut stream| {
        let _ = stream.read_u8().await;
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    })
    .await;
    let sidecar = sidecar(file(&[("v1", &[resets.address])], "")).await;
    let mut stream = connect(&sidecar).await;
    stream.write_all(b"x").await.unwrap();
    let error = rest(&mut stream).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    sidecar
        .metrics_when("the reset to be counted", |metrics| {
            metrics.sum(ENDED, &[("reason", "upstream-reset")]) == 1.0
        })
        .await;
}

#[tokio::test]
async fn a_caller_s_reset_reaches_the_server() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let listens = Server::start(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut all = Vec::new();
            let kind = stream.read_to_end(&mut all).await.map_err(|error| error.kind());
            tell.send(kind).unwrap();
        }
    })
    .await;
    let sidecar = sidecar(file(&[("v1", &[listens.address])], "")).await;
    let mut stream = connect(&sidecar).await;
    stream.write_all(b"x").await.unwrap();
    sidecar
        .metrics_when("the connection to stand", |metrics| metrics.sum(OPEN, &[]) == 1.0)
        .await;
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(stream);
    let heard = within("the server to hear of it", told.recv()).await.unwrap();
    assert_eq!(heard, Err(std::io::ErrorKind::ConnectionReset));
    sidecar
        .metrics_when("it to be the caller's", |metrics| {
            metrics.sum(ENDED, &[("reason", "client-gone")]) == 1.0
        })
        .await;
}

#[tokio::test]
async fn connections_are_split_by_weight_and_one_backend_s_death_is_not_felt() {
    let (one, two) = (Server::says("one").await, Server::says("two").await);
    let file = ServiceFile::new("db")
        .field("protocol: tcp")
        .backend("v1", &[one.address])
        .backend("v2", &[two.address])
        .route("default", &[("v1", 3), ("v2", 1)], "retry: { attempts: 3 }");
    let sidecar = sidecar(file).await;
    let mut heard = Vec::new();
    for _ in 0..40 {
        heard.push(rest(&mut connect(&sidecar).await).await.unwrap());
    }
    let ones = heard.iter().filter(|word| *word == "one").count();
    assert!(
        (29..=31).contains(&ones),
        "{ones} of 40 went to v1, which has three quarters"
    );

    one.stop().await;
    for _ in 0..20 {
        assert_eq!(rest(&mut connect(&sidecar).await).await.unwrap(), "two");
    }
}

#[tokio::test]
async fn where_nobody_answers_the_caller_is_reset_at_once_and_the_reason_is_counted() {
    let dead = Server::says("").await.address;
    let mut sidecar = sidecar(file(&[("v1", &[dead])], "")).await;
    let asked = async {
        // The reset may come while the connection is still being made.
        let mut stream = TcpStream::connect(sidecar.local("db")).await?;
        rest(&mut stream).await
    };
    let error = asked.await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let labels = [("service", "db"), ("backend", "v1"), ("reason", "connect-failed")];
    sidecar
        .metrics_when("the failure to be counted", |metrics| {
            metrics.sum(ENDED, &labels) == 1.0
        })
        .await;
    let printed = |line: &str| line.contains("\"reason\":\"connect-failed\"");
    let line = sidecar.program().printed("why", printed).await;
    assert!(
        line.contains("\"protocol\":\"tcp\"") && line.contains(&dead.to_string()),
        "{line}"
    );
}

#[tokio::test]
async fn a_connection_on_which_nobody_speaks_is_given_up_after_its_idle_time() {
    let silent = Server::start(async |mut stream| {
        let _ = stream.read_u8().await;
    })
    .await;
    let sidecar = sidecar(file(&[("v1", &[silent.address])], "timeout: { idle: 200ms }")).await;
    let mut stream = connect(&sidecar).await;
    assert_eq!(rest(&mut stream).await.unwrap(), "");
    sidecar
        .metrics_when("the silence to be counted", |metrics| {
            metrics.sum(ENDED, &[("reason", "idle-timeout")]) == 1.0
        })
        .await;
}

#[tokio::test]
async fn a_push_that_takes_an_endpoint_away_leaves_its_connections_and_moves_new_ones() {
    let (old, new) = (Server::echo().await, Server::says("new").await);
    let sidecar = sidecar(file(&[("v1", &[old.address])], "")).await;
    let mut stream = connect(&sidecar).await;
    stream.write_all(b"a").await.unwrap();
    assert_eq!(within("an echo", stream.read_u8()).await.unwrap(), b'a');
    sidecar
        .apply(&file(&[("v1", &[new.address])], "").to_string())
        .await;
    assert_eq!(rest(&mut connect(&sidecar).await).await.unwrap(), "new");
    stream.write_all(b"b").await.unwrap();
    assert_eq!(within("another echo", stream.read_u8()).await.unwrap(), b'b');
}

#[tokio::test]
async fn a_drain_waits_for_a_connection_until_its_time_is_over_and_then_says_that_it_cut_it() {
    let echo = Server::echo().await;
    let spec = SidecarSpec::text("a", &file(&[("v1", &[echo.address])], "").to_string());
    let mut sidecar = Sidecar::start(spec.local("db").with("--drain", "2s")).await;
    let (mut ends, mut stays) = (connect(&sidecar).await, connect(&sidecar).await);
    for stream in [&mut ends, &mut stays] {
        stream.write_all(b"a").await.unwrap();
        assert_eq!(within("an echo", stream.read_u8()).await.unwrap(), b'a');
    }
    sidecar.program().terminate();
    eventually("/ready to be 503", async || {
        Some(sidecar.page("/ready").await).filter(|page| page.status() == 503)
    })
    .await;
    ends.write_all(b"b").await.unwrap();
    assert_eq!(
        within("an echo while it drains", ends.read_u8()).await.unwrap(),
        b'b'
    );
    ends.shutdown().await.unwrap();
    assert_eq!(rest(&mut ends).await.unwrap(), "");
    let status = sidecar.program().exited().await;
    assert_eq!(status.code(), Some(0));
    let printed = |line: &str| line.contains("\"reason\":\"draining\"");
    let line = sidecar.program().printed("why", printed).await;
    assert!(line.contains("\"protocol\":\"tcp\""), "{line}");
    let _ = rest(&mut stays).await;
}

#[tokio::test]
async fn connect_opens_a_tunnel_to_a_service_that_speaks_tcp_and_loses_no_byte() {
    let greeter = Server::start(async |mut stream| {
        // Sent with the head of the answer, if that is possible at all.
        stream.write_all(b"hello").await.unwrap();
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    })
    .await;
    let sidecar = sidecar(file(&[("v1", &[greeter.address])], "")).await;
    let mut stream = TcpStream::connect(sidecar.outbound()).await.unwrap();
    // What the caller sends behind its request, without waiting for the answer, is the tunnel's too.
    stream
        .write_all(b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\nearly,")
        .await
        .unwrap();
    stream.write_all(b" late").await.unwrap();
    stream.shutdown().await.unwrap();
    let all = rest(&mut stream).await.unwrap();
    let (head, bytes) = all.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(!head.to_ascii_lowercase().contains("content-length"), "{head}");
    assert_eq!(bytes, "helloearly, late");
}

#[tokio::test]
async fn a_request_for_a_service_that_speaks_tcp_is_refused_with_words_and_connect_to_one_that_does_not() {
    let http = Upstream::start("a").await;
    let tcp = Server::echo().await;
    let files = format!(
        "{}---\n{}",
        file(&[("v1", &[tcp.address])], ""),
        simple("reviews", &[&http], "")
    );
    let sidecar = Sidecar::of(files).await;
    let reply = sidecar.client().get("db", "/").await;
    assert_eq!((reply.status(), reply.reason()), (404, Some("no-route")));
    let mut stream = TcpStream::connect(sidecar.outbound()).await.unwrap();
    let ask = b"CONNECT reviews:80 HTTP/1.1\r\nHost: reviews:80\r\nConnection: close\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let answer = rest(&mut stream).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(http.requests(), 0);
}

#[tokio::test]
async fn requests_go_on_beside_hundreds_of_silent_connections() {
    let silent = Server::start(async |mut stream| {
        let _ = stream.write_u8(1).await;
        let _ = stream.read_u8().await;
    })
    .await;
    let http = Upstream::start("a").await;
    let files = format!(
        "{}---\n{}",
        file(&[("v1", &[silent.address])], ""),
        simple("reviews", &[&http], "")
    );
    let spec = SidecarSpec::text("a", &files).local("db");
    let sidecar = Sidecar::start(spec).await;
    let mut held = Vec::new();
    for _ in 0..400 {
        let mut stream = connect(&sidecar).await;
        // One after the other, so that none waits longer in the server's queue than the sidecar waits for it.
        within("the server to take it", stream.read_u8()).await.unwrap();
        held.push(stream);
    }
    sidecar
        .metrics_when("all to stand", |metrics| metrics.sum(OPEN, &[]) == 400.0)
        .await;
    let load = Load::start(LoadSpec::new(sidecar.outbound(), "reviews", 4));
    load.has_done(500).await;
    load.stop().await.assert_clean();
}
