//! What rustls says of a handshake, in words for people: who reads them runs a service and has not read rustls.
//!
//! Each is half a sentence about the other end, "it", to stand behind its name. What has no words here is told by rustls' own
//! name for it, written apart.
//!
//! **Does not** name reasons: `verify` does.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use outrigger_config::units;
use rustls::{AlertDescription, CertificateError, Error, OtherError};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// An error of a connection that speaks TLS.
pub(super) fn of_io(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match (inner, error.kind()) {
        (Some(tls), _) => of(tls),
        (None, io::ErrorKind::UnexpectedEof) => {
            "it closed the connection in the middle of the handshake; does it speak TLS there?".to_owned()
        }
        (None, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            format!("it ended the connection in the middle of the handshake ({error})")
        }
        (None, _) => error.to_string(),
    }
}

/// An error of rustls.
pub(super) fn of(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(why) => of_certificate(why),
        Error::AlertReceived(alert) => of_alert(*alert),
        Error::NoCertificatesPresented => "it showed no certificate".to_owned(),
        Error::InvalidMessage(_) => "what it says is no TLS; does it speak plaintext there?".to_owned(),
        Error::NoApplicationProtocol => {
            "it speaks none of the protocols that are spoken here (ALPN)".to_owned()
        }
        Error::PeerIncompatible(why) => {
            format!("it has no way of TLS in common with this end ({})", apart(why))
        }
        Error::PeerMisbehaved(why) => format!("it does not keep to TLS ({})", apart(why)),
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            "it does not keep to TLS: another message was due".to_owned()
        }
        // What verifiers of ours say is a sentence already.
        Error::General(words) => words.clone(),
        other => other.to_string(),
    }
}

/// Why a certificate is not accepted.
fn of_certificate(why: &CertificateError) -> String {
    match why {
        CertificateError::Expired => "its certificate has expired".to_owned(),
        CertificateError::ExpiredContext { time, not_after } => format!(
            "its certificate expired at {}, {} ago",
            date(not_after.as_secs()),
            whole(time.as_secs().saturating_sub(not_after.as_secs()))
        ),
        CertificateError::NotValidYet => "its certificate is not valid yet; is the clock right?".to_owned(),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "its certificate is valid from {} on, in {}; is the clock right?",
            date(not_before.as_secs()),
            whole(not_before.as_secs().saturating_sub(time.as_secs()))
        ),
        CertificateError::UnknownIssuer => {
            "its certificate leads to none of the roots that are trusted here".to_owned()
        }
        CertificateError::BadSignature => {
            "its certificate is not signed by the root that it names, but by another of the same name"
                .to_owned()
        }
        CertificateError::BadEncoding => "its certificate cannot be read".to_owned(),
        CertificateError::Revoked => "its certificate or its identity is revoked".to_owned(),
        CertificateError::NotValidForName => "its certificate is for another name".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            match &presented[..] {
                [] => format!("its certificate is for no name, and `{expected}` is meant"),
                names => format!(
                    "its certificate is for {}, and `{expected}` is meant",
                    names.join(", ")
                ),
            }
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate may not be used at this end of a connection (extended key usage)".to_owned()
        }
        CertificateError::Other(OtherError(other)) => match apart(other).as_str() {
            "ca used as end entity" => "its certificate is that of a CA, and not of a workload".to_owned(),
            // Errors of webpki are told by their names, ours by sentences.
            name if other.to_string() == format!("{other:?}") => {
                format!("its certificate is not accepted ({name})")
            }
            _ => other.to_string(),
        },
        other => format!("its certificate is not accepted ({})", apart(other)),
    }
}

