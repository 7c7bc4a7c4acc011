//! The DNS listener of a sidecar, as its bootstrap has it: where it is asked, which addresses it gives, who is asked
//! for what the mesh does not know.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::units::Duration;

/// The port of DNS.
const DNS_PORT: u16 = 53;

/// Ranges with more addresses than this are refused: no block of IPv4 that is free for such use is larger.
const PREFIX_MIN: u8 = 4;

/// Ranges with fewer addresses than those of this prefix, 254, are refused: a mesh grows.
const PREFIX_MAX: u8 = 24;

/// DNS counts in seconds, and 0 would have every connection ask again.
const TTL_MIN: Duration = Duration::from_secs(1);

/// What is remembered for longer is out of date for longer than a push takes.
const TTL_MAX: Duration = Duration::from_secs(3600);

/// Where applications ask for names: those of the mesh's services lead to this sidecar, all others to the name servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsListener {
    /// Where it is asked, over UDP and TCP.
    pub address: SocketAddr,
    /// What services have addresses of their own from.
    pub range: Option<Range>,
    /// Further ports of the addresses that are answered.
    pub ports: Vec<u16>,
    /// Who is asked for names that the mesh does not know; none: those of the system.
    pub servers: Vec<NameServer>,
    /// How long an answer about the mesh may be remembered.
    pub ttl: Duration,
}

impl DnsListener {
    /// Where each of its ports is listened on: at every address if services have addresses of their own, else where the
    /// requests of the application come in.
    pub fn port_addresses(&self, outbound: SocketAddr) -> impl Iterator<Item = SocketAddr> {
        let ip = match self.range {
            Some(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            None => outbound.ip(),
        };
        self.ports.iter().map(move |port| SocketAddr::new(ip, *port))
    }
}

impl From<SocketAddr> for DnsListener {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            range: None,
            ports: Vec::new(),
            servers: Vec::new(),
            ttl: default_ttl(),
        }
    }
}

/// A DNS listener with all that may be said of it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DnsListenerFields")]
struct Full {
    /// Where it is asked, over UDP and TCP. It forwards to the name servers for whoever asks: keep it on loopback.
    address: SocketAddr,
    /// Gives each service an IPv4 address of its own in this range, drawn from its name, such as `127.64.0.0/16`. /4 to
    /// /24. A connection to such an address is for its service, by `outbound` if that listens on `0.0.0.0`, and by
    /// `ports`. Default: every name has the address of `outbound`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    range: Option<Range>,
    /// Ports where requests of the application come in beside that of `outbound`, such as `[80, 5432]`, so that URLs and
    /// connection strings need name none. At most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    ports: Vec<u16>,
    /// The name servers that are asked for every other name. Default: those of /etc/resolv.conf at the start, this
    /// listener left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    servers: Vec<NameServer>,
    /// How long an answer about a name of the mesh may be remembered, in whole seconds: 1 s to 1 h. Default 5 s: after a
    /// push a name is found or gone about as soon as its routes are, and asking again costs a loopback round trip.
    #[serde(default = "default_ttl", deserialize_with = "ttl")]
    #[schemars(with = "Duration")]
    ttl: Duration,
}

/// A time that DNS can tell, checked here so that it is even where the rest of the listener cannot be read.
fn ttl<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let ttl = Duration::deserialize(deserializer)?;
    if !(TTL_MIN..=TTL_MAX).contains(&ttl) || ttl.0.subsec_millis() > 0 {
        let message = format!("{ttl}; expected whole seconds, {TTL_MIN} to {TTL_MAX}");
        return Err(de::Error::custom(message));
    }
    Ok(ttl)
}

fn default_ttl() -> Duration {
    Duration::from_secs(5)
}

/// A DNS listener.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "DnsListener")]
enum Written {
    /// Where it is asked; the rest is as it is by default.
    Address(SocketAddr),
    /// With all that may be said of it.
    Full(Full),
}

impl Serialize for DnsListener {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = if *self == Self::from(self.address) {
            Written::Address(self.address)
        } else {
            let Self {
                address,
                range,
                ports,
                servers,
                ttl,
            } = self.clone();
            Written::Full(Full {
                address,
                range,
                ports,
                servers,
                ttl,
            })
        };
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DnsListener {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> de::Visitor<'de> for Either {
            type Value = DnsListener;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "an IP address and a port, or a mapping with the fields address, range, ports, servers, ttl",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<DnsListener, E> {
                let address: Result<SocketAddr, _> = text.parse();
                address.map(DnsListener::from).map_err(|_| {
                    E::custom(format!(
                        "`{text}` is not an IP address and a port, such as 127.0.0.1:15053"
                    ))
                })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<DnsListener, A::Error> {
                let Full {
                    address,
                    range,
                    ports,
                    servers,
                    ttl,
                } = Full::deserialize(MapAccessDeserializer::new(map))?;
                Ok(DnsListener {
                    address,
                    range,
                    ports,
                    servers,
                    ttl,
                })
            }
        }

        // What is text or mapping is told by what stands there.
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for DnsListener {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        Written::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Written::json_schema(generator)
    }
}

/// A range of IPv4 addresses of which services have one each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Range(Ipv4Net);

impl Range {
    /// Whether an address is of it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.0.contains(&address)
    }

