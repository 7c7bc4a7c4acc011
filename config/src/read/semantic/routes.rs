//! The checks of a service's routes.

use std::collections::{HashMap, HashSet};

use super::super::decode::options;
use super::super::node::{Fault, Node, PROBLEMS_MAX, Value, shown};
use super::super::suggest::nearest;
use super::actions::actions;
use super::names::{is_token, part_name, unique};
use super::policies::{hedge, policies};
use super::traffic::traffic;
use super::{At, exactly_one};
use crate::pattern;
use crate::service::{HeaderMatch, Match, PathMatch, Protocol, QueryMatch, Route, Service};

/// The largest weight: a million parts are finer than any release, and sums stay far from overflow.
const WEIGHT_MAX: u32 = 1_000_000;

/// Checks the routes of a service.
pub(super) fn routes(at: &At<'_>, service: &Service, faults: &mut Vec<Fault>) {
    let known = Known::of(at);
    if at.given(&["routes"]) == 0
        && let Some(list) = at.field("backends")
        && list.node.items().len() > 1
    {
        faults.push(list.fault(
            "there is more than one backend and no route says how they share the requests; add `routes`",
        ));
    }
    let items = at.items_of("routes");
    let mut catch_all: Option<&Route> = None;
    for (at, route) in items.iter().zip(&service.routes) {
        if faults.len() >= PROBLEMS_MAX {
            return;
        }
        if let Some(before) = catch_all {
            faults.push(at.fault(format!(
                "no request ever comes here: the route `{}` before it takes every request; put it last or give it a \
                 `match`",
                shown(&before.name)
            )));
        }
        if catch_all.is_none() && takes_all(at, route) {
            catch_all = Some(route);
        }
        self::route(at, route, known.as_ref(), faults);
        actions(at, service, route, faults);
        if service.protocol == Protocol::Tcp {
            only_for_requests(at, faults);
        }
    }
    unique(&items, "name", "route", faults);
}

/// The backends of a service that routes may name.
pub(super) struct Known<'a> {
    in_order: Vec<&'a str>,
    names: HashSet<&'a str>,
}

impl<'a> Known<'a> {
    /// The names of all backends, those that were refused for another reason included. None: not all can be known.
    fn of(at: &At<'a>) -> Option<Self> {
        let Value::Sequence(items) = &at.node.get("backends")?.value.value else {
            return None;
        };
        let name = |item: &'a Node| item.get("name")?.value.text().filter(|name| !name.is_empty());
        let in_order: Vec<&str> = items.iter().map(name).collect::<Option<_>>()?;
        let names = in_order.iter().copied().collect();
        Some(Self { in_order, names })
    }

    /// What is wrong with a name that none of them bears.
    pub(super) fn miss(&self, name: &str) -> Option<String> {
        if self.names.contains(name) {
            return None;
        }
        let meant = nearest(name, self.in_order.iter().copied());
        let options = options(meant, None, &self.in_order);
        Some(format!(
            "no backend of this service is named `{}`{options}",
            shown(name)
        ))
    }
}

/// Whether a route takes every request.
fn takes_all(at: &At<'_>, route: &Route) -> bool {
    let sure = at.given(&["match"]) == 0 || at.field("match").is_some_and(|at| at.is_whole());
    sure && (route.matches.is_empty() || route.matches.contains(&Match::default()))
}

fn route(at: &At<'_>, route: &Route, known: Option<&Known<'_>>, faults: &mut Vec<Fault>) {
    if let Some(at) = at.field("name") {
        faults.extend(part_name(&route.name, "route").map(|why| at.fault(why)));
    }
    for (at, conditions) in at.items_of("match").iter().zip(&route.matches) {
        self::conditions(at, conditions, faults);
    }
    targets(at, route, known, faults);
    policies(at, route.timeout.as_ref(), route.retry.as_ref(), faults);
    hedge(at, route, faults);
    traffic(at, route, known, faults);
}

/// Refuses what a route can only do with requests: in the bytes of TCP there are none.
fn only_for_requests(at: &At<'_>, faults: &mut Vec<Fault>) {
    const WORDS: [(&str, &[&str]); 3] = [
        (
            "",
            &[
                "match",
                "hedge",
                "redirect",
                "respond",
                "rewrite",
                "request_headers",
                "response_headers",
                "rate_limit",
                "fault",
                "mirror",
            ],
        ),
        ("timeout", &["request", "attempt"]),
        (
            "retry",
            &["on", "status", "treat_as_idempotent", "backoff", "budget"],
        ),
    ];
    for (below, words) in WORDS {
        let Some(at) = (if below.is_empty() {
            Some(at.clone())
        } else {
            at.field(below)
        }) else {
            continue;
        };
        for word in words {
            if let Some(at) = at.field(word).filter(|_| at.given(&[word]) == 1) {
                faults.push(at.fault(format!(
                    "`{word}` is about requests, and this service speaks tcp, where there are none; take it out"
                )));
            }
        }
    }
    for at in at.items_of("to") {
        for word in ["request_headers", "response_headers"] {
            faults.extend(at.field(word).map(|at| {
                at.fault(format!(
                    "`{word}` is about requests, and this service speaks tcp, where there are none; take it out"
                ))
            }));
        }
    }
}

