//! The choice of an endpoint: pure, with the time and the dice as arguments.
//!
//! Each rule first looks among the endpoints that the request has not tried and that take part (all of them, when
//! fewer than half do: the panic rule), then among those it has not tried, then among all: an answer that may fail is
//! better than none, and a cluster whose every endpoint has failed is found to be back the moment that it is.

pub(crate) mod ewma;
mod key;
pub(crate) mod maglev;
pub(crate) mod shares;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::request::Parts;
use outrigger_config::service::Balance;

use crate::upstream::balance::key::KeyOf;
use crate::upstream::balance::shares::Shares;
use crate::upstream::{Endpoint, EndpointSet};

/// How often the draw for two candidates is repeated before every endpoint is looked at instead. With half of the
/// endpoints out, four draws find one in fifteen cases of sixteen.
const DRAWS: usize = 4;

/// How far a key is followed past endpoints that are out. With nine of ten out, one that is in is among so many
/// places but for one case in 10¹¹.
const PLACES_MAX: usize = 256;

/// How a cluster chooses.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(super) balance: Balance,
    slow_start: Option<Duration>,
    key: KeyOf,
    cursor: AtomicUsize,
}

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// The endpoints that the request has been sent to before.
    pub(crate) tried: &'a [u64],
    /// What leads it to its endpoint, if anything does.
    pub(crate) key: Option<u64>,
    pub(crate) now: Instant,
}

impl Rule {
    pub(crate) fn new(balance: Balance, slow_start: Option<Duration>) -> Self {
        Self {
            key: KeyOf::new(&balance),
            balance,
            slow_start,
            cursor: AtomicUsize::new(0),
        }
    }

    /// Whether keys lead to endpoints.
    pub(super) fn hashes(&self) -> bool {
        matches!(self.balance, Balance::HashOn(_))
    }

    /// What leads a request to its endpoint, if anything does.
    pub(crate) fn key(&self, head: &Parts, source: IpAddr) -> Option<u64> {
        self.key.of(head, source)
    }

    /// Chooses one of a set. `None` only if there are none.
    pub(crate) fn choose<'a>(
        &self,
        set: &'a EndpointSet,
        wanted: &Wanted<'_>,
        rng: &mut fastrand::Rng,
    ) -> Option<&'a Arc<Endpoint>> {
        let now = wanted.now;
        let fresh = |endpoint: &Endpoint| !wanted.tried.contains(&endpoint.id);
        let usable = |endpoint: &Endpoint, _: &mut fastrand::Rng| {
            fresh(endpoint) && endpoint.health.may_be_tried(now, || set.is_panicking())
        };
        let chosen = match self.slow_start {
            None => self.by_rule(set, wanted, rng, usable),
            Some(window) => {
                // Passed over in proportion to what it still lacks. This comes before the question whether it may be
                // tried, since that one may claim its probe.
                let grown = |endpoint: &Endpoint, rng: &mut fastrand::Rng| {
                    let grown = endpoint.health.grown(now, window);
                    (grown >= 1.0 || rng.f64() < grown) && usable(endpoint, rng)
                };
                self.by_rule(set, wanted, rng, grown)
                    .or_else(|| self.by_rule(set, wanted, rng, usable))
            }
        };
        chosen
            .or_else(|| self.in_turn(set, rng, |endpoint, _| fresh(endpoint)))
            .or_else(|| self.in_turn(set, rng, |_, _| true))
    }

    fn by_rule<'a>(
        &self,
        set: &'a EndpointSet,
        wanted: &Wanted<'_>,
        rng: &mut fastrand::Rng,
        will_do: impl Fn(&Endpoint, &mut fastrand::Rng) -> bool,
    ) -> Option<&'a Arc<Endpoint>> {
        let less_busy = |first: usize, second: usize| {
            let load =
                |place: usize, other: usize| u64::from(set.endpoints[place].in_flight()) * set.weight(other);
            load(second, first) < load(first, second)
        };
        match self.balance {
            Balance::RoundRobin => self.in_turn(set, rng, will_do),
            Balance::LeastRequest => of_two(set, rng, less_busy, will_do),
            Balance::Ewma => {
                let sooner = |first: usize, second: usize| {
                    let (one, other) = (&set.endpoints[first], &set.endpoints[second]);
                    match (one.latency.at(wanted.now), other.latency.at(wanted.now)) {
                        (Some(one_takes), Some(other_takes)) => {
                            cost(other, other_takes) < cost(one, one_takes)
                        }
                        // Of a new one nothing is known but how busy it is.
                        _ => less_busy(first, second),
                    }
                };
                of_two(set, rng, sooner, will_do)
            }
            Balance::HashOn(_) => match (wanted.key, &set.table) {
                (Some(key), Some(table)) => table
                    .from(key)
                    .take(PLACES_MAX)
                    .map(|place| &set.endpoints[place])
                    .find(|endpoint| will_do(endpoint, rng))
                    .or_else(|| self.in_turn(set, rng, will_do)),
                _ => of_two(set, rng, less_busy, will_do),
            },
        }
    }

    /// The next in turn that will do.
    fn in_turn<'a>(
        &self,
        set: &'a EndpointSet,
        rng: &mut fastrand::Rng,
        will_do: impl Fn(&Endpoint, &mut fastrand::Rng) -> bool,
    ) -> Option<&'a Arc<Endpoint>> {
        let count = set.endpoints.len();
        let turn = self.cursor.fetch_add(1, Ordering::Relaxed);
        let start = match &set.shares {
            None => turn,
            Some(shares) => shares.at(Shares::fraction(turn as u64)),
        };
        (0..count)
            .map(|step| &set.endpoints[start.wrapping_add(step) % count])
            .find(|endpoint| will_do(endpoint, rng))
    }
}

