//! An application that knows nothing of the mesh: real programs ask the sidecar for names by the system's own resolver, and
//! connect to port 80 and 5432 of what they are told. Inside of a network of the test's own, which ends with it.

use std::process::Command;

use outrigger_tests::cli::{Ended, finish};
use outrigger_tests::program::{Program, binary};
use outrigger_tests::wait::eventually;
use serde_json::Value;

/// Makes the network: loopback, an address that stands for the rest of the world, the addresses above 240.0.0.0, and a
/// resolver's file that names the sidecar alone. Then it only keeps it.
const NETWORK: &str = "set -e
ip link set lo up
ip address add 192.0.2.1/32 dev lo
ip route add local 240.0.0.0/4 dev lo
mount --bind \"$1\" /etc/resolv.conf
echo made
exec sleep infinity";

/// A server that says a word to whoever connects.
const SAYS: &str = "
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print('listens', flush=True)
while True:
    connection, _ = server.accept()
    connection.sendall(sys.argv[3].encode())
    connection.close()
";

/// A client that asks the system for a name, connects and says what it hears.
const HEARS: &str = "
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as connection:
    print(connection.makefile().read(), connection.getpeername()[0])
";

const MESH: &str = "
kind: Service
name: reviews
backends: [{ name: none, discover: { static: [127.0.0.1:1] } }]
routes: [{ name: all, respond: { status: 200, body: this is reviews } }]
---
kind: Service
name: ratings
hosts: ['*.ratings.example']
backends: [{ name: none, discover: { static: [127.0.0.1:1] } }]
routes: [{ name: all, respond: { status: 200, body: this is ratings } }]
---
kind: Service
name: orders-db
protocol: tcp
backends: [{ name: main, discover: { static: [127.0.0.1:7001] } }]
---
kind: Service
name: stock-db
protocol: tcp
backends: [{ name: main, discover: { static: [127.0.0.1:7002] } }]
";

/// A network and a mount table of the test's own.
struct Namespace {
    keeper: Program,
    folder: tempfile::TempDir,
}

impl Namespace {
    /// `None`: this system does not let the test have one.
    #[expect(clippy::print_stderr, reason = "a test that is left out must be seen")]
    async fn make() -> Option<Self> {
        let mut probe = Command::new("unshare");
        probe.args(["--net", "--mount", "true"]);
        let probed = finish(Program::spawn("unshare", probe)).await;
        if probed.code != 0 {
            eprintln!(
                "SKIPPED: no namespaces here, so no name was resolved by the system's own resolver: {}",
                probed.stderr
            );
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let resolv_conf = folder.path().join("resolv.conf");
        std::fs::write(
            &resolv_conf,
            "nameserver 127.0.0.1\noptions timeout:5 attempts:1\n",
        )
        .unwrap();
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "sh", "-c", NETWORK, "network"]);
        command.arg(&resolv_conf);
        let keeper = Program::spawn("the network", command);
        keeper.printed("that it is made", |line| line == "made").await;
        Some(Self { keeper, folder })
    }

    /// Starts a program in it.
    fn spawn(&self, name: &str, command: &[&str]) -> Program {
        let mut inside = Command::new("nsenter");
        inside.args([
            "--target",
            &self.keeper.id().to_string(),
            "--net",
            "--mount",
            "--",
        ]);
        inside.args(command);
        for variable in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            inside.env_remove(variable).env_remove(variable.to_uppercase());
        }
        Program::spawn(name, inside)
    }

    /// Runs a program in it to its end.
    async fn run(&self, command: &[&str]) -> Ended {
        finish(self.spawn(command[0], command)).await
    }

    /// Starts a server of bytes in it.
    async fn says(&self, address: &str, port: &str, word: &str) -> Program {
        let server = self.spawn(word, &["python3", "-c", SAYS, address, port, word]);
        server.printed("that it listens", |line| line == "listens").await;
        server
    }

    /// Starts a sidecar in it whose pages are at this port, and waits until it is ready.
    async fn sidecar(&self, (mesh, admin): (&str, u16), listeners: &str) -> Program {
        let path = |name: &str| self.folder.path().join(format!("{name}-{admin}.yaml"));
        let (services, bootstrap) = (path("mesh"), path("proxy"));
        std::fs::write(&services, mesh).unwrap();
        let pages = format!("scrape: 127.0.0.2:{admin}\nadmin: 127.0.0.1:{admin}");
        let text = format!("kind: Proxy\nlisteners: {listeners}\n{pages}\n");
        std::fs::write(&bootstrap, text).unwrap();
        let program = binary("outrigger-proxy");
        let arguments = [
            &program,
            &"--config".into(),
            &bootstrap,
            &"--path".into(),
            &services,
        ];
        let arguments = arguments.map(|argument| argument.to_str().unwrap());
        let sidecar = self.spawn("a sidecar", &arguments);
        sidecar.listening("admin").await;
        let page = format!("http://127.0.0.1:{admin}/ready");
        eventually("the sidecar to be ready", async || {
            let ready = self.run(&["curl", "-sf", &page]).await;
            (ready.code == 0).then_some(())
        })
        .await;
        sidecar
    }

    /// Another host on a link of its own to this one, through which it sends what is for addresses above 240.0.0.0. `None`:
    /// this system has no such links.
    #[expect(clippy::print_stderr, reason = "a test that is left out must be seen")]
    async fn neighbour(&self) -> Option<Program> {
        let waits = ["unshare", "--net", "sh", "-c", "echo made; exec sleep infinity"];
        let neighbour = self.spawn("a neighbour", &waits);
        neighbour.printed("that it is made", |line| line == "made").await;
        let its = neighbour.id().to_string();
        let link = format!("link add near type veth peer name far netns {its}");
        let made = self
            .run(&[&["ip"], &link.split(' ').collect::<Vec<_>>()[..]].concat())
            .await;
        if made.code != 0 {
            eprintln!(
                "SKIPPED: no links between namespaces here, so no neighbour was turned away: {}",
                made.stderr
            );
            return None;
        }
        let here = "ip address add 198.51.100.1/30 dev near && ip link set near up";
        self.run(&["sh", "-c", here]).await.ok();
        let there = "ip address add 198.51.100.2/30 dev far && ip link set far up && ip route add 240.0.0.0/4 via 198.51.100.1";
        let inside = ["nsenter", "--target", &its, "--net", "sh", "-c", there];
        self.run(&inside).await.ok();
        Some(neighbour)
    }

    /// What curl prints of this URL, and how it ends.
    async fn curl(&self, arguments: &[&str]) -> (i32, String) {
        let ended = self
            .run(&[&["curl", "-s", "--max-time", "20"], arguments].concat())
            .await;
        (ended.code, ended.stdout.trim().to_owned())
    }
}