/// What the other end says of ours, or of us (RFC 8446 section 6.2).
pub(super) fn of_alert(alert: AlertDescription) -> String {
    let words = match alert {
        AlertDescription::UnknownCA => "it does not trust the root that our certificate leads to",
        AlertDescription::CertificateExpired => "it says that our certificate is expired, or not valid yet",
        AlertDescription::CertificateRevoked => "it says that our certificate is revoked",
        AlertDescription::CertificateRequired => "it asks for a certificate, and was shown none",
        AlertDescription::DecryptError => "it could not verify a signature of ours",
        AlertDescription::AccessDenied => "it accepts our certificate and does not let us in",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => "it does not accept our certificate",
        AlertDescription::ProtocolVersion => "it speaks no version of TLS that is spoken here",
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            "it has no way of TLS in common with this end"
        }
        AlertDescription::NoApplicationProtocol => {
            "it speaks none of the protocols that are spoken here (ALPN)"
        }
        AlertDescription::InternalError => "it cannot shake hands just now, and its own log says why",
        AlertDescription::UnrecognisedName => "it does not know the name that it was asked by",
        AlertDescription::DecodeError | AlertDescription::UnexpectedMessage => {
            "it took what it was sent for no TLS"
        }
        _ => return format!("it ended the handshake (alert {})", apart(&alert)),
    };
    format!("{words} (alert {})", apart(&alert))
}

/// The name that the debugger shows, as words: `CaUsedAsEndEntity` is "ca used as end entity".
fn apart(named: &impl std::fmt::Debug) -> String {
    let name = format!("{named:?}");
    let mut words = String::with_capacity(name.len() + 8);
    let mut before = ' ';
    for c in name.chars() {
        if c.is_uppercase() && before.is_lowercase() {
            words.push(' ');
        }
        words.extend(c.to_lowercase());
        before = c;
    }
    words
}

pub(super) fn date(seconds: u64) -> String {
    let moment = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let text = moment.and_then(|moment| moment.format(&Rfc3339).ok());
    text.unwrap_or_else(|| format!("{seconds} s after 1970"))
}

/// So many seconds, by the largest unit that is whole.
pub(super) fn whole(seconds: u64) -> String {
    let unit = [86_400, 3600, 60].into_iter().find(|unit| seconds >= 2 * unit);
    let rounded = unit.map_or(seconds, |unit| seconds - seconds % unit);
    units::Duration(Duration::from_secs(rounded)).to_string()
}

/// An error whose words are these; what it was stays below it, for whoever tells them apart.
pub(super) fn told(error: io::Error) -> io::Error {
    let words = of_io(&error);
    io::Error::new(error.kind(), Told { words, error })
}

#[derive(Debug)]
struct Told {
    words: String,
    error: io::Error,
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.words)
    }
}

impl StdError for Told {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.error)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::PeerIncompatible;
    use rustls_pki_types::{ServerName, UnixTime};

    use super::*;

    #[test]
    fn what_rustls_says_is_told_in_words() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let ours = OtherError(Arc::new(io::Error::other(
            "it is spiffe://a/b, and spiffe://a/c is meant",
        )));
        for (error, expected) in [
            (
                CertificateError::ExpiredContext {
                    time: at(1_000_000 + 3 * 86_400 + 7),
                    not_after: at(1_000_000),
                },
                "its certificate expired at 1970-01-12T13:46:40Z, 72h ago",
            ),
            (
                CertificateError::NotValidYetContext {
                    time: at(1_000_000),
                    not_before: at(1_000_050),
                },
                "its certificate is valid from 1970-01-12T13:47:30Z on, in 50s; is the clock right?",
            ),
            (
                CertificateError::NotValidForNameContext {
                    expected: ServerName::try_from("api.example.com").unwrap(),
                    presented: vec!["a.example.com".to_owned()],
                },
                "its certificate is for a.example.com, and `api.example.com` is meant",
            ),
            (
                CertificateError::Other(ours),
                "it is spiffe://a/b, and spiffe://a/c is meant",
            ),
            (
                CertificateError::UnhandledCriticalExtension,
                "its certificate is not accepted (unhandled critical extension)",
            ),
        ] {
            assert_eq!(of(&Error::InvalidCertificate(error)), expected);
        }
        assert_eq!(
            of(&Error::AlertReceived(AlertDescription::CertificateRequired)),
            "it asks for a certificate, and was shown none (alert certificate required)"
        );
        assert_eq!(
            of(&Error::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
            )),
            "it has no way of TLS in common with this end (server does not support tls12or13)"
        );
        let told = told(io::Error::other(Error::InvalidCertificate(
            CertificateError::UnknownIssuer,
        )));
        assert_eq!(
            told.to_string(),
            of(&Error::InvalidCertificate(CertificateError::UnknownIssuer))
        );
    }
}
