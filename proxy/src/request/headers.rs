//! What a hop changes in a head, and nothing else: headers that belong to one connection end here, the request's
//! form becomes that of an origin, and what HTTP demands of a head is checked.
//!
//! Pure. It does not route and does not add what was not asked for.

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, Entry, HOST, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};

use crate::arriving::{CLIENT_CERT, is_read_as, names_caller};
use crate::error::{Failure, Reason};
use crate::request::authority;
use crate::snapshot::access::Source;

/// Not in the http crate's list: the pre-standard spelling and Netscape's.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What this hop must look at in a head, found in one pass over it: most heads hold nothing of it but `Host`, and
/// asking the map for each name by itself costs more than all else that is done with a head.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
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
    /// How many lines tell a length.
    lengths: usize,
    /// Whether the length is told otherwise than by one number.
    odd_length: bool,
    /// Any field that only this sidecar may say.
    ours: bool,
}

/// What tells a copy, which the next sidecar must pass on, and which nobody gains by forging.
pub(super) const MIRROR: HeaderName = HeaderName::from_static("x-outrigger-mirror");

/// How the names of our own fields begin.
const OURS: &str = "x-outrigger-";

/// Whether it is a field that only this sidecar may say: who a caller is, and what we may come to say in our own names. A
/// server of CGI's kind reads `_` as `-`, so that a claim with one would stand beside the truth or in its place.
fn is_ours(name: &HeaderName) -> bool {
    let bytes = name.as_str().as_bytes();
    bytes.first() == Some(&b'x')
        && (names_caller(bytes)
            || *name != MIRROR
                && bytes
                    .get(..OURS.len())
                    .is_some_and(|begin| is_read_as(begin, OURS)))
}

/// What is found in a head, and the first `Host`.
pub(crate) fn look(headers: &HeaderMap) -> (Found, Option<&HeaderValue>) {
    let (mut look, mut host) = (Found::default(), None);
    for (name, value) in headers {
        match *name {
            HOST => {
                host.get_or_insert(value);
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
            CONTENT_LENGTH => {
                look.lengths += 1;
                let digits = value.as_bytes();
                look.odd_length |=
                    look.lengths > 1 || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit);
            }
            CONTENT_TYPE => look.grpc = value.as_bytes().starts_with(b"application/grpc"),
            _ => {
                look.hop_by_hop |= *name == KEEP_ALIVE || *name == PROXY_CONNECTION;
                look.ours |= is_ours(name);
            }
        }
    }
    (look, host)
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
    /// What [`prepare_request`] needs to know of its head.
    pub(crate) found: Found,
}

/// Looks at what a request asks for.
///
/// # Errors
/// What no request may have, because its bytes would mean one thing here and another further on.
pub(crate) fn asked(head: &Parts) -> Result<Asked<'_>, Failure> {
    let (found, first) = look(&head.headers);
    // RFC 9110 section 7.8: HTTP/1.0 has no `Upgrade`, and one that comes by it is not there.
    let wish = found.upgrade && head.version != Version::HTTP_10;
    let (upgrade, grpc) = (wish || head.method == Method::CONNECT, found.grpc);
    let expects = found.expect && expects_continue(head);
    let host = host(head, &found, first)?;
    Ok(Asked {
        host,
        upgrade,
        grpc,
        expects,
        found,
    })
}

/// RFC 9110 section 10.1.1, which has no such thing before HTTP/1.1.
fn expects_continue(head: &Parts) -> bool {
    let expected = head.headers.get(EXPECT);
    head.version >= Version::HTTP_11
        && expected.is_some_and(|expected| expected.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn host<'a>(
    head: &'a Parts,
    look: &Found,
    first: Option<&'a HeaderValue>,
) -> Result<Option<&'a str>, Failure> {
    if look.other_coding {
        // RFC 9112 section 6.1: passing it on without its name would hand over coded bytes as plain ones.
        return Err(bad("the request has a transfer coding other than chunked"));
    }
    if look.hosts > 1 {
        // RFC 9112 section 3.2: more than one Host line is refused, whoever might read which.
        return Err(bad("the request has more than one Host"));
    }
    let host = match first {
        Some(host) => Some(authority::named(host)?),
        // RFC 9112 section 3.2.
        None if head.version == Version::HTTP_11
            || head.version > Version::HTTP_11 && head.uri.authority().is_none() =>
        {
            return Err(bad("the request has no Host"));
        }
        None => None,
    };
    if head.version != Version::HTTP_2 {
        authority::target(head)?;
    }
    Ok(head.uri.authority().map(Authority::as_str).or(host))
}

fn bad(detail: &'static str) -> Failure {
    Failure::new(Reason::BadRequest, detail)
}

