//! What a route does to its traffic on purpose, resolved: its limit, its faults, its mirrors.
//!
//! Pure: it decides and counts. What is done with the decisions is `request::traffic`'s.

pub(super) mod compile;
pub(crate) mod limit;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use outrigger_config::service;
use outrigger_config::traffic::Abort;
use outrigger_config::units::Percent;

use crate::snapshot::traffic::limit::Limit;
use crate::telemetry::metrics::{FaultMetrics, MirrorMetrics};
use crate::upstream::Cluster;

/// The most copies of a mirror that may be under way at once, all workers together, from the head of the request to the
/// end of the answer. A mirror that answers within 100 ms is sent 1,280 a second; one that never answers holds so many
/// connections and no more.
pub(crate) const COPIES_MAX: usize = 128;

/// The most bytes of bodies that the copies of a mirror may hold at once, all workers together: room for 64 of the
/// largest. Heads come beside, no more of them than there are copies.
pub(crate) const COPIED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The longest that a copy may take, however long the route allows its requests: App Mesh's and Envoy's default for a
/// request. Nobody waits for it, and it holds a place.
const COPY_TIME_MAX: Duration = Duration::from_secs(15);

/// What a route does to its traffic. A route that says nothing of it has none of this.
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) limit: Option<Arc<Limit>>,
    pub(crate) fault: Option<Fault>,
    pub(crate) mirrors: Vec<Arc<Mirror>>,
}

impl Traffic {
    /// The room of the mirror to that backend, if there is one.
    pub(crate) fn room(&self, backend: &str) -> Option<&Arc<Room>> {
        let mirror = self.mirrors.iter().find(|mirror| mirror.cluster.name == backend);
        mirror.map(|mirror| &mirror.room)
    }
}

/// Whether one request of a share is struck.
pub(crate) fn strikes(percent: Percent, rng: &mut fastrand::Rng) -> bool {
    rng.u8(..100) < percent.0
}

/// The faults of a route.
#[derive(Debug)]
pub(crate) struct Fault {
    words: service::Fault,
    pub(crate) metrics: Arc<FaultMetrics>,
}

/// The faults that a request meets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drawn {
    pub(crate) delay: Option<Duration>,
    /// The status that it is answered with, and that of a gRPC call.
    pub(crate) abort: Option<(StatusCode, u8)>,
}

impl Fault {
    pub(crate) fn new(words: service::Fault, metrics: Arc<FaultMetrics>) -> Self {
        Self { words, metrics }
    }

    /// Draws the faults of one request, each by itself.
    pub(crate) fn draw(&self, rng: &mut fastrand::Rng) -> Drawn {
        let service::Fault { delay, abort } = self.words;
        let delay = delay.filter(|delay| strikes(delay.percent, rng));
        let abort = abort.filter(|abort| strikes(abort.percent, rng));
        Drawn {
            delay: delay.map(|delay| delay.time.0),
            abort: abort.map(|abort| (status(abort), abort.grpc_status())),
        }
    }
}

/// The check takes no other than statuses of failures, so the fallback is never taken.
fn status(abort: Abort) -> StatusCode {
    StatusCode::from_u16(abort.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
}

/// A backend that is sent copies.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) cluster: Arc<Cluster>,
    percent: Percent,
    room: Arc<Room>,
    /// How long a copy may take.
    pub(crate) time: Duration,
    pub(crate) metrics: Arc<MirrorMetrics>,
}

impl Mirror {
    /// `room`: that of the same mirror under an earlier configuration. `request`: how long a request of the route may
    /// take.
    pub(crate) fn new(
        (cluster, percent): (Arc<Cluster>, Percent),
        room: Option<&Arc<Room>>,
        request: Option<Duration>,
        metrics: Arc<MirrorMetrics>,
    ) -> Self {
        Self {
            cluster,
            percent,
            room: room.map(Arc::clone).unwrap_or_default(),
            time: request.unwrap_or(COPY_TIME_MAX).min(COPY_TIME_MAX),
            metrics,
        }
    }

