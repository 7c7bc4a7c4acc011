//! Who answers to which host name, across all services.

use std::collections::HashMap;

use super::super::node::{Fault, Mark, shown};
use super::At;
use crate::service::Service;

/// The host names that are taken so far, and by whom.
#[derive(Debug, Default)]
pub(in super::super) struct Hosts {
    taken: HashMap<String, Taken>,
}

#[derive(Debug)]
struct Taken {
    service: String,
    file: String,
    mark: Mark,
}

impl Hosts {
    /// Takes the host names of a service; each that is taken already is a fault.
    pub(in super::super) fn take(
        &mut self,
        at: &At<'_>,
        file: &str,
        service: &Service,
        faults: &mut Vec<Fault>,
    ) {
        let written = at.items_of("hosts");
        if at.given(&["hosts"]) > 0
            && !at
                .node
                .get("hosts")
                .is_some_and(|hosts| hosts.value.items().is_empty())
        {
            for at in &written {
                self.claim(at, at.node.text().unwrap_or_default(), file, service, faults);
            }
        } else if let Some(at) = at.field("name") {
            self.claim(&at, &service.name, file, service, faults);
        }
    }

    fn claim(&mut self, at: &At<'_>, host: &str, file: &str, service: &Service, faults: &mut Vec<Fault>) {
        let host = host.to_ascii_lowercase();
        if let Some(taken) = self.taken.get(&host) {
            let who = if taken.service == service.name && taken.file == file {
                "this service".to_owned()
            } else {
                format!("the service `{}`", shown(&taken.service))
            };
            let file = if taken.file.is_empty() { "-" } else { &taken.file };
            faults.push(at.fault(format!(
                "the host `{}` is taken by {who} at {file}:{}; a host belongs to one service",
                shown(&host),
                taken.mark.line
            )));
            return;
        }
        let taken = Taken {
            service: service.name.clone(),
            file: file.to_owned(),
            mark: at.mark(),
        };
        self.taken.insert(host, taken);
    }
}
