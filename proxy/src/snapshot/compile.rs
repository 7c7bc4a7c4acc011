//! Configuration → [`Snapshot`]. Pure: builds everything, begins nothing.
//!
//! Also the only place that decides what survives a push. A cluster whose words are the same stays the very same
//! object; one whose balance or discovery changed keeps the endpoints it still names, with all they have learnt. A
//! route keeps its retry budget while its policy stays, and what it counts of its traffic ([`traffic::compile`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::{HeaderName, Method};
use outrigger_config::discover::Source;
use outrigger_config::mesh::{EndpointPolicy, RetryPolicy, Timeouts};
use outrigger_config::service::{self, HeaderMatch, PathMatch, Protocol, QueryMatch, RetryOn, Service};
use outrigger_config::{Config, Document};
use regex_automata::meta::Regex;

use crate::snapshot::actions::{Action, HeaderPairs};
use crate::snapshot::addresses::Addresses;
use crate::snapshot::lookup::Lookup;
use crate::snapshot::routes::{
    Header, Hedge, HostTable, Matcher, Path, Query, Route, Target, Text, VirtualHost, Weights,
};
use crate::snapshot::traffic::{self, Traffic};
use crate::snapshot::{Origin, Snapshot, Standing, gateways};
use crate::telemetry::metrics::{ClusterLabels, Metrics, RetryLabels, RouteLabels};
use crate::tls;
use crate::tls::outside::{self, Trust};
use crate::tls::revoked::Denied;
use crate::upstream::health::Budget;
use crate::upstream::{Cluster, Words};

/// What is said and where it came from.
#[derive(Clone, Debug)]
pub struct Said {
    /// The version of the whole.
    pub version: String,
    /// Where it came from.
    pub origin: Origin,
    /// The documents as they were written.
    pub documents: Vec<Document>,
}

/// After so many services the thread offers its core to others, some 100 µs of work: a data thread that shares it would wait for the
/// scheduler's next look, several milliseconds.
const SERVICES_AT_ONCE: usize = 16;

/// The listener label on the application's side.
const INBOUND: &str = "inbound";
/// The listener label on the caller's side.
const OUTBOUND: &str = "outbound";
/// The route to the application beside the sidecar, and its cluster. No route or backend that a person names can be
/// called so, since names have no `@`: else a backend `app` would be taken for the application, or it for the backend.
const APP: &str = "@app";

/// Makes a snapshot of a checked configuration for a sidecar.
///
/// # Errors
/// Every value that cannot be made into what runs, as `path: what is wrong`. [`outrigger_config::check`] refuses all
/// such values before; an error here is a disagreement between the two and refuses the push all the same.
pub fn compile(
    said: Said,
    config: &Config,
    standing: &Standing,
    metrics: &Arc<Metrics>,
    previous: Option<&Snapshot>,
) -> Result<Snapshot, Vec<String>> {
    let mut compiler = Compiler::new((config, standing), metrics, previous);
    for (place, service) in config.services.iter().enumerate() {
        if place % SERVICES_AT_ONCE == 0 {
            std::thread::yield_now();
        }
        compiler.outbound(service);
        if standing.service.as_deref() == Some(service.name.as_str()) {
            compiler.inbound(service);
        }
    }
    let gateways = gateways::tables(config, &compiler.services).unwrap_or_else(|problems| {
        compiler.problems.extend(problems);
        HashMap::new()
    });
    if !compiler.problems.is_empty() {
        return Err(compiler.problems);
    }
    let unmatched = |listener| {
        metrics.route(RouteLabels {
            listener,
            service: String::new(),
            route: String::new(),
            backend: String::new(),
        })
    };
    Ok(Snapshot {
        version: said.version,
        origin: said.origin,
        documents: said.documents,
        clusters: compiler.clusters.into_values().collect(),
        virtual_hosts: compiler.virtual_hosts,
        hosts: compiler.hosts,
        addresses: addresses(config, standing),
        services: compiler.services,
        gateways,
        inbound: compiler.inbound,
        denied: Arc::new(Denied::of(config.mesh.revoked.as_ref())),
        unmatched_inbound: unmatched(INBOUND),
        unmatched_outbound: unmatched(OUTBOUND),
    })
}

