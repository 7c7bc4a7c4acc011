//! What signs: a root of our own, or an intermediate that the operator gave, with its key in memory.
//!
//! **Does not** decide who is given a certificate, nor under which name: what it is told to sign it signs.

use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use outrigger_config::join::spiffe_id;
use outrigger_proxy::tls::pin::verify_both_ends;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::random;

/// How long a root of our own is good: longer than most meshes live, and replaced without a break before
/// (`outrigger ca rotate`).
const ROOT_LIFE: Duration = Duration::days(3650);

/// How far back every certificate begins: clocks of containers and of the CA differ by seconds, of badly kept hosts by
/// minutes.
const SKEW: Duration = Duration::minutes(5);

/// The most certificates that a file may hold, the root included: chains of the field have two to four.
const CHAIN_MAX: usize = 8;

/// The longest file of certificates or of a key that is read.
const FILE_BYTES_MAX: usize = 64 * 1024;

/// A key, and the certificate that says it may sign.
#[derive(Debug)]
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// What stands between a certificate and the root, nearest first; PEM.
    chain: Vec<String>,
    /// The root; PEM.
    root: String,
    /// When the first of the chain expires, the root included.
    not_after: OffsetDateTime,
}

/// What a certificate is to say.
#[derive(Clone, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) common_name: &'a str,
    pub(super) names: Vec<SanType>,
    pub(super) life: Duration,
}

/// A certificate that was signed.
#[derive(Clone, Debug)]
pub(crate) struct Signed {
    /// It, then every intermediate; PEM.
    pub(crate) certificates: Vec<String>,
    /// Its serial number in hexadecimal.
    pub(crate) serial: String,
    /// SHA-256 of it.
    pub(crate) sha256: [u8; 32],
    /// When it expires.
    pub(crate) not_after: OffsetDateTime,
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SignError {
    /// The certificate of the CA, or the one above it, is over.
    #[error("the certificate of the CA expired at {0}: nothing can be issued until it is replaced")]
    Expired(OffsetDateTime),
    /// The library or the system's randomness failed.
    #[error("the CA could not sign: {0}")]
    Failed(String),
}

impl From<rcgen::Error> for SignError {
    fn from(error: rcgen::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Authority {
    /// Makes a root of our own: the certificate of a key, signed by itself.
    pub(super) fn new_root(key: KeyPair, now: OffsetDateTime) -> Result<Self, SignError> {
        let serial = random::serial().map_err(SignError::Failed)?;
        let mut params = CertificateParams::default();
        // Roots that follow each other have names of their own, so that no verifier takes one for the other.
        params.distinguished_name = root_name(&format!("Outrigger mesh root {}", &serial[..8]));
        params.serial_number = Some(serial_number(&serial));
        params.not_before = now - SKEW;
        params.not_after = now + ROOT_LIFE;
        // It signs certificates of workloads, and of one CA below it: the root that follows it.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Self::own(certificate, key).map_err(SignError::Failed)
    }

    /// A root of our own that was made before.
    pub(super) fn own(certificate: String, key: KeyPair) -> Result<Self, String> {
        let der = pem::parse(&certificate)
            .map_err(|error| error.to_string())?
            .into_contents();
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err("the key is not the one of the stored root".to_owned());
        }
        let not_after = parsed.validity().not_after.to_datetime();
        let issuer =
            Issuer::from_ca_cert_der(&der.as_slice().into(), key).map_err(|error| error.to_string())?;
        Ok(Self {
            issuer,
            chain: Vec::new(),
            root: certificate,
            not_after,
        })
    }

    /// Reads what the operator gave: the signing certificate and all that lead to its root, the root last, and the key.
    /// Every problem that is found is told.
    /// It has to be able to sign for this trust domain.
    pub(super) fn given(
        (certificates, key): (&Path, &Path),
        trust_domain: &str,
        now: OffsetDateTime,
    ) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let chain = read_chain(certificates, now, &mut problems);
        crate::secrets::say_if_others_can_read(key, "the key of --ca-key");
        let key_pair = read_file(key).and_then(|text| {
            KeyPair::from_pem(&text).map_err(|error| {
                // What `openssl ecparam -genkey` writes before the key is what is read then.
                let hint = match text.contains("BEGIN EC PARAMETERS") {
                    true => "; take out its block EC PARAMETERS, which `openssl ecparam -genkey -noout` does not write",
                    false => "",
                };
                format!(
                    "{}: not a private key that can be read ({error}): expected PKCS#8, SEC1 or PKCS#1 in PEM, without \
                     a passphrase{hint}",
                    key.display()
                )
            })
        });
        let key_pair = key_pair.map_err(|problem| problems.push(problem)).ok();
        let (Some(key_pair), Some(first)) = (key_pair, chain.first()) else {
            return Err(problems);
        };
        let place = certificates.display();
        let mut not_after = now + ROOT_LIFE;
        if let Ok((_, parsed)) = X509Certificate::from_der(first)
            && parsed.public_key().raw != key_pair.subject_public_key_info()
        {
            problems.push(format!(
                "{}: the key is not the one of the first certificate of {place}: give the key that belongs to it, and \
                 put its certificate first",
                key.display()
            ));
        }
        for certificate in &chain {
            if let Ok((_, parsed)) = X509Certificate::from_der(certificate) {
                not_after = not_after.min(parsed.validity().not_after.to_datetime());
            }
        }
        let issuer = Issuer::from_ca_cert_der(&first.as_slice().into(), key_pair);
        let issuer = issuer
            .map_err(|error| problems.push(format!("{place}: {error}")))
            .ok();
        let (true, Some(issuer), Some((root, between))) = (problems.is_empty(), issuer, chain.split_last())
        else {
            return Err(problems);
        };
        let authority = Self {
            issuer,
            chain: between.iter().map(|der| to_pem(der)).collect(),
            root: to_pem(root),
            not_after,
        };
        authority
            .prove(first, trust_domain, now)
            .map_err(|problem| vec![format!("{place}: {problem}")])?;
        Ok(authority)
    }

