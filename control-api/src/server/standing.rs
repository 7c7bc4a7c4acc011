//! Who polls: by the certificate that the connection has shown, and not by what the poll says of itself.
//!
//! Where a certificate is shown, `node.service` must be the service that it names. Without one a sidecar is told its
//! configuration all the same, since one that joins, or whose certificate has expired, has none; unless the operator wants
//! every poll proved, because a poll is told all that the mesh is configured with.
//!
//! **Does not** verify chains: TLS has. Operators' requests are looked at in `operators`.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use http::StatusCode;
use outrigger_config::discovery::{Node, Shown};
use outrigger_config::join::service_of;

use super::answer::ApiError;
use super::{Peer, Shared};
use crate::ca::join::{Now, Proof};
use crate::ca::limits::{Limits, Verdict};
use crate::nodes::Certificate;

/// What polls are held to.
#[derive(Debug)]
pub(super) struct Standing {
    /// Polls are answered only where a certificate of the mesh proves who asks.
    required: bool,
    /// What refusals may be written to the log: a sidecar asks again every three seconds.
    limits: Mutex<Limits>,
}

impl Standing {
    pub(super) fn new(required: bool) -> Self {
        Self {
            required,
            limits: Mutex::new(Limits::new()),
        }
    }

    /// Says a refusal in the log, if not too many were.
    fn tell(&self, source: IpAddr, now: &Now, node: &Node, sentence: &str) {
        let who = source.into();
        // Each change of it is whole before the next can panic.
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = match limits.before(&who, now.clock) {
            Verdict::Heard => limits.failed(&who, now.clock),
            over @ Verdict::Over { .. } => over,
        };
        drop(limits);
        if matches!(verdict, Verdict::Heard | Verdict::Over { note: true, .. }) {
            let (node, service) = (&node.id, &node.service);
            tracing::warn!(node, service, %source, "a poll was refused: {sentence}");
        }
    }
}

/// What can be said of a poll before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ahead {
    /// It comes by a certificate that counts.
    Proven,
    /// It comes without one, and is answered all the same.
    Unproven,
    /// It is refused, whatever it says.
    Refused,
}

/// What can be said of a poll over the connection of `peer` before it is read: so much of it may be long.
pub(super) fn ahead(shared: &Shared, peer: &Peer) -> Ahead {
    let counts = peer.proof.as_deref();
    let counts = counts.is_some_and(|proof| lapse(shared, proof, &Now::read()).is_none());
    match (counts, shared.standing.required) {
        (true, _) => Ahead::Proven,
        (false, false) => Ahead::Unproven,
        (false, true) => Ahead::Refused,
    }
}

/// Why a certificate proves nothing today, if so.
fn lapse(shared: &Shared, proof: &Proof, now: &Now) -> Option<&'static str> {
    if proof.not_after <= now.wall {
        return Some("has expired while the connection was open");
    }
    if !shared.ca.trusted().borrow().has_any(&proof.roots) {
        return Some("leads to a root that was taken away while the connection was open");
    }
    let words = shared.ca.mesh_words(&shared.store.head());
    let mut serials = std::iter::once(&proof.serial).chain(&proof.vouched_by);
    let is_revoked = words.revoked.has_identity(&proof.spiffe_id)
        || serials.any(|serial| words.revoked.has_serial(serial));
    is_revoked.then_some("is revoked")
}

/// The certificate by which `node` polls over the connection of `peer`, if it has shown one.
///
/// # Errors
/// When it is another service's, or there has to be one that counts and is not.
pub(super) fn of(shared: &Shared, peer: &Peer, node: &Node) -> Result<Option<Certificate>, ApiError> {
    let now = Now::read();
    let required = shared.standing.required;
    let judged = match peer.proof.as_deref() {
        None => judge_none(required),
        Some(proof) => {
            let lapse = lapse(shared, proof, &now);
            let domain = shared.ca.trust_domain_now(&shared.store, now.wall)?;
            judge(proof, &domain, lapse, required, node)
        }
    };
    judged.map_err(|(status, sentence)| {
        let source = peer.address.ip().to_canonical();
        shared.standing.tell(source, &now, node, &sentence);
        ApiError::Sentence(status, sentence)
    })
}