/// Makes a received head into one to send: HTTP/1.1, origin form, `Host` set, headers of the last hop gone.
/// `fallback` is the host of a request that named none; `found` is what was [`asked`], since when only fields may have gone.
pub(crate) fn prepare_request(head: &mut Parts, fallback: &str, found: Found) {
    let (hosts, chunked) = (found.hosts, found.chunked);
    if found.connection || found.hop_by_hop || found.expect || found.ours {
        let trailers = found.hop_by_hop && accepts_trailers(&head.headers);
        let named = named_by_connection(&head.headers, found.names_fields);
        take_out(&mut head.headers, |name| match *name {
            // RFC 9110 section 10.1.4: TE is of one connection, but a proxy that passes trailers on may say so again.
            TE => !trailers,
            TRANSFER_ENCODING => !chunked,
            // RFC 9112 section 6.1: where both are there, chunked is what frames the body and the length is a lie.
            CONTENT_LENGTH => chunked,
            // Said again where there is a body to be held back; see `Outgoing::hold_if`.
            EXPECT => true,
            // Who a caller is, nobody says but this sidecar: what comes in is another's claim.
            _ => is_hop_by_hop(name) || named.contains(name) || is_ours(name),
        });
        // What is said again stays in its place.
        if trailers {
            head.headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        if chunked {
            // Said explicitly, because hyper takes a GET of unknown length to have no body.
            head.headers
                .insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
    if head.uri.authority().is_some() || hosts == 0 {
        let host = head
            .uri
            .authority()
            .map_or(fallback, |authority| authority.as_str());
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

/// Says who the caller is, if it has shown it.
pub(crate) fn name_caller(head: &mut Parts, source: &Source) {
    if let Some(peer) = &source.peer {
        head.headers.insert(CLIENT_CERT, peer.forwarded.clone());
    }
}

/// What an answer's head says of the connection that it came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// One thing.
    Sound,
    /// Where the answer ends was told twice: the connection takes no other request.
    Doubtful,
}

/// Makes a received answer into one to hand on: what belongs to the hop that it came by goes.
///
/// # Errors
/// What no answer may have, because its bytes would mean one thing here and another to the caller.
pub(crate) fn prepare_response(head: &mut http::response::Parts) -> Result<Framing, &'static str> {
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        // RFC 9110 section 15.2.2: nobody asked for it, since this hop does not pass `Upgrade` on.
        return Err("it switched protocols without being asked to");
    }
    let (found, _) = look(&head.headers);
    if found.other_coding {
        return Err("its answer has a transfer coding other than chunked");
    }
    let chunked = found.chunked;
    // RFC 9112 section 6.3: chunked is what framed the body, and a length beside it is a lie.
    let framing = match chunked && found.lengths > 0 {
        true => Framing::Doubtful,
        false => Framing::Sound,
    };
    let odd_length = found.odd_length && !chunked;
    if found.connection || found.hop_by_hop {
        let named = named_by_connection(&head.headers, found.names_fields);
        take_out(&mut head.headers, |name| match *name {
            CONTENT_LENGTH => chunked,
            TE | TRANSFER_ENCODING => true,
            _ => is_hop_by_hop(name) || named.contains(name),
        });
    }
    if odd_length {
        let length = only_length(&head.headers).ok_or("its answer tells two lengths, or one that is none")?;
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    // RFC 9110 section 2.5: an intermediary sends its own version, not the one that it received.
    head.version = Version::HTTP_11;
    Ok(framing)
}

/// RFC 9110 section 8.6: one length that is told several times, in lines or in a list, is one. hyper looks at them only
/// where there is a body, and an answer to HEAD has none.
fn only_length(headers: &HeaderMap) -> Option<u64> {
    let lines = headers.get_all(CONTENT_LENGTH).iter();
    let mut told = lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(|length| {
            let digits = std::str::from_utf8(length.trim_ascii()).ok()?;
            let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
            digits.parse::<u64>().ok().filter(|_| is_number)
        });
    let first = told.next()??;
    told.all(|other| other == Some(first)).then_some(first)
}

/// Makes an interim answer that was received into one to hand on. It has no body, and so nothing to say about one
/// (RFC 9110 section 8.6, RFC 9112 section 6.1).
pub(crate) fn prepare_interim(headers: &mut HeaderMap) {
    let named = named_by_connection(headers, look(headers).0.names_fields);
    take_out(headers, |name| {
        matches!(*name, CONTENT_LENGTH | TRANSFER_ENCODING | TE)
            || is_hop_by_hop(name)
            || named.contains(name)
    });
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(TE).iter().filter_map(|value| value.to_str().ok());
    values.any(|value| {
        value
            .split(',')
            .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
    })
}

/// RFC 9110 section 7.6.1: `Connection`, and the fields that are of one connection by custom.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(*name, CONNECTION | UPGRADE) || *name == KEEP_ALIVE || *name == PROXY_CONNECTION
}

/// The fields that `Connection` names (RFC 9110 section 7.6.1). A name that is none is no reason to pass the others.
fn named_by_connection(headers: &HeaderMap, names_fields: bool) -> Vec<HeaderName> {
    if !names_fields {
        return Vec::new();
    }
    let lines = headers.get_all(CONNECTION).iter();
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        // Naming a field that the message cannot do without does not make it one of the connection.
        .filter(|name| !matches!(*name, HOST | CONTENT_LENGTH | TRANSFER_ENCODING | TE))
        .collect()
}

/// Takes fields out of a head and leaves the others in their order, for which there are servers and callers that care.
/// `HeaderMap` puts its last field into the gap that one leaves, so what stands behind the first that goes is taken off
/// from the end, and put back. Mostly nothing stands there, since `Connection` is written last.
fn take_out(headers: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    let Some(first) = headers.keys().position(&goes) else {
        return;
    };
    let single = headers.len() == headers.keys_len();
    let mut behind = Vec::new();
    while let Some(last) = headers.keys_len().checked_sub(1).filter(|last| *last >= first) {
        let Some(name) = headers.keys().nth(last).cloned() else {
            break;
        };
        if goes(&name) {
            headers.remove(name);
        } else if single {
            // Nearly always, and the cheaper way.
            if let Some(value) = headers.remove(&name) {
                behind.push((name, value));
            }
        } else if let Entry::Occupied(field) = headers.entry(name) {
            let (name, values) = field.remove_entry_mult();
            let begin = behind.len();
            behind.extend(values.map(|value| (name.clone(), value)));
            behind[begin..].reverse();
        }
    }
    for (name, value) in behind.into_iter().rev() {
        headers.append(name, value);
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
        let found = look(&head.headers).0;
        prepare_request(&mut head, "fallback", found);
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
    fn what_only_the_sidecar_says_ends_here_however_it_is_written() {
        for (name, ours) in [
            ("x-forwarded-client-cert", true),
            ("x_forwarded_client_cert", true),
            ("x-forwarded_client-cert", true),
            ("x-outrigger-source", true),
            ("x_outrigger_source", true),
            ("x-outrigger-mirror", false),
            ("x-outrigger", false),
            ("x-forwarded-client-certs", false),
            ("x-forwarded-for", false),
            ("forwarded", false),
            ("x", false),
        ] {
            let head = prepared("/", &[("host", "a"), (name, "1")]);
            assert_eq!(!head.headers.contains_key(name), ours, "{name}");
        }
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
        let head = prepared("http://reviews:80/a?b=c", &[("host", "other")]);
        assert_eq!(head.uri.to_string(), "/a?b=c");
        assert_eq!(head.headers["host"], "reviews:80");
    }

    #[test]
    fn a_full_url_without_a_path_becomes_the_root() {
        assert_eq!(prepared("http://reviews", &[("host", "a")]).uri.to_string(), "/");
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

    #[test]
    fn what_goes_leaves_the_order_of_what_stays_and_of_its_values() {
        let fields = [
            ("a", "1"),
            ("b", "2"),
            ("a", "3"),
            ("c", "4"),
            ("b", "5"),
            ("d", "6"),
            ("e", "7"),
        ];
        let names = ["a", "b", "c", "d", "e"];
        for going in 0..1 << names.len() {
            let goes = |name: &HeaderName| {
                let place = names.iter().position(|other| name == other).unwrap();
                going >> place & 1 == 1
            };
            let mut head = head("/", &fields).headers;
            take_out(&mut head, goes);
            let left: Vec<_> = head
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_bytes()))
                .collect();
            let in_order = names.iter().filter(|name| !goes(&HeaderName::from_static(name)));
            let expected: Vec<_> = in_order
                .flat_map(|name| fields.iter().filter(move |(other, _)| other == name))
                .map(|(name, value)| (*name, value.as_bytes()))
                .collect();
            assert_eq!(left, expected, "{going:b}");
        }
    }

    #[test]
    fn one_length_told_several_times_is_one_and_two_are_none() {
        for (lines, length) in [
            (&["5"][..], Some(5)),
            (&["5", "5"], Some(5)),
            (&["5, 5", "05"], Some(5)),
            (&["5", "6"], None),
            (&["5,6"], None),
            (&["5,"], None),
            (&["+5"], None),
            (&[""], None),
            (&["99999999999999999999"], None),
        ] {
            let fields: Vec<_> = lines.iter().map(|line| ("content-length", *line)).collect();
            assert_eq!(only_length(&head("/", &fields).headers), length, "{lines:?}");
        }
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
        let found = look(&head.headers).0;
        prepare_request(&mut head, "reviews", found);
        assert_eq!(head.headers["host"], "reviews");
        assert_eq!(head.version, Version::HTTP_11);
    }
}
