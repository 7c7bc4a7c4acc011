//! The checks of gateways: their own, and whether the services that they name are there.

use std::collections::HashMap;

use super::super::node::{Fault, Mark, shown};
use super::At;
use super::names::gateway_name;
use super::service::hosts;
use crate::gateway::Gateway;
use crate::service::Protocol;
use crate::{Config, Problem};

/// Checks a gateway by itself.
pub(in super::super) fn gateway(at: &At<'_>, gateway: &Gateway, faults: &mut Vec<Fault>) {
    if let Some(at) = at.field("name") {
        faults.extend(gateway_name(&gateway.name).map(|why| at.fault(why)));
    }
    if let Some(list) = at.field("services")
        && list.node.items().is_empty()
    {
        faults.push(list.fault("the list is empty; a gateway serves at least one service"));
    }
    let mut taken: HashMap<String, usize> = HashMap::new();
    for at in at.items_of("services") {
        hosts(&at, faults);
        if let Some(list) = at.field("hosts")
            && list.node.items().is_empty()
        {
            faults.push(list.fault("the list is empty; callers need at least one host to ask for"));
        }
        for at in at.items_of("hosts") {
            let host = at.node.text().unwrap_or_default().to_ascii_lowercase();
            if let Some(line) = taken.get(&host) {
                let host = shown(&host);
                faults.push(at.fault(format!(
                    "the host `{host}` is given on line {line} already; it leads to one service"
                )));
                continue;
            }
            taken.insert(host, at.mark().line);
        }
    }
}

/// What gateways say of services, to be judged when all documents are read: a service may stand behind its gateway.
#[derive(Debug, Default)]
pub(in super::super) struct Exposures {
    /// Whether a document could not be read, which may have been the service that is missed.
    pub(in super::super) is_blind: bool,
    names: HashMap<String, String>,
    said: Vec<Said>,
}

#[derive(Debug)]
struct Said {
    file: String,
    mark: Mark,
    path: String,
    service: String,
}

impl Exposures {
    /// Notes what a gateway says; a name that is taken is a fault.
    pub(in super::super) fn take(
        &mut self,
        at: &At<'_>,
        file: &str,
        gateway: &Gateway,
        faults: &mut Vec<Fault>,
    ) {
        if let Some(at) = at.field("name") {
            let name = shown(&gateway.name);
            let file = if file.is_empty() { "-" } else { file };
            if let Some(first) = self.names.get(&gateway.name) {
                faults.push(at.fault(format!("the gateway `{name}` is there already, at {first}")));
            } else {
                let here = format!("{file}:{}", at.mark().line);
                self.names.insert(gateway.name.clone(), here);
            }
        }
        for (at, exposed) in at.items_of("services").iter().zip(&gateway.services) {
            if let Some(at) = at.field("service") {
                self.said.push(Said {
                    file: file.to_owned(),
                    mark: at.mark(),
                    path: at.path.clone(),
                    service: exposed.service.clone(),
                });
            }
        }
    }

    /// Judges what was said by all that there is.
    pub(in super::super) fn judge(self, config: &Config, problems: &mut Vec<Problem>) {
        for said in self.said {
            let service = config
                .services
                .iter()
                .find(|service| service.name == said.service);
            let name = shown(&said.service);
            let message = match service {
                None if self.is_blind => continue,
                None => format!("there is no service `{name}`"),
                Some(service) if service.protocol == Protocol::Tcp => format!(
                    "the service `{name}` speaks tcp, and a gateway takes requests; callers outside reach it by a load balancer"
                ),
                Some(_) => continue,
            };
            problems.push(Problem {
                file: said.file,
                line: said.mark.line,
                column: said.mark.column,
                path: said.path,
                message,
            });
        }
    }
}
