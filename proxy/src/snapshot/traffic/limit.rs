//! How many requests a route or a service lets through: a token bucket in its cheapest form, GCRA (the "virtual
//! scheduling" of ITU-T I.371), one number for a bucket, no lock.
//!
//! The number is when the bucket would be full again. A request moves it on by what it costs, and is refused where that
//! would put it further ahead of now than a burst is worth. Whose requests share a bucket is decided here too; what a
//! refused request is told is not.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outrigger_config::traffic::{Per, RateLimit};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// How many callers have a bucket of their own at a time: sidecars that call one instance are counted in hundreds. It
/// takes 64 KiB, only where a limit is for each caller.
pub(crate) const CALLERS_MAX: usize = 4096;

/// Seats that one caller may take: enough that sets overflow only when the table is nearly full, few enough to look at
/// each of them.
const SEATS: usize = 8;

/// A power of two, so that a hash is cut down without a division.
const SETS: usize = CALLERS_MAX / SEATS;

/// How often a request asks again because another one of the same bucket was let through in between. Each such loss
/// takes nanoseconds of one other thread; a request that loses this often meets more than any limit lets through.
const TRIES_MAX: u32 = 64;

/// Who sends a request, as far as a limit for each caller tells callers apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// By the address that its connection comes from.
    Address(IpAddr),
}

impl Caller {
    /// A number that no caller can choose, since it does not know the seed. Never 0, which is nobody.
    fn number(self, seed: u64) -> u64 {
        let Self::Address(address) = self;
        let number = match address.to_canonical() {
            IpAddr::V4(address) => xxh3_64_with_seed(&address.octets(), seed),
            IpAddr::V6(address) => xxh3_64_with_seed(&address.octets(), seed),
        };
        number.max(1)
    }
}

/// A limit as it runs.
#[derive(Debug)]
pub(crate) struct Limit {
    words: RateLimit,
    pace: Pace,
    /// Times are kept as nanoseconds since this moment, which last for 584 years.
    epoch: Instant,
    buckets: Buckets,
}

#[derive(Debug)]
enum Buckets {
    /// All requests share one.
    One(AtomicU64),
    /// Each caller has its own.
    OfCallers(Callers),
}

impl Limit {
    /// A full bucket. `seed` keeps callers from choosing whom they share a place with.
    pub(crate) fn new(words: RateLimit, now: Instant, seed: u64) -> Self {
        let buckets = match words.per {
            None | Some(Per::Route) => Buckets::One(AtomicU64::new(0)),
            Some(Per::Caller) => Buckets::OfCallers(Callers::new(seed)),
        };
        Self {
            words,
            pace: Pace::new(words),
            epoch: now,
            buckets,
        }
    }

    /// What is said of it.
    pub(crate) fn words(&self) -> RateLimit {
        self.words
    }

    /// Lets a request through, or says how long it would have to wait for that.
    pub(crate) fn take(&self, caller: Caller, now: Instant) -> Result<(), Duration> {
        let now = nanos(now.saturating_duration_since(self.epoch));
        let taken = match &self.buckets {
            Buckets::One(bucket) => self.pace.take(bucket, now),
            Buckets::OfCallers(callers) => self.pace.take(callers.bucket(caller, now), now),
        };
        taken.map_err(Duration::from_nanos)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What a request costs, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// The time from one request to the next in the long run.
    interval: u64,
    /// What a whole burst costs.
    burst: u64,
}

impl Pace {
    fn new(words: RateLimit) -> Self {
        let unit = u64::from(words.requests.per.seconds()) * 1_000_000_000;
        // The highest rate that a file may say still gives a thousand of them.
        let interval = (unit / u64::from(words.requests.count.max(1))).max(1);
        Self {
            interval,
            burst: interval.saturating_mul(u64::from(words.burst())),
        }
    }

    /// Takes what a request costs out of a bucket; else the time until it is there.
    fn take(self, bucket: &AtomicU64, now: u64) -> Result<(), u64> {
        let mut full_at = bucket.load(Ordering::Relaxed);
        for _ in 0..TRIES_MAX {
            let next = full_at.max(now).saturating_add(self.interval);
            let missing = next.saturating_sub(now.saturating_add(self.burst));
            if missing > 0 {
                return Err(missing);
            }
            match bucket.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(meanwhile) => full_at = meanwhile,
            }
        }
        Err(self.interval)
    }
}

/// The buckets of as many callers as there is room for.
///
/// A caller keeps its seat until its bucket is full again: from then on there is nothing about it that a new one would
/// not have. So a seat that goes to another caller gives nobody a fresh bucket, and nothing that callers do makes a
/// limit forget. Those for whom there is no seat share a bucket.
#[derive(Debug)]
struct Callers {
    seed: u64,
    sets: Box<[Set]>,
}

#[derive(Debug, Default)]
struct Set {
    seats: [Seat; SEATS],
    /// The bucket of all that found no seat.
    rest: AtomicU64,
}

#[derive(Debug, Default)]
struct Seat {
    caller: AtomicU64,
    bucket: AtomicU64,
}

