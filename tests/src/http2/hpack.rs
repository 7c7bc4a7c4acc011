//! Header compression (RFC 7541): written in its plainest form, read in all of it that a sidecar sends.
//!
//! What is written is a literal without indexing, so that a test says bytes and nothing depends on what was said
//! before; what a test wants to be wrong, it writes by hand.

use std::collections::VecDeque;
use std::io;

/// RFC 7541 appendix A; the first has the index 1.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// The code of RFC 7541 appendix B as far as text needs it: the symbols of each length, in the order of their codes,
/// which count up by one (the code is canonical).
const HUFFMAN: [(u32, &[u8]); 10] = [
    (5, b"012aceiost"),
    (6, b" %-./3456789=A_bdfghlmnpru"),
    (7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, b"&*,;XZ"),
    (10, b"!\"()?"),
    (11, b"'+|"),
    (12, b"#>"),
    (13, b"\0$@[]~"),
    (14, b"^}"),
    (15, b"<`{"),
];

/// RFC 7541 section 4.1: what an entry counts beyond its bytes.
const ENTRY_OVERHEAD: usize = 32;

/// A field of a header block.
pub type Field = (String, String);

/// An integer with a prefix of so many bits (RFC 7541 section 5.1); `first` holds the bits before the prefix.
pub fn integer(first: u8, prefix: u32, value: usize) -> Vec<u8> {
    let most = (1_usize << prefix) - 1;
    let low = |value: usize| u8::try_from(value).expect("fewer than eight bits");
    if value < most {
        return vec![first | low(value)];
    }
    let mut bytes = vec![first | low(most)];
    let mut rest = value - most;
    while rest >= 128 {
        bytes.push(low(rest % 128) | 128);
        rest /= 128;
    }
    bytes.push(low(rest));
    bytes
}

/// A string without Huffman coding.
pub fn string(bytes: &[u8]) -> Vec<u8> {
    [integer(0, 7, bytes.len()), bytes.to_vec()].concat()
}

/// A literal field without indexing and with a new name.
pub fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    [vec![0], string(name), string(value)].concat()
}

/// A literal field that the other side is to remember.
pub fn remembered(name: &[u8], value: &[u8]) -> Vec<u8> {
    [vec![0x40], string(name), string(value)].concat()
}

/// A field by its index.
pub fn indexed(index: usize) -> Vec<u8> {
    integer(0x80, 7, index)
}

/// A header block of literals.
pub fn block<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(N, V)]) -> Vec<u8> {
    let literals = fields
        .iter()
        .map(|(name, value)| literal(name.as_ref(), value.as_ref()));
    literals.collect::<Vec<_>>().concat()
}

/// Reads header blocks, one after the other.
#[derive(Debug)]
pub struct Decoder {
    dynamic: VecDeque<Field>,
    size_max: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            dynamic: VecDeque::new(),
            size_max: 4096,
        }
    }
}

impl Decoder {
    /// The fields of one block.
    pub fn decode(&mut self, block: &[u8]) -> io::Result<Vec<Field>> {
        let mut rest = block;
        let mut fields = Vec::new();
        while let Some(&first) = rest.first() {
            if first & 0x80 != 0 {
                let index = take_integer(&mut rest, 7)?;
                fields.push(self.entry(index)?);
            } else if first & 0xe0 == 0x20 {
                self.size_max = take_integer(&mut rest, 5)?;
                self.evict();
            } else {
                let remember = first & 0x40 != 0;
                let index = take_integer(&mut rest, if remember { 6 } else { 4 })?;
                let name = match index {
                    0 => take_string(&mut rest)?,
                    index => self.entry(index)?.0,
                };
                let field = (name, take_string(&mut rest)?);
                if remember {
                    self.dynamic.push_front(field.clone());
                    self.evict();
                }
                fields.push(field);
            }
        }
        Ok(fields)
    }

