//! The table as a whole: documents in, the choice for a request out.

use std::collections::HashMap;
use std::sync::Arc;

use http::Request;

use super::compile::{self, Said};
use super::*;
use crate::telemetry::metrics::Metrics;
use crate::tls::Identities;

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new().unwrap())
}

fn compiled(yaml: &str, metrics: &Arc<Metrics>, previous: Option<&Snapshot>) -> Snapshot {
    let documents = outrigger_config::split("test.yaml", yaml).unwrap();
    let config = outrigger_config::check(&documents).unwrap();
    let said = Said {
        version: "1".into(),
        origin: Origin::File,
        documents,
    };
    let standing = Standing {
        service: Some("reviews".into()),
        listeners: Vec::new(),
        range: Some("127.64.0.0/16".parse().unwrap()),
        identities: Arc::new(Identities::new(false, Arc::clone(metrics.tls()))),
    };
    compile::compile(said, &config, &standing, metrics, previous).unwrap()
}

fn head(request: &str, headers: &[(&str, &str)]) -> Parts {
    let (method, uri) = request.split_once(' ').unwrap();
    let mut builder = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

/// The name of the route that a request takes, or the reason why none.
fn route<'a>(snapshot: &'a Snapshot, entry: &Entry, host: &str, head: &Parts) -> Result<&'a str, Reason> {
    let virtual_host = &snapshot.virtual_hosts[snapshot
        .virtual_host(entry, host)
        .map_err(|failure| failure.reason)?];
    let place = virtual_host.route(head).ok_or(Reason::NoRoute)?;
    Ok(&virtual_host.routes[place].name)
}

const TWO: &str = "
kind: Service
name: reviews
hosts: [Reviews, reviews.shop.internal, '*.reviews.example']
app: 127.0.0.1:9080
backends:
  - { name: v1, discover: { static: [127.0.0.1:1] } }
  - { name: v2, discover: { static: [127.0.0.1:2] } }
routes:
  - name: beta
    match:
      - { path: { prefix: /reviews }, headers: [{ name: x-beta, exact: '1' }] }
      - { query: [{ name: beta, present: true }] }
    to: [{ backend: v2 }]
  - name: writes
    match: [{ methods: [POST, PUT], path: { exact: /reviews/new } }]
    to: [{ backend: v1 }]
  - name: numbers
    match: [{ path: { regex: '/reviews/[0-9]+' } }, { path: { prefix: /n/ }, headers: [{ name: x-n, range: { start: 1, end: 3 } }] }]
    to: [{ backend: v1 }]
  - name: default
    match: [{ path: { prefix: / }, headers: [{ name: x-none, present: true, invert: true }] }]
    to: [{ backend: v1, weight: 90 }, { backend: v2, weight: 10 }]
---
kind: Service
name: ratings
backends: [{ name: only, discover: { static: [127.0.0.1:3] } }]
";

#[test]
fn a_request_takes_the_first_route_that_matches() {
    let snapshot = compiled(TWO, &metrics(), None);
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Result<&'a str, Reason>);
    let cases: &[Case<'_>] = &[
        ("GET /reviews/1", &[("x-beta", "1")], Ok("beta")),
        ("GET /reviews/1", &[("x-beta", "2")], Ok("numbers")),
        ("GET /reviewsx", &[("x-beta", "1")], Ok("default")),
        ("GET /reviews", &[("x-beta", "1")], Ok("beta")),
        ("GET /x?a=1&beta", &[], Ok("beta")),
        ("GET /x?bet%61=", &[], Ok("beta")),
        ("GET /x?xbeta=1", &[], Ok("default")),
        ("POST /reviews/new", &[], Ok("writes")),
        ("GET /reviews/new", &[], Ok("default")),
        ("POST /reviews/new/", &[], Ok("default")),
        ("GET /reviews/12", &[], Ok("numbers")),
        ("GET /reviews/12/", &[], Ok("default")),
        ("GET /x/reviews/12", &[], Ok("default")),
        ("GET /n/1", &[("x-n", "2")], Ok("numbers")),
        ("GET /n/1", &[("x-n", "3")], Ok("default")),
        ("GET /n/1", &[("x-n", "two")], Ok("default")),
        ("GET /", &[("x-none", "")], Err(Reason::NoRoute)),
    ];
    for (request, headers, expected) in cases {
        let found = route(&snapshot, &Entry::Outbound, "reviews", &head(request, headers));
        assert_eq!(found, *expected, "{request} {headers:?}");
    }
}

