//! `outrigger demo`: the main job on embedded defaults. A control API, a small shop with a sidecar beside each of its
//! services, steady traffic, and a live view, in one process; nothing of it is pretended: each hop is HTTP over a
//! socket, the sidecars poll the control API, and the numbers are scraped from their metrics pages.
//!
//! The parts, from the ground up: [`places`] says where everything listens, [`caller`] is an HTTP client, [`shop`] the
//! applications, [`sidecars`] the sidecars, [`traffic`] those who shop, [`exposition`] and [`edges`] make rows of
//! counters, [`watch`] gathers what is known, [`hints`] says what to type next, [`view`] draws, [`stage`] is the
//! time while it is shown, and [`run`] here is the order of all that.
//!
//! **Does not** print: what is to be printed is given to whoever runs it.
//!
//! **Invariant:** whatever was started is stopped and waited for before [`run`] returns, and its folder is gone.

mod caller;
mod edges;
mod exposition;
mod hints;
mod places;
mod shop;
mod sidecars;
mod stage;
#[cfg(test)]
mod tests;
mod traffic;
mod view;
mod watch;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};

pub(crate) use edges::Row;
pub(crate) use places::{PORT_BASE_DEFAULT, PORT_BASE_MAX};
pub(crate) use stage::Audience;
pub(crate) use traffic::Shoppers;
pub(crate) use view::{edge, millis, percent};

use crate::client::{Api, Ask, ClientError};
use crate::push::Outcome;
use crate::server::{self, Handle, PushBody, PushText, StartError};
use hints::Here;
use places::{Instance, Moved, Ports, SHOP};
use shop::Shop;
use sidecars::{Bound, Running};
use stage::Stage;
use traffic::Traffic;
use watch::Watch;

/// How long the sidecars may take to have their first configuration; on a machine that is not overwhelmed it is a
/// tenth of a second.
const READY_WITHIN: Duration = Duration::from_secs(15);

/// How often it is asked whether they have it.
const READY_ASKED_EVERY: Duration = Duration::from_millis(20);

/// How the demo is run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// How long; until somebody ends it if not given.
    pub(crate) time: Option<Duration>,
    /// Where the control API listens.
    pub(crate) api: SocketAddr,
    /// The first port of the shop; 0: the system chooses all.
    pub(crate) port_base: u16,
    /// Requests a second.
    pub(crate) rate: u32,
}

/// What it came to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    /// How long there was traffic.
    pub(crate) seconds: f64,
    /// The version that served at the end.
    pub(crate) version: String,
    /// What the shoppers saw.
    pub(crate) shoppers: Shoppers,
    /// Who answered whom.
    pub(crate) edges: Vec<Row>,
}

