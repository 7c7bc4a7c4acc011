//! Where a sidecar's identity comes from, as its bootstrap says: files, the control API by a join token, or an agent of
//! SPIFFE.
//!
//! It only chooses; the files are looked at in `tls::files`, joining is `join`'s, and the agent is `workload_api`'s.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{anyhow, bail};
use outrigger_config::Bootstrap;
use outrigger_config::identity::{CertificateFiles, SpiffeId, WorkloadApi, workload_socket};
use outrigger_config::join::JoinToken;
use tokio::sync::watch;

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
    /// The agent of SPIFFE at this socket, for the sidecar of this service.
    #[cfg_attr(
        not(feature = "spiffe"),
        expect(dead_code, reason = "without the feature the bootstrap is refused before")
    )]
    WorkloadApi(PathBuf, Option<String>),
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
        let join = match (&source.files, &source.join, &source.workload_api) {
            (Some(files), None, None) => return Ok(Self::Files(files.clone())),
            (None, Some(join), None) => join,
            (None, None, Some(api)) => {
                let socket = agent(api, cfg!(feature = "spiffe"))?;
                return Ok(Self::WorkloadApi(socket, bootstrap.node.service.clone()));
            }
            _ => bail!(
                "an identity comes from `files`, from the control API by a join token, or from an agent of SPIFFE by \
                 `workload_api`; give one of them"
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
            Self::Nothing | Self::Files(_) | Self::WorkloadApi(..) => None,
        }
    }

    /// Where to tell what the control API of the configuration calls its roots: if it is the one that the identity comes from.
    pub(crate) fn hear_roots(&mut self, bootstrap: &Bootstrap) -> Option<watch::Sender<String>> {
        let Self::Join(join) = self else { return None };
        let other = bootstrap.identity.as_ref()?.join.as_ref()?.control.as_ref();
        let own = bootstrap.config.control.as_ref()?;
        other
            .is_none_or(|other| other == own)
            .then(|| join.0.hear_roots())
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
            #[cfg(feature = "spiffe")]
            Self::WorkloadApi(socket, service) => {
                super::workload_api::keep_current(socket, service, identities).await;
            }
            // It was refused when the bootstrap was read.
            #[cfg(not(feature = "spiffe"))]
            Self::WorkloadApi(..) => {}
        }
    }
}

/// Says whenever an identity comes that is not of the service that this sidecar stands beside. It is used all the same: what
/// only calls out may have any name, and callers are told apart by it.
pub(crate) async fn tell_if_other(identities: Arc<Identities>, service: Option<String>) {
    let Some(service) = service else { return };
    let mut exchanges = identities.exchanges();
    let mut told = None;
    // The sender is among what is held here.
    while exchanges.changed().await.is_ok() {
        let Some(identity) = identities.current() else {
            continue;
        };
        let id = identity.id();
        let is_own = SpiffeId::of_service(id.trust_domain(), &service).is_ok_and(|own| own == *id);
        if !is_own && told.as_ref() != Some(id) {
            tracing::warn!(
                service,
                spiffe_id = id.as_str(),
                "the certificate is not of the service that this sidecar stands beside: callers by mTLS refuse it \
                 (peer-wrong-identity), and a control API over TLS refuses its polls; give --service the name that the \
                 certificate ends with, or give it a certificate of spiffe://{}/{service}",
                id.trust_domain()
            );
            told = Some(id.clone());
        }
    }
}

/// The socket of the agent of SPIFFE; `is_built_in`: whether this program can speak to it.
///
/// # Errors
/// When it cannot, or no socket is named: in words, with what is to be done.
fn agent(api: &WorkloadApi, is_built_in: bool) -> anyhow::Result<PathBuf> {
    if !is_built_in {
        bail!(
            "`identity.workload_api` takes an outrigger-proxy with the cargo feature `spiffe`, and this one was built without \
             it: build it with `cargo build --release --features spiffe`, or let SPIFFE Helper write the certificate and \
             name its files in `identity.files`"
        );
    }
    let Some(socket) = &api.socket else {
        bail!(
            "the SPIFFE Workload API is asked over a socket of this machine: give SPIFFE_ENDPOINT_SOCKET in the environment, \
             or `identity.workload_api.socket` in the bootstrap"
        );
    };
    workload_socket(socket).map_err(|why| anyhow!("the SPIFFE Workload API, `{socket}`: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_of_spiffe_takes_a_socket_and_a_program_that_can_speak_to_it() {
        let at = |socket: Option<&str>| WorkloadApi {
            socket: socket.map(str::to_owned),
        };
        let good = at(Some("unix:///run/agent.sock"));
        assert_eq!(agent(&good, true).unwrap(), PathBuf::from("/run/agent.sock"));
        for (api, is_built_in, words) in [
            (&good, false, "--features spiffe"),
            (&at(None), true, "SPIFFE_ENDPOINT_SOCKET"),
            (
                &at(Some("tcp://127.0.0.1:1")),
                true,
                "`tcp://127.0.0.1:1`: it is not",
            ),
        ] {
            let said = agent(api, is_built_in).unwrap_err().to_string();
            assert!(said.contains(words), "{said}");
        }
    }
}
