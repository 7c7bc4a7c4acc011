//! Whether an identity fits: to the mesh, to the service that this sidecar stands beside, to the time.
//!
//! **Does not** look at chains and keys: what comes here is whole and good by itself.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use outrigger_config::identity::SpiffeId;

use crate::tls::identity::{Identity, IdentityProblem};
use crate::tls::{Identities, seconds};

/// The longest time between two looks at the wall clock, by which certificates end: the clock of timers stands still while a
/// machine sleeps.
pub(crate) const LOOK_AT_CLOCK: Duration = Duration::from_secs(60);

impl Identities {
    /// Why the one that it has is none of the mesh, if so.
    pub(crate) fn foreign(&self) -> Option<String> {
        let identity = self.current()?;
        let known = self.trust_domain.lock().unwrap_or_else(PoisonError::into_inner);
        let (own, mesh) = (identity.id().trust_domain(), known.as_deref()?);
        (own != mesh).then(|| {
            format!("this sidecar's certificate is of the trust domain `{own}`, the mesh's is `{mesh}`")
        })
    }

    /// This is the trust domain of the mesh from now on.
    pub(crate) fn belong(&self, trust_domain: Option<&str>) {
        let mut known = self.trust_domain.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() == trust_domain {
            return;
        }
        *known = trust_domain.map(str::to_owned);
        drop(known);
        self.tell_if_foreign();
    }

    pub(super) fn tell_if_foreign(&self) {
        if let Some(why) = self.foreign() {
            tracing::error!(
                why,
                "this sidecar has no identity of the mesh: no mTLS is spoken by it, and it is not ready; give it a certificate \
                 of the mesh's trust domain, or name the right one in `trust_domain` of the Mesh document"
            );
        }
    }

    /// An identity, if it fits better than the one that is held: a good one of the service is not given up for one of another
    /// service, or of another mesh.
    pub(crate) fn fitting(&self, identity: Identity) -> Result<Identity, IdentityProblem> {
        let held = self
            .current()
            .filter(|held| held.not_after() > seconds(SystemTime::now()));
        let known = self.trust_domain.lock().unwrap_or_else(PoisonError::into_inner);
        let is_of_mesh = |of: &Identity| known.as_deref().is_none_or(|mesh| mesh == of.id().trust_domain());
        let is_own = |of: &Identity| {
            let name = self.service.as_deref();
            let own = name.and_then(|name| SpiffeId::of_service(of.id().trust_domain(), name).ok());
            name.is_none() || own.as_ref() == Some(of.id())
        };
        let Some(held) = held.filter(|held| is_of_mesh(held) && is_own(held)) else {
            return Ok(identity);
        };
        if is_of_mesh(&identity) && is_own(&identity) {
            return Ok(identity);
        }
        Err(IdentityProblem::Other(format!(
            "it is of {}, and {} is held",
            identity.id(),
            held.id()
        )))
    }

    /// When the identity that is held ends, if one is, and whether it has.
    fn end(&self) -> Option<(SystemTime, bool)> {
        let end = u64::try_from(self.current()?.not_after()).unwrap_or_default();
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(end);
        Some((end, end <= SystemTime::now()))
    }
}

/// Says, once for each certificate, that it has ended and that no other has come. Never ends.
pub(crate) async fn tell_when_ended(identities: Arc<Identities>) {
    let mut exchanges = identities.exchanges();
    // The sender is among what is held here, so that waiting for it does not fail.
    loop {
        let left = match identities.end() {
            Some((end, false)) => end.duration_since(SystemTime::now()).unwrap_or_default(),
            ended => {
                if ended.is_some() {
                    tracing::error!(
                        "this sidecar's certificate has ended and no other has come: no mTLS is spoken, in or out, until one \
                         does; /certs says why none came. A sidecar that joined by a token joins again by it: if it is used up or has \
                         expired, start this one again with another, or put another into its file"
                    );
                }
                let _ = exchanges.changed().await;
                continue;
            }
        };
        // A breath more: the end is told in whole seconds.
        let nap = (left + Duration::from_millis(10)).min(LOOK_AT_CLOCK);
        let _ = tokio::time::timeout(nap, exchanges.changed()).await;
    }
}
