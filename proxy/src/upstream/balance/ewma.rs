//! How long an endpoint's answers take: a moving average that rises at once and falls slowly (Finagle's peak EWMA).
//!
//! A slow answer counts in full as soon as it comes; fast ones bring the average down over [`DECAY`]. What nobody
//! renews fades, so that an endpoint that was slow is asked again one day. A failure counts as an answer that took
//! [`PENALTY`], in proportion to the time that failures have lasted: an endpoint that fails fast is no fast endpoint.
//! One atomic holds average and moment together, so that no lock is needed; `now` is an argument.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::upstream::health::millis;

/// After this long the past counts for a third: Finagle's and Linkerd's value.
const DECAY: Duration = Duration::from_secs(10);

/// What an endpoint that only fails comes to be taken for: slower than any that still serves.
const PENALTY: Duration = Duration::from_secs(5);

/// The average and when it was last renewed.
#[derive(Debug, Default)]
pub(crate) struct Ewma {
    /// Microseconds as the bits of an `f32`, then the milliseconds of the clock that fit in 32 bits; 0: nothing is
    /// known yet.
    packed: AtomicU64,
}

impl Ewma {
    /// An answer came after this long.
    pub(crate) fn answered(&self, took: Duration, now: Instant) {
        let took = took.as_secs_f32() * 1e6;
        self.renew(now, |average, weight| {
            if took > average {
                took
            } else {
                average * weight + took * (1.0 - weight)
            }
        });
    }

    /// An attempt failed, however fast.
    pub(crate) fn failed(&self, took: Duration, now: Instant) {
        let penalty = took.max(PENALTY).as_secs_f32() * 1e6;
        self.renew(now, |average, weight| average * weight + penalty * (1.0 - weight));
    }

    /// The average in microseconds, faded by the time since it was last renewed. `None`: nothing is known yet.
    pub(crate) fn at(&self, now: Instant) -> Option<f32> {
        let (average, at) = unpack(self.packed.load(Ordering::Relaxed))?;
        Some(average * weight(at, stamp(now)))
    }

    fn renew(&self, now: Instant, next: impl Fn(f32, f32) -> f32) {
        let stamp = stamp(now);
        // Whoever loses the race has seen the same moment: what it would add is not worth another round.
        let _ = self
            .packed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
                let average = match unpack(packed) {
                    Some((average, at)) => next(average, weight(at, stamp)),
                    // Of the first nothing is known before it, so it counts as if it had lasted for long.
                    None => next(0.0, 0.5),
                };
                Some(pack(average, stamp))
            });
    }
}

/// How much the past counts.
fn weight(at: u32, now: u32) -> f32 {
    // Two threads may bring their moments in the wrong order by a little, which is no time at all.
    let elapsed = now.wrapping_sub(at).cast_signed().max(0);
    #[expect(clippy::cast_precision_loss, reason = "what is lost is a part of 16 million")]
    let elapsed = elapsed as f32 / 1_000.0;
    (-elapsed / DECAY.as_secs_f32()).exp()
}

/// The clock's milliseconds, as far as they fit: they come round after seven weeks, which no average outlives.
#[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
fn stamp(now: Instant) -> u32 {
    millis(now) as u32
}

fn pack(average: f32, stamp: u32) -> u64 {
    // Never 0, which means that nothing is known.
    u64::from(average.max(1.0).to_bits()) << 32 | u64::from(stamp)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the two halves are what is wanted"
)]
fn unpack(packed: u64) -> Option<(f32, u32)> {
    (packed != 0).then_some((f32::from_bits((packed >> 32) as u32), packed as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn it_rises_at_once_and_falls_slowly() {
        let (ewma, start) = (Ewma::default(), Instant::now());
        assert_eq!(ewma.at(start), None);
        ewma.answered(10 * MS, start);
        ewma.answered(200 * MS, start + MS);
        assert!(ewma.at(start + MS).unwrap() > 199_000.0);
        let mut now = start;
        for _ in 0..100 {
            now += 100 * MS;
            ewma.answered(10 * MS, now);
        }
        let after = ewma.at(now).unwrap();
        assert!(
            (60_000.0..100_000.0).contains(&after),
            "after ten seconds: {after}"
        );
    }

    #[test]
    fn what_nobody_renews_fades() {
        let (ewma, start) = (Ewma::default(), Instant::now());
        ewma.answered(1_000 * MS, start);
        assert!(ewma.at(start + 70_000 * MS).unwrap() < 1_000.0);
    }

    #[test]
    fn an_endpoint_that_fails_fast_becomes_slow_and_one_failure_in_a_thousand_hardly_counts() {
        let (failing, mostly_well) = (Ewma::default(), Ewma::default());
        let mut now = Instant::now();
        for request in 0..20_000 {
            now += MS;
            failing.failed(MS / 10, now);
            if request % 1_000 == 999 {
                mostly_well.failed(MS / 10, now);
            } else {
                mostly_well.answered(MS, now);
            }
        }
        assert!(failing.at(now).unwrap() > 4_000_000.0);
        assert!(
            mostly_well.at(now).unwrap() < 20_000.0,
            "{:?}",
            mostly_well.at(now)
        );
    }
}
