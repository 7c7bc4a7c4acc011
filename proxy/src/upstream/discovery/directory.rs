//! The names that are asked for, each once however many backends want it, and what is known of each. A name is there for as
//! long as a cluster holds it, so that it outlives every push that does not end it. What is known is handed to a cluster
//! that comes later; what it makes of that is [`super::sources`]'.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use outrigger_config::discover::{Family, Question};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::telemetry::metrics::{DnsMetrics, Metrics};
use crate::upstream::discovery::answer::{Bad, Found, Version, Why};
use crate::upstream::discovery::asking::{Asked, Changes, Kind, Late, Resolver, given_up};
use crate::upstream::discovery::memory::{Bounds, Memory, Turn};
use crate::upstream::discovery::notices::{Place, notice};
use crate::upstream::discovery::report::listed;

/// Questions are spread over a tenth of the time between them, and over no more than this: sidecars that started together
/// do not ask together for ever, and what has moved is found within a second after its TTL.
const SPREAD_MAX: Duration = Duration::from_secs(1);

/// What one name is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) question: Question,
    /// The name in the configuration that led to it: its own, or that of the SRV records that name it as a target. Metrics
    /// are told apart by it, since what an answer names must not make series.
    pub(super) of: String,
}

impl Key {
    /// What the records are called that are asked for.
    fn records(&self) -> &'static str {
        match (self.kind, self.question.family) {
            (Kind::Services, _) => "SRV",
            (Kind::Addresses, Family::V4) => "A",
            (Kind::Addresses, Family::V6) => "AAAA",
            (Kind::Addresses, Family::Any | Family::PreferV6) => "A and AAAA",
        }
    }
}

/// The names by what they are called.
#[derive(Clone, Debug)]
pub struct Directory {
    resolver: Resolver,
    metrics: Arc<Metrics>,
    /// Those that live, and some that have gone meanwhile.
    names: Arc<Mutex<HashMap<String, Vec<Weak<Name>>>>>,
}

/// A name that is asked for.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) key: Key,
    resolver: Resolver,
    known: ArcSwap<Known>,
    watchers: Mutex<Vec<Watcher>>,
    metrics: Arc<DnsMetrics>,
    /// How many of its records serve from memory, as the metric was told.
    kept: AtomicUsize,
    notice: Place,
    asking: OnceLock<AbortHandle>,
}

/// A cluster that wants the name.
#[derive(Debug)]
struct Watcher {
    wake: Weak<Notify>,
    /// As `SERVICE/BACKEND`.
    cluster: Arc<str>,
}

/// What is known of a name at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) memory: Memory,
    /// When it is asked again; `None`: the first question is under way.
    pub(super) next: Option<Instant>,
}

impl Known {
    /// Whether it was asked for, or a name like it has handed on what it knew.
    pub(super) fn is_answered(&self) -> bool {
        self.next.is_some() || self.memory.good().is_some()
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        self.metrics.kept(self.kept.load(Ordering::Relaxed), 0);
        if let Some(asking) = self.asking.get() {
            asking.abort();
        }
    }
}

impl Directory {
    /// A directory without names.
    pub(crate) fn new(resolver: Resolver, metrics: Arc<Metrics>) -> Self {
        Self {
            resolver,
            metrics,
            names: Arc::default(),
        }
    }

    /// The name that is this: the living one, or one that is asked for from now on.
    pub(super) fn name(&self, key: &Key) -> Arc<Name> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let called = names.entry(key.question.name.clone()).or_default();
        called.retain(|name| name.strong_count() > 0);
        let living: Vec<Arc<Name>> = called.iter().filter_map(Weak::upgrade).collect();
        if let Some(same) = living.iter().find(|name| name.key == *key) {
            return Arc::clone(same);
        }
        // One of which only the times differ is the same to DNS: what it remembers is true of this one too.
        let alike = living.iter().find(|name| name.is_alike(key));
        let memory = alike.map(|name| name.known().memory.clone()).unwrap_or_default();
        let name = Arc::new(Name {
            key: key.clone(),
            resolver: self.resolver.clone(),
            known: ArcSwap::from_pointee(Known { memory, next: None }),
            watchers: Mutex::default(),
            metrics: self.metrics.dns(&key.of),
            kept: AtomicUsize::new(0),
            notice: self.resolver.notices().place(),
            asking: OnceLock::new(),
        });
        called.push(Arc::downgrade(&name));
        // Making a new one is rare enough to clear away the dead ones each time they may be many.
        if names.len().is_power_of_two() {
            names.retain(|_, called| called.iter().any(|name| name.strong_count() > 0));
        }
        let asking = tokio::task::spawn_local(keep_asking(Arc::downgrade(&name)));
        let _ = name.asking.set(asking.abort_handle());
        name
    }
}

impl Name {
    fn is_alike(&self, key: &Key) -> bool {
        let (own, other) = (&self.key.question, &key.question);
        self.key.kind == key.kind && own.family == other.family && own.servers == other.servers
    }

