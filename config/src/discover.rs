//! Where the endpoints of a backend are found: what a service file says, what the mesh says for all, and both with the
//! defaults filled in.
//!
//! Here stands what is said. Asking, remembering and joining are the proxy's.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::endpoints::StaticEndpoint;
use crate::mesh::Mesh;
use crate::units::Duration;

/// Records are believed for at least this long, however short their TTL: a TTL of 0 must not become a storm of questions.
const FLOOR: Duration = Duration::from_secs(1);

/// Records are believed for at most this long, however long their TTL: what has moved is found within a minute.
const CEILING: Duration = Duration::from_secs(60);

/// The last good answer serves for this long while DNS fails: longer than almost every outage of a name server, and short
/// enough that addresses which have found other owners meanwhile are not asked for days.
const KEEP: Duration = Duration::from_secs(60 * 60);

/// Where the endpoints of a backend are found: one source, or several that are joined to one set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discover {
    /// The sources, in the order written. One stands as a mapping, several as a list.
    pub sources: Vec<DiscoverSource>,
}

/// One place where endpoints are found: `static`, `dns` with `port`, or `srv`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiscoverSource {
    /// The endpoints themselves: address and port, or a mapping with `address` and `weight`.
    #[serde(default, rename = "static", skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<StaticEndpoint>>,
    /// A host name whose A and AAAA records are endpoints, asked again when their TTL ends. One that ends with a dot is
    /// asked as it stands; one with a dot in it is asked so first, then with the search domains of /etc/resolv.conf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<String>,
    /// A name whose SRV records say where the endpoints are, with ports, priorities and weights, such as
    /// `_reviews._tcp.shop.internal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub srv: Option<String>,
    /// The port of the endpoints that `dns` finds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Whether every address that `dns` finds is an endpoint. Default: `strict`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<DnsMode>,
    /// Which addresses are asked for. Default: the mesh's, else `any`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// The bounds of the time after which DNS is asked again. Default: the mesh's, else `{ floor: 1s, ceiling: 1m }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<Refresh>,
    /// How long the last good answer serves while DNS fails, says that there is no such name, or has no address. 0s to
    /// 168h. Default: the mesh's, else 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Duration>,
    /// The DNS servers that are asked, at most 8. Default: the mesh's, else those that the sidecar was started with, else
    /// those of /etc/resolv.conf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    pub servers: Option<Vec<SocketAddr>>,
}

/// What is made of the addresses of a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DnsMode {
    /// Every address is an endpoint.
    #[default]
    Strict,
    /// The first address of the answer is the endpoint of new requests, the next one where that is not well, and what is under
    /// way at an earlier one ends there: for a load balancer's name, whose addresses are one thing behind many doors.
    Logical,
}

/// Which addresses are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// IPv4 and IPv6, all alike.
    #[default]
    Any,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// IPv6; where there is none, IPv4.
    PreferV6,
}

/// The bounds of the time after which DNS is asked again, which between them is the TTL of the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Refresh {
    /// Not sooner, however short the TTL. 100ms to 1h, default 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Duration>,
    /// Not later, however long the TTL. 100ms to 24h, default 1m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<Duration>,
}

/// How DNS is asked for every backend that says nothing itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiscoverDefaults {
    /// Which addresses are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// The bounds of the time after which DNS is asked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<Refresh>,
    /// How long the last good answer serves while DNS fails. 0s to 168h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Duration>,
    /// The DNS servers that are asked, at most 8. They win over those that a sidecar was started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    pub servers: Option<Vec<SocketAddr>>,
}

/// One source of endpoints, all defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// These endpoints.
    Listed(Vec<StaticEndpoint>),
    /// The addresses of a name.
    Addresses {
        /// What is asked.
        question: Question,
        /// Of every endpoint.
        port: u16,
        /// What is made of the addresses.
        mode: DnsMode,
    },
    /// The SRV records of a name, and the addresses of the targets that they name.
    Services(Question),
}

/// What is asked of DNS, and how patiently. Two that are equal are one question.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// The name as it was written.
    pub name: String,
    /// Which addresses are asked for.
    pub family: Family,
    /// Asked again not sooner than after this.
    pub floor: std::time::Duration,
    /// Asked again not later than after this; never less than `floor`.
    pub ceiling: std::time::Duration,
    /// How long the last good answer serves while there is no other.
    pub keep: std::time::Duration,
    /// The servers that are asked; none: those of the sidecar.
    pub servers: Vec<SocketAddr>,
}

impl Discover {
    /// The one name whose addresses are the endpoints, if there is one and not several: what a certificate is good for
    /// unless something else is said.
    pub fn name(&self) -> Option<&str> {
        let mut names = self.sources.iter().filter_map(|source| source.dns.as_deref());
        let first = names.next()?;
        let alone = names.next().is_none() && self.sources.iter().all(|source| source.srv.is_none());
        alone.then(|| first.strip_suffix('.').unwrap_or(first))
    }
}

impl Mesh {
    /// The sources of a backend's endpoints: its own words, else the mesh's, else the built-in ones, each field by itself.
    pub fn sources(&self, discover: &Discover) -> Vec<Source> {
        let nothing = DiscoverDefaults::default();
        let mesh = self.defaults.discover.as_ref().unwrap_or(&nothing);
        discover
            .sources
            .iter()
            .filter_map(|source| source.filled(mesh))
            .collect()
    }
}

