//! Where a sidecar's identity comes from, as its bootstrap says: files, or the control API by a join token.
//!
//! It only chooses; the files are looked at in `tls::files`, and joining is `join`'s.

use std::sync::Arc;

use anyhow::{anyhow, bail};
use outrigger_config::Bootstrap;
use outrigger_config::identity::CertificateFiles;
use outrigger_config::join::JoinToken;

use crate::control::join::{Asker, JoinError, Joined, TokenSource};
use crate::tls::identity::IdentityProblem;
use crate::tls::{Identities, files};
use crate::upstream::discovery::Resolver;

/// The source of this sidecar's identity.
#[derive(Debug)]
pub(crate) enum IdentitySource {
    /// It has none.
    Nothing,
    /// Files that something else renews.
    Files(CertificateFiles),
    /// The control API.
    Join(Box<(Asker, TokenSource)>),
}

impl IdentitySource {
    /// What the bootstrap says, and `token`, which was given beside it.
    ///
    /// # Errors
    /// When it is not whole: in words, with what is to be given.
    pub(crate) fn of(
        bootstrap: &Bootstrap,
        token: Option<JoinToken>,
        resolver: &Resolver,
    ) -> anyhow::Result<Self> {
        let Some(source) = &bootstrap.identity else {
            return Ok(Self::Nothing);
        };
        let join = match (&source.files, &source.join) {
            (Some(files), None) => return Ok(Self::Files(files.clone())),
            (None, Some(join)) => join,
            _ => bail!(
                "an identity comes from `files`, or from the control API by a join token; give one of them"
            ),
        };
        let Some(service) = &bootstrap.node.service else {
            bail!(
                "joining the mesh takes the name of the service whose certificate is asked for: give --service"
            );
        };
        let Some(control) = join.control.as_ref().or(bootstrap.config.control.as_ref()) else {
            bail!(
                "joining the mesh takes a control API: give --control, or `identity.join.control` in the bootstrap"
            );
        };
        let token = match (token, &join.token_file) {
            (Some(token), _) => TokenSource::Given(token),
            (None, Some(file)) => TokenSource::File(file.clone()),
            (None, None) => bail!(
                "joining the mesh takes a token, as `outrigger token create` prints it: give OUTRIGGER_TOKEN or --token-file"
            ),
        };
        let asker = Asker::new(control, service, resolver.clone()).map_err(|why| anyhow!(why))?;
        Ok(Self::Join(Box::new((asker, token))))
    }

    /// By what the control API is known before there is an identity.
    pub(crate) fn token(&self) -> Option<TokenSource> {
        match self {
            Self::Join(join) => Some(join.1.clone()),
            Self::Nothing | Self::Files(_) => None,
        }
    }

    /// Keeps the identity current for as long as it is polled.
    pub(crate) async fn keep_current(self, identities: Arc<Identities>) {
        match self {
            Self::Nothing => {}
            Self::Files(paths) => files::keep_current(paths, identities).await,
            Self::Join(join) => {
                let (asker, token) = *join;
                let put = |asked: Result<&Joined, &JoinError>| {
                    let asked = asked.map_err(ToString::to_string);
                    match asked
                        .map_err(IdentityProblem::NotIssued)
                        .and_then(|joined| joined.identity(identities.revocations()))
                    {
                        Ok(identity) => identities.put(identity),
                        Err(problem) => identities.refuse(&problem),
                    }
                };
                asker.keep_current(&token, put).await;
            }
        }
    }
}
