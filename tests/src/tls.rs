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

/// The types of records (RFC 8446 section 5.1).
pub const ALERT: u8 = 0x15;
/// Of those of a handshake.
pub const HANDSHAKE: u8 = 0x16;

/// What opens a handshake, byte by byte, for those that go no further. It shows no certificate and knows no secret.
#[derive(Clone, Debug)]
pub struct Hello {
    /// The versions that it offers, by the numbers of RFC 8446 section 4.2.1; none: it is older than the extension.
    pub versions: Vec<u16>,
    /// The protocols that it offers.
    pub alpn: Vec<&'static str>,
    /// So many bytes that mean nothing (RFC 7685).
    pub padding: usize,
    /// Whether it says that it knows a session, and that the first of its request follows at once.
    pub resumes: bool,
}

impl Default for Hello {
    fn default() -> Self {
        Self {
            versions: vec![0x0304],
            alpn: Vec::new(),
            padding: 0,
            resumes: false,
        }
    }
}

impl Hello {
    /// The message itself (RFC 8446 section 4.1.2).
    pub fn message(&self) -> Vec<u8> {
        let two = |number: usize| {
            u16::try_from(number)
                .expect("a length of two bytes")
                .to_be_bytes()
        };
        let one = |number: usize| u8::try_from(number).expect("a length of one byte");
        let mut extensions = Vec::new();
        let mut extension = |kind: u16, content: &[u8]| {
            extensions.extend([&kind.to_be_bytes()[..], &two(content.len()), content].concat());
        };
        // Signatures and groups that every server knows, and a share of X25519: any bytes are one.
        extension(13, &[0, 4, 4, 3, 8, 4]);
        extension(10, &[0, 2, 0, 0x1d]);
        extension(51, &[&[0, 36, 0, 0x1d, 0, 32][..], &[9; 32]].concat());
        if !self.versions.is_empty() {
            let versions: Vec<u8> = self
                .versions
                .iter()
                .flat_map(|version| version.to_be_bytes())
                .collect();
            extension(43, &[&[one(versions.len())][..], &versions].concat());
        }
        if !self.alpn.is_empty() {
            let names = self.alpn.iter();
            let names: Vec<u8> = names
                .flat_map(|name| [&[one(name.len())], name.as_bytes()].concat())
                .collect();
            extension(16, &[&two(names.len())[..], &names].concat());
        }
        if self.padding > 0 {
            extension(21, &vec![0; self.padding]);
        }
        if self.resumes {
            // With a share beside it; something early; and last a ticket of 64 bytes that nobody gave, its age and its
            // binder (RFC 8446 sections 4.2.9 to 4.2.11).
            extension(45, &[1, 1]);
            extension(42, &[]);
            let identity = [&[0, 70, 0, 64][..], &[5; 64], &[0; 4]].concat();
            extension(41, &[&identity[..], &[0, 33, 32], &[6; 32]].concat());
        }
        let suites = [0x13, 0x01, 0x13, 0x02, 0x13, 0x03, 0xc0, 0x2b, 0xc0, 0x2f];
        let mut body = [&[3, 3][..], &[7; 32], &[0], &two(suites.len()), &suites, &[1, 0]].concat();
        body.extend([&two(extensions.len())[..], &extensions].concat());
        let length = u32::try_from(body.len())
            .expect("a length of three bytes")
            .to_be_bytes();
        [&[1][..], &length[1..], &body].concat()
    }

    /// The message in records of at most so many bytes.
    pub fn records(&self, size: usize) -> Vec<u8> {
        self.message()
            .chunks(size)
            .flat_map(|piece| record(HANDSHAKE, piece))
            .collect()
    }
}

/// A record in plaintext.
pub fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len())
        .expect("a record's length")
        .to_be_bytes();
    [&[kind, 3, 1][..], &length, content].concat()
}