/// Why there was no demo.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    /// A socket of the shop or of a sidecar cannot be bound.
    #[error(
        "{0}. Is another demo running? `--port-base 20000` moves the shop to other ports, `--port-base 0` to any that \
         are free"
    )]
    Ports(String),
    /// The control API's socket cannot be bound.
    #[error(
        "cannot listen on {0} for the control API: {1}. Is another demo or `outrigger serve` running? `--api-listen \
         127.0.0.1:9800` takes another address"
    )]
    Api(SocketAddr, std::io::Error),
    /// The control API cannot start for another reason.
    #[error(transparent)]
    Store(StartError),
    /// Something of the system was refused.
    #[error("the demo cannot run: {0}")]
    Start(String),
    /// A sidecar ended, or did not begin.
    #[error("the sidecar of {0} {1}")]
    Sidecar(&'static str, String),
    /// The control API did not answer as it should.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// What runs.
struct Mesh {
    control: Handle,
    shop: Shop,
    sidecars: Vec<Running>,
}

/// Where everything turned out to listen.
struct Found {
    moved: Moved,
    ports: Vec<(Instance, Ports)>,
}

/// Starts everything, lets it run, ends everything, and says what it came to.
pub(crate) async fn run(settings: &Settings, audience: Audience<'_>) -> Result<Summary, DemoError> {
    let mut ends = Ends::listen()?;
    let folder = tempfile::Builder::new().prefix("outrigger-demo-").tempdir();
    let folder = folder.map_err(|error| DemoError::Start(format!("no temporary folder: {error}")))?;
    log_to(&folder.path().join("demo.log"))?;
    let mut mesh = Mesh::start_control(settings, folder.path()).await?;
    let outcome = Box::pin(perform(&mut mesh, settings, folder.path(), audience, &mut ends)).await;
    let stopped = mesh.stop().await;
    let summary = match (outcome, stopped) {
        // How a sidecar ended says more than that it did.
        (Ok(_) | Err(DemoError::Sidecar(..)), Err(fault)) => return Err(fault),
        (outcome, _) => outcome?,
    };
    folder
        .close()
        .map_err(|error| DemoError::Start(format!("its temporary folder stays behind: {error}")))?;
    Ok(summary)
}

/// From the first socket to the last look.
async fn perform(
    mesh: &mut Mesh,
    settings: &Settings,
    data: &Path,
    audience: Audience<'_>,
    ends: &mut Ends,
) -> Result<Summary, DemoError> {
    let (found, bound) = mesh.open(settings).await?;
    let control = control_api(mesh.control.address)?;
    push_shop(&control, &found.moved).await?;
    for sidecar in bound {
        mesh.sidecars.push(sidecar.run()?);
    }
    let admins = admins(&found.ports)?;
    mesh.ready(&admins).await?;
    let frontend = found.ports[0].1;
    let hints = Here::find()
        .and_then(|here| hints::hints(&here, &found.moved, data, mesh.control.address, &frontend))
        .map_err(|error| DemoError::Start(format!("the examples cannot be written: {error}")))?;

    let mut watch = Watch::new(admins, control);
    // Before there is traffic, so that no number is taken over next to no time.
    watch.look().await?;
    let traffic = Traffic::start(frontend.inbound, settings.rate);
    let started = Instant::now();
    let mut stage = Stage::open(audience, hints)?;
    let ended = stage
        .play(&mut watch, &traffic, mesh, (settings.time, ends))
        .await;
    let seconds = started.elapsed().as_secs_f64();
    drop(stage);
    traffic.stop().await;
    ended?;
    watch.look().await?;
    Ok(Summary {
        seconds,
        version: watch.version().0,
        shoppers: traffic.so_far(),
        edges: watch.whole(),
    })
}

/// What ends the demo from outside.
struct Ends([Signal; 3]);

impl Ends {
    fn listen() -> Result<Self, DemoError> {
        let listen = |kind| {
            signal(kind).map_err(|error| DemoError::Start(format!("signals cannot be awaited: {error}")))
        };
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            // The terminal was closed.
            listen(SignalKind::hangup())?,
        ]))
    }

    async fn come(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

impl Mesh {
    async fn start_control(settings: &Settings, data: &Path) -> Result<Self, DemoError> {
        let config = server::Config {
            listen: settings.api,
            data: data.join("control"),
            names: Vec::new(),
            ca: crate::ca::Options::default(),
            tls: None,
            require_operator_token: false,
            connections_per_source: None,
        };
        let control = server::start(config).await.map_err(|error| match error {
            StartError::Listen { address, cause } => DemoError::Api(address, cause),
            error @ (StartError::Store(_) | StartError::Ca(_) | StartError::OperatorToken { .. }) => {
                DemoError::Store(error)
            }
        })?;
        Ok(Self {
            control,
            shop: Shop::default(),
            sidecars: Vec::new(),
        })
    }

    /// Binds every socket and opens the shop. The sidecars do not run yet: callers wait in their sockets.
    async fn open(&mut self, settings: &Settings) -> Result<(Found, Vec<Bound>), DemoError> {
        let mut found = Found {
            moved: Moved::default(),
            ports: Vec::new(),
        };
        let mut bound = Vec::new();
        for instance in Instance::ALL {
            let asked = instance.ports(settings.port_base);
            let refused = |error| {
                let (name, address) = (instance.name(), asked.app);
                DemoError::Ports(format!(
                    "{name}: cannot listen on {address} for the application: {error}"
                ))
            };
            let socket = TcpListener::bind(asked.app).await.map_err(refused)?;
            let app = socket.local_addr().map_err(refused)?;
            let sidecar = Bound::new(instance, asked, self.control.address)?;
            let ports = Ports { app, ..sidecar.ports };
            self.shop.open(instance, socket, ports.outbound);
            let usual = instance.ports(PORT_BASE_DEFAULT);
            found.moved.add(usual.app, ports.app);
            found.moved.add(usual.inbound, ports.inbound);
            found.ports.push((instance, ports));
            bound.push(sidecar);
        }
        Ok((found, bound))
    }

    /// A sidecar that ended by itself ends the demo.
    fn check(&self) -> Result<(), DemoError> {
        match self.sidecars.iter().find(|sidecar| sidecar.is_over()) {
            Some(over) => Err(DemoError::Sidecar(
                over.name(),
                "ended before the demo did".into(),
            )),
            None => Ok(()),
        }
    }

    /// Waits until every sidecar says that it is ready.
    async fn ready(&self, admins: &[(Instance, Api)]) -> Result<(), DemoError> {
        let until = Instant::now() + READY_WITHIN;
        for (instance, admin) in admins {
            loop {
                self.check()?;
                let said = match admin.exchange(Ask::get("/ready"), "*/*").await {
                    Ok((StatusCode::OK, _)) => break,
                    Ok((_, body)) => String::from_utf8_lossy(&body).trim().to_owned(),
                    Err(error) => error.to_string(),
                };
                if Instant::now() > until {
                    let waited = READY_WITHIN.as_secs();
                    let what = format!("is not ready after {waited}s: {said}");
                    return Err(DemoError::Sidecar(instance.name(), what));
                }
                sleep(READY_ASKED_EVERY).await;
            }
        }
        Ok(())
    }

    /// Callers before those they call, and the control API last. All are stopped, whatever befalls one.
    async fn stop(self) -> Result<(), DemoError> {
        for sidecar in &self.sidecars {
            sidecar.begin_stop();
        }
        self.shop.close().await;
        let mut outcome = Ok(());
        for sidecar in self.sidecars {
            outcome = outcome.and(sidecar.stopped().await);
        }
        self.control.shutdown().await;
        outcome
    }
}

/// Logs go to a file: the screen is the view's. Where a subscriber is set already, as in a test, it stays.
fn log_to(path: &Path) -> Result<(), DemoError> {
    let file = std::fs::File::create(path)
        .map_err(|error| DemoError::Start(format!("{} cannot be written: {error}", path.display())))?;
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        // A sidecar's thread has its name.
        .with_thread_names(true)
        .with_max_level(tracing::Level::INFO)
        .with_writer(std::sync::Mutex::new(file))
        .finish();
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

fn control_api(address: SocketAddr) -> Result<Api, ClientError> {
    // It may listen on all addresses, and is near all the same.
    let host = match address {
        SocketAddr::V4(address) if address.ip().is_unspecified() => format!("127.0.0.1:{}", address.port()),
        SocketAddr::V6(address) if address.ip().is_unspecified() => format!("[::1]:{}", address.port()),
        address => address.to_string(),
    };
    Api::new(&format!("http://{host}"))
}

/// Pushes the shop's documents as `outrigger push` would.
async fn push_shop(control: &Api, moved: &Moved) -> Result<(), DemoError> {
    let shop = PushText {
        file: SHOP.file.to_owned(),
        line: 1,
        text: moved.text(SHOP),
    };
    let body = PushBody {
        documents: vec![shop],
    };
    let body = serde_json::to_vec(&body).map_err(|error| DemoError::Start(error.to_string()))?;
    let _: Outcome = control
        .json(Ask::put("/v1/config", "application/json", body))
        .await?;
    Ok(())
}

fn admins(ports: &[(Instance, Ports)]) -> Result<Vec<(Instance, Api)>, ClientError> {
    let admin = |(instance, ports): &(Instance, Ports)| {
        let api = Api::new(&format!("http://{}", ports.admin))?;
        Ok((*instance, api))
    };
    ports.iter().map(admin).collect()
}
