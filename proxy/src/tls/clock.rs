//! The wall clock beside the one that timers go by.
//!
//! Certificates end by the wall clock. Timers go by another, which stands still while a machine sleeps and does not see a
//! wall clock that is put forward. The workers look at both about once a second; so whoever holds a connection learns of it
//! without reading a clock for each request.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

/// By how much the two clocks may have moved apart before tunnels are woken to look again: within that they end in time.
const APART_MAX: Duration = Duration::from_secs(1);

/// The wall clock, as it was when somebody last looked.
#[derive(Debug)]
pub(super) struct WallClock {
    /// In seconds since 1970; 0 before the first look.
    now: AtomicI64,
    began: Instant,
    /// The wall clock less the timers' in milliseconds, when tunnels last learned of it.
    apart: AtomicI64,
    shifts: watch::Sender<()>,
}

impl Default for WallClock {
    fn default() -> Self {
        Self {
            now: AtomicI64::new(0),
            began: Instant::now(),
            apart: AtomicI64::new(0),
            shifts: watch::Sender::new(()),
        }
    }
}

impl WallClock {
    /// Looks at both.
    pub(super) fn look(&self, wall: SystemTime, timers: Instant) {
        let wall = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(wall.as_secs()).unwrap_or(i64::MAX);
        self.now.store(seconds, Ordering::Relaxed);
        let apart = millis(wall).saturating_sub(millis(timers.saturating_duration_since(self.began)));
        let told = self.apart.load(Ordering::Relaxed);
        if i128::from(apart.abs_diff(told)) <= i128::from(millis(APART_MAX)) {
            return;
        }
        self.apart.store(apart, Ordering::Relaxed);
        self.shifts.send_replace(());
    }

    /// The last second that has passed, in seconds since 1970, by the last look.
    pub(super) fn now(&self) -> i64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Word of each time that the clocks have moved apart.
    pub(super) fn shifts(&self) -> watch::Receiver<()> {
        self.shifts.subscribe()
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
