//! The words of TLS to the outside: to servers that are no sidecars of this mesh.
//!
//! Here stands what is said. Roots, handshakes and connections are the proxy's.

use std::fmt;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// How the endpoints of one backend are spoken to, where they are no sidecars of this mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendTls {
    /// In plaintext, whatever the service's mode.
    None,
    /// By TLS, as a client of the web does, whatever the service's mode.
    Outside(OutsideTls),
}

/// TLS as a client of the web speaks it: the server shows a certificate for its name, this sidecar shows none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutsideTls {
    /// The name that is asked for (SNI), and for which the certificate must be good: a DNS name or an IP address. Default:
    /// the name in `discover.dns`, where it is the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Whom to trust: `system`, the roots that this machine or image has, or the absolute path of a PEM file with roots on
    /// the sidecar's machine, which is watched. Nothing else is trusted beside the file.
    #[serde(default)]
    #[schemars(with = "String")]
    pub roots: Roots,
    /// The oldest version of TLS that is spoken.
    #[serde(default)]
    pub min_version: TlsVersion,
}

/// A version of TLS.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum TlsVersion {
    /// TLS 1.2, for what speaks nothing newer; 1.3 is spoken where the other end can.
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3.
    #[default]
    #[serde(rename = "1.3")]
    V1_3,
}

/// Roots that are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Roots {
    /// Those of this machine or image.
    #[default]
    System,
    /// Those in this file.
    File(PathBuf),
}

/// The word for the roots of the machine.
const SYSTEM: &str = "system";

impl From<String> for Roots {
    fn from(text: String) -> Self {
        if text == SYSTEM {
            Self::System
        } else {
            Self::File(text.into())
        }
    }
}

impl From<Roots> for String {
    fn from(roots: Roots) -> Self {
        roots.to_string()
    }
}

impl fmt::Display for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str(SYSTEM),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl Roots {
    /// The file, if they are in one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::System => None,
            Self::File(path) => Some(path),
        }
    }
}

/// What may be written for a backend's `tls`, as a message lists it.
const ALLOWED: &[&str] = &["none", "{ server_name: api.example.com, roots: system }"];

/// How the endpoints of one backend are spoken to, where they are no sidecars of this mesh.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "BackendTls")]
enum Written {
    /// In plaintext, whatever the service's mode.
    #[schemars(extend("const" = "none"))]
    Word(Word),
    /// By TLS, as a client of the web does, whatever the service's mode. `{}` is all defaults.
    Outside(OutsideTls),
}

#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
enum Word {
    None,
}

impl Serialize for BackendTls {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = match self.clone() {
            Self::None => Written::Word(Word::None),
            Self::Outside(tls) => Written::Outside(tls),
        };
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for BackendTls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> de::Visitor<'de> for Either {
            type Value = BackendTls;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`none`, or a mapping with the fields server_name, roots, min_version")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<BackendTls, E> {
                if text == "none" {
                    return Ok(BackendTls::None);
                }
                Err(E::unknown_variant(text, ALLOWED))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<BackendTls, A::Error> {
                OutsideTls::deserialize(MapAccessDeserializer::new(map)).map(BackendTls::Outside)
            }
        }

        // What is text or mapping is told by what stands there.
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for BackendTls {
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
    fn what_is_written_is_read_back_the_same_and_nothing_said_is_all_defaults() {
        let outside = |server_name: Option<&str>, roots, min_version| {
            BackendTls::Outside(OutsideTls {
                server_name: server_name.map(str::to_owned),
                roots,
                min_version,
            })
        };
        let file = Roots::File("/etc/ssl/root.pem".into());
        for (text, tls) in [
            (r#""none""#, BackendTls::None),
            ("{}", outside(None, Roots::System, TlsVersion::V1_3)),
            (
                r#"{"server_name":"a.example","roots":"/etc/ssl/root.pem","min_version":"1.2"}"#,
                outside(Some("a.example"), file, TlsVersion::V1_2),
            ),
        ] {
            let read: BackendTls = serde_json::from_str(text).unwrap();
            assert_eq!(read, tls);
            let written = serde_json::to_string(&tls).unwrap();
            assert_eq!(serde_json::from_str::<BackendTls>(&written).unwrap(), tls);
        }
    }
}
