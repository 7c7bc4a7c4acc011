//! What a hop changes in a head, and nothing else: headers that belong to one connection end here, the request's
//! form becomes that of an origin, and what HTTP demands of a head is checked.
//!
//! Pure. It does not route and does not add what was not asked for.

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};

use crate::error::{Failure, Reason};

/// Not in the http crate's list: the pre-standard spelling and Netscape's.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What this hop must look at in a head, found in one pass over it: most heads hold nothing of it but `Host`, and
/// asking the map for each name by itself costs more than all else that is done with a head.
#[derive(Clone, Copy, Debug, Default)]
struct Look<'a> {
    host: Option<&'a HeaderValue>,
    hosts: usize,
    /// Any field that is of one connection (RFC 9110 section 7.6.1), `Connection` apart.
    hop_by_hop: bool,
    connection: bool,
    /// Whether `Connection` names a field of this message, and not only what becomes of the connection.
    names_fields: bool,
    chunked: bool,
    /// A transfer coding that this hop would have to decode, being no party to it further on.
    other_coding: bool,
    expect: bool,
    /// Whether there is an `Upgrade`.
    upgrade: bool,
    /// Whether it is a gRPC call, or the answer to one.
    grpc: bool,
}

fn look(headers: &HeaderMap) -> Look<'_> {
    let mut look = Look::default();
    for (name, value) in headers {
        match *name {
            HOST => {
                look.host.get_or_insert(value);
                look.hosts += 1;
            }
            CONNECTION => {
                look.connection = true;
                let option = value.as_bytes();
                look.names_fields |=
                    !(option.eq_ignore_ascii_case(b"keep-alive") || option.eq_ignore_ascii_case(b"close"));
            }
            TRANSFER_ENCODING => {
                // Several lines count as one list; only the one coding by itself is understood here.
                look.other_coding |= look.chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked");
                look.chunked = true;
                look.hop_by_hop = true;
            }
            TE => look.hop_by_hop = true,
            UPGRADE => {
                look.hop_by_hop = true;
                look.upgrade = true;
            }
            EXPECT => look.expect = true,
            CONTENT_TYPE => look.grpc = value.as_bytes().starts_with(b"application/grpc"),
            _ => look.hop_by_hop |= *name == KEEP_ALIVE || *name == PROXY_CONNECTION,
        }
    }
    look
}

/// What a request asks for, as far as its way depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    /// The name of the host that it is for: from its URL if it has one (RFC 9112 section 3.2.2), else from `Host`.
    /// `None` for an HTTP/1.0 request that names none.
    pub(crate) host: Option<&'a str>,
    /// Whether it may want to speak something else on its connection.
    pub(crate) upgrade: bool,
    /// Whether it is a gRPC call.
    pub(crate) grpc: bool,
    /// Whether its caller waits to be told before it sends the body.
    pub(crate) expects: bool,
}

/// Looks at what a request asks for.
///
/// # Errors
/// What no request may have, because its bytes would mean one thing here and another further on.
pub(crate) fn asked(head: &Parts) -> Result<Asked<'_>, Failure> {
    let look = look(&head.headers);
    let (upgrade, grpc) = (look.upgrade || head.method == Method::CONNECT, look.grpc);
    let expects = look.expect && expects_continue(head);
    let host = host(head, &look)?;
    Ok(Asked {
        host,
        upgrade,
        grpc,
        expects,
    })
}

