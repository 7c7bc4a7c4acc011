//! Web pages in a browser of this machine, as seen by what trusts whoever is on this machine.
//!
//! A browser asks what pages tell it to ask, also of 127.0.0.1. A page of anybody's can send what a form can send, though it
//! does not read the answer (cross-site request forgery); and a page whose own name resolves to 127.0.0.1 for a moment reads
//! all, because for the browser both are one origin (DNS rebinding). What the browser says along with it, no page can change:
//! the name that is asked by in `Host`, the page's origin in `Origin`, how the two stand to each other in `Sec-Fetch-Site`
//! (Fetch, section 3.2; Fetch Metadata, section 2.4). Tools send the first alone.
//!
//! **Does not** know who is at the other end: it is asked where the address of a connection alone would let in.

use std::fmt;
use std::net::IpAddr;

use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

/// How a page's origin stands to the address that it asks.
pub const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The longest piece of a header that a refusal repeats: the longest host name.
const SHOWN_BYTES_MAX: usize = 253;

/// The names by which an address is meant, whatever the port: a tunnel may have another. Those of loopback always are.
#[derive(Clone, Debug)]
pub struct OwnNames {
    listen: IpAddr,
    names: Vec<String>,
}

/// Why a request may come of a web page of somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// It asks by this name, which is not ours.
    Host(String),
    /// It comes of a page of this origin.
    Origin(String),
    /// It comes of a page of another site, says the browser in this word.
    Site(String),
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => write!(f, "it asks by the name `{host}`, which is none of this address"),
            Self::Origin(origin) => write!(f, "it comes of a web page of `{origin}`"),
            Self::Site(site) => write!(f, "it comes of a web page elsewhere (`{SEC_FETCH_SITE}: {site}`)"),
        }
    }
}

impl OwnNames {
    /// Those of what listens there, and further ones: DNS names and IP addresses.
    ///
    /// # Errors
    /// Gives the first of the further ones that is neither.
    pub fn new(listen: IpAddr, further: &[String]) -> Result<Self, String> {
        let is_one = |name: &&String| name.parse::<IpAddr>().is_ok() || is_a_host(name);
        if let Some(other) = further.iter().find(|name| !is_one(name)) {
            return Err(other.clone());
        }
        Ok(Self {
            listen: listen.to_canonical(),
            names: further.iter().map(|name| plain(name).to_owned()).collect(),
        })
    }

    /// Whether a request can only be of a tool, or of a page of our own.
    ///
    /// # Errors
    /// Says of what it may be instead.
    pub fn judge(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Foreign> {
        let of_target = uri.authority().map(|authority| authority.as_str().as_bytes());
        let of_field = headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
        let mut asked = None;
        // One that is not there is a tool's of old; of several, each is read by somebody.
        for host in of_target.into_iter().chain(of_field) {
            let authority = Authority::try_from(host).map_err(|_| Foreign::Host(shown(host)))?;
            if !self.has(authority.host()) {
                return Err(Foreign::Host(shown(authority.host().as_bytes())));
            }
            asked.get_or_insert(authority);
        }
        let asked = asked.as_ref().map_or("", Authority::as_str);
        // Another port is another program, whose pages are not ours.
        let is_own = |origin: &HeaderValue| {
            let text = origin.to_str().unwrap_or_default();
            let page = text
                .strip_prefix("http://")
                .or_else(|| text.strip_prefix("https://"));
            page.is_some_and(|page| !page.is_empty() && page.eq_ignore_ascii_case(asked))
        };
        if let Some(origin) = headers.get_all(ORIGIN).iter().find(|origin| !is_own(origin)) {
            return Err(Foreign::Origin(shown(origin.as_bytes())));
        }
        // `none`: a person has typed the address.
        let is_near = |site: &HeaderValue| *site == "same-origin" || *site == "none";
        let mut sites = headers.get_all(SEC_FETCH_SITE).iter();
        match sites.find(|site| !is_near(site)) {
            Some(site) => Err(Foreign::Site(shown(site.as_bytes()))),
            None => Ok(()),
        }
    }

    fn has(&self, host: &str) -> bool {
        let address = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>();
        if let Ok(address) = address.map(|address| address.to_canonical()) {
            let is_it = |name: &String| {
                name.parse()
                    .is_ok_and(|name: IpAddr| name.to_canonical() == address)
            };
            return address.is_loopback() || address == self.listen || self.names.iter().any(is_it);
        }
        let host = plain(host);
        // `localhost` never leaves the machine (RFC 6761, section 6.3).
        host.eq_ignore_ascii_case("localhost")
            || self.names.iter().any(|name| name.eq_ignore_ascii_case(host))
    }
}

/// Whether the headers say that a browser sends it for a page, whosever that is.
pub fn is_of_a_page(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN) || headers.contains_key(SEC_FETCH_SITE)
}

