//! What failures and checks teach: which endpoint to leave alone for a while, and how many retries a cluster may be
//! sent.
//!
//! Three things keep requests from an endpoint, each a mark of its own: connections that could not be made (*left
//! alone*, for moments), failures in a row (*ejected*, for half a minute and more; the rule is in [`ejection`]), and
//! health checks (*failing*, until one says otherwise; [`active`]). Plain atomics with `now` as an argument, so that
//! they can be asked on the request path and tested without a clock. They advise; `balance` decides.

pub mod active;
mod budget;
pub(crate) mod ejection;
mod grpc;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use budget::Budget;

/// Times are kept as milliseconds since this moment, so that they fit an atomic.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

pub(in crate::upstream) fn millis(now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(*EPOCH).as_millis()).unwrap_or(u64::MAX)
}

/// The same finer: over a fast network several requests begin and end within a millisecond.
fn micros(now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(*EPOCH).as_micros()).unwrap_or(u64::MAX)
}

/// An endpoint that refused a connection is left alone for this long, then twice as long, and so on: long enough
/// that a dead instance costs few requests a try, short enough that a restart is noticed at once.
const AVOID_FIRST: Duration = Duration::from_millis(100);

/// The longest that an endpoint is left alone. A task that ECS restarts takes seconds to come; asking once a second
/// whether it is there costs nothing.
const AVOID_MAX: Duration = Duration::from_secs(1);

/// A probe whose end nobody told is given up after this, and another may be sent: longer than almost every request,
/// so that two probes at once stay an exception.
const PROBE_MAX: Duration = Duration::from_secs(10);

/// A connection could not be made to it: it is left alone.
const AVOIDED: u32 = 1;
/// It failed too often in a row.
const EJECTED: u32 = 2;
/// Its time out is over, and a request is on its way to find out whether it is well.
const PROBED: u32 = 4;
/// Its health check fails.
const FAILING: u32 = 8;

/// What is known of the health of one endpoint.
#[derive(Debug)]
pub struct Health {
    /// All the marks, so that asking about a well endpoint is one load.
    marks: AtomicU32,
    /// Connection failures in a row.
    refusals: AtomicU32,
    /// Failures of any kind in a row.
    failures: AtomicU32,
    /// When the last of them was, in microseconds since [`EPOCH`].
    failed_at: AtomicU64,
    /// How often it was ejected lately: each time it stays out for longer.
    ejections: AtomicU32,
    /// How often it was ever ejected.
    ejected: AtomicU32,
    /// Until when it is left alone, in milliseconds since [`EPOCH`].
    avoid_until: AtomicU64,
    /// Until when it is out, in milliseconds since [`EPOCH`].
    ejected_until: AtomicU64,
    /// Since when it takes part, in milliseconds since [`EPOCH`]: when it was found, or came back.
    in_since: AtomicU64,
    /// For operators: what was last found, and when. Written when something changes, never for a request that went
    /// well.
    news: Mutex<Option<News>>,
}

/// What was last found out about an endpoint.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct News {
    pub(in crate::upstream) at: Instant,
    pub(in crate::upstream) what: String,
}

/// How an endpoint stands, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Standing {
    In,
    LeftAlone,
    /// Out for this long yet.
    Ejected(Duration),
    Probed,
    FailingCheck,
}

impl Health {
    pub(in crate::upstream) fn new(now: Instant) -> Self {
        Self {
            marks: AtomicU32::new(0),
            refusals: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            failed_at: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            ejected: AtomicU32::new(0),
            avoid_until: AtomicU64::new(0),
            ejected_until: AtomicU64::new(0),
            in_since: AtomicU64::new(millis(now)),
            news: Mutex::new(None),
        }
    }

    /// No connection could be made.
    pub fn connect_failed(&self, now: Instant) {
        let refusals = self.refusals.fetch_add(1, Ordering::Relaxed).min(16);
        let avoid = AVOID_FIRST.saturating_mul(1 << refusals).min(AVOID_MAX);
        self.avoid_until.store(millis(now + avoid), Ordering::Relaxed);
        self.marks.fetch_or(AVOIDED, Ordering::Relaxed);
    }

    /// A connection was made.
    pub fn connected(&self) {
        // Read first: the line is shared by all workers and hardly ever needs to be written.
        if self.marks.load(Ordering::Relaxed) & AVOIDED != 0 {
            self.refusals.store(0, Ordering::Relaxed);
            self.marks.fetch_and(!AVOIDED, Ordering::Relaxed);
        }
    }

    /// Whether a request may be sent there now. `panicking` says whether too many of its cluster are out for that to
    /// count; it is asked only where it matters.
    ///
    /// When the time of leaving it alone or of being out is over, the first to ask may, as a probe, and the others go
    /// on avoiding it until the probe has told. So whoever is told `true` must send a request.
    pub fn may_be_tried(&self, now: Instant, panicking: impl FnOnce() -> bool) -> bool {
        let marks = self.marks.load(Ordering::Relaxed);
        marks == 0 || self.marked_may_be_tried(marks, now, panicking())
    }

