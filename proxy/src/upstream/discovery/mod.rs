//! Where endpoints are found: what a cluster is kept current by.
//!
//! A backend names one source or several: addresses that are written down, names whose addresses are its endpoints, names
//! whose SRV records are. [`Directory::follow`] takes the names of a cluster from the [`directory`], which asks for each
//! once, however many clusters want it, by [`asking`], and remembers in [`memory`] what was answered. Whenever something
//! changes, there or with an endpoint's health, [`sources`] joins what is known to one set, and the cluster serves from it.
//!
//! Runs on the control thread: one task for each name, and one for each cluster with a name, which end with it.

mod answer;
mod asking;
mod directory;
mod memory;
mod notices;
mod report;
mod sources;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use outrigger_config::discover::{DnsMode, Question, Source};
use outrigger_config::service::StaticEndpoint;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use crate::upstream::Cluster;
use crate::upstream::discovery::answer::Record;
use crate::upstream::discovery::asking::Kind;
pub use crate::upstream::discovery::asking::{Resolver, SystemFiles};
pub use crate::upstream::discovery::directory::Directory;
use crate::upstream::discovery::directory::{Key, Known, Name};
use crate::upstream::discovery::memory::Remembered;
pub(crate) use crate::upstream::discovery::report::unanswered;
pub(in crate::upstream) use crate::upstream::discovery::report::{
    DiscoveryReport, FoundReport, NameReport, StandbyReport,
};
use crate::upstream::discovery::report::{Shown, Via};
use crate::upstream::discovery::sources::{About, ENDPOINTS_MAX, Joined, Part, Stands, hosts_of, join};
use crate::upstream::health::Standing;

/// The endpoints that a line of the log lists.
const SHOWN_MAX: usize = 32;

/// How often a cluster with standbys looks whether its endpoints can be reached: that connections are refused is told by no
/// event, and an endpoint that refuses them is tried once a second.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What keeps a cluster current. It ends with the cluster.
#[derive(Debug)]
pub(in crate::upstream) struct Following {
    /// Wakes the task: a name or an endpoint changed.
    wake: Arc<Notify>,
    /// For operators: what is followed now.
    shown: ArcSwap<Shown>,
    task: OnceLock<AbortHandle>,
}

