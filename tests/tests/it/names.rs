//! The DNS listener: names of the mesh lead to the sidecar, all others are what the name servers say.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use outrigger_tests::dig::{Dug, dig};
use outrigger_tests::dns::{DnsServer, Manner};
use outrigger_tests::wait::within;
use outrigger_tests::{Ask, Client, ServiceFile, Sidecar, SidecarSpec, Upstream, simple};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

const QUERIES: &str = "outrigger_dns_queries_total";

/// Resolver libraries give up after five seconds; what we say must come before.
const PATIENCE_OF_LIBRARIES: Duration = Duration::from_secs(5);

/// A sidecar that answers names, which has these name servers, and where it is asked.
async fn sidecar(yaml: &str, servers: &[SocketAddr]) -> (Sidecar, SocketAddr) {
    let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
    let dns = format!(
        "{{ address: \"127.0.0.1:0\", servers: [{}] }}",
        servers.join(", ")
    );
    started(SidecarSpec::text("a", yaml), &dns).await
}

/// A sidecar whose services have addresses of this range, by an outbound side that listens on every address.
async fn with_addresses(yaml: &str, range: &str) -> (Sidecar, SocketAddr) {
    let dns = format!("{{ address: \"127.0.0.1:0\", range: {range}, servers: [127.0.0.1:1] }}");
    let spec = SidecarSpec::text("a", yaml).outbound_at((Ipv4Addr::UNSPECIFIED, 0).into());
    started(spec, &dns).await
}

async fn started(spec: SidecarSpec, dns: &str) -> (Sidecar, SocketAddr) {
    let spec = spec.bootstrap(&format!("listeners: {{ dns: {dns} }}\n"));
    let mut sidecar = Sidecar::start(spec).await;
    let dns = sidecar.program().listening("dns").await;
    (sidecar, dns)
}

/// Two services, one with hosts of its own.
async fn shop() -> (String, Upstream) {
    let upstream = Upstream::start("a").await;
    let reviews = simple("reviews", &[&upstream], "");
    let ratings = ServiceFile::new("ratings")
        .field("hosts: [Ratings.shop.internal, '*.ratings.example']")
        .backend("v1", &[upstream.address()]);
    (format!("{reviews}---\n{ratings}"), upstream)
}

fn counted(metrics: &outrigger_tests::metrics::Metrics, result: &str) -> f64 {
    metrics.sum(QUERIES, &[("result", result)])
}

#[tokio::test]
async fn names_of_the_mesh_lead_to_the_outbound_listener() {
    let (yaml, _upstream) = shop().await;
    let (sidecar, dns) = sidecar(&yaml, &[]).await;
    for name in [
        "reviews",
        "REVIEWS.",
        "ratings",
        "ratings.shop.internal",
        "a.b.ratings.example",
    ] {
        for way in ["+notcp", "+tcp"] {
            let dug = dig(dns, &[name, "A", way]).await;
            assert_eq!(
                (dug.status.as_str(), dug.data()),
                ("NOERROR", vec!["127.0.0.1"]),
                "{dug:?}"
            );
            assert_eq!((dug.answer[0].ttl, dug.answer[0].kind.as_str()), (5, "A"));
            assert!(
                ["qr", "aa", "rd", "ra"]
                    .iter()
                    .all(|flag| dug.flags.iter().any(|has| has == flag))
            );
        }
        for kind in ["AAAA", "HTTPS", "TXT", "SRV"] {
            let dug = dig(dns, &[name, kind]).await;
            assert_eq!((dug.status.as_str(), dug.data()), ("NOERROR", vec![]), "{dug:?}");
            assert_eq!((dug.authority[0].ttl, dug.authority[0].kind.as_str()), (5, "SOA"));
        }
    }
    let two = dig(dns, &["+tcp", "+keepopen", "reviews", "A", "ratings", "A"]).await;
    assert_eq!(two.text.matches("status: NOERROR").count(), 2, "{two:?}");
    // As its letters were asked they come back.
    let dug = dig(dns, &["rEvIeWs", "+dnssec"]).await;
    assert_eq!(
        (dug.answer[0].name.as_str(), dug.data()),
        ("rEvIeWs.", vec!["127.0.0.1"])
    );
    assert!(dug.text.contains("flags: do; udp: 1232"), "{dug:?}");
    let metrics = sidecar.metrics().await;
    assert_eq!(counted(&metrics, "mesh"), 33.0);
    assert_eq!(counted(&metrics, "forwarded"), 0.0);
}