/// A snapshot with nothing in it, which serves until the first configuration comes.
pub fn nothing(metrics: &Arc<Metrics>) -> Snapshot {
    let unmatched = |listener| {
        metrics.route(RouteLabels {
            listener,
            service: String::new(),
            route: String::new(),
            backend: String::new(),
        })
    };
    Snapshot {
        version: String::new(),
        origin: Origin::Nothing,
        documents: Vec::new(),
        clusters: Vec::new(),
        virtual_hosts: Vec::new(),
        hosts: HostTable::default(),
        services: HashMap::new(),
        addresses: Addresses::default(),
        gateways: HashMap::new(),
        inbound: None,
        denied: Arc::default(),
        unmatched_inbound: unmatched(INBOUND),
        unmatched_outbound: unmatched(OUTBOUND),
    }
}

/// The virtual addresses of the services, where there is a range of them.
fn addresses(config: &Config, standing: &Standing) -> Addresses {
    let services = || config.services.iter().map(|service| service.name.as_str());
    let range = standing.range;
    range.map_or_else(Addresses::default, |range| Addresses::give(range, services()))
}

type ClusterKey = (String, String);

pub(super) struct Compiler<'a> {
    pub(super) config: &'a Config,
    pub(super) standing: &'a Standing,
    pub(super) metrics: &'a Arc<Metrics>,
    previous_clusters: HashMap<ClusterKey, Arc<Cluster>>,
    previous_budgets: HashMap<(String, String, String), Arc<Budget>>,
    pub(super) previous_traffic: HashMap<RouteLabels, Arc<Traffic>>,
    /// What is trusted of servers outside, by where it is.
    pub(super) trusts: HashMap<outside::Source, Arc<Trust>>,
    clusters: BTreeMap<ClusterKey, Arc<Cluster>>,
    virtual_hosts: Vec<VirtualHost>,
    hosts: HostTable,
    services: HashMap<String, usize>,
    inbound: Option<usize>,
    pub(super) problems: Vec<String>,
}

impl<'a> Compiler<'a> {
    fn new(
        (config, standing): (&'a Config, &'a Standing),
        metrics: &'a Arc<Metrics>,
        previous: Option<&Snapshot>,
    ) -> Self {
        let clusters = previous.into_iter().flat_map(|previous| &previous.clusters);
        let virtual_hosts = previous.into_iter().flat_map(|previous| &previous.virtual_hosts);
        let budgets = virtual_hosts.flat_map(|virtual_host| {
            virtual_host.routes.iter().map(|route| {
                let labels = virtual_host.unrouted.labels();
                let key = (
                    labels.listener.to_owned(),
                    labels.service.clone(),
                    route.name.clone(),
                );
                (key, Arc::clone(&route.budget))
            })
        });
        let trusts = clusters.clone().filter_map(|cluster| cluster.trust());
        let trusts = trusts.map(|trust| (trust.source().clone(), Arc::clone(trust)));
        Self {
            config,
            standing,
            metrics,
            trusts: trusts.collect(),
            previous_clusters: clusters
                .map(|cluster| {
                    (
                        (cluster.service.clone(), cluster.name.clone()),
                        Arc::clone(cluster),
                    )
                })
                .collect(),
            previous_budgets: budgets.collect(),
            previous_traffic: traffic::compile::of(previous),
            clusters: BTreeMap::new(),
            virtual_hosts: Vec::new(),
            hosts: HostTable::default(),
            services: HashMap::new(),
            inbound: None,
            problems: Vec::new(),
        }
    }