    fn entry(&self, index: usize) -> io::Result<Field> {
        let place = index.checked_sub(1).ok_or_else(|| bad("index 0"))?;
        if let Some((name, value)) = STATIC.get(place) {
            return Ok(((*name).to_owned(), (*value).to_owned()));
        }
        let entry = self.dynamic.get(place - STATIC.len());
        entry
            .cloned()
            .ok_or_else(|| bad(&format!("no entry has the index {index}")))
    }

    fn evict(&mut self) {
        let size = |(name, value): &Field| name.len() + value.len() + ENTRY_OVERHEAD;
        while self.dynamic.iter().map(size).sum::<usize>() > self.size_max {
            self.dynamic.pop_back();
        }
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not HPACK: {what}"))
}

fn take_integer(rest: &mut &[u8], prefix: u32) -> io::Result<usize> {
    let most = (1_usize << prefix) - 1;
    let mut next = || {
        let (first, others) = rest.split_first().ok_or_else(|| bad("it ends too early"))?;
        *rest = others;
        Ok::<_, io::Error>(usize::from(*first))
    };
    let mut value = next()? & most;
    if value < most {
        return Ok(value);
    }
    for shift in (0..28).step_by(7) {
        let byte = next()?;
        value += (byte & 127) << shift;
        if byte & 128 == 0 {
            return Ok(value);
        }
    }
    Err(bad("an integer without an end"))
}

fn take_string(rest: &mut &[u8]) -> io::Result<String> {
    let coded = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = take_integer(rest, 7)?;
    if length > rest.len() {
        return Err(bad("a string longer than its block"));
    }
    let (bytes, others) = rest.split_at(length);
    *rest = others;
    let bytes = if coded { uncode(bytes)? } else { bytes.to_vec() };
    String::from_utf8(bytes).map_err(|_| bad("a string that is not text"))
}

fn uncode(coded: &[u8]) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let (mut code, mut length) = (0_u32, 0_u32);
    for byte in coded {
        for bit in (0..8).rev() {
            code = code << 1 | u32::from(byte >> bit & 1);
            length += 1;
            if let Some(symbol) = symbol(code, length) {
                text.push(symbol);
                (code, length) = (0, 0);
            } else if length > 15 {
                return Err(bad("a Huffman code that no text needs"));
            }
        }
    }
    // RFC 7541 section 5.2: the rest is the beginning of a code of ones, shorter than a byte.
    match length < 8 && code == (1 << length) - 1 {
        true => Ok(text),
        false => Err(bad("padding that is none")),
    }
}

fn symbol(code: u32, length: u32) -> Option<u8> {
    let (mut first, mut before) = (0_u32, 0_u32);
    for (bits, symbols) in HUFFMAN {
        first <<= bits - before;
        before = bits;
        if bits == length {
            return symbols
                .get(usize::try_from(code.checked_sub(first)?).ok()?)
                .copied();
        }
        first += u32::try_from(symbols.len()).ok()?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&str, &str)]) -> Vec<Field> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        list.iter().map(owned).collect()
    }

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        // RFC 7541 appendix C.4: three requests on one connection, with Huffman coding.
        let mut decoder = Decoder::default();
        let first = [
            0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4,
            0xff,
        ];
        let expected = [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "www.example.com"),
        ];
        assert_eq!(decoder.decode(&first).unwrap(), fields(&expected));
        let second = [
            0x82, 0x86, 0x84, 0xbe, 0x58, 0x86, 0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf,
        ];
        let expected = [&expected[..], &[("cache-control", "no-cache")]].concat();
        assert_eq!(decoder.decode(&second).unwrap(), fields(&expected));
    }

    #[test]
    fn what_is_written_is_read() {
        let list = [(":method", "GET"), ("x-long", &"v".repeat(1000)), ("", "")];
        assert_eq!(Decoder::default().decode(&block(&list)).unwrap(), fields(&list));
    }
}
