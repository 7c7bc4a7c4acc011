//! How many attempts to join may fail: for each source, and for all together.
//!
//! A secret of 256 bits is not guessed at any rate. What is bounded is what guessing costs us: signatures to verify and
//! rows of the audit log to write. So a source that failed often is not listened to for a while, and when all sources
//! together failed often, failures are no longer told apart nor written down one by one; a good token still works.
//!
//! Pure: `now` is an argument.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Failures that a source may have in a row: a deploy of some tasks behind one address with a token that has expired.
const SOURCE_BURST: u32 = 20;

/// After so long a source may fail once more.
const SOURCE_EVERY: Duration = Duration::from_secs(3);

/// Failures that all sources may have in a row.
const ALL_BURST: u32 = 200;

/// After so long any source may fail once more: 100,000 rows of refusals last for 14 hours of an attack.
const ALL_EVERY: Duration = Duration::from_millis(500);

/// Sources that are remembered: about a megabyte. A source that has not failed for a minute is forgotten.
const SOURCES_MAX: usize = 10_000;

/// The failures of late.
#[derive(Debug)]
pub(super) struct Limits {
    sources: HashMap<IpAddr, Source>,
    all: Bucket,
    /// Whether it was written down that all sources together are over the limit.
    all_told: bool,
}

#[derive(Debug, Default)]
struct Source {
    bucket: Bucket,
    /// Whether it was written down that this source is over its limit.
    told: bool,
}

/// What may be said to and noted of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is heard, and a failure is told and written down.
    Heard,
    /// It is over the limit until then. The first of a row is written down.
    Over {
        /// How long.
        retry_after: Duration,
        /// Whether to write it down.
        note: bool,
    },
}

/// The generic cell rate algorithm: one moment stands for all that was spent.
#[derive(Debug, Default)]
struct Bucket {
    /// When all that was spent is made good again.
    full_at: Option<Instant>,
}

impl Bucket {
    /// How long until there is room for one more; none if there is.
    fn wait(&self, burst: u32, every: Duration, now: Instant) -> Option<Duration> {
        let behind = self.full_at?.saturating_duration_since(now);
        let room = every * (burst - 1);
        behind.checked_sub(room).filter(|wait| !wait.is_zero())
    }

    fn spend(&mut self, every: Duration, now: Instant) {
        let from = self.full_at.map_or(now, |full_at| full_at.max(now));
        self.full_at = Some(from + every);
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|full_at| full_at <= now)
    }
}

impl Limits {
    pub(super) fn new() -> Self {
        Self {
            sources: HashMap::new(),
            all: Bucket::default(),
            all_told: false,
        }
    }

    /// Whether an attempt from this source is listened to.
    pub(super) fn before(&mut self, source: IpAddr, now: Instant) -> Verdict {
        let Some(known) = self.sources.get_mut(&network(source)) else {
            return Verdict::Heard;
        };
        match known.bucket.wait(SOURCE_BURST, SOURCE_EVERY, now) {
            None => Verdict::Heard,
            Some(retry_after) => {
                let note = !std::mem::replace(&mut known.told, true);
                Verdict::Over { retry_after, note }
            }
        }
    }

    /// An attempt failed: whether the reason is told, and the failure written down.
    pub(super) fn failed(&mut self, source: IpAddr, now: Instant) -> Verdict {
        let source = network(source);
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            self.sources.retain(|_, known| !known.bucket.is_full(now));
        }
        if self.sources.len() < SOURCES_MAX || self.sources.contains_key(&source) {
            let known = self.sources.entry(source).or_default();
            known.bucket.spend(SOURCE_EVERY, now);
            known.told = false;
        }
        // A source for which there is no room counts among all.
        match self.all.wait(ALL_BURST, ALL_EVERY, now) {
            None => {
                self.all.spend(ALL_EVERY, now);
                self.all_told = false;
                Verdict::Heard
            }
            Some(retry_after) => {
                let note = !std::mem::replace(&mut self.all_told, true);
                Verdict::Over { retry_after, note }
            }
        }
    }
}

/// What counts as one source: whoever has an IPv6 address mostly has all of its /64.
fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn a_source_that_failed_often_is_not_heard_until_time_has_passed() {
        let (mut limits, now) = (Limits::new(), Instant::now());
        for _ in 0..SOURCE_BURST {
            assert_eq!(limits.before(address(1), now), Verdict::Heard);
            assert_eq!(limits.failed(address(1), now), Verdict::Heard);
        }
        let over = |note| Verdict::Over {
            retry_after: SOURCE_EVERY,
            note,
        };
        assert_eq!(limits.before(address(1), now), over(true));
        assert_eq!(limits.before(address(1), now), over(false));
        assert_eq!(limits.before(address(2), now), Verdict::Heard);
        assert_eq!(limits.before(address(1), now + SOURCE_EVERY), Verdict::Heard);
    }

    #[test]
    fn all_together_are_limited_while_a_source_that_did_not_fail_is_heard() {
        let (mut limits, now) = (Limits::new(), Instant::now());
        for number in 0..ALL_BURST {
            assert_eq!(limits.failed(address(number), now), Verdict::Heard);
        }
        let over = |note| Verdict::Over {
            retry_after: ALL_EVERY,
            note,
        };
        assert_eq!(limits.failed(address(1_000), now), over(true));
        assert_eq!(limits.failed(address(1_001), now), over(false));
        assert_eq!(limits.before(address(1_002), now), Verdict::Heard);
        assert_eq!(limits.failed(address(1_002), now + ALL_EVERY), Verdict::Heard);
        assert_eq!(limits.failed(address(1_003), now + ALL_EVERY), over(true));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_has_behaved() {
        let (mut limits, now) = (Limits::new(), Instant::now());
        for number in 0..20_000 {
            limits.failed(address(number), now);
        }
        assert_eq!(limits.sources.len(), SOURCES_MAX);
        limits.failed(address(30_000), now + SOURCE_EVERY);
        assert_eq!(limits.sources.len(), 1);
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let one: IpAddr = "2001:db8:1:2::1".parse().unwrap();
        let two: IpAddr = "2001:db8:1:2:ffff::2".parse().unwrap();
        let other: IpAddr = "2001:db8:1:3::1".parse().unwrap();
        assert_eq!(network(one), network(two));
        assert_ne!(network(one), network(other));
        assert_eq!(network("::ffff:1.2.3.4".parse().unwrap()), address(0x0102_0304));
    }
}