#[test]
fn a_host_is_compared_without_case_port_and_root_dot() {
    let snapshot = compiled(TWO, &metrics(), None);
    let hosts = [
        ("reviews", Ok("default")),
        ("REVIEWS", Ok("default")),
        ("reviews:80", Ok("default")),
        ("reviews.shop.internal.", Ok("default")),
        ("reviews.shop.internal.:8080", Ok("default")),
        ("a.reviews.example", Ok("default")),
        ("a.b.reviews.example", Ok("default")),
        ("reviews.example", Err(Reason::NoService)),
        ("ratings", Ok("default")),
        ("ratings.shop.internal", Err(Reason::NoService)),
        ("", Err(Reason::NoService)),
        (":80", Err(Reason::NoService)),
        ("[::1]:80", Err(Reason::NoService)),
    ];
    for (host, expected) in hosts {
        assert_eq!(
            route(&snapshot, &Entry::Outbound, host, &head("GET /", &[])),
            expected,
            "{host}"
        );
    }
}

#[test]
fn a_local_port_stands_for_its_service_and_the_inbound_one_for_the_application() {
    let snapshot = compiled(TWO, &metrics(), None);
    let request = head("GET /", &[]);
    assert_eq!(
        route(&snapshot, &Entry::Local("ratings".into()), "whatever", &request),
        Ok("default")
    );
    assert_eq!(
        route(&snapshot, &Entry::Local("gone".into()), "ratings", &request),
        Err(Reason::NoService)
    );
    assert_eq!(
        route(&snapshot, &Entry::Inbound, "whatever", &request),
        Ok("@app")
    );
}

/// How often each backend of the default route is chosen in so many turns.
fn shares(snapshot: &Snapshot, turns: usize) -> HashMap<String, usize> {
    let virtual_host = snapshot.virtual_host(&Entry::Outbound, "reviews").unwrap();
    let routes = &snapshot.virtual_hosts[virtual_host].routes;
    let route = routes.iter().find(|route| route.name == "default").unwrap();
    let mut shares = HashMap::new();
    for _ in 0..turns {
        *shares.entry(route.choose().cluster.name.clone()).or_insert(0) += 1;
    }
    shares
}

#[test]
fn the_split_is_right_within_one_in_a_hundred_after_three_hundred_requests() {
    for _ in 0..20 {
        let shares = shares(&compiled(TWO, &metrics(), None), 300);
        assert!(shares["v2"].abs_diff(30) <= 3, "{shares:?}");
    }
}

#[test]
fn a_backend_of_weight_zero_is_never_chosen() {
    let yaml = TWO
        .replace("weight: 90", "weight: 5")
        .replace("weight: 10", "weight: 0");
    assert_eq!(
        shares(&compiled(&yaml, &metrics(), None), 1_000),
        HashMap::from([("v1".into(), 1_000)])
    );
}

#[test]
fn a_backend_without_endpoints_leaves_its_share_to_the_others() {
    let yaml = TWO.replace("static: [127.0.0.1:2]", "dns: v2.internal, port: 80");
    assert_eq!(
        shares(&compiled(&yaml, &metrics(), None), 1_000),
        HashMap::from([("v1".into(), 1_000)])
    );
}

fn cluster<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Arc<Cluster> {
    snapshot
        .clusters
        .iter()
        .find(|cluster| cluster.name == name)
        .unwrap()
}

#[test]
fn a_cluster_whose_words_are_the_same_survives_a_push_and_one_that_changed_keeps_the_endpoints_it_still_names()
 {
    let metrics = metrics();
    let first = compiled(TWO, &metrics, None);
    let endpoint = Arc::clone(&cluster(&first, "v2").endpoints().endpoints[0]);
    let second = compiled(&TWO.replace("weight: 10", "weight: 50"), &metrics, Some(&first));
    assert!(Arc::ptr_eq(cluster(&first, "v1"), cluster(&second, "v1")));
    let more = TWO.replace("static: [127.0.0.1:2]", "static: [127.0.0.1:4, 127.0.0.1:2]");
    let third = compiled(&more, &metrics, Some(&second));
    assert!(!Arc::ptr_eq(cluster(&second, "v2"), cluster(&third, "v2")));
    let endpoints = cluster(&third, "v2").endpoints();
    assert_eq!(endpoints.endpoints.len(), 2);
    assert!(
        endpoints
            .endpoints
            .iter()
            .any(|kept| Arc::ptr_eq(kept, &endpoint))
    );
}

