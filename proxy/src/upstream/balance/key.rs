//! The value of a request that leads it to its endpoint.

use std::net::IpAddr;

use http::request::Parts;
use http::{HeaderName, header};
use outrigger_config::service::{Balance, HashOn};
use xxhash_rust::xxh3::xxh3_64;

/// What is looked at.
#[derive(Debug)]
pub(crate) enum KeyOf {
    /// Nothing: the balancing does not ask for a key.
    Nothing,
    Source,
    Header(HeaderName),
    Cookie(String),
}

impl KeyOf {
    pub(crate) fn new(balance: &Balance) -> Self {
        match balance {
            Balance::RoundRobin | Balance::LeastRequest | Balance::Ewma => Self::Nothing,
            Balance::HashOn(HashOn::SourceAddress) => Self::Source,
            // What is not a header's name was refused by the check; no request bears it.
            Balance::HashOn(HashOn::Header(name)) => {
                HeaderName::try_from(name.as_str()).map_or(Self::Nothing, Self::Header)
            }
            Balance::HashOn(HashOn::Cookie(name)) => Self::Cookie(name.clone()),
        }
    }

    /// The key of a request, if it has the value.
    pub(crate) fn of(&self, head: &Parts, source: IpAddr) -> Option<u64> {
        match self {
            Self::Nothing => None,
            Self::Source => Some(match source.to_canonical() {
                IpAddr::V4(address) => xxh3_64(&address.octets()),
                IpAddr::V6(address) => xxh3_64(&address.octets()),
            }),
            Self::Header(name) => head.headers.get(name).map(|value| xxh3_64(value.as_bytes())),
            Self::Cookie(name) => head
                .headers
                .get_all(header::COOKIE)
                .iter()
                .find_map(|line| cookie(line.as_bytes(), name.as_bytes()))
                .map(xxh3_64),
        }
    }
}

/// The value of a cookie in a line of them (RFC 6265 section 4.2.1).
fn cookie<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    line.split(|byte| *byte == b';').find_map(|pair| {
        let value = pair.trim_ascii().strip_prefix(name)?;
        value.strip_prefix(b"=")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let line = b"a=1; session=x=y; sessions=2;b=";
        assert_eq!(cookie(line, b"session"), Some(&b"x=y"[..]));
        assert_eq!(cookie(line, b"b"), Some(&b""[..]));
        assert_eq!(cookie(line, b"sess"), None);
    }

    #[test]
    fn a_request_without_the_value_has_no_key() {
        let request = http::Request::builder().header("x-user", "ada").body(()).unwrap();
        let (head, ()) = request.into_parts();
        let source = IpAddr::from([10, 0, 0, 1]);
        let key = |on| KeyOf::new(&Balance::HashOn(on)).of(&head, source);
        assert_eq!(key(HashOn::Header("X-User".into())), Some(xxh3_64(b"ada")));
        assert_eq!(key(HashOn::Header("x-other".into())), None);
        assert_eq!(key(HashOn::Cookie("x-user".into())), None);
        assert!(key(HashOn::SourceAddress).is_some());
        assert_eq!(KeyOf::new(&Balance::RoundRobin).of(&head, source), None);
    }
}
