//! A real database behind `protocol: tcp`: PostgreSQL's own server and client, with both sidecars between them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_tests::cli::{Ended, finish};
use outrigger_tests::program::Program;
use outrigger_tests::wait::eventually;
use outrigger_tests::{ServiceFile, Sidecar, SidecarSpec};

/// The user that Debian's package makes. The server refuses to run as root.
const USER: &str = "postgres";

/// Rows that are copied in and out: some megabytes, more than every buffer on the way.
const ROWS: usize = 200_000;

/// Where Debian keeps the programs of the newest version that is installed.
fn programs() -> PathBuf {
    let versions =
        std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed; tests/run installs it");
    let mut versions: Vec<_> = versions.map(|version| version.unwrap().path()).collect();
    versions.sort();
    versions.pop().expect("a version of PostgreSQL").join("bin")
}

/// One of its programs, as a user whom the server accepts.
fn program(name: &str) -> Command {
    let path = programs().join(name);
    // Root alone may look into every folder.
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| {
        use std::os::unix::fs::MetadataExt;
        own.uid() == 0
    });
    if !is_root {
        return Command::new(path);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", USER, "--"]).arg(path);
    command
}

/// A server with nothing in it.
struct Database {
    address: SocketAddr,
    _program: Program,
    folder: tempfile::TempDir,
}

impl Database {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The server's user must be able to make its own folder inside.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let data = folder.path().join("data");
        let mut init = program("initdb");
        init.args([
            "--auth=trust",
            "--no-sync",
            "--no-locale",
            "--encoding=UTF8",
            "-U",
            USER,
            "-D",
        ]);
        let ended = finish(Program::spawn("initdb", at(init, &data))).await;
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        // Nobody else takes it in the moment between, as a rule.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap()
            .local_addr()
            .unwrap();
        let mut serve = program("postgres");
        serve.args([
            "-h",
            "127.0.0.1",
            "-p",
            &address.port().to_string(),
            "-F",
            "-k",
            "",
        ]);
        serve.arg("-D");
        let program = Program::spawn("postgres", at(serve, &data));
        let database = Self {
            address,
            _program: program,
            folder,
        };
        eventually("the database to answer", async || {
            let ended = ask(database.address, "select 1").await;
            (ended.code == 0).then_some(())
        })
        .await;
        database
    }
}

fn at(mut command: Command, data: &Path) -> Command {
    command.arg(data).current_dir("/");
    command
}

/// Asks with PostgreSQL's own client.
async fn ask(address: SocketAddr, sql: &str) -> Ended {
    let mut command = program("psql");
    command.args([
        "-X",
        "-A",
        "-t",
        "-v",
        "ON_ERROR_STOP=1",
        "-U",
        USER,
        "-d",
        "postgres",
        "-h",
    ]);
    command.args([
        &address.ip().to_string(),
        "-p",
        &address.port().to_string(),
        "-c",
        sql,
    ]);
    command.current_dir("/");
    finish(Program::spawn("psql", command)).await
}

#[tokio::test]
async fn a_postgresql_client_works_through_both_sidecars() {
    let database = Database::start().await;
    let file = || ServiceFile::new("orders-db").field("protocol: tcp");
    let beside = file().app(database.address).backend("main", &[database.address]);
    let spec = SidecarSpec::text("server", &beside.to_string());
    let server = Sidecar::start(spec.beside("orders-db")).await;
    let called = file().backend("main", &[server.inbound()]);
    let spec = SidecarSpec::text("client", &called.to_string());
    let client = Sidecar::start(spec.local("orders-db")).await;
    let local = client.local("orders-db");

    let made = ask(
        local,
        &format!("create table orders as select n, md5(n::text) as word from generate_series(1, {ROWS}) n"),
    )
    .await;
    assert_eq!((made.code, made.stderr.as_str()), (0, ""));
    // Megabytes out, and the same in again.
    let copy = database.folder.path().join("orders.txt");
    let copy = copy.display();
    for sql in [
        format!("\\copy orders to '{copy}'"),
        "create table again (like orders)".to_owned(),
        format!("\\copy again from '{copy}'"),
    ] {
        let copied = ask(local, &sql).await;
        assert_eq!((copied.code, copied.stderr.as_str()), (0, ""), "{sql}");
    }
    let same = "select count(*) from orders join again using (n, word)";
    assert_eq!(ask(local, same).await.stdout.trim(), ROWS.to_string());
    let wrong = ask(local, "select nothing from nowhere").await;
    assert!(wrong.stderr.contains("nowhere"), "{}", wrong.stderr);

    let labels = [("service", "orders-db"), ("reason", "")];
    let metrics = client
        .metrics_when("its connections to be over", |metrics| {
            metrics.sum("outrigger_tcp_connections_total", &labels) >= 4.0
        })
        .await;
    for direction in ["sent", "received"] {
        let bytes = metrics.sum("outrigger_tcp_bytes_total", &[("direction", direction)]);
        assert!(bytes > 7e6, "{bytes} bytes {direction}");
    }
}