fn is_a_host(name: &str) -> bool {
    name.parse()
        .is_ok_and(|authority: Authority| authority.host() == name)
}

/// A name without the dot of the root.
fn plain(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// What came of a stranger, as a refusal and a log repeat it.
fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(SHOWN_BYTES_MAX)]
        .escape_ascii()
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(uri: &str, fields: &[(&str, &str)]) -> Result<(), Foreign> {
        let names = ["Control.internal.", "10.0.0.9"].map(str::to_owned);
        let own = OwnNames::new("10.0.0.1".parse().unwrap(), &names).unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        own.judge(&uri.parse().unwrap(), &headers)
    }

    #[test]
    fn loopback_the_listening_address_and_names_that_were_given_are_ones_own_with_any_port() {
        for host in [
            "127.0.0.1:9900",
            "127.1.2.3",
            "[::1]:80",
            "[::ffff:127.0.0.1]",
            "localhost",
            "LocalHost.:1",
            "10.0.0.1:9900",
            "10.0.0.9",
            "CONTROL.internal",
            "control.internal.:9900",
        ] {
            assert_eq!(judged("/", &[("host", host)]), Ok(()), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.2",
            "[2001:db8::1]",
            "localhost@evil.example",
            "evil.example:127.0.0.1",
            "local host",
            "é",
        ] {
            let judged = judged("/", &[("host", host)]);
            assert!(matches!(judged, Err(Foreign::Host(_))), "{host}: {judged:?}");
        }
        assert_eq!(judged("/", &[]), Ok(()));
        // The target goes before the field (RFC 9112, section 3.2.2), and neither may be another's.
        assert!(judged("http://evil.example/", &[("host", "localhost")]).is_err());
        assert!(judged("http://localhost/", &[("host", "evil.example")]).is_err());
        assert!(judged("/", &[("host", "localhost"), ("host", "evil.example")]).is_err());
    }

    #[test]
    fn a_page_is_ones_own_by_host_and_port_and_what_it_says_of_another_site_is_heard() {
        let from = |origin| judged("/", &[("host", "localhost:9900"), ("origin", origin)]);
        for own in [
            "http://localhost:9900",
            "https://localhost:9900",
            "http://LOCALHOST:9900",
        ] {
            assert_eq!(from(own), Ok(()), "{own}");
        }
        for other in [
            "null",
            "",
            "http://",
            "http://localhost",
            "http://127.0.0.1:9900",
            "localhost:9900",
            "file://",
        ] {
            assert!(matches!(from(other), Err(Foreign::Origin(_))), "{other}");
        }
        // Without a host nothing is one's own.
        assert!(judged("/", &[("origin", "http://")]).is_err());
        for (site, is_near) in [
            ("same-origin", true),
            ("none", true),
            ("same-site", false),
            ("cross-site", false),
            ("", false),
        ] {
            assert_eq!(
                judged("/", &[("sec-fetch-site", site)]).is_ok(),
                is_near,
                "{site}"
            );
        }
    }

    #[test]
    fn a_name_with_a_port_or_a_path_is_said_to_be_none() {
        for (name, is_one) in [
            ("control", true),
            ("::1", true),
            ("control:9900", false),
            ("http://control", false),
            ("", false),
            ("a b", false),
        ] {
            let names = [name.to_owned()];
            assert_eq!(
                OwnNames::new("127.0.0.1".parse().unwrap(), &names).is_ok(),
                is_one,
                "{name}"
            );
        }
    }
}
