//! Where a control API is, and a TCP connection to it.
//!
//! **Does not** speak on it: what that is, and whether by TLS, is for who asks.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::net::TcpStream;

use crate::upstream::discovery::Resolver;

/// How long connecting to one address may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// Where a control API is.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) host: String,
    port: u16,
    /// Whether it is spoken to by TLS.
    pub(crate) tls: bool,
}

impl fmt::Display for Address {
    /// As a `Host` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Address {
    /// Reads a URL such as `http://127.0.0.1:9900`.
    ///
    /// # Errors
    /// When it is none of a control API.
    pub(crate) fn parse(url: &str) -> anyhow::Result<Self> {
        let expected = || {
            format!("`{url}` is not the URL of a control API: expected http://host:port or https://host:port")
        };
        let uri: http::Uri = url.parse().with_context(expected)?;
        let host = uri.host().ok_or_else(|| anyhow!(expected()))?;
        let (tls, port) = match uri.scheme_str() {
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            _ => bail!(expected()),
        };
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(port),
            tls,
        })
    }

    /// Connects to the first of its addresses that takes a connection.
    pub(crate) async fn connect(&self, resolver: &Resolver) -> anyhow::Result<TcpStream> {
        let addresses = match self.host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => resolver.addresses(&self.host).await?,
        };
        let mut failed = anyhow!("`{}` has no address", self.host);
        for address in addresses {
            let address = SocketAddr::new(address, self.port);
            match tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failed = anyhow!("connect to {address}: {error}"),
                Err(_) => failed = anyhow!("connect to {address}: no answer within {CONNECT_WITHIN:?}"),
            }
        }
        Err(failed)
    }
}
