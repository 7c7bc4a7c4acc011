//! Servers of the web that speak TLS: Debian's nginx, which says what it saw of a caller, and HAProxy, which takes TLS off
//! in front of anything else.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::pki::Issued;
use crate::program::Program;
use crate::wait::eventually;

/// An address that nobody listens on, as a rule until its server does.
pub fn free() -> SocketAddr {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    socket.local_addr().expect("a bound socket has an address")
}

/// A program of Debian, with its configuration in a folder of its own.
fn start(name: &str, folder: &Path, config: &str, arguments: &[&str]) -> Program {
    let path = folder.join("server.conf");
    std::fs::write(&path, config).expect("a file in a temporary folder");
    // Debian keeps servers where not everyone's path leads.
    let found = ["/usr/sbin", "/usr/bin"].map(|folder| Path::new(folder).join(name));
    let program = found.iter().find(|path| path.exists());
    let program = program.unwrap_or_else(|| panic!("{name} is not installed; tests/run installs it"));
    let mut command = Command::new(program);
    command.args(arguments).arg(&path).current_dir(folder);
    Program::spawn(name, command)
}

async fn listens(name: &str, address: SocketAddr) {
    eventually(&format!("{name} to listen"), async || {
        std::net::TcpStream::connect(address).is_ok().then_some(())
    })
    .await;
}

/// A server on one port, or several.
#[derive(Debug)]
pub struct TlsServer {
    addresses: Vec<SocketAddr>,
    program: Program,
    folder: TempDir,
}

/// What nginx answers with: what it was asked for in the handshake, the host of the request, both versions, whether it was
/// shown a certificate, and whether the session was resumed (`r`) or not (`.`).
const SAW: &str =
    "$ssl_server_name $host $server_protocol $ssl_protocol $ssl_client_verify $ssl_session_reused";

impl TlsServer {
    /// nginx with a port for each of these certificates, which speaks HTTP/1.1 and HTTP/2 and these versions of TLS, and
    /// asks its callers for a certificate that it does not demand. Its answer says what it saw.
    pub async fn nginx(certificates: &[&Issued], versions: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path().display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {root}/{what};"))
            .join(" ");
        let mut servers = String::new();
        let mut addresses = Vec::new();
        for (number, issued) in certificates.iter().enumerate() {
            let address = free();
            write(folder.path(), &format!("{number}.pem"), &issued.certificate);
            write(folder.path(), &format!("{number}.key"), &issued.key);
            servers.push_str(&format!(
                "server {{ listen {address} ssl http2; ssl_certificate {root}/{number}.pem; ssl_certificate_key \
                 {root}/{number}.key;\nssl_protocols {versions}; ssl_verify_client optional_no_ca;\n\
                 location / {{ return 200 \"{SAW}\"; }} }}\n"
            ));
            addresses.push(address);
        }
        let config = format!(
            "daemon off; pid {root}/nginx.pid; error_log stderr; events {{}}\n\
             http {{ access_log off; {temporary}\n{servers} }}\n"
        );
        let program = start("nginx", folder.path(), &config, &["-c"]);
        for address in &addresses {
            listens("nginx", *address).await;
        }
        Self {
            addresses,
            program,
            folder,
        }
    }

    /// HAProxy, which takes off TLS with the first of these certificates that has the name that is asked for, and hands the
    /// bytes on. `options` are those of its `bind`, such as `alpn h2`.
    pub async fn in_front_of(behind: SocketAddr, certificates: &[&Issued], options: &str) -> Self {
        let (folder, address) = (tempfile::tempdir().expect("a temporary folder"), free());
        let root = folder.path().join("certificates");
        std::fs::create_dir(&root).expect("a folder in it");
        for (number, issued) in certificates.iter().enumerate() {
            let both = format!("{}{}", issued.certificate, issued.key);
            write(&root, &format!("{number}.pem"), &both);
        }
        let config = format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             frontend tls\n bind {address} ssl crt {} {options}\n default_backend behind\n\
             backend behind\n server behind {behind}\n",
            root.display()
        );
        let program = start("haproxy", folder.path(), &config, &["-db", "-f"]);
        listens("HAProxy", address).await;
        Self {
            addresses: vec![address],
            program,
            folder,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Where it listens with the certificate of that place.
    pub fn at(&self, place: usize) -> SocketAddr {
        self.addresses[place]
    }

    /// The process.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).expect("a file in a temporary folder");
}
