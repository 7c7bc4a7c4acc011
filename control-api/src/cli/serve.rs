//! `outrigger serve`: the control API, until a signal ends it.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;
use outrigger_config::units;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{CliError, Exit};
use crate::ca::{CERTIFICATE_LIFE, Given, Options};
use crate::server::{self, Config, TlsOptions};

/// Run the control API.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The address to listen on; port 0 lets the system choose.
    #[arg(
        long,
        env = "OUTRIGGER_LISTEN",
        default_value = "127.0.0.1:9900",
        value_name = "ADDRESS"
    )]
    listen: SocketAddr,
    /// The folder that keeps the documents and their history; made if it is not there.
    #[arg(
        long,
        env = "OUTRIGGER_DATA",
        default_value = "./.outrigger",
        value_name = "FOLDER"
    )]
    data: PathBuf,
    /// What to log: error, warn, info, debug or trace, or a filter such as `outrigger_control=debug`.
    #[arg(long, env = "OUTRIGGER_LOG", default_value = "info", value_name = "LEVEL")]
    log: String,
    /// Serve TLS 1.3 on --listen, under a certificate of this API's own CA. Without it: plaintext.
    #[arg(long, env = "OUTRIGGER_TLS")]
    tls: bool,
    /// A DNS name or IP address by which the API is reached: for its certificate, and for operators who ask by it on this
    /// machine; may be given again.
    #[arg(long, value_name = "NAME", value_parser = name)]
    name: Vec<String>,
    /// Tell sidecars their configuration only by a certificate of the mesh, not whoever reaches the API.
    #[arg(long, env = "OUTRIGGER_REQUIRE_IDENTITY", requires = "tls")]
    require_identity: bool,
    /// Connections that one source may have at a time: an address, an IPv6 /64, or with TLS the bearer of a certificate.
    /// Raise it where many sidecars without certificates come from one address. Default 1000, and no bound for loopback.
    #[arg(long, env = "OUTRIGGER_CONNECTIONS_PER_SOURCE", value_name = "COUNT")]
    connections_per_source: Option<NonZeroU32>,
    /// Ask operators on this machine for the operator token of the data folder too, not only those elsewhere.
    #[arg(long, env = "OUTRIGGER_REQUIRE_OPERATOR_TOKEN")]
    require_operator_token: bool,
    /// The trust domain, where the Mesh document names none: identities are spiffe://DOMAIN/SERVICE. Default mesh.local.
    #[arg(long, env = "OUTRIGGER_TRUST_DOMAIN", value_name = "DOMAIN")]
    trust_domain: Option<String>,
    /// How long certificates are good: from 1m to 720h. They are renewed at half their life.
    #[arg(
        long,
        env = "OUTRIGGER_CERTIFICATE_TTL",
        default_value_t = CERTIFICATE_LIFE,
        value_name = "DURATION"
    )]
    certificate_ttl: units::Duration,
    /// An intermediate CA that signs instead of a root of our own: its certificate and all that lead to its root, the
    /// root last, in PEM.
    #[arg(long, env = "OUTRIGGER_CA_CERT", requires = "ca_key", value_name = "FILE")]
    ca_cert: Option<PathBuf>,
    /// The key of the first certificate of --ca-cert, in PEM.
    #[arg(long, env = "OUTRIGGER_CA_KEY", requires = "ca_cert", value_name = "FILE")]
    ca_key: Option<PathBuf>,
    /// Renew certificates that lead to a root of the mesh even if this store did not issue them: after it was put back from a
    /// backup, for as long as certificates live that are younger than that. Whoever has the key of a root profits too.
    #[arg(long, env = "OUTRIGGER_ADOPT_UNKNOWN_CERTIFICATES", requires = "tls")]
    adopt_unknown_certificates: bool,
}

impl Serve {
    pub(super) async fn run(self) -> Result<Exit, CliError> {
        let filter = EnvFilter::try_new(&self.log)
            .map_err(|error| CliError::Sentence(format!("--log `{}` is not a filter: {error}", self.log)))?;
        tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
        let no_signal = |error| CliError::Sentence(format!("signals cannot be awaited: {error}"));
        let mut terminate = signal(SignalKind::terminate()).map_err(no_signal)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signal)?;
        raise_open_files();
        let config = Config {
            listen: self.listen,
            data: self.data,
            names: self.name,
            tls: self.tls.then_some(TlsOptions {
                require_identity: self.require_identity,
            }),
            require_operator_token: self.require_operator_token,
            connections_per_source: self.connections_per_source,
            ca: Options {
                trust_domain: self.trust_domain,
                certificate_life: self.certificate_ttl,
                given: self
                    .ca_cert
                    .zip(self.ca_key)
                    .map(|(certificates, key)| Given { certificates, key }),
                adopt_unknown: self.adopt_unknown_certificates,
            },
        };
        let handle = server::start(config).await?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        tokio::select! {
            () = handle.shutdown() => tracing::info!("stopped"),
            // Who asks twice will not wait. What was acknowledged is on disk already.
            _ = terminate.recv() => tracing::warn!("stopped at once"),
            _ = interrupt.recv() => tracing::warn!("stopped at once"),
        }
        Ok(Exit::Done)
    }
}

/// A name for the certificate: the host alone, since that is what clients compare.
fn name(text: &str) -> Result<String, String> {
    let is_label = |label: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(fits)
    };
    // A wildcard stands for the first label (RFC 9525, section 6.3).
    let rest = text.strip_prefix("*.").unwrap_or(text);
    if text.parse::<IpAddr>().is_ok() || rest.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    Err(
        "it is neither a DNS name nor an IP address: expected the host alone, such as control.shop.internal, without \
         https:// and without a port"
            .to_owned(),
    )
}

/// Takes as many open files as the system allows: each sidecar is a connection, and many systems start a process
/// with 1,024.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on open files cannot be raised");
    }
}
