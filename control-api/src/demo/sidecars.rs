//! The sidecars of the demo: the real ones, each on threads of its own, as it would be in a process of its own.
//!
//! **Does not** tell them anything: their configuration comes from the control API, by the same long poll as ever.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use outrigger_config::Bootstrap;
use outrigger_config::bootstrap::{AccessLog, Listeners, Node, Source};
use outrigger_config::units::Duration;
use outrigger_proxy::app::{Sidecar, Start};
use outrigger_proxy::drain::Drain;
use outrigger_proxy::upstream::discovery::SystemFiles;

use super::DemoError;
use super::places::{Instance, Ports};

/// The longest that a sidecar may take to stop: a person who pressed Ctrl-C waits for it.
const DRAIN: Duration = Duration::from_secs(5);

/// A sidecar whose sockets are bound and that does not serve yet.
#[derive(Debug)]
pub(super) struct Bound {
    instance: Instance,
    sidecar: Sidecar,
    drain: Drain,
    /// Where it listens, with the ports that the system chose.
    pub(super) ports: Ports,
}

/// A sidecar that serves.
#[derive(Debug)]
pub(super) struct Running {
    instance: Instance,
    drain: Drain,
    thread: JoinHandle<Result<(), String>>,
}

impl Bound {
    /// Binds the sidecar beside an instance. `control` is the address of the control API.
    pub(super) fn new(instance: Instance, ports: Ports, control: SocketAddr) -> Result<Self, DemoError> {
        let bootstrap = Bootstrap {
            node: Node {
                id: Some(instance.name().to_owned()),
                service: Some(instance.name().to_owned()),
                version: Some(instance.version().to_owned()),
                zone: None,
            },
            listeners: Listeners {
                inbound: ports.inbound,
                outbound: ports.outbound,
                ..Listeners::default()
            },
            config: Source {
                control: Some(format!("http://{control}")),
                ..Source::default()
            },
            identity: None,
            scrape: ports.scrape,
            admin: ports.admin,
            workers: Some(1),
            drain: DRAIN,
            // Standard output is the view's.
            access_log: AccessLog::Off,
        };
        let start = Start {
            bootstrap,
            dns: Vec::new(),
            system_files: SystemFiles::default(),
            token: None,
        };
        let (name, drain) = (instance.name(), Drain::default());
        let sidecar = Sidecar::bind(start, drain.clone()).map_err(|error| {
            let (first, last, cause) = (ports.inbound, ports.scrape.port(), error.root_cause());
            DemoError::Ports(format!(
                "{name}: cannot listen on {first} and up to port {last} for its sidecar: {cause}"
            ))
        })?;
        let found = |listener: &str| {
            let addresses = sidecar.addresses();
            let found = addresses.into_iter().find(|(name, _)| name == listener);
            found.map(|(_, address)| address)
        };
        let ports = Ports {
            inbound: found("inbound").unwrap_or(ports.inbound),
            outbound: found("outbound").unwrap_or(ports.outbound),
            admin: sidecar.admin_address().unwrap_or(ports.admin),
            ..ports
        };
        Ok(Self {
            instance,
            sidecar,
            drain,
            ports,
        })
    }

    /// Lets it serve.
    pub(super) fn run(self) -> Result<Running, DemoError> {
        let (sidecar, instance) = (self.sidecar, self.instance);
        let thread = std::thread::Builder::new()
            .name(instance.name().to_owned())
            .spawn(move || sidecar.run().map_err(|error| format!("{error:#}")))
            .map_err(|error| {
                DemoError::Start(format!("no thread for the sidecar {}: {error}", instance.name()))
            })?;
        Ok(Running {
            instance,
            drain: self.drain,
            thread,
        })
    }
}

impl Running {
    /// Whether it has ended, which it should not before it is told to.
    pub(super) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Its name.
    pub(super) fn name(&self) -> &'static str {
        self.instance.name()
    }

    /// Tells it to finish what it has.
    pub(super) fn begin_stop(&self) {
        self.drain.start();
    }

    /// Waits until it has finished; a fault of its own is told.
    pub(super) async fn stopped(self) -> Result<(), DemoError> {
        let name = self.instance.name();
        let fault = |what: String| DemoError::Sidecar(name, what);
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await;
        match joined {
            Ok(Ok(ended)) => ended.map_err(fault),
            Ok(Err(_)) => Err(fault("its thread panicked".into())),
            Err(error) => Err(fault(error.to_string())),
        }
    }
}
