//! What a route does with a request beside passing it on: the answer that the sidecar gives by itself, and what is changed
//! in what goes on and in what comes back.
//!
//! Pure. Routes are chosen, and endpoints by a key, before anything is changed. What a failure of the sidecar's own says is
//! changed by nothing.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};

use crate::error::{Failure, Reason};
use crate::request::attempt::Answer;
use crate::request::upgrade::Upgrade;
use crate::request::{grpc, path};
use crate::snapshot::actions::{Action, Edits, Fixed, NewPath, OwnAnswer, Redirect, Says};
use crate::snapshot::routes::{Route, Target, VirtualHost, without_port};

/// The longest path that is made of another: half of what the `http` crate takes for a whole URI, and several times what
/// servers take.
const PATH_BYTES_MAX: usize = 32 * 1024;

/// What is to be changed in a request, found out while it still has the form that it came in.
#[derive(Debug)]
pub(crate) struct Changes<'a> {
    edits: &'a Edits,
    target: Option<PathAndQuery>,
}

impl<'a> Changes<'a> {
    /// What a route changes in a request.
    ///
    /// # Errors
    /// When what would become of its path is none.
    pub(crate) fn to(
        head: &Parts,
        edits: &'a Edits,
        (route, virtual_host): (&Route, &VirtualHost),
    ) -> Result<Self, Failure> {
        let refused = |why: &str| {
            let (name, path) = (&route.name, head.uri.path());
            Failure::new(
                Reason::NoRoute,
                format!("the route `{name}` cannot rewrite {path}: {why}"),
            )
        };
        let path = edits
            .path
            .as_ref()
            .map(|rule| new_path(rule, route, head).map_err(refused));
        let Some(mut path) = path.transpose()?.flatten() else {
            return Ok(Self { edits, target: None });
        };
        if virtual_host.normalizes {
            // What a pattern took apart may have been put together into steps upwards.
            path = path::one_form(&path).map_err(refused)?.into_owned();
        }
        if let Some(query) = head.uri.query() {
            path.push('?');
            path.push_str(query);
        }
        let target = PathAndQuery::try_from(path).map_err(|error| refused(&error.to_string()))?;
        Ok(Self {
            edits,
            target: Some(target),
        })
    }

    /// Makes the changes in a head that is ready to be sent: what its caller said of its own connection has been read and
    /// cannot undo them.
    pub(crate) fn make(self, head: &mut Parts) {
        let Self { edits, target } = self;
        if let Some(target) = target {
            head.uri = Uri::from(target);
        }
        if let Some(host) = &edits.host {
            head.headers.insert(HOST, host.clone());
        }
        edits.headers.request.apply(&mut head.headers);
    }
}

/// What becomes of the path of a request; `None` if it has none that could be changed: that of `OPTIONS *` and of CONNECT.
fn new_path(rule: &NewPath, route: &Route, head: &Parts) -> Result<Option<String>, &'static str> {
    let path = head.uri.path();
    if !path.starts_with('/') {
        return Ok(None);
    }
    let made = match rule {
        NewPath::Whole(whole) => whole.clone(),
        NewPath::Prefix(new) => {
            let prefix = route.matched_prefix(head).unwrap_or_default();
            let rest = path.strip_prefix(prefix).unwrap_or(path);
            if new.is_empty() && rest.is_empty() {
                return Ok(Some("/".to_owned()));
            }
            [new, rest].concat()
        }
        NewPath::Replaced(replacement) => replacement
            .in_text(path, PATH_BYTES_MAX)
            .ok_or("it would become too long, or there is too much in it to replace")?,
    };
    match made.starts_with('/') {
        true => Ok(Some(made)),
        false => Err("what it would become does not begin with a slash"),
    }
}

/// Changes an answer on its way to the caller as its route and its backend say. What another sidecar says of its own
/// failure stays as it is.
pub(crate) fn edit_answer(answer: &mut Answer, route: &Route, target: &Target) {
    if answer.said.is_some() {
        return;
    }
    let headers = &mut answer.head.headers;
    if let Action::Edit(edits) = &route.action {
        edits.headers.response.apply(headers);
    }
    if let Some(edits) = &target.edits {
        edits.response.apply(headers);
    }
}

