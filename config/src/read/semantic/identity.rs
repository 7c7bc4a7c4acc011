//! The checks of what is said about identity: names of the mesh, and who may call.

use super::super::node::{Fault, shown};
use super::At;
use super::routes::{methods, path};
use crate::identity::SpiffePattern;
use crate::join::trust_domain_problem;
use crate::mesh::Mesh;
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
            if let Err(why) = SpiffePattern::parse(from) {
                faults.push(at.fault(format!(
                    "`{}` names no caller: {why}; expected a SPIFFE ID such as spiffe://shop/productpage, in whose path \
                     `*` stands for any one segment",
                    shown(from)
                )));
            }
        }
        methods(at, &rule.methods, faults);
        for (at, one) in at.items_of("paths").iter().zip(&rule.paths) {
            path(at, one, faults);
        }
        for word in ["methods", "paths"] {
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
