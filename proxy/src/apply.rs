//! The journey of one push: read [`apply`] and you have read how the configuration changes.
//!
//! Runs on the control thread, one push at a time. A push is applied whole or refused whole; a refusal changes
//! nothing but the count of refusals. Sockets are fixed by the bootstrap, so there is none to bind here yet.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrigger_config::{Config, Known, Problem, check_after};

use crate::control::{Push, Verdict};
use crate::snapshot::compile::{self, Said};
use crate::snapshot::{Origin, Refused, Snapshot, Snapshots, Standing};
use crate::telemetry::metrics::{Metrics, PushResult};
use crate::tls::outside;
use crate::upstream::discovery::{Directory, Resolver, unanswered};
use crate::upstream::health::active::Checker;
use crate::upstream::{self, Cluster};

/// How long a push waits for the first answers of DNS before it serves without them: a table whose backend cannot
/// be found must not hold back the ones that can.
const WARM_MAX: Duration = Duration::from_secs(5);

/// After this it is said what is waited for: most answers come within it.
const WARM_QUIET: Duration = Duration::from_millis(500);

/// What a push is applied to.
#[derive(Debug)]
pub(crate) struct Applier {
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) metrics: Arc<Metrics>,
    directory: Directory,
    checker: Checker,
    pub(crate) standing: Standing,
    pub(crate) refused: Arc<Mutex<Option<Refused>>>,
    /// What the snapshot that serves was made of, and what is known of its documents, of which the next push changes few.
    config: Config,
    known: Known,
    pub(crate) retired: Retired,
}

/// Snapshots that no longer serve but may still be held by a request. They are dropped on the control thread, not on
/// a data thread: dropping a large table takes a while.
#[derive(Clone, Debug, Default)]
pub(crate) struct Retired(Rc<RefCell<Vec<Arc<Snapshot>>>>);

impl Retired {
    /// Lets go of those that nobody else holds any more.
    pub(crate) fn bury(&self) {
        self.0
            .borrow_mut()
            .retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }

    fn push(&self, snapshot: Arc<Snapshot>) {
        self.0.borrow_mut().push(snapshot);
    }
}

impl Applier {
    pub(crate) fn new(
        snapshots: Arc<Snapshots>,
        metrics: Arc<Metrics>,
        resolver: Resolver,
        standing: Standing,
    ) -> Self {
        let refused = Arc::default();
        let directory = Directory::new(resolver, Arc::clone(&metrics));
        Self {
            snapshots,
            metrics,
            directory,
            checker: Checker::default(),
            standing,
            refused,
            config: Config::default(),
            known: Known::default(),
            retired: Retired::default(),
        }
    }
}

/// The journey of one push.
pub(crate) async fn apply(to: &mut Applier, push: Push) -> Verdict {
    let Push {
        version,
        origin,
        documents,
    } = push;
    let current = to.snapshots.load();
    let read = documents.and_then(|documents| {
        let read = check_after(&documents, (&current.documents, &to.known))?;
        Ok((read, documents))
    });
    let ((config, known), documents) = match read {
        Ok(read) => read,
        Err(problems) => return refuse(to, version, problems),
    };
    breathe();
    let unchanged = config == to.config && current.origin == origin;
    let push = Said {
        version: version.clone(),
        origin,
        documents,
    };
    let compiled = compile::compile(push, &config, &to.standing, &to.metrics, Some(&current));
    breathe();
    let next = match compiled {
        Ok(next) => next,
        Err(problems) => return refuse(to, version, problems.into_iter().map(unplaced).collect()),
    };
    // Nothing refuses it any more: who is shut out does not stay for as long as a name server takes.
    to.standing.identities.deny(&next.denied);
    to.standing.identities.belong(config.mesh.trust_domain.as_deref());
    warm(to, &next, &current).await;
    to.metrics.config_serves(&next.version, next.origin.word());
    to.metrics.pushed(if unchanged {
        PushResult::Unchanged
    } else {
        PushResult::Applied
    });
    tracing::info!(
        version = next.version,
        source = next.origin.word(),
        unchanged,
        "configuration applied"
    );
    if let Some(service) = to.standing.service.as_deref().filter(|_| !next.has_inbound()) {
        tracing::warn!(
            service,
            "this sidecar's service is not configured, or its document says no `app`: requests for the application beside it will be refused"
        );
    }
    warn_of_a_small_range(to, &next);
    upstream::succeed(&current.clusters, &next.clusters);
    drop(current);
    breathe();
    let old = to.snapshots.swap(Arc::new(next));
    to.retired.push(old);
    to.retired.bury();
    (to.config, to.known) = (config, known);
    *to.refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
    Verdict::Applied
}

