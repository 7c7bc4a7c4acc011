//! The checks of what is said about identity: names of the mesh, and who may call.

use super::super::node::{Fault, Mark, shown};
use super::At;
use super::routes::{methods, path};
use crate::identity::{Allow, SpiffePattern, TlsMode};
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

/// Whom services let call, to be compared with what the mesh says, which may stand in a later document.
#[derive(Debug, Default)]
pub(in super::super) struct Callers {
    said: Vec<Said>,
    /// Services that let somebody call and say no mode, as [`Self::take`] finds them.
    nobodies: Vec<Nobody>,
    /// Whether there may be a Mesh document, or a part of it, that was not read.
    pub(in super::super) is_blind: bool,
}

/// A service whose `allow` lets nobody in, unless the mesh says a mode for it.
#[derive(Debug)]
struct Nobody {
    file: String,
    mark: Mark,
    /// It says itself that it is plaintext, whatever the mesh says.
    disabled: bool,
}

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
        self.nobodies.extend(nobody(at, file, service));
        let rules = service.allow.as_deref().unwrap_or_default();
        for (at, rule) in at.items_of("allow").iter().zip(rules) {
            for (at, from) in at.items_of("from").iter().zip(&rule.from) {
                let pattern = SpiffePattern::parse(from).ok();
                let Some(pattern) = pattern.filter(SpiffePattern::has_path) else {
                    continue;
                };
                self.said.push(Said {
                    file: file.to_owned(),
                    mark: at.mark(),
                    path: at.path.clone(),
                    trust_domain: pattern.trust_domain().to_owned(),
                    from: from.clone(),
                });
            }
        }
    }

    /// Judges them by the mesh. Its trust domain is what it says, else `unsaid`, which is what it is where it says none; where
    /// that is not known either, callers of all are taken. Sidecars let nobody in of another.
    pub(in super::super) fn judge(self, mesh: &Mesh, unsaid: Option<&str>, problems: &mut Vec<Problem>) {
        if !self.is_blind {
            let by_mesh = mesh.defaults.tls.map(|tls| tls.mode);
            let speaks = by_mesh.is_some_and(|mode| mode != TlsMode::Disabled);
            let nobodies = self.nobodies.into_iter();
            problems.extend(
                nobodies
                    .filter(|nobody| nobody.disabled || !speaks)
                    .map(Nobody::told),
            );
        }
        let (own, whence, hint) = match (&mesh.trust_domain, unsaid) {
            (Some(said), _) => (said.as_str(), "the Mesh document says", ""),
            (None, Some(unsaid)) => (
                unsaid,
                "where no Mesh document says another this mesh is",
                ", or a Mesh document with the `trust_domain` that this mesh is of",
            ),
            (None, None) => return,
        };
        if trust_domain_problem(own).is_some() {
            return;
        }
        for said in self.said.into_iter().filter(|said| said.trust_domain != own) {
            let fault = Fault {
                mark: said.mark,
                path: said.path,
                message: format!(
                    "`{}` can never call: it is of the trust domain `{}`, and {whence} `{}`; expected spiffe://{}/…{hint}",
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

impl Nobody {
    fn told(self) -> Problem {
        let why = if self.disabled {
            "with `tls: { mode: disabled }`"
        } else {
            "where no `tls.mode` is said, or `disabled`,"
        };
        let fault = Fault {
            mark: self.mark,
            path: "allow".to_owned(),
            message: format!(
                "`allow` lets nobody in here: {why} callers' sidecars speak plaintext, by which they have no name; say \
                 `tls: {{ mode: strict }}` or `permissive` in this service, or in the `defaults` of the Mesh document, which is \
                 to be checked along then"
            ),
        };
        fault.in_file(&self.file)
    }
}

/// A service that lets somebody call by name while nobody has one, as far as it says itself. One that means nobody by an
/// empty list, or that only audits, is as it is meant.
fn nobody(at: &At<'_>, file: &str, service: &Service) -> Option<Nobody> {
    let rules = at.field("allow").filter(|rules| !rules.node.items().is_empty())?;
    let disabled = match (service.tls.map(|tls| tls.mode), at.given(&["tls"])) {
        (None, 0) if !at.is_damaged() => false,
        (Some(TlsMode::Disabled), _) => true,
        _ => return None,
    };
    (service.audit != Some(true)).then(|| Nobody {
        file: file.to_owned(),
        mark: rules.mark(),
        disabled,
    })
}