#[test]
fn a_backend_called_app_is_not_the_application() {
    let snapshot = compiled(&TWO.replace("v2", "app"), &metrics(), None);
    let place = snapshot.virtual_host(&Entry::Inbound, "").unwrap();
    let target = snapshot.virtual_hosts[place].routes[0].choose();
    assert_eq!(target.cluster.endpoints().endpoints[0].address.port(), 9080);
    assert_eq!(
        cluster(&snapshot, "app").endpoints().endpoints[0].address.port(),
        2
    );
}

#[test]
fn series_of_a_route_go_with_the_last_snapshot_that_names_it() {
    let metrics = metrics();
    let first = compiled(TWO, &metrics, None);
    let virtual_host = first.virtual_host(&Entry::Outbound, "ratings").unwrap();
    let series = &first.virtual_hosts[virtual_host].routes[0].targets[0].series;
    series.request(
        crate::telemetry::metrics::Ending::answered(http::StatusCode::OK),
        std::time::Duration::ZERO,
    );
    let counted = "outrigger_requests_total{backend=\"only\",listener=\"outbound\",reason=\"\",route=\"default\",service=\"ratings\",status_class=\"2xx\"} 1";
    let text = |metrics: &Metrics| String::from_utf8(metrics.encode().unwrap()).unwrap();
    assert!(text(&metrics).contains(counted));

    let again = compiled(TWO, &metrics, Some(&first));
    drop(first);
    assert!(
        text(&metrics).contains(counted),
        "a push that keeps the route keeps its count"
    );

    let without = compiled(TWO.split("---").next().unwrap(), &metrics, Some(&again));
    drop(again);
    assert!(!text(&metrics).contains("service=\"ratings\""));
    drop(without);
}

/// How often each backend is chosen for another attempt in 1,000, after one at `v1` whose one endpoint `tried` says.
fn chosen_again(weights: [u32; 3], fields: &str, tried: bool) -> [usize; 3] {
    let yaml = format!(
        "kind: Service\nname: reviews\nbackends:\n  \
         - {{ name: v1, discover: {{ static: [127.0.0.1:1] }} }}\n  \
         - {{ name: v2, discover: {{ static: [127.0.0.1:2] }} }}\n  \
         - {{ name: v3, discover: {{ static: [127.0.0.1:3] }} }}\nroutes:\n  \
         - name: default\n    to: [{{ backend: v1, weight: {} }}, {{ backend: v2, weight: {} }}, \
         {{ backend: v3, weight: {} }}]\n{fields}",
        weights[0], weights[1], weights[2]
    );
    let snapshot = compiled(&yaml, &metrics(), None);
    let route = &snapshot.virtual_hosts[0].routes[0];
    let first = &route.targets[0];
    let tried = match tried {
        true => vec![first.cluster.endpoints().endpoints[0].id],
        false => Vec::new(),
    };
    let mut rng = fastrand::Rng::with_seed(7);
    let mut counts = [0; 3];
    for _ in 0..1_000 {
        let chosen = route.choose_again(first, &mut 0, &tried, &mut rng);
        let place = route
            .targets
            .iter()
            .position(|target| std::ptr::eq(target, chosen));
        counts[place.unwrap()] += 1;
    }
    counts
}

#[test]
fn a_retry_leaves_a_backend_that_has_no_more_than_half_of_the_weight() {
    let [first, second, third] = chosen_again([20, 60, 20], "", false);
    assert_eq!(first, 0);
    assert!(
        (700..=800).contains(&second),
        "three quarters of what is left: {second}"
    );
    assert!((200..=300).contains(&third), "{third}");
    assert_eq!(chosen_again([50, 50, 0], "", false), [0, 1_000, 0]);
}

