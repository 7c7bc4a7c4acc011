//! What a request learns at the edge of the mesh: who asked, and by which scheme.
//!
//! Pure. Inside the mesh both are passed on as they come.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{HeaderName, HeaderValue, Method, Uri};

use crate::request::headers::MIRROR;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Says of a request by a port at the edge where it comes from, as Envoy's edge does: the caller's address is added to
/// `x-forwarded-for`. `secure`: the port speaks TLS, and its scheme is what is true, whatever the caller says. On one that
/// does not, a load balancer before it has ended TLS, and knows.
///
/// Nobody outside is a mirror: what says so, which sidecars pass on and heed, is taken away.
pub(super) fn arrive(head: &mut Parts, from: IpAddr, secure: bool) {
    head.headers.remove(&MIRROR);
    let mut list = String::new();
    for value in head.headers.get_all(&FORWARDED_FOR) {
        // What is no text cannot be an address.
        if let Ok(value) = value.to_str() {
            list.push_str(value.trim());
            list.push_str(", ");
        }
    }
    let _ = write!(list, "{}", from.to_canonical());
    if let Ok(list) = HeaderValue::try_from(list) {
        head.headers.insert(FORWARDED_FOR, list);
    }
    if secure {
        head.headers
            .insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
    } else if !head.headers.contains_key(&FORWARDED_PROTO) {
        head.headers
            .insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if head
        .headers
        .get(&FORWARDED_PROTO)
        .is_some_and(|proto| proto == "https")
    {
        make_https(head);
    }
}

/// Gives a request the URL that its caller has asked for (RFC 9110 section 7.1), which a redirect is made of.
fn make_https(head: &mut Parts) {
    let named = head.uri.authority().cloned().or_else(|| {
        let host = head.headers.get(HOST)?;
        Authority::try_from(host.as_bytes()).ok()
    });
    let (Some(authority), true) = (
        named,
        head.method != Method::CONNECT && head.uri.path().starts_with('/'),
    ) else {
        return;
    };
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    let path = parts.path_and_query.clone();
    parts.scheme = Some(Scheme::HTTPS);
    parts.authority = Some(authority);
    head.uri = Uri::from_parts(parts).unwrap_or_else(|_| path.map(Uri::from).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn arrived(request: http::request::Builder, secure: bool) -> Parts {
        let mut head = request.body(()).unwrap().into_parts().0;
        arrive(&mut head, "203.0.113.7".parse().unwrap(), secure);
        head
    }

    #[test]
    fn the_caller_is_added_to_those_before_it_and_the_scheme_is_the_port_s() {
        let head = arrived(
            Request::get("/a?b")
                .header("host", "shop:8443")
                .header("x-forwarded-for", "10.0.0.1")
                .header("x-forwarded-for", "10.0.0.2, 10.0.0.3")
                .header("x-forwarded-proto", "http"),
            true,
        );
        assert_eq!(
            head.headers["x-forwarded-for"],
            "10.0.0.1, 10.0.0.2, 10.0.0.3, 203.0.113.7"
        );
        assert_eq!(head.headers["x-forwarded-proto"], "https");
        assert_eq!(head.uri, "https://shop:8443/a?b");
        for (said, expected, uri) in [(None, "http", "/"), (Some("https"), "https", "https://shop/")] {
            let mut request = Request::get("/").header("host", "shop");
            if let Some(said) = said {
                request = request.header("x-forwarded-proto", said);
            }
            let head = arrived(request, false);
            assert_eq!(head.headers["x-forwarded-for"], "203.0.113.7");
            assert_eq!(head.headers["x-forwarded-proto"], expected);
            assert_eq!(head.uri, uri);
        }
    }

    #[test]
    fn what_has_no_url_of_its_own_stays_as_it_came() {
        let head = arrived(Request::options("*").header("host", "shop"), true);
        assert_eq!(head.uri, "*");
        let head = arrived(Request::connect("shop:443").header("host", "shop"), true);
        assert_eq!(head.uri, "shop:443");
        let head = arrived(Request::get("/a").header("host", "sh op"), true);
        assert_eq!(head.uri, "/a");
    }
}
