//! The head of an answer as it is read.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use hyper::ext::ReasonPhrase;

use crate::http1::{Content, FIELDS_MAX, Wrong};

/// What an endpoint has said.
#[derive(Debug)]
pub(crate) enum Said {
    /// Something before its answer (RFC 9110 section 15.2).
    Interim(StatusCode, HeaderMap),
    /// The head of its answer.
    Answer(Head),
}

/// The head of an answer.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) version: Version,
    pub(crate) fields: HeaderMap,
    /// The words beside the status, where they are not the usual ones.
    pub(crate) words: Option<ReasonPhrase>,
    /// What follows it.
    pub(crate) content: Content,
    /// Whether its connection may take another request behind it (RFC 9112 section 9.3).
    pub(crate) keeps: bool,
}

/// Reads a head and says how many bytes it took. `None`: it has not come to its end. `fields` is an empty map with room,
/// taken when there is a head. `to_head`: whether a HEAD is answered, whose answer has no body.
///
/// # Errors
/// When it is none.
pub(crate) fn read_head(
    bytes: &Bytes,
    fields: &mut HeaderMap,
    to_head: bool,
) -> Result<Option<(Said, usize)>, Wrong> {
    let mut lines = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut lines) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(said_of(error)),
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or("its answer has a status that is none")?;
    let version = match parsed.version {
        Some(0) => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    let words = parsed
        .reason
        .filter(|words| Some(*words) != status.canonical_reason());
    let words = words.and_then(|words| ReasonPhrase::try_from(words.as_bytes()).ok());
    let mut fields = std::mem::take(fields);
    let mut told = Told::default();
    for line in parsed.headers {
        let name = HeaderName::from_bytes(line.name.as_bytes());
        let name = name.map_err(|_| "its answer has a field whose name is none")?;
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(line.value));
        let value = value.map_err(|_| "its answer has a field whose value is none")?;
        match name {
            CONNECTION => told.connection(value.as_bytes()),
            TRANSFER_ENCODING => told.coding(value.as_bytes()),
            CONTENT_LENGTH => told.length(value.as_bytes()),
            _ => {}
        }
        fields.append(name, value);
    }
    if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Some((Said::Interim(status, fields), length)));
    }
    let content = told.content(status, version, to_head)?;
    let keeps = match version {
        Version::HTTP_10 => told.stays && !told.closes,
        _ => !told.closes,
    };
    let head = Head {
        status,
        version,
        fields,
        words,
        // Behind what ends with its connection, or belongs to another protocol, there is nothing.
        keeps: keeps && content != Content::UntilClose && status != StatusCode::SWITCHING_PROTOCOLS,
        content,
    };
    Ok(Some((Said::Answer(head), length)))
}

/// What the fields of a head tell of its body and its connection.
#[derive(Debug, Default)]
struct Told {
    closes: bool,
    stays: bool,
    coded: bool,
    /// Whether the last coding is chunked.
    chunked: bool,
    length: Option<u64>,
    odd_length: bool,
}

impl Told {
    fn connection(&mut self, options: &[u8]) {
        for option in options.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            self.closes |= option.eq_ignore_ascii_case(b"close");
            self.stays |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    fn coding(&mut self, codings: &[u8]) {
        self.coded = true;
        let last = codings.rsplit(|byte| *byte == b',').next().unwrap_or_default();
        self.chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
    }

    fn length(&mut self, lengths: &[u8]) {
        for length in lengths.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            let digits = std::str::from_utf8(length).ok();
            let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()));
            let length = digits.and_then(|digits| digits.parse().ok());
            self.odd_length |= length.is_none() || self.length.is_some_and(|other| Some(other) != length);
            self.length = length;
        }
    }

    /// RFC 9112 section 6.3.
    fn content(&self, status: StatusCode, version: Version, to_head: bool) -> Result<Content, Wrong> {
        let bodiless = [
            StatusCode::SWITCHING_PROTOCOLS,
            StatusCode::NO_CONTENT,
            StatusCode::NOT_MODIFIED,
        ];
        if to_head || bodiless.contains(&status) {
            return Ok(Content::OVER);
        }
        match (self.coded, self.length) {
            // RFC 9112 section 6.1: HTTP/1.0 has no codings, and whoever sends one may mean something else by it.
            (true, _) if version == Version::HTTP_10 => Err("it has a transfer coding in HTTP/1.0"),
            (true, _) if self.chunked => Ok(Content::chunked()),
            (true, _) => Ok(Content::UntilClose),
            (false, _) if self.odd_length => Err("its answer tells two lengths, or one that is none"),
            (false, Some(length)) => Ok(Content::Length(length)),
            (false, None) => Ok(Content::UntilClose),
        }
    }
}