#[tokio::test]
async fn programs_that_know_nothing_of_the_mesh_reach_its_services_by_their_names() {
    let Some(namespace) = Namespace::make().await else {
        return;
    };
    let _orders = namespace.says("127.0.0.1", "7001", "orders").await;
    let _stock = namespace.says("127.0.0.1", "7002", "stock").await;
    for (range, begins) in [
        ("127.64.0.0/16", &["127.64."][..]),
        ("240.0.0.0/4", &["24", "25"]),
    ] {
        let dns = format!("{{ address: \"127.0.0.1:53\", range: {range}, ports: [80, 5432] }}");
        let mut sidecar = namespace
            .sidecar((MESH, 9902), &format!("{{ dns: {dns} }}"))
            .await;
        sidecar
            .logged("that it does not ask itself", |line| {
                matches!(&line["message"], Value::String(text) if text.contains("no name server but this listener"))
            })
            .await;
        assert_eq!(
            namespace.curl(&["http://reviews/"]).await,
            (0, "this is reviews".to_owned()),
            "{range}"
        );
        let wild = namespace.curl(&["http://any.ratings.example/"]).await;
        assert_eq!(wild, (0, "this is ratings".to_owned()), "{range}");
        // Its `Host` is that of no service, and the address tells which is meant.
        let by_name = namespace.curl(&["http://ratings/"]).await;
        assert_eq!(by_name, (0, "this is ratings".to_owned()), "{range}");
        // Curl's code for a name that nobody knows.
        assert_eq!(
            namespace.curl(&["http://elsewhere.example/"]).await.0,
            6,
            "{range}"
        );
        let mut peers = Vec::new();
        for (name, word) in [("orders-db", "orders"), ("stock-db", "stock")] {
            let ended = namespace.run(&["python3", "-c", HEARS, name, "5432"]).await.ok();
            let (said, peer) = ended.stdout.trim().split_once(' ').unwrap();
            assert_eq!(said, word, "{range}");
            assert!(begins.iter().any(|begins| peer.starts_with(begins)), "{peer}");
            peers.push(peer.to_owned());
        }
        assert_ne!(peers[0], peers[1]);
        // From elsewhere nobody gets in, though the port is open on every address. Curl's codes for a connection that ends
        // without an answer.
        let (code, said) = namespace
            .curl(&["-H", "Host: reviews", "http://192.0.2.1/"])
            .await;
        assert!([52, 56].contains(&code) && said.is_empty(), "{code} {said}");
        let (_, metrics) = namespace.curl(&["http://127.0.0.1:9902/metrics"]).await;
        assert!(
            metrics.contains("outrigger_connections_cut_total{listener=\"outbound\",reason=\"elsewhere\"} 1")
        );
        if range == "240.0.0.0/4" {
            only_this_host_gets_in(&namespace).await;
        }
        sidecar.terminate();
        sidecar.exited().await;
    }
}