#[test]
fn a_retry_is_not_pushed_from_the_larger_backend_onto_the_smaller() {
    let [first, second, _] = chosen_again([90, 10, 0], "", false);
    assert!((860..=940).contains(&first), "{first}");
    assert_eq!(first + second, 1_000);
}

#[test]
fn a_retry_leaves_a_backend_whose_every_endpoint_was_tried() {
    assert_eq!(chosen_again([90, 10, 0], "", true), [0, 1_000, 0]);
}

#[test]
fn a_retry_stays_with_its_backend_where_the_route_says_so_or_there_is_no_other() {
    let same = "    retry: { same_backend: true }\n";
    assert_eq!(chosen_again([10, 80, 10], same, true), [1_000, 0, 0]);
    assert_eq!(chosen_again([10, 0, 0], "", true), [1_000, 0, 0]);
}

#[test]
fn what_a_route_counts_of_its_traffic_survives_a_push_that_says_the_same_of_it() {
    let file = |limit: &str, mirror: &str, more: &str| {
        format!(
            "kind: Service\nname: ratings\nbackends:\n  - {{ name: v1, discover: {{ static: [127.0.0.1:1] }} }}\n  \
             - {{ name: v2, discover: {{ static: [127.0.0.1:2] }} }}\nroutes:\n  - name: default\n    \
             to: [{{ backend: v1 }}]\n    rate_limit: {{ {limit} }}\n    mirror: [{{ {mirror} }}]\n{more}"
        )
    };
    let metrics = metrics();
    let first = compiled(&file("requests: 1/h", "backend: v2", ""), &metrics, None);
    let (now, caller) = (
        std::time::Instant::now(),
        traffic::limit::Caller::Address(Ipv4Addr::LOCALHOST.into()),
    );
    let traffic =
        |snapshot: &Snapshot| Arc::clone(snapshot.virtual_hosts[0].routes[0].traffic.as_ref().unwrap());
    let goes = |snapshot: &Snapshot| {
        traffic(snapshot)
            .limit
            .as_ref()
            .unwrap()
            .take(caller, now)
            .is_ok()
    };
    assert!(goes(&first) && !goes(&first));
    let places: Vec<_> = std::iter::from_fn(|| traffic(&first).mirrors[0].place(0)).collect();
    assert_eq!(places.len(), traffic::COPIES_MAX);

    let more = "    timeout: { request: 9s }\n";
    let same = compiled(
        &file("requests: 1/h", "backend: v2, percent: 5%", more),
        &metrics,
        Some(&first),
    );
    assert!(!goes(&same));
    assert!(traffic(&same).mirrors[0].place(0).is_none());

    let other = compiled(&file("requests: 2/h", "backend: v2", ""), &metrics, Some(&same));
    assert!(goes(&other), "another limit begins with a full bucket");
    assert!(traffic(&other).mirrors[0].place(0).is_none());
    drop(places);
    assert!(traffic(&other).mirrors[0].place(0).is_some());
}

#[test]
fn a_route_that_says_nothing_of_its_traffic_has_none() {
    let snapshot = compiled(TWO, &metrics(), None);
    let mut routes = snapshot.virtual_hosts.iter().flat_map(|host| &host.routes);
    assert!(routes.all(|route| route.traffic.is_none()));
}

#[test]
fn the_hosts_of_a_service_and_its_name_lead_to_its_virtual_address() {
    let snapshot = compiled(TWO, &metrics(), None);
    let Some(Named::Virtual(address)) = snapshot.named("reviews") else {
        panic!("{:?}", snapshot.named("reviews"));
    };
    for name in [
        "reviews.shop.internal",
        "a.reviews.example",
        "a.b.reviews.example",
    ] {
        assert_eq!(snapshot.named(name), Some(Named::Virtual(address)), "{name}");
    }
    for name in ["reviews.example", "shop.internal", "gone", "", "xreviews"] {
        assert_eq!(snapshot.named(name), None, "{name}");
    }
    assert_eq!(snapshot.service_at(address).as_deref(), Some("reviews"));
    assert_ne!(snapshot.named("ratings"), Some(Named::Virtual(address)));
}