impl DiscoverSource {
    /// With the defaults filled in; `None`: it says nothing, which [`crate::check`] refuses.
    fn filled(&self, mesh: &DiscoverDefaults) -> Option<Source> {
        if let Some(addresses) = &self.addresses {
            return Some(Source::Listed(addresses.clone()));
        }
        let (own, all) = (self.refresh.unwrap_or_default(), mesh.refresh.unwrap_or_default());
        let floor = own.floor.or(all.floor).unwrap_or(FLOOR);
        let question = |name: &String| Question {
            name: name.clone(),
            family: self.family.or(mesh.family).unwrap_or_default(),
            floor: floor.0,
            ceiling: own.ceiling.or(all.ceiling).unwrap_or(CEILING).max(floor).0,
            keep: self.keep.or(mesh.keep).unwrap_or(KEEP).0,
            servers: self
                .servers
                .clone()
                .or_else(|| mesh.servers.clone())
                .unwrap_or_default(),
        };
        match (&self.dns, &self.srv) {
            (Some(name), _) => Some(Source::Addresses {
                question: question(name),
                port: self.port?,
                mode: self.mode.unwrap_or_default(),
            }),
            (None, Some(name)) => Some(Source::Services(question(name))),
            (None, None) => None,
        }
    }
}

/// Where the endpoints of a backend are found.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Discover")]
enum Written {
    /// One source.
    One(DiscoverSource),
    /// Several, at most 16, that are joined to one set.
    Several(Vec<DiscoverSource>),
}

/// What may be written, as a message says it.
const EXPECTED: &str = "a mapping such as { dns: reviews.shop.internal, port: 15000 }, or a list of such";

impl Serialize for Discover {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = match &self.sources[..] {
            [one] => Written::One(one.clone()),
            several => Written::Several(several.to_vec()),
        };
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Discover {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> de::Visitor<'de> for Either {
            type Value = Discover;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(EXPECTED)
            }

            /// Nothing is written, or it could not be read: the checks that follow say so.
            fn visit_unit<E: de::Error>(self) -> Result<Discover, E> {
                Ok(Discover::default())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Discover, E> {
                Err(E::custom(format!("found the text `{text}`; expected {EXPECTED}")))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Discover, E> {
                Err(E::custom(format!(
                    "found the number {number}; expected {EXPECTED}"
                )))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Discover, A::Error> {
                let source = DiscoverSource::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Discover {
                    sources: vec![source],
                })
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<Discover, A::Error> {
                let sources = Vec::deserialize(SeqAccessDeserializer::new(list))?;
                Ok(Discover { sources })
            }
        }

        // What is mapping or list is told by what stands there.
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for Discover {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        Written::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Written::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_is_written_as_a_mapping_and_several_as_a_list() {
        for text in [
            r#"{"dns":"a.internal","port":80}"#,
            r#"{"srv":"_a._tcp.internal","family":"prefer_v6","refresh":{"floor":"2s"},"keep":"5m"}"#,
            r#"[{"dns":"a.internal","port":80,"mode":"logical"},{"static":["10.0.0.1:80"]}]"#,
        ] {
            let read: Discover = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
    }

    #[test]
    fn each_field_falls_to_the_mesh_and_then_to_what_is_built_in() {
        let mut mesh = Mesh::default();
        let discover: Discover =
            serde_json::from_str(r#"{"dns":"a.internal.","port":80,"refresh":{"floor":"90s"}}"#).unwrap();
        let Source::Addresses { question, port, mode } = mesh.sources(&discover).remove(0) else {
            panic!("addresses")
        };
        assert_eq!((port, mode, question.family), (80, DnsMode::Strict, Family::Any));
        assert_eq!((question.floor.as_secs(), question.ceiling.as_secs()), (90, 90));
        assert_eq!((question.keep.as_secs(), question.servers.len()), (3600, 0));
        let defaults = r#"{"family":"v4","refresh":{"floor":"2s","ceiling":"5m"},"keep":"0s","servers":["10.0.0.2:53"]}"#;
        mesh.defaults.discover = Some(serde_json::from_str(defaults).unwrap());
        let Source::Addresses { question, .. } = mesh.sources(&discover).remove(0) else {
            panic!("addresses")
        };
        assert_eq!((question.family, question.keep.as_secs()), (Family::V4, 0));
        assert_eq!((question.floor.as_secs(), question.ceiling.as_secs()), (90, 300));
        assert_eq!(question.servers.len(), 1);
    }

    #[test]
    fn a_name_is_that_of_a_certificate_only_where_it_is_the_only_one() {
        let name = |text: &str| {
            let discover: Discover = serde_json::from_str(text).unwrap();
            discover.name().map(str::to_owned)
        };
        assert_eq!(
            name(r#"{"dns":"a.internal.","port":80}"#).as_deref(),
            Some("a.internal")
        );
        let beside = r#"[{"static":["10.0.0.1:80"]},{"dns":"a","port":80}]"#;
        assert_eq!(name(beside).as_deref(), Some("a"));
        assert_eq!(name(r#"[{"dns":"a","port":80},{"dns":"b","port":80}]"#), None);
        assert_eq!(name(r#"[{"dns":"a","port":80},{"srv":"b"}]"#), None);
    }
}