/// What a request may be expected to wait at an endpoint: those before it, and itself.
#[expect(
    clippy::cast_precision_loss,
    reason = "no endpoint has 16 million requests under way"
)]
fn cost(endpoint: &Endpoint, takes: f32) -> f32 {
    takes * (endpoint.in_flight() as f32 + 1.0)
}

/// The better of two drawn at random, by weight. `second_is_better` compares two by their places; where they are
/// equal the first is taken, so that an idle cluster is shared out as it was drawn.
fn of_two<'a>(
    set: &'a EndpointSet,
    rng: &mut fastrand::Rng,
    second_is_better: impl Fn(usize, usize) -> bool,
    will_do: impl Fn(&Endpoint, &mut fastrand::Rng) -> bool,
) -> Option<&'a Arc<Endpoint>> {
    let endpoints = &set.endpoints;
    match &endpoints[..] {
        [] => return None,
        [only] => return will_do(only, rng).then_some(only),
        _ => {}
    }
    for _ in 0..DRAWS {
        let (first, second) = two(set, rng);
        let (better, worse) = if second_is_better(first, second) {
            (&endpoints[second], &endpoints[first])
        } else {
            (&endpoints[first], &endpoints[second])
        };
        if will_do(better, rng) {
            return Some(better);
        }
        if will_do(worse, rng) {
            return Some(worse);
        }
    }
    let start = rng.usize(..endpoints.len());
    // The first that will do, not the best of all: asking an endpoint may claim its probe, and a probe that
    // is claimed and not sent is lost.
    endpoints[start..]
        .iter()
        .chain(&endpoints[..start])
        .find(|endpoint| will_do(endpoint, rng))
}

/// The places of two endpoints, never the same. There are at least two.
fn two(set: &EndpointSet, rng: &mut fastrand::Rng) -> (usize, usize) {
    let count = set.endpoints.len();
    let Some(shares) = &set.shares else {
        let first = rng.usize(..count);
        return (first, (first + rng.usize(1..count)) % count);
    };
    let first = shares.at(rng.u64(..));
    for _ in 0..DRAWS {
        let second = shares.at(rng.u64(..));
        if second != first {
            return (first, second);
        }
    }
    (first, (first + rng.usize(1..count)) % count)
}

#[cfg(test)]
mod tests;
