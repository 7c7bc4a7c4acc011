//! The PROXY protocol: the first bytes of a connection say where it really comes from.
//!
//! Versions 1 and 2 of the specification at <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>, on listeners
//! that are told to expect it; there it must come, since whoever may leave it out may also lie in it. Nothing behind the
//! header is read. What is in it beside the source is skipped: whom a caller wanted to reach is told by its request, and
//! what a load balancer says of its TLS in the fields of version 2 is not believed without knowing the load balancer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// How version 2 begins (section 2.2), chosen so that no other protocol does.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// How version 1 begins (section 2.1).
const WORD: &[u8; 6] = b"PROXY ";

/// The longest line of version 1 (section 2.1), its end included.
const LINE_MAX: usize = 107;

/// What of version 2 stands before the part whose length it says.
const FIXED: usize = 16;

/// The longest header of version 2: the specification allows for 64 KiB, load balancers send some tens of bytes, and
/// nginx takes as much as this.
const HEADER_MAX: usize = 4096;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Where the connection comes from; `None`: from where it seems to, such as a load balancer's own health check.
    source: Option<SocketAddr>,
    /// Its bytes.
    pub(super) length: usize,
}

/// Reads the header: where the connection comes from, if it says so.
///
/// # Errors
/// When the connection breaks or ends before. `InvalidData`: when something else comes, with what is wrong.
pub(super) async fn source(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut read = Vec::new();
    loop {
        // Looked at first, and taken only as far as the header goes.
        let begun = read.len();
        read.resize(HEADER_MAX, 0);
        let count = stream.peek(&mut read[begun..]).await?;
        read.truncate(begun + count);
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let header = parse(&read).map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))?;
        let end = header.map_or(read.len(), |header| header.length);
        stream.read_exact(&mut read[begun..end]).await?;
        if let Some(header) = header {
            return Ok(header.source);
        }
    }
}

/// The header that these bytes begin with; `None`: there must be more. Fewer bytes than [`HEADER_MAX`] are asked for.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<Header>, &'static str> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(byte, with)| byte == with);
    if begins(SIGNATURE) {
        parse_binary(bytes)
    } else if begins(WORD) {
        parse_line(bytes)
    } else {
        Err("it does not begin with a header of the PROXY protocol")
    }
}

fn parse_line(bytes: &[u8]) -> Result<Option<Header>, &'static str> {
    let within = &bytes[..bytes.len().min(LINE_MAX)];
    let Some(end) = within.windows(2).position(|pair| pair == b"\r\n") else {
        return match within.len() {
            LINE_MAX => Err("the line of the PROXY protocol does not end"),
            _ => Ok(None),
        };
    };
    let line =
        std::str::from_utf8(&bytes[..end]).map_err(|_| "the line of the PROXY protocol is not text")?;
    let length = end + 2;
    let words: Vec<&str> = line.split(' ').collect();
    let source = match words[..] {
        // Whatever follows is to be ignored.
        ["PROXY", "UNKNOWN", ..] => None,
        [
            "PROXY",
            family @ ("TCP4" | "TCP6"),
            source,
            destination,
            port,
            other_port,
        ] => {
            let (source, destination) = (address(family, source), address(family, destination));
            let (Some(source), Some(_)) = (source, destination) else {
                return Err("an address in the line of the PROXY protocol is none");
            };
            let (Some(port), Some(_)) = (number(port), number(other_port)) else {
                return Err("a port in the line of the PROXY protocol is none");
            };
            Some(SocketAddr::new(source, port))
        }
        _ => return Err("the line of the PROXY protocol has other words than it may"),
    };
    Ok(Some(Header { source, length }))
}

fn address(family: &str, text: &str) -> Option<IpAddr> {
    match family {
        "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        _ => text
            .parse::<Ipv6Addr>()
            .ok()
            .map(|address| address.to_canonical()),
    }
}

