//! How many attempts to join may fail: for each source, and for all together; and how many renewals may succeed.
//!
//! A secret of 256 bits is not guessed at any rate. What is bounded is what guessing costs us: signatures to verify and
//! rows of the audit log to write. So a source that failed often is not listened to for a while, and when all sources
//! together failed often, failures are no longer told apart nor written down one by one; a good token still works.
//!
//! A workload that shows a certificate of the mesh is a source of its own, wherever it comes from: many share an address,
//! and one of them that fails, or somebody who has come to stand beside them, must not keep the others from renewing.
//!
//! A renewal leaves the certificate before it alive, and only so many may be: one workload that renewed in a loop would
//! take the room of all others. So what came of one join is renewed only so often.
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

/// Renewals that the bearer of one join may have in a row: starts that follow each other, and tools that ask by hand.
const RENEWALS_BURST: u32 = 16;

/// It may have so many more in the life of a certificate, where it needs two: so that at most both together are alive.
pub(super) const RENEWALS_IN_A_LIFE: u32 = 16;

/// Sources that are remembered: about a megabyte. A source that has not failed for a minute is forgotten.
const SOURCES_MAX: usize = 10_000;

/// The failures of late.
#[derive(Debug)]
pub(crate) struct Limits {
    sources: HashMap<Who, Source>,
    /// By the serial number that a bearer joined with. Each has a certificate that is alive, and these are bounded.
    renewals: HashMap<String, Bucket>,
    all: Bucket,
    /// Whether it was written down that all sources together are over the limit, since all that they spent was made good.
    all_told: bool,
}

/// Who attempts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// Whoever comes from there.
    Address(IpAddr),
    /// The bearer of the certificate of this SHA-256, in hexadecimal, which TLS has verified.
    Bearer(String),
}

impl From<IpAddr> for Who {
    fn from(source: IpAddr) -> Self {
        Self::Address(network(source))
    }
}

#[derive(Debug, Default)]
struct Source {
    bucket: Bucket,
    /// Whether it was written down that this source is over its limit, since all that it spent was made good.
    told: bool,
}

/// What may be said to and noted of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is heard, and a failure is told and written down.
    Heard,
    /// It is over the limit until then. The first of a row is written down, if all together may have one more.
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

    /// Spends one if there is room; how long until there is, if not.
    fn take(&mut self, burst: u32, every: Duration, now: Instant) -> Option<Duration> {
        let wait = self.wait(burst, every, now);
        if wait.is_none() {
            self.spend(every, now);
        }
        wait
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|full_at| full_at <= now)
    }
}

impl Limits {
    pub(crate) fn new() -> Self {
        Self {
            sources: HashMap::new(),
            renewals: HashMap::new(),
            all: Bucket::default(),
            all_told: false,
        }
    }

    /// Whether an attempt from this source is listened to.
    pub(crate) fn before(&mut self, source: &Who, now: Instant) -> Verdict {
        let Some(known) = self.sources.get_mut(source) else {
            return Verdict::Heard;
        };
        match known.bucket.wait(SOURCE_BURST, SOURCE_EVERY, now) {
            None => Verdict::Heard,
            Some(retry_after) => {
                let is_first = !std::mem::replace(&mut known.told, true);
                // A row for each source would be as many as there are sources.
                let note = is_first && self.all.take(ALL_BURST, ALL_EVERY, now).is_none();
                Verdict::Over { retry_after, note }
            }
        }
    }

    /// An attempt failed: whether the reason is told, and the failure written down.
    pub(crate) fn failed(&mut self, source: &Who, now: Instant) -> Verdict {
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(source) {
            self.sources.retain(|_, known| !known.bucket.is_full(now));
        }
        if self.sources.len() < SOURCES_MAX || self.sources.contains_key(source) {
            let known = self.sources.entry(source.clone()).or_default();
            // One that fails whenever it is heard has not behaved in between.
            known.told &= !known.bucket.is_full(now);
            known.bucket.spend(SOURCE_EVERY, now);
        }
        // A source for which there is no room counts among all.
        self.all_told &= !self.all.is_full(now);
        match self.all.take(ALL_BURST, ALL_EVERY, now) {
            None => Verdict::Heard,
            Some(retry_after) => {
                let note = !std::mem::replace(&mut self.all_told, true);
                Verdict::Over { retry_after, note }
            }
        }
    }
}

