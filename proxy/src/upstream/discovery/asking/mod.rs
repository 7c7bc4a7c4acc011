//! Asks DNS: which names in which order, which servers, how many questions at once. What the answers mean over time is
//! decided in [`super::memory`]. The only folder that names `hickory_resolver`.
//!
//! A name is looked for as the resolver of the C library does: in the hosts file first, then by DNS with the search
//! domains of resolv.conf. There is one difference: a name with a dot in it is asked for as it stands first, whatever
//! `ndots` says, since five questions for each answer are what Kubernetes' `ndots: 5` is known for. Both files are looked
//! at again and again, and used as they are.

mod chain;
mod cut;
mod families;
mod places;
mod servers;
mod sockets;
mod system;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::net::NetError;
use outrigger_config::discover::{Family, Question};
use tokio::sync::watch;

use crate::upstream::discovery::answer::Record;
pub(super) use crate::upstream::discovery::asking::families::{Asked, Late, given_up};
use crate::upstream::discovery::asking::servers::{Servers, bad};
pub use crate::upstream::discovery::asking::system::SystemFiles;
use crate::upstream::discovery::asking::system::{System, marks, names, read, without_dns};
use crate::upstream::discovery::notices::Notices;

/// Lists of servers whose connections are kept; past this all are made anew, which costs a handshake.
const POOLS_MAX: usize = 64;

/// How often the files are looked at: a change is rare, and looking costs two calls.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Addresses.
    Addresses,
    /// SRV records.
    Services,
}

/// Asks DNS for the mesh. Cheap to clone; all clones share connections, bounds and what the files say.
#[derive(Clone, Debug)]
pub struct Resolver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Servers to ask instead of the system's; empty: none.
    servers: Vec<SocketAddr>,
    files: SystemFiles,
    system: watch::Sender<Arc<System>>,
    pools: Mutex<HashMap<Vec<SocketAddr>, Arc<Servers>>>,
    /// Of the names that are asked for. They stand here because whoever tells them has the resolver, and no directory.
    notices: Notices,
}

impl Resolver {
    /// A resolver that asks these servers, or those of the system if none is given.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn new(servers: &[SocketAddr]) -> anyhow::Result<Self> {
        Self::with_files(servers, SystemFiles::default())
    }

    /// The same by other files than the system's.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn with_files(servers: &[SocketAddr], files: SystemFiles) -> anyhow::Result<Self> {
        let system = Arc::new(read(&files));
        let resolver = Self(Arc::new(Inner {
            servers: servers.to_vec(),
            files,
            system: watch::Sender::new(system),
            pools: Mutex::default(),
            notices: Notices::default(),
        }));
        resolver.pool(&[])?;
        Ok(resolver)
    }

    /// The addresses of a host, for a question that is asked once.
    ///
    /// # Errors
    /// When DNS does not answer or has no address.
    pub async fn addresses(&self, host: &str) -> anyhow::Result<Vec<IpAddr>> {
        let question = Question {
            name: host.to_owned(),
            family: Family::Any,
            floor: Duration::ZERO,
            ceiling: Duration::ZERO,
            keep: Duration::ZERO,
            servers: Vec::new(),
        };
        match self.ask(Kind::Addresses, &question, (None, false)).await.answer {
            Ok(good) => Ok(good.records.iter().filter_map(Record::address).collect()),
            Err(bad) => anyhow::bail!("DNS for {host}: {}", bad.why),
        }
    }

    /// Looks at the system's files for ever, and uses them as they are.
    pub(crate) async fn keep_current(self) {
        let mut seen = marks(&self.0.files);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let marks = marks(&self.0.files);
            if marks == seen {
                continue;
            }
            seen = marks;
            tracing::info!(files = ?self.0.files, "the system's resolver files changed; names are asked again");
            self.0.system.send_replace(Arc::new(read(&self.0.files)));
            let mut pools = self.0.pools.lock().unwrap_or_else(PoisonError::into_inner);
            pools.clear();
        }
    }

    /// Where the notices of its names stand.
    pub(super) fn notices(&self) -> &Notices {
        &self.0.notices
    }

    /// What is to be told of its names, and word of each change.
    pub(crate) fn told(&self) -> watch::Receiver<Vec<String>> {
        self.0.notices.told()
    }

    /// Tells of every change of the system's files.
    pub(super) fn changes(&self) -> Changes {
        Changes(self.0.system.subscribe())
    }

    /// The servers that a question with this list goes to.
    pub(super) fn servers(&self, own: &[SocketAddr]) -> Vec<SocketAddr> {
        if !own.is_empty() {
            own.to_vec()
        } else if self.0.servers.is_empty() {
            self.0.system.borrow().servers.clone()
        } else {
            self.0.servers.clone()
        }
    }

    fn pool(&self, own: &[SocketAddr]) -> Result<Arc<Servers>, NetError> {
        let servers = self.servers(own);
        let mut pools = self.0.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&servers) {
            return Ok(Arc::clone(pool));
        }
        if pools.len() >= POOLS_MAX {
            pools.clear();
        }
        let timeout = self.0.system.borrow().timeout;
        let pool = Arc::new(Servers::new(&servers, timeout)?);
        pools.insert(servers, Arc::clone(&pool));
        Ok(pool)
    }

    /// Asks once. `settled`: the name that it was found under the last time. While that one cannot be asked for, no other
    /// takes its place: a name server that fails must not send requests to what a search domain happens to know. `was_slow`:
    /// what the last question for it was.
    pub(super) async fn ask(
        &self,
        kind: Kind,
        question: &Question,
        (settled, was_slow): (Option<&str>, bool),
    ) -> Asked {
        let system = Arc::clone(&self.0.system.borrow());
        if kind == Kind::Addresses
            && let Some(known) = without_dns(&system, question)
        {
            return Ok(known.tidied()).into();
        }
        let pool = match self.pool(&question.servers) {
            Ok(pool) => pool,
            Err(error) => return Err(bad(error)).into(),
        };
        let names = names(&question.name, &system.search, system.ndots);
        let ask =
            || -> places::Question<'_> { Box::pin(pool.ask_each(kind, &names, question.family, settled)) };
        pool.places.hold(was_slow, ask).await
    }
}

/// Changes of the system's files.
#[derive(Debug)]
pub(super) struct Changes(watch::Receiver<Arc<System>>);

impl Changes {
    /// The next change.
    pub(super) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody looks any more: the sidecar ends.
            std::future::pending::<()>().await;
        }
    }
}
