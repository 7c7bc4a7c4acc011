//! What reads bytes of somebody who has not said who he is, or of a file that anybody wrote, each as one function that must
//! hold for every input: it does not panic, and what it made of the bytes is what it may make of them.
//!
//! The fuzz targets of `fuzz/` call these, and so do the tests below, on the corpus of `fuzz/` and on what a few changes make of
//! it. Nothing of it is compiled into the sidecar.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Version};
use outrigger_config::identity::SpiffeId;

use crate::http1;
use crate::listener::unknown;
use crate::names;
use crate::request::headers;
use crate::tls;

/// The most of a PROXY protocol header that may be waited for, its last byte left out.
const ANNOUNCED_MAX: usize = 4096;

/// The header of the PROXY protocol.
pub fn announced(bytes: &[u8]) {
    let told = unknown::announced(bytes);
    if let Ok(Some(length)) = told {
        assert!(
            (1..=bytes.len()).contains(&length),
            "a header longer than what is there"
        );
        assert_eq!(
            unknown::announced(&bytes[..length]),
            told,
            "what is behind it changed it"
        );
    }
    if told == Ok(None) {
        assert!(bytes.len() < ANNOUNCED_MAX, "{} bytes and no end", bytes.len());
    }
    for cut in 0..bytes.len() {
        // What was refused stays refused, and what was whole stays whole.
        match unknown::announced(&bytes[..cut]) {
            Ok(None) => {}
            early => {
                assert_eq!(early, told, "{cut} bytes told more than all of them");
                break;
            }
        }
    }
}

/// The first bytes of a connection: do they open HTTP/2?
pub fn opening(bytes: &[u8]) {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let expected = if bytes.starts_with(PREFACE) {
        Some(true)
    } else if PREFACE.starts_with(bytes) {
        None
    } else {
        Some(false)
    };
    assert_eq!(unknown::speaks_http2(bytes), expected);
}

/// A message to the DNS listener.
pub fn dns_question(bytes: &[u8]) {
    let answer = names::answer(bytes);
    if let Some(answer) = answer {
        assert_eq!(answer[..2], bytes[..2], "another question is answered");
        assert!(answer[2] & 0x80 != 0, "the answer is a question");
        assert!(bytes[2] & 0x80 == 0, "an answer is answered");
        // RFC 1035 section 4.2.1: what everybody can take by UDP.
        assert!(answer.len() <= 512, "{} bytes", answer.len());
    }
}

/// A SPIFFE ID, which goes into a header as it is.
pub fn spiffe_id(text: &str) {
    let Ok(id) = SpiffeId::parse(text) else { return };
    assert_eq!(id.as_str(), text);
    assert!(text.starts_with(&format!("spiffe://{}", id.trust_domain())));
    // RFC 9110 section 5.5, and the marks of `x-forwarded-client-cert`.
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"\";,=\\%?#@".contains(&byte);
    assert!(text.bytes().all(plain), "{text:?} would have to be quoted");
}

/// A caller's certificate, and what the application is told of it.
pub fn certificate(der: &[u8]) {
    let Some((id, told)) = tls::read_of_a_caller(der) else {
        return;
    };
    spiffe_id(id.as_str());
    let told = told.to_str().unwrap_or_default();
    let parts: Vec<_> = told.split(';').collect();
    let [by, hash, uri] = parts[..] else {
        panic!("{told:?} has other parts than it may");
    };
    assert_eq!(by.strip_prefix("By="), Some(id.as_str()));
    assert_eq!(uri.strip_prefix("URI="), Some(id.as_str()));
    let hash = hash.strip_prefix("Hash=").unwrap_or_default();
    assert!(
        hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{hash:?}"
    );
}

/// The files of an identity, of which the first stands for all: none of them makes one. Nor does it as an agent of SPIFFE
/// would send it.
pub fn identity_files(bytes: &[u8]) {
    let now = std::time::SystemTime::UNIX_EPOCH;
    let revoked = std::sync::Arc::default();
    assert!(tls::identity::Identity::from_pem(bytes, bytes, bytes, &revoked, now).is_err());
    assert!(tls::identity::Identity::from_der(bytes, bytes, bytes, &revoked, now).is_err());
}

/// The head of a request, in lines: method, target and version, then its fields.
pub fn request_head(bytes: &[u8]) {
    let Some(mut head) = request(bytes) else { return };
    let before = head.clone();
    if headers::asked(&head).is_err() {
        return;
    }
    prepare(&mut head);
    assert_eq!(head.version, Version::HTTP_11);
    assert!(head.uri.scheme().is_none() && head.uri.authority().is_none());
    assert_eq!(head.headers.get_all(HOST).iter().count(), 1);
    let codings = head.headers.get_all(TRANSFER_ENCODING).iter().count();
    assert!(codings <= 1 && (codings == 0 || !head.headers.contains_key(CONTENT_LENGTH)));
    let te: Vec<_> = head.headers.get_all(TE).iter().collect();
    assert!(te.is_empty() || te == ["trailers"], "{te:?}");
    is_left(&before.headers, &head.headers, true);
    let once = head.headers.clone();
    prepare(&mut head);
    assert_eq!(head.headers, once, "another hop changes it again");
}

fn prepare(head: &mut Parts) {
    let (found, _) = headers::look(&head.headers);
    headers::prepare_request(head, "fallback", found);
}

/// The head of an answer: the same lines, of which the first tells nothing.
pub fn answer_head(bytes: &[u8]) {
    let Some(asked) = request(bytes) else { return };
    let (mut head, ()) = http::Response::new(()).into_parts();
    head.headers = asked.headers;
    let before = head.headers.clone();
    if headers::prepare_response(&mut head).is_err() {
        return;
    }
    assert!(!head.headers.contains_key(TE) && !head.headers.contains_key(TRANSFER_ENCODING));
    is_left(&before, &head.headers, false);
}

