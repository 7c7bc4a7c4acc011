//! What a sidecar and the control API say to each other when a workload joins the mesh: `POST /v1/identity`, the token that
//! it joins with, what is revoked.
//!
//! **Does not** know cryptography: keys, requests and certificates are PEM text here, made and judged elsewhere.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::identity;
pub use crate::read::service_name as service_problem;

/// The trust domain of a mesh that was given none: under `local`, so that it is nobody's on the Internet.
pub const TRUST_DOMAIN_DEFAULT: &str = "mesh.local";

/// What every token begins with: its kind and the version of its form, by which scanners of leaked secrets know it.
const TOKEN_PREFIX: &str = "ort1";

/// The identity of the control API itself, inside the trust domain. No service can have it: service names have no `/`.
pub const CONTROL_PATH: &str = "outrigger/control";

/// The SPIFFE ID of a service.
pub fn spiffe_id(trust_domain: &str, service: &str) -> String {
    format!("spiffe://{trust_domain}/{service}")
}

/// The service that a SPIFFE ID names, if it is one of a service of this trust domain.
pub fn service_of<'a>(spiffe_id: &'a str, trust_domain: &str) -> Option<&'a str> {
    let path = spiffe_id.strip_prefix("spiffe://")?.strip_prefix(trust_domain)?;
    let service = path.strip_prefix('/')?;
    service_problem(service).is_none().then_some(service)
}

/// Why a text cannot be a trust domain (SPIFFE-ID, section 2.1).
pub fn trust_domain_problem(name: &str) -> Option<String> {
    let why = identity::trust_domain(name)?;
    let name = name.escape_default();
    Some(format!(
        "`{name}` is not a trust domain: {why}, such as shop.internal"
    ))
}

/// What is not to be trusted any more though it has not expired: pushed to every sidecar with the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Revoked {
    /// Serial numbers of certificates, in hexadecimal as `outrigger audit` shows them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub serials: Vec<String>,
    /// SPIFFE IDs: every certificate of such an identity, those still to come included.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<String>,
}

/// What a workload joins with: one string to paste.
///
/// It names the row of the token, proves that its bearer was given it, and pins the root of the mesh, so that a sidecar
/// that has nothing else can tell its control API from any other.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Which token it is; not secret.
    pub id: String,
    /// 256 random bits, which the control API keeps only as a hash.
    pub secret: [u8; 32],
    /// SHA-256 of the root's certificate.
    pub root: [u8; 32],
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (secret, root) = (
            URL_SAFE_NO_PAD.encode(self.secret),
            URL_SAFE_NO_PAD.encode(self.root),
        );
        write!(f, "{TOKEN_PREFIX}.{}.{secret}.{root}", self.id)
    }
}

impl fmt::Debug for JoinToken {
    /// Without the secret: what is logged for a fault must not let anybody in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The text is a secret, or something that was pasted in its place: it is not repeated.
        let wrong = |what: &str| {
            format!(
                "this is not a join token: {what}; expected {TOKEN_PREFIX}.ID.SECRET.ROOT, as `outrigger token create` \
                 prints it"
            )
        };
        let parts: Vec<&str> = text.trim().splitn(5, '.').collect();
        let [prefix, id, secret, root] = parts[..] else {
            return Err(wrong("it has not four parts with dots between them"));
        };
        if prefix != TOKEN_PREFIX {
            return Err(wrong("it is of another kind"));
        }
        if !token_id_is_one(id) {
            return Err(wrong("its id is not 16 hexadecimal digits"));
        }
        Ok(Self {
            id: id.to_owned(),
            secret: bytes(secret).ok_or_else(|| wrong("its secret is cut short or changed"))?,
            root: bytes(root).ok_or_else(|| wrong("the fingerprint at its end is cut short or changed"))?,
        })
    }
}

/// Whether a text has the form of a token's id.
pub fn token_id_is_one(id: &str) -> bool {
    id.len() == 16 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The fingerprint of a root as people compare and paste it, the form at the end of a token.
pub fn fingerprint_text(fingerprint: &[u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(fingerprint)
}

/// Reads a fingerprint as [`fingerprint_text`] writes it, or as `openssl x509 -fingerprint -sha256` does.
pub fn read_fingerprint(text: &str) -> Result<[u8; 32], String> {
    let text = text.trim();
    let hexadecimal = text.replace(':', "");
    bytes(text).or_else(|| hex(&hexadecimal)).ok_or_else(|| {
        format!(
            "`{}` is not a fingerprint: expected the SHA-256 of the root's certificate, 43 characters as \
             `outrigger ca status` prints it or 64 hexadecimal digits",
            text.escape_default()
        )
    })
}

fn bytes(text: &str) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

fn hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut all = [0; 32];
    for (index, byte) in all.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(all)
}

/// A request for a certificate. It is proved by a token, or by the client certificate of the connection, which is then
/// renewed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityRequest {
    /// A certificate signing request (RFC 2986) in PEM. Only its public key is used: names, usages and lifetime are the
    /// CA's.
    pub csr: String,
    /// A join token. Absent: the certificate of the connection is renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The service that the sidecar means to be; refused if the token is of another. Absent: the token's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

impl fmt::Debug for IdentityRequest {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityRequest")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

/// A certificate, and what it takes to use it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityAnswer {
    /// The certificate, then each intermediate, each signed by the next; PEM.
    pub certificates: Vec<String>,
    /// The roots of the mesh; PEM. Two while one follows the other.
    pub bundle: Vec<String>,
    /// The name in the certificate.
    pub spiffe_id: String,
    /// The serial number in hexadecimal.
    pub serial: String,
    /// When it expires (RFC 3339).
    pub not_after: String,
    /// When another should be asked for: half way (RFC 3339).
    pub renew_after: String,
    /// Names the roots of the mesh as they are now, and which of them signs: another word with a later poll
    /// ([`crate::discovery::ROOTS_HEADER`]) says that another certificate is to be asked for at once.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub roots: String,
}

/// The answer where there is no certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityRefusal {
    /// Which of the closed set it is, for programs.
    pub reason: RefusalReason,
    /// What happened and what to do, for people.
    pub error: String,
}

