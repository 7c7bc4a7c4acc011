//! Debian's own servers behind a sidecar, by HTTP/1.1 and by HTTP/2: nginx, Apache, and HAProxy in front of nginx.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use outrigger_tests::client::Reply;
use outrigger_tests::program::Program;
use outrigger_tests::wait::eventually;
use outrigger_tests::{Ask, Client, Load, LoadSpec, ServiceFile, Sidecar};

/// Larger than every buffer on the way.
const LARGE: usize = 5_000_000;

/// A server on two addresses of its own: HTTP/1.1 on the first, HTTP/2 with prior knowledge on the second.
struct Server {
    http1: SocketAddr,
    http2: SocketAddr,
    _programs: Vec<Program>,
    _folder: tempfile::TempDir,
}

/// An address that nobody listens on, as a rule until its server does.
fn free() -> SocketAddr {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.local_addr().unwrap()
}

fn large() -> Vec<u8> {
    (0..LARGE).map(|at| (at % 251) as u8).collect()
}

/// A folder with what the servers serve, which their own users may read and write.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::write(folder.path().join("small.txt"), "small").unwrap();
    std::fs::write(folder.path().join("large.bin"), large()).unwrap();
    folder
}

fn start(name: &str, folder: &Path, file: &str, config: &str, arguments: &[&str]) -> Program {
    let path = folder.join(file);
    std::fs::write(&path, config).unwrap();
    // Debian keeps servers where not everyone's path leads.
    let found = ["/usr/sbin", "/usr/bin"].map(|folder| Path::new(folder).join(name));
    let program = found.iter().find(|path| path.exists());
    let program = program.unwrap_or_else(|| panic!("{name} is not installed; tests/run installs it"));
    let mut command = Command::new(program);
    command.args(arguments).arg(&path).current_dir(folder);
    Program::spawn(name, command)
}

fn nginx(folder: &Path, http1: SocketAddr, http2: SocketAddr) -> Program {
    let root = folder.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {root}/{what};"))
        .join(" ");
    let config = format!(
        "daemon off; pid {root}/nginx.pid; error_log stderr; events {{}}\n\
         http {{ access_log off; {temporary} root {root}; client_max_body_size 0; gzip on; gzip_min_length 1;\n\
         gzip_types text/plain;\n\
         server {{ listen {http1}; listen {http2} http2;\n\
         location / {{ }} location /upload {{ return 200 taken; }} }} }}\n"
    );
    start("nginx", folder, "nginx.conf", &config, &["-c"])
}

async fn started(
    name: &str,
    http1: SocketAddr,
    http2: SocketAddr,
    programs: Vec<Program>,
    folder: tempfile::TempDir,
) -> Server {
    eventually(&format!("{name} to answer"), async || {
        let both = [http1, http2].map(|address| std::net::TcpStream::connect(address).is_ok());
        (both == [true; 2]).then_some(())
    })
    .await;
    Server {
        http1,
        http2,
        _programs: programs,
        _folder: folder,
    }
}

/// What every server must give through the sidecar, byte for byte.
async fn serves(client: &Client, upload: &str, what: &str) {
    for _ in 0..20 {
        let reply = client.send(Ask::get("/small.txt").host("files")).await;
        assert_eq!(
            (reply.status(), &reply.body.bytes[..]),
            (200, &b"small"[..]),
            "{what}"
        );
    }
    let get = |path: &str| Ask::get(path).host("files");
    let reply = client.send(get("/large.bin")).await;
    assert!(
        reply.body.bytes == large() && reply.body.cut.is_none(),
        "{what}: {}",
        reply.status()
    );
    let head = client.send(Ask::new("HEAD", "/large.bin").host("files")).await;
    assert_eq!(length(&head), Some(LARGE), "{what}: {head:?}");
    let tag = head.head.header("etag").expect("an ETag").to_owned();
    let same = client.send(get("/large.bin").header("if-none-match", &tag)).await;
    assert_eq!((same.status(), same.body.bytes.len()), (304, 0), "{what}");
    let part = client
        .send(get("/large.bin").header("range", "bytes=1000-1009"))
        .await;
    assert_eq!(
        (part.status(), &part.body.bytes[..]),
        (206, &large()[1000..1010]),
        "{what}"
    );
    let gone = client.send(get("/gone")).await;
    assert_eq!(gone.status(), 404, "{what}");
    assert_eq!(gone.reason(), None, "{what}: the 404 is the server's");
    for ask in [
        Ask::post(upload, large()).host("files"),
        Ask::post(upload, large()).host("files").chunked(),
        Ask::post(upload, "").host("files"),
    ] {
        let reply = client.send(ask).await;
        assert_eq!(reply.status(), 200, "{what}: {:?}", reply.head);
    }
}

