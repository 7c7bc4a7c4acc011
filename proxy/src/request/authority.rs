//! Who is asked: what `Host` and the target of a request must be before anybody routes by them.
//!
//! hyper takes any value for a `Host` and any URI for a target; two servers that read an odd one differently are how a
//! request gets past the one and to the other (RFC 9112 section 11.2). It changes nothing and finds no service.

use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderValue, Method};

use crate::error::{Failure, Reason};

/// Port numbers have no more digits than this, leading zeros left out.
const PORT_DIGITS_MAX: usize = 5;

/// The host that a `Host` names.
///
/// # Errors
/// When it is no host with perhaps a port (RFC 9110 section 7.2).
pub(super) fn named(value: &HeaderValue) -> Result<&str, Failure> {
    value
        .to_str()
        .ok()
        .filter(|host| is_host(host.as_bytes()))
        .ok_or_else(|| bad("Host is no name or address with perhaps a port"))
}

/// Looks at the target of a request that came by HTTP/1.
///
/// # Errors
/// When its form is not one that its method may have (RFC 9112 section 3.2).
pub(super) fn target(head: &Parts) -> Result<(), Failure> {
    let uri = &head.uri;
    if !uri.path_and_query().is_none_or(|path| path.as_str().is_ascii()) {
        // RFC 9112 section 3.2, RFC 3986 section 2: letters beyond ASCII are encoded.
        return Err(bad("the target has bytes that must be encoded"));
    }
    let Some(authority) = uri.authority() else {
        return match uri.path() {
            // Section 3.2.3.
            _ if head.method == Method::CONNECT => Err(bad("CONNECT asks for no host and port")),
            // Section 3.2.4.
            "*" if head.method != Method::OPTIONS => Err(bad("only OPTIONS may ask for * as a whole")),
            _ => Ok(()),
        };
    };
    if authority.as_str().contains('@') {
        // RFC 9110 section 4.2.4: the user is there to make a name look like another.
        return Err(bad("the target names a user"));
    }
    if !is_host(authority.as_str().as_bytes()) {
        return Err(bad("the target's host is no name or address with perhaps a port"));
    }
    match uri.scheme() {
        None if head.method == Method::CONNECT => Ok(()),
        None => Err(bad("the target is neither a path nor a whole URL")),
        Some(_) if head.method == Method::CONNECT => Err(bad("CONNECT asks for no host and port")),
        Some(scheme) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS => Ok(()),
        Some(_) => Err(bad("the target is no URL of http")),
    }
}

/// `uri-host [ ":" port ]` of RFC 9110 section 7.2, where the host is a name of DNS or an address. RFC 3986 allows a name
/// more than that, a comma above all, with which two `Host`s were joined by who came before.
fn is_host(bytes: &[u8]) -> bool {
    let (host, port) = match bytes {
        [b'[', rest @ ..] => {
            let Some(end) = rest.iter().position(|byte| *byte == b']') else {
                return false;
            };
            let (address, port) = (&rest[..end], &rest[end + 1..]);
            let is_address = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
            if !address.iter().all(is_address) {
                return false;
            }
            (address, port)
        }
        _ => {
            let is_name =
                |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'~');
            let end = bytes
                .iter()
                .position(|byte| !is_name(byte))
                .unwrap_or(bytes.len());
            bytes.split_at(end)
        }
    };
    let is_port = match port {
        [] | [b':'] => true,
        [b':', digits @ ..] => digits.len() <= PORT_DIGITS_MAX && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    !host.is_empty() && is_port
}

fn bad(detail: &'static str) -> Failure {
    Failure::new(Reason::BadRequest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_perhaps_a_port() {
        for good in [
            "a",
            "A.b-c_d.",
            "reviews:80",
            "reviews:",
            "127.0.0.1:65535",
            "[::1]",
            "[::ffff:1.2.3.4]:80",
            "~a",
            "-",
        ] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ":80", "a:b", "a:80:80", "a:123456", "a:-1", "a:+1", "a b", "a,b", "a/", "a/b", "a?", "a#",
            "u@a", "[", "[]", "[::1", "[::1]80", "[::1]:x", "[g]", "::1", "a\\b", "a%2e", "a\u{7f}", "a\0",
            "\u{e4}", "a;b", "a=b", "http://a", "*",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
    }

    fn judged(method: &str, uri: &str) -> bool {
        let request = http::Request::builder().method(method).uri(uri);
        target(&request.body(()).unwrap().into_parts().0).is_ok()
    }

    #[test]
    fn each_method_has_its_forms_of_a_target() {
        for (method, uri, good) in [
            ("GET", "/", true),
            ("GET", "http://a/b", true),
            ("GET", "https://a", true),
            ("OPTIONS", "*", true),
            ("OPTIONS", "http://a", true),
            ("CONNECT", "a:80", true),
            ("GET", "*", false),
            ("GET", "a:80", false),
            ("GET", "a", false),
            ("GET", "ftp://a/", false),
            ("GET", "http://u@a/", false),
            ("GET", "http://a,b/", false),
            ("CONNECT", "/a", false),
            ("CONNECT", "http://a/", false),
        ] {
            assert_eq!(judged(method, uri), good, "{method} {uri}");
        }
    }
}
