//! Many names of which nothing is heard, on the servers that answer for others.

use std::fmt::Write as _;

use outrigger_tests::dns_scripted::ScriptedDns;
use outrigger_tests::wait::eventually;
use outrigger_tests::{ServiceFile, Sidecar};

use crate::dns_hostile::{NAME, ONE, TWO, asks_of, upstreams};

/// The zone of which nothing is heard.
const ZONE: &str = "dead.test";

/// Backends of the service that is found there, and the sources of each: far more names than are asked for at once.
const BACKENDS: usize = 14;
const SOURCES: usize = 16;

/// The names of the zone, as one service.
fn dead(fields: &str) -> ServiceFile {
    let mut file = ServiceFile::new("dead");
    for backend in 0..BACKENDS {
        let mut sources = String::new();
        for source in 0..SOURCES {
            let _ = write!(
                sources,
                "{{ dns: n{source}-of-{backend}.{ZONE}, port: 9, {fields} }}, "
            );
        }
        file = file.sources(&format!("v{backend}"), &sources);
    }
    let backends: Vec<String> = (0..BACKENDS).map(|backend| format!("v{backend}")).collect();
    let shares: Vec<(&str, u32)> = backends.iter().map(|backend| (backend.as_str(), 1)).collect();
    file.route("all", &shares, "")
}

async fn sidecar(dns: &ScriptedDns, port: u16, fields: &str) -> Sidecar {
    let alive = ServiceFile::new("reviews").discover("v1", &format!("dns: {NAME}, port: {port}, {fields}"));
    asks_of(&[dns.address()], &format!("{alive}---\n{}", dead(fields))).await
}

async fn finds(sidecar: &Sidecar, upstream: &str) {
    eventually("the address to be used", async || {
        let reply = sidecar.client().get("reviews", "/").await;
        (reply.status() == 200 && reply.upstream() == upstream).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_zone_that_falls_silent_holds_up_no_other_name_and_is_kept_no_longer_than_is_said() {
    let dns = ScriptedDns::start(&[ONE], 1).await;
    let (_upstreams, port) = upstreams(&[ONE, TWO]).await;
    let sidecar = sidecar(&dns, port, "keep: 3s").await;
    finds(&sidecar, &ONE.to_string()).await;
    dns.fall_silent_for(ZONE);
    sidecar
        .metrics_when("what was kept of the zone to be let go of", |metrics| {
            metrics.sum("outrigger_endpoints", &[("service", "dead")]) == 0.0
        })
        .await;
    dns.set(&[TWO], 1);
    finds(&sidecar, &TWO.to_string()).await;
}

#[tokio::test]
async fn a_zone_that_was_never_heard_of_holds_up_no_other_name() {
    let dns = ScriptedDns::start(&[ONE], 1).await;
    let (_upstreams, port) = upstreams(&[ONE, TWO]).await;
    dns.fall_silent_for(ZONE);
    let sidecar = sidecar(&dns, port, "keep: 1h").await;
    for address in [ONE, TWO, ONE] {
        dns.set(&[address], 1);
        finds(&sidecar, &address.to_string()).await;
    }
}