/// The answer that a route gives by itself. `grpc`: to a gRPC call.
///
/// # Errors
/// For a request that nobody here would answer.
pub(crate) fn answer(
    own: &OwnAnswer,
    (route, virtual_host): (&Route, &VirtualHost),
    head: &mut Parts,
    grpc: bool,
) -> Result<Response<Bytes>, Failure> {
    if head.method == Method::CONNECT {
        // A success would open a tunnel that leads nowhere (RFC 9110 section 9.3.6).
        Upgrade::asked(head)?;
    }
    let mut response = match &own.says {
        Says::Redirect(redirect) => {
            let location = location(redirect, (route, virtual_host), head)?;
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = redirect.status;
            response.headers_mut().insert(LOCATION, location);
            response
        }
        Says::Fixed(fixed) if grpc => failed_call(fixed),
        Says::Fixed(fixed) => fixed_answer(fixed, head.method == Method::HEAD),
    };
    own.headers.apply(response.headers_mut());
    Ok(response)
}

fn fixed_answer(fixed: &Fixed, headed_only: bool) -> Response<Bytes> {
    let mut headers = fixed.headers.clone();
    if !fixed.body.is_empty() {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(fixed.body.len()));
    }
    let body = if headed_only {
        Bytes::new()
    } else {
        fixed.body.clone()
    };
    answer_of(fixed.status, headers, body)
}

/// A call of gRPC is told in its own words: a head without messages, in which the status of HTTP has become gRPC's.
fn failed_call(fixed: &Fixed) -> Response<Bytes> {
    let mut headers = fixed.headers.clone();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let message = std::str::from_utf8(&fixed.body).unwrap_or_default();
    grpc::say_status(&mut headers, grpc::status_of_http(fixed.status), message);
    answer_of(StatusCode::OK, headers, Bytes::new())
}