#[tokio::test]
async fn a_name_is_of_the_mesh_from_one_push_to_another() {
    let (yaml, upstream) = shop().await;
    let others = DnsServer::start("example").await;
    let (sidecar, dns) = sidecar(&yaml, &[others.address()]).await;
    assert_eq!(dig(dns, &["a.ratings.example"]).await.data(), ["127.0.0.1"]);
    sidecar
        .apply(&simple("reviews", &[&upstream], "").to_string())
        .await;
    assert_eq!(dig(dns, &["a.ratings.example"]).await.status, "NXDOMAIN");
    sidecar.apply(&yaml).await;
    assert_eq!(dig(dns, &["a.ratings.example"]).await.data(), ["127.0.0.1"]);
}

#[tokio::test]
async fn other_names_are_asked_of_the_name_servers_and_their_answers_come_as_they_are() {
    let (yaml, _upstream) = shop().await;
    let others = DnsServer::start("shop.internal").await;
    let many: Vec<IpAddr> = (1..=200)
        .map(|last| Ipv4Addr::new(192, 0, 2, last).into())
        .collect();
    let six: IpAddr = "2001:db8::7".parse().unwrap();
    others.set("db.shop.internal", &[many[6], six], 77).await;
    others.set("many.shop.internal", &many, 77).await;
    let (sidecar, dns) = sidecar(&yaml, &[others.address()]).await;
    for way in ["+notcp", "+tcp"] {
        let same = async |arguments: &[&str]| {
            let arguments = [arguments, &[way, "+nocookie"]].concat();
            let (through, direct) = (
                dig(dns, &arguments).await,
                dig(others.address(), &arguments).await,
            );
            let said = |dug: Dug| (dug.status, dug.flags, dug.answer, dug.authority);
            let through = said(through);
            assert_eq!(through, said(direct), "{arguments:?}");
            through
        };
        let (_, _, answer, _) = same(&["db.shop.internal", "A"]).await;
        assert_eq!((answer[0].data.as_str(), answer[0].ttl), ("192.0.2.7", 77));
        let (_, _, answer, _) = same(&["DB.shop.Internal", "AAAA", "+dnssec"]).await;
        assert_eq!(
            (answer[0].data.as_str(), answer[0].name.as_str()),
            ("2001:db8::7", "db.shop.internal.")
        );
        assert_eq!(same(&["gone.shop.internal", "A"]).await.0, "NXDOMAIN");
        same(&["db.shop.internal", "TXT", "+bufsize=4096"]).await;
    }
    // What is too long for UDP says so, and comes whole over TCP.
    let cut = dig(dns, &["many.shop.internal", "+noedns", "+ignore"]).await;
    assert!(cut.flags.contains(&"tc".to_owned()), "{cut:?}");
    let whole = dig(dns, &["many.shop.internal", "+noedns"]).await;
    assert_eq!(whole.answer.len(), 200);
    let metrics = sidecar.metrics().await;
    assert_eq!(
        (counted(&metrics, "mesh"), counted(&metrics, "failed")),
        (0.0, 0.0)
    );
    assert_eq!(counted(&metrics, "forwarded"), 11.0);
}

