//! TLS as openssl speaks it: a client that shows a certificate, for the ends of this harness, which speak plaintext.
//!
//! It is no library of the proxy's, so that a fault in one is not shared by the other.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;

use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::background::Background;
use crate::pki::IdentityFiles;

/// A port in plaintext. Each of its connections goes on by TLS, through an `openssl s_client` of its own, and has as many
/// connections behind it as it has itself.
#[derive(Debug)]
pub struct TlsRelay {
    address: SocketAddr,
    _running: Background,
}

impl TlsRelay {
    /// Goes on to this address with this certificate, or with none, and offers these protocols (RFC 7301), if any.
    pub async fn start(to: SocketAddr, files: Option<&IdentityFiles>, alpn: Option<&str>) -> Self {
        let running = Background::start("tls relay");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port")
            .into_std()
            .expect("a socket");
        let address = listener.local_addr().expect("a bound socket has an address");
        let arguments = client(to, files, alpn);
        running.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a socket");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(go_on(stream, arguments.clone()));
            }
        });
        Self {
            address,
            _running: running,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The arguments of an `openssl s_client` that connects here.
pub fn client(to: SocketAddr, files: Option<&IdentityFiles>, alpn: Option<&str>) -> Vec<String> {
    let mut arguments = vec!["s_client".to_owned(), "-connect".to_owned(), to.to_string()];
    if let Some(files) = files {
        for (flag, file) in [("-cert", "certificate.pem"), ("-key", "key.pem")] {
            arguments.extend([flag.to_owned(), files.path(file).display().to_string()]);
        }
    }
    if let Some(alpn) = alpn {
        arguments.extend(["-alpn".to_owned(), alpn.to_owned()]);
    }
    arguments
}

async fn go_on(mut stream: TcpStream, arguments: Vec<String>) {
    let mut command = Command::new("openssl");
    // Quiet: what is written is what is sent, and no letter is a command.
    command.args(arguments).arg("-quiet").kill_on_drop(true);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().expect("openssl can be started");
    let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return;
    };
    let (mut from, mut to) = stream.split();
    let sending = async {
        let _ = tokio::io::copy(&mut from, &mut stdin).await;
    };
    let receiving = async {
        let _ = tokio::io::copy(&mut stdout, &mut to).await;
    };
    tokio::pin!(sending, receiving);
    // When one side has gone the other goes too: openssl knows no connection that is half open.
    tokio::select! {
        () = &mut receiving => {}
        () = &mut sending => {}
    }
}