fn targets(at: &At<'_>, route: &Route, known: Option<&Known<'_>>, faults: &mut Vec<Fault>) {
    let Some(list) = at.field("to") else {
        return;
    };
    if list.node.items().is_empty() {
        faults.push(list.fault("the list is empty; a route leads to at least one backend"));
        return;
    }
    let mut seen = HashMap::new();
    for (at, target) in list.items().zip(&route.to) {
        if faults.len() >= PROBLEMS_MAX {
            return;
        }
        if let Some(at) = at.field("backend") {
            let name = target.backend.as_str();
            faults.extend(known.and_then(|known| known.miss(name)).map(|why| at.fault(why)));
            if let Some(line) = seen.insert(name, at.mark().line) {
                faults.push(at.fault(format!(
                    "this route names `{}` twice, first on line {line}; give it one weight",
                    shown(name)
                )));
            }
        }
        if let Some(at) = at.field("weight")
            && target.weight > WEIGHT_MAX
        {
            faults.push(at.fault(format!(
                "the weight {} is too large; expected 0 to {WEIGHT_MAX}",
                target.weight
            )));
        }
    }
    if list.is_whole() && route.to.iter().all(|target| target.weight == 0) {
        faults.push(list.fault("all weights are 0, so nothing would answer; give one backend more"));
    }
}

fn conditions(at: &At<'_>, conditions: &Match, faults: &mut Vec<Fault>) {
    if let (Some(at), Some(path)) = (at.field("path"), &conditions.path) {
        self::path(&at, path, faults);
    }
    methods(at, &conditions.methods, faults);
    for (at, header) in at.items_of("headers").iter().zip(&conditions.headers) {
        self::header(at, header, faults);
    }
    for (at, parameter) in at.items_of("query").iter().zip(&conditions.query) {
        self::parameter(at, parameter, faults);
    }
}

/// Checks the `methods` of a mapping.
pub(super) fn methods(at: &At<'_>, methods: &[String], faults: &mut Vec<Fault>) {
    for (at, method) in at.items_of("methods").iter().zip(methods) {
        if !is_token(method) {
            faults.push(at.fault(format!("`{}` is not an HTTP method", shown(method))));
        } else if method.bytes().any(|byte| byte.is_ascii_lowercase()) {
            let upper = method.to_ascii_uppercase();
            faults.push(at.fault(format!("methods are written in capitals: `{}`", shown(&upper))));
        }
    }
}

/// Checks one comparison of a path.
pub(super) fn path(at: &At<'_>, path: &PathMatch, faults: &mut Vec<Fault>) {
    exactly_one(at, &["exact", "prefix", "regex"], faults);
    for (key, value) in [("exact", &path.exact), ("prefix", &path.prefix)] {
        if let (Some(at), Some(value)) = (at.field(key), value)
            && !value.starts_with('/')
        {
            faults.push(at.fault(format!("a path begins with `/`; write `/{}`", shown(value))));
        }
    }
    regex(at, path.regex.as_deref(), faults);
}

fn header(at: &At<'_>, header: &HeaderMatch, faults: &mut Vec<Fault>) {
    if let Some(at) = at.field("name")
        && !is_token(&header.name)
    {
        faults.push(at.fault(format!("`{}` is not the name of a header", shown(&header.name))));
    }
    exactly_one(
        at,
        &["exact", "prefix", "suffix", "regex", "present", "range"],
        faults,
    );
    regex(at, header.regex.as_deref(), faults);
    if let (Some(at), Some(range)) = (at.field("range"), header.range)
        && at.is_whole()
        && range.start >= range.end
    {
        faults.push(at.fault(format!(
            "no number is in this range: `start` ({}) must be below `end` ({})",
            range.start, range.end
        )));
    }
}

fn parameter(at: &At<'_>, parameter: &QueryMatch, faults: &mut Vec<Fault>) {
    if let Some(at) = at.field("name")
        && parameter.name.is_empty()
    {
        faults.push(at.fault("the name of a query parameter is empty"));
    }
    exactly_one(at, &["exact", "regex", "present"], faults);
    regex(at, parameter.regex.as_deref(), faults);
}

fn regex(at: &At<'_>, value: Option<&str>, faults: &mut Vec<Fault>) {
    if let (Some(at), Some(value)) = (at.field("regex"), value) {
        faults.extend(pattern::whole_match(value).err().map(|why| at.fault(why)));
    }
}
