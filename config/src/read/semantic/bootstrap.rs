//! The checks of a proxy's bootstrap.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::super::node::{Fault, shown};
use super::names::{gateway_name, host, service_name};
use super::{At, dns};
use crate::bootstrap::{Bootstrap, Listeners, Source};
use crate::discovery::WANTS_MAX;
use crate::identity::{IdentitySource, workload_socket};
use crate::units::Duration;

/// More data threads than any machine that runs a sidecar has cores for it.
const WORKERS_MAX: usize = 256;

/// Callers are looked at once a second, so that a shorter bound could not be kept.
const SILENCE_MIN: Duration = Duration::from_secs(1);

/// A connection that is silent for longer is forgotten by what stands between.
const SILENCE_MAX: Duration = Duration::from_secs(3600);

/// Checks a bootstrap. Whether a source of configuration is there at all is not asked here: a flag may name it.
pub(in super::super) fn bootstrap(at: &At<'_>, bootstrap: &Bootstrap, faults: &mut Vec<Fault>) {
    if let Some(at) = at.field("node").and_then(|node| node.field("service")) {
        let name = bootstrap.node.service.as_deref().unwrap_or_default();
        faults.extend(service_name(name).map(|why| at.fault(why)));
    }
    if let Some(at) = at.field("listeners") {
        local(&at, &bootstrap.listeners, faults);
        silences(&at, &bootstrap.listeners, faults);
        gateways(&at, &bootstrap.listeners, faults);
        dns::listener(&at, &bootstrap.listeners, faults);
    }
    if let Some(at) = at.field("config") {
        source(&at, &bootstrap.config, faults);
    }
    if let (Some(at), Some(source)) = (at.field("identity"), &bootstrap.identity) {
        identity(&at, source, faults);
    }
    if let (Some(at), Some(workers)) = (at.field("workers"), bootstrap.workers)
        && !(1..=WORKERS_MAX).contains(&workers)
    {
        faults.push(at.fault(format!("{workers} workers; expected 1 to {WORKERS_MAX}")));
    }
    addresses(at, bootstrap, faults);
}

/// Checks what a sidecar refuses to start with, unless a flag says otherwise.
pub(in super::super) fn bootstrap_alone(at: &At<'_>, bootstrap: &Bootstrap, faults: &mut Vec<Fault>) {
    let Some(source) = &bootstrap.identity else {
        return;
    };
    let Some(at) = at.field("identity").and_then(|at| at.field("join")) else {
        return;
    };
    let names_none = source.join.as_ref().is_some_and(|join| join.control.is_none());
    if names_none && let Some(path) = &bootstrap.config.path {
        faults.push(at.fault(format!(
            "joining the mesh takes a control API, and the configuration comes from `{}`: give `control`, such as \
             https://control.shop.internal:9900",
            shown(&path.display().to_string())
        )));
    }
    if names_none
        && let Some(control) = &bootstrap.config.control
        && control.starts_with("http://")
    {
        faults.push(at.fault(format!(
            "a token and a certificate are asked for over TLS only, and `config.control` is `{}`: give `control` with \
             https://, or start that control API with --tls",
            shown(control)
        )));
    }
}

fn local(at: &At<'_>, listeners: &Listeners, faults: &mut Vec<Fault>) {
    for (at, listener) in at.items_of("local").iter().zip(&listeners.local) {
        if let Some(at) = at.field("service") {
            faults.extend(service_name(&listener.service).map(|why| at.fault(why)));
        }
    }
}

fn gateways(at: &At<'_>, listeners: &Listeners, faults: &mut Vec<Fault>) {
    for (at, listener) in at.items_of("gateways").iter().zip(&listeners.gateways) {
        if let Some(at) = at.field("name") {
            faults.extend(gateway_name(&listener.name).map(|why| at.fault(why)));
        }
        if let Some(at) = at.field("tls").and_then(|tls| tls.field("certificates"))
            && at.node.items().is_empty()
        {
            faults.push(at.fault("the list is empty; TLS takes at least one certificate with its key"));
        }
    }
}

fn silences(at: &At<'_>, listeners: &Listeners, faults: &mut Vec<Fault>) {
    for (name, value) in [
        ("head_timeout", listeners.head_timeout),
        ("idle_timeout", listeners.idle_timeout),
    ] {
        if let Some(at) = at.field(name)
            && !(SILENCE_MIN..=SILENCE_MAX).contains(&value)
        {
            faults.push(at.fault(format!("{value}; expected {SILENCE_MIN} to {SILENCE_MAX}")));
        }
    }
}

