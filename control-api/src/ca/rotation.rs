//! One root follows another without a break: first it is handed out to be trusted, then it signs, then the old one is no
//! longer handed out.
//!
//! Each step waits for the one before to have reached every sidecar, which shows in the certificates that are alive:
//! each was handed out together with the roots of its day, and all are renewed at half their life. What knows the mesh by
//! the old root alone, a token or an operator's tool, is served until that is taken away: it vouches for the new one.
//!
//! **Does not** rotate a CA that the operator gave: its root is not ours.

use outrigger_config::join::fingerprint_text;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::roots::{self, Roots};
use super::tokens::TokenState;
use super::{Ca, CaError, add_root, authority, millis, rfc3339, rfc3339_of};
use crate::store::ledger::{AuditRow, Deed, Leaf, Ledger, RootState, Token};
use crate::store::{Store, StoreError};

/// The CA as it stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The name under which every identity stands.
    pub trust_domain: String,
    /// How long a new certificate is good.
    pub certificate_ttl: String,
    /// When what signs expires (RFC 3339).
    pub signs_until: String,
    /// The roots, oldest first.
    pub roots: Vec<RootView>,
    /// Certificates that have not expired.
    pub certificates: usize,
    /// Of those, the ones whose sidecar does not know the newest root yet.
    pub without_newest_root: usize,
    /// Of those, the ones that do not lead to the root that signs now.
    pub of_older_root: usize,
    /// Tokens that are good and do not name the root that signs now.
    pub tokens_of_older_root: usize,
    /// What is to be done next, in words.
    pub next: String,
}

/// A root as it is shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RootView {
    /// Which one.
    pub number: u64,
    /// Where it stands in its life.
    pub state: RootState,
    /// SHA-256 of its certificate, as it stands at the end of tokens.
    pub fingerprint: String,
    /// Its key is the operator's.
    pub given: bool,
    /// When it was taken in (RFC 3339).
    pub since: String,
    /// Its certificate in PEM.
    pub certificate: String,
}

/// The CA as it stands. It waits for nobody who writes; what is issued meanwhile may be counted or not.
pub fn status(ca: &Ca, store: &Store, now: OffsetDateTime) -> Result<Status, CaError> {
    let roots = ca.roots_of(store.roots()?)?;
    let alive = store.leaves(millis(now))?;
    let of_older_root = older(&alive, &roots).len();
    let tokens_of_older_root = older_tokens(store.tokens()?, &roots, now).len();
    let without_newest_root = waiting(&alive, roots.newest());
    let mut views = Vec::new();
    for root in roots.rows() {
        let fingerprint = authority::fingerprint(&root.certificate).map_err(CaError::Sign)?;
        views.push(RootView {
            number: root.number,
            state: root.state,
            fingerprint: fingerprint_text(&fingerprint),
            given: root.given,
            since: rfc3339_of(root.since_ms),
            certificate: root.certificate.clone(),
        });
    }
    let retiring = views.iter().any(|root| root.state == RootState::Retiring);
    let next = if roots.next().is_some() {
        "the new root signs once every sidecar knows it; nothing to do, but where the old key is in other hands: \
         `outrigger ca rotate sign`"
            .to_owned()
    } else if retiring && of_older_root > 0 {
        "certificates of the old root are still alive; `outrigger ca rotate finish` once there are none"
            .to_owned()
    } else if retiring && tokens_of_older_root > 0 {
        "tokens that are good name the old root: revoke them or let them expire, then `outrigger ca rotate finish`"
            .to_owned()
    } else if retiring {
        "`outrigger ca rotate finish` takes the old root away".to_owned()
    } else {
        "nothing is being rotated".to_owned()
    };
    Ok(Status {
        trust_domain: ca.trust_domain_now(store, now)?,
        certificate_ttl: ca.options.certificate_life.to_string(),
        signs_until: rfc3339(roots.signs().not_after()),
        roots: views,
        certificates: alive.len(),
        without_newest_root,
        of_older_root,
        tokens_of_older_root,
        next,
    })
}