    /// Whether a request is copied.
    pub(crate) fn wants(&self, rng: &mut fastrand::Rng) -> bool {
        strikes(self.percent, rng)
    }

    /// A place for a copy whose body has at most so many bytes. `None`: as many as may be are under way, or its backend
    /// is busy.
    pub(crate) fn place(&self, bytes: usize) -> Option<Place> {
        if self.cluster.is_half_full() {
            return None;
        }
        Room::take(&self.room, bytes)
    }
}

/// What the copies of a mirror hold. It outlives a push, since what it counts does.
#[derive(Debug, Default)]
pub(crate) struct Room {
    copies: AtomicUsize,
    bytes: AtomicUsize,
}

impl Room {
    fn take(room: &Arc<Self>, bytes: usize) -> Option<Place> {
        // Counted first, so that threads that ask at the same moment are refused rather than let in together.
        let copies = room.copies.fetch_add(1, Ordering::Relaxed);
        let held = room.bytes.fetch_add(bytes, Ordering::Relaxed);
        let place = Place {
            room: Arc::clone(room),
            bytes,
        };
        (copies < COPIES_MAX && held.saturating_add(bytes) <= COPIED_BYTES_MAX).then_some(place)
    }
}

/// A copy's place, until this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    room: Arc<Room>,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.copies.fetch_sub(1, Ordering::Relaxed);
        self.room.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{Metrics, RetryLabels};

    fn fault(yaml: serde_json::Value) -> Fault {
        let metrics = Arc::new(Metrics::new().unwrap()).faults(RetryLabels {
            service: "ratings".into(),
            route: "default".into(),
        });
        Fault::new(serde_json::from_value(yaml).unwrap(), metrics)
    }

    #[test]
    fn a_share_is_kept_and_nothing_and_all_are_exact() {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut struck = |percent| {
            (0..10_000)
                .filter(|_| strikes(Percent(percent), &mut rng))
                .count()
        };
        assert_eq!((struck(0), struck(100)), (0, 10_000));
        let tenth = struck(10);
        assert!((850..1150).contains(&tenth), "{tenth}");
    }

    #[test]
    fn faults_are_drawn_each_by_itself() {
        let mut rng = fastrand::Rng::with_seed(4);
        let fault = fault(serde_json::json!({
            "delay": { "for": "2s", "percent": "50%" },
            "abort": { "status": 500, "percent": "50%" },
        }));
        let drawn: Vec<Drawn> = (0..1000).map(|_| fault.draw(&mut rng)).collect();
        for (delay, abort) in [(false, false), (false, true), (true, false), (true, true)] {
            let count = drawn
                .iter()
                .filter(|drawn| drawn.delay.is_some() == delay && drawn.abort.is_some() == abort)
                .count();
            assert!((190..310).contains(&count), "{delay} {abort}: {count}");
        }
        let (delay, abort) = (Duration::from_secs(2), (StatusCode::INTERNAL_SERVER_ERROR, 2));
        assert!(
            drawn
                .iter()
                .all(|drawn| drawn.delay.is_none_or(|time| time == delay))
        );
        assert!(
            drawn
                .iter()
                .all(|drawn| drawn.abort.is_none_or(|status| status == abort))
        );
    }

    #[test]
    fn copies_and_their_bytes_are_bounded_and_places_come_back() {
        let room = Arc::new(Room::default());
        let mut places: Vec<Place> = (0..COPIES_MAX).map(|_| Room::take(&room, 0).unwrap()).collect();
        assert!(Room::take(&room, 0).is_none());
        places.pop();
        places.push(Room::take(&room, 0).unwrap());
        drop(places);
        let half = COPIED_BYTES_MAX / 2;
        let _first = Room::take(&room, half).unwrap();
        let second = Room::take(&room, half).unwrap();
        assert!(Room::take(&room, 1).is_none());
        assert!(Room::take(&room, 0).is_some());
        drop(second);
        assert!(Room::take(&room, 1).is_some());
    }
}
