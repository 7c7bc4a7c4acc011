//! The journey of one request for a certificate: limit, read, prove, issue, note. A certificate or a refusal with its
//! reason, either of them in the audit log.
//!
//! **Does not** know HTTP or TLS: who is at the other end was established before. Calls block.
//!
//! **Invariant:** the use of a token, the certificate and the row of the audit log are one transaction: of two who bring
//! a token that is good once more, one gets a certificate.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use outrigger_config::join::{
    IdentityAnswer, IdentityRequest, JoinToken, RefusalReason, service_of, service_problem, spiffe_id,
};
use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use time::OffsetDateTime;

use super::authority::{SignError, Signed};
use super::limits::{Verdict, Who};
use super::random::hexadecimal;
use super::revoked::digits;
use super::roots::{Roots, Trusted};
use super::{Ca, CaError, csr, millis, rfc3339, tokens};
use crate::store::ledger::{AuditRow, Deed, LEAVES_MAX, Leaf, Ledger};
use crate::store::{Store, StoreError};

/// One request and what is known of who sent it.
#[derive(Debug)]
pub struct Attempt {
    /// What was asked, or why it could not be read.
    pub request: Result<IdentityRequest, String>,
    /// Where it came from.
    pub source: IpAddr,
    /// The client certificate of the connection, which TLS has verified.
    pub proof: Option<Proof>,
}

impl Attempt {
    /// Against whom it counts if it fails: a token may be anybody's guess, a certificate is its bearer's own.
    fn who(&self) -> Who {
        let brings_token = self.request.as_ref().is_ok_and(|request| request.token.is_some());
        match &self.proof {
            Some(proof) if !brings_token => Who::Bearer(proof.bearer()),
            _ => self.source.into(),
        }
    }
}

/// A certificate of the mesh whose key the other end of the connection has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Whose it is.
    pub spiffe_id: String,
    /// Its serial number in hexadecimal.
    pub serial: String,
    /// Those of the certificates that were shown along with it.
    pub vouched_by: Vec<String>,
    /// When it expires; a connection may live longer.
    pub not_after: OffsetDateTime,
    /// SHA-256 of it.
    pub sha256: [u8; 32],
    /// SHA-256 of each root of that moment that it leads to; a connection may outlive these too.
    pub roots: Vec<[u8; 32]>,
}

impl Proof {
    /// What its bearer is known by where attempts and connections are counted: the certificate itself, since who has the key of a
    /// root can sign another of the same number.
    pub(crate) fn bearer(&self) -> String {
        hexadecimal(&self.sha256)
    }
}

/// What time it is: on the wall, for certificates, and for measuring.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The date.
    pub wall: OffsetDateTime,
    /// A clock that only goes forward.
    pub clock: Instant,
}

impl Now {
    /// The present.
    pub fn read() -> Self {
        Self {
            wall: OffsetDateTime::now_utc(),
            clock: Instant::now(),
        }
    }
}

/// Why there is no certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which of the closed set it is.
    pub reason: RefusalReason,
    /// What happened and what to do.
    pub sentence: String,
    /// When it is worth asking again, if it is.
    pub retry_after: Option<Duration>,
}

impl Refused {
    pub(super) fn of(reason: RefusalReason, sentence: impl Into<String>) -> Self {
        Self {
            reason,
            sentence: sentence.into(),
            retry_after: None,
        }
    }

    fn limited(retry_after: Duration) -> Self {
        let seconds = retry_after.as_secs() + 1;
        let sentence = format!("too many attempts failed: try again in {seconds}s");
        Self {
            retry_after: Some(retry_after),
            ..Self::of(RefusalReason::RateLimited, sentence)
        }
    }

    /// Who renews more often than anybody must has lost its way, or means harm.
    fn too_often(retry_after: Duration) -> Self {
        let seconds = retry_after.as_secs() + 1;
        let sentence = format!("what came of this join is renewed too often: try again in {seconds}s");
        Self {
            retry_after: Some(retry_after),
            ..Self::of(RefusalReason::RateLimited, sentence)
        }
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store failed; no certificate was issued");
        Self::of(
            RefusalReason::CaUnavailable,
            "the store of the control API failed; its log says more",
        )
    }
}

impl From<CaError> for Refused {
    fn from(error: CaError) -> Self {
        tracing::error!(%error, "no certificate was issued");
        Self::of(
            RefusalReason::CaUnavailable,
            "the CA of the control API failed; its log says more",
        )
    }
}

impl From<SignError> for Refused {
    fn from(error: SignError) -> Self {
        tracing::error!(%error, "no certificate was issued");
        Self::of(RefusalReason::CaUnavailable, error.to_string())
    }
}

