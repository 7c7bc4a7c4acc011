//! The checks of what is said about identity: names of the mesh, and who may call.

use super::super::node::{Fault, Mark, shown};
use super::At;
use super::routes::{methods, path};
use crate::identity::{Allow, SpiffePattern};
use crate::join::trust_domain_problem;
use crate::mesh::Mesh;
use crate::problem::Problem;
use crate::service::{Protocol, Service};

/// Checks what the mesh says of itself.
pub(super) fn mesh(at: &At<'_>, mesh: &Mesh, faults: &mut Vec<Fault>) {
    if let (Some(at), Some(name)) = (at.field("trust_domain"), &mesh.trust_domain)
        && let Some(problem) = trust_domain_problem(name)
    {
        faults.push(at.fault(problem));
    }
}

/// Checks who may call a service.
pub(super) fn allow(at: &At<'_>, service: &Service, faults: &mut Vec<Fault>) {
    let rules = service.allow.as_deref().unwrap_or_default();
    for (at, rule) in at.items_of("allow").iter().zip(rules) {
        for (at, from) in at.items_of("from").iter().zip(&rule.from) {
            let why = match SpiffePattern::parse(from) {
                Ok(pattern) if pattern.has_path() => continue,
                Ok(_) => "it is the trust domain alone, by which no workload is called".to_owned(),
                Err(why) => why,
            };
            faults.push(at.fault(format!(
                "`{}` names no caller: {why}; expected a SPIFFE ID such as spiffe://shop/productpage, in whose path \
                 `*` stands for any one segment",
                shown(from)
            )));
        }
        methods(at, &rule.methods, faults);
        for (at, one) in at.items_of("paths").iter().zip(&rule.paths) {
            path(at, one, faults);
        }
        grpc(at, rule, faults);
        for word in ["methods", "paths", "grpc"] {
            if let Some(at) = at.field(word).filter(|_| at.given(&[word]) == 1)
                && service.protocol == Protocol::Tcp
            {
                faults.push(at.fault(format!(
                    "`{word}` is about requests, and this service speaks tcp, where there are none; take it out"
                )));
            }
        }
    }
}

/// Checks the gRPC services of a rule. A call is a POST to the path that they make.
fn grpc(at: &At<'_>, rule: &Allow, faults: &mut Vec<Fault>) {
    for (at, name) in at.items_of("grpc").iter().zip(&rule.grpc) {
        if let Err(why) = name.parts() {
            faults.push(at.fault(format!(
                "`{}` names no gRPC service: {why}; expected package.Service or package.Service/Method",
                shown(&name.0)
            )));
        }
    }
    for word in ["methods", "paths"] {
        if let Some(at) = at.field(word).filter(|_| at.given(&[word, "grpc"]) == 2) {
            faults.push(at.fault(format!(
                "`{word}` beside `grpc`, which says both already; take one of them out, or write another rule"
            )));
        }
    }
}

/// Whom services let call, to be compared with the trust domain of the mesh, which may stand in a later document.
#[derive(Debug, Default)]
pub(in super::super) struct Callers(Vec<Said>);

#[derive(Debug)]
struct Said {
    file: String,
    mark: Mark,
    path: String,
    from: String,
    trust_domain: String,
}

impl Callers {
    /// Notes whom a service lets call.
    pub(in super::super) fn take(&mut self, at: &At<'_>, file: &str, service: &Service) {
        let rules = service.allow.as_deref().unwrap_or_default();
        for (at, rule) in at.items_of("allow").iter().zip(rules) {
            for (at, from) in at.items_of("from").iter().zip(&rule.from) {
                let pattern = SpiffePattern::parse(from).ok();
                let Some(pattern) = pattern.filter(SpiffePattern::has_path) else {
                    continue;
                };
                self.0.push(Said {
                    file: file.to_owned(),
                    mark: at.mark(),
                    path: at.path.clone(),
                    trust_domain: pattern.trust_domain().to_owned(),
                    from: from.clone(),
                });
            }
        }
    }

    /// Judges them by the trust domain of the mesh, where it says one: sidecars let nobody in of another.
    pub(in super::super) fn judge(self, mesh: &Mesh, problems: &mut Vec<Problem>) {
        let own = mesh.trust_domain.as_ref();
        let Some(own) = own.filter(|own| trust_domain_problem(own).is_none()) else {
            return;
        };
        for said in self.0.into_iter().filter(|said| said.trust_domain != *own) {
            let fault = Fault {
                mark: said.mark,
                path: said.path,
                message: format!(
                    "`{}` can never call: it is of the trust domain `{}`, and the Mesh document says `{}`; expected \
                     spiffe://{}/…",
                    shown(&said.from),
                    shown(&said.trust_domain),
                    shown(own),
                    shown(own)
                ),
            };
            problems.push(fault.in_file(&said.file));
        }
    }
}