    /// The service as its callers see it.
    fn outbound(&mut self, service: &Service) {
        let place = self.virtual_hosts.len();
        for host in service.hosts() {
            self.hosts.insert(host, place);
        }
        self.services.insert(service.name.clone(), place);
        let only_backend = || service::Target {
            backend: service.backends[0].name.clone(),
            weight: 1,
            request_headers: None,
            response_headers: None,
        };
        let default_route = || service::Route {
            name: "default".into(),
            to: vec![only_backend()],
            ..service::Route::default()
        };
        let implied = (service.routes.is_empty() && !service.backends.is_empty()).then(default_route);
        let routes = service.routes.iter().chain(&implied);
        let routes: Vec<Route> = routes.map(|route| self.route(service, route)).collect();
        let authority = service.hosts().next().unwrap_or(&service.name).to_owned();
        self.virtual_hosts.push(VirtualHost {
            authority,
            lookup: Lookup::new(&routes),
            routes,
            normalizes: service.normalize_paths.unwrap_or(true),
            keeps_case: service.keeps_header_case(),
            raw: service.protocol == Protocol::Tcp,
            access: None,
            unrouted: self.unrouted(OUTBOUND, service),
        });
    }

    /// The service as its own sidecar hands it to the application: one route, no deadline of its own, since the
    /// caller's sidecar keeps the one that the service file names and two would disagree.
    fn inbound(&mut self, service: &Service) {
        let Some(app) = service.app else { return };
        let timeouts = Timeouts {
            request: None,
            attempt: None,
            idle: None,
        };
        // One more try, for the connection that the application closed as the request was on its way.
        let retry = RetryPolicy {
            attempts: 2,
            on: vec![RetryOn::Reset],
            ..RetryPolicy::default()
        };
        let discover = vec![Source::Listed(vec![app.into()])];
        // What the service file says about endpoints is for those who call them. The one application is asked whatever
        // it did before: there is no other.
        let policy = EndpointPolicy {
            ejection: None,
            ..EndpointPolicy::default()
        };
        let cluster = self.cluster(service, APP, (discover, None, policy));
        let target = self.target(INBOUND, service, APP, cluster);
        let route = self.assemble(
            (INBOUND, service, APP),
            (Vec::new(), Action::Forward),
            vec![(target, 1)],
            (timeouts, retry, None),
        );
        let traffic = self.traffic((INBOUND, service, APP), service.rate_limit, (None, &[]), timeouts);
        let route = Route { traffic, ..route };
        self.inbound = Some(self.virtual_hosts.len());
        let access = self.access(service);
        let unrouted = self.unrouted(INBOUND, service);
        self.virtual_hosts.push(VirtualHost {
            authority: service.name.clone(),
            routes: vec![route],
            lookup: None,
            normalizes: service.normalize_paths.unwrap_or(true),
            keeps_case: service.keeps_header_case(),
            raw: service.protocol == Protocol::Tcp,
            access,
            unrouted,
        });
    }

    fn unrouted(
        &self,
        listener: &'static str,
        service: &Service,
    ) -> Arc<crate::telemetry::metrics::RouteMetrics> {
        let service = service.name.clone();
        self.metrics.route(RouteLabels {
            listener,
            service,
            route: String::new(),
            backend: String::new(),
        })
    }

    fn route(&mut self, service: &Service, route: &service::Route) -> Route {
        let matchers = route
            .matches
            .iter()
            .map(|matches| self.matcher(&service.name, matches))
            .collect();
        let mut targets = Vec::with_capacity(route.to.len());
        let endpoints = self.config.mesh.endpoints(service);
        for to in &route.to {
            let Some(backend) = service.backends.iter().find(|backend| backend.name == to.backend) else {
                self.problems.push(format!(
                    "{}: route {}: no backend `{}`",
                    service.name, route.name, to.backend
                ));
                continue;
            };
            let words = (
                self.config.mesh.sources(&backend.discover),
                self.words_of_tls(service, backend),
                endpoints.clone(),
            );
            let cluster = self.cluster(service, &backend.name, words);
            let mut target = self.target(OUTBOUND, service, &route.name, cluster);
            match HeaderPairs::of_target(to) {
                Ok(edits) => target.edits = edits,
                Err(problem) => self.problems.push(format!("{}: {problem}", service.name)),
            }
            targets.push((target, to.weight));
        }
        let action = self.action(service, route);
        let mesh = &self.config.mesh;
        let policy = (
            mesh.timeouts(route, service.protocol),
            mesh.retry(route),
            route.hedge,
        );
        let rule = (matchers, action);
        let said = (route.fault, &route.mirror[..]);
        let traffic = self.traffic((OUTBOUND, service, &route.name), route.rate_limit, said, policy.0);
        let assembled = self.assemble((OUTBOUND, service, &route.name), rule, targets, policy);
        Route { traffic, ..assembled }
    }