#[tokio::test]
async fn a_server_that_is_silent_or_fails_costs_no_question_and_is_not_asked_first_again() {
    let (yaml, _upstream) = shop().await;
    let (first, second) = (
        DnsServer::start("shop.internal").await,
        DnsServer::start("shop.internal").await,
    );
    let address: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
    for server in [&first, &second] {
        server.set("db.shop.internal", &[address], 5).await;
    }
    // Nobody at all, one that says nothing, one that fails, one that answers.
    let nobody = UdpSocket::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let third = DnsServer::start("shop.internal").await;
    first.behave(Manner::Silent);
    third.behave(Manner::Fails);
    let servers = [nobody, first.address(), third.address(), second.address()];
    let (_sidecar, dns) = sidecar(&yaml, &servers).await;
    for _ in 0..5 {
        let dug = dig(dns, &["db.shop.internal"]).await;
        assert_eq!(dug.data(), ["192.0.2.1"], "{dug:?}");
    }
    assert_eq!(
        (first.refused(), third.refused()),
        (1, 1),
        "each was asked once and then the one that answers"
    );
    // It goes, and the one that was silent is back.
    first.behave(Manner::Answers);
    second.behave(Manner::Silent);
    assert_eq!(dig(dns, &["db.shop.internal"]).await.data(), ["192.0.2.1"]);
}

#[tokio::test]
async fn where_no_server_answers_it_is_said_before_libraries_give_up() {
    let (yaml, _upstream) = shop().await;
    let (silent, fails) = (
        DnsServer::start("shop.internal").await,
        DnsServer::start("shop.internal").await,
    );
    silent.behave(Manner::Silent);
    fails.behave(Manner::Fails);
    let (sidecar, dns) = sidecar(&yaml, &[silent.address(), fails.address()]).await;
    let began = Instant::now();
    let dug = dig(dns, &["db.shop.internal", "+timeout=15"]).await;
    assert_eq!(dug.status, "SERVFAIL", "{dug:?}");
    // Where two cores are shared a second more is no wonder; dig's own fifteen would be one.
    assert!(
        began.elapsed() < 2 * PATIENCE_OF_LIBRARIES,
        "{:?}",
        began.elapsed()
    );
    // The mesh does not wait for them.
    assert_eq!(dig(dns, &["reviews"]).await.data(), ["127.0.0.1"]);
    let again = dig(dns, &["db.shop.internal", "+tcp", "+timeout=15"]).await;
    assert_ne!(again.status, "NOERROR", "{again:?}");
    // A server that fails is better than none: its own answer comes.
    let metrics = sidecar.metrics().await;
    assert!(counted(&metrics, "forwarded") + counted(&metrics, "failed") == 2.0);
    assert!(
        silent.refused() >= 2,
        "a question that may be lost is asked again"
    );
}

/// A name server that asks another, which may be the one who asks it: it sends every question on, and answers back.
async fn passes_on(
    to: Arc<std::sync::OnceLock<SocketAddr>>,
    anew: bool,
) -> (SocketAddr, Arc<AtomicUsize>, JoinHandle<()>) {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let (address, asked) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&asked);
    let task = tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, asker)) = socket.recv_from(&mut buffer).await {
            let mut question = buffer[..length].to_vec();
            let number = count.fetch_add(1, Ordering::SeqCst);
            if anew {
                // Another spelling each time, as from who writes names at random.
                for (bit, byte) in question[13..].iter_mut().take(7).enumerate() {
                    if number >> bit & 1 == 1 {
                        byte.make_ascii_uppercase();
                    } else {
                        byte.make_ascii_lowercase();
                    }
                }
            }
            let (socket, to) = (Arc::clone(&socket), *to.get().unwrap());
            tokio::spawn(async move {
                let onward = UdpSocket::bind("127.0.0.1:0").await?;
                onward.send_to(&question, to).await?;
                let mut answer = [0; 4096];
                let length = onward.recv(&mut answer).await?;
                socket.send_to(&answer[..length], asker).await
            });
        }
    });
    (address, asked, task)
}