/// What an attempt has shown of itself so far, for the audit log.
#[derive(Debug, Default)]
struct Trail {
    who: String,
    token: String,
    service: String,
}

/// What an attempt is proved by.
enum Credential {
    Token(JoinToken),
    Proof(Proof),
}

/// Issues a certificate, or says why not.
pub fn join(ca: &Ca, store: &Store, attempt: Attempt, now: Now) -> Result<IdentityAnswer, Refused> {
    let source = attempt.source;
    let mut trail = Trail::default();
    let who = attempt.who();
    let before = ca.limits().before(&who, now.clock);
    if let Verdict::Over { retry_after, note } = before {
        let refused = Refused::limited(retry_after);
        if note {
            note_refusal(store, source, trail, &refused, now);
        }
        return Err(refused);
    }
    let issued = issue(ca, store, attempt, &mut trail, now);
    issued.map_err(|refused| {
        if refused.reason == RefusalReason::CaUnavailable {
            // Not the asker's fault, so nothing is held against it.
            note_refusal(store, source, trail, &refused, now);
            return refused;
        }
        match ca.limits().failed(&who, now.clock) {
            Verdict::Heard => {
                note_refusal(store, source, trail, &refused, now);
                refused
            }
            Verdict::Over { retry_after, note } => {
                let limited = Refused::limited(retry_after);
                if note {
                    note_refusal(store, source, trail, &limited, now);
                }
                // Whoever has a certificate guesses nothing, and may have to know why, to use its token instead.
                match who {
                    Who::Bearer(_) => refused,
                    Who::Address(_) => limited,
                }
            }
        }
    })
}

/// From the request to the certificate, the audit log's row included.
fn issue(
    ca: &Ca,
    store: &Store,
    attempt: Attempt,
    trail: &mut Trail,
    now: Now,
) -> Result<IdentityAnswer, Refused> {
    let request = attempt
        .request
        .map_err(|what| Refused::of(RefusalReason::MalformedRequest, what))?;
    let asked = request.service.as_deref();
    trail.service = asked
        .filter(|name| service_problem(name).is_none())
        .unwrap_or_default()
        .to_owned();
    let credential = credential(request.token.as_deref(), attempt.proof, trail)?;
    let key = csr::public_key(&request.csr)?;
    let ledger = store.ledger()?;
    let domain = ca.trust_domain(store, &ledger, now.wall)?;
    let (service, spent) = match &credential {
        Credential::Token(token) => {
            let der = key.subject_public_key_info();
            let spent = tokens::find_use(&ledger, token, asked, (&der, now.wall))?;
            (spent.service().to_owned(), Some(spent))
        }
        Credential::Proof(proof) => {
            hold_roots(&ca.roots_of(ledger.roots()?)?.trusted()?, proof)?;
            (renewing(proof, &domain, asked, now)?, None)
        }
    };
    trail.service.clone_from(&service);
    let id = spiffe_id(&domain, &service);
    let proof = match &credential {
        Credential::Token(_) => None,
        Credential::Proof(proof) => Some(proof),
    };
    let origin = origin(&ledger, &credential, spent.as_ref().and_then(tokens::Use::joined))?;
    let shown = proof.map(|proof| (&proof.serial, &proof.vouched_by));
    let serials = shown
        .into_iter()
        .flat_map(|(own, others)| [own].into_iter().chain(others));
    hold_revocations(store, &id, serials.chain(&origin.joined))?;
    let is_adopted = hold_issued(&origin, ca.options.adopt_unknown)?;
    if let Some(joined) = &origin.joined {
        let life = ca.certificate_life().unsigned_abs();
        let wait = ca.limits().renewed(joined, life, now.clock);
        wait.map_or(Ok(()), |wait| Err(Refused::too_often(wait)))?;
    }
    let whose = Whose {
        service: &service,
        id: &id,
        origin,
    };
    let (signed, roots) = sign(ca, &ledger, &key, whose, now)?;
    let trusted = roots.trusted()?;
    if let Some(spent) = spent {
        spent.note(&ledger, &signed.serial, now.wall)?;
    }
    ledger.fix_trust_domain(&domain)?;
    let instead = proof.map(|old| (&*old.serial, is_adopted));
    ledger.audit(row(trail, attempt.source, instead, &signed, now))?;
    ledger.commit()?;
    ca.tell_trusted(store, &trusted);
    tracing::info!(spiffe_id = id, serial = signed.serial, source = %attempt.source, token = trail.token, "certificate issued");
    let half = (signed.not_after - now.wall) / 2;
    Ok(IdentityAnswer {
        bundle: roots.bundle(),
        roots: trusted.name,
        spiffe_id: id,
        serial: signed.serial,
        not_after: rfc3339(signed.not_after),
        renew_after: rfc3339(now.wall + half),
        certificates: signed.certificates,
    })
}

