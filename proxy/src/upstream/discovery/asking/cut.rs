//! What a truncated answer over UDP did name, for when the rest cannot be had by TCP: hickory's resolver throws it away.
//!
//! It stands between the resolver and its connections and keeps a copy on the way; whether it is used is decided by who asks.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use hickory_resolver::config::{ConnectionConfig, ProtocolConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::xfer::{DnsExchange, DnsHandle};
use hickory_resolver::proto::op::{DnsRequest, DnsResponse};
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use hickory_resolver::{ConnectionProvider, PoolContext};
use tokio::sync::Notify;

use crate::upstream::discovery::asking::sockets::Sockets;

/// Truncated answers that are kept at once: more than may be under way at one server.
const KEPT_MAX: usize = 256;

/// One question.
pub(super) type Key = (Name, RecordType);

/// Makes connections, and keeps what truncated answers name.
#[derive(Clone, Default)]
pub(super) struct Cuts {
    runtime: Sockets,
    kept: Arc<Kept>,
}

#[derive(Default)]
struct Kept {
    answers: Mutex<HashMap<Key, Vec<Record>>>,
    came: Notify,
}

impl Kept {
    fn answers(&self) -> MutexGuard<'_, HashMap<Key, Vec<Record>>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, response: &DnsResponse) {
        let Some(query) = response.queries.first() else {
            return;
        };
        let mut answers = self.answers();
        if answers.len() < KEPT_MAX {
            let key = (query.name().clone(), query.query_type());
            answers.insert(key, response.answers.clone());
            self.came.notify_waiters();
        }
    }
}

impl Cuts {
    /// Keeps what truncated answers to this question name, for as long as the question is there.
    pub(super) fn watch(&self, key: Key) -> Question {
        Question {
            kept: Arc::clone(&self.kept),
            key,
        }
    }
}

/// A question whose truncated answers are kept. What is kept of it goes with it, so that none is left for the next.
pub(super) struct Question {
    kept: Arc<Kept>,
    key: Key,
}

impl Question {
    /// What a truncated answer named, once.
    pub(super) fn take(&self) -> Option<Vec<Record>> {
        self.kept.answers().remove(&self.key)
    }

    /// Waits until there is a truncated answer.
    pub(super) async fn is_cut(&self) {
        loop {
            let came = self.kept.came.notified();
            if self.kept.answers().contains_key(&self.key) {
                return;
            }
            came.await;
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.take();
    }
}

impl ConnectionProvider for Cuts {
    type Conn = Watched;
    type FutureConn = Pin<Box<dyn Future<Output = Result<Watched, NetError>> + Send>>;
    type RuntimeProvider = Sockets;

    fn new_connection(
        &self,
        ip: IpAddr,
        config: &ConnectionConfig,
        pool: &PoolContext,
    ) -> Result<Self::FutureConn, NetError> {
        let connecting = self.runtime.new_connection(ip, config, pool)?;
        let is_udp = matches!(config.protocol, ProtocolConfig::Udp);
        let kept = is_udp.then(|| Arc::clone(&self.kept));
        Ok(Box::pin(async move {
            let connection = connecting.await?;
            Ok(Watched { connection, kept })
        }))
    }

    fn runtime_provider(&self) -> &Sockets {
        &self.runtime
    }
}

/// A connection whose truncated answers are kept, if it is one of UDP.
#[derive(Clone)]
pub(super) struct Watched {
    connection: DnsExchange<Sockets>,
    kept: Option<Arc<Kept>>,
}

impl DnsHandle for Watched {
    type Response = Answers;
    type Runtime = Sockets;

    fn send(&self, request: DnsRequest) -> Answers {
        Answers {
            answers: self.connection.send(request),
            kept: self.kept.clone(),
        }
    }
}

/// The answers to one question.
pub(super) struct Answers {
    answers: <DnsExchange<Sockets> as DnsHandle>::Response,
    kept: Option<Arc<Kept>>,
}

impl Stream for Answers {
    type Item = Result<DnsResponse, NetError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let answer = ready!(Pin::new(&mut self.answers).poll_next(context));
        if let (Some(Ok(response)), Some(kept)) = (&answer, &self.kept)
            && response.truncation
        {
            kept.keep(response);
        }
        Poll::Ready(answer)
    }
}