/// What an endpoint sends by HTTP/1.1: heads, then a body, and what is behind it. Where it is cut changes nothing.
pub fn answer(bytes: &[u8]) {
    let whole = read_answer(&[bytes]);
    for cut in 0..bytes.len() {
        let (one, two) = bytes.split_at(cut);
        assert_eq!(read_answer(&[one, two]), whole, "cut at {cut}");
    }
}

/// Reads an answer that comes in these pieces: its status, the bytes of its body, and what is left when it is over. `None`: it
/// has not ended. What breaks off ends for its reader with the first fault.
fn read_answer(pieces: &[&[u8]]) -> Option<(u16, Vec<u8>, Vec<u8>)> {
    let mut came = Bytes::new();
    let mut head = None;
    let mut body = Vec::new();
    for piece in pieces {
        came = Bytes::from([&came, *piece].concat());
        while head.is_none() && !came.is_empty() {
            let Some((said, length)) = http1::read_head(&came, &mut HeaderMap::new(), false).ok()? else {
                break;
            };
            assert!(
                (1..=came.len()).contains(&length),
                "a head longer than what is there"
            );
            came = came.slice(length..);
            if let http1::Said::Answer(answer) = said {
                head = Some((answer.status.as_u16(), answer.content));
            }
        }
        let Some((_, content)) = &mut head else { continue };
        while let Some(frame) = content.next(&mut came).ok()? {
            body.extend(frame.into_data().unwrap_or_default());
        }
        assert!(content.is_over() || came.is_empty(), "bytes that nobody reads");
    }
    let (status, mut content) = head?;
    content.closed().then(|| (status, body, came.to_vec()))
}

/// Whether of the fields that this hop has no say in all are left, in their order, that are no one's of this hop.
fn is_left(before: &HeaderMap, after: &HeaderMap, of_request: bool) {
    let settled = [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, TE];
    let lines = before.get_all(CONNECTION).iter();
    let named: Vec<HeaderName> = lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    let hyphens = |name: &HeaderName| name.as_str().replace('_', "-");
    let goes = |name: &HeaderName| {
        let ours = hyphens(name) == "x-forwarded-client-cert"
            || hyphens(name).starts_with("x-outrigger-") && name.as_str() != "x-outrigger-mirror";
        [CONNECTION, UPGRADE].contains(name)
            || ["keep-alive", "proxy-connection"].contains(&name.as_str())
            || named.contains(name)
            || of_request && (ours || name.as_str() == "expect")
    };
    let stays = |(name, _): &(&HeaderName, &HeaderValue)| !settled.contains(name);
    let expected: Vec<_> = before
        .iter()
        .filter(stays)
        .filter(|(name, _)| !goes(name))
        .collect();
    let found: Vec<_> = after.iter().filter(stays).collect();
    assert_eq!(found, expected);
}

/// A head of these lines, with whatever of them can be one.
fn request(bytes: &[u8]) -> Option<Parts> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut words = lines.next()?.split(|byte| *byte == b' ');
    let version = match words.next()? {
        b"1.0" => Version::HTTP_10,
        b"2" => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    let method = Method::from_bytes(words.next()?).ok()?;
    let mut request = Request::builder()
        .version(version)
        .method(method)
        .uri(words.next()?);
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        request = request.header(HeaderName::from_bytes(&line[..colon]).ok()?, value);
    }
    Some(request.body(()).ok()?.into_parts().0)
}

/// A file of an operator: a service, a mesh, a bootstrap.
pub fn config(text: &str) {
    let problems = match outrigger_config::is_bootstrap(text) {
        true => outrigger_config::read_bootstrap("file", text).err(),
        false => outrigger_config::split("file", text)
            .and_then(|documents| outrigger_config::check(&documents))
            .err(),
    };
    let Some(problems) = problems else { return };
    assert!(!problems.is_empty(), "refused without a word");
    for problem in problems {
        assert!(problem.line >= 1 && problem.column >= 1, "{problem}");
        assert!(!problem.message.is_empty());
        let _ = problem.snippet(text);
    }
}

#[cfg(test)]
#[path = "../../fuzz/corpus.rs"]
mod corpus;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::corpus::{Target, change, corpus, has_each_target, make, text};
    use super::*;

    /// What is called, by the name of its target; text that is none is left out.
    const TARGETS: &[(&str, Target)] = &[
        ("announced", announced),
        ("opening", opening),
        ("dns_question", dns_question),
        ("spiffe_id", |bytes| text(bytes, spiffe_id)),
        ("certificate", certificate),
        ("identity_files", identity_files),
        ("request_head", request_head),
        ("answer_head", answer_head),
        ("answer", answer),
        ("config", |bytes| text(bytes, config)),
    ];

    #[test]
    fn every_target_has_a_file_and_a_corpus_and_holds_on_it() {
        has_each_target("outrigger_proxy", TARGETS);
    }

    #[test]
    fn the_corpus_of_certificates_has_one_that_names_a_caller() {
        let known = corpus("certificate");
        assert!(known.iter().any(|der| tls::read_of_a_caller(der).is_some()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_target_holds_on_what_a_few_changes_make_of_its_corpus(
            seed in any::<Index>(),
            changes in prop::collection::vec(change(), 0..6),
        ) {
            for (name, target) in TARGETS {
                let corpus = corpus(name);
                let mut bytes = seed.get(&corpus).clone();
                changes.iter().for_each(|change| make(&mut bytes, change));
                target(&bytes);
            }
        }

        #[test]
        fn every_target_holds_on_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for (_, target) in TARGETS {
                target(&bytes);
            }
        }
    }
}