/// The kernel hands over what a neighbour sends to the range as if it were for this host. The sidecar does not take it.
async fn only_this_host_gets_in(namespace: &Namespace) {
    let from = ["--interface", "192.0.2.1", "http://reviews/"];
    let by_an_own_address = namespace.curl(&from).await;
    assert_eq!(by_an_own_address, (0, "this is reviews".to_owned()));
    let Some(neighbour) = namespace.neighbour().await else {
        return;
    };
    let found = namespace
        .run(&["getent", "ahostsv4", "reviews"])
        .await
        .ok()
        .stdout;
    let url = format!("http://{}/", found.split(' ').next().unwrap());
    let id = neighbour.id().to_string();
    let call = [
        "nsenter",
        "--target",
        &id,
        "--net",
        "curl",
        "-sS",
        "--max-time",
        "20",
        "-H",
        "Host: reviews",
        &url,
    ];
    let called = namespace.run(&call).await;
    // It got as far as a connection, which ended without an answer.
    assert!(
        [52, 56].contains(&called.code) && called.stdout.is_empty(),
        "{called:?}"
    );
    let (_, metrics) = namespace.curl(&["http://127.0.0.1:9902/metrics"]).await;
    assert!(
        metrics.contains("outrigger_connections_cut_total{listener=\"outbound\",reason=\"elsewhere\"} 2")
    );
}

/// A mesh whose one service is found by the very name that leads to it.
const FOUND_BY_ITS_OWN_NAME: &str = "
kind: Service
name: orders-db
hosts: [orders.example]
protocol: tcp
backends: [{ name: main, discover: { dns: orders.example, port: 7001 } }]
";

/// What stands for the rest of DNS: a second sidecar, whose own address is where the servers are.
const THE_REST: &str = "
kind: Service
name: orders
hosts: [orders.example, elsewhere.example]
backends: [{ name: none, discover: { static: [127.0.0.1:1] } }]
";

#[tokio::test]
async fn a_sidecar_looks_for_endpoints_past_its_own_answers() {
    let Some(namespace) = Namespace::make().await else {
        return;
    };
    let _orders = namespace.says("127.0.0.9", "7001", "orders").await;
    let rest = "{ outbound: 127.0.0.9:15001, dns: { address: 127.0.0.3:53, ttl: 1s } }";
    let _rest = namespace.sidecar((THE_REST, 9903), rest).await;
    let dns = "{ address: 127.0.0.1:53, range: 127.64.0.0/16, ports: [5432], servers: [127.0.0.3] }";
    let sidecar = format!("{{ dns: {dns} }}");
    let _sidecar = namespace.sidecar((FOUND_BY_ITS_OWN_NAME, 9902), &sidecar).await;
    // The first time it looks there is no mesh yet, of which it could be told; so it must have looked again.
    eventually("the sidecar to look for endpoints again", async || {
        let (_, metrics) = namespace.curl(&["http://127.0.0.1:9903/metrics"]).await;
        let mut lines = metrics.lines();
        let asked = lines.find_map(|line| line.strip_prefix("outrigger_dns_queries_total{result=\"mesh\"} "));
        // By A and by AAAA each time.
        asked
            .is_some_and(|count| count.parse::<u32>().unwrap() >= 6)
            .then_some(())
    })
    .await;
    // The application is told of the virtual address, and the sidecar of the real one.
    let ended = namespace
        .run(&["python3", "-c", HEARS, "orders.example", "5432"])
        .await
        .ok();
    let (said, peer) = ended.stdout.trim().split_once(' ').unwrap();
    assert!(said == "orders" && peer.starts_with("127.64."), "{said} {peer}");
    // What only the rest of DNS knows is found there, by the system's resolver.
    let found = namespace
        .run(&["getent", "ahostsv4", "elsewhere.example"])
        .await
        .ok();
    assert!(found.stdout.starts_with("127.0.0.9 "), "{}", found.stdout);
}
