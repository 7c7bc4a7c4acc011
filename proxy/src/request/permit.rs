//! What holds a tunnel to the rules as they change: a push whose `allow` or `tls.mode` no longer lets it in ends it.
//!
//! A request is asked about once, and is over soon. A tunnel, which is a TCP connection or one that has switched its protocol,
//! may last for days, so that it is asked about again with every push, by what it was let in by.
//!
//! **Does not** decide: [`crate::snapshot::access`] does. Nor does it know of certificates: [`crate::tls::ended`] does.

use http::request::Parts;
use http::{Method, Uri};

use crate::error::Failure;
use crate::request::{Readings, Worker};
use crate::snapshot::access::Source;
use crate::snapshot::{Entry, Lease};
use crate::tls::{self, Session};

/// What a tunnel on the application's side was let in by.
#[derive(Debug)]
pub(crate) struct Permit {
    /// The request that opened it, before its route changed it; none, where a connection of TCP is all that there was.
    asked: Option<(Method, Uri)>,
}

impl Permit {
    /// That of a connection of TCP, by the same side.
    pub(super) fn of_connection(lease: &Lease, virtual_host: usize) -> Option<Self> {
        lease.is_own(virtual_host).then_some(Self { asked: None })
    }

    /// That of a request which may open a tunnel, if it has come to the application's side: nobody else is asked about.
    pub(super) fn of_request(entry: &Entry, head: &Parts) -> Option<Box<Self>> {
        matches!(entry, Entry::Inbound).then(|| {
            Box::new(Self {
                asked: Some((head.method.clone(), head.uri.clone())),
            })
        })
    }

    /// Ready when the tunnel of this permit, if it takes one, is not let in any more, with why.
    async fn withdrawn(permit: Option<&Self>, worker: &Worker, source: &Source) -> Failure {
        match permit {
            Some(permit) => permit.is_withdrawn(worker, source).await,
            None => std::future::pending().await,
        }
    }

    /// Ready when a tunnel may not go on, with why: for its certificates, or for what it was let in by, if it takes a permit.
    pub(super) async fn over(
        permit: Option<&Self>,
        (worker, source): (&Worker, &Source),
        upstream: Option<&Session>,
    ) -> Failure {
        tokio::select! {
            biased;
            failure = tls::ended(source.session(), upstream) => failure,
            failure = Self::withdrawn(permit, worker, source) => failure,
        }
    }

    async fn is_withdrawn(&self, worker: &Worker, source: &Source) -> Failure {
        let mut changes = worker.changes.clone();
        loop {
            // What is pushed between the look and the wait is news.
            changes.borrow_and_update();
            if let Err(failure) = self.stands(worker, source) {
                return failure;
            }
            if changes.changed().await.is_err() {
                // Nothing is pushed any more.
                std::future::pending::<()>().await;
            }
        }
    }

    fn stands(&self, worker: &Worker, source: &Source) -> Result<(), Failure> {
        let lease = worker.lease();
        // Of a service that is configured no longer nothing is said, nor who may not.
        let Some(access) = lease.access(&Entry::Inbound) else {
            return Ok(());
        };
        let Some((method, uri)) = &self.asked else {
            return access.still(source, None);
        };
        let readings = Readings::of(access, uri.path(), false);
        access.still(source, Some(readings.asked(method)))
    }
}