    #[cold]
    fn marked_may_be_tried(&self, marks: u32, now: Instant, panicking: bool) -> bool {
        let claim = |until: &AtomicU64, next: Duration| {
            let was = until.load(Ordering::Relaxed);
            let next = millis(now + next);
            millis(now) >= was
                && until
                    .compare_exchange(was, next, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
        };
        if marks & AVOIDED != 0 && millis(now) < self.avoid_until.load(Ordering::Relaxed) {
            return false;
        }
        if marks & FAILING != 0 && !panicking {
            return false;
        }
        if marks & EJECTED != 0 {
            let mine = claim(&self.ejected_until, PROBE_MAX);
            if mine {
                self.marks.fetch_or(PROBED, Ordering::Relaxed);
            }
            if !panicking {
                return mine;
            }
        }
        marks & AVOIDED == 0 || claim(&self.avoid_until, AVOID_MAX)
    }

    /// Whether it takes part: neither ejected nor failing its check.
    pub fn is_in(&self) -> bool {
        self.marks.load(Ordering::Relaxed) & (EJECTED | FAILING) == 0
    }

    /// The share of its weight that it takes, 0.1 to 1, when new endpoints take `window` to grow.
    pub(in crate::upstream) fn grown(&self, now: Instant, window: Duration) -> f64 {
        let age = millis(now).saturating_sub(self.in_since.load(Ordering::Relaxed));
        let age = Duration::from_millis(age);
        if age >= window {
            return 1.0;
        }
        (age.as_secs_f64() / window.as_secs_f64()).max(GROWN_MIN)
    }

    /// A health check decided: `true` when that changed something.
    pub(in crate::upstream) fn checked(&self, well: bool, what: &str, now: Instant) -> bool {
        let before = if well {
            self.marks.fetch_and(!FAILING, Ordering::Relaxed)
        } else {
            self.marks.fetch_or(FAILING, Ordering::Relaxed)
        };
        let changed = (before & FAILING == 0) != well;
        if changed {
            self.tell(now, what.to_owned());
            if well {
                self.in_since.store(millis(now), Ordering::Relaxed);
            }
        }
        changed
    }

    /// Nobody checks it any more: it is as if it were well.
    pub(in crate::upstream) fn unchecked(&self) {
        self.marks.fetch_and(!FAILING, Ordering::Relaxed);
    }

    fn tell(&self, at: Instant, what: String) {
        *self.news.lock().unwrap_or_else(PoisonError::into_inner) = Some(News { at, what });
    }

    /// What was last found, for operators.
    pub(in crate::upstream) fn news(&self) -> Option<News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often it was ever ejected.
    pub(in crate::upstream) fn ejected(&self) -> u32 {
        self.ejected.load(Ordering::Relaxed)
    }

    /// How it stands; of several reasons the one that keeps it out for longest.
    pub(in crate::upstream) fn standing(&self, now: Instant) -> Standing {
        let marks = self.marks.load(Ordering::Relaxed);
        if marks & FAILING != 0 {
            Standing::FailingCheck
        } else if marks & PROBED != 0 {
            Standing::Probed
        } else if marks & EJECTED != 0 {
            let left = self
                .ejected_until
                .load(Ordering::Relaxed)
                .saturating_sub(millis(now));
            Standing::Ejected(Duration::from_millis(left))
        } else if marks & AVOIDED != 0 {
            Standing::LeftAlone
        } else {
            Standing::In
        }
    }
}

/// What a new endpoint takes of its share from the first moment: Envoy's tenth. With less it would learn nothing.
const GROWN_MIN: f64 = 0.1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_refused_is_left_alone_then_probed_by_one_request_at_a_time() {
        let start = Instant::now();
        let health = Health::new(start);
        assert!(health.may_be_tried(start, || false));
        health.connect_failed(start);
        assert!(!health.may_be_tried(start + Duration::from_millis(50), || false));
        let later = start + Duration::from_millis(150);
        assert!(
            health.may_be_tried(later, || false),
            "the first to ask is the probe"
        );
        assert!(
            !health.may_be_tried(later, || false),
            "the second waits for what it tells"
        );
        health.connected();
        assert!(health.may_be_tried(later, || false));
    }

    #[test]
    fn an_endpoint_that_stays_away_is_asked_at_least_once_a_second() {
        let mut now = Instant::now();
        let health = Health::new(now);
        for _ in 0..40 {
            health.connect_failed(now);
            now += AVOID_MAX + Duration::from_millis(1);
            assert!(health.may_be_tried(now, || false));
        }
    }

    #[test]
    fn an_endpoint_whose_check_fails_is_out_until_a_check_says_otherwise_or_too_many_are_out() {
        let now = Instant::now();
        let health = Health::new(now);
        assert!(health.checked(false, "no", now));
        assert!(!health.checked(false, "no", now), "nothing new");
        let much_later = now + Duration::from_secs(3600);
        assert!(!health.may_be_tried(much_later, || false) && !health.is_in());
        assert!(health.may_be_tried(much_later, || true));
        assert!(health.checked(true, "yes", much_later));
        assert!(health.may_be_tried(much_later, || false) && health.is_in());
        assert!((health.grown(much_later, Duration::from_secs(10)) - 0.1).abs() < 0.01);
        let half_way = much_later + Duration::from_secs(5);
        assert!((health.grown(half_way, Duration::from_secs(10)) - 0.5).abs() < 0.01);
    }
}
