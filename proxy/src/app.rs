//! Builds every part once, runs them, and stops them in order.
//!
//! Knows the parts and their lifetimes; decides nothing about requests or configurations.

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use outrigger_config::Bootstrap;
use outrigger_config::bootstrap::Door;
use outrigger_config::discovery::Node;
use outrigger_config::join::JoinToken;
use tokio::runtime::LocalOptions;

use crate::admin::{self, Admin, Pages};
use crate::apply::{self, Applier, Retired};
use crate::control::address::Address;
use crate::control::files::Files;
use crate::control::identity::{IdentitySource, tell_if_other};
use crate::control::{ControlApi, Known, Source};
use crate::drain::Drain;
use crate::listener::{self, Listener, Silence, Workers};
use crate::names::Names;
use crate::snapshot::{Entry, Snapshots, Standing, compile};
use crate::telemetry::metrics::{Metrics, TlsMetrics};
use crate::telemetry::request_log::AccessLogger;
use crate::tls::gateway::Server;
use crate::tls::{self, Identities};
use crate::upstream::discovery::{Resolver, SystemFiles};

/// While it drains, the sidecar is done when it has had no connection for this long: long enough for a caller that
/// was told to close its connection to come back once with a new one.
const QUIET: Duration = Duration::from_millis(500);

/// A kept connection that is silent is left open this long after draining began. A sidecar closes its side of an
/// idle connection after 3 to 4 s (`upstream::pool`), so that it is the caller who closes, and no request meets a
/// connection that is being closed under its hands.
const HANG_UP_AFTER: Duration = Duration::from_secs(5);

/// How often it is looked whether the last connection has gone.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// At the end, so long for the last log lines to be written: a reader of standard output that is stuck must not keep the
/// sidecar from going.
const LAST_WORDS_MAX: Duration = Duration::from_secs(2);

/// How often it is looked whether they are.
const LAST_WORDS_LOOK: Duration = Duration::from_millis(5);

/// How often snapshots that nobody holds any more are dropped.
const BURY_EVERY: Duration = Duration::from_secs(1);

/// How much nicer the control thread is than the data threads. On a core that it shares with a data thread that is never idle it is
/// left a tenth: enough for polls, checks and probes, where a niceness of 19 leaves a hundredth.
const CONTROL_NICENESS: i32 = 10;

/// Everything that is fixed when a sidecar starts.
#[derive(Clone, Debug)]
pub struct Start {
    /// The bootstrap.
    pub bootstrap: Bootstrap,
    /// DNS servers to ask; none: those of the system.
    pub dns: Vec<SocketAddr>,
    /// The files that say how the system resolves names.
    pub system_files: SystemFiles,
    /// The token to join the mesh with, where it was given and does not stand in a file.
    pub token: Option<JoinToken>,
}

/// A sidecar whose sockets are bound and whose callers wait in them: it serves as soon as it runs.
#[derive(Debug)]
pub struct Sidecar {
    start: Start,
    listeners: Vec<Listener>,
    names: Option<Names>,
    scrape: std::net::TcpListener,
    admin: std::net::TcpListener,
    drain: Drain,
}