/// The row of the audit log about a certificate that was issued. `instead`: the number of the one that it renews, and whether
/// that one is not known here.
fn row(trail: &Trail, source: IpAddr, instead: Option<(&str, bool)>, signed: &Signed, now: Now) -> AuditRow {
    let until = rfc3339(signed.not_after);
    let (deed, note) = match instead {
        None => (Deed::Issued, format!("until {until}")),
        Some((old, false)) => (Deed::Renewed, format!("instead of {old}; until {until}")),
        Some((old, true)) => (
            Deed::Renewed,
            format!("instead of {old}, which is unknown here; until {until}"),
        ),
    };
    let mut row = AuditRow::of(deed, rfc3339(now.wall));
    row.who.clone_from(&trail.who);
    row.source = source.to_string();
    row.token.clone_from(&trail.token);
    row.service.clone_from(&trail.service);
    row.serial.clone_from(&signed.serial);
    row.note = note;
    row
}

/// What the attempt is proved by. A token goes before a certificate: whoever pastes one means it.
fn credential(token: Option<&str>, proof: Option<Proof>, trail: &mut Trail) -> Result<Credential, Refused> {
    match (token, proof) {
        (Some(text), _) => {
            let token: JoinToken = text
                .parse()
                .map_err(|what: String| Refused::of(RefusalReason::TokenMalformed, what))?;
            trail.token.clone_from(&token.id);
            Ok(Credential::Token(token))
        }
        (None, Some(proof)) => {
            trail.who.clone_from(&proof.spiffe_id);
            Ok(Credential::Proof(proof))
        }
        (None, None) => {
            let sentence = "the request brings neither a token nor a client certificate: join with a token from \
                            `outrigger token create`, or renew over TLS with the certificate that is to be renewed";
            Err(Refused::of(RefusalReason::NoCredential, sentence))
        }
    }
}

/// Refuses a certificate that led to roots that have been taken away since the handshake.
fn hold_roots(trusted: &Trusted, proof: &Proof) -> Result<(), Refused> {
    if trusted.has_any(&proof.roots) {
        return Ok(());
    }
    let sentence =
        "the root of the certificate was taken away while the connection was open: join again with a token";
    Err(Refused::of(RefusalReason::NoCredential, sentence))
}

/// The service whose certificate is renewed.
fn renewing(proof: &Proof, domain: &str, asked: Option<&str>, now: Now) -> Result<String, Refused> {
    if proof.not_after <= now.wall {
        let sentence = "the certificate expired while the connection was open: join again with a token";
        return Err(Refused::of(RefusalReason::NoCredential, sentence));
    }
    let service = service_of(&proof.spiffe_id, domain);
    let Some(service) = service.filter(|service| asked.is_none_or(|asked| asked == *service)) else {
        let sentence = format!(
            "the certificate is of `{}`: it cannot be renewed as {}",
            proof.spiffe_id,
            asked.map_or_else(
                || format!("one of a service of `{domain}`"),
                |asked| format!("`{}`", asked.escape_default())
            )
        );
        return Err(Refused::of(RefusalReason::OtherService, sentence));
    };
    Ok(service.to_owned())
}

/// How the bearer of a certificate came into the mesh.
struct Origin {
    /// The serial number of the certificate that it joined with; none if it joins now.
    joined: Option<String>,
    /// The id of the token that it joined by.
    token: String,
    /// Whether this store has issued what is renewed.
    issued: Issued,
}

/// Whether a certificate was issued here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Issued {
    /// It was, or nothing is renewed.
    Here,
    /// Nothing is known of it: it was signed elsewhere, or after the backup was made that this store came from.
    Unknown,
    /// Another one was issued under its number: it was signed elsewhere, by who knows that one.
    InItsName,
}

/// Whose certificate it is.
struct Whose<'a> {
    service: &'a str,
    id: &'a str,
    origin: Origin,
}

/// How the bearer came into the mesh: by the token that it brings, or as whoever had the certificate that it renews.
/// `answered`: the certificate that was issued to it by this use of the token already.
fn origin(ledger: &Ledger, credential: &Credential, answered: Option<&str>) -> Result<Origin, StoreError> {
    let proof = match credential {
        Credential::Token(token) => {
            return Ok(Origin {
                joined: answered.map(str::to_owned),
                token: token.id.clone(),
                issued: Issued::Here,
            });
        }
        Credential::Proof(proof) => proof,
    };
    let held = ledger.leaf(millis(proof.not_after), &proof.serial)?;
    let issued = match &held {
        None => Issued::Unknown,
        // A certificate of before, of which the number and the end are all that is known.
        Some(leaf) if leaf.sha256.is_none_or(|own| own == proof.sha256) => Issued::Here,
        Some(_) => Issued::InItsName,
    };
    // Where nothing is known of its join, its own number is the first that is.
    let known = held.filter(|leaf| !leaf.joined.is_empty());
    let known = known.map(|leaf| (leaf.joined, leaf.token));
    let (joined, token) = known.unwrap_or_else(|| (proof.serial.clone(), String::new()));
    Ok(Origin {
        joined: Some(joined),
        token,
        issued,
    })
}

