//! Which request goes where: hosts to services, and a service's routes in the order written.
//!
//! Pure: a head in, a place in the table out. Where a choice is by weight it is by turns and not by dice, so that
//! the split is right within one request in a hundred and not only on average.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use http::request::Parts;
use http::{HeaderMap, HeaderName, Method};
use outrigger_config::mesh::{RetryPolicy, Timeouts};
use outrigger_config::service;
use percent_encoding::percent_decode_str;
use regex_automata::meta::Regex;

use crate::snapshot::access::Access;
use crate::snapshot::actions::{Action, HeaderPairs};
use crate::snapshot::lookup::Lookup;
use crate::snapshot::traffic::Traffic;
use crate::telemetry::metrics::{HedgeMetrics, RetryMetrics, RouteMetrics, TcpMetrics};
use crate::upstream::Cluster;
use crate::upstream::balance::shares::Shares;
use crate::upstream::health::Budget;

/// Host names and the places of their virtual hosts.
#[derive(Debug, Default)]
pub(crate) struct HostTable {
    exact: Places,
    /// Suffixes with their leading dot.
    wildcards: Places,
}

/// Names and places.
type Places = HashMap<String, usize, xxhash_rust::xxh3::Xxh3DefaultBuilder>;

impl HostTable {
    /// Adds a host, in lower case; `*.` in front takes every name below it.
    pub(crate) fn insert(&mut self, host: &str, place: usize) {
        let host = host.to_ascii_lowercase();
        match host.strip_prefix('*') {
            None => self.exact.insert(host, place),
            Some(suffix) => self.wildcards.insert(suffix.to_owned(), place),
        };
    }

    /// The virtual host of a `Host` value: without regard to case, port and the root's dot.
    pub(crate) fn find(&self, host: &str) -> Option<usize> {
        let name = without_port(host);
        self.named(name.strip_suffix('.').unwrap_or(name))
    }

    /// The virtual host of a name without regard to case.
    pub(crate) fn named(&self, name: &str) -> Option<usize> {
        let name = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(name.to_ascii_lowercase())
        } else {
            Cow::Borrowed(name)
        };
        if let Some(place) = self.exact.get(&*name) {
            return Some(*place);
        }
        if self.wildcards.is_empty() {
            return None;
        }
        // From the left, so that the most specific is met first. A name has something before its first dot.
        let dots = name.match_indices('.').map(|(dot, _)| dot);
        dots.filter(|dot| *dot > 0)
            .find_map(|dot| self.wildcards.get(&name[dot..]).copied())
    }
}

/// A host without its port. IPv6 addresses stand in brackets (RFC 3986 section 3.2.2), which stay.
pub(crate) fn without_port(host: &str) -> &str {
    match host.bytes().rposition(|byte| byte == b':') {
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    }
}

/// A service's routes as one listener sees them.
#[derive(Debug)]
pub(crate) struct VirtualHost {
    /// The name that is set as `Host` where a caller gave none.
    pub(crate) authority: String,
    pub(crate) routes: Vec<Route>,
    /// The same by what they ask of the path, where they are many.
    pub(crate) lookup: Option<Box<Lookup>>,
    /// Whether paths are brought into one form.
    pub(crate) normalizes: bool,
    /// Whether the names of fields keep their case.
    pub(crate) keeps_case: bool,
    /// Whether it speaks TCP, of which nothing is understood.
    pub(crate) raw: bool,
    /// Who may ask for what, on the application's side, where anything is said of it.
    pub(crate) access: Option<Box<Access>>,
    /// The series of requests that no route matched.
    pub(crate) unrouted: Arc<RouteMetrics>,
}

impl VirtualHost {
    /// The place of the first route that matches.
    pub(crate) fn route(&self, head: &Parts) -> Option<usize> {
        match &self.lookup {
            None => self.routes.iter().position(|route| route.matches(head)),
            Some(lookup) => lookup.first(head.uri.path(), |place| self.routes[place].matches(head)),
        }
    }
}

/// One rule, resolved.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) name: String,
    /// The route applies if one of these does; none: always.
    pub(crate) matchers: Vec<Matcher>,
    /// What becomes of its requests.
    pub(crate) action: Action,
    /// None where it answers by itself.
    pub(crate) targets: Vec<Target>,
    pub(crate) weights: Weights,
    pub(crate) timeouts: Timeouts,
    pub(crate) retry: RetryPolicy,
    /// Whether the policy names statuses of gRPC, which are only told behind the head of an answer.
    pub(crate) retries_calls: bool,
    pub(crate) budget: Arc<Budget>,
    pub(crate) retries: Arc<RetryMetrics>,
    /// None by default.
    pub(crate) hedge: Option<Box<Hedge>>,
    /// Its limit, faults and mirrors; nothing where it has none of them.
    pub(crate) traffic: Option<Arc<Traffic>>,
}

