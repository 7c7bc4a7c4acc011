//! Whether the other end is who it must be, and what a failed handshake is called.
//!
//! Chains are verified by webpki as rustls brings it; what is ours is the name: exactly one URI, a SPIFFE ID, of this trust
//! domain, and towards an endpoint the one of the service that is meant. DNS names in certificates mean nothing here.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

use outrigger_config::identity::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::error::{Failure, Reason};
use crate::tls::identity::Certificate;
use crate::tls::words;

/// The right chain with the wrong name.
#[derive(Debug)]
struct WrongIdentity(String);

impl fmt::Display for WrongIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for WrongIdentity {}

/// The refusal of a certificate in words of ours.
pub(super) fn wrong(why: impl fmt::Display) -> Error {
    let why = WrongIdentity(why.to_string());
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

/// The SPIFFE ID of a certificate, which must be of this trust domain.
fn id_in(trust_domain: &str, certificate: &CertificateDer<'_>) -> Result<SpiffeId, Error> {
    let id = Certificate::read(certificate).and_then(|certificate| certificate.spiffe_id());
    let id = id.map_err(wrong)?;
    if id.trust_domain() == trust_domain {
        Ok(id)
    } else {
        Err(wrong(format!("{id} is not of the trust domain `{trust_domain}`")))
    }
}

/// What stands behind a service's name that cannot be a server's: one of digits alone is taken for a piece of an address.
/// No service's own name has a dot in it.
const ASIDE: &str = "._";

/// The name that a service is asked for by in a handshake. It is sent as it is: it is no secret in the mesh.
pub(super) fn server_name(service: &str) -> Option<ServerName<'static>> {
    let as_it_is = ServerName::try_from(service.to_owned());
    as_it_is
        .or_else(|_| ServerName::try_from(format!("{service}{ASIDE}")))
        .ok()
}

/// And back.
fn service_of(name: &str) -> &str {
    name.strip_suffix(ASIDE).unwrap_or(name)
}

/// Verifies endpoints: the server's name in a handshake is that of a service.
#[derive(Debug)]
pub(super) struct Endpoints {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) trust_domain: String,
    pub(super) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Endpoints {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        let id = id_in(&self.trust_domain, end_entity)?;
        let service = server_name.to_str();
        let expected = SpiffeId::of_service(&self.trust_domain, service_of(&service)).map_err(wrong)?;
        if id == expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(wrong(format!("it is {id}, and {expected} is meant")))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken in the mesh".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Verifies callers: any workload of the mesh. What it may do is decided for each request.
#[derive(Debug)]
pub(super) struct Callers {
    /// webpki's own, which verifies the chain.
    pub(super) chain: Arc<dyn ClientCertVerifier>,
    pub(super) trust_domain: String,
}

impl ClientCertVerifier for Callers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        id_in(&self.trust_domain, end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// What a handshake that failed is called; `who` is the other end.
pub(super) fn failure(error: &io::Error, who: &str) -> Failure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let reason = match inner {
        Some(Error::NoCertificatesPresented) => Reason::PeerNoCertificate,
        Some(Error::InvalidCertificate(why)) => of_certificate(why),
        Some(Error::AlertReceived(alert)) if is_of_certificates(*alert) => Reason::IdentityRefused,
        _ => Reason::TlsHandshake,
    };
    Failure::new(reason, format!("TLS with {who}: {}", words::of_io(error)))
}

fn of_certificate(why: &CertificateError) -> Reason {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Reason::PeerExpired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            Reason::PeerNotYetValid
        }
        CertificateError::Other(OtherError(other)) if other.is::<WrongIdentity>() => {
            Reason::PeerWrongIdentity
        }
        // Of a server outside, whose name is a DNS name.
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Reason::PeerWrongIdentity
        }
        CertificateError::Revoked => Reason::PeerRevoked,
        _ => Reason::PeerUntrusted,
    }
}

/// Whether an alert says that our certificate was not accepted (RFC 8446 section 6.2).
fn is_of_certificates(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
            // A chain whose signatures are not the root's.
            | AlertDescription::DecryptError
    )
}

/// Whether an error on an established connection is the endpoint's refusal of our certificate, and in which words: in TLS
/// 1.3 the caller is through with its handshake before its certificate is looked at (RFC 8446 section 4.4.2.4), so that the
/// refusal is what comes instead of the answer.
pub(crate) fn refused_us(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = inner
            .and_then(|inner| inner.downcast_ref::<Error>())
            .or_else(|| error.downcast_ref::<Error>());
        if let Some(Error::AlertReceived(alert)) = tls {
            return is_of_certificates(*alert).then(|| words::of_alert(*alert));
        }
        next = error.source();
    }
    None
}
