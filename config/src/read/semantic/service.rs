//! The checks of one service by itself.

use super::super::node::{Fault, shown};
use super::At;
use super::discover::discover;
use super::endpoints::{Shared, endpoints, health_check};
use super::identity::allow;
use super::names::{host, part_name, service_name, unique};
use super::outside::outside;
use super::routes::routes;
use super::traffic::of_service;
use crate::service::{Backend, BackendTls, Service};

/// Checks a service by itself.
pub(in super::super) fn service(at: &At<'_>, service: &Service, faults: &mut Vec<Fault>) {
    if let Some(at) = at.field("name") {
        faults.extend(service_name(&service.name).map(|why| at.fault(why)));
    }
    hosts(at, faults);
    if let (Some(at), Some(app)) = (at.field("app"), service.app)
        && app.port() == 0
    {
        faults.push(at.fault("the application cannot be reached at port 0; give the port where it listens"));
    }
    if let Some(list) = at.field("backends")
        && list.node.items().is_empty()
    {
        faults.push(list.fault("the list is empty; a service needs at least one backend"));
    }
    let backends = at.items_of("backends");
    for (at, backend) in backends.iter().zip(&service.backends) {
        self::backend(at, backend, faults);
    }
    unique(&backends, "name", "backend", faults);
    let said = Shared {
        balance: service.balance.as_ref(),
        limits: service.limits.as_ref(),
        ejection: service.ejection.as_ref(),
        slow_start: service.slow_start,
    };
    endpoints(at, &said, faults);
    if let (Some(at), Some(check)) = (at.field("health_check"), &service.health_check) {
        health_check(&at, check, faults);
    }
    of_service(at, service, faults);
    allow(at, service, faults);
    routes(at, service, faults);
}

pub(super) fn hosts(at: &At<'_>, faults: &mut Vec<Fault>) {
    for at in at.items_of("hosts") {
        let Some(name) = at.node.text() else {
            continue;
        };
        let rest = name.strip_prefix("*.");
        if rest.is_none() && name.contains('*') || rest.is_some_and(|rest| rest.contains('*')) {
            faults.push(at.fault(format!(
                "`{}` is not a host name: a `*` is allowed as the whole first label only, as in *.shop.internal",
                shown(name)
            )));
            continue;
        }
        faults.extend(host(rest.unwrap_or(name)).map(|why| at.fault(why)));
    }
}

fn backend(at: &At<'_>, backend: &Backend, faults: &mut Vec<Fault>) {
    if let Some(at) = at.field("name") {
        faults.extend(part_name(&backend.name, "backend").map(|why| at.fault(why)));
    }
    if let (Some(tls), Some(BackendTls::Outside(said))) = (at.field("tls"), &backend.tls) {
        outside(
            &tls,
            said,
            at.given(&["discover"]) == 1 && backend.discover.name().is_some(),
            faults,
        );
    }
    if let Some(at) = at.field("discover") {
        discover(&at, &backend.discover, faults);
    }
}