/// Offers the core to a data thread that waits for it: the steps of a push of thousands of services take milliseconds each.
fn breathe() {
    std::thread::yield_now();
}

/// Says which services DNS cannot be answered for.
fn warn_of_a_small_range(to: &Applier, next: &Snapshot) {
    let (without, range) = (next.without_address(), to.standing.range);
    if let (false, Some(range)) = (without.is_empty(), range) {
        tracing::warn!(
            %range,
            services = ?without,
            "the range of virtual addresses is too small: these services have none, and their names are answered with a failure; \
             give `listeners.dns.range` a larger one, such as 240.0.0.0/4"
        );
    }
}

/// Nothing changes but what says that something was refused.
fn refuse(to: &Applier, version: String, problems: Vec<Problem>) -> Verdict {
    to.metrics.pushed(PushResult::Refused);
    let serves = to.snapshots.load().origin != Origin::Nothing;
    for problem in &problems {
        if serves {
            tracing::error!(version, %problem, "configuration refused; the last good one goes on serving");
        } else {
            tracing::error!(version, %problem, "configuration refused; there is none before it, so nothing serves yet");
        }
    }
    let refused = Refused {
        version,
        problems: problems.clone(),
    };
    *to.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refused);
    Verdict::Refused(problems)
}

/// A problem that compiling found. [`outrigger_config::check`] should have found it first, with its place.
fn unplaced(message: String) -> Problem {
    Problem {
        file: String::new(),
        line: 1,
        column: 1,
        path: String::new(),
        message,
    }
}

/// Reads the roots that are new, begins discovery and health checks for the clusters that are, and waits for the first answers of
/// discovery, within bounds.
async fn warm(to: &Applier, next: &Snapshot, current: &Snapshot) {
    let mut first_answers = Vec::new();
    let known: HashSet<*const Cluster> = current.clusters.iter().map(Arc::as_ptr).collect();
    for cluster in &next.clusters {
        if known.contains(&Arc::as_ptr(cluster)) {
            continue;
        }
        if let Some(trust) = cluster.trust().filter(|trust| trust.is_to_be_kept()) {
            trust.look();
            tokio::task::spawn_local(outside::keep_current(Arc::downgrade(trust)));
        }
        if cluster.policy.health_check.is_some() {
            let checking = to.checker.clone().keep_checked(Arc::downgrade(cluster));
            tokio::task::spawn_local(checking);
        }
        first_answers.extend(to.directory.follow(cluster));
    }
    let all = async {
        for first in first_answers {
            // An error means that the cluster went before it was found, which is an answer too.
            let _ = first.await;
        }
    };
    let mut all = std::pin::pin!(all);
    if tokio::time::timeout(WARM_QUIET, &mut all).await.is_ok() {
        return;
    }
    let (limit, names) = (WARM_MAX.as_secs(), unanswered(&next.clusters));
    tracing::info!("waiting up to {limit} s for DNS of {names}");
    if tokio::time::timeout(WARM_MAX - WARM_QUIET, all).await.is_err() {
        let names = unanswered(&next.clusters);
        tracing::warn!(waited = ?WARM_MAX, "DNS has not answered for {names}; serving with what is known for now");
    }
}
