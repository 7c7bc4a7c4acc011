//! DNS servers that people run: dnsmasq and Knot, on ports of loopback, their records changed while they run.
//!
//! Knot is the authority of its zone; dnsmasq has hosts of its own, and can stand before another server as the cache
//! that a machine or a node has. tests/run installs both.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::program::Program;
use crate::wait::eventually;

/// The file of dnsmasq with the hosts, which it reads again when it is told to.
const HOSTS: &str = "hosts";

/// A socket's path has 108 bytes in the kernel; the temporary folder and this fit.
const CONTROL: &str = "knot.sock";

/// dnsmasq: addresses from a hosts file of its own, all else from the server behind it, if there is one.
#[derive(Debug)]
pub struct Dnsmasq {
    address: SocketAddr,
    arguments: Vec<String>,
    program: Program,
    folder: TempDir,
}

impl Dnsmasq {
    /// Starts one with these addresses for a name, told with this TTL.
    pub async fn start(name: &str, addresses: &[IpAddr], ttl_seconds: u32) -> Self {
        let arguments = vec![
            format!("--local-ttl={ttl_seconds}"),
            "--neg-ttl=1".to_owned(),
            // What is in no file does not exist, and nobody else is asked.
            "--local=/#/".to_owned(),
        ];
        Self::with(arguments, &hosts(name, addresses)).await
    }

    /// Starts one that asks this server and keeps its answers for as long as their TTL says.
    pub async fn before(server: SocketAddr) -> Self {
        let arguments = vec![format!("--server={}#{}", server.ip(), server.port())];
        Self::with(arguments, "").await
    }

    async fn with(arguments: Vec<String>, hosts: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join(HOSTS), hosts).expect("a file in it");
        let address = free().await;
        let program = dnsmasq(&arguments, address, folder.path());
        let started = Self {
            address,
            arguments,
            program,
            folder,
        };
        started.answers().await;
        started
    }

    /// Where it answers, over UDP and TCP.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on a name has these addresses and no other name has any; none of them: it does not exist.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        self.set_while_dead(name, addresses);
        let id = i32::try_from(self.program.id()).expect("a process id");
        let id = Pid::from_raw(id).expect("a process id");
        kill_process(id, Signal::HUP).expect("dnsmasq can be told to read its hosts again");
    }

    /// The same for one that does not run: it reads its hosts when it starts.
    pub fn set_while_dead(&self, name: &str, addresses: &[IpAddr]) {
        // dnsmasq reads the file as soon as it is told; a half-written one must not be there then.
        let fresh = self.folder.path().join("fresh");
        std::fs::write(&fresh, hosts(name, addresses)).expect("a file in a temporary folder");
        std::fs::rename(&fresh, self.folder.path().join(HOSTS)).expect("a file that can be renamed");
    }

    /// Ends it without a word: its port refuses questions.
    pub fn kill(&mut self) {
        self.program.kill();
    }

    /// Starts it once more where it was.
    pub async fn revive(&mut self) {
        self.program = dnsmasq(&self.arguments, self.address, self.folder.path());
        self.answers().await;
    }

    /// It listens before it has read its hosts, and says when it has.
    async fn answers(&self) {
        eventually("dnsmasq to have read its hosts", async || {
            let read = self
                .program
                .log()
                .into_iter()
                .find(|line| line.contains(": read "));
            read.map(drop)
        })
        .await;
    }
}

fn hosts(name: &str, addresses: &[IpAddr]) -> String {
    addresses.iter().fold(String::new(), |mut text, address| {
        writeln!(text, "{address} {name}").expect("a string takes everything");
        text
    })
}

fn dnsmasq(arguments: &[String], address: SocketAddr, folder: &Path) -> Program {
    let mut command = installed("dnsmasq");
    command
        .args([
            "--keep-in-foreground",
            "--log-facility=-",
            "--conf-file=/dev/null",
            "--no-hosts",
            "--no-resolv",
        ])
        .args(["--bind-interfaces", "--no-poll", "--pid-file="])
        // Nobody else, so that it may read the folder of the test.
        .arg(format!("--user={}", user()))
        .arg(format!("--listen-address={}", address.ip()))
        .arg(format!("--port={}", address.port()))
        .arg(format!("--addn-hosts={}", folder.join(HOSTS).display()))
        .args(arguments);
    Program::spawn("dnsmasq", command)
}

