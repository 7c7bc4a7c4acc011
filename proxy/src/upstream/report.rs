//! Clusters and endpoints as operators see them: the body of `/clusters`.

use std::time::Instant;

use serde::Serialize;

use crate::upstream::discovery::{DiscoveryReport, FoundReport, NameReport, StandbyReport};
use crate::upstream::health::Standing;
use crate::upstream::{Cluster, Endpoint};

/// A cluster at one moment.
#[derive(Debug, Serialize)]
pub struct ClusterReport {
    service: String,
    backend: String,
    /// Whether all endpoints are chosen from because fewer than half take part.
    panic: bool,
    requests: u32,
    connections: u32,
    pending: u32,
    limits: LimitsReport,
    /// Why there are no endpoints, if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    absence: Option<String>,
    /// The names that lead to the endpoints, where there are names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    names: Vec<NameReport>,
    endpoints: Vec<EndpointReport>,
    /// Those that SRV records name and that take no requests now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    standbys: Vec<StandbyReport>,
}

#[derive(Debug, Serialize)]
struct LimitsReport {
    connections: u32,
    pending: u32,
    requests: u32,
}

#[derive(Debug, Serialize)]
struct EndpointReport {
    address: String,
    weight: u64,
    health: &'static str,
    /// How long it stays ejected yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    ejected_for_ms: Option<u128>,
    /// What was last found out about it, and how long ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since_ms: Option<u128>,
    ejections: u32,
    in_flight: u32,
    connections: u32,
    /// How long its answers take, where the balancing asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<f32>,
    /// Where it was found, if a name led to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<FoundReport>,
}

impl Cluster {
    /// How it stands.
    pub fn report(&self, now: Instant) -> ClusterReport {
        let set = self.endpoints();
        let [requests, connections, pending] = self.shared.0.now();
        let limits = self.policy.limits;
        let endpoints = set.endpoints.iter().enumerate();
        let discovery = self.following.get().map(|following| following.report(now));
        let DiscoveryReport {
            names,
            found,
            standbys,
        } = discovery.unwrap_or_default();
        ClusterReport {
            service: self.service.clone(),
            backend: self.name.clone(),
            panic: set.is_panicking(),
            requests,
            connections,
            pending,
            limits: LimitsReport {
                connections: limits.connections,
                pending: limits.pending,
                requests: limits.requests,
            },
            absence: set.endpoints.is_empty().then(|| set.absence.clone()),
            names,
            endpoints: endpoints
                .map(|(place, endpoint)| EndpointReport {
                    found: found.get(&endpoint.address).cloned(),
                    ..endpoint_report(endpoint, set.weight(place), now)
                })
                .collect(),
            standbys,
        }
    }
}

fn endpoint_report(endpoint: &Endpoint, weight: u64, now: Instant) -> EndpointReport {
    let standing = endpoint.health.standing(now);
    let news = endpoint.health.news();
    let health = match standing {
        Standing::In => "in",
        Standing::LeftAlone => "left-alone",
        Standing::Ejected(_) => "ejected",
        Standing::Probed => "probed",
        Standing::FailingCheck => "failing-check",
    };
    EndpointReport {
        address: endpoint.address.to_string(),
        weight,
        health,
        ejected_for_ms: match standing {
            Standing::Ejected(left) => Some(left.as_millis()),
            Standing::In | Standing::LeftAlone | Standing::Probed | Standing::FailingCheck => None,
        },
        why: news.as_ref().map(|news| news.what.clone()),
        since_ms: news.map(|news| now.saturating_duration_since(news.at).as_millis()),
        ejections: endpoint.health.ejected(),
        in_flight: endpoint.in_flight(),
        connections: endpoint.connections.load(std::sync::atomic::Ordering::Relaxed),
        latency_ms: endpoint.latency.at(now).map(|micros| micros / 1_000.0),
        found: None,
    }
}