    fn action(&mut self, service: &Service, route: &service::Route) -> Action {
        let series = || {
            self.metrics.route(RouteLabels {
                listener: OUTBOUND,
                service: service.name.clone(),
                route: route.name.clone(),
                backend: String::new(),
            })
        };
        let action = Action::compile(service, route, series);
        action.unwrap_or_else(|problem| {
            let (service, route) = (&service.name, &route.name);
            self.problems.push(format!("{service}: route {route}: {problem}"));
            Action::Forward
        })
    }

    fn target(
        &self,
        listener: &'static str,
        service: &Service,
        route: &str,
        cluster: Arc<Cluster>,
    ) -> Target {
        let labels = RouteLabels {
            listener,
            service: service.name.clone(),
            route: route.to_owned(),
            backend: cluster.name.clone(),
        };
        let tcp = (service.protocol == Protocol::Tcp).then(|| self.metrics.tcp(labels.clone()));
        let series = self.metrics.route(labels);
        Target::new(cluster, series, tcp)
    }

    fn assemble(
        &self,
        (listener, service, name): (&'static str, &Service, &str),
        (matchers, action): (Vec<Matcher>, Action),
        targets: Vec<(Target, u32)>,
        (timeouts, retry, hedge): (Timeouts, RetryPolicy, Option<service::Hedge>),
    ) -> Route {
        let key = (listener.to_owned(), service.name.clone(), name.to_owned());
        let kept = self
            .previous_budgets
            .get(&key)
            .filter(|budget| budget.policy() == retry.budget);
        let labels = RetryLabels {
            service: service.name.clone(),
            route: name.to_owned(),
        };
        let weights = Weights::new(targets.iter().map(|(_, weight)| *weight), fastrand::u64(..));
        Route {
            name: name.to_owned(),
            matchers,
            action,
            targets: targets.into_iter().map(|(target, _)| target).collect(),
            weights,
            timeouts,
            budget: kept.map_or_else(|| Arc::new(Budget::new(retry.budget)), Arc::clone),
            hedge: hedge.map(|policy| {
                let metrics = self.metrics.hedges(labels.clone());
                Box::new(Hedge { policy, metrics })
            }),
            retries: self.metrics.retries(labels),
            retries_calls: retry.on.iter().any(|on| on.grpc_status().is_some()),
            retry,
            traffic: None,
        }
    }

    /// The cluster of a backend: the one of this snapshot, the one of the last, or a new one.
    pub(super) fn cluster(
        &mut self,
        service: &Service,
        backend: &str,
        (discover, tls, policy): (Vec<Source>, Option<tls::Words>, EndpointPolicy),
    ) -> Arc<Cluster> {
        let key = (service.name.clone(), backend.to_owned());
        if let Some(cluster) = self.clusters.get(&key) {
            return Arc::clone(cluster);
        }
        let words = Words {
            service: service.name.clone(),
            name: backend.to_owned(),
            host: service.hosts().next().unwrap_or(&service.name).to_owned(),
            discover,
            http2: service.protocol.is_http2(),
            keeps_case: service.keeps_header_case(),
            tls,
            doors: self.standing.doors(backend == APP),
            range: self.standing.range,
            policy,
        };
        let previous = self.previous_clusters.get(&key);
        let cluster = match previous.filter(|previous| previous.is_said_in(&words)) {
            Some(same) => Arc::clone(same),
            None => {
                let labels = ClusterLabels {
                    service: service.name.clone(),
                    backend: backend.to_owned(),
                };
                let metrics = self.metrics.cluster(labels);
                let previous = previous.map(Arc::clone);
                let security = words.tls.clone().and_then(|words| {
                    let security = self.security(words);
                    security
                        .map_err(|why| self.problems.push(format!("{}/{backend}: {why}", service.name)))
                        .ok()
                });
                Arc::new(Cluster::new(words, security, metrics, previous.as_deref()))
            }
        };
        self.clusters.insert(key, Arc::clone(&cluster));
        cluster
    }

    fn matcher(&mut self, service: &str, matches: &service::Match) -> Matcher {
        let path = matches.path.as_ref().and_then(|path| self.path(service, path));
        let mut matcher = Matcher {
            path,
            ..Matcher::default()
        };
        matcher.methods = self.methods(service, &matches.methods);
        for header in &matches.headers {
            let Ok(name) = HeaderName::try_from(header.name.as_str()) else {
                self.problems
                    .push(format!("{service}: `{}` is not a header name", header.name));
                continue;
            };
            if let Some(text) = self.header(service, header) {
                matcher.headers.push(Header {
                    name,
                    text,
                    invert: header.invert,
                });
            }
        }
        for query in &matches.query {
            if let Some(text) = self.query(service, query) {
                matcher.query.push(Query {
                    name: query.name.clone(),
                    text,
                });
            }
        }
        matcher
    }

    pub(super) fn methods(&mut self, service: &str, methods: &[String]) -> Vec<Method> {
        let mut read = Vec::with_capacity(methods.len());
        for method in methods {
            match Method::from_bytes(method.as_bytes()) {
                Ok(method) => read.push(method),
                Err(_) => self
                    .problems
                    .push(format!("{service}: `{method}` is not a method")),
            }
        }
        read
    }

    pub(super) fn path(&mut self, service: &str, path: &PathMatch) -> Option<Path> {
        match (&path.exact, &path.prefix, &path.regex) {
            (Some(exact), None, None) => Some(Path::Exact(exact.clone())),
            (None, Some(prefix), None) => Some(Path::Prefix(prefix.trim_end_matches('/').to_owned())),
            (None, None, Some(regex)) => self.regex(service, regex).map(Path::Regex),
            _ => {
                self.problems.push(format!(
                    "{service}: a path match needs exactly one of exact, prefix, regex"
                ));
                None
            }
        }
    }

    fn header(&mut self, service: &str, header: &HeaderMatch) -> Option<Text> {
        let HeaderMatch {
            exact,
            prefix,
            suffix,
            regex,
            present,
            range,
            name: _,
            invert: _,
        } = header;
        let regex = regex
            .as_ref()
            .map(|regex| self.regex(service, regex).map(Text::Regex));
        let comparisons = [
            exact.clone().map(Text::Exact),
            prefix.clone().map(Text::Prefix),
            suffix.clone().map(Text::Suffix),
            present.map(Text::Present),
            range.map(|range| Text::Range(range.start, range.end)),
            regex.flatten(),
        ];
        self.only(service, &header.name, comparisons)
    }

    fn query(&mut self, service: &str, query: &QueryMatch) -> Option<Text> {
        let regex = query
            .regex
            .as_ref()
            .map(|regex| self.regex(service, regex).map(Text::Regex));
        let comparisons = [
            query.exact.clone().map(Text::Exact),
            query.present.map(Text::Present),
            regex.flatten(),
        ];
        self.only(service, &query.name, comparisons)
    }

    fn only<const N: usize>(
        &mut self,
        service: &str,
        name: &str,
        comparisons: [Option<Text>; N],
    ) -> Option<Text> {
        let mut given = comparisons.into_iter().flatten();
        let first = given.next();
        if first.is_none() || given.next().is_some() {
            self.problems.push(format!(
                "{service}: the condition on `{name}` needs exactly one comparison"
            ));
            return None;
        }
        first
    }

    /// A pattern that the whole text must match.
    fn regex(&mut self, service: &str, pattern: &str) -> Option<Regex> {
        match outrigger_config::pattern::whole_match(pattern) {
            Ok(regex) => Some(regex),
            Err(problem) => {
                self.problems.push(format!("{service}: {problem}"));
                None
            }
        }
    }
}