fn said_of(error: httparse::Error) -> Wrong {
    match error {
        httparse::Error::HeaderName => "invalid HTTP header parsed: a name that is none",
        httparse::Error::HeaderValue => "invalid HTTP header parsed: a value that is none",
        httparse::Error::NewLine => "invalid HTTP header parsed: a line without its end",
        httparse::Error::Status => "invalid HTTP status-code parsed",
        httparse::Error::Token => "invalid character in its head",
        httparse::Error::TooManyHeaders => "more fields than a head may have",
        httparse::Error::Version => "invalid HTTP version parsed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, to_head: bool) -> Result<Option<(Said, usize)>, Wrong> {
        read_head(
            &Bytes::copy_from_slice(text.as_bytes()),
            &mut HeaderMap::new(),
            to_head,
        )
    }

    fn answer(text: &str, to_head: bool) -> Result<(Content, bool), Wrong> {
        let whole = format!("{text}\r\n\r\n");
        match read(&whole, to_head)? {
            Some((Said::Answer(head), length)) if length == whole.len() => Ok((head.content, head.keeps)),
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn a_head_tells_how_its_body_ends_and_what_becomes_of_the_connection() {
        let chunked = || Ok((Content::chunked(), true));
        for (text, expected) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5",
                Ok((Content::Length(5), true)),
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-length: 5",
                Ok((Content::Length(5), true)),
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5, 5",
                Ok((Content::Length(5), true)),
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0", Ok((Content::OVER, true))),
            ("HTTP/1.1 200 OK", Ok((Content::UntilClose, false))),
            ("HTTP/1.1 204 No Content", Ok((Content::OVER, true))),
            (
                "HTTP/1.1 304 Not Modified\r\nContent-Length: 5",
                Ok((Content::OVER, true)),
            ),
            ("HTTP/1.1 101 Switching Protocols", Ok((Content::OVER, false))),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", chunked()),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 5",
                chunked(),
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked", chunked()),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: gzip",
                Ok((Content::UntilClose, false)),
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close",
                Ok((Content::Length(5), false)),
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\nConnection: keep-alive",
                Ok((Content::Length(5), false)),
            ),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 5",
                Ok((Content::Length(5), false)),
            ),
            (
                "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive",
                Ok((Content::Length(5), true)),
            ),
        ] {
            assert_eq!(answer(text, false), expected, "{text:?}");
        }
        assert_eq!(
            answer("HTTP/1.1 200 OK\r\nContent-Length: 5", true),
            Ok((Content::OVER, true))
        );
    }

    #[test]
    fn what_is_no_head_is_refused() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 6",
            "HTTP/1.1 200 OK\r\nContent-Length: +5",
            "HTTP/1.1 200 OK\r\nContent-Length: ",
            "HTTP/1.1 200 OK\r\nContent-Length: 5,",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
            "HTTP/2.0 200 OK",
            "HTTP/1.1 2000 OK",
            "HTTP/1.1 099 OK",
            "HTTP/1.1 200 OK\r\nA : b",
            "HTTP/1.1 200 OK\r\n A: b",
            "HTTP/1.1 200 OK\r\nA: b\r\n c",
            "HTTP/1.1 200 OK\r\nA: b\x00",
            "hello",
        ] {
            assert!(read(&format!("{text}\r\n\r\n"), false).is_err(), "{text:?}");
        }
        let many = "a: b\r\n".repeat(FIELDS_MAX + 1);
        assert!(read(&format!("HTTP/1.1 200 OK\r\n{many}\r\n"), false).is_err());
    }

    #[test]
    fn a_head_is_whole_only_with_its_last_byte() {
        let text = "HTTP/1.1 299 All well\r\nserver: x\r\nset-cookie: a\r\nset-cookie: b\r\ncontent-length: 2\r\n\r\n";
        for cut in 0..text.len() {
            assert!(matches!(read(&text[..cut], false), Ok(None)), "{cut} bytes");
        }
        let Ok(Some((Said::Answer(head), length))) = read(&format!("{text}ok"), false) else {
            panic!("it is whole");
        };
        assert_eq!(length, text.len());
        assert_eq!(head.words.unwrap().as_bytes(), b"All well");
        let cookies: Vec<_> = head.fields.get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a", "b"]);
    }

    #[test]
    fn what_comes_before_the_answer_is_no_answer() {
        for status in [100, 102, 103, 199] {
            let said = read(&format!("HTTP/1.1 {status} x\r\nlink: y\r\n\r\n"), false);
            let Ok(Some((Said::Interim(told, fields), _))) = said else {
                panic!("{status}: {said:?}");
            };
            assert_eq!(
                (told.as_u16(), &fields["link"]),
                (status, &HeaderValue::from_static("y"))
            );
        }
    }
}
