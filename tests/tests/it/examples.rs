//! The examples are what they say: each is accepted and works, each invalid one is refused in the promised words.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_tests::cli::finish;
use outrigger_tests::dns::{DnsServer, Place};
use outrigger_tests::grpc::GrpcUpstream;
use outrigger_tests::program::{Program, binary};
use outrigger_tests::{Ask, Client, Sidecar, SidecarSpec, Upstream, outrigger};

/// The folder of the examples.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config-examples")
}

/// The files of a folder with this ending, in the order of their names.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == ending))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no .{ending} in {}", folder.display());
    files
}

/// The values of the lines `field: value` in a text, comments left out.
fn values<'a>(text: &'a str, field: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let value = line.strip_prefix(field)?.strip_prefix(": ")?;
        Some(value.split(" #").next().unwrap_or(value).trim())
    })
}

/// The names that stand behind this in a text, without their final dot.
fn names<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    let found = text
        .lines()
        .filter_map(move |line| Some(line.split(" #").next()?.split_once(key)?.1));
    found.map(|name| {
        let end = name.find([',', ' ', '}']).unwrap_or(name.len());
        name[..end].trim_end_matches('.')
    })
}

#[tokio::test]
async fn every_example_is_accepted() {
    for path in files(&folder(), "yaml") {
        let ended = outrigger(&["check".as_ref(), path.as_os_str()]).await;
        assert_eq!(
            ended.code,
            0,
            "{}\n{}{}",
            path.display(),
            ended.stdout,
            ended.stderr
        );
    }
}

/// Puts addresses that can be reached in the place of those that the example writes as `127.0.0.1:PORT`.
fn reachable(text: &str, upstream: SocketAddr) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("127.0.0.1:") {
        result.push_str(&rest[..at]);
        rest = rest[at + "127.0.0.1:".len()..].trim_start_matches(|digit: char| digit.is_ascii_digit());
        result.push_str(&upstream.to_string());
    }
    result.push_str(rest);
    result
}

#[tokio::test]
async fn every_service_of_the_examples_is_loaded_by_a_sidecar_and_answers() {
    let mut answered = 0;
    for path in files(&folder(), "yaml") {
        let text = std::fs::read_to_string(&path).unwrap();
        // What speaks TLS takes servers of its own: `outside` runs it, and `gateway` what takes callers from outside.
        let elsewhere = text.contains("server_name:") || values(&text, "kind").any(|kind| kind == "Gateway");
        if !values(&text, "kind").any(|kind| kind == "Service") || elsewhere {
            continue;
        }
        let (upstream, grpc) = (Upstream::start("a").await, GrpcUpstream::start("a").await);
        let address = match values(&text, "protocol").next() {
            Some("grpc" | "http2") => grpc.address(),
            _ => upstream.address(),
        };
        let dns = DnsServer::start("shop.internal").await;
        // The one server that an example names.
        let mut text = reachable(&text.replace("127.0.0.1:8600", "DNS"), address);
        for name in names(&text, "dns: ") {
            dns.set(name, &[address.ip()], 1).await;
        }
        for name in names(&text, "srv: ") {
            let host = "host.shop.internal";
            dns.set(host, &[address.ip()], 1).await;
            let place = Place {
                priority: 0,
                weight: 0,
                port: address.port(),
                host,
            };
            dns.set_services(name, &[place], 1).await;
        }
        text = text.replace("DNS\"", &format!("{}\"", dns.address()));
        text = text.replace("port: 15000", &format!("port: {}", address.port()));
        // Two endpoints of one backend with one address would be refused as a slip.
        let twice = format!("[{address}, {address}]");
        text = text.replace(&twice, &format!("[{address}]"));
        let mut spec = SidecarSpec::text("a", &text).dns(dns.address());
        let is_tcp = values(&text, "protocol").any(|protocol| protocol == "tcp");
        for name in values(&text, "name").filter(|_| is_tcp) {
            spec = spec.local(name);
        }
        let sidecar = Sidecar::start(spec).await;
        for name in values(&text, "name") {
            let client = if is_tcp {
                // Of bytes an answer of HTTP is as good as any.
                Client::new(sidecar.local(name))
            } else {
                sidecar.client()
            };
            let reply = client.send(Ask::get("/").host(name)).await;
            assert_eq!(
                (reply.status(), reply.upstream()),
                (200, "a"),
                "{}: {reply:?}",
                path.display()
            );
            answered += 1;
        }
    }
    assert!(
        answered >= 4,
        "only {answered} services were found in the examples"
    );
}

#[tokio::test]
async fn every_bootstrap_of_the_examples_is_understood_by_the_proxy() {
    let mut started = 0;
    for path in files(&folder(), "yaml") {
        let text = std::fs::read_to_string(&path).unwrap();
        // A port that no flag moves: `gateway` runs it. What takes a cargo feature is refused without it: see `workload_api`.
        let elsewhere =
            text.contains("gateways:") || text.contains("workload_api:") && !cfg!(feature = "spiffe");
        if !values(&text, "kind").any(|kind| kind == "Proxy") || elsewhere {
            continue;
        }
        // Its ports are fixed, so that it is started with others; the rest stays as it is written.
        let mut command = Command::new(binary("outrigger-proxy"));
        command.arg("--config").arg(&path);
        for flag in ["--inbound", "--outbound", "--scrape", "--admin"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        command.args([
            "--local",
            "127.0.0.1:0=reviews",
            "--control",
            "http://127.0.0.1:1",
        ]);
        let mut program = Program::spawn(&path.display().to_string(), command);
        program.listening("admin").await;
        program.terminate();
        assert_eq!(program.exited().await.code(), Some(0), "{}", path.display());
        started += 1;
    }
    assert!(
        started >= 2,
        "only {started} bootstraps were found in the examples"
    );
}

#[tokio::test]
async fn every_invalid_example_is_refused_in_exactly_the_promised_words() {
    let folder = folder().join("invalid");
    for path in files(&folder, "yaml") {
        let promised = std::fs::read_to_string(path.with_extension("txt")).unwrap_or_else(|error| {
            panic!("{} has no .txt with the promised words: {error}", path.display())
        });
        let name = path.file_name().unwrap();
        let mut command = Command::new(binary("outrigger"));
        command.current_dir(&folder).arg("check").arg(name);
        let ended = finish(Program::spawn("outrigger", command)).await;
        assert_eq!(ended.code, 1, "{}", path.display());
        let count = promised.lines().count();
        let said: Vec<&str> = ended.stdout.lines().take(count).collect();
        assert_eq!(said.join("\n"), promised.trim_end(), "{}", path.display());
        // What follows the problems is a closing line and nothing more.
        assert_eq!(ended.stdout.lines().count(), count + 1, "{}", ended.stdout);
    }
    for path in files(&folder, "txt") {
        assert!(
            path.with_extension("yaml").exists(),
            "{} belongs to no example",
            path.display()
        );
    }
}
