//! Who may ask a service for what, as its own sidecar keeps to it: the mode of TLS, then the rules of `allow`.
//!
//! Pure: a caller and a head in, a verdict out. A service of which nothing is said and whose sidecar has no identity has
//! no [`Access`] at all, and its requests pay one look for it.

mod compile;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{Method, StatusCode};
use outrigger_config::identity::{SpiffePattern, TlsMode};

use crate::error::{Failure, Reason, Told};
use crate::snapshot::routes::Path;
use crate::telemetry::metrics::{SourceMetrics, TlsMetrics};
use crate::tls::{Peer, Session};

/// Who called, for the life of its connection.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) address: SocketAddr,
    /// `None`: it speaks plaintext.
    pub(crate) peer: Option<Rc<Peer>>,
    /// By a port at the edge of the mesh: whether that speaks TLS.
    pub(crate) edge: Option<bool>,
    /// Its SPIFFE ID, for the log.
    id: Option<Rc<str>>,
    /// The series of its requests, where access is kept.
    series: Option<Arc<SourceMetrics>>,
}

impl Source {
    /// Somebody in plaintext, on a door where access is not kept.
    pub(crate) const fn of_address(address: SocketAddr) -> Self {
        Self {
            address,
            peer: None,
            edge: None,
            id: None,
            series: None,
        }
    }

    /// Somebody outside of the mesh, who has come by a port at its edge. `secure`: that speaks TLS.
    pub(crate) const fn of_edge(address: SocketAddr, secure: bool) -> Self {
        Self {
            address,
            peer: None,
            edge: Some(secure),
            id: None,
            series: None,
        }
    }

    /// How long its connection may be used, if it speaks TLS.
    pub(crate) fn session(&self) -> Option<&Session> {
        self.peer.as_ref().map(|peer| &peer.session)
    }

    /// Its SPIFFE ID, if it has shown one.
    pub(crate) fn id(&self) -> Option<&Rc<str>> {
        self.id.as_ref()
    }
}

/// Who may ask a service for what.
#[derive(Debug)]
pub(crate) struct Access {
    service: String,
    mode: TlsMode,
    /// The trust domain of the mesh, where it is said.
    trust_domain: Option<String>,
    /// Whether this sidecar is to have an identity.
    has_identity: bool,
    /// Who is allowed; `None`: everyone whom the mode lets in.
    rules: Option<Vec<Rule>>,
    /// The service has none of its own: where there are some, they are the mesh's, which let nobody in.
    by_default: bool,
    audit: bool,
    /// Whether a rule says paths: only then are they read in other ways.
    looks_at_paths: bool,
    metrics: Arc<TlsMetrics>,
    plaintext: Arc<SourceMetrics>,
}

/// Callers and what they may ask for. Empty lists mean all.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) from: Vec<SpiffePattern>,
    pub(crate) methods: Vec<Method>,
    pub(crate) paths: Vec<Path>,
}

/// What an inbound connection is to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opens {
    Plaintext,
    Tls,
    /// What its first byte says.
    Either,
}

/// What is said about a service's access.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) service: String,
    pub(crate) mode: Option<TlsMode>,
    pub(crate) trust_domain: Option<String>,
    pub(crate) rules: Option<Vec<Rule>>,
    /// `rules` are not the service's own.
    pub(crate) by_default: bool,
    pub(crate) audit: bool,
}

impl Access {
    /// The access of a service, if there is anything to keep to.
    pub(crate) fn new(said: Said, has_identity: bool, metrics: &Arc<TlsMetrics>) -> Option<Box<Self>> {
        let Said {
            service,
            mode,
            trust_domain,
            rules,
            by_default,
            audit,
        } = said;
        let is_strict = mode == Some(TlsMode::Strict);
        (has_identity || is_strict || rules.is_some()).then(|| {
            Box::new(Self {
                plaintext: metrics.source(&service, None),
                metrics: Arc::clone(metrics),
                mode: mode.unwrap_or(TlsMode::Permissive),
                service,
                trust_domain,
                has_identity,
                looks_at_paths: rules.iter().flatten().any(|rule| !rule.paths.is_empty()),
                rules,
                by_default,
                audit,
            })
        })
    }

    /// What a connection is to speak. A service that is strict takes plaintext too, to answer it with its reason; where
    /// bytes of TCP come there is no answer, and TLS is all that is taken.
    pub(crate) fn opens(&self, raw: bool) -> Opens {
        match self.mode {
            _ if !self.has_identity => Opens::Plaintext,
            TlsMode::Disabled => Opens::Plaintext,
            TlsMode::Strict if raw => Opens::Tls,
            TlsMode::Strict | TlsMode::Permissive => Opens::Either,
        }
    }

    /// Whether a rule says paths.
    pub(crate) const fn looks_at_paths(&self) -> bool {
        self.looks_at_paths
    }

    /// The trust domain of the mesh, where it is said.
    pub(crate) fn trust_domain(&self) -> Option<&str> {
        self.trust_domain.as_deref()
    }

