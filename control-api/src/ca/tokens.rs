//! Join tokens: made, listed, taken back, and spent.
//!
//! The secret is 256 random bits and is kept as its SHA-256. A slow hash with a salt, as for passwords, defends what
//! people choose and could be guessed; nobody guesses 256 bits, so all that the hash has to do is not to give the secret
//! back, and a fast one cannot be used to keep us busy.
//!
//! **Does not** sign or answer: [`super::join`] does. Calls block.

use aws_lc_rs::digest::{SHA256, digest};
use outrigger_config::join::{JoinToken, RefusalReason, service_problem, token_id_is_one};
use outrigger_config::units;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;

use super::join::Refused;
use super::{Ca, CaError, authority, millis, random, rfc3339, rfc3339_of};
use crate::store::ledger::{AuditRow, Deed, Ledger, RecentUse, Token};
use crate::store::{Store, StoreError};

/// Tokens that are remembered: a mesh has some hundreds of services, and a deploy makes one for each.
pub(super) const TOKENS_MAX: u64 = 10_000;

/// The most uses: each is one instance that starts.
const USES_MAX: u32 = 10_000;

/// The shortest and the longest life: long enough to be pasted, short enough that a forgotten one is of no use.
const LIFE: std::ops::RangeInclusive<units::Duration> =
    units::Duration::from_secs(1)..=units::Duration::from_secs(30 * 24 * 3600);

/// How long a token that expired is still listed, and refused as expired and not as unknown.
const REMEMBERED: time::Duration = time::Duration::days(7);

/// What a new token is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// The service whose instances may join by it.
    pub service: String,
    /// How long it is good: from 1 s to 30 days.
    #[serde(default = "life_default")]
    pub ttl: units::Duration,
    /// How often it may be used: from 1 to 10,000.
    #[serde(default = "uses_default")]
    pub uses: u32,
}

/// As long as a deploy takes.
const fn life_default() -> units::Duration {
    units::Duration::from_secs(3600)
}

const fn uses_default() -> u32 {
    1
}

/// A token as it is listed: all but the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// Which one.
    pub id: String,
    /// The service whose instances may join by it.
    pub service: String,
    /// Whether it is good: `good`, `expired`, `used-up` or `revoked`.
    pub state: TokenState,
    /// How often it was used.
    pub uses: u32,
    /// How often it may be.
    pub uses_max: u32,
    /// When it was made (RFC 3339).
    pub created: String,
    /// Until when it is good (RFC 3339).
    pub expires: String,
    /// Who made it.
    pub author: String,
    /// The number of the root that it names: once that is taken away, who joins by it does not know the control API.
    pub root: u64,
}

/// Whether a token is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenState {
    /// It may be used.
    Good,
    /// Its time is over.
    Expired,
    /// It was used as often as it may be.
    UsedUp,
    /// It was taken back.
    Revoked,
}

/// For so long the same key is answered again: a sidecar whose answer was lost asks again within seconds.
const AGAIN_WITHIN_MS: u64 = 60_000;

/// So often one use is answered again: each answer is a certificate that is alive.
const AGAIN_MAX: u32 = 3;

/// Uses of late that are remembered of a token, which is read whole with each use: of more sidecars that join in one minute,
/// the first whose answer was lost spend another use.
const RECENT_MAX: usize = 32;

/// A token that was made: the only time that it is shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MadeToken {
    /// The one string to paste.
    pub token: String,
    /// What is listed of it.
    #[serde(flatten)]
    pub view: TokenView,
}

impl Token {
    pub(super) fn state(&self, now: OffsetDateTime) -> TokenState {
        if self.revoked {
            TokenState::Revoked
        } else if self.expires_ms <= millis(now) {
            TokenState::Expired
        } else if self.uses >= self.uses_max {
            TokenState::UsedUp
        } else {
            TokenState::Good
        }
    }

    fn view(self, now: OffsetDateTime) -> TokenView {
        TokenView {
            state: self.state(now),
            created: rfc3339_of(self.created_ms),
            expires: rfc3339_of(self.expires_ms),
            id: self.id,
            service: self.service,
            uses: self.uses,
            uses_max: self.uses_max,
            author: self.author,
            root: self.root,
        }
    }
}

/// Makes a token. It is good once this has returned.
pub fn create(
    ca: &Ca,
    store: &Store,
    wanted: NewToken,
    author: &str,
    now: OffsetDateTime,
) -> Result<MadeToken, CaError> {
    let wrong = CaError::Wrong;
    if let Some(problem) = service_problem(&wanted.service) {
        return Err(wrong(problem));
    }
    if !LIFE.contains(&wanted.ttl) {
        let (shortest, longest) = (LIFE.start(), LIFE.end());
        return Err(wrong(format!(
            "a token cannot be good for {}: expected {shortest} to {longest}",
            wanted.ttl
        )));
    }
    if !(1..=USES_MAX).contains(&wanted.uses) {
        return Err(wrong(format!(
            "a token cannot have {} uses: expected 1 to {USES_MAX}",
            wanted.uses
        )));
    }
    let secret = random::bytes().map_err(CaError::Sign)?;
    let ledger = store.ledger()?;
    let roots = ca.roots_of(ledger.roots()?)?;
    let row = Token {
        id: random::token_id().map_err(CaError::Sign)?,
        service: wanted.service,
        secret_sha256: sha256(&secret),
        author: author.to_owned(),
        created_ms: millis(now),
        expires_ms: millis(now + wanted.ttl.0),
        uses_max: wanted.uses,
        uses: 0,
        revoked: false,
        root: roots.active().number,
        recent: Vec::new(),
    };
    let token = JoinToken {
        id: row.id.clone(),
        secret,
        root: authority::fingerprint(&roots.active().certificate).map_err(CaError::Sign)?,
    };
    ledger.forget_tokens(millis(now - REMEMBERED))?;
    if ledger.token_count()? >= TOKENS_MAX {
        return Err(wrong(format!(
            "{TOKENS_MAX} tokens are remembered, which is the most: those that expired are forgotten after 7 days"
        )));
    }
    ledger.put_token(&row)?;
    let mut note = AuditRow::of(Deed::TokenCreated, rfc3339(now));
    author.clone_into(&mut note.who);
    note.token.clone_from(&row.id);
    note.service.clone_from(&row.service);
    note.note = format!("{} uses until {}", row.uses_max, rfc3339_of(row.expires_ms));
    ledger.audit(note)?;
    ledger.commit()?;
    Ok(MadeToken {
        token: token.to_string(),
        view: row.view(now),
    })
}