    /// What is known of it.
    pub(super) fn known(&self) -> Arc<Known> {
        self.known.load_full()
    }

    /// Wakes this one, which is the cluster's, whenever something may have changed, until it is gone.
    pub(super) fn wake(&self, wake: &Arc<Notify>, cluster: &Arc<str>) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| watcher.wake.strong_count() > 0);
        watchers.push(Watcher {
            wake: Arc::downgrade(wake),
            cluster: Arc::clone(cluster),
        });
    }

    /// The clusters that want it, each once.
    fn clusters(&self) -> Vec<String> {
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        let living = watchers.iter().filter(|watcher| watcher.wake.strong_count() > 0);
        let mut clusters: Vec<String> = living.map(|watcher| watcher.cluster.to_string()).collect();
        clusters.sort_unstable();
        clusters.dedup();
        clusters
    }

    /// The servers that it is asked of.
    pub(super) fn servers(&self) -> Vec<std::net::SocketAddr> {
        self.resolver.servers(&self.key.question.servers)
    }

    fn bounds(&self) -> Bounds {
        let Question { floor, ceiling, .. } = self.key.question;
        Bounds { floor, ceiling }
    }

    /// Asks once, and says when to ask again and what is still to come. `None`: nobody wants to know any more.
    /// `was_slow`: whether the last question took long.
    async fn ask(
        name: &Weak<Self>,
        was_slow: &mut bool,
        changes: &mut Changes,
    ) -> Option<(Instant, Option<Late>)> {
        let (key, resolver, settled) = {
            let name = name.upgrade()?;
            let known = name.known();
            let settled = known.memory.good().map(|good| good.found_as.clone());
            (name.key.clone(), name.resolver.clone(), settled)
        };
        let asked = loop {
            let asking = resolver.ask(key.kind, &key.question, (settled.as_deref(), *was_slow));
            if let Some(asked) = Self::awaited(name, asking, changes).await? {
                break asked;
            }
        };
        *was_slow = asked.is_slow;
        let answer = asked.answer;
        let name = name.upgrade()?;
        let now = Instant::now();
        let mut memory = name.known().memory.clone();
        let (turn, wait) = memory.learn(&answer, name.bounds(), (now, SystemTime::now()));
        name.metrics.looked_up(answer.as_ref().map_or_else(
            |bad| bad.why.word(),
            |good| {
                if good.heard.is_cut() {
                    Why::Truncated.word()
                } else {
                    "ok"
                }
            },
        ));
        name.say(turn, &memory);
        let wait = wait + (wait / 10).min(SPREAD_MAX).mul_f64(fastrand::f64());
        name.publish(memory, now + wait);
        Some((now + wait, asked.late))
    }

    /// What is answered. Its turn may be long in coming: what is kept goes meanwhile when its time is over, and where other
    /// servers are to be asked it is `None` within `Some`.
    async fn awaited(
        name: &Weak<Self>,
        asking: impl Future<Output = Asked>,
        changes: &mut Changes,
    ) -> Option<Option<Asked>> {
        let (mut asking, began) = (std::pin::pin!(asking), Instant::now());
        loop {
            let end = {
                let name = name.upgrade()?;
                let memory = &name.known().memory;
                memory.end_unanswered(name.key.question.keep, began)
            };
            tokio::select! {
                biased;
                asked = &mut asking => return Some(Some(asked)),
                () = reached(end) => name.upgrade()?.let_go(began),
                () = changes.next() => {
                    tokio::time::sleep(SPREAD_MAX.mul_f64(fastrand::f64())).await;
                    return Some(None);
                }
            }
        }
    }

    /// Takes in what came late for one family, and says when to ask again.
    fn take_late(&self, version: Version, found: &Found, next: Instant) -> Instant {
        let now = Instant::now();
        let mut memory = self.known().memory.clone();
        let wait = memory.learn_late(version, found, (now, SystemTime::now()));
        let bounds = self.bounds();
        let sooner = wait.map(|wait| now + wait.clamp(bounds.floor, bounds.ceiling));
        let next = sooner.map_or(next, |sooner| sooner.min(next));
        self.publish(memory, next);
        next
    }

    /// Says what began and what ended of the troubles with one family.
    fn say_of_families(&self, before: &Memory, memory: &Memory) {
        let name = &self.key.question.name;
        for version in Version::ALL {
            let why = |memory: &Memory| {
                let mut troubles = memory.troubles();
                let trouble = troubles.find(|(of, _)| *of == version);
                trouble.map(|(_, trouble)| trouble.why.clone())
            };
            let (records, known) = (version.word(), memory.records().len());
            match (why(before), why(memory)) {
                (before, Some(Why::Truncated)) if before != Some(Why::Truncated) => tracing::warn!(
                    name,
                    records,
                    known,
                    "an answer of DNS is truncated and TCP brings no more; the records that came are used"
                ),
                (None, Some(why)) => {
                    let why = why.to_string();
                    tracing::info!(
                        name,
                        records,
                        why,
                        known,
                        "DNS answers for one family of addresses only"
                    );
                }
                (Some(_), None) if memory.failing().is_none() => {
                    tracing::info!(name, records, known, "DNS answers whole again");
                }
                _ => {}
            }
        }
    }

    fn say(&self, turn: Turn, memory: &Memory) {
        let (name, known) = (&self.key.question.name, memory.records().len());
        match turn {
            Turn::None => {}
            Turn::Fails if memory.good().is_none() => self.say_never_found(memory),
            Turn::Fails => {
                let why = memory.failing().map(|failing| failing.why.to_string());
                let keep = outrigger_config::units::Duration(self.key.question.keep);
                tracing::warn!(name, why, known, %keep, "DNS has no answer for a name; what is known of it is kept");
            }
            Turn::Recovers => tracing::info!(name, known, "DNS answers again"),
        }
    }

    /// Nothing is kept of a name that has never been found, and a misspelt one is found by who wants it.
    fn say_never_found(&self, memory: &Memory) {
        let why = memory.failing().map(|failing| failing.why.to_string());
        let (name, why) = (&self.key.question.name, why.unwrap_or_default());
        let records = self.key.records();
        let (clusters, servers) = (
            listed(self.clusters()),
            listed(self.servers().iter().map(ToString::to_string).collect()),
        );
        tracing::warn!(
            "{name} has never been found ({records}: {why}, asked {servers}): {clusters} has no endpoint from it"
        );
    }

    /// Lets go of what was kept, when its time is over while a question is under way since then.
    fn let_go(&self, began: Instant) {
        let known = self.known();
        let mut memory = known.memory.clone();
        let now = Instant::now();
        let is_over = memory.in_vain_at(self.key.question.keep, began);
        if is_over.is_some_and(|end| end <= now) {
            let silence = Err(Bad {
                why: Why::TimedOut,
                ttl: None,
            });
            let (turn, _) = memory.learn(&silence, self.bounds(), (now, SystemTime::now()));
            self.say(turn, &memory);
        }
        self.publish(memory, known.next.unwrap_or(now));
    }

    fn publish(&self, mut memory: Memory, next: Instant) {
        let keep = self.key.question.keep;
        if memory.expire(keep, Instant::now()) {
            let (name, keep) = (&self.key.question.name, outrigger_config::units::Duration(keep));
            let why = memory.failing().map(|failing| failing.why.to_string());
            tracing::warn!(name, why, %keep, "DNS has had no answer for too long; what was kept is let go of");
        }
        self.say_of_families(&self.known().memory, &memory);
        self.notice.put(notice(&self.key, &memory));
        let kept = memory.kept();
        self.metrics.kept(self.kept.swap(kept, Ordering::Relaxed), kept);
        if memory.failing().is_none() {
            self.metrics.answered();
        }
        self.known.store(Arc::new(Known {
            memory,
            next: Some(next),
        }));
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        for watcher in watchers.iter().filter_map(|watcher| watcher.wake.upgrade()) {
            watcher.notify_one();
        }
    }
}

