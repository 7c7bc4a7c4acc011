//! Configuration → [`Access`], and whom endpoints must prove to be.

use std::sync::Arc;

use http::Method;
use outrigger_config::identity::{DefaultPolicy, GrpcName, SpiffePattern, TlsMode};
use outrigger_config::service::{self, BackendTls, Service};

use crate::snapshot::access::{Access, Rule, Said};
use crate::snapshot::compile::Compiler;
use crate::snapshot::routes::Path;
use crate::tls::outside::{self, Trust};
use crate::tls::{self, Security};

impl Compiler<'_> {
    /// How the endpoints of a backend are spoken to: as it says itself, else as its service's mode does; `None`: in
    /// plaintext. A service of which no mode is said is not spoken to by mTLS: its sidecars may not have an identity yet.
    /// Where it is only permissive, a sidecar without one goes on in plaintext; one that is to have one does not, even
    /// while it has none.
    pub(in crate::snapshot) fn words_of_tls(
        &self,
        service: &Service,
        backend: &service::Backend,
    ) -> Option<tls::Words> {
        match &backend.tls {
            Some(BackendTls::None) => return None,
            Some(BackendTls::Outside(said)) => {
                return Some(tls::Words::Outside(outside::Words {
                    server_name: backend.server_name().unwrap_or_default().to_owned(),
                    source: outside::Source {
                        roots: said.roots.clone(),
                        min_version: said.min_version,
                    },
                }));
            }
            None => {}
        }
        let speaks = match self.config.mesh.tls_mode(service)? {
            TlsMode::Strict => true,
            TlsMode::Permissive => self.standing.identities.is_configured(),
            TlsMode::Disabled => false,
        };
        speaks.then(|| {
            tls::Words::Mesh(tls::Service {
                name: service.name.clone(),
                trust_domain: self.config.mesh.trust_domain.clone(),
            })
        })
    }

    /// The same, ready to be used. Clusters that trust the same roots share them, with those of the last snapshot too, so
    /// that they are read once and connections are not lost by a push.
    pub(in crate::snapshot) fn security(&mut self, words: tls::Words) -> Result<Arc<Security>, String> {
        let identities = &self.standing.identities;
        let security = match words {
            tls::Words::Mesh(service) => Security::mesh(service, identities),
            tls::Words::Outside(words) => {
                let trust = self.trusts.entry(words.source.clone());
                let trust =
                    trust.or_insert_with_key(|source| Arc::new(Trust::new(source.clone(), identities)));
                Security::outside(words, Arc::clone(trust), identities)?
            }
        };
        Ok(Arc::new(security))
    }

    /// Who may ask a service for what, on the application's side.
    pub(in crate::snapshot) fn access(&mut self, service: &Service) -> Option<Box<Access>> {
        let mesh = &self.config.mesh;
        let closed = (mesh.default_policy == DefaultPolicy::Deny).then(Vec::new);
        let rules = match &service.allow {
            Some(rules) => Some(rules.iter().map(|rule| self.rule(service, rule)).collect()),
            None => closed,
        };
        let said = Said {
            service: service.name.clone(),
            mode: mesh.tls_mode(service),
            trust_domain: mesh.trust_domain.clone(),
            rules,
            by_default: service.allow.is_none(),
            audit: service.audit.unwrap_or(false),
        };
        Access::new(said, self.standing.identities.is_configured(), self.metrics.tls())
    }

    fn rule(&mut self, service: &Service, rule: &service::Allow) -> Rule {
        let mut from = Vec::with_capacity(rule.from.len());
        for pattern in &rule.from {
            match SpiffePattern::parse(pattern) {
                Ok(pattern) => from.push(pattern),
                Err(why) => self
                    .problems
                    .push(format!("{}: `{pattern}`: {why}", service.name)),
            }
        }
        let mut methods = self.methods(&service.name, &rule.methods);
        let paths = rule.paths.iter();
        let mut paths: Vec<_> = paths.filter_map(|path| self.path(&service.name, path)).collect();
        if !rule.grpc.is_empty() {
            // What a call says of itself beside, its `content-type`, proves nothing, and is not asked for.
            methods.push(Method::POST);
            paths.extend(rule.grpc.iter().filter_map(|name| self.grpc(&service.name, name)));
        }
        Rule { from, methods, paths }
    }

    /// The path of a gRPC service or method (the protocol's `Path`: "/" Service-Name "/" method).
    fn grpc(&mut self, service: &str, name: &GrpcName) -> Option<Path> {
        match name.parts() {
            Ok((grpc, None)) => Some(Path::Prefix(format!("/{grpc}"))),
            Ok((grpc, Some(method))) => Some(Path::Exact(format!("/{grpc}/{method}"))),
            Err(why) => {
                self.problems.push(format!("{service}: `{}`: {why}", name.0));
                None
            }
        }
    }
}