#[tokio::test]
async fn a_question_that_comes_back_by_a_name_server_does_not_go_round() {
    for anew in [false, true] {
        let (yaml, _upstream) = shop().await;
        let round = Arc::new(std::sync::OnceLock::new());
        let (server, asked, task) = passes_on(Arc::clone(&round), anew).await;
        let (sidecar, dns) = sidecar(&yaml, &[server]).await;
        round.set(dns).unwrap();
        let dug = dig(dns, &["elsewhere.example", "+nocookie", "+timeout=15"]).await;
        assert_eq!(dug.status, "SERVFAIL", "{dug:?}");
        // Each of the few that differ is sent a few times, and no more come of them.
        let asked = asked.load(Ordering::SeqCst);
        assert!(asked <= 16 * 4, "it was asked {asked} times");
        sidecar
            .metrics_when("that all ended", |metrics| counted(metrics, "failed") >= 1.0)
            .await;
        assert_eq!(dig(dns, &["reviews"]).await.data(), ["127.0.0.1"]);
        task.abort();
    }
}

#[tokio::test]
async fn many_who_ask_the_same_are_answered_by_one_question() {
    let (yaml, _upstream) = shop().await;
    let others = DnsServer::start("shop.internal").await;
    others.behave(Manner::Silent);
    let (_sidecar, dns) = sidecar(&yaml, &[others.address()]).await;
    let ask = async || {
        dig(dns, &["db.shop.internal", "+nocookie", "+timeout=15"])
            .await
            .status
    };
    let (one, two, three) = tokio::join!(ask(), ask(), ask());
    assert_eq!([one, two, three], ["SERVFAIL"; 3]);
    assert!(
        others.refused() <= 4 + 4,
        "it was asked {} times",
        others.refused()
    );
}

#[tokio::test]
async fn what_is_no_question_is_refused_or_met_with_silence_and_harms_nobody() {
    let (yaml, _upstream) = shop().await;
    let (sidecar, dns) = sidecar(&yaml, &[]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(dns).await.unwrap();
    let answer = async |message: &[u8]| {
        let mut answer = [0; 512];
        socket.send(message).await.unwrap();
        let length = within("an answer", socket.recv(&mut answer)).await.unwrap();
        answer[..length].to_vec()
    };
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07reviews\x00\x00\x01\x00\x01";
    // Answers, and what has no whole head: an answer to the question behind them is the first that comes.
    let mut response = question.to_vec();
    (response[1], response[2]) = (0x99, 0x81);
    for silent in [&response[..], b"", b"x", &question[..11]] {
        socket.send(silent).await.unwrap();
        assert_eq!(answer(question).await[..2], question[..2]);
    }
    // Half a question is FORMERR, another operation NOTIMP.
    assert_eq!(answer(&question[..17]).await[..4], [0x12, 0x34, 0x81, 1]);
    // So is one with much behind it, which would be kept for as long as the name servers are asked.
    let mut long = question.to_vec();
    long.resize(65_000, 0);
    long[13] = b'x';
    assert_eq!(answer(&long).await[..4], [0x12, 0x34, 0x81, 1]);
    let mut stream = TcpStream::connect(dns).await.unwrap();
    stream.write_u16(65_000).await.unwrap();
    stream.write_all(&long).await.unwrap();
    let (length, mut head) = (stream.read_u16().await.unwrap(), [0; 4]);
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!((length, head), (12, [0x12, 0x34, 0x81, 1]));
    let mut update = question.to_vec();
    update[2] = 5 << 3;
    let refused = answer(&update).await;
    assert_eq!((refused[2] & 0xf8, refused[3] & 0xf), (0x80 | 5 << 3, 4));
    assert_eq!(dig(dns, &["reviews", "AXFR", "+notcp"]).await.data(), [""; 0]);
    // A connection that breaks in the middle, and one that says nothing.
    let mut half = TcpStream::connect(dns).await.unwrap();
    half.write_all(&[0, 40, 1, 2]).await.unwrap();
    drop(half);
    let _silent = TcpStream::connect(dns).await.unwrap();
    assert_eq!(dig(dns, &["reviews", "+tcp"]).await.data(), ["127.0.0.1"]);
    sidecar
        .metrics_when("what was refused", |metrics| counted(metrics, "refused") >= 8.0)
        .await;
}

/// A server that says its name and hangs up.
async fn says(word: &'static str) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(word.as_bytes()).await;
        }
    });
    (address, task)
}