    /// Signs for a public key.
    pub(super) fn sign(
        &self,
        key: &impl PublicKeyData,
        wanted: Wanted<'_>,
        now: OffsetDateTime,
    ) -> Result<Signed, SignError> {
        if self.not_after <= now {
            return Err(SignError::Expired(self.not_after));
        }
        let serial = random::serial().map_err(SignError::Failed)?;
        // Certificates count whole seconds, and never outlive what vouches for them.
        let not_after = (now + wanted.life).min(self.not_after);
        let not_after = not_after.replace_nanosecond(0).unwrap_or(not_after);
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, wanted.common_name);
        params.distinguished_name = name;
        params.serial_number = Some(serial_number(&serial));
        params.subject_alt_names = wanted.names;
        params.not_before = now - SKEW;
        params.not_after = not_after;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer)?;
        let sha256 = sha256(certificate.der());
        let mut certificates = vec![certificate.pem()];
        certificates.extend(self.chain.iter().cloned());
        Ok(Signed {
            certificates,
            serial,
            sha256,
            not_after,
        })
    }

    /// Vouches for the root that follows this one: who knows this one alone finds a way from what the other signs. PEM.
    pub(super) fn vouch_for(&self, successor: &str, now: OffsetDateTime) -> Result<String, SignError> {
        if self.not_after <= now {
            return Err(SignError::Expired(self.not_after));
        }
        let failed = |error: &dyn std::fmt::Display| SignError::Failed(error.to_string());
        let der = pem::parse(successor)
            .map_err(|error| failed(&error))?
            .into_contents();
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| failed(&error))?;
        let key = SubjectPublicKeyInfo::from_der(parsed.public_key().raw)?;
        let called = parsed.subject().iter_common_name().next();
        let called = called.and_then(|name| name.as_str().ok()).unwrap_or_default();
        let serial = random::serial().map_err(SignError::Failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = root_name(called);
        params.serial_number = Some(serial_number(&serial));
        params.not_before = now - SKEW;
        params.not_after = parsed.validity().not_after.to_datetime().min(self.not_after);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(&key, &self.issuer)?.pem())
    }

    /// The root that everything leads to; PEM.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// When the first of the chain expires.
    pub(super) const fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Signs as for a workload, to see whether others would take it: a name with parts that the library does not keep apart
    /// would make certificates that nobody can verify, and what the certificates above it forbid by extended key usage or
    /// name constraints would be found out by the first handshake only.
    fn prove(&self, own: &[u8], trust_domain: &str, now: OffsetDateTime) -> Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| format!("it cannot sign: {error}");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| failed(&error))?;
        let id = spiffe_id(trust_domain, "probe");
        let uri = id.as_str().try_into().map(SanType::URI);
        let wanted = Wanted {
            common_name: "probe",
            names: vec![uri.map_err(|error| failed(&error))?],
            life: Duration::minutes(1),
        };
        let signed = self.sign(&key, wanted, now).map_err(|error| failed(&error))?;
        let der = signed.certificates.first().map(pem::parse);
        let der = der.and_then(Result::ok).ok_or("it cannot sign")?.into_contents();
        let (_, leaf) = X509Certificate::from_der(&der).map_err(|error| failed(&error))?;
        let (_, own) = X509Certificate::from_der(own).map_err(|error| failed(&error))?;
        if leaf.issuer().as_raw() != own.subject().as_raw() {
            return Err(format!(
                "its subject, `{}`, cannot be written as an issuer by this program: give a CA whose subject has each \
                 kind of part once",
                own.subject()
            ));
        }
        let roots = std::slice::from_ref(&self.root);
        verify_both_ends(&signed.certificates, roots, now.into()).map_err(|why| {
            format!(
                "what it signs for `{id}` would be refused by all others as the certificate {why}. Give a CA all of whose \
                 certificates, where they say an extendedKeyUsage, say serverAuth and clientAuth, and whose name constraints, if \
                 any, say nothing of URIs and of directory names: sidecars take nothing under those, whatever they allow"
            )
        })
    }
}