fn source(at: &At<'_>, source: &Source, faults: &mut Vec<Fault>) {
    if at.given(&["control", "path"]) == 2 {
        faults.push(
            at.fault("`control` and `path` are given together; the configuration comes from one of them"),
        );
    }
    if let (Some(at), Some(control)) = (at.field("control"), &source.control) {
        faults.extend(control_address(control).map(|why| at.fault(why)));
    }
    if let Some(at) = at.field("want")
        && source.want.len() > WANTS_MAX
    {
        let given = source.want.len();
        faults.push(at.fault(format!(
            "{given} services; at most {WANTS_MAX} can be asked for by name: leave it out to be told of all"
        )));
    }
    for (at, want) in at.items_of("want").iter().zip(&source.want) {
        faults.extend(
            service_name(want.strip_prefix('@').unwrap_or(want))
                .filter(|_| want != "*")
                .map(|why| at.fault(why)),
        );
    }
}

fn identity(at: &At<'_>, source: &IdentitySource, faults: &mut Vec<Fault>) {
    if at.given(&["files", "join", "workload_api"]) != 1 {
        faults.push(at.fault(
            "an identity comes from `files`, from the control API by `join`, or from an agent of SPIFFE by `workload_api`; \
             exactly one of them is to be given",
        ));
    }
    let api = at.field("workload_api");
    if let (Some(at), Some(socket)) = (
        api.as_ref().and_then(|api| api.field("socket")),
        source.workload_api.as_ref().and_then(|api| api.socket.as_deref()),
    ) && let Err(why) = workload_socket(socket)
    {
        faults.push(at.fault(format!("`{}`: {why}", shown(socket))));
    }
    let join = at.field("join");
    if let (Some(at), Some(control)) = (
        join.as_ref().and_then(|join| join.field("control")),
        source.join.as_ref().and_then(|join| join.control.as_deref()),
    ) {
        let plain = (!control.starts_with("https://")).then(|| {
            format!(
                "`{}` is not https://: a token and a certificate are asked for over TLS only",
                shown(control)
            )
        });
        faults.extend(control_address(control).or(plain).map(|why| at.fault(why)));
    }
}

/// Why a text is not the address of a control API.
fn control_address(text: &str) -> Option<String> {
    let expected = || {
        Some(format!(
            "`{}` is not the address of a control API: expected http:// or https:// with a host and, if need be, a port, \
             such as http://127.0.0.1:9900",
            shown(text)
        ))
    };
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"));
    let Some(rest) = rest else {
        return expected();
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.parse::<SocketAddr>().is_ok() {
        return None;
    }
    let (name, port) = rest
        .rsplit_once(':')
        .map_or((rest, None), |(name, port)| (name, Some(port)));
    let port_is_good = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    let in_brackets = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if in_brackets.is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()) {
        return None;
    }
    if host(name).is_none() && port_is_good {
        None
    } else {
        expected()
    }
}

/// Refuses an address that two listeners want. Port 0 is any free port, so it is never the same.
fn addresses(at: &At<'_>, bootstrap: &Bootstrap, faults: &mut Vec<Fault>) {
    let listeners = at.field("listeners");
    let (root, group) = (Some(at), listeners.as_ref());
    let mut all: Vec<(String, SocketAddr, Option<At<'_>>)> = [
        ("scrape", bootstrap.scrape, root),
        ("admin", bootstrap.admin, root),
        ("inbound", bootstrap.listeners.inbound, group),
        ("outbound", bootstrap.listeners.outbound, group),
    ]
    .into_iter()
    .map(|(name, address, above)| (format!("`{name}`"), address, above.and_then(|at| at.field(name))))
    .collect();
    all.extend(
        group
            .into_iter()
            .flat_map(|at| dns::addresses(at, &bootstrap.listeners)),
    );
    // The written ones come after the defaults, so that the problem stands where something is written.
    all.sort_by_key(|(_, _, written)| written.is_some());
    let local = group.map(|at| at.items_of("local")).unwrap_or_default();
    for (at, listener) in local.iter().zip(&bootstrap.listeners.local) {
        if let Some(at) = at.field("address") {
            all.push((
                format!("`local` for {}", shown(&listener.service)),
                listener.address,
                Some(at),
            ));
        }
    }
    let gateways = group.map(|at| at.items_of("gateways")).unwrap_or_default();
    for (at, listener) in gateways.iter().zip(&bootstrap.listeners.gateways) {
        if let Some(at) = at.field("address") {
            let name = format!("`gateways` for {}", shown(&listener.name));
            all.push((name, listener.address, Some(at)));
        }
    }
    let mut taken: HashMap<SocketAddr, String> = HashMap::new();
    for (name, address, written) in all {
        if address.port() == 0 {
            continue;
        }
        match (taken.get(&address), written) {
            (Some(other), Some(at)) => faults.push(at.fault(format!(
                "{address} is the address of {other} already; each listener needs its own"
            ))),
            (Some(_), None) => {}
            (None, _) => {
                taken.insert(address, name);
            }
        }
    }
}