fn tcp_service(name: &str, endpoint: SocketAddr) -> ServiceFile {
    ServiceFile::new(name)
        .field("protocol: tcp")
        .backend("v1", &[endpoint])
}

/// The virtual address of a name.
async fn address_of(dns: SocketAddr, name: &str) -> IpAddr {
    let dug = dig(dns, &[name]).await;
    let data = dug.data();
    assert_eq!(data.len(), 1, "{dug:?}");
    data[0].parse().unwrap()
}

async fn said_at(address: impl tokio::net::ToSocketAddrs) -> String {
    let mut text = String::new();
    let mut stream = TcpStream::connect(address).await.unwrap();
    within("what it says", stream.read_to_string(&mut text))
        .await
        .unwrap();
    text
}

#[tokio::test]
async fn services_that_speak_tcp_share_a_port_by_their_addresses() {
    let (yaml, _upstream) = shop().await;
    let ((orders, _a), (stock, _b)) = (says("orders").await, says("stock").await);
    let yaml = format!(
        "{yaml}---\n{}---\n{}",
        tcp_service("orders-db", orders),
        tcp_service("stock-db", stock)
    );
    let (sidecar, dns) = with_addresses(&yaml, "127.64.0.0/16").await;
    let port = sidecar.outbound().port();
    for (name, word) in [("orders-db", "orders"), ("stock-db", "stock")] {
        assert_eq!(said_at((address_of(dns, name).await, port)).await, word);
    }
    sidecar
        .metrics_when("a connection of each", |metrics| {
            let ended = |service| metrics.sum("outrigger_tcp_connections_total", &[("service", service)]);
            (ended("orders-db"), ended("stock-db")) == (1.0, 1.0)
        })
        .await;
    // And of HTTP on the same port: by its `Host`, and without one that is known by the address.
    let reviews = Client::new((address_of(dns, "reviews").await, port).into());
    let service = async |client: &Client, host: &str| {
        let reply = client.send(Ask::get("/").host(host)).await;
        (reply.status(), reply.reason().map(str::to_owned))
    };
    for host in ["reviews", "ratings.shop.internal", "localhost:80", "127.64.1.2"] {
        assert_eq!(service(&reviews, host).await, (200, None), "{host}");
    }
    let metrics = sidecar.metrics().await;
    let answered = |service| metrics.sum("outrigger_requests_total", &[("service", service)]);
    assert_eq!((answered("reviews"), answered("ratings")), (3.0, 1.0));
    // At the sidecar's own address nothing is known but the `Host`.
    let own = Client::new((Ipv4Addr::LOCALHOST, port).into());
    assert_eq!(
        service(&own, "localhost").await,
        (404, Some("no-service".to_owned()))
    );
    // A name that leads to no address of IPv6 says so, and no more.
    assert_eq!(dig(dns, &["reviews", "AAAA"]).await.data(), [""; 0]);
}