impl Sidecar {
    /// Binds every socket. [`Drain::start`] on `drain` makes [`Self::run`] finish what it has and return.
    ///
    /// # Errors
    /// When the bootstrap does not say where configurations come from, or an address is taken, with its name and address.
    pub fn bind(start: Start, drain: Drain) -> anyhow::Result<Self> {
        let bootstrap = &start.bootstrap;
        whence(bootstrap)?;
        let mut listeners = Vec::new();
        if bootstrap.node.service.is_some() {
            let announced = bootstrap.listeners.proxy_protocol.contains(&Door::Inbound);
            let address = bootstrap.listeners.inbound;
            listeners.push(Listener::bind(Entry::Inbound, address, announced)?);
        }
        let announced = bootstrap.listeners.proxy_protocol.contains(&Door::Outbound);
        let address = bootstrap.listeners.outbound;
        let dns = bootstrap.listeners.dns.as_ref();
        let range = dns.and_then(|dns| dns.range);
        listeners.push(Listener::bind(Entry::Outbound, address, announced)?.addressed(range));
        for address in dns.into_iter().flat_map(|dns| dns.port_addresses(address)) {
            listeners.push(Listener::bind(Entry::Outbound, address, announced)?.addressed(range));
        }
        for local in &bootstrap.listeners.local {
            listeners.push(Listener::bind(
                Entry::Local(local.service.as_str().into()),
                local.address,
                local.proxy_protocol,
            )?);
        }
        for gateway in &bootstrap.listeners.gateways {
            let entry = Entry::Gateway(gateway.name.as_str().into());
            let server = gateway.tls.clone().map(|files| Server::new(&gateway.name, files));
            let listener = Listener::bind(entry, gateway.address, gateway.proxy_protocol)?;
            listeners.push(listener.showing(server));
        }
        if let Some(range) = range.filter(|_| !listeners.iter().any(Listener::is_addressed)) {
            tracing::warn!(
                %range,
                %address,
                "names are answered with addresses of the range, and no listener takes connections to them: have \
                 `listeners.outbound` listen on 0.0.0.0, or say in `listeners.dns.ports` which ports they have"
            );
        }
        let names = dns
            .map(|dns| Names::bind(dns, &bootstrap.listeners, &start.dns))
            .transpose()?;
        let page = |name: &str, address: SocketAddr| {
            let socket = listener::bind(address).with_context(|| {
                format!("cannot listen on {address} for {name}: is another program using it? set another address in the bootstrap")
            })?;
            tracing::info!(listener = name, address = %socket.local_addr()?, "listening");
            anyhow::Ok(socket)
        };
        let (scrape, admin) = (page("scrape", bootstrap.scrape)?, page("admin", bootstrap.admin)?);
        Ok(Self {
            listeners,
            names,
            scrape,
            admin,
            start,
            drain,
        })
    }

    /// The addresses of the traffic listeners by name: `inbound`, `outbound`, `local:<service>`, `gateway:<name>`.
    pub fn addresses(&self) -> Vec<(String, SocketAddr)> {
        self.listeners
            .iter()
            .map(|listener| (listener.name.clone(), listener.address))
            .collect()
    }

    /// The address of the admin pages.
    ///
    /// # Errors
    /// When the system does not tell it.
    pub fn admin_address(&self) -> std::io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Serves until it is told to stop and has finished what it had. This thread becomes the control thread.
    ///
    /// # Errors
    /// When a part cannot be started.
    pub fn run(self) -> anyhow::Result<()> {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build_local(LocalOptions::default())?;
        runtime.block_on(self.serve())
    }

    async fn serve(self) -> anyhow::Result<()> {
        let Self {
            start:
                Start {
                    bootstrap,
                    dns,
                    system_files,
                    token,
                },
            listeners,
            names,
            scrape,
            admin,
            drain,
        } = self;
        let metrics = Arc::new(Metrics::new()?);
        let snapshots = Arc::new(Snapshots::new(compile::nothing(&metrics)));
        let (logger, writing) =
            AccessLogger::start(bootstrap.access_log, metrics.lost_lines(), drain.clone())?;
        let identities = Arc::new(
            Identities::new(bootstrap.identity.is_some(), Arc::clone(metrics.tls()))
                .beside(bootstrap.node.service.clone()),
        );
        // A mistake in what was given is told before there are workers, which would end with this and call that a death.
        let resolver = resolver(names.as_ref(), &dns, system_files)?;
        let mut identity = IdentitySource::of(&bootstrap, token, &resolver)?;
        let known = Known {
            identities: Arc::clone(&identities),
            token: identity.token(),
            roots: identity.hear_roots(&bootstrap),
        };
        let source = source(&bootstrap, known, &resolver)?;
        let workers = Workers::start(
            (worker_count(&bootstrap), Silence::of(&bootstrap.listeners)),
            (&snapshots, &identities),
            &logger,
            (&drain, &metrics.lost_workers()),
        )?;
        let standing = standing(&bootstrap, &listeners, &identities);
        if let Some(names) = names {
            names.start(&snapshots, metrics.names(), &drain)?;
        }
        let applier = Applier::new(Arc::clone(&snapshots), Arc::clone(&metrics), resolver, standing);

        let servers = shown(&listeners, metrics.tls());
        let pages = Rc::new(Admin {
            snapshots,
            metrics: Arc::clone(&metrics),
            refused: Arc::clone(&applier.refused),
            identities: Arc::clone(&identities),
            servers,
            drain: drain.clone(),
        });
        show(&pages, scrape, admin)?;
        listener::start_accepting(listeners, &workers, &metrics, &drain)?;
        stand_back();
        let service = bootstrap.node.service.clone();
        tokio::task::spawn_local(tell_if_other(Arc::clone(&identities), service));
        tokio::task::spawn_local(tls::tell_when_ended(Arc::clone(&identities)));
        tokio::task::spawn_local(identity.keep_current(identities));
        tokio::task::spawn_local(bury(applier.retired.clone()));
        tokio::task::spawn_local(keep_configured(applier, source));

        drain.draining().await;
        finish(&drain, bootstrap.drain.0).await;
        drop(logger);
        last_words(workers.into_threads().into_iter().chain([writing]).collect()).await;
        Ok(())
    }
}

