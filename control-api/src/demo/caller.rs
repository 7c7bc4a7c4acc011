//! The HTTP client of the shop and of its shoppers: one address, connections kept.
//!
//! **Does not** know that a sidecar is at the other end, nor retry what was answered: that is the sidecar's work.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// How long an answer may take: longer than every timeout of the demo's routes, so that the sidecar's word comes first.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The longest answer that is read; the shop's pages are a hundredth of it.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How many connections are kept: as many as a steady load has under way at once.
const IDLE_MAX: usize = 64;

/// Calls one address.
#[derive(Debug)]
pub(super) struct Caller {
    to: SocketAddr,
    idle: Mutex<Vec<SendRequest<Empty<Bytes>>>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// It took too long.
    #[error("no answer within {}s", ANSWER_WITHIN.as_secs())]
    Late,
    /// No connection.
    #[error("no connection: {0}")]
    Connect(std::io::Error),
    /// The connection broke, or what came was no HTTP.
    #[error("the connection broke: {0}")]
    Broke(#[from] hyper::Error),
    /// The body broke off or was too long.
    #[error("the answer could not be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The host or path cannot stand in a request.
    #[error("no request can be made of this: {0}")]
    Request(#[from] http::Error),
}

impl Caller {
    pub(super) fn new(to: SocketAddr) -> Self {
        let idle = Mutex::default();
        Self { to, idle }
    }

    /// Asks `host` for `path`.
    pub(super) async fn get(&self, host: &str, path: &str) -> Result<(StatusCode, Bytes), CallError> {
        let exchange = tokio::time::timeout(ANSWER_WITHIN, self.exchange(host, path));
        exchange.await.unwrap_or(Err(CallError::Late))
    }

    async fn exchange(&self, host: &str, path: &str) -> Result<(StatusCode, Bytes), CallError> {
        let request = || Request::get(path).header(HOST, host).body(Empty::new());
        let (response, sender) = self.send(request()?, request()?).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let body = body.collect().await.map_err(CallError::Body)?.to_bytes();
        let mut idle = self.idle();
        if idle.len() < IDLE_MAX {
            idle.push(sender);
        }
        Ok((status, body))
    }

    /// Sends on a kept connection, or on a new one if there is none, or if it was closed as this was on its way.
    async fn send(
        &self,
        first: Request<Empty<Bytes>>,
        second: Request<Empty<Bytes>>,
    ) -> Result<(Response<Incoming>, SendRequest<Empty<Bytes>>), CallError> {
        // The lock is let go of before the wait.
        let kept = self.kept();
        if let Some(mut sender) = kept
            && sender.ready().await.is_ok()
            && let Ok(response) = sender.send_request(first).await
        {
            return Ok((response, sender));
        }
        let stream = TcpStream::connect(self.to).await.map_err(CallError::Connect)?;
        // Requests are small and are waited for.
        let _ = stream.set_nodelay(true);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends when the sender is dropped or the other side closes.
        tokio::spawn(connection);
        let response = sender.send_request(second).await?;
        Ok((response, sender))
    }

    fn kept(&self) -> Option<SendRequest<Empty<Bytes>>> {
        let mut idle = self.idle();
        while let Some(sender) = idle.pop() {
            if !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<SendRequest<Empty<Bytes>>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
