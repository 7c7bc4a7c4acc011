//! What a request must be that came by HTTP/2, beyond what `h2` has looked at, before it may leave by HTTP/1.1.
//!
//! The two write the same things differently, and a field that is harmless in one can be a second request in the
//! other. `h2` refuses names and values that HTTP/1.1 could not carry (RFC 9113 section 8.2.1) and lengths that are
//! not those of the body; here is the rest. It knows nothing of a request that came by HTTP/1.1.

use http::header::{CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderValue, Method, Version};

use crate::error::{Failure, Reason};

/// Makes a head that came by HTTP/2 into what HTTP/1.1 would have said. `bodiless`: it is known to have no body.
///
/// # Errors
/// When RFC 9113 section 8 calls it malformed.
pub(crate) fn arrive(head: &mut Parts, bodiless: bool) -> Result<(), Failure> {
    if head.version != Version::HTTP_2 {
        return Ok(());
    }
    target(head)?;
    let (mut cookies, mut lengths) = (0, 0);
    for (name, value) in &head.headers {
        // RFC 9113 section 8.2.1. The quote is no letter of a name (RFC 9110 section 5.6.2), but one of `HeaderName`.
        if name.as_str().contains('"') {
            return Err(bad("a field's name has a quote in it"));
        }
        let bytes = value.as_bytes();
        let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        if is_blank(bytes.first()) || is_blank(bytes.last()) {
            return Err(bad("a field's value begins or ends with a blank"));
        }
        match *name {
            COOKIE => cookies += 1,
            CONTENT_LENGTH => lengths += 1,
            _ => {}
        }
    }
    if cookies > 1 {
        // RFC 9113 section 8.2.3: crumbs are one field again for who does not speak HTTP/2.
        let crumbs: Vec<_> = head
            .headers
            .get_all(COOKIE)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
            head.headers.insert(COOKIE, whole);
        }
    }
    if lengths > 1
        && let Some(length) = head.headers.remove(CONTENT_LENGTH)
    {
        // They say the same, which `h2` has seen to; twice is once too often for some who read it.
        head.headers.insert(CONTENT_LENGTH, length);
    }
    if lengths == 0 && !bodiless {
        // A body of unknown length, which HTTP/1.1 has to be told (RFC 9112 section 6.3): without it a GET has none.
        let chunked = HeaderValue::from_static("chunked");
        head.headers.insert(TRANSFER_ENCODING, chunked);
    }
    Ok(())
}

/// RFC 9113 section 8.3.1: where the request goes is said once.
fn target(head: &Parts) -> Result<(), Failure> {
    let uri = &head.uri;
    let tunnel = head.method == Method::CONNECT;
    match uri.path() {
        "" if !tunnel => return Err(bad("the request has no :path")),
        "*" if head.method != Method::OPTIONS => {
            return Err(bad("only OPTIONS may ask for * as a whole"));
        }
        _ => {}
    }
    if uri.scheme_str() == Some("") {
        return Err(bad("the request's :scheme is empty"));
    }
    let Some(authority) = uri.authority() else {
        return Ok(());
    };
    if authority.as_str().contains('@') {
        return Err(bad(":authority names a user"));
    }
    let port = authority
        .as_str()
        .strip_prefix(authority.host())
        .unwrap_or_default();
    if !port
        .strip_prefix(':')
        .unwrap_or(port)
        .bytes()
        .all(|byte| byte.is_ascii_digit())
    {
        return Err(bad("the port of :authority is no number"));
    }
    let same = |host: &HeaderValue| {
        host.as_bytes()
            .eq_ignore_ascii_case(authority.as_str().as_bytes())
    };
    match head.headers.get_all(HOST).iter().all(same) {
        true => Ok(()),
        false => Err(bad("Host and :authority differ")),
    }
}

fn bad(detail: &'static str) -> Failure {
    Failure::new(Reason::BadRequest, detail)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .version(Version::HTTP_2);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn what_is_said_in_pieces_becomes_one() {
        let fields = [
            ("cookie", "a=1"),
            ("content-length", "5"),
            ("cookie", "b=2"),
            ("content-length", "5"),
        ];
        let mut head = head("POST", "http://a/", &fields);
        arrive(&mut head, false).unwrap();
        let all = |name| head.headers.get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(all(COOKIE), ["a=1; b=2"]);
        assert_eq!(all(CONTENT_LENGTH), ["5"]);
        assert!(!head.headers.contains_key(TRANSFER_ENCODING));
    }

    #[test]
    fn a_body_without_a_length_is_chunked_and_no_body_is_not() {
        for (bodiless, expected) in [(false, Some("chunked")), (true, None)] {
            let mut head = head("GET", "http://a/", &[]);
            arrive(&mut head, bodiless).unwrap();
            let coding = head.headers.get(TRANSFER_ENCODING);
            assert_eq!(coding.map(|coding| coding.to_str().unwrap()), expected);
        }
    }

    #[test]
    fn where_it_goes_is_said_once() {
        let told = |method: &str, uri: &str, host: &[&str]| {
            let fields: Vec<_> = host.iter().map(|host| ("host", *host)).collect();
            arrive(&mut head(method, uri, &fields), true)
        };
        assert!(told("GET", "http://reviews:80/", &["Reviews:80"]).is_ok());
        assert!(told("GET", "/", &["reviews"]).is_ok());
        assert!(told("OPTIONS", "*", &["reviews"]).is_ok());
        assert!(told("CONNECT", "reviews:443", &[]).is_ok());
        for (method, uri, host) in [
            ("GET", "http://reviews/", &["ratings"][..]),
            ("GET", "http://reviews/", &["reviews", "ratings"]),
            ("GET", "http://reviews/", &["reviews:80"]),
            ("GET", "http://user@reviews/", &[]),
            ("GET", "http://reviews:x/", &[]),
            ("GET", "*", &["reviews"]),
        ] {
            assert_eq!(
                told(method, uri, host).unwrap_err().reason,
                Reason::BadRequest,
                "{uri} {host:?}"
            );
        }
    }

    #[test]
    fn a_request_by_http1_is_not_looked_at() {
        let mut head = head(
            "GET",
            "http://user@reviews/",
            &[("host", "ratings"), ("cookie", "a"), ("cookie", "b")],
        );
        head.version = Version::HTTP_11;
        arrive(&mut head, false).unwrap();
        assert_eq!(head.headers.len(), 3);
    }
}