/// Why no certificate was issued. A closed set: scripts and dashboards hang on the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalReason {
    /// The body is not the JSON of a request.
    MalformedRequest,
    /// The signing request cannot be read.
    MalformedCsr,
    /// The signing request is not signed by its own key.
    CsrSignature,
    /// The key is of a kind or size that is not taken.
    KeyNotAllowed,
    /// Neither a token nor a client certificate came along.
    NoCredential,
    /// The token is not one: cut short, or something else.
    TokenMalformed,
    /// There is no such token, or its secret is wrong.
    TokenUnknown,
    /// The token's time is over.
    TokenExpired,
    /// The token has been used as often as it may be.
    TokenUsedUp,
    /// The token was taken back.
    TokenRevoked,
    /// The token or certificate is of another service than the one asked for.
    OtherService,
    /// The certificate was not issued here, as far as this store knows: it cannot be renewed.
    CertificateUnknown,
    /// The certificate or the identity stands among the revoked.
    IdentityRevoked,
    /// Too many failed attempts.
    RateLimited,
    /// The CA cannot issue now.
    CaUnavailable,
}

impl RefusalReason {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::MalformedRequest,
        Self::MalformedCsr,
        Self::CsrSignature,
        Self::KeyNotAllowed,
        Self::NoCredential,
        Self::TokenMalformed,
        Self::TokenUnknown,
        Self::TokenExpired,
        Self::TokenUsedUp,
        Self::TokenRevoked,
        Self::OtherService,
        Self::CertificateUnknown,
        Self::IdentityRevoked,
        Self::RateLimited,
        Self::CaUnavailable,
    ];

    /// The word, as it stands in JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::MalformedRequest => "malformed-request",
            Self::MalformedCsr => "malformed-csr",
            Self::CsrSignature => "csr-signature",
            Self::KeyNotAllowed => "key-not-allowed",
            Self::NoCredential => "no-credential",
            Self::TokenMalformed => "token-malformed",
            Self::TokenUnknown => "token-unknown",
            Self::TokenExpired => "token-expired",
            Self::TokenUsedUp => "token-used-up",
            Self::TokenRevoked => "token-revoked",
            Self::OtherService => "other-service",
            Self::CertificateUnknown => "certificate-unknown",
            Self::IdentityRevoked => "identity-revoked",
            Self::RateLimited => "rate-limited",
            Self::CaUnavailable => "ca-unavailable",
        }
    }

    /// Whether the same request may succeed later, so that a sidecar asks again.
    pub const fn is_passing(self) -> bool {
        matches!(self, Self::RateLimited | Self::CaUnavailable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            id: "00112233aabbccdd".into(),
            secret: [7; 32],
            root: [255; 32],
        }
    }

    #[test]
    fn a_token_is_read_back_as_it_was_written_and_nothing_else_is_one() {
        let text = token().to_string();
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        for wrong in [
            "",
            "ort1",
            &text[..text.len() - 1],
            &text[1..],
            &text.replace("ort1", "ort2"),
            &text.replace("00112233aabbccdd", "00112233AABBCCDD"),
            &text.replace("00112233aabbccdd", "0011"),
            &format!("{text}.x"),
            &text.replace('_', "%"),
        ] {
            let error = wrong.parse::<JoinToken>().unwrap_err();
            assert!(error.contains("not a join token"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_token_is_not_shown_by_its_debug_form_nor_by_its_error() {
        let text = token().to_string();
        let request = IdentityRequest {
            token: Some(text.clone()),
            ..IdentityRequest::default()
        };
        let secret = text.split('.').nth(2).unwrap();
        let error = text[..text.len() - 2].parse::<JoinToken>().unwrap_err();
        for shown in [format!("{:?}", token()), format!("{request:?}"), error] {
            assert!(!shown.contains(secret) && !shown.contains("7, 7"), "{shown}");
        }
    }

    #[test]
    fn fingerprints_are_read_in_both_their_forms() {
        let fingerprint = [171; 32];
        let colons = ["AB"; 32].join(":");
        for text in [
            fingerprint_text(&fingerprint),
            colons.clone(),
            colons.replace(':', ""),
        ] {
            assert_eq!(read_fingerprint(&text), Ok(fingerprint), "{text}");
        }
        for wrong in ["", "ab", &colons[2..], "é"] {
            assert!(read_fingerprint(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn trust_domains_and_identities_are_spiffes() {
        for good in ["shop", "mesh.local", "a_b-c.d1"] {
            assert_eq!(trust_domain_problem(good), None);
        }
        for bad in ["", "Shop", "a/b", "a:1", "spiffe://a", "é", &"a".repeat(256)] {
            assert!(trust_domain_problem(bad).is_some(), "{bad}");
        }
        let id = spiffe_id("shop", "reviews");
        assert_eq!(id, "spiffe://shop/reviews");
        assert_eq!(service_of(&id, "shop"), Some("reviews"));
        for other in [
            "spiffe://shop2/reviews",
            "spiffe://shop/outrigger/control",
            "spiffe://shop/",
            "https://shop/a",
        ] {
            assert_eq!(service_of(other, "shop"), None, "{other}");
        }
    }

    #[test]
    fn every_reason_has_the_word_that_stands_in_json() {
        for reason in RefusalReason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.word());
        }
    }
}