/// Refuses to renew what was not issued here: whoever has the key of a root can sign any certificate, and by renewals it would
/// outlive that root. Says whether it is let in all the same, because the operator wants it.
fn hold_issued(origin: &Origin, adopt_unknown: bool) -> Result<bool, Refused> {
    let what = match origin.issued {
        Issued::Here => return Ok(false),
        Issued::Unknown if adopt_unknown => return Ok(true),
        Issued::Unknown => {
            "though it leads to a root of the mesh. If the store was put back from a backup that is older than the \
             certificate, join again with a token, or start `outrigger serve` with --adopt-unknown-certificates for as long \
             as such certificates live; if it was not, the key of that root may be in other hands: replace the root \
             (`outrigger ca rotate start`)"
        }
        Issued::InItsName => {
            "though another of its serial number was: the key of its root is in other hands; replace the root \
             (`outrigger ca rotate start`)"
        }
    };
    let sentence = format!("the certificate was not issued by this control API, {what}");
    Err(Refused::of(RefusalReason::CertificateUnknown, sentence))
}

/// Refuses what the mesh has revoked: the identity, the certificate that is shown or one that vouches for it, or the one
/// that its bearer joined with, so that who has renewed since is not let off. Serial numbers are compared as sidecars
/// do, without the zeros before them: DER puts one before a number whose first bit is set.
fn hold_revocations<'a>(
    store: &Store,
    id: &str,
    mut serials: impl Iterator<Item = &'a String>,
) -> Result<(), Refused> {
    let revoked = super::mesh(&store.head()).revoked.unwrap_or_default();
    let revoked_serials = revoked
        .serials
        .iter()
        .map(|serial| digits(serial))
        .collect::<HashSet<_>>();
    let by_serial = serials.any(|serial| revoked_serials.contains(&digits(serial)));
    if by_serial || revoked.identities.iter().any(|revoked| revoked == id) {
        let what = if by_serial {
            "the certificate, one that vouches for it, or the one that it was renewed from,"
        } else {
            "the identity"
        };
        let sentence = format!("{what} is revoked: the `revoked` of the Mesh document names it");
        return Err(Refused::of(RefusalReason::IdentityRevoked, sentence));
    }
    Ok(())
}

/// Signs, and notes the certificate as alive. Gives the roots of this moment along with it.
fn sign(
    ca: &Ca,
    ledger: &Ledger,
    key: &SubjectPublicKeyInfo,
    whose: Whose<'_>,
    now: Now,
) -> Result<(Signed, Roots), Refused> {
    let roots = ca.advance(ledger, now.wall)?;
    let signed = roots.sign_for(key, whose.service, whose.id, ca.certificate_life(), now.wall)?;
    let leaf = Leaf {
        serial: signed.serial.clone(),
        service: whose.service.to_owned(),
        not_after_ms: millis(signed.not_after),
        root: roots.active().number,
        knows_root: roots.newest(),
        joined: whose.origin.joined.unwrap_or_else(|| signed.serial.clone()),
        token: whose.origin.token,
        sha256: Some(signed.sha256),
    };
    if !ledger.add_leaf(&leaf, millis(now.wall))? {
        tracing::error!(
            LEAVES_MAX,
            "too many certificates are alive; something joins in a loop"
        );
        let sentence =
            format!("{LEAVES_MAX} certificates are alive, which is the most: something joins in a loop");
        return Err(Refused::of(RefusalReason::CaUnavailable, sentence));
    }
    Ok((signed, roots))
}

/// Writes a refusal into the audit log. That it cannot be written changes nothing for the asker.
fn note_refusal(store: &Store, source: IpAddr, trail: Trail, refused: &Refused, now: Now) {
    tracing::warn!(
        reason = refused.reason.word(), %source, token = trail.token, service = trail.service,
        "no certificate: {}", refused.sentence
    );
    let mut row = AuditRow::of(Deed::Refused, rfc3339(now.wall));
    row.reason = Some(refused.reason);
    row.who = trail.who;
    row.source = source.to_string();
    row.token = trail.token;
    row.service = trail.service;
    row.note.clone_from(&refused.sentence);
    let written = store.ledger().and_then(|ledger| {
        ledger.audit(row)?;
        ledger.commit()
    });
    if let Err(error) = written {
        tracing::error!(%error, "a refusal could not be written to the audit log");
    }
}
