//! A request as it is written: its head, and what stands around the pieces of its body.

use std::fmt::Write as _;

use bytes::{BufMut, BytesMut};
use http::header::{CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, Method, Uri};

use crate::http1::Wrong;

/// How the rest of a request's body is told from what comes after it (RFC 9112 section 6).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// So many bytes are left.
    Length(u64),
    /// In pieces, each with its length, and at the end the trailers with these names.
    Chunked(Vec<HeaderName>),
}

/// Writes the head of a request in origin form. `length`: that of its body, where it is known; `None` also for one that is
/// in pieces. A request without a body (`bodiless`) says nothing of one that its fields do not say.
pub(crate) fn write_head(
    out: &mut BytesMut,
    (method, target): (&Method, &Uri),
    fields: &HeaderMap,
    (bodiless, length): (bool, Option<u64>),
) -> Framing {
    out.put_slice(method.as_str().as_bytes());
    out.put_u8(b' ');
    write_target(out, target);
    out.put_slice(b" HTTP/1.1\r\n");
    // RFC 9112 section 6.1: where both are told, the pieces are what holds.
    let chunked = !bodiless && fields.contains_key(TRANSFER_ENCODING);
    let mut told = None;
    for (name, value) in fields {
        match *name {
            // Said again below, where there is a body.
            TRANSFER_ENCODING => {}
            CONTENT_LENGTH if chunked => {}
            CONTENT_LENGTH => {
                told = value.to_str().ok().and_then(|digits| digits.parse().ok());
                write_field(out, name.as_str(), value.as_bytes());
            }
            _ => write_field(out, name.as_str(), value.as_bytes()),
        }
    }
    let framing = match (told, length) {
        _ if bodiless => Framing::Length(0),
        (Some(length), _) => Framing::Length(length),
        (None, Some(length)) if !chunked => {
            // Infallible: a BytesMut grows.
            let _ = write!(out, "content-length: {length}\r\n");
            Framing::Length(length)
        }
        (None, _) => {
            write_field(out, TRANSFER_ENCODING.as_str(), b"chunked");
            Framing::Chunked(announced(fields))
        }
    };
    out.put_slice(b"\r\n");
    framing
}

/// The trailers that a head announces. Others have no place towards a hop of HTTP/1.1 (RFC 9110 section 6.5.1).
fn announced(fields: &HeaderMap) -> Vec<HeaderName> {
    let lines = fields.get_all(TRAILER).iter();
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect()
}

fn write_target(out: &mut BytesMut, target: &Uri) {
    let target = target.path_and_query().map_or("/", |target| target.as_str());
    // RFC 9112 section 3.2: the form of an origin begins with a slash, but for `OPTIONS *`.
    if !target.starts_with(['/', '*']) {
        out.put_u8(b'/');
    }
    out.put_slice(target.as_bytes());
}

