//! How old a connection to an endpoint may become.
//!
//! Behind one address there may be several instances (a load balancer, a service of Kubernetes, a name that was given to
//! another machine), and what has joined them gets nothing of the connections that are there. It closes nothing: who
//! holds a connection asks between two requests.

use std::time::{Duration, Instant};

/// A connection takes no new request after this. Ten minutes let an instance that has joined have its share within as
/// long, and cost one connection of a busy worker one more handshake in hundreds of thousands of requests.
const AGE_MAX: Duration = Duration::from_secs(10 * 60);

/// Up to so much of it less, so that connections that were made together, as after a restart, do not end together.
const SPREAD: f64 = 0.2;

/// When a connection that was made at this time retires. `draw`: a number drawn evenly from 0 to 1.
pub(super) fn retires_at(made: Instant, draw: f64) -> Instant {
    made + AGE_MAX.mul_f64(1.0 - SPREAD * draw)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use outrigger_config::mesh::EndpointPolicy;
    use outrigger_config::service::StaticEndpoint;

    use super::*;
    use crate::telemetry::metrics::{ClusterLabels, Metrics};
    use crate::upstream::EndpointSet;
    use crate::upstream::http1::Connection;
    use crate::upstream::limits::Load;
    use crate::upstream::pool::Pool;

    #[test]
    fn connections_that_were_made_together_retire_one_after_the_other_within_two_minutes() {
        let made = Instant::now();
        let mut ages: Vec<_> = (0..=100)
            .map(|draw| retires_at(made, f64::from(draw) / 100.0).duration_since(made))
            .collect();
        assert_eq!(ages[0], AGE_MAX);
        assert_eq!(ages[100], AGE_MAX * 4 / 5);
        ages.dedup();
        assert_eq!(ages.len(), 101);
    }

    #[tokio::test]
    async fn a_connection_that_has_retired_is_not_kept_for_another_request_and_a_younger_one_is() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let labels = ClusterLabels {
            service: "s".into(),
            backend: "b".into(),
        };
        let limits = EndpointPolicy::default().limits;
        let load = Load::new("s/b".into(), limits, metrics.cluster(labels));
        let found = [StaticEndpoint::from(listener.local_addr().unwrap())];
        let set = EndpointSet::new(
            found,
            &EndpointSet::default(),
            &(load, None),
            false,
            String::new(),
        );
        let (endpoint, pool) = (&set.endpoints[0], Pool::default());
        for (age, kept) in [(AGE_MAX.mul_f64(0.79), true), (AGE_MAX, false)] {
            let connection = Connection::dial(endpoint, false, None).await.unwrap();
            pool.give_back(connection, Instant::now() + age);
            assert_eq!(pool.checkout(endpoint).is_some(), kept, "{age:?}");
        }
    }
}
