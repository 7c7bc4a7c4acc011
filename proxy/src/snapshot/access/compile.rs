//! Configuration → [`Access`], and whom endpoints must prove to be.

use outrigger_config::identity::{DefaultPolicy, SpiffePattern, TlsMode};
use outrigger_config::service::{self, Service};

use crate::snapshot::access::{Access, Rule, Said};
use crate::snapshot::compile::Compiler;
use crate::tls;

impl Compiler<'_> {
    /// Whom the endpoints of a backend must prove to be, if they are spoken to by mTLS. A service of which no mode is said
    /// is not: its sidecars may not have an identity yet. Where it is only permissive, a sidecar without one goes on in
    /// plaintext; one that is to have one does not, even while it has none.
    pub(in crate::snapshot) fn mtls(
        &self,
        service: &Service,
        backend: &service::Backend,
    ) -> Option<tls::Words> {
        let mode = self.config.mesh.tls_mode(service)?;
        let speaks = match mode {
            TlsMode::Strict => true,
            TlsMode::Permissive => self.standing.identities.is_configured(),
            TlsMode::Disabled => false,
        };
        (speaks && backend.tls.is_none()).then(|| tls::Words {
            service: service.name.clone(),
            trust_domain: self.config.mesh.trust_domain.clone(),
        })
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
        let methods = self.methods(&service.name, &rule.methods);
        let paths = rule
            .paths
            .iter()
            .filter_map(|path| self.path(&service.name, path));
        Rule {
            from,
            methods,
            paths: paths.collect(),
        }
    }
}