/// Where this sidecar stands, of which a configuration is compiled.
fn standing(bootstrap: &Bootstrap, listeners: &[Listener], identities: &Arc<Identities>) -> Standing {
    let doors = listeners.iter();
    Standing {
        service: bootstrap.node.service.clone(),
        listeners: doors.map(|door| (door.entry.clone(), door.address)).collect(),
        range: bootstrap.listeners.dns.as_ref().and_then(|dns| dns.range),
        identities: Arc::clone(identities),
    }
}

/// Serves the pages of operators.
fn show(
    pages: &Rc<Admin>,
    scrape: std::net::TcpListener,
    admin: std::net::TcpListener,
) -> anyhow::Result<()> {
    let all = Pages::admin(admin.local_addr()?);
    for (socket, which) in [(scrape, Pages::Scrape), (admin, all)] {
        let (socket, _) = admin::listener(socket)?;
        tokio::task::spawn_local(admin::serve(Rc::clone(pages), socket, which));
    }
    Ok(())
}

/// Who asks DNS for this sidecar: never its own listener for names, if the system's files lead there.
fn resolver(names: Option<&Names>, dns: &[SocketAddr], files: SystemFiles) -> anyhow::Result<Resolver> {
    let around = names.and_then(Names::instead_of_the_system);
    let servers = around.filter(|_| dns.is_empty()).unwrap_or(dns);
    let resolver = Resolver::with_files(servers, files)?;
    tokio::task::spawn_local(resolver.clone().keep_current());
    Ok(resolver)
}

/// Reads what the ports at the edge show of themselves, and keeps it as its files are.
fn shown(listeners: &[Listener], metrics: &Arc<TlsMetrics>) -> Vec<Arc<Server>> {
    let servers = listeners.iter().filter_map(|listener| listener.server.clone());
    let servers: Vec<_> = servers.collect();
    for server in &servers {
        server.look(metrics);
        let keeping = tls::gateway::keep_current(Arc::clone(server), Arc::clone(metrics));
        tokio::task::spawn_local(keeping);
    }
    servers
}

/// The one writer of the configuration. Waiting for the next push is never broken off: a poll that is cut short loses
/// the answer that is on its way.
async fn keep_configured(mut applier: Applier, mut source: Source) {
    loop {
        let push = source.next().await;
        let verdict = apply::apply(&mut applier, push).await;
        source.answer(verdict);
    }
}

/// Waits until the workers have let go of what they still had and its log lines are written, within bounds.
async fn last_words(threads: Vec<std::thread::JoinHandle<()>>) {
    let until = tokio::time::Instant::now() + LAST_WORDS_MAX;
    while threads.iter().any(|thread| !thread.is_finished()) {
        if tokio::time::Instant::now() >= until {
            tracing::warn!("a thread did not end in time; the last lines of the access log may be lost");
            return;
        }
        tokio::time::sleep(LAST_WORDS_LOOK).await;
    }
}