/// Asks for a name again and again, and lets go of what is kept when its time is over.
async fn keep_asking(name: Weak<Name>) {
    let Some(mut changes) = name.upgrade().map(|name| name.resolver.changes()) else {
        return;
    };
    let mut was_slow = false;
    while let Some((mut next, mut late)) = Name::ask(&name, &mut was_slow, &mut changes).await {
        loop {
            let Some(end) = name.upgrade().map(|name| {
                let known = name.known();
                known.memory.next_end(name.key.question.keep)
            }) else {
                return;
            };
            let until = end.filter(|end| *end < next).unwrap_or(next);
            let came = tokio::select! {
                () = tokio::time::sleep_until(until.into()) => None,
                came = arrival(&mut late) => Some(came),
                () = changes.next() => {
                    // All names are asked again now.
                    tokio::time::sleep(SPREAD_MAX.mul_f64(fastrand::f64())).await;
                    break;
                }
            };
            let Some(name) = name.upgrade() else { return };
            if let Some((version, found)) = came {
                late = None;
                next = name.take_late(version, &found, next);
            } else if until < next {
                name.publish(name.known().memory.clone(), next);
            } else {
                // What has not come until the next question is asked is not waited for any longer.
                if let Some(late) = &late {
                    name.take_late(late.version, &given_up(), next);
                }
                break;
            }
        }
    }
}

/// The moment. Never, where there is none.
async fn reached(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}

/// What comes late. Never, where nothing is to come.
async fn arrival(late: &mut Option<Late>) -> (Version, Found) {
    match late {
        Some(late) => (late.version, late.found().await),
        None => std::future::pending().await,
    }
}
