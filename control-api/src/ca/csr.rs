//! Reading a signing request (RFC 2986): its public key is taken, if the requester has the private one, and nothing else.
//!
//! **Does not** look at the names, usages or anything else that is asked for: a request cannot ask for anything.

use outrigger_config::join::RefusalReason;
use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ED25519};
use x509_parser::prelude::FromDer;

use super::join::Refused;

/// The longest request that is read: one of P-384 with a page of names has a third of it.
pub(super) const CSR_BYTES_MAX: usize = 8 * 1024;

/// Reads the request and checks that it is signed by its own key.
pub(crate) fn public_key(pem: &str) -> Result<SubjectPublicKeyInfo, Refused> {
    let malformed = |what: &dyn std::fmt::Display| {
        let sentence = format!(
            "the signing request cannot be read: {what}; expected one in PEM, such as `openssl req -new` writes"
        );
        Refused::of(RefusalReason::MalformedCsr, sentence)
    };
    if pem.len() > CSR_BYTES_MAX {
        return Err(malformed(&format_args!(
            "it has {} bytes where at most {CSR_BYTES_MAX} are read",
            pem.len()
        )));
    }
    let block = pem::parse(pem).map_err(|error| malformed(&error))?;
    if !matches!(block.tag(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
        return Err(malformed(&format_args!("it is a {:?}", block.tag())));
    }
    let (rest, request) =
        X509CertificationRequest::from_der(block.contents()).map_err(|error| malformed(&error))?;
    if !rest.is_empty() {
        return Err(malformed(&"something follows it"));
    }
    let key = &request.certification_request_info.subject_pki;
    let curve = key
        .algorithm
        .parameters
        .as_ref()
        .and_then(|found| found.as_oid().ok());
    let kind = &key.algorithm.algorithm;
    let allowed = *kind == OID_SIG_ED25519
        || (*kind == OID_KEY_TYPE_EC_PUBLIC_KEY
            && curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384));
    if !allowed {
        let sentence = "the key is of a kind that is not taken: make one on P-256 or P-384, or Ed25519";
        return Err(Refused::of(RefusalReason::KeyNotAllowed, sentence));
    }
    // Whoever cannot sign with the key does not have it, and would be given a name for somebody else's.
    request.verify_signature().map_err(|error| {
        let sentence = format!("the signing request is not signed by its own key ({error})");
        Refused::of(RefusalReason::CsrSignature, sentence)
    })?;
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|error| malformed(&error))
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512,
        PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData,
    };

    use super::*;

    fn request(key: &KeyPair) -> String {
        let params = CertificateParams::new(vec!["admin.example".to_owned()]).unwrap();
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn the_three_kinds_of_keys_are_taken_and_no_other() {
        for kind in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let key = KeyPair::generate_for(kind).unwrap();
            let read = public_key(&request(&key)).unwrap();
            assert_eq!(read.subject_public_key_info(), key.subject_public_key_info());
        }
        for kind in [&PKCS_ECDSA_P521_SHA512, &PKCS_RSA_SHA256] {
            let key = KeyPair::generate_for(kind).unwrap();
            let refused = public_key(&request(&key)).unwrap_err();
            assert_eq!(refused.reason, RefusalReason::KeyNotAllowed);
        }
    }

    #[test]
    fn a_request_that_its_key_did_not_sign_is_refused() {
        let key = KeyPair::generate().unwrap();
        let block = pem::parse(request(&key)).unwrap();
        let mut der = block.into_contents();
        // The last byte of the signature.
        *der.last_mut().unwrap() ^= 1;
        let refused = public_key(&pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der))).unwrap_err();
        assert_eq!(refused.reason, RefusalReason::CsrSignature);
    }

    #[test]
    fn what_is_no_request_is_malformed_and_panics_nowhere() {
        let key = KeyPair::generate().unwrap();
        let good = request(&key);
        let der = pem::parse(&good).unwrap().into_contents();
        let mut texts = vec![
            String::new(),
            "hello".to_owned(),
            key.serialize_pem(),
            "x".repeat(CSR_BYTES_MAX + 1),
            good.replace("REQUEST", "REQUES"),
        ];
        for end in 0..der.len() {
            texts.push(pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", &der[..end])));
        }
        let mut longer = der.clone();
        longer.push(0);
        texts.push(pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", longer)));
        for text in texts {
            assert_eq!(
                public_key(&text).unwrap_err().reason,
                RefusalReason::MalformedCsr,
                "{text}"
            );
        }
        for at in 0..der.len() {
            let mut bent = der.clone();
            bent[at] ^= 0x55;
            // Refused in one way or another, but for bits on which nothing depends.
            if let Ok(read) = public_key(&pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", bent))) {
                assert_eq!(read.subject_public_key_info(), key.subject_public_key_info());
            }
        }
    }
}