type Refusal = (StatusCode, String);

fn judge_none(required: bool) -> Result<Option<Certificate>, Refusal> {
    if !required {
        return Ok(None);
    }
    let sentence = "this control API tells a configuration only to who shows a certificate of the mesh (--require-identity), \
                    and this connection has shown none: let the sidecar join by a token from `outrigger token create`, or \
                    give it a certificate that leads to a root of this API";
    Err((StatusCode::UNAUTHORIZED, sentence.to_owned()))
}

/// Decides by the certificate alone. `lapse`: why it proves nothing today, if so.
fn judge(
    proof: &Proof,
    domain: &str,
    lapse: Option<&str>,
    required: bool,
    node: &Node,
) -> Result<Option<Certificate>, Refusal> {
    let id = &proof.spiffe_id;
    let own = service_of(id, domain);
    // One that only calls out stands beside no service's instance.
    if !node.service.is_empty() && own != Some(&*node.service) {
        let service = node.service.escape_default();
        let give = match own {
            Some(own) => format!("give --service {own}, or the certificate of that service"),
            None => format!("give it a certificate of spiffe://{domain}/{service}"),
        };
        let sentence = format!(
            "the certificate of this connection is of `{id}`, and the poll says node.service `{service}`: a sidecar stands \
             beside the service that its certificate names; {give}"
        );
        return Err((StatusCode::FORBIDDEN, sentence));
    }
    if let Some(lapse) = lapse.filter(|_| required) {
        let sentence = format!(
            "the certificate of this connection, of `{id}`, {lapse}, and this control API tells a configuration only by one \
             that is good (--require-identity): join again with a token"
        );
        return Err((StatusCode::FORBIDDEN, sentence));
    }
    Ok(Some(Certificate {
        shown: Shown {
            spiffe_id: id.clone(),
            not_after: proof.not_after.unix_timestamp(),
        },
        serial: proof.serial.clone(),
        counts: lapse.is_none(),
    }))
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn a_poll_stands_beside_the_service_of_its_certificate_or_is_refused() {
        let table = [
            // SPIFFE ID, node.service, lapse, required, what becomes of it: counts, or the status.
            ("spiffe://shop/reviews", "reviews", None, true, Ok(true)),
            ("spiffe://shop/reviews", "", None, true, Ok(true)),
            ("spiffe://shop/reviews", "ratings", None, false, Err(403)),
            ("spiffe://other/reviews", "reviews", None, false, Err(403)),
            ("spiffe://shop/ns/reviews", "reviews", None, false, Err(403)),
            (
                "spiffe://shop/outrigger/control",
                "control",
                None,
                false,
                Err(403),
            ),
            (
                "spiffe://shop/reviews",
                "reviews",
                Some("is revoked"),
                false,
                Ok(false),
            ),
            (
                "spiffe://shop/reviews",
                "reviews",
                Some("is revoked"),
                true,
                Err(403),
            ),
            (
                "spiffe://shop/reviews",
                "ratings",
                Some("is revoked"),
                false,
                Err(403),
            ),
        ];
        for (spiffe_id, service, lapse, required, expected) in table {
            let proof = Proof {
                spiffe_id: spiffe_id.to_owned(),
                serial: "1f".to_owned(),
                vouched_by: Vec::new(),
                not_after: OffsetDateTime::UNIX_EPOCH,
                sha256: [0; 32],
                roots: Vec::new(),
            };
            let node = Node {
                service: service.to_owned(),
                ..Node::default()
            };
            let judged = judge(&proof, "shop", lapse, required, &node);
            let judged = judged.map(|certificate| certificate.unwrap().counts);
            assert_eq!(
                judged.map_err(|(status, _)| status.as_u16()),
                expected,
                "{spiffe_id} as {service}"
            );
        }
        assert_eq!(judge_none(false), Ok(None));
        assert_eq!(judge_none(true).unwrap_err().0, StatusCode::UNAUTHORIZED);
    }
}