#[tokio::test]
async fn the_address_of_a_service_is_the_same_everywhere_and_always() {
    let (yaml, upstream) = shop().await;
    let (sidecar, dns) = with_addresses(&yaml, "127.64.0.0/16").await;
    let (reviews, ratings) = (
        address_of(dns, "reviews").await,
        address_of(dns, "x.ratings.example").await,
    );
    assert_ne!(reviews, ratings);
    assert_eq!(address_of(dns, "ratings").await, ratings);
    // What it is with another range or another way to draw is in the unit tests; here it must not move.
    assert_eq!(reviews, IpAddr::from([127, 64, 46, 249]));
    let more = format!("{yaml}---\n{}", simple("another", &[&upstream], ""));
    sidecar.apply(&more).await;
    assert_eq!(address_of(dns, "reviews").await, reviews);
    // One that knows but one of them.
    let (_other, dns) =
        with_addresses(&simple("reviews", &[&upstream], "").to_string(), "127.64.0.0/16").await;
    assert_eq!(address_of(dns, "reviews").await, reviews);
}

#[tokio::test]
async fn an_endpoint_with_a_virtual_address_is_a_loop_and_is_not_called() {
    let upstream = Upstream::start("a").await;
    let (sidecar, dns) =
        with_addresses(&simple("reviews", &[&upstream], "").to_string(), "127.64.0.0/16").await;
    // As where the sidecar looks for endpoints by a name server that asks it in its turn.
    let virtual_address = SocketAddr::new(address_of(dns, "reviews").await, upstream.address().port());
    sidecar
        .apply(
            &ServiceFile::new("reviews")
                .backend("v1", &[virtual_address])
                .to_string(),
        )
        .await;
    let reply = sidecar.client().get("reviews", "/").await;
    assert_eq!((reply.status(), reply.reason()), (508, Some("loop")));
}

#[tokio::test]
async fn a_range_that_is_too_small_is_told_and_the_rest_have_their_addresses() {
    let upstream = Upstream::start("a").await;
    let files: Vec<_> = (0..255)
        .map(|number| simple(&format!("s{number:03}"), &[&upstream], "").to_string())
        .collect();
    let (mut sidecar, dns) = with_addresses(&files.join("---\n"), "127.64.0.0/24").await;
    let line = sidecar
        .program()
        .logged("that the range is too small", |line| {
            line["range"] == "127.64.0.0/24" && line["services"] != serde_json::Value::Null
        })
        .await;
    assert!(line["services"].to_string().contains("s254"), "{line}");
    assert_eq!(dig(dns, &["s254"]).await.status, "SERVFAIL");
    assert!(address_of(dns, "s000").await.is_loopback());
}

#[tokio::test]
async fn names_are_answered_until_the_end_of_the_drain() {
    let upstream = Upstream::start("a").await;
    let (addresses, _task) = says("db").await;
    let yaml = format!(
        "{}---\n{}",
        simple("reviews", &[&upstream], ""),
        tcp_service("db", addresses)
    );
    let dns = "{ address: \"127.0.0.1:0\", servers: [127.0.0.1:1] }";
    let hold = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let held = tcp_service("held", hold.local_addr().unwrap());
    let spec = SidecarSpec::text("a", &format!("{yaml}---\n{held}")).local("held");
    let (mut sidecar, dns) = started(spec, dns).await;
    let mut stream = TcpStream::connect(sidecar.local("held")).await.unwrap();
    let (mut far, _) = within("the connection", hold.accept()).await.unwrap();
    sidecar.program().terminate();
    sidecar
        .program()
        .logged("that it drains", |line| line["message"] == "draining")
        .await;
    assert_eq!(dig(dns, &["reviews"]).await.data(), ["127.0.0.1"]);
    far.write_all(b"bye").await.unwrap();
    drop(far);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    drop(stream);
    assert_eq!(sidecar.program().exited().await.code(), Some(0));
}

#[tokio::test]
async fn a_listener_that_outsiders_may_reach_is_warned_of() {
    let (yaml, _upstream) = shop().await;
    let spec = SidecarSpec::text("a", &yaml).with("--dns-listener", "0.0.0.0:0");
    let mut sidecar = Sidecar::start(spec).await;
    sidecar
        .program()
        .logged("a warning", |line| {
            line["level"] == "WARN" && line["message"].to_string().contains("not on loopback")
        })
        .await;
}