#[test]
fn a_request_to_a_virtual_address_is_for_its_host_s_service_and_else_for_that_of_the_address() {
    let snapshot = compiled(TWO, &metrics(), None);
    let entry = Entry::Virtual("ratings".into());
    let get = head("GET /", &[]);
    for (host, found) in [
        ("reviews", "default"),
        ("ratings", "default"),
        ("other:80", "default"),
        ("", "default"),
    ] {
        assert_eq!(route(&snapshot, &entry, host, &get), Ok(found), "{host}");
    }
    let service = |host: &str| {
        let place = snapshot.virtual_host(&entry, host).unwrap();
        snapshot.virtual_hosts[place].authority.clone()
    };
    assert_eq!(
        (service("Reviews"), service("other")),
        ("Reviews".into(), "ratings".into())
    );
    let gone = Entry::Virtual("gone".into());
    assert_eq!(route(&snapshot, &gone, "reviews", &get), Ok("default"));
    assert_eq!(route(&snapshot, &gone, "other", &get), Err(Reason::NoService));
}

/// Random tables of many routes, and paths that meet some of them.
mod many {
    use proptest::prelude::*;

    use super::*;

    fn path() -> impl Strategy<Value = String> {
        let segment = prop::sample::select(vec!["a", "b", "ab", "a%2Fb"]);
        prop::collection::vec(segment, 0..4).prop_map(|segments| format!("/{}", segments.join("/")))
    }

    /// The conditions of a route in YAML, of which one must hold.
    fn conditions() -> impl Strategy<Value = String> {
        let condition = prop_oneof![
            path().prop_map(|path| format!("path: {{ exact: '{path}' }}")),
            path().prop_map(|path| format!("path: {{ prefix: '{path}' }}")),
            path().prop_map(|path| format!("path: {{ prefix: '{path}/' }}").replace("//'", "/'")),
            path().prop_map(|path| format!("path: {{ regex: '{path}.' }}")),
            path().prop_map(|path| format!("path: {{ prefix: '{path}' }}, methods: [POST]")),
            Just("methods: [POST]".to_owned()),
        ];
        prop::collection::vec(condition, 1..3).prop_map(|all| {
            let all: Vec<_> = all.iter().map(|one| format!("{{ {one} }}")).collect();
            format!("[{}]", all.join(", "))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_first_of_many_routes_that_matches_is_taken(
            routes in prop::collection::vec(conditions(), 9..40),
            requests in prop::collection::vec((path(), any::<bool>(), any::<bool>()), 20),
        ) {
            let mut yaml = "kind: Service\nname: reviews\nbackends: [{ name: v1, discover: { static: [127.0.0.1:1] } }]\nroutes:\n".to_owned();
            for (place, conditions) in routes.iter().enumerate() {
                yaml += &format!("  - {{ name: r{place}, match: {conditions}, to: [{{ backend: v1 }}] }}\n");
            }
            let snapshot = compiled(&yaml, &metrics(), None);
            let virtual_host = &snapshot.virtual_hosts[0];
            prop_assert!(virtual_host.lookup.is_some());
            for (path, posts, slash) in requests {
                let method = if posts { "POST" } else { "GET" };
                let slash = if slash { "/" } else { "" };
                let head = head(&format!("{method} {path}{slash}"), &[]);
                let asked_in_turn = virtual_host.routes.iter().position(|route| route.matches(&head));
                prop_assert_eq!(virtual_host.route(&head), asked_in_turn, "{} {}", method, head.uri);
            }
        }
    }

    #[test]
    fn of_wildcards_the_most_specific_is_taken() {
        let mut table = HostTable::default();
        for (place, host) in ["*.a.b", "*.b", "x.b", "*.c.a.b"].iter().enumerate() {
            table.insert(host, place);
        }
        for (host, place) in [
            ("x.b", Some(2)),
            ("X.B:80", Some(2)),
            ("y.b.", Some(1)),
            ("y.a.b", Some(0)),
            ("z.y.a.b", Some(0)),
            ("y.c.a.b", Some(3)),
            ("c.a.b", Some(0)),
            ("a.b", Some(1)),
            ("b", None),
            (".b", None),
            ("other", None),
        ] {
            assert_eq!(table.find(host), place, "{host}");
        }
    }
}
