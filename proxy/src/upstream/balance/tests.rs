//! The rules, by their statistics: seeds are fixed, so a test that passes once passes always.

use std::collections::HashMap;

use outrigger_config::mesh::EndpointPolicy;
use outrigger_config::service::{HashOn, StaticEndpoint};

use super::*;
use crate::telemetry::metrics::{ClusterLabels, Metrics};
use crate::upstream::limits::Load;

/// Endpoints on the ports 1, 2, … with these weights.
fn weighted(weights: &[u32]) -> EndpointSet {
    let metrics = Arc::new(Metrics::new().unwrap());
    let labels = ClusterLabels {
        service: "s".into(),
        backend: "b".into(),
    };
    let load = Load::new(
        "s/b".into(),
        EndpointPolicy::default().limits,
        metrics.cluster(labels),
    );
    let found = (1..).zip(weights).map(|(port, weight)| StaticEndpoint {
        address: ([127, 0, 0, 1], port).into(),
        weight: *weight,
    });
    EndpointSet::new(found, &EndpointSet::default(), &(load, None), true, String::new())
}

fn endpoints(count: usize) -> EndpointSet {
    weighted(&vec![1; count])
}

fn every_balance() -> [Balance; 4] {
    let hash_on = Balance::HashOn(HashOn::SourceAddress);
    [Balance::RoundRobin, Balance::LeastRequest, Balance::Ewma, hash_on]
}

/// A chooser with a seed.
struct Chooser<'a> {
    rule: Rule,
    set: &'a EndpointSet,
    rng: fastrand::Rng,
    now: Instant,
}

impl<'a> Chooser<'a> {
    fn new(balance: Balance, set: &'a EndpointSet) -> Self {
        Self {
            rule: Rule::new(balance, None),
            set,
            rng: fastrand::Rng::with_seed(7),
            now: Instant::now(),
        }
    }

    fn next(&mut self, tried: &[u64], key: Option<u64>) -> Option<&'a Arc<Endpoint>> {
        let wanted = Wanted {
            tried,
            key,
            now: self.now,
        };
        self.rule.choose(self.set, &wanted, &mut self.rng)
    }

    /// The ports of so many choices.
    fn ports(&mut self, tried: &[u64], draws: u64) -> Vec<u16> {
        (0..draws)
            .map(|draw| {
                let key = Some(xxhash_rust::xxh3::xxh3_64(&draw.to_le_bytes()));
                self.next(tried, key).unwrap().address.port()
            })
            .collect()
    }

    /// How often each port is chosen.
    fn counts(&mut self, draws: u64) -> HashMap<u16, u64> {
        let mut counts = HashMap::new();
        for port in self.ports(&[], draws) {
            *counts.entry(port).or_default() += 1;
        }
        counts
    }
}

#[test]
fn round_robin_takes_each_in_turn() {
    let three = endpoints(3);
    assert_eq!(
        Chooser::new(Balance::RoundRobin, &three).ports(&[], 7),
        [1, 2, 3, 1, 2, 3, 1]
    );
}

#[test]
fn least_request_never_takes_the_busiest_of_two() {
    let two = endpoints(2);
    two.endpoints[0].in_flight.store(5, Ordering::Relaxed);
    let ports = Chooser::new(Balance::LeastRequest, &two).ports(&[], 50);
    assert!(ports.iter().all(|port| *port == 2));
}

#[test]
fn idle_endpoints_share_evenly_whatever_the_rule() {
    let four = endpoints(4);
    for balance in every_balance() {
        let counts = Chooser::new(balance.clone(), &four).counts(4_000);
        for port in 1..=4 {
            assert!((850..=1_150).contains(&counts[&port]), "{balance:?}: {counts:?}");
        }
    }
}

#[test]
fn idle_endpoints_share_by_weight_whatever_the_rule() {
    let set = weighted(&[1, 3, 4]);
    for balance in every_balance() {
        let counts = Chooser::new(balance.clone(), &set).counts(8_000);
        for (port, expected) in [(1, 1_000_u64), (2, 3_000), (3, 4_000)] {
            let off = counts[&port].abs_diff(expected);
            assert!(off < expected / 10 + 50, "{balance:?}: {counts:?}");
        }
    }
}

#[test]
fn least_request_bears_with_a_heavy_endpoint_that_has_more_to_do() {
    let set = weighted(&[1, 4]);
    // In proportion to their weights they are equally busy.
    set.endpoints[0].in_flight.store(2, Ordering::Relaxed);
    set.endpoints[1].in_flight.store(7, Ordering::Relaxed);
    let counts = Chooser::new(Balance::LeastRequest, &set).counts(1_000);
    assert_eq!(counts[&2], 1_000, "{counts:?}");
}

#[test]
fn ewma_prefers_the_faster_and_shuns_one_that_fails_fast() {
    let set = endpoints(3);
    let mut chooser = Chooser::new(Balance::Ewma, &set);
    let mut counts = [0_u64; 3];
    for _ in 0..10_000 {
        chooser.now += Duration::from_millis(1);
        let chosen = chooser.next(&[], None).unwrap();
        let place = usize::from(chosen.address.port()) - 1;
        counts[place] += 1;
        match place {
            0 => chosen.latency.answered(Duration::from_millis(5), chooser.now),
            1 => chosen.latency.answered(Duration::from_millis(20), chooser.now),
            _ => chosen.latency.failed(Duration::from_micros(100), chooser.now),
        }
    }
    assert!(counts[2] < 100, "the one that fails in 0.1 ms: {counts:?}");
    assert!(counts[0] > 6_000, "{counts:?}");
    assert!(counts[1] > 1_000, "the slower one is still asked: {counts:?}");
}

