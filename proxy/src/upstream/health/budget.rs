//! How many retries a cluster may be sent: plain atomics with `now` as an argument. It advises; `request::retry`
//! decides.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

use outrigger_config::service;

use crate::upstream::health::millis;

/// How long an unused part of the budget is kept: a burst of failures may spend what the last ten seconds earned.
/// Linkerd's and Finagle's window.
const BUDGET_WINDOW_SECONDS: i64 = 10;

/// Tokens are kept in thousandths, so that a fifth of a retry for each request is a whole number.
const TOKEN: i64 = 1_000;

/// How many retries a cluster may be sent: a share of its requests, and a few at any load (GEP-3388). What was not
/// used within the window is lost, so that a quiet night does not buy a storm in the morning.
#[derive(Debug)]
pub struct Budget {
    policy: service::Budget,
    /// Thousandths of a token that a request earns.
    earned_by_request: i64,
    /// Tokens that a second earns: as many thousandths a millisecond.
    floor_per_second: i64,
    /// Thousandths of a token that may be spent, at most what the window allows.
    balance: AtomicI64,
    /// When the floor was last paid in, in milliseconds of the process's clock.
    paid_at: AtomicU64,
    /// Requests since the floor was last paid in; the cap on the balance follows the load.
    requests: AtomicI64,
}

impl Budget {
    /// A full floor's worth to begin with.
    pub fn new(policy: service::Budget) -> Self {
        let floor_per_second = i64::from(policy.floor.0);
        Self {
            policy,
            earned_by_request: i64::from(policy.ratio.0) * TOKEN / 100,
            floor_per_second,
            balance: AtomicI64::new(floor_per_second * TOKEN),
            paid_at: AtomicU64::new(millis(Instant::now())),
            requests: AtomicI64::new(0),
        }
    }

    /// The policy that it keeps.
    pub fn policy(&self) -> service::Budget {
        self.policy
    }

    /// A request (not a retry) was sent.
    pub fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Asks for a retry; `true` has spent it. Called only when something failed, so it may do the bookkeeping.
    pub fn spend(&self, now: Instant) -> bool {
        self.pay_in(now);
        let spent = self.balance.fetch_sub(TOKEN, Ordering::Relaxed);
        if spent < TOKEN {
            self.balance.fetch_add(TOKEN, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Pays in what requests and time have earned since the last time, and takes away what is older than the
    /// window.
    fn pay_in(&self, now: Instant) {
        let now = millis(now);
        let before = self.paid_at.swap(now, Ordering::Relaxed);
        let elapsed = i64::try_from(now.saturating_sub(before))
            .unwrap_or(i64::MAX)
            .min(BUDGET_WINDOW_SECONDS * 1_000);
        let requests = self.requests.swap(0, Ordering::Relaxed);
        let earned = requests * self.earned_by_request + elapsed * self.floor_per_second;
        let kept = self.balance.load(Ordering::Relaxed);
        // What is kept fades with time, so that after a window nothing of it is left.
        let faded = kept - kept * elapsed / (BUDGET_WINDOW_SECONDS * 1_000);
        let most = earned + self.floor_per_second * TOKEN;
        let next = (faded + earned).min(most.max(faded));
        self.balance.fetch_add(next - kept, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_config::units::{Percent, Rate};

    use super::*;

    fn budget(ratio: u8, floor: u32) -> Budget {
        Budget::new(service::Budget {
            ratio: Percent(ratio),
            floor: Rate(floor),
        })
    }

    #[test]
    fn a_backend_that_always_fails_is_sent_a_fifth_more_and_the_floor() {
        let budget = budget(20, 10);
        let start = Instant::now();
        let mut retries = 0;
        for request in 0..10_000_u64 {
            budget.request();
            if budget.spend(start + Duration::from_millis(request)) {
                retries += 1;
            }
        }
        // 10 s of 1,000 requests a second: 20 % are 2,000, the floor is 100, and a second's floor to begin with.
        assert!((2_000..=2_110).contains(&retries), "{retries}");
    }

    #[test]
    fn a_budget_of_nothing_allows_nothing() {
        let budget = budget(0, 0);
        let start = Instant::now();
        for request in 0..100 {
            budget.request();
            assert!(!budget.spend(start + Duration::from_secs(request)));
        }
    }

    #[test]
    fn what_a_busy_hour_earned_does_not_buy_a_storm_later() {
        let budget = budget(20, 1);
        let start = Instant::now();
        for _ in 0..100_000 {
            budget.request();
        }
        assert!(budget.spend(start));
        let much_later = start + Duration::from_secs(3600);
        let bought = (0..1_000).filter(|_| budget.spend(much_later)).count();
        assert!(bought <= 11, "{bought}");
    }
}
