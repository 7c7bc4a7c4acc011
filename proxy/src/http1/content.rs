//! The body of an answer as it is read.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};

use crate::http1::{FIELDS_MAX, Wrong};

/// What a body may spend on the extensions of its pieces, and on its trailers: hyper's limits, as for callers.
const EXTENSIONS_MAX: usize = 16 * 1024;
const TRAILERS_MAX: usize = 16 * 1024;

/// What of a body is still to come (RFC 9112 section 6.3).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// So many bytes.
    Length(u64),
    /// Pieces, each with its length.
    Chunked(Box<Chunks>),
    /// All until the endpoint closes.
    UntilClose,
}

/// Where a body in pieces stands (RFC 9112 section 7.1).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunks {
    at: At,
    /// What of the extensions has come, of all pieces together.
    extensions: usize,
    /// The trailers as far as they have come.
    trailers: BytesMut,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Before the first digit of a length.
    #[default]
    Begin,
    /// Behind a digit.
    Size(u64),
    /// Behind white space that follows the digits.
    Space(u64),
    /// In an extension.
    Extension(u64),
    /// Behind the CR of a length.
    SizeCr(u64),
    /// In a piece of which so much is to come.
    Data(u64),
    /// Behind a piece.
    DataOver,
    /// Behind the CR behind a piece.
    DataCr,
    /// At the begin of a line behind the last piece.
    Trailer,
    /// In such a line.
    TrailerLine,
    /// Behind the CR of such a line.
    TrailerCr,
    /// Behind a CR that is all of its line.
    EndCr,
    Over,
}

impl Content {
    /// Nothing comes.
    pub(crate) const OVER: Self = Self::Length(0);

    /// A body in pieces, of which none has come.
    pub(super) fn chunked() -> Self {
        Self::Chunked(Box::default())
    }

    /// Whether all of it has come.
    pub(crate) fn is_over(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.at == At::Over,
            Self::UntilClose => false,
        }
    }

    /// How much is to come, as far as that is known.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Length(left) => SizeHint::with_exact(*left),
            Self::Chunked(_) if self.is_over() => SizeHint::with_exact(0),
            Self::Chunked(_) | Self::UntilClose => SizeHint::default(),
        }
    }

    /// The next frame that these bytes hold, which are taken off them. `None`: they are used up, or the body is over.
    ///
    /// # Errors
    /// When they are no body.
    pub(crate) fn next(&mut self, bytes: &mut Bytes) -> Result<Option<Frame<Bytes>>, Wrong> {
        match self {
            Self::Length(left) => Ok(take(bytes, left).map(Frame::data)),
            Self::Chunked(chunks) => chunks.next(bytes),
            Self::UntilClose => Ok((!bytes.is_empty()).then(|| Frame::data(std::mem::take(bytes)))),
        }
    }

    /// The endpoint has closed. Whether this was the end of the body.
    pub(crate) fn closed(&mut self) -> bool {
        if *self == Self::UntilClose {
            *self = Self::OVER;
        }
        self.is_over()
    }
}

/// Takes what is there off a piece of which so much is left.
fn take(bytes: &mut Bytes, left: &mut u64) -> Option<Bytes> {
    let most = usize::try_from(*left).unwrap_or(usize::MAX);
    let taken = bytes.split_to(bytes.len().min(most));
    *left -= taken.len() as u64;
    (!taken.is_empty()).then_some(taken)
}

impl Chunks {
    fn next(&mut self, bytes: &mut Bytes) -> Result<Option<Frame<Bytes>>, Wrong> {
        loop {
            if let At::Data(left) = &mut self.at {
                let Some(data) = take(bytes, left) else {
                    return Ok(None);
                };
                if *left == 0 {
                    self.at = At::DataOver;
                }
                return Ok(Some(Frame::data(data)));
            }
            if self.at == At::Over || bytes.is_empty() {
                return Ok(None);
            }
            self.step(bytes.get_u8())?;
            if self.at == At::Over && !self.trailers.is_empty() {
                return trailers(&std::mem::take(&mut self.trailers))
                    .map(|fields| Some(Frame::trailers(fields)));
            }
        }
    }