    /// How many addresses may be given: all but the first and the last, which hosts take for the network's own.
    pub fn size(&self) -> u32 {
        u32::from(self.0.broadcast()) - u32::from(self.0.network()) - 1
    }

    /// The address at a place, counted from 0; past the end it begins again.
    pub fn at(&self, place: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.0.network()) + 1 + place % self.size())
    }
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range: Ipv4Net = text.parse().map_err(|_| {
            format!("`{text}` is not a range of IPv4 addresses, such as 127.64.0.0/16 or 240.0.0.0/4")
        })?;
        if !(PREFIX_MIN..=PREFIX_MAX).contains(&range.prefix_len()) {
            return Err(format!("`{text}`: expected /{PREFIX_MIN} to /{PREFIX_MAX}"));
        }
        if range.trunc() != range {
            return Err(format!(
                "`{text}` is an address inside of a range; the range is {}",
                range.trunc()
            ));
        }
        let meets = |other: Ipv4Addr, prefix| {
            Ipv4Net::new(other, prefix).is_ok_and(|other| other.contains(&range) || range.contains(&other))
        };
        if meets(Ipv4Addr::LOCALHOST, 32) {
            return Err(format!(
                "`{text}` has 127.0.0.1 in it, which is the machine's own; take a part such as 127.64.0.0/16"
            ));
        }
        // 240.0.0.0/4 has the broadcast address at its end, which is never given.
        if meets(Ipv4Addr::UNSPECIFIED, 8) || meets(Ipv4Addr::new(224, 0, 0, 0), 4) {
            return Err(format!(
                "`{text}` has addresses to which nothing can connect; take 127.64.0.0/16, 240.0.0.0/4, or a private range \
                 that is not in use"
            ));
        }
        Ok(Self(range))
    }
}

impl TryFrom<String> for Range {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Range> for String {
    fn from(range: Range) -> Self {
        range.to_string()
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl JsonSchema for Range {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Range".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": r"^[0-9.]+/[0-9]+$" })
    }
}

/// A name server: an address, with a port if it is not 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NameServer(pub SocketAddr);

impl TryFrom<String> for NameServer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let address = text.parse::<SocketAddr>();
        let address = address.or_else(|_| Ok(SocketAddr::new(text.parse::<IpAddr>()?, DNS_PORT)));
        address.map(Self).map_err(|_: std::net::AddrParseError| {
            format!("`{text}` is not the address of a name server, such as 10.0.0.2 or 10.0.0.2:53")
        })
    }
}

impl From<NameServer> for String {
    fn from(NameServer(address): NameServer) -> Self {
        address.to_string()
    }
}

impl JsonSchema for NameServer {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NameServer".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_gives_all_its_addresses_but_the_first_and_the_last() {
        let range: Range = "127.64.0.0/24".parse().unwrap();
        assert_eq!(range.size(), 254);
        assert_eq!(range.at(0), Ipv4Addr::new(127, 64, 0, 1));
        assert_eq!(range.at(253), Ipv4Addr::new(127, 64, 0, 254));
        assert_eq!(range.at(254), range.at(0));
        assert!(range.contains(range.at(7)) && !range.contains(Ipv4Addr::new(127, 64, 1, 1)));
        let large: Range = "240.0.0.0/4".parse().unwrap();
        assert_eq!(large.size(), (1 << 28) - 2);
        assert_eq!(large.at(large.size() - 1), Ipv4Addr::new(255, 255, 255, 254));
    }

    #[test]
    fn a_range_to_which_nothing_could_connect_is_refused_with_the_reason() {
        for (text, why) in [
            ("127.64.0.1/16", "the range is 127.64.0.0/16"),
            ("127.0.0.0/8", "has 127.0.0.1 in it"),
            ("127.64.0.0/25", "expected /4 to /24"),
            ("0.0.0.0/0", "expected /4 to /24"),
            ("224.0.0.0/8", "nothing can connect"),
            ("0.64.0.0/16", "nothing can connect"),
            ("fd00::/64", "not a range of IPv4"),
            ("127.64.0.0", "not a range of IPv4"),
        ] {
            let said = text.parse::<Range>().unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn a_name_server_is_an_address_with_a_port_if_it_is_not_53() {
        let read = |text: &str| NameServer::try_from(text.to_owned()).map(|server| server.0.to_string());
        assert_eq!(read("10.0.0.2").unwrap(), "10.0.0.2:53");
        assert_eq!(read("10.0.0.2:5353").unwrap(), "10.0.0.2:5353");
        assert_eq!(read("fd00::2").unwrap(), "[fd00::2]:53");
        assert_eq!(read("[fd00::2]:54").unwrap(), "[fd00::2]:54");
        assert!(read("ns.example").is_err());
    }
}