fn answer_of(status: StatusCode, headers: HeaderMap, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The URL that a caller is sent to, as the Gateway API's `RequestRedirect` has it: absolute, and without a port that goes
/// without saying. A host or a scheme of its own does not take over the port that was asked for.
fn location(
    to: &Redirect,
    (route, virtual_host): (&Route, &VirtualHost),
    head: &Parts,
) -> Result<HeaderValue, Failure> {
    let uri = &head.uri;
    let asked = uri.authority().map(http::uri::Authority::as_str);
    let asked = asked.or_else(|| head.headers.get(HOST)?.to_str().ok());
    let asked = asked.unwrap_or(&virtual_host.authority);
    // A user before the host is nobody's business further on (RFC 9110 section 4.2.4).
    let asked = asked.rsplit_once('@').map_or(asked, |(_, host)| host);
    let (asked_host, asked_port) = asked.split_at(without_port(asked).len());
    let asked_scheme = match uri.scheme_str() {
        Some("https") => "https",
        _ => "http",
    };
    let scheme = to.scheme.map_or(asked_scheme, |scheme| scheme.word());
    let host = to.host.as_deref().unwrap_or(asked_host);
    let port = match to.port {
        Some(port) => port.to_string(),
        None if to.scheme.is_none() && to.host.is_none() => asked_port.trim_start_matches(':').to_owned(),
        None => String::new(),
    };
    let mut url = format!("{scheme}://{host}");
    let goes_without_saying = matches!(
        (scheme, port.as_str()),
        (_, "") | ("http", "80") | ("https", "443")
    );
    if !goes_without_saying {
        url.push(':');
        url.push_str(&port);
    }
    let bad = |why: &str| Failure::new(Reason::BadRequest, format!("no URL can be made of it: {why}"));
    let path = to
        .path
        .as_ref()
        .map(|rule| new_path(rule, route, head).map_err(bad));
    let path = path.transpose()?.flatten();
    let path = path.as_deref().unwrap_or_else(|| {
        Some(uri.path())
            .filter(|path| path.starts_with('/'))
            .unwrap_or("/")
    });
    url.push_str(path);
    if let Some(query) = uri.query().filter(|_| !to.strip_query && !path.contains('?')) {
        url.push('?');
        url.push_str(query);
    }
    HeaderValue::try_from(url).map_err(|error| bad(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Request;

    use super::*;
    use crate::request::headers;
    use crate::snapshot::compile::{self, Said};
    use crate::snapshot::{Origin, Snapshot, Standing};
    use crate::telemetry::metrics::Metrics;
    use crate::tls::Identities;

    /// A service whose first route has this in braces.
    fn with_route(route: &str) -> Snapshot {
        let yaml = format!(
            "kind: Service\nname: shop\nbackends: [{{ name: v1, discover: {{ static: [127.0.0.1:1] }} }}]\n\
             routes:\n  - {{ name: first, {route} }}\n"
        );
        let documents = outrigger_config::split("test.yaml", &yaml).unwrap();
        let config = outrigger_config::check(&documents).unwrap_or_else(|problems| panic!("{problems:?}"));
        let said = Said {
            version: "1".into(),
            origin: Origin::File,
            documents,
        };
        let metrics = Arc::new(Metrics::new().unwrap());
        let standing = Standing {
            service: None,
            listeners: Vec::new(),
            range: None,
            identities: Arc::new(Identities::new(false, Arc::clone(metrics.tls()))),
        };
        compile::compile(said, &config, &standing, &metrics, None).unwrap()
    }

    fn head(request: &str, headers: &[(&str, &str)]) -> Parts {
        let (method, uri) = request.split_once(' ').unwrap_or(("GET", request));
        let mut builder = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    /// What becomes of a request, as it would leave.
    fn changed(route: &str, request: &str, headers: &[(&str, &str)]) -> Result<Parts, Failure> {
        let snapshot = with_route(route);
        let virtual_host = &snapshot.virtual_hosts[0];
        let route = &virtual_host.routes[0];
        let mut head = head(request, headers);
        let Action::Edit(edits) = &route.action else {
            panic!("{route:?} changes nothing")
        };
        let changes = Changes::to(&head, edits, (route, virtual_host))?;
        let (found, _) = headers::look(&head.headers);
        headers::prepare_request(&mut head, "shop", found);
        changes.make(&mut head);
        Ok(head)
    }

    fn answered(route: &str, request: &str, headers: &[(&str, &str)], grpc: bool) -> Response<Bytes> {
        let snapshot = with_route(route);
        let virtual_host = &snapshot.virtual_hosts[0];
        let route = &virtual_host.routes[0];
        let Action::Answer(own) = &route.action else {
            panic!("{route:?} answers nothing")
        };
        let mut head = head(request, headers);
        answer(own, (route, virtual_host), &mut head, grpc).unwrap()
    }

    fn location_of(route: &str, url: &str, host: &str) -> String {
        let response = answered(route, url, &[("host", host)], false);
        response.headers()[LOCATION].to_str().unwrap().to_owned()
    }

    /// The table of the Gateway API's `ReplacePrefixMatch`, and more of its kind: path, prefix, what replaces it, result.
    const PREFIXES: &[(&str, &str, &str, &str)] = &[
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "/", "/bar"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo/bar/", "/foo", "/", "/bar/"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/bar", "/", "/", "/bar"),
        ("/foo/foo", "/foo", "/xyz", "/xyz/foo"),
        ("/foo/a%2Fb", "/foo", "/x%20z", "/x%20z/a%2Fb"),
    ];

    #[test]
    fn a_prefix_is_replaced_by_whole_segments_in_rewrites_and_redirects() {
        for (path, matched, new, expected) in PREFIXES {
            let matching = format!("match: [{{ path: {{ prefix: {matched} }} }}]");
            let with_query = format!("{path}?a=/foo");
            let rewrite = format!("{matching}, rewrite: {{ prefix: {new} }}, to: [{{ backend: v1 }}]");
            let head = changed(&rewrite, &with_query, &[("host", "shop")]).unwrap();
            assert_eq!(head.uri, *format!("{expected}?a=/foo"), "{path} {matched} {new}");
            let redirect = format!("{matching}, redirect: {{ prefix: {new} }}");
            assert_eq!(
                location_of(&redirect, &with_query, "shop"),
                format!("http://shop{expected}?a=/foo"),
                "{path} {matched} {new}"
            );
        }
    }

    #[test]
    fn the_prefix_that_is_replaced_is_that_of_the_condition_that_held() {
        let route = "match: [{ path: { prefix: /a }, headers: [{ name: x, present: true }] }, \
                     { methods: [GET], path: { prefix: /a/b } }], rewrite: { prefix: /n }, to: [{ backend: v1 }]";
        let path = |headers: &[(&str, &str)]| changed(route, "/a/b/c", headers).unwrap().uri.to_string();
        assert_eq!(path(&[]), "/n/c");
        assert_eq!(path(&[("x", "1")]), "/n/b/c");
        // That it ends at this hop changes nothing of what held.
        assert_eq!(path(&[("x", "1"), ("connection", "x")]), "/n/b/c");
    }

    #[test]
    fn a_path_is_replaced_as_a_whole_or_where_a_pattern_finds_something() {
        let whole = "rewrite: { path: /new }, to: [{ backend: v1 }]";
        assert_eq!(changed(whole, "http://shop/a?b=c", &[]).unwrap().uri, "/new?b=c");
        assert_eq!(changed(whole, "OPTIONS *", &[]).unwrap().uri, "*");
        let regex = r#"rewrite: { regex: { pattern: "^/v([0-9]+)-(.*)$", substitution: '/\2/\1' } }, to: [{ backend: v1 }]"#;
        for (from, to) in [
            ("/v1-items?a=/v1-b", Some("/items/1?a=/v1-b")),
            ("/other", Some("/other")),
            // What was two dots in a segment's middle would be a step upwards.
            ("/v1-../x", None),
            ("/v1-a/../b", Some("/b/1")),
        ] {
            let made = changed(regex, from, &[("host", "shop")]);
            match to {
                Some(to) => assert_eq!(made.unwrap().uri, to, "{from}"),
                None => assert_eq!(made.unwrap_err().reason, Reason::NoRoute, "{from}"),
            }
        }
        let unrooted =
            r#"rewrite: { regex: { pattern: "^/(.*)$", substitution: '\1' } }, to: [{ backend: v1 }]"#;
        assert_eq!(changed(unrooted, "/a", &[]).unwrap_err().reason, Reason::NoRoute);
        let growing = r#"rewrite: { regex: { pattern: "a", substitution: '/\0' } }, to: [{ backend: v1 }]"#;
        let long = format!("/{}", "a".repeat(20_000));
        assert_eq!(changed(growing, &long, &[]).unwrap_err().reason, Reason::NoRoute);
    }

    #[test]
    fn headers_are_edited_after_what_the_caller_said_of_its_connection() {
        let route = r#"rewrite: { host: "other:81" }, request_headers: { set: { x-set: new }, add: { x-add: b }, remove: [X-Gone] },
            to: [{ backend: v1 }]"#;
        let headers = [
            ("host", "shop"),
            ("connection", "x-set"),
            ("x-set", "old"),
            ("x-set", "older"),
            ("x-add", "a"),
            ("x-gone", "1"),
            ("x-kept", "1"),
        ];
        let head = changed(route, "http://shop/", &headers).unwrap();
        let all = |name: &str| -> Vec<_> { head.headers.get_all(name).iter().collect() };
        assert_eq!(all("host"), ["other:81"]);
        assert_eq!(all("x-set"), ["new"]);
        assert_eq!(all("x-add"), ["a", "b"]);
        assert!(all("x-gone").is_empty());
        assert_eq!(all("x-kept"), ["1"]);
    }

    #[test]
    fn a_redirect_says_what_it_is_told_to_and_else_what_was_asked_for() {
        for (redirect, asked, host, expected) in [
            ("scheme: https", "/a?b=c", "shop", "https://shop/a?b=c"),
            // The port of plain HTTP is not that of TLS.
            ("scheme: https", "/a", "shop:8080", "https://shop/a"),
            (
                "scheme: https, port: 8443",
                "/a",
                "shop:8080",
                "https://shop:8443/a",
            ),
            ("scheme: https, port: 443", "/a", "shop:8080", "https://shop/a"),
            ("scheme: http, port: 443", "/a", "shop", "http://shop:443/a"),
            ("scheme: http, port: 80", "/a", "shop", "http://shop/a"),
            ("port: 8083", "/a", "shop:8080", "http://shop:8083/a"),
            ("port: 80", "/a", "shop:8080", "http://shop/a"),
            (
                "host: example.com",
                "/a?b=c",
                "shop:8080",
                "http://example.com/a?b=c",
            ),
            ("path: /new", "/a", "shop:8080", "http://shop:8080/new"),
            ("path: /new", "/a", "shop:80", "http://shop/new"),
            ("path: /new", "/a", "[::1]:8080", "http://[::1]:8080/new"),
            ("path: /new", "/a", "[::1]", "http://[::1]/new"),
            ("path: /new", "/a?b=c", "shop", "http://shop/new?b=c"),
            ("path: \"/new?d=e\"", "/a?b=c", "shop", "http://shop/new?d=e"),
            (
                "path: /new, strip_query: true",
                "/a?b=c",
                "shop",
                "http://shop/new",
            ),
            ("strip_query: true", "/a?b=c", "shop", "http://shop/a"),
            (
                "path: /new",
                "http://user@other:81/a",
                "shop",
                "http://other:81/new",
            ),
            ("path: /new", "https://other/a", "shop", "https://other/new"),
            ("host: example.com", "OPTIONS *", "shop", "http://example.com/"),
        ] {
            let route = format!("redirect: {{ {redirect} }}");
            assert_eq!(location_of(&route, asked, host), expected, "{redirect}, {asked}");
        }
    }

    #[test]
    fn a_redirect_has_its_status_and_the_route_may_edit_its_headers() {
        let of = |route: &str| answered(route, "/", &[("host", "shop")], false);
        assert_eq!(of("redirect: { path: /a }").status(), 302);
        let route =
            "redirect: { path: /a, status: 308 }, response_headers: { set: { cache-control: no-store } }";
        let response = of(route);
        assert_eq!(response.status(), 308);
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert!(response.body().is_empty());
    }

    #[test]
    fn a_fixed_answer_has_a_body_but_for_head() {
        let route = r#"respond: { status: 418, body: "tea\n", headers: { x-pot: "1" } }"#;
        for (method, body) in [("GET", "tea\n"), ("HEAD", "")] {
            let response = answered(route, &format!("{method} /"), &[], false);
            assert_eq!(
                (response.status(), &response.body()[..]),
                (StatusCode::IM_A_TEAPOT, body.as_bytes())
            );
            let headers = response.headers();
            assert_eq!(headers["x-pot"], "1");
            assert_eq!(headers[CONTENT_LENGTH], "4");
            assert_eq!(headers[CONTENT_TYPE], "text/plain; charset=utf-8");
        }
        let json = r#"respond: { status: 200, body: "{}", headers: { Content-Type: application/json } }"#;
        assert_eq!(
            answered(json, "/", &[], false).headers()[CONTENT_TYPE],
            "application/json"
        );
        assert!(
            answered("respond: { status: 204 }", "/", &[], false)
                .headers()
                .is_empty()
        );
    }

    #[test]
    fn a_call_of_grpc_is_told_in_its_own_words() {
        for (status, told) in [
            (400, "13"),
            (401, "16"),
            (403, "7"),
            (404, "12"),
            (429, "14"),
            (503, "14"),
            (500, "2"),
        ] {
            let route = format!("respond: {{ status: {status}, body: \"closed, 100 %\\n\" }}");
            let response = answered(&route, "POST /a", &[], true);
            assert_eq!(response.status(), 200);
            assert!(response.body().is_empty());
            let headers = response.headers();
            assert_eq!(headers["grpc-status"], told);
            assert_eq!(headers["grpc-message"], "closed, 100 %25");
            assert_eq!(headers[CONTENT_TYPE], "application/grpc");
            assert!(!headers.contains_key(CONTENT_LENGTH));
        }
        let long = format!("respond: {{ status: 500, body: {} }}", "é".repeat(1000));
        let response = answered(&long, "POST /a", &[], true);
        assert_eq!(response.headers()["grpc-message"].len(), 3 * 1024);
    }

    #[test]
    fn a_tunnel_is_not_opened_by_an_answer() {
        let snapshot = with_route("respond: { status: 200 }");
        let virtual_host = &snapshot.virtual_hosts[0];
        let route = &virtual_host.routes[0];
        let Action::Answer(own) = &route.action else {
            panic!()
        };
        let mut head = head("CONNECT shop:443", &[]);
        let refused = answer(own, (route, virtual_host), &mut head, false).unwrap_err();
        assert_eq!(refused.reason, Reason::BadRequest);
    }
}