    /// Goes on by one byte that is none of a piece.
    fn step(&mut self, byte: u8) -> Result<(), Wrong> {
        self.at = match (self.at, byte) {
            (At::Begin, _) => At::Size(digit(byte).ok_or("a piece whose length is none")?),
            (At::Size(size) | At::Space(size), b'\r') => At::SizeCr(size),
            (At::Size(size) | At::Space(size), b';') => At::Extension(size),
            (At::Size(size) | At::Space(size), b' ' | b'\t') => At::Space(size),
            (At::Size(size), _) => {
                let digit = digit(byte).ok_or("a piece whose length is none")?;
                let size = size.checked_mul(16).map(|size| size + digit);
                At::Size(size.ok_or("a piece that is too long")?)
            }
            (At::Extension(size), b'\r') => At::SizeCr(size),
            (At::Extension(size), byte) if byte != b'\n' && self.extensions < EXTENSIONS_MAX => {
                self.extensions += 1;
                At::Extension(size)
            }
            (At::Extension(_), _) => return Err("a piece whose extension does not end"),
            (At::SizeCr(0), b'\n') => At::Trailer,
            (At::SizeCr(size), b'\n') => At::Data(size),
            (At::DataOver, b'\r') => At::DataCr,
            (At::DataCr, b'\n') => At::Begin,
            (At::DataOver | At::DataCr, _) => return Err("a piece that is longer than its length"),
            (At::Trailer, b'\r') => At::EndCr,
            (At::EndCr, b'\n') => At::Over,
            (At::Trailer | At::TrailerLine, b'\n') => return Err("the last chunk is not followed by an end"),
            (At::Trailer | At::TrailerLine, _) => {
                if self.trailers.len() >= TRAILERS_MAX {
                    return Err("more trailers than there may be");
                }
                self.trailers.extend_from_slice(&[byte]);
                match byte {
                    b'\r' => At::TrailerCr,
                    _ => At::TrailerLine,
                }
            }
            (At::TrailerCr, b'\n') => {
                self.trailers.extend_from_slice(b"\n");
                At::Trailer
            }
            (At::Space(_) | At::SizeCr(_) | At::TrailerCr | At::EndCr, _) => {
                return Err("a line that does not end as lines do");
            }
            (At::Data(_) | At::Over, _) => self.at,
        };
        Ok(())
    }
}

fn digit(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}