/// A port as the specification has it: digits alone, and no zero before others.
fn number(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

fn parse_binary(bytes: &[u8]) -> Result<Option<Header>, &'static str> {
    let Some((fixed, rest)) = bytes.split_at_checked(FIXED) else {
        return Ok(None);
    };
    let (version_and_command, family) = (fixed[12], fixed[13]);
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if version_and_command >> 4 != 2 {
        return Err("its header of the PROXY protocol is of a version that is not known");
    }
    if length > HEADER_MAX - FIXED {
        return Err("its header of the PROXY protocol is larger than 4 KiB");
    }
    let Some(rest) = rest.get(..length) else {
        return Ok(None);
    };
    let source = match version_and_command & 0xf {
        // LOCAL: the load balancer speaks for itself, and whatever follows is to be ignored.
        0 => None,
        1 => announced(family, rest)?,
        _ => return Err("its header of the PROXY protocol has a command that is not known"),
    };
    let length = FIXED + length;
    Ok(Some(Header { source, length }))
}

/// Where a proxied connection comes from, as far as TCP over IP is concerned; others are taken as they seem.
fn announced(family: u8, rest: &[u8]) -> Result<Option<SocketAddr>, &'static str> {
    let short = "the addresses in its header of the PROXY protocol are cut short";
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    match (family >> 4, family & 0xf) {
        (1, 1) => {
            let Some((source, _)) = rest.get(..12).and_then(|rest| rest.split_first_chunk::<4>()) else {
                return Err(short);
            };
            Ok(Some(SocketAddr::new(IpAddr::from(*source), port(8))))
        }
        (2, 1) => {
            let Some((source, _)) = rest.get(..36).and_then(|rest| rest.split_first_chunk::<16>()) else {
                return Err(short);
            };
            let source = Ipv6Addr::from(*source).to_canonical();
            Ok(Some(SocketAddr::new(source, port(32))))
        }
        (0..=3, 0..=2) => Ok(None),
        _ => Err("its header of the PROXY protocol has an address family that is not known"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn binary(version_and_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[version_and_command, family], &length, rest].concat()
    }

    const FOUR: &[u8] = &[192, 0, 2, 1, 10, 0, 0, 1, 0x30, 0x39, 0, 80];

    fn six() -> Vec<u8> {
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        [&address("2001:db8::1")[..], &address("::1"), &[0x30, 0x39, 0, 80]].concat()
    }

    fn wholes() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let line = |text: &str| format!("{text}\r\n").into_bytes();
        let tlvs = [FOUR, &[0x04, 0, 3, 1, 2, 3]].concat();
        vec![
            (
                line("PROXY TCP4 192.0.2.1 10.0.0.1 12345 80"),
                Some("192.0.2.1:12345"),
            ),
            (
                line("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535"),
                Some("255.255.255.255:65535"),
            ),
            (
                line("PROXY TCP6 2001:db8::1 ::1 12345 80"),
                Some("[2001:db8::1]:12345"),
            ),
            (
                line("PROXY TCP6 ::ffff:192.0.2.1 ::1 12345 80"),
                Some("192.0.2.1:12345"),
            ),
            (line("PROXY TCP4 192.0.2.1 10.0.0.1 0 0"), Some("192.0.2.1:0")),
            (line("PROXY UNKNOWN"), None),
            (line("PROXY UNKNOWN ffff::f ffff::f 65535 65535 and more"), None),
            (binary(0x21, 0x11, FOUR), Some("192.0.2.1:12345")),
            (binary(0x21, 0x11, &tlvs), Some("192.0.2.1:12345")),
            (binary(0x21, 0x21, &six()), Some("[2001:db8::1]:12345")),
            (binary(0x21, 0x00, &[]), None),
            (binary(0x21, 0x00, &[1; 50]), None),
            (binary(0x21, 0x12, FOUR), None),
            (binary(0x21, 0x31, &[7; 216]), None),
            (binary(0x20, 0x00, &[]), None),
            (binary(0x20, 0x11, FOUR), None),
            (binary(0x20, 0xff, &[]), None),
            (
                binary(0x21, 0x11, &[FOUR, &[0; HEADER_MAX - FIXED - 12]].concat()),
                Some("192.0.2.1:12345"),
            ),
        ]
    }

    #[test]
    fn a_header_says_where_the_connection_comes_from_wherever_it_is_cut() {
        for (bytes, expected) in wholes() {
            let source = expected.map(|text| text.parse().unwrap());
            let header = Header {
                source,
                length: bytes.len(),
            };
            assert_eq!(
                parse(&bytes),
                Ok(Some(header)),
                "{:?}",
                bytes.escape_ascii().to_string()
            );
            let more = [&bytes[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(parse(&more), Ok(Some(header)));
            for cut in 1..bytes.len() {
                assert_eq!(parse(&bytes[..cut]), Ok(None), "{cut} bytes of {expected:?}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused_with_its_first_wrong_byte() {
        let long = format!("PROXY UNKNOWN {}", "x".repeat(LINE_MAX));
        for text in [
            "GET / HTTP/1.1\r\n",
            "PRI * HTTP/2.0\r\n",
            "PROXYTCP4",
            "proxy ",
            "\r\n\r\nX",
            "PROXY TCP5 192.0.2.1 10.0.0.1 1 2\r\n",
            "PROXY TCP4  192.0.2.1 10.0.0.1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 10.0.0.1 1 2 \r\n",
            "PROXY TCP4 192.0.2.1 10.0.0.1 1\r\n",
            "PROXY TCP4 192.0.2.256 10.0.0.1 1 2\r\n",
            "PROXY TCP4 192.0.02.1 10.0.0.1 1 2\r\n",
            "PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 10.0.0.1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 10.0.0.1 65536 2\r\n",
            "PROXY TCP4 192.0.2.1 10.0.0.1 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 10.0.0.1 01 2\r\n",
            "PROXY TCP4 192.0.2.1 10.0.0.1  2\r\n",
            "PROXY \r\n",
            long.as_str(),
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
        for bytes in [
            binary(0x11, 0x11, FOUR),
            binary(0x22, 0x11, FOUR),
            binary(0x21, 0x41, FOUR),
            binary(0x21, 0x13, FOUR),
            binary(0x21, 0x11, &FOUR[..11]),
            binary(0x21, 0x21, &six()[..35]),
            binary(0x21, 0x00, &[0; HEADER_MAX - FIXED + 1]),
        ] {
            assert!(parse(&bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_it_and_it_never_asks_for_more_than_it_may(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            begin in 0..3_usize,
        ) {
            let begins: [&[u8]; 3] = [b"", WORD, SIGNATURE];
            let bytes = [begins[begin], &bytes].concat();
            if let Ok(Some(header)) = parse(&bytes) {
                prop_assert!(header.length <= bytes.len());
                // More behind it changes nothing.
                prop_assert_eq!(parse(&bytes[..header.length]), Ok(Some(header)));
            }
            let endless = [&bytes[..], &[b'x'; HEADER_MAX]].concat();
            prop_assert_ne!(parse(&endless), Ok(None));
        }

        #[test]
        fn what_is_written_is_read(source in any::<[u8; 16]>(), port in any::<u16>(), four in any::<bool>()) {
            let source = match four {
                true => IpAddr::from([source[0], source[1], source[2], source[3]]),
                false => IpAddr::from(source).to_canonical(),
            };
            let expected = Some(SocketAddr::new(source, port));
            let (family, other) = if source.is_ipv4() { ("TCP4", "10.0.0.1") } else { ("TCP6", "::1") };
            let line = format!("PROXY {family} {source} {other} {port} 80\r\n");
            let length = line.len();
            prop_assert_eq!(parse(line.as_bytes()), Ok(Some(Header { source: expected, length })));
        }
    }
}