/// Lets the data threads go before the control thread, which calls this once all of them are there: a large table that is compiled,
/// or a scrape of it, is not felt by requests then where there is no core to spare.
fn stand_back() {
    if let Err(error) = rustix::process::nice(CONTROL_NICENESS) {
        tracing::debug!(%error, "the control thread keeps its priority");
    }
}

/// Drops, about once a second, the snapshots that no request holds any more.
async fn bury(retired: Retired) {
    let mut tick = tokio::time::interval(BURY_EVERY);
    loop {
        tick.tick().await;
        retired.bury();
    }
}

/// Finishes what there is: until it has been quiet, at most for `limit`.
async fn finish(drain: &Drain, limit: Duration) {
    let started = tokio::time::Instant::now();
    tracing::info!(connections = drain.running(), limit = ?limit, "draining");
    let mut quiet_since = started;
    while started.elapsed() < limit && quiet_since.elapsed() < QUIET {
        if drain.running() > 0 {
            quiet_since = tokio::time::Instant::now();
        }
        if started.elapsed() > HANG_UP_AFTER.min(limit / 2) {
            drain.hang_up();
        }
        // Half of the time is for callers that keep coming; then the door is closed and the rest is for those
        // that are in.
        if started.elapsed() > limit / 2 {
            drain.close();
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    drain.close();
    let cut = drain.running();
    drain.end();
    if cut > 0 {
        tracing::warn!(
            connections = cut,
            "the time to drain is over; these connections were cut"
        );
    }
    drain.finished().await;
    tracing::info!(took = ?started.elapsed(), "drained");
}

/// Where configurations come from.
enum Whence<'a> {
    Control(Address),
    Path(&'a Path),
}

/// Where the bootstrap says that configurations come from. Asked before a port is bound too, so that a mistake is told before
/// anything begins.
fn whence(bootstrap: &Bootstrap) -> anyhow::Result<Whence<'_>> {
    let config = &bootstrap.config;
    match (&config.control, &config.path) {
        (Some(url), None) => {
            let address = Address::parse(url)?;
            if address.tls && bootstrap.identity.is_none() {
                anyhow::bail!(
                    "`{url}` is known by the root of its mesh, which this sidecar does not know: give it a join token \
                     (OUTRIGGER_TOKEN or --token-file), or an `identity` in its bootstrap"
                );
            }
            Ok(Whence::Control(address))
        }
        (None, Some(path)) => Ok(Whence::Path(path)),
        (None, None) => anyhow::bail!(
            "no source of configuration: give --control URL for a control API or --path FILE for a watched file or folder"
        ),
        (Some(_), Some(_)) => {
            anyhow::bail!("two sources of configuration: give --control or --path, not both")
        }
    }
}

fn source(bootstrap: &Bootstrap, known: Known, resolver: &Resolver) -> anyhow::Result<Source> {
    let config = &bootstrap.config;
    let address = match whence(bootstrap)? {
        Whence::Control(address) => address,
        Whence::Path(path) => return Ok(Source::Files(Files::new(path.to_owned()))),
    };
    let node = &bootstrap.node;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let node = Node {
        id: node.id.clone().unwrap_or_else(host_name),
        service: text(&node.service),
        version: text(&node.version),
        zone: text(&node.zone),
        ..Node::default()
    };
    let (want, last_good) = (config.want.clone(), config.last_good.clone());
    let api = ControlApi::new((address, known), resolver.clone(), node, want, last_good);
    Ok(Source::Control(Box::new(api)))
}

/// The host's name, which in a container is its own.
fn host_name() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/hostname");
    read.map_or_else(
        |_| format!("sidecar-{}", std::process::id()),
        |name| name.trim().to_owned(),
    )
}

/// As many data threads as there are CPUs that this process may use; the standard library counts the cgroup's quota.
fn worker_count(bootstrap: &Bootstrap) -> usize {
    bootstrap
        .workers
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}