/// The fields of whole lines.
fn trailers(lines: &[u8]) -> Result<HeaderMap, Wrong> {
    const NONE: Wrong = "a trailer that is no field";
    let mut parsed = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let block = [lines, b"\r\n"].concat();
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(&block, &mut parsed) else {
        return Err(NONE);
    };
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| NONE)?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| NONE)?;
        trailers.append(name, value);
    }
    Ok(trailers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a body is made of: its bytes, its trailers, and what is left behind it; `None` where it has not ended.
    type Read = Result<Option<(Vec<u8>, Vec<String>, Vec<u8>)>, Wrong>;

    /// Reads a body that comes in these pieces.
    fn read(mut content: Content, pieces: &[&[u8]]) -> Read {
        let (mut data, mut fields) = (Vec::new(), Vec::new());
        let mut rest = Vec::new();
        for piece in pieces {
            let mut bytes = Bytes::copy_from_slice(piece);
            while let Some(frame) = content.next(&mut bytes)? {
                match frame.into_data() {
                    Ok(more) => {
                        assert!(!more.is_empty(), "a frame of nothing");
                        data.extend_from_slice(&more);
                    }
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap();
                        fields.extend(
                            trailers
                                .iter()
                                .map(|(name, value)| format!("{name}={}", value.to_str().unwrap())),
                        );
                    }
                }
            }
            rest.extend_from_slice(&bytes);
        }
        Ok(content.is_over().then_some((data, fields, rest)))
    }

    fn whole(data: &str, trailers: &[&str], rest: &str) -> Read {
        let trailers = trailers.iter().map(|field| (*field).to_owned()).collect();
        Ok(Some((data.into(), trailers, rest.into())))
    }

    const GOOD: &[(&str, &str, &[&str], &str)] = &[
        ("0\r\n\r\n", "", &[], ""),
        ("5\r\nhello\r\n0\r\n\r\nHTTP", "hello", &[], "HTTP"),
        ("5 \t\r\nhello\r\n00\r\n\r\n", "hello", &[], ""),
        (
            "5;a=\"b;c\"\r\nhello\r\n1;x\r\n!\r\n0;y\r\n\r\n",
            "hello!",
            &[],
            "",
        ),
        (
            "A\r\n0123456789\r\n0\r\nx-sum: 1\r\nX-More:  2 \r\n\r\n",
            "0123456789",
            &["x-sum=1", "x-more=2"],
            "",
        ),
    ];

    #[test]
    fn pieces_are_joined_wherever_they_are_cut() {
        for (text, data, trailers, rest) in GOOD {
            assert_eq!(
                read(Content::chunked(), &[text.as_bytes()]),
                whole(data, trailers, rest),
                "{text:?}"
            );
            for cut in 0..text.len() {
                let (one, two) = text.as_bytes().split_at(cut);
                assert_eq!(
                    read(Content::chunked(), &[one, two]),
                    whole(data, trailers, rest),
                    "{text:?} at {cut}"
                );
            }
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(
                read(Content::chunked(), &bytes),
                whole(data, trailers, rest),
                "{text:?}"
            );
        }
    }

    #[test]
    fn what_are_no_pieces_is_refused() {
        let long = format!("1;{}\r\n", "x".repeat(EXTENSIONS_MAX + 1));
        let trailers = format!("0\r\na: {}\r\n\r\n", "x".repeat(TRAILERS_MAX));
        let fields = format!("0\r\n{}\r\n", "a: b\r\n".repeat(FIELDS_MAX + 1));
        for text in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "0x5\r\n",
            " 5\r\n",
            "5\nhello",
            "5\r hello",
            "5\r\nhello\n",
            "5\r\nhello!\r\n",
            "5\r\nhello\rx",
            "5;\n",
            "5 5\r\n",
            "10000000000000000\r\n",
            "FFFFFFFFFFFFFFFFF\r\n",
            "0\r\n\n",
            "0\n\r\n",
            "0\r\nx-sum: 1\n\r\n",
            "0\r\nx-sum: 1\rx",
            "0\r\nnone\r\n\r\n",
            "0\r\n a: b\r\n\r\n",
            "0\r\na : b\r\n\r\n",
            "0\r\n\rx",
            &long,
            &trailers,
            &fields,
        ] {
            assert!(read(Content::chunked(), &[text.as_bytes()]).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_length_ends_where_it_says_and_what_has_none_ends_with_its_connection() {
        assert_eq!(
            read(Content::Length(5), &[b"hel", b"loHTTP"]),
            whole("hello", &[], "HTTP")
        );
        assert_eq!(read(Content::Length(5), &[b"hell"]), Ok(None));
        assert_eq!(read(Content::OVER, &[b"HTTP"]), whole("", &[], "HTTP"));
        let mut content = Content::UntilClose;
        assert!(content.next(&mut Bytes::from_static(b"all")).unwrap().is_some());
        assert!(!content.is_over() && content.closed() && content.is_over());
        assert!(!Content::Length(1).closed() && !Content::chunked().closed());
    }

    proptest! {
        #[test]
        fn no_bytes_break_it_and_where_they_are_cut_changes_nothing(
            bytes in prop::collection::vec(prop::sample::select(b"05afZ;: \t\r\n\r\n\r\nx".to_vec()), 0..60),
            begin in 0..3_usize,
            cut in 0..60_usize,
        ) {
            let begins: [&[u8]; 3] = [b"", b"5\r\nhello\r\n", b"0\r\n"];
            let bytes = [begins[begin], &bytes].concat();
            let (one, two) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(read(Content::chunked(), &[one, two]), read(Content::chunked(), &[&bytes]));
        }
    }
}
