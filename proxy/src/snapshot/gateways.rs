//! Configuration → the hosts of each gateway, which lead to services as their callers see them.

use std::collections::HashMap;

use outrigger_config::Config;

use crate::snapshot::routes::HostTable;

/// The hosts of each gateway by its name. `services` is where each service stands.
pub(super) fn tables(
    config: &Config,
    services: &HashMap<String, usize>,
) -> Result<HashMap<String, HostTable>, Vec<String>> {
    let (mut tables, mut problems) = (HashMap::new(), Vec::new());
    for gateway in &config.gateways {
        let mut table = HostTable::default();
        for exposed in &gateway.services {
            let Some(place) = services.get(&exposed.service) else {
                let (name, service) = (&gateway.name, &exposed.service);
                problems.push(format!("gateway {name}: there is no service `{service}`"));
                continue;
            };
            for host in &exposed.hosts {
                table.insert(host, *place);
            }
        }
        tables.insert(gateway.name.clone(), table);
    }
    match problems.is_empty() {
        true => Ok(tables),
        false => Err(problems),
    }
}