#[test]
fn a_key_leads_to_one_endpoint_and_on_to_the_next_when_that_is_out() {
    let set = endpoints(5);
    let mut chooser = Chooser::new(Balance::HashOn(HashOn::SourceAddress), &set);
    let mut moved_to = HashMap::new();
    for key in 0..200_u64 {
        let key = Some(xxhash_rust::xxh3::xxh3_64(&key.to_le_bytes()));
        let first = chooser.next(&[], key).unwrap();
        assert!((0..5).all(|_| chooser.next(&[], key).unwrap().id == first.id));
        first.health.checked(false, "ill", chooser.now);
        set.recount();
        let second = chooser.next(&[], key).unwrap();
        assert_ne!(first.id, second.id);
        *moved_to.entry(second.address.port()).or_insert(0) += 1;
        first.health.checked(true, "well", chooser.now);
        set.recount();
    }
    assert_eq!(
        moved_to.len(),
        5,
        "those that move spread over the others: {moved_to:?}"
    );
}

#[test]
fn an_endpoint_that_was_tried_is_not_chosen_while_another_is_there() {
    let three = endpoints(3);
    for balance in every_balance() {
        let tried = [three.endpoints[0].id, three.endpoints[2].id];
        let ports = Chooser::new(balance, &three).ports(&tried, 20);
        assert!(ports.iter().all(|port| *port == 2));
    }
}

#[test]
fn an_endpoint_that_is_left_alone_is_chosen_only_when_no_other_is_there() {
    for balance in every_balance() {
        let two = endpoints(2);
        let mut chooser = Chooser::new(balance, &two);
        two.endpoints[0].health.connect_failed(chooser.now);
        assert!(chooser.ports(&[], 20).iter().all(|port| *port == 2));
        let tried = [two.endpoints[1].id];
        assert!(chooser.ports(&tried, 20).iter().all(|port| *port == 1));
    }
}

#[test]
fn with_half_of_the_endpoints_in_only_those_are_chosen_and_with_fewer_all() {
    for balance in every_balance() {
        let set = endpoints(4);
        let mut chooser = Chooser::new(balance.clone(), &set);
        for endpoint in &set.endpoints[..2] {
            endpoint.health.checked(false, "ill", chooser.now);
        }
        set.recount();
        assert!(!set.is_panicking());
        assert!(
            chooser.ports(&[], 100).iter().all(|port| *port > 2),
            "{balance:?}"
        );
        set.endpoints[2].health.checked(false, "ill", chooser.now);
        assert!(set.recount() && set.is_panicking());
        let counts = chooser.counts(400);
        assert!(counts.len() == 4, "{balance:?}: {counts:?}");
    }
}

#[test]
fn that_endpoints_are_out_which_others_stand_in_for_is_no_panic() {
    for balance in every_balance() {
        let mut set = endpoints(4);
        set.await_some(3);
        let mut chooser = Chooser::new(balance.clone(), &set);
        for endpoint in &set.endpoints[..3] {
            endpoint.health.checked(false, "ill", chooser.now);
        }
        set.recount();
        assert!(!set.is_panicking());
        assert!(
            chooser.ports(&[], 100).iter().all(|port| *port == 4),
            "{balance:?}"
        );
    }
}

#[test]
fn a_cluster_whose_every_endpoint_is_out_or_tried_still_chooses() {
    for balance in every_balance() {
        let set = endpoints(2);
        let mut chooser = Chooser::new(balance, &set);
        for endpoint in &set.endpoints {
            endpoint.health.checked(false, "ill", chooser.now);
            endpoint.health.connect_failed(chooser.now);
        }
        set.recount();
        assert!(chooser.next(&[], Some(1)).is_some());
        let tried = [set.endpoints[0].id, set.endpoints[1].id];
        assert!(chooser.next(&tried, Some(1)).is_some());
    }
}

#[test]
fn a_new_endpoint_grows_into_its_share() {
    let window = Duration::from_secs(30);
    let set = endpoints(2);
    for balance in [Balance::RoundRobin, Balance::LeastRequest, Balance::Ewma] {
        let mut chooser = Chooser::new(balance.clone(), &set);
        chooser.rule = Rule::new(balance.clone(), Some(window));
        // One is long grown, the other has just come back.
        let start = chooser.now + Duration::from_secs(3600);
        set.endpoints[1].health.checked(false, "ill", start);
        set.endpoints[1].health.checked(true, "well", start);
        set.recount();
        let mut share_at = |age: Duration| {
            chooser.now = start + age;
            chooser.counts(2_000)[&2]
        };
        let (begins, half, grown) = (share_at(Duration::ZERO), share_at(window / 2), share_at(window));
        assert!((50..350).contains(&begins), "{balance:?}: {begins}");
        assert!((350..850).contains(&half), "{balance:?}: {half}");
        assert!((900..=1_100).contains(&grown), "{balance:?}: {grown}");
    }
}

#[test]
fn an_empty_cluster_has_nothing_to_choose() {
    let none = endpoints(0);
    for balance in every_balance() {
        assert!(Chooser::new(balance, &none).next(&[], Some(1)).is_none());
    }
}