impl Limits {
    /// A certificate that came of this join is renewed, with one that lives so long. How long to wait instead, if it was
    /// renewed too often.
    pub(super) fn renewed(&mut self, joined: &str, life: Duration, now: Instant) -> Option<Duration> {
        let every = life / RENEWALS_IN_A_LIFE;
        // Whoever has behaved is forgotten, about once for each of them.
        if self.renewals.len() == self.renewals.capacity() {
            self.renewals.retain(|_, bucket| !bucket.is_full(now));
        }
        let bucket = self.renewals.entry(joined.to_owned()).or_default();
        bucket.take(RENEWALS_BURST, every, now)
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

    fn address(number: u32) -> Who {
        IpAddr::V4(number.into()).into()
    }

    #[test]
    fn a_source_that_failed_often_is_not_heard_until_time_has_passed() {
        let (mut limits, now) = (Limits::new(), Instant::now());
        for _ in 0..SOURCE_BURST {
            assert_eq!(limits.before(&address(1), now), Verdict::Heard);
            assert_eq!(limits.failed(&address(1), now), Verdict::Heard);
        }
        let over = |note| Verdict::Over {
            retry_after: SOURCE_EVERY,
            note,
        };
        assert_eq!(limits.before(&address(1), now), over(true));
        assert_eq!(limits.before(&address(1), now), over(false));
        assert_eq!(limits.before(&address(2), now), Verdict::Heard);
        assert_eq!(limits.before(&address(1), now + SOURCE_EVERY), Verdict::Heard);
    }

    #[test]
    fn all_together_are_limited_while_a_source_that_did_not_fail_is_heard() {
        let (mut limits, now) = (Limits::new(), Instant::now());
        for number in 0..ALL_BURST {
            assert_eq!(limits.failed(&address(number), now), Verdict::Heard);
        }
        let over = |note| Verdict::Over {
            retry_after: ALL_EVERY,
            note,
        };
        assert_eq!(limits.failed(&address(1_000), now), over(true));
        assert_eq!(limits.failed(&address(1_001), now), over(false));
        assert_eq!(limits.before(&address(1_002), now), Verdict::Heard);
        assert_eq!(limits.failed(&address(1_002), now + ALL_EVERY), Verdict::Heard);
        assert_eq!(limits.failed(&address(1_003), now + ALL_EVERY), over(false));
        // Once all of it is made good, another row begins.
        let later = now + (ALL_BURST + 1) * ALL_EVERY;
        for number in 0..ALL_BURST {
            assert_eq!(limits.failed(&address(number), later), Verdict::Heard);
        }
        assert_eq!(limits.failed(&address(1_004), later), over(true));
    }

    #[test]
    fn however_many_sources_fail_on_and_on_no_more_is_written_down_than_all_together_may() {
        let (mut limits, start) = (Limits::new(), Instant::now());
        let seconds = 60;
        let mut written = 0;
        for turn in 0..10 * seconds {
            let now = start + turn * Duration::from_millis(100);
            for source in (0..300).map(address) {
                let mut verdict = limits.before(&source, now);
                if verdict == Verdict::Heard {
                    verdict = limits.failed(&source, now);
                }
                written += u32::from(matches!(
                    verdict,
                    Verdict::Heard | Verdict::Over { note: true, .. }
                ));
            }
        }
        // What they may in a row, two in a second from then on, and once that they are too many.
        assert!(
            (ALL_BURST..=ALL_BURST + 2 * seconds + 1).contains(&written),
            "{written}"
        );
    }

    #[test]
    fn that_a_source_is_over_its_limit_is_written_down_once_until_it_has_behaved() {
        let (mut limits, start) = (Limits::new(), Instant::now());
        let mut notes = 0;
        let mut attempt = |now| {
            let verdict = limits.before(&address(1), now);
            if verdict == Verdict::Heard {
                limits.failed(&address(1), now);
            }
            notes += u32::from(matches!(verdict, Verdict::Over { note: true, .. }));
            notes
        };
        for turn in 0..600 {
            attempt(start + turn * Duration::from_millis(100));
        }
        assert_eq!(attempt(start + Duration::from_secs(60)), 1);
        let later = start + Duration::from_secs(60) + (SOURCE_BURST + 1) * SOURCE_EVERY;
        for _ in 0..SOURCE_BURST {
            assert_eq!(attempt(later), 1);
        }
        assert_eq!(attempt(later), 2);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_has_behaved() {
        let (mut limits, now) = (Limits::new(), Instant::now());
        for number in 0..20_000 {
            limits.failed(&address(number), now);
        }
        assert_eq!(limits.sources.len(), SOURCES_MAX);
        limits.failed(&address(30_000), now + SOURCE_EVERY);
        assert_eq!(limits.sources.len(), 1);
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let one: IpAddr = "2001:db8:1:2::1".parse().unwrap();
        let two: IpAddr = "2001:db8:1:2:ffff::2".parse().unwrap();
        let other: IpAddr = "2001:db8:1:3::1".parse().unwrap();
        assert_eq!(network(one), network(two));
        assert_ne!(network(one), network(other));
        assert_eq!(
            network("::ffff:1.2.3.4".parse().unwrap()),
            IpAddr::V4(0x0102_0304.into())
        );
    }

    #[test]
    fn a_join_is_renewed_so_often_and_no_oftener_whatever_others_do() {
        let (mut limits, now) = (Limits::new(), Instant::now());
        let life = Duration::from_secs(1600);
        let every = life / RENEWALS_IN_A_LIFE;
        for _ in 0..RENEWALS_BURST {
            assert_eq!(limits.renewed("a", life, now), None);
        }
        assert_eq!(limits.renewed("a", life, now), Some(every));
        assert_eq!(limits.renewed("b", life, now), None);
        assert_eq!(limits.renewed("a", life, now + every), None);
        assert_eq!(limits.renewed("a", life, now + every), Some(every));
        for number in 0..10_000_u32 {
            let now = now + 2 * life + number * every;
            assert_eq!(limits.renewed(&number.to_string(), life, now), None);
        }
        assert!(limits.renewals.len() < 100, "{}", limits.renewals.len());
    }
}
