//! The choice of an endpoint: pure, with the time and the dice as arguments.
//!
//! Each rule first looks among the endpoints that the request has not tried and that are not being left alone, then
//! among those it has not tried, then among all: an answer that may fail is better than none, and a cluster whose
//! every endpoint has failed is found to be back the moment that it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use outrigger_config::service::Balance;

use crate::upstream::Endpoint;

/// How often the draw for two candidates is repeated before every endpoint is looked at instead. With half of the
/// endpoints out, four draws find one in fifteen cases of sixteen.
const DRAWS: usize = 4;

/// Chooses one of `endpoints`. `None` only if there are none.
pub(crate) fn choose<'a>(
    balance: Balance,
    cursor: &AtomicUsize,
    endpoints: &'a [Arc<Endpoint>],
    tried: &[u64],
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Option<&'a Arc<Endpoint>> {
    let fresh = |endpoint: &Endpoint| !tried.contains(&endpoint.id);
    let usable = |endpoint: &Endpoint| fresh(endpoint) && endpoint.health.may_be_tried(now);
    let chosen = match balance {
        Balance::RoundRobin => in_turn(cursor, endpoints, usable),
        Balance::LeastRequest => less_busy(endpoints, rng, usable),
    };
    chosen
        .or_else(|| in_turn(cursor, endpoints, fresh))
        .or_else(|| in_turn(cursor, endpoints, |_| true))
}

/// The next in turn that will do.
fn in_turn<'a>(
    cursor: &AtomicUsize,
    endpoints: &'a [Arc<Endpoint>],
    will_do: impl Fn(&Endpoint) -> bool,
) -> Option<&'a Arc<Endpoint>> {
    let count = endpoints.len();
    let start = cursor.fetch_add(1, Ordering::Relaxed);
    (0..count)
        .map(|step| &endpoints[start.wrapping_add(step) % count])
        .find(|endpoint| will_do(endpoint))
}

/// The less busy of two drawn at random.
fn less_busy<'a>(
    endpoints: &'a [Arc<Endpoint>],
    rng: &mut fastrand::Rng,
    will_do: impl Fn(&Endpoint) -> bool,
) -> Option<&'a Arc<Endpoint>> {
    match endpoints {
        [] => return None,
        [only] => return will_do(only).then_some(only),
        _ => {}
    }
    for _ in 0..DRAWS {
        let first = rng.usize(..endpoints.len());
        // Drawn from the others, so that the two are never the same.
        let second = (first + rng.usize(1..endpoints.len())) % endpoints.len();
        let (first, second) = (&endpoints[first], &endpoints[second]);
        let (better, worse) = if second.in_flight() < first.in_flight() {
            (second, first)
        } else {
            (first, second)
        };
        if will_do(better) {
            return Some(better);
        }
        if will_do(worse) {
            return Some(worse);
        }
    }
    let start = rng.usize(..endpoints.len());
    // The first that will do, not the least busy of all: asking an endpoint may claim its probe, and a probe that
    // is claimed and not sent is lost.
    endpoints[start..]
        .iter()
        .chain(&endpoints[..start])
        .find(|endpoint| will_do(endpoint))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::upstream::EndpointSet;

    fn endpoints(count: u16) -> Vec<Arc<Endpoint>> {
        let addresses = (1..=count).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        EndpointSet::new(addresses, &EndpointSet::default(), String::new()).endpoints
    }

    fn ports(balance: Balance, endpoints: &[Arc<Endpoint>], tried: &[u64], draws: usize) -> Vec<u16> {
        let cursor = AtomicUsize::new(0);
        let mut rng = fastrand::Rng::with_seed(7);
        let now = Instant::now();
        (0..draws)
            .map(|_| {
                choose(balance, &cursor, endpoints, tried, now, &mut rng)
                    .unwrap()
                    .address
                    .port()
            })
            .collect()
    }

    #[test]
    fn round_robin_takes_each_in_turn() {
        assert_eq!(
            ports(Balance::RoundRobin, &endpoints(3), &[], 7),
            [1, 2, 3, 1, 2, 3, 1]
        );
    }

    #[test]
    fn least_request_never_takes_the_busiest_of_two() {
        let two = endpoints(2);
        two[0].in_flight.store(5, Ordering::Relaxed);
        assert!(
            ports(Balance::LeastRequest, &two, &[], 50)
                .iter()
                .all(|port| *port == 2)
        );
    }

    #[test]
    fn least_request_spreads_evenly_over_idle_endpoints() {
        let four = endpoints(4);
        let chosen = ports(Balance::LeastRequest, &four, &[], 4_000);
        for port in 1..=4 {
            let share = chosen.iter().filter(|chosen| **chosen == port).count();
            assert!(
                (850..=1_150).contains(&share),
                "port {port} was chosen {share} times of 4000"
            );
        }
    }

    #[test]
    fn an_endpoint_that_was_tried_is_not_chosen_while_another_is_there() {
        let three = endpoints(3);
        for balance in [Balance::RoundRobin, Balance::LeastRequest] {
            let tried = [three[0].id, three[2].id];
            assert!(ports(balance, &three, &tried, 20).iter().all(|port| *port == 2));
        }
    }

    #[test]
    fn an_endpoint_that_is_left_alone_is_chosen_only_when_no_other_is_there() {
        let two = endpoints(2);
        two[0].health.connect_failed(Instant::now());
        for balance in [Balance::RoundRobin, Balance::LeastRequest] {
            assert!(ports(balance, &two, &[], 20).iter().all(|port| *port == 2));
            assert!(
                ports(balance, &two, &[two[1].id], 20)
                    .iter()
                    .all(|port| *port == 1)
            );
        }
    }

    #[test]
    fn a_cluster_whose_every_endpoint_was_tried_starts_over() {
        let one = endpoints(1);
        assert_eq!(ports(Balance::LeastRequest, &one, &[one[0].id], 1), [1]);
    }

    #[test]
    fn an_empty_cluster_has_nothing_to_choose() {
        let mut rng = fastrand::Rng::with_seed(7);
        for balance in [Balance::RoundRobin, Balance::LeastRequest] {
            assert!(choose(balance, &AtomicUsize::new(0), &[], &[], Instant::now(), &mut rng).is_none());
        }
    }
}
