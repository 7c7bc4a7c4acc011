//! Configuration → [`Traffic`], and what of it survives a push: a limit whose words are the same keeps
//! its buckets, and a mirror keeps count of the copies that are under way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use outrigger_config::mesh::Timeouts;
use outrigger_config::service::{self, Service};
use outrigger_config::traffic::{Mirror, RateLimit};

use crate::snapshot::Snapshot;
use crate::snapshot::compile::Compiler;
use crate::snapshot::traffic::limit::Limit;
use crate::snapshot::traffic::{self, Traffic};
use crate::telemetry::metrics::{RetryLabels, RouteLabels};

/// What names a route's traffic from one snapshot to the next.
fn key(listener: &'static str, service: &str, route: &str) -> RouteLabels {
    RouteLabels {
        listener,
        service: service.to_owned(),
        route: route.to_owned(),
        backend: String::new(),
    }
}

/// The traffic of every route of a snapshot that has any.
pub(in crate::snapshot) fn of(previous: Option<&Snapshot>) -> HashMap<RouteLabels, Arc<Traffic>> {
    let virtual_hosts = previous.into_iter().flat_map(|previous| &previous.virtual_hosts);
    let routes = virtual_hosts.flat_map(|virtual_host| {
        let labels = virtual_host.unrouted.labels();
        virtual_host.routes.iter().filter_map(|route| {
            let traffic = Arc::clone(route.traffic.as_ref()?);
            Some((key(labels.listener, &labels.service, &route.name), traffic))
        })
    });
    routes.collect()
}

impl Compiler<'_> {
    /// What a route does to its traffic, if it does anything.
    pub(in crate::snapshot) fn traffic(
        &mut self,
        (listener, service, route): (&'static str, &Service, &str),
        limit: Option<RateLimit>,
        (fault, mirrors): (Option<service::Fault>, &[Mirror]),
        timeouts: Timeouts,
    ) -> Option<Arc<Traffic>> {
        if limit.is_none() && fault.is_none() && mirrors.is_empty() {
            return None;
        }
        let key = key(listener, &service.name, route);
        let previous = self.previous_traffic.get(&key).map(Arc::clone);
        let limit = limit.map(|words| {
            let kept = previous.as_ref().and_then(|previous| previous.limit.as_ref());
            kept.filter(|kept| kept.words() == words).map_or_else(
                || Arc::new(Limit::new(words, Instant::now(), fastrand::u64(..))),
                Arc::clone,
            )
        });
        let fault = fault.map(|words| {
            let labels = RetryLabels {
                service: service.name.clone(),
                route: route.to_owned(),
            };
            traffic::Fault::new(words, self.metrics.faults(labels))
        });
        let endpoints = self.config.mesh.endpoints(service);
        let mut made = Vec::with_capacity(mirrors.len());
        for mirror in mirrors {
            let Some(backend) = service
                .backends
                .iter()
                .find(|backend| backend.name == mirror.backend)
            else {
                self.problems.push(format!(
                    "{}: route {route}: no backend `{}`",
                    service.name, mirror.backend
                ));
                continue;
            };
            let words = (
                self.config.mesh.sources(&backend.discover),
                self.words_of_tls(service, backend),
                endpoints.clone(),
            );
            let cluster = self.cluster(service, &backend.name, words);
            let room = previous
                .as_ref()
                .and_then(|previous| previous.room(&backend.name));
            let metrics = self.metrics.mirrors(RouteLabels {
                backend: backend.name.clone(),
                ..key.clone()
            });
            let made_of = (cluster, mirror.percent);
            made.push(Arc::new(traffic::Mirror::new(
                made_of,
                room,
                timeouts.request,
                metrics,
            )));
        }
        Some(Arc::new(Traffic {
            limit,
            fault,
            mirrors: made,
        }))
    }
}