fn length(reply: &Reply) -> Option<usize> {
    reply.head.header("content-length")?.parse().ok()
}

async fn serves_in_both_versions(server: &Server, upload: &str) {
    for (protocol, address) in [("http", server.http1), ("http2", server.http2)] {
        let file = ServiceFile::new("files")
            .field(&format!("protocol: {protocol}"))
            .backend("v1", &[address]);
        let sidecar = Sidecar::of(file).await;
        serves(&sidecar.client(), upload, protocol).await;
        let load = Load::start(LoadSpec {
            asks: vec![
                Ask::get("/small.txt").host("files"),
                Ask::new("HEAD", "/small.txt").host("files"),
                Ask::post(upload, "x").host("files"),
            ],
            ..LoadSpec::new(sidecar.outbound(), "files", 8)
        });
        load.has_done(1_500).await;
        load.stop().await.assert_clean();
    }
}

#[tokio::test]
async fn nginx_behind_a_sidecar_loses_nothing_in_either_version() {
    let (folder, http1, http2) = (folder(), free(), free());
    std::fs::write(folder.path().join("style.txt"), "a { color: red }\n".repeat(1000)).unwrap();
    let program = nginx(folder.path(), http1, http2);
    let server = started("nginx", http1, http2, vec![program], folder).await;
    serves_in_both_versions(&server, "/upload").await;
    // Packed while it is sent, so that its length is not known: chunks.
    let sidecar = Sidecar::of(ServiceFile::new("files").backend("v1", &[server.http1])).await;
    let ask = Ask::get("/style.txt")
        .host("files")
        .header("accept-encoding", "gzip");
    let reply = sidecar.client().send(ask).await;
    assert_eq!(
        reply.head.header("transfer-encoding"),
        Some("chunked"),
        "{:?}",
        reply.head
    );
    assert_eq!(reply.head.header("content-encoding"), Some("gzip"));
    assert!(reply.body.cut.is_none() && !reply.body.bytes.is_empty());
}

#[tokio::test]
async fn apache_behind_a_sidecar_loses_nothing_in_either_version() {
    let (folder, http1, http2) = (folder(), free(), free());
    let root = folder.path().display();
    let modules = ["mpm_event", "authz_core", "mime", "http2"]
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .concat();
    let config = format!(
        "{modules}ServerRoot {root}\nServerName files\nPidFile {root}/apache.pid\nErrorLog /dev/stderr\n\
         Mutex file:{root}\nTypesConfig /dev/null\nListen {http1}\nListen {http2}\nDocumentRoot {root}\n\
         Protocols h2c http/1.1\nH2Direct on\n<Directory {root}>\nRequire all granted\n</Directory>\n"
    );
    let program = start(
        "apache2",
        folder.path(),
        "apache.conf",
        &config,
        &["-DFOREGROUND", "-f"],
    );
    let server = started("Apache", http1, http2, vec![program], folder).await;
    serves_in_both_versions(&server, "/small.txt").await;
}

#[tokio::test]
async fn haproxy_behind_a_sidecar_loses_nothing_in_either_version() {
    let (folder, behind, spare) = (folder(), free(), free());
    let (http1, http2) = (free(), free());
    let first = nginx(folder.path(), behind, spare);
    let config = format!(
        "defaults\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
         frontend one\n bind {http1}\n default_backend files\n\
         frontend two\n bind {http2} proto h2\n default_backend files\n\
         backend files\n server nginx {behind}\n"
    );
    let second = start("haproxy", folder.path(), "haproxy.cfg", &config, &["-db", "-f"]);
    let server = started("HAProxy", http1, http2, vec![first, second], folder).await;
    let client = Client::new(behind);
    eventually("nginx to answer", async || {
        client.try_send(&Ask::get("/small.txt").host("files")).await.ok()
    })
    .await;
    serves_in_both_versions(&server, "/upload").await;
}