/// When a slow request is sent a second time.
#[derive(Debug)]
pub(crate) struct Hedge {
    pub(crate) policy: service::Hedge,
    pub(crate) metrics: Arc<HedgeMetrics>,
}

/// A backend of a route, and the series of the requests that chose it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) series: Arc<RouteMetrics>,
    /// The series of its connections, where the service speaks TCP.
    pub(crate) tcp: Option<Arc<TcpMetrics>>,
    /// What is changed in headers beside what the route says. None by default.
    pub(crate) edits: Option<Box<HeaderPairs>>,
    /// Whether its share goes to others at the moment.
    skipped: AtomicBool,
}

impl Route {
    pub(super) fn matches(&self, head: &Parts) -> bool {
        self.matchers.is_empty() || self.matchers.iter().any(|matcher| matcher.matches(head))
    }

    /// The prefix that the path of a request matched: that of the first of the conditions that hold. Without its trailing
    /// slash. `None`: they ask for no prefix.
    pub(crate) fn matched_prefix(&self, head: &Parts) -> Option<&str> {
        let matcher = self.matchers.iter().find(|matcher| matcher.matches(head))?;
        match &matcher.path {
            Some(Path::Prefix(prefix)) => Some(prefix),
            Some(Path::Exact(_) | Path::Regex(_)) | None => None,
        }
    }

    /// Chooses a target by weight. One that has no endpoint, or none that takes part, leaves its share to the others
    /// in their proportion; if that is so of all, it is as if it were so of none.
    pub(crate) fn choose(&self) -> &Target {
        if let [only] = &self.targets[..] {
            return only;
        }
        let fraction = self.weights.next();
        let place = self.weights.shares.at(fraction);
        let chosen = &self.targets[place];
        if !chosen.cluster.is_out() {
            if chosen.skipped.load(Ordering::Relaxed) {
                chosen.is_back();
            }
            return chosen;
        }
        let others = |place: usize| !self.targets[place].cluster.is_out();
        match self.weights.shares.instead_of(place, fraction, others) {
            Some(place) => {
                chosen.skip();
                &self.targets[place]
            }
            None => chosen,
        }
    }
}

impl Target {
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        series: Arc<RouteMetrics>,
        tcp: Option<Arc<TcpMetrics>>,
    ) -> Self {
        Self {
            cluster,
            series,
            tcp,
            edits: None,
            skipped: AtomicBool::new(false),
        }
    }

    /// A request of its share goes elsewhere. That it begins is worth a line, not every one.
    #[cold]
    fn skip(&self) {
        self.series.skipped();
        if !self.skipped.swap(true, Ordering::Relaxed) {
            let labels = self.series.labels();
            tracing::warn!(
                service = labels.service,
                route = labels.route,
                backend = labels.backend,
                "none of the backend's endpoints is in: its share goes to the others"
            );
        }
    }

    #[cold]
    fn is_back(&self) {
        if self.skipped.swap(false, Ordering::Relaxed) {
            let labels = self.series.labels();
            tracing::info!(
                service = labels.service,
                route = labels.route,
                backend = labels.backend,
                "the backend has its share again"
            );
        }
    }
}

impl Route {
    /// Chooses a target for another attempt, after one at `last` failed. `left` holds the places of those that are not
    /// chosen again.
    ///
    /// A target that has no more than half of the weight is left, and so is one without an endpoint that was not
    /// tried: a release that fails does not cost those who are sent to it. From a heavier one it is drawn by weight
    /// again, so that a small release is not sent all that its elder fails.
    pub(crate) fn choose_again<'a>(
        &'a self,
        last: &'a Target,
        left: &mut u64,
        tried: &[u64],
        rng: &mut fastrand::Rng,
    ) -> &'a Target {
        if self.targets.len() == 1 || self.retry.same_backend {
            return last;
        }
        let bit = |place: usize| {
            u32::try_from(place)
                .ok()
                .and_then(|place| 1_u64.checked_shl(place))
        };
        let place = self.targets.iter().position(|target| std::ptr::eq(target, last));
        if let Some(place) = place {
            let is_light = self.weights.shares.of(place) * 2 <= self.weights.shares.whole();
            if is_light || !last.cluster.has_other_than(tried) {
                *left |= bit(place).unwrap_or_default();
            }
        }
        let weight = |place: usize| {
            let open = *left & bit(place).unwrap_or_default() == 0
                && self.targets[place].cluster.has_other_than(tried);
            if open { self.weights.shares.of(place) } else { 0 }
        };
        let sum: u64 = (0..self.targets.len()).map(weight).sum();
        if sum == 0 {
            return last;
        }
        let mut point = rng.u64(..sum);
        let chosen = self.targets.iter().enumerate().find(|(place, _)| {
            let weight = weight(*place);
            let here = point < weight;
            point = point.saturating_sub(weight);
            here
        });
        chosen.map_or(last, |(_, target)| target)
    }
}