    /// A caller that has come by a connection of this door.
    pub(crate) fn source(&self, address: SocketAddr, peer: Option<Peer>) -> Source {
        let series = peer.as_ref().map_or_else(
            || {
                if self.has_identity && self.mode != TlsMode::Disabled {
                    self.metrics.plaintext(&self.service);
                }
                Arc::clone(&self.plaintext)
            },
            |peer| self.metrics.source(&self.service, Some(peer.id.as_str())),
        );
        Source {
            address,
            id: peer.as_ref().map(|peer| peer.id.as_str().into()),
            peer: peer.map(Rc::new),
            edge: None,
            series: Some(series),
        }
    }

    /// Whether a caller may ask for this; without a request, whether it may open a connection. One that has been revoked
    /// since it came may not, whatever is only audited.
    ///
    /// # Errors
    /// When it may not.
    pub(crate) fn authorize(&self, source: &Source, asked: Option<Asked<'_>>) -> Result<(), Failure> {
        let series = source.series.as_ref().unwrap_or(&self.plaintext);
        if let Some(Err(failure)) = source.session().map(Session::stands) {
            series.refused.inc();
            // The sidecar is in order; it is the caller who may not.
            return Err(failure.telling(Told {
                status: Some((StatusCode::FORBIDDEN, Reason::Forbidden.grpc_status())),
                retry_after: None,
            }));
        }
        if self.mode == TlsMode::Strict && source.peer.is_none() {
            series.refused.inc();
            return Err(if self.has_identity {
                Failure::new(
                    Reason::TlsRequired,
                    "the caller spoke plaintext to a service that is strict",
                )
            } else {
                let detail = "the service is strict and this sidecar's bootstrap says no `identity`";
                Failure::new(Reason::IdentityMissing, detail)
            });
        }
        if self.allows(source, asked) {
            series.allowed.inc();
            return Ok(());
        }
        let who = source.id().map_or("a caller without an identity", |id| id);
        let what = asked.map_or_else(String::new, |Asked { method, path, .. }| {
            format!(" {method} {path}")
        });
        if self.audit {
            series.audited.inc();
            tracing::warn!(
                service = self.service,
                source = who,
                asked = what.trim_start(),
                "`allow` would refuse this; `audit` lets it through"
            );
            return Ok(());
        }
        series.refused.inc();
        let detail = if self.by_default {
            format!(
                "the mesh's `default_policy` is deny and {} says no `allow`, so that nobody is allowed: {who}{what}",
                self.service
            )
        } else {
            format!("no rule of {} allows {who}{what}", self.service)
        };
        Err(Failure::new(Reason::Forbidden, detail))
    }

    /// Whether a caller that was let in for this would be let in today, by the mode and the rules: what lasts is asked about
    /// again with every push. Nothing is counted, since nothing is asked for.
    ///
    /// # Errors
    /// When it would not.
    pub(crate) fn still(&self, source: &Source, asked: Option<Asked<'_>>) -> Result<(), Failure> {
        let service = &self.service;
        if self.mode == TlsMode::Strict && source.peer.is_none() {
            let detail = format!("{service} has become strict, and the caller spoke plaintext");
            return Err(Failure::new(Reason::TlsRequired, detail));
        }
        if self.audit || self.allows(source, asked) {
            return Ok(());
        }
        let who = source.id().map_or("a caller without an identity", |id| id);
        let detail = format!("no rule of {service} allows {who} any more");
        Err(Failure::new(Reason::Forbidden, detail))
    }

    fn allows(&self, source: &Source, asked: Option<Asked<'_>>) -> bool {
        let Some(rules) = &self.rules else { return true };
        let Some(peer) = &source.peer else { return false };
        rules.iter().any(|rule| {
            (rule.from.is_empty() || rule.from.iter().any(|from| from.means(&peer.id)))
                && asked.is_none_or(|asked| rule.takes(asked))
        })
    }
}

/// A request, as it is asked about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a Method,
    /// Its path as its head has it.
    pub(crate) path: &'a str,
    /// Its path in its one form; `None`: it has none. Another than that of the head only where a service keeps paths as
    /// they come.
    pub(crate) form: Option<&'a str>,
    /// The widest that a server may take that form for (see `request::path::widest`); `None`: nothing that there is.
    pub(crate) wide: Option<&'a str>,
}

impl Rule {
    fn takes(
        &self,
        Asked {
            method,
            path,
            form,
            wide,
        }: Asked<'_>,
    ) -> bool {
        let takes = |path: &str| self.paths.iter().any(|rule| rule.matches(path));
        // Whoever writes a whole path knows what the application takes it for.
        let names = |form: &str| self.paths.iter().any(|rule| rule.is_exactly(form));
        let takes_wide = |form: &str| wide == Some(form) || names(form) || wide.is_some_and(takes);
        (self.methods.is_empty() || self.methods.contains(method))
            // As it came, in its one form and in its widest reading: which of them the application takes it for is not known
            // here.
            && (self.paths.is_empty()
                || takes(path) && form.is_some_and(|form| (form == path || takes(form)) && takes_wide(form)))
    }
}