/// Knot, the authority of one zone.
#[derive(Debug)]
pub struct Knot {
    address: SocketAddr,
    zone: String,
    _program: Program,
    folder: TempDir,
}

impl Knot {
    /// Starts it for the names under `zone`, of which there is none yet.
    pub async fn start(zone: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = free().await;
        let root = folder.path().display();
        let (ip, port) = (address.ip(), address.port());
        let config = format!(
            "server:\n  rundir: {root}\n  listen: {ip}@{port}\n  udp-workers: 1\n  tcp-workers: 1\n\
             control:\n  listen: {root}/{CONTROL}\ndatabase:\n  storage: {root}/db\n\
             log:\n  - target: stderr\n    any: info\n\
             zone:\n  - domain: {zone}\n    file: {root}/zone\n    journal-content: none\n    zonefile-sync: -1\n\
             \n    zonefile-load: whole\n"
        );
        let records = format!("{zone}. 1 SOA {zone}. {zone}. 1 60 60 60 1\n{zone}. 1 NS {zone}.\n");
        std::fs::write(folder.path().join("zone"), records).expect("a file in a temporary folder");
        std::fs::write(folder.path().join("knot.conf"), config).expect("a file in a temporary folder");
        let mut command = installed("knotd");
        command.arg("-c").arg(folder.path().join("knot.conf"));
        let knot = Self {
            address,
            zone: zone.to_owned(),
            _program: Program::spawn("knotd", command),
            folder,
        };
        eventually("Knot to have its zone", async || {
            knot.control(&["zone-read", zone]).ok()
        })
        .await;
        knot
    }

    /// Where it answers, over UDP and TCP.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on a name, relative to the zone, has these records and no others, such as `A 127.0.0.1`; none of them: it
    /// does not exist.
    pub fn set(&self, name: &str, records: &[String], ttl_seconds: u32) {
        let zone = self.zone.as_str();
        let change = |arguments: &[&str]| {
            self.control(arguments)
                .unwrap_or_else(|error| panic!("knotc {arguments:?}: {error}"));
        };
        change(&["zone-begin", zone]);
        // What is not there cannot be removed, and need not be.
        let _ = self.control(&["zone-unset", zone, name]);
        for record in records {
            let (kind, data) = record.split_once(' ').expect("a type and its data");
            change(&["zone-set", zone, name, &ttl_seconds.to_string(), kind, data]);
        }
        change(&["zone-commit", zone]);
    }

    /// The same for addresses.
    pub fn set_addresses(&self, name: &str, addresses: &[IpAddr], ttl_seconds: u32) {
        let record = |address: &IpAddr| match address {
            IpAddr::V4(address) => format!("A {address}"),
            IpAddr::V6(address) => format!("AAAA {address}"),
        };
        let records: Vec<_> = addresses.iter().map(record).collect();
        self.set(name, &records, ttl_seconds);
    }

    fn control(&self, arguments: &[&str]) -> Result<(), String> {
        let output = installed("knotc")
            .arg("-s")
            .arg(self.folder.path().join(CONTROL))
            .args(arguments)
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout))
    }
}

/// A program of Debian's, which keeps servers where not everyone's path leads.
fn installed(name: &str) -> Command {
    let paths = ["/usr/sbin", "/usr/bin"].map(|folder| PathBuf::from(folder).join(name));
    let found = paths.iter().find(|path| path.exists());
    Command::new(found.unwrap_or_else(|| panic!("{name} is not installed; tests/run installs it")))
}

/// Whom the test runs as, by name or number.
fn user() -> String {
    let output = Command::new("id")
        .arg("-un")
        .output()
        .expect("`id` says who we are");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// An address that is free for UDP and TCP, as a rule until its server takes it.
async fn free() -> SocketAddr {
    let (udp, _tcp) = crate::dns::sockets().await;
    udp.local_addr().expect("a bound socket has an address")
}