/// Takes turns by weight.
#[derive(Debug)]
pub(crate) struct Weights {
    shares: Shares,
    turn: AtomicU64,
}

impl Weights {
    /// Weights in the order of their places. `first_turn` keeps sidecars that start together from walking in step.
    pub(crate) fn new(weights: impl IntoIterator<Item = u32>, first_turn: u64) -> Self {
        Self {
            shares: Shares::new(weights),
            turn: AtomicU64::new(first_turn),
        }
    }

    /// The fraction of 2⁶⁴ whose turn it is.
    fn next(&self) -> u64 {
        Shares::fraction(self.turn.fetch_add(1, Ordering::Relaxed))
    }
}

/// Conditions that must all hold.
#[derive(Debug, Default)]
pub(crate) struct Matcher {
    pub(crate) path: Option<Path>,
    pub(crate) methods: Vec<Method>,
    pub(crate) headers: Vec<Header>,
    pub(crate) query: Vec<Query>,
}

impl Matcher {
    fn matches(&self, head: &Parts) -> bool {
        self.path
            .as_ref()
            .is_none_or(|path| path.matches(head.uri.path()))
            && (self.methods.is_empty() || self.methods.contains(&head.method))
            && self.headers.iter().all(|header| header.matches(&head.headers))
            && (self.query.is_empty() || {
                let query = head.uri.query().unwrap_or("");
                self.query.iter().all(|wanted| wanted.matches(query))
            })
    }
}

/// How a path is compared.
#[derive(Debug)]
pub(crate) enum Path {
    Exact(String),
    /// Whole segments, kept without a trailing slash: `/` is kept as nothing and takes every path.
    Prefix(String),
    Regex(Regex),
}

impl Path {
    pub(crate) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            // `/` takes every path, `*` of `OPTIONS *` (RFC 9112 section 3.2.4) too.
            Self::Prefix(prefix) if prefix.is_empty() => true,
            Self::Prefix(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Regex(regex) => regex.is_match(path),
        }
    }

    /// Whether it is this path, written out.
    pub(crate) fn is_exactly(&self, path: &str) -> bool {
        matches!(self, Self::Exact(exact) if exact == path)
    }
}

/// How a text is compared.
#[derive(Debug)]
pub(crate) enum Text {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Regex(Regex),
    Present(bool),
    /// From the first number up to but not including the second.
    Range(i64, i64),
}

impl Text {
    /// Compares a value that may not be there. Of all comparisons only "not present" holds for one that is not.
    fn holds(&self, value: Option<&str>) -> bool {
        match (self, value) {
            (Self::Present(wanted), value) => value.is_some() == *wanted,
            (_, None) => false,
            (Self::Exact(exact), Some(value)) => value == exact,
            (Self::Prefix(prefix), Some(value)) => value.starts_with(prefix.as_str()),
            (Self::Suffix(suffix), Some(value)) => value.ends_with(suffix.as_str()),
            (Self::Regex(regex), Some(value)) => regex.is_match(value),
            (Self::Range(start, end), Some(value)) => value
                .trim()
                .parse::<i64>()
                .is_ok_and(|number| (*start..*end).contains(&number)),
        }
    }
}

/// A condition on a header.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) name: HeaderName,
    pub(crate) text: Text,
    pub(crate) invert: bool,
}

impl Header {
    /// Several lines of one name count as one list, joined by commas (RFC 9110 section 5.3).
    fn matches(&self, headers: &HeaderMap) -> bool {
        let mut lines = headers
            .get_all(&self.name)
            .iter()
            .map(|line| String::from_utf8_lossy(line.as_bytes()));
        let value = lines.next().map(|first| {
            lines.fold(first, |mut list, line| {
                list.to_mut().push(',');
                list.to_mut().push_str(&line);
                list
            })
        });
        self.text.holds(value.as_deref()) != self.invert
    }
}

/// A condition on a query parameter.
#[derive(Debug)]
pub(crate) struct Query {
    pub(crate) name: String,
    pub(crate) text: Text,
}

impl Query {
    /// The first parameter of that name counts, as in Envoy and the Gateway API.
    fn matches(&self, query: &str) -> bool {
        let decoded = |text: &str| -> String {
            let spaced = text.replace('+', " ");
            percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
        };
        let pairs = query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let mut named = pairs.filter(|(name, _)| !name.is_empty() && decoded(name) == self.name);
        let value = named.next().map(|(_, value)| decoded(value));
        self.text.holds(value.as_deref())
    }
}