/// Makes a new root and hands it out from now on.
pub fn start(ca: &Ca, store: &Store, author: &str, now: OffsetDateTime) -> Result<(), CaError> {
    let ledger = store.ledger()?;
    let roots = ca.roots_of(ledger.roots()?)?;
    if roots.active().given {
        let sentence =
            "the CA was given by the operator with --ca-cert: its root is replaced where it was made";
        return Err(CaError::NotNow(sentence.to_owned()));
    }
    if roots.rows().len() > 1 {
        let sentence = "a rotation is under way already: `outrigger ca rotate status` says how far it is";
        return Err(CaError::NotNow(sentence.to_owned()));
    }
    let (root, _) = roots::make(&ca.folder, roots.newest() + 1, RootState::Next, now)?;
    add_root(&ledger, &root, author, now)?;
    let trusted = ca.roots_of(ledger.roots()?)?.trusted()?;
    ledger.commit()?;
    ca.changes.send_replace(());
    ca.tell_trusted(store, &trusted);
    tracing::info!(root = root.number, author, "a new root is handed out from now on");
    Ok(())
}

/// Lets the new root sign from now on, though there are certificates alive that were handed out without it: where the key of
/// the old one is in other hands, an hour of refused handshakes is the smaller harm.
pub fn sign(ca: &Ca, store: &Store, author: &str, now: OffsetDateTime) -> Result<(), CaError> {
    let ledger = store.ledger()?;
    let roots = ca.roots_of(ledger.roots()?)?;
    let Some(next) = roots.next() else {
        let sentence = "there is no root that does not sign yet: `outrigger ca rotate start` makes one, and \
                        `outrigger ca rotate status` says how far it is";
        return Err(CaError::NotNow(sentence.to_owned()));
    };
    let left = waiting(&ledger.leaves(millis(now))?, next.number);
    let what = match left {
        0 => String::new(),
        left => format!("by word: {left} certificates were alive that were handed out without it"),
    };
    let trusted = ca.promote(&ledger, &roots, (author, &what), now)?.trusted()?;
    ledger.commit()?;
    ca.tell_trusted(store, &trusted);
    Ok(())
}

/// Takes the old root away. Unless `force` is given, only when no certificate that leads to it is alive, and no good token
/// names it. By force also before the new one signs, which it does from then on.
pub fn finish(ca: &Ca, store: &Store, author: &str, force: bool, now: OffsetDateTime) -> Result<(), CaError> {
    let ledger = store.ledger()?;
    // Where no sidecar is left that does not know the new root, it can sign at once.
    let mut roots = ca.advance(&ledger, now)?;
    if roots.rows().len() < 2 {
        return Err(CaError::NotNow(
            "no rotation is under way: `outrigger ca rotate start` begins one".to_owned(),
        ));
    }
    let alive = ledger.leaves(millis(now))?;
    if force && roots.next().is_some() {
        roots = ca.promote(&ledger, &roots, (author, "by force"), now)?;
    }
    if roots.next().is_some() {
        return Err(CaError::NotNow(format!(
            "the new root does not sign yet: {} certificates are alive that were handed out without it, the last until {}. \
             Wait; where the old key is in other hands, `outrigger ca rotate sign` lets the new one sign at once",
            waiting(&alive, roots.newest()),
            alive
                .last()
                .map_or_else(|| rfc3339(now), |last| rfc3339_of(last.not_after_ms)),
        )));
    }
    let (old, tokens) = (older(&alive, &roots), older_tokens(ledger.tokens()?, &roots, now));
    if !force {
        hold_old_root(&old, &tokens)?;
    }
    let lost = match (old.len(), tokens.len()) {
        (0, 0) => String::new(),
        (certificates, tokens) => {
            format!("by force: {certificates} certificates and {tokens} tokens were good")
        }
    };
    let gone: Vec<u64> = roots
        .rows()
        .iter()
        .filter(|root| root.state == RootState::Retiring)
        .map(|root| root.number)
        .collect();
    for number in &gone {
        ledger.remove_root(*number)?;
        note(&ledger, Deed::RootRemoved, *number, (author, &lost), now)?;
    }
    let trusted = ca.roots_of(ledger.roots()?)?.trusted()?;
    ledger.commit()?;
    ca.changes.send_replace(());
    ca.tell_trusted(store, &trusted);
    for number in gone {
        roots::remove_key(&ca.folder, number);
    }
    Ok(())
}