/// The subject of a root of our own.
fn root_name(called: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Outrigger");
    name.push(DnType::CommonName, called);
    name
}

/// SHA-256 of a certificate, by which it is pinned.
pub(super) fn fingerprint(certificate_pem: &str) -> Result<[u8; 32], String> {
    let der = pem::parse(certificate_pem).map_err(|error| error.to_string())?;
    Ok(sha256(der.contents()))
}

/// SHA-256 of a certificate in DER.
pub(crate) fn sha256(certificate: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    // SHA-256 has 32 bytes: nothing is left out or filled up.
    hash.copy_from_slice(digest(&SHA256, certificate).as_ref());
    hash
}

/// Certificates from a file, each one looked at; problems go to the list.
fn read_chain(path: &Path, now: OffsetDateTime, problems: &mut Vec<String>) -> Vec<Vec<u8>> {
    let place = path.display();
    let blocks = read_file(path).and_then(|text| {
        pem::parse_many(text).map_err(|error| format!("{place}: not PEM ({error}): expected certificates"))
    });
    let blocks = match blocks {
        Ok(blocks) => blocks,
        Err(problem) => {
            problems.push(problem);
            return Vec::new();
        }
    };
    let blocks = blocks.into_iter().filter(|block| block.tag() == "CERTIFICATE");
    let chain: Vec<Vec<u8>> = blocks.map(pem::Pem::into_contents).collect();
    if chain.is_empty() || chain.len() > CHAIN_MAX {
        problems.push(format!(
            "{place}: it holds {} certificates; expected 1 to {CHAIN_MAX}: the one that signs, then each that vouches \
             for the one before, the root last",
            chain.len()
        ));
        return Vec::new();
    }
    let mut parsed = Vec::new();
    for (index, der) in chain.iter().enumerate() {
        match X509Certificate::from_der(der) {
            Ok((_, certificate)) => parsed.push(certificate),
            Err(error) => {
                problems.push(format!(
                    "{place}: certificate {} cannot be read: {error}",
                    index + 1
                ));
                return Vec::new();
            }
        }
    }
    for (index, certificate) in parsed.iter().enumerate() {
        let which = format!("{place}: certificate {} (`{}`)", index + 1, certificate.subject());
        judge(certificate, index, &which, now, problems);
        let above = parsed.get(index + 1).unwrap_or(certificate);
        if certificate.verify_signature(Some(above.public_key())).is_err()
            || certificate.issuer().as_raw() != above.subject().as_raw()
        {
            problems.push(if index + 1 == parsed.len() {
                format!(
                    "{which} is the last and is not a root: it was issued by `{}`; add the certificates that lead to \
                     the root, the root last",
                    certificate.issuer()
                )
            } else {
                format!("{which} is not signed by the one after it; each must be signed by the next")
            });
        }
    }
    chain
}

/// Whether a certificate may sign, in its place of the chain.
fn judge(
    certificate: &X509Certificate<'_>,
    below: usize,
    which: &str,
    now: OffsetDateTime,
    problems: &mut Vec<String>,
) {
    let constraints = certificate.basic_constraints().ok().flatten();
    let is_ca = constraints.as_ref().is_some_and(|found| found.value.ca);
    if !is_ca {
        problems.push(format!(
            "{which} is not the certificate of a CA: it does not say CA:TRUE"
        ));
    }
    let depth = constraints.and_then(|found| found.value.path_len_constraint);
    if depth.is_some_and(|depth| (depth as usize) < below) {
        problems.push(format!(
            "{which} allows fewer CAs below it (pathlen) than stand before it in the file"
        ));
    }
    if let Ok(Some(usage)) = certificate.key_usage()
        && !usage.value.key_cert_sign()
    {
        problems.push(format!(
            "{which} may not sign certificates: its key usage leaves keyCertSign out"
        ));
    }
    let validity = certificate.validity();
    let (from, until) = (
        validity.not_before.to_datetime(),
        validity.not_after.to_datetime(),
    );
    if until <= now {
        problems.push(format!("{which} expired at {until}"));
    } else if from > now {
        problems.push(format!("{which} is not valid before {from}"));
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let refused = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
    let length = std::fs::metadata(path).map_err(|error| refused(&error))?.len();
    if length > FILE_BYTES_MAX as u64 {
        return Err(refused(&format_args!(
            "it has {length} bytes; at most {FILE_BYTES_MAX} are read: is it the right file?"
        )));
    }
    std::fs::read_to_string(path).map_err(|error| refused(&error))
}

fn to_pem(der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der), config)
}

fn serial_number(hexadecimal: &str) -> SerialNumber {
    let digits = hexadecimal.as_bytes().chunks(2);
    let byte = |pair: &[u8]| {
        std::str::from_utf8(pair)
            .ok()
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
    };
    let bytes: Vec<u8> = digits.filter_map(byte).collect();
    SerialNumber::from(bytes)
}