fn write_field(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

impl Framing {
    /// Writes what stands before a piece of so many bytes. What stands behind it is [`Self::behind`].
    ///
    /// # Errors
    /// When the body is longer than its head has told.
    pub(crate) fn before(&mut self, out: &mut BytesMut, bytes: usize) -> Result<(), Wrong> {
        match self {
            Self::Length(left) => {
                let rest = left.checked_sub(bytes as u64);
                *left = rest.ok_or("its body is longer than its content-length")?;
            }
            Self::Chunked(_) => {
                let _ = write!(out, "{bytes:x}\r\n");
            }
        }
        Ok(())
    }

    /// What stands behind each piece.
    pub(crate) fn behind(&self) -> &'static [u8] {
        match self {
            Self::Length(_) => b"",
            Self::Chunked(_) => b"\r\n",
        }
    }

    /// Writes the end of a body.
    ///
    /// # Errors
    /// When the body is shorter than its head has told.
    pub(crate) fn end(&self, out: &mut BytesMut, trailers: Option<&HeaderMap>) -> Result<(), Wrong> {
        match self {
            // Trailers have no place behind a length; RFC 9110 section 6.5.1 lets a sender leave them out.
            Self::Length(0) => {}
            Self::Length(_) => return Err("its body is shorter than its content-length"),
            Self::Chunked(announced) => {
                out.put_slice(b"0\r\n");
                let trailers = trailers.into_iter().flatten();
                for (name, value) in trailers.filter(|(name, _)| announced.contains(name)) {
                    write_field(out, name.as_str(), value.as_bytes());
                }
                out.put_slice(b"\r\n");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: (bool, Option<u64>),
    ) -> (String, Framing) {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let mut out = BytesMut::new();
        let framing = write_head(&mut out, (&parts.method, &parts.uri), &parts.headers, body);
        (String::from_utf8(out.to_vec()).unwrap(), framing)
    }

    fn chunked() -> Framing {
        Framing::Chunked(Vec::new())
    }

    #[test]
    fn a_head_tells_how_its_body_ends_and_nothing_of_one_that_is_none() {
        const NONE: (bool, Option<u64>) = (true, None);
        for (method, fields, body, expected, framing) in [
            ("GET", &[][..], NONE, "", Framing::Length(0)),
            (
                "POST",
                &[("content-length", "0")],
                NONE,
                "content-length: 0\r\n",
                Framing::Length(0),
            ),
            (
                "POST",
                &[("content-length", "5")],
                (false, Some(5)),
                "content-length: 5\r\n",
                Framing::Length(5),
            ),
            (
                "POST",
                &[],
                (false, Some(5)),
                "content-length: 5\r\n",
                Framing::Length(5),
            ),
            (
                "GET",
                &[],
                (false, None),
                "transfer-encoding: chunked\r\n",
                chunked(),
            ),
            (
                "PUT",
                &[("transfer-encoding", "chunked")],
                (false, Some(5)),
                "transfer-encoding: chunked\r\n",
                chunked(),
            ),
            (
                "PUT",
                &[("transfer-encoding", "chunked")],
                NONE,
                "",
                Framing::Length(0),
            ),
            (
                "PUT",
                &[("content-length", "5"), ("transfer-encoding", "chunked")],
                (false, None),
                "transfer-encoding: chunked\r\n",
                chunked(),
            ),
        ] {
            let (text, told) = head(method, "/a?b", &[&[("host", "x")], fields].concat(), body);
            let lines = format!("{method} /a?b HTTP/1.1\r\nhost: x\r\n{expected}\r\n");
            assert_eq!((text, told), (lines, framing), "{method} {fields:?} {body:?}");
        }
    }

    #[test]
    fn a_target_is_in_the_form_of_an_origin() {
        for (target, expected) in [
            ("/", "/"),
            ("*", "*"),
            ("/a%20b?c=/d", "/a%20b?c=/d"),
            ("http://h?q", "/?q"),
        ] {
            let (text, _) = head("OPTIONS", target, &[], (true, None));
            assert_eq!(text, format!("OPTIONS {expected} HTTP/1.1\r\n\r\n"));
        }
    }

    #[test]
    fn a_body_is_as_long_as_it_was_told() {
        let mut out = BytesMut::new();
        let mut framing = Framing::Length(5);
        framing.before(&mut out, 3).unwrap();
        assert!(framing.end(&mut out, None).is_err());
        assert!(framing.before(&mut out, 3).is_err());
        framing.before(&mut out, 2).unwrap();
        framing.end(&mut out, None).unwrap();
        assert!(out.is_empty() && framing.behind().is_empty());
    }

    #[test]
    fn pieces_have_their_lengths_and_an_end_with_the_trailers_that_were_announced() {
        let mut out = BytesMut::new();
        let mut framing = Framing::Chunked(vec![HeaderName::from_static("x-sum")]);
        framing.before(&mut out, 31).unwrap();
        out.put_slice(framing.behind());
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", http::HeaderValue::from_static("1"));
        trailers.insert("x-more", http::HeaderValue::from_static("2"));
        framing.end(&mut out, Some(&trailers)).unwrap();
        assert_eq!(&out[..], b"1f\r\n\r\n0\r\nx-sum: 1\r\n\r\n");
    }
}