impl Ca {
    /// The roots to sign with now: lets the next one sign once every sidecar knows it.
    pub(super) fn advance(&self, ledger: &Ledger, now: OffsetDateTime) -> Result<Roots, CaError> {
        let roots = self.roots_of(ledger.roots()?)?;
        let Some(next) = roots.next() else {
            return Ok(roots);
        };
        if ledger.has_leaf(millis(now), |leaf| leaf.knows_root < next.number)? {
            return Ok(roots);
        }
        self.promote(ledger, &roots, ("", ""), now)
    }

    /// Lets the next root sign, for this reason, by somebody's word.
    fn promote(
        &self,
        ledger: &Ledger,
        roots: &Roots,
        why: (&str, &str),
        now: OffsetDateTime,
    ) -> Result<Roots, CaError> {
        for root in roots.rows() {
            let mut root = root.clone();
            root.state = match root.state {
                RootState::Next => RootState::Active,
                RootState::Active | RootState::Retiring => RootState::Retiring,
            };
            ledger.put_root(&root)?;
        }
        note(ledger, Deed::RootActive, roots.newest(), why, now)?;
        let roots = self.roots_of(ledger.roots()?)?;
        // Whoever hears of it before it is committed waits for this transaction, and after one that failed sees what was.
        self.changes.send_replace(());
        Ok(roots)
    }
}

/// Refuses to take the old root away while somebody needs it.
fn hold_old_root(certificates: &[&Leaf], tokens: &[Token]) -> Result<(), CaError> {
    if let Some(last) = certificates.last() {
        return Err(CaError::NotNow(format!(
            "{} certificates of the old root are alive, the last until {}: their sidecars would be refused. Wait, or \
             give --force",
            certificates.len(),
            rfc3339_of(last.not_after_ms)
        )));
    }
    if let Some(last) = tokens.iter().max_by_key(|token| token.expires_ms) {
        return Err(CaError::NotNow(format!(
            "{} tokens that are good name the old root, such as {} until {}: who joins by them would not know the \
             control API any more. Make new ones and revoke these, or give --force",
            tokens.len(),
            last.id,
            rfc3339_of(last.expires_ms)
        )));
    }
    Ok(())
}

/// Those certificates that do not lead to the root that signs.
fn older<'a>(alive: &'a [Leaf], roots: &Roots) -> Vec<&'a Leaf> {
    let active = roots.active().number;
    alive.iter().filter(|leaf| leaf.root != active).collect()
}

/// The good tokens that do not name the root that signs.
fn older_tokens(mut tokens: Vec<Token>, roots: &Roots, now: OffsetDateTime) -> Vec<Token> {
    tokens.retain(|token| token.root != roots.active().number && token.state(now) == TokenState::Good);
    tokens
}

/// How many of these certificates were handed out without this root.
fn waiting(alive: &[Leaf], root: u64) -> usize {
    alive.iter().filter(|leaf| leaf.knows_root < root).count()
}

fn note(
    ledger: &Ledger,
    deed: Deed,
    root: u64,
    (author, what): (&str, &str),
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    let mut row = AuditRow::of(deed, rfc3339(now));
    row.serial = root.to_string();
    author.clone_into(&mut row.who);
    what.clone_into(&mut row.note);
    ledger.audit(row)
}