/// Every token that is remembered.
pub fn list(store: &Store, now: OffsetDateTime) -> Result<Vec<TokenView>, CaError> {
    let mut tokens = store.tokens()?;
    tokens.sort_by_key(|token| token.created_ms);
    Ok(tokens.into_iter().map(|token| token.view(now)).collect())
}

/// Takes a token back. Certificates that were issued by it stay good until they expire.
pub fn revoke(store: &Store, id: &str, author: &str, now: OffsetDateTime) -> Result<TokenView, CaError> {
    let unknown = || CaError::Unknown(format!("there is no token `{}`", id.escape_default()));
    if !token_id_is_one(id) {
        return Err(unknown());
    }
    let ledger = store.ledger()?;
    let mut token = ledger.token(id)?.ok_or_else(unknown)?;
    if !token.revoked {
        token.revoked = true;
        ledger.put_token(&token)?;
        let mut note = AuditRow::of(Deed::TokenRevoked, rfc3339(now));
        author.clone_into(&mut note.who);
        note.token.clone_from(&token.id);
        note.service.clone_from(&token.service);
        ledger.audit(note)?;
        ledger.commit()?;
    }
    Ok(token.view(now))
}

/// A use of a token, inside the transaction that issues.
#[derive(Debug)]
pub(super) struct Use {
    row: Token,
    /// The place of the use that is answered again, among the recent ones.
    again: Option<usize>,
    key_sha256: [u8; 32],
}

impl Use {
    /// The service that the token is for.
    pub(super) fn service(&self) -> &str {
        &self.row.service
    }

    /// The serial number of the certificate that was issued by it already: the answer was lost, and the join is the same.
    pub(super) fn joined(&self) -> Option<&str> {
        self.again.map(|place| &*self.row.recent[place].serial)
    }

    /// Counts it, with the certificate that it led to.
    pub(super) fn note(
        mut self,
        ledger: &Ledger,
        serial: &str,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let now_ms = millis(now);
        if let Some(place) = self.again {
            self.row.recent[place].again += 1;
        } else {
            self.row.uses += 1;
            let since = now_ms.saturating_sub(AGAIN_WITHIN_MS);
            self.row.recent.retain(|recent| recent.at_ms >= since);
            if self.row.recent.len() >= RECENT_MAX {
                self.row.recent.remove(0);
            }
            self.row.recent.push(RecentUse {
                key_sha256: self.key_sha256,
                serial: serial.to_owned(),
                at_ms: now_ms,
                again: 0,
            });
        }
        ledger.put_token(&self.row)
    }
}

/// Looks whether a token is good for this public key. What was answered a moment ago is answered again to the same key, which
/// nobody else has: the answer may have been lost on the way. It costs no use.
pub(super) fn find_use(
    ledger: &Ledger,
    token: &JoinToken,
    asked: Option<&str>,
    (key, now): (&[u8], OffsetDateTime),
) -> Result<Use, Refused> {
    // Whether the id or the secret is wrong is not told: to one who was given neither, both are the same.
    let unknown = || {
        let sentence = "this control API has made no such token, or has forgotten it: make a new one with `outrigger \
                        token create`";
        Refused::of(RefusalReason::TokenUnknown, sentence)
    };
    let row = ledger.token(&token.id)?.ok_or_else(unknown)?;
    if !bool::from(row.secret_sha256.ct_eq(&sha256(&token.secret))) {
        return Err(unknown());
    }
    let key_sha256 = sha256(key);
    let since = millis(now).saturating_sub(AGAIN_WITHIN_MS);
    let again = row.recent.iter().position(|recent| {
        recent.key_sha256 == key_sha256 && recent.at_ms >= since && recent.again < AGAIN_MAX
    });
    let is_other = asked.is_some_and(|asked| asked != row.service);
    let (reason, what) = match row.state(now) {
        TokenState::Good if is_other => {
            let sentence = format!("the token is for `{}`: a token lets in one service", row.service);
            return Err(Refused::of(RefusalReason::OtherService, sentence));
        }
        TokenState::UsedUp if again.is_none() || is_other => (
            RefusalReason::TokenUsedUp,
            format!("has had its {} uses", row.uses_max),
        ),
        TokenState::Good | TokenState::UsedUp => {
            return Ok(Use {
                row,
                again,
                key_sha256,
            });
        }
        TokenState::Revoked => (RefusalReason::TokenRevoked, "was revoked".to_owned()),
        TokenState::Expired => (
            RefusalReason::TokenExpired,
            format!("expired at {}", rfc3339_of(row.expires_ms)),
        ),
    };
    let sentence = format!("the token {what}: make a new one with `outrigger token create`");
    Err(Refused::of(reason, sentence))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let hash = digest(&SHA256, bytes);
    // SHA-256 has 32 bytes: nothing is left out or filled up.
    let mut copy = [0; 32];
    copy.copy_from_slice(hash.as_ref());
    copy
}