impl Following {
    /// An endpoint of the cluster came to be well or ill.
    pub(in crate::upstream) fn endpoint_changed(&self) {
        self.wake.notify_one();
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// A source of a cluster with its names.
#[derive(Debug)]
enum Followed {
    Listed(Vec<StaticEndpoint>),
    Addresses {
        name: Arc<Name>,
        port: u16,
        mode: DnsMode,
    },
    Services {
        name: Arc<Name>,
        targets: HashMap<String, Arc<Name>>,
        /// How many hosts are not followed.
        left_out: usize,
    },
}

/// All that a cluster's task has.
#[derive(Debug)]
struct Follower {
    directory: Directory,
    /// As `SERVICE/BACKEND`.
    cluster: Arc<str>,
    wake: Arc<Notify>,
    sources: Vec<Followed>,
    /// See [`join`].
    left: HashSet<SocketAddr>,
    /// What the cluster serves from.
    served: Option<Joined>,
    /// To be told when every name has been answered, well or not.
    first: Option<oneshot::Sender<()>>,
}

impl Directory {
    /// Keeps a cluster's endpoints current until it is gone, beginning with what is known at this moment. What it gives
    /// tells when the first answer for each of its names, good or bad, is in; `None`: no endpoint must be found.
    pub(crate) fn follow(&self, cluster: &Arc<Cluster>) -> Option<oneshot::Receiver<()>> {
        let sources = &cluster.discover;
        if sources.iter().all(|source| matches!(source, Source::Listed(_))) {
            return None;
        }
        let following = cluster.following.get_or_init(|| Following {
            wake: Arc::default(),
            shown: ArcSwap::default(),
            task: OnceLock::new(),
        });
        let (answered, first) = oneshot::channel();
        let mut follower = Follower {
            directory: self.clone(),
            cluster: format!("{}/{}", cluster.service, cluster.name).into(),
            wake: Arc::clone(&following.wake),
            sources: Vec::new(),
            left: HashSet::new(),
            served: None,
            first: Some(answered),
        };
        follower.sources = sources.iter().map(|source| follower.followed(source)).collect();
        let has_standbys = follower.refresh(cluster);
        let task = tokio::task::spawn_local(follower.keep_current(Arc::downgrade(cluster), has_standbys));
        let _ = following.task.set(task.abort_handle());
        Some(first)
    }
}

impl Follower {
    fn followed(&self, source: &Source) -> Followed {
        match source {
            Source::Listed(endpoints) => Followed::Listed(endpoints.clone()),
            Source::Addresses { question, port, mode } => Followed::Addresses {
                name: self.name(Kind::Addresses, question, &question.name),
                port: *port,
                mode: *mode,
            },
            Source::Services(question) => Followed::Services {
                name: self.name(Kind::Services, question, &question.name),
                targets: HashMap::new(),
                left_out: 0,
            },
        }
    }

    fn name(&self, kind: Kind, question: &Question, of: &str) -> Arc<Name> {
        let name = self.directory.name(&Key {
            kind,
            question: question.clone(),
            of: of.to_owned(),
        });
        name.wake(&self.wake, &self.cluster);
        name
    }

    async fn keep_current(mut self, cluster: Weak<Cluster>, mut has_standbys: bool) {
        let wake = Arc::clone(&self.wake);
        loop {
            if has_standbys {
                let _ = tokio::time::timeout(LOOK_EVERY, wake.notified()).await;
            } else {
                wake.notified().await;
            }
            let Some(cluster) = cluster.upgrade() else { return };
            // Another stands in its place, and their series are the same.
            if cluster.retired.load(Ordering::Relaxed) {
                return;
            }
            has_standbys = self.refresh(&cluster);
        }
    }

    /// Makes what is known the endpoints of the cluster, and says whether some of them stand by.
    fn refresh(&mut self, cluster: &Cluster) -> bool {
        self.follow_targets();
        let names = self.names();
        let known: Vec<Arc<Known>> = names.iter().map(|(name, _)| name.known()).collect();
        let about: HashMap<*const Name, About<'_>> = names
            .iter()
            .zip(&known)
            .map(|((name, _), known)| (Arc::as_ptr(name), About::of(name, known)))
            .collect();
        let parts: Vec<Part<'_>> = self
            .sources
            .iter()
            .filter_map(|source| part(source, &about))
            .collect();
        let now = Instant::now();
        let set = cluster.endpoints();
        let standing: HashMap<SocketAddr, Standing> = set
            .endpoints
            .iter()
            .map(|endpoint| (endpoint.address, endpoint.health.standing(now)))
            .collect();
        let stands = |address| match standing.get(&address) {
            None => Stands::Unknown,
            Some(Standing::In) => Stands::Well,
            Some(_) => Stands::Ill,
        };
        let joined = join(&parts, stands, &mut self.left);
        drop(set);
        let has_standbys = joined.has_standbys;
        let standbys = joined.standbys.clone();
        self.serve(cluster, joined);
        if known.iter().all(|known| known.is_answered())
            && let Some(first) = self.first.take()
        {
            // Who waited may have given up.
            let _ = first.send(());
        }
        if let Some(following) = cluster.following.get() {
            following.shown.store(Arc::new(Shown { names, standbys }));
        }
        has_standbys
    }

    /// Makes these the endpoints of the cluster, if they are others than those it has.
    fn serve(&mut self, cluster: &Cluster, joined: Joined) {
        if self.served.as_ref() == Some(&joined) {
            return;
        }
        let addresses = |joined: &Joined| -> Vec<SocketAddr> {
            let endpoints = joined.endpoints.iter();
            endpoints.map(|endpoint| endpoint.address).collect()
        };
        let (endpoints, before) = (addresses(&joined), self.served.as_ref().map(addresses));
        if before.unwrap_or_default() != endpoints {
            let (service, backend, count) = (&cluster.service, &cluster.name, endpoints.len());
            let endpoints = &endpoints[..count.min(SHOWN_MAX)];
            tracing::info!(service, backend, count, ?endpoints, "endpoints changed");
        }
        let were_left_out = self.served.as_ref().is_some_and(|before| before.left_out > 0);
        if joined.left_out > 0 && !were_left_out {
            let (service, backend, left_out) = (&cluster.service, &cluster.name, joined.left_out);
            tracing::warn!(
                service,
                backend,
                used = ENDPOINTS_MAX,
                left_out,
                "DNS names more endpoints than one backend may have; the others are left out"
            );
        }
        cluster.found(
            joined.endpoints.iter().copied(),
            joined.awaited,
            joined.absence.clone(),
        );
        self.served = Some(joined);
    }

    /// The names that are followed now, and what leads from each to endpoints.
    fn names(&self) -> Vec<(Arc<Name>, Vec<Via>)> {
        let mut names = Vec::new();
        for source in &self.sources {
            match source {
                Followed::Listed(_) => {}
                Followed::Addresses { name, port, .. } => {
                    let via = Via {
                        priority: None,
                        port: *port,
                    };
                    names.push((Arc::clone(name), vec![via]));
                }
                Followed::Services { name, targets, .. } => {
                    let known = name.known();
                    let mut vias = vias(known.memory.records());
                    names.push((Arc::clone(name), Vec::new()));
                    names.extend(targets.iter().map(|(host, target)| {
                        let vias = vias.remove(host.as_str()).unwrap_or_default();
                        (Arc::clone(target), vias)
                    }));
                }
            }
        }
        names
    }

    /// Follows the hosts that SRV records lead to, and leaves those that they no longer do.
    fn follow_targets(&mut self) {
        for place in 0..self.sources.len() {
            let Some(Followed::Services {
                name,
                targets,
                left_out,
            }) = self.sources.get(place)
            else {
                continue;
            };
            let known = name.known();
            let (wanted, others) = hosts_of(known.memory.records());
            let same = wanted.len() == targets.len() && wanted.iter().all(|host| targets.contains_key(*host));
            if same && others == *left_out {
                continue;
            }
            let question = &name.key.question;
            if others > 0 && *left_out == 0 {
                let (name, followed, left_out) = (&question.name, wanted.len(), others);
                tracing::warn!(
                    name,
                    followed,
                    left_out,
                    "SRV records lead to more hosts than are followed; those of the highest priority numbers are left out"
                );
            }
            let followed = wanted.into_iter().map(|host| {
                let target = targets.get(host).map(Arc::clone).unwrap_or_else(|| {
                    let at = Question {
                        name: host.to_owned(),
                        ..question.clone()
                    };
                    self.name(Kind::Addresses, &at, &question.name)
                });
                (host.to_owned(), target)
            });
            let followed: HashMap<String, Arc<Name>> = followed.collect();
            if let Some(Followed::Services {
                targets, left_out, ..
            }) = self.sources.get_mut(place)
            {
                (*targets, *left_out) = (followed, others);
            }
        }
    }
}

/// What leads to each host of SRV records, the lowest priorities first.
fn vias(records: &[Remembered]) -> HashMap<&str, Vec<Via>> {
    let mut all: HashMap<&str, Vec<Via>> = HashMap::new();
    for known in records {
        if let Record::Service(service) = &known.record {
            all.entry(service.target.as_str()).or_default().push(Via {
                priority: Some(service.priority),
                port: service.port,
            });
        }
    }
    for vias in all.values_mut() {
        vias.sort_unstable();
    }
    all
}

/// What a source knows.
fn part<'a>(source: &'a Followed, about: &HashMap<*const Name, About<'a>>) -> Option<Part<'a>> {
    let of = |name: &Arc<Name>| about.get(&Arc::as_ptr(name)).copied();
    Some(match source {
        Followed::Listed(endpoints) => Part::Listed(endpoints),
        Followed::Addresses { name, port, mode } => Part::Addresses {
            known: of(name)?,
            port: *port,
            mode: *mode,
        },
        Followed::Services { name, targets, .. } => {
            let targets = targets.iter();
            Part::Services {
                known: of(name)?,
                targets: targets
                    .filter_map(|(host, name)| Some((host.as_str(), of(name)?)))
                    .collect(),
            }
        }
    })
}