impl Callers {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            sets: (0..SETS).map(|_| Set::default()).collect(),
        }
    }

    fn bucket(&self, caller: Caller, now: u64) -> &AtomicU64 {
        let number = caller.number(self.seed);
        let set = &self.sets[usize::try_from(number % SETS as u64).unwrap_or_default()];
        let own = |seat: &&Seat| seat.caller.load(Ordering::Relaxed) == number;
        if let Some(seat) = set.seats.iter().find(own) {
            return &seat.bucket;
        }
        // Two threads that seat one caller at the same moment may give it two seats, of which it uses the first and the
        // other is soon free. A caller whose seat goes while it takes from it pays into the bucket of the next.
        let claimed = set.seats.iter().find(|seat| {
            let sits = seat.caller.load(Ordering::Relaxed);
            seat.bucket.load(Ordering::Relaxed) <= now
                && seat
                    .caller
                    .compare_exchange(sits, number, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
        });
        claimed.map_or(&set.rest, |seat| &seat.bucket)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    fn limit(requests: &str, burst: u32, per: Option<Per>, now: Instant) -> Limit {
        let words = RateLimit {
            requests: requests.parse().unwrap(),
            burst: Some(burst),
            per,
        };
        Limit::new(words, now, 7)
    }

    fn caller(number: u32) -> Caller {
        Caller::Address(IpAddr::V4(number.into()))
    }

    /// How many of so many requests at once are let through.
    fn passed(limit: &Limit, caller: Caller, now: Instant, requests: u32) -> usize {
        (0..requests).filter(|_| limit.take(caller, now).is_ok()).count()
    }

    #[test]
    fn a_burst_goes_through_at_once_and_then_as_many_as_time_earns() {
        let start = Instant::now();
        for (requests, burst, after, earned) in [
            ("10/s", 5, Duration::from_millis(250), 2),
            ("10/s", 5, Duration::from_secs(60), 5),
            ("60/m", 1, Duration::from_millis(999), 0),
            ("60/m", 1, Duration::from_secs(1), 1),
            ("2/h", 3, Duration::from_secs(1800), 1),
            ("1000000/s", 1_000_000, Duration::from_micros(3), 3),
        ] {
            let limit = limit(requests, burst, None, start);
            assert_eq!(
                passed(&limit, caller(1), start, burst + 10),
                burst as usize,
                "{requests}"
            );
            assert_eq!(
                passed(&limit, caller(1), start + after, burst + 10),
                earned,
                "{requests} after {after:?}"
            );
        }
    }

    #[test]
    fn who_is_refused_is_told_when_there_is_room_again_and_then_there_is() {
        let start = Instant::now();
        let limit = limit("4/s", 2, None, start);
        assert_eq!(passed(&limit, caller(1), start, 2), 2);
        let wait = limit.take(caller(1), start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(250));
        let nearly = wait.checked_sub(Duration::from_nanos(1)).unwrap();
        assert!(limit.take(caller(1), start + nearly).is_err());
        assert!(limit.take(caller(1), start + wait).is_ok());
    }

    #[test]
    fn in_the_long_run_no_more_than_the_rate_goes_through_however_often_it_is_asked() {
        let start = Instant::now();
        let limit = limit("100/s", 10, None, start);
        let through: usize = (0..10_000_u64)
            .map(|millis| passed(&limit, caller(1), start + Duration::from_millis(millis), 3))
            .sum();
        assert!((1000..=1011).contains(&through), "{through} in 10 s");
    }

    #[test]
    fn a_clock_that_is_read_out_of_order_gives_nothing_away() {
        let start = Instant::now() + Duration::from_secs(10);
        let limit = limit("10/s", 5, None, start);
        let before = start.checked_sub(Duration::from_secs(5)).unwrap();
        assert_eq!(passed(&limit, caller(1), start, 5), 5);
        assert_eq!(passed(&limit, caller(1), before, 5), 0);
    }

    #[test]
    fn threads_that_take_at_once_get_no_more_than_one_would() {
        let start = Instant::now();
        let limit = Arc::new(limit("1/h", 1000, None, start));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let limit = Arc::clone(&limit);
                thread::spawn(move || passed(&limit, caller(1), start, 1000))
            })
            .collect();
        let through: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!(through, 1000);
    }

    #[test]
    fn each_caller_has_a_bucket_of_its_own_by_either_spelling_of_its_address() {
        let start = Instant::now();
        let limit = limit("1/h", 3, Some(Per::Caller), start);
        for number in 1..=20 {
            assert_eq!(passed(&limit, caller(number), start, 5), 3, "{number}");
        }
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let plain: IpAddr = "10.0.0.1".parse().unwrap();
        assert_eq!(passed(&limit, Caller::Address(mapped), start, 5), 3);
        assert_eq!(passed(&limit, Caller::Address(plain), start, 5), 0);
    }

    #[test]
    fn a_crowd_of_callers_resets_nobodys_limit_and_takes_no_more_room() {
        let start = Instant::now();
        let limit = limit("1/h", 2, Some(Per::Caller), start);
        assert_eq!(passed(&limit, caller(1), start, 5), 2);
        let crowd = 10 * u32::try_from(CALLERS_MAX).unwrap();
        let through: usize = (2..crowd)
            .map(|number| passed(&limit, caller(number), start, 1))
            .sum();
        assert_eq!(passed(&limit, caller(1), start, 5), 0, "it kept its seat");
        let most = CALLERS_MAX + 2 * SETS;
        assert!(through <= most, "{through} of {crowd} were let through");
        assert!(through > CALLERS_MAX / 2, "{through} of {crowd} were let through");
    }

    #[test]
    fn a_caller_that_has_nothing_to_pay_leaves_its_seat_to_another() {
        let start = Instant::now();
        let limit = limit("1/s", 1, Some(Per::Caller), start);
        let crowd = 10 * u32::try_from(CALLERS_MAX).unwrap();
        for number in 2..crowd {
            let _ = limit.take(caller(number), start);
        }
        let later = start + Duration::from_secs(60);
        for number in crowd..crowd + 100 {
            assert_eq!(passed(&limit, caller(number), later, 3), 1, "{number}");
        }
    }
}