/// RFC 9110 section 10.1.1, which has no such thing before HTTP/1.1.
fn expects_continue(head: &Parts) -> bool {
    let expected = head.headers.get(EXPECT);
    head.version >= Version::HTTP_11
        && expected.is_some_and(|expected| expected.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn host<'a>(head: &'a Parts, look: &Look<'a>) -> Result<Option<&'a str>, Failure> {
    if look.other_coding {
        // RFC 9112 section 6.1: passing it on without its name would hand over coded bytes as plain ones.
        return Err(bad("the request has a transfer coding other than chunked"));
    }
    if look.hosts > 1 {
        // RFC 9112 section 3.2: more than one Host line is refused, whoever might read which.
        return Err(bad("the request has more than one Host"));
    }
    if let Some(authority) = head.uri.authority() {
        return Ok(Some(authority.as_str()));
    }
    match look.host {
        Some(host) => match host.to_str() {
            Ok(host) => Ok(Some(host)),
            Err(_) => Err(bad("Host has bytes that no host name has")),
        },
        // RFC 9112 section 3.2.
        None if head.version >= Version::HTTP_11 => Err(bad("the request has no Host")),
        None => Ok(None),
    }
}

fn bad(detail: &'static str) -> Failure {
    Failure::new(Reason::BadRequest, detail)
}

/// Makes a received head into one to send: HTTP/1.1, origin form, `Host` set, headers of the last hop gone.
/// `fallback` is the host of a request that named none.
pub(crate) fn prepare_request(head: &mut Parts, fallback: &str) {
    let found = look(&head.headers);
    let Look {
        hosts,
        chunked,
        expect,
        ..
    } = found;
    let (connection, hop_by_hop, names_fields) = (found.connection, found.hop_by_hop, found.names_fields);
    if connection || hop_by_hop {
        let trailers_wanted = hop_by_hop && accepts_trailers(&head.headers);
        strip_hop_by_hop(&mut head.headers, hop_by_hop, names_fields);
        if trailers_wanted {
            // RFC 9110 section 10.1.4: TE is of one connection, but a proxy that passes trailers on may say so again.
            head.headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
    if expect {
        // Said again where there is a body to be held back; see `Outgoing::hold_if`.
        head.headers.remove(EXPECT);
    }
    if chunked {
        // RFC 9112 section 6.1: where both are there, chunked is what frames the body and the length is a lie.
        head.headers.remove(CONTENT_LENGTH);
        // Said explicitly, because hyper takes a GET of unknown length to have no body.
        head.headers
            .insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if head.uri.authority().is_some() || hosts == 0 {
        let host = head
            .uri
            .authority()
            .map_or(fallback, |authority| authority.as_str());
        // The authority may hold a user (`user@host`), which Host may not (RFC 9110 section 7.2).
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        if let Ok(host) = HeaderValue::from_str(host) {
            head.headers.insert(HOST, host);
        }
    }
    if head.uri.scheme().is_some() || head.uri.authority().is_some() {
        let path = head
            .uri
            .path_and_query()
            .cloned()
            .unwrap_or_else(|| PathAndQuery::from_static("/"));
        head.uri = Uri::from(path);
    }
    head.version = Version::HTTP_11;
}

/// Makes a received answer into one to hand on: what belongs to the hop that it came by goes.
///
/// # Errors
/// What no answer may have, because its bytes would mean one thing here and another to the caller.
pub(crate) fn prepare_response(head: &mut http::response::Parts) -> Result<(), &'static str> {
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        // RFC 9110 section 15.2.2: nobody asked for it, since this hop does not pass `Upgrade` on.
        return Err("it switched protocols without being asked to");
    }
    let found = look(&head.headers);
    if found.other_coding {
        return Err("its answer has a transfer coding other than chunked");
    }
    let (connection, hop_by_hop, names_fields) = (found.connection, found.hop_by_hop, found.names_fields);
    let chunked = found.chunked;
    if connection || hop_by_hop {
        strip_hop_by_hop(&mut head.headers, hop_by_hop, names_fields);
    }
    if chunked {
        // RFC 9112 section 6.3: chunked is what framed the body, and a length beside it is a lie.
        head.headers.remove(CONTENT_LENGTH);
    }
    // RFC 9110 section 2.5: an intermediary sends its own version, not the one that it received.
    head.version = Version::HTTP_11;
    Ok(())
}

/// Makes an interim answer that was received into one to hand on. It has no body, and so nothing to say about one
/// (RFC 9110 section 8.6, RFC 9112 section 6.1).
pub(crate) fn prepare_interim(headers: &mut HeaderMap) {
    let found = look(headers);
    let (hop_by_hop, names_fields) = (found.hop_by_hop, found.names_fields);
    strip_hop_by_hop(headers, hop_by_hop, names_fields);
    headers.remove(CONTENT_LENGTH);
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(TE).iter().filter_map(|value| value.to_str().ok());
    values.any(|value| {
        value
            .split(',')
            .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
    })
}

/// RFC 9110 section 7.6.1: `Connection`, what it names, and the fields that are of one connection by custom.
fn strip_hop_by_hop(headers: &mut HeaderMap, hop_by_hop: bool, names_fields: bool) {
    if names_fields {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::try_from(name.trim()).ok())
            // Naming a field that the message cannot do without does not make it one of the connection.
            .filter(|name| !matches!(*name, HOST | CONTENT_LENGTH))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    headers.remove(CONNECTION);
    if hop_by_hop {
        for name in [KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE, TE] {
            headers.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn prepared(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut head = head(uri, headers);
        asked(&head).unwrap();
        prepare_request(&mut head, "fallback");
        head
    }

    #[test]
    fn what_connection_names_ends_here_and_so_does_connection() {
        let head = prepared(
            "/",
            &[
                ("host", "a"),
                ("connection", "x-secret, close"),
                ("x-secret", "1"),
                ("x-kept", "2"),
            ],
        );
        assert!(!head.headers.contains_key("x-secret"));
        assert!(!head.headers.contains_key("connection"));
        assert_eq!(head.headers["x-kept"], "2");
    }

    #[test]
    fn host_and_length_stay_even_if_connection_names_them() {
        let head = prepared(
            "/",
            &[
                ("host", "a"),
                ("content-length", "3"),
                ("connection", "host, content-length"),
            ],
        );
        assert_eq!(head.headers["host"], "a");
        assert_eq!(head.headers["content-length"], "3");
    }

    #[test]
    fn a_full_url_becomes_a_path_and_its_host_overrules_the_header() {
        let head = prepared("http://user@reviews:80/a?b=c", &[("host", "other")]);
        assert_eq!(head.uri.to_string(), "/a?b=c");
        assert_eq!(head.headers["host"], "reviews:80");
    }

    #[test]
    fn a_full_url_without_a_path_becomes_the_root() {
        assert_eq!(prepared("http://reviews", &[]).uri.to_string(), "/");
    }

    #[test]
    fn te_is_kept_only_for_trailers() {
        assert_eq!(
            prepared("/", &[("host", "a"), ("te", "gzip, trailers;q=1, Trailers")]).headers["te"],
            "trailers"
        );
        assert!(
            !prepared("/", &[("host", "a"), ("te", "gzip")])
                .headers
                .contains_key("te")
        );
    }

    #[test]
    fn a_length_beside_chunked_is_a_lie_and_goes() {
        let head = prepared(
            "/",
            &[
                ("host", "a"),
                ("transfer-encoding", "chunked"),
                ("content-length", "3"),
            ],
        );
        assert!(!head.headers.contains_key("content-length"));
        assert_eq!(head.headers["transfer-encoding"], "chunked");
    }

    fn answer(headers: &[(&str, &str)]) -> http::response::Parts {
        let mut response = http::Response::builder();
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response.body(()).unwrap().into_parts().0
    }

    #[test]
    fn an_answer_loses_the_length_that_chunked_overrules() {
        let mut head = answer(&[("transfer-encoding", "chunked"), ("content-length", "5")]);
        prepare_response(&mut head).unwrap();
        assert!(head.headers.is_empty(), "{:?}", head.headers);
    }

    #[test]
    fn a_transfer_coding_that_would_have_to_be_decoded_is_refused_both_ways() {
        for coding in ["gzip, chunked", "gzip", "chunked, chunked", "xchunked"] {
            let request = head("/", &[("host", "a"), ("transfer-encoding", coding)]);
            assert_eq!(
                asked(&request).unwrap_err().reason,
                Reason::BadRequest,
                "{coding}"
            );
            assert!(
                prepare_response(&mut answer(&[("transfer-encoding", coding)])).is_err(),
                "{coding}"
            );
        }
        let twice = [
            ("host", "a"),
            ("transfer-encoding", "chunked"),
            ("transfer-encoding", "chunked"),
        ];
        assert_eq!(asked(&head("/", &twice)).unwrap_err().reason, Reason::BadRequest);
    }

    #[test]
    fn an_answer_that_switches_protocols_unasked_is_refused() {
        let mut head = answer(&[]);
        head.status = StatusCode::SWITCHING_PROTOCOLS;
        assert!(prepare_response(&mut head).is_err());
    }

    #[test]
    fn no_host_or_two_are_refused() {
        assert_eq!(asked(&head("/", &[])).unwrap_err().reason, Reason::BadRequest);
        assert_eq!(
            asked(&head("/", &[("host", "a"), ("host", "a")]))
                .unwrap_err()
                .reason,
            Reason::BadRequest
        );
    }

    #[test]
    fn a_request_of_http_1_0_may_have_no_host_and_is_given_one() {
        let mut head = head("/", &[]);
        head.version = Version::HTTP_10;
        assert_eq!(asked(&head).unwrap().host, None);
        prepare_request(&mut head, "reviews");
        assert_eq!(head.headers["host"], "reviews");
        assert_eq!(head.version, Version::HTTP_11);
    }
}
