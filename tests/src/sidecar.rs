//! A sidecar: the real `outrigger-proxy`, on ports of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Client, Reply};
use crate::metrics::Metrics;
use crate::pki::IdentityFiles;
use crate::program::Program;
use crate::wait::eventually;

/// Any free port of this machine.
const ANY: &str = "127.0.0.1:0";

/// Where a sidecar takes its configuration from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The control API at this URL.
    Control(String),
    /// A file of its own with this text, which [`Sidecar::rewrite`] changes.
    Text(String),
    /// A file or a folder of the test's.
    Path(PathBuf),
}

/// What a sidecar is started with.
#[derive(Clone, Debug)]
pub struct SidecarSpec {
    /// Its name.
    pub id: String,
    /// The service beside which it stands; `None`: it only calls out.
    pub service: Option<String>,
    /// Where its inbound side listens; any free port if it is not said.
    pub inbound: SocketAddr,
    /// Where its outbound side listens; any free port if it is not said.
    pub outbound: SocketAddr,
    /// Where its configuration comes from.
    pub source: Source,
    /// The services for which it opens a local port.
    pub local: Vec<String>,
    /// Where it keeps the last good configuration.
    pub last_good: Option<PathBuf>,
    /// Its DNS servers; none: the machine's.
    pub dns: Vec<SocketAddr>,
    /// Where its certificate, key and roots are.
    pub identity: Option<PathBuf>,
    /// More of its bootstrap, in YAML.
    pub bootstrap: Option<String>,
    /// Further arguments.
    pub arguments: Vec<String>,
    /// Variables of its environment.
    pub environment: Vec<(String, String)>,
}

impl SidecarSpec {
    /// One that takes its configuration from here.
    pub fn new(id: &str, source: Source) -> Self {
        Self {
            id: id.to_owned(),
            service: None,
            inbound: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            outbound: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            source,
            local: Vec::new(),
            last_good: None,
            dns: Vec::new(),
            identity: None,
            bootstrap: None,
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// One that reads this YAML from a file of its own.
    pub fn text(id: &str, yaml: &str) -> Self {
        Self::new(id, Source::Text(yaml.to_owned()))
    }

    /// One that asks the control API at this URL.
    pub fn control(id: &str, url: &str) -> Self {
        Self::new(id, Source::Control(url.to_owned()))
    }

    /// Stands beside an instance of this service.
    #[must_use]
    pub fn beside(mut self, service: &str) -> Self {
        self.service = Some(service.to_owned());
        self
    }

    /// Listens here with its inbound side, so that it can come back where it was.
    #[must_use]
    pub fn inbound_at(mut self, address: SocketAddr) -> Self {
        self.inbound = address;
        self
    }

    /// Listens here with its outbound side.
    #[must_use]
    pub fn outbound_at(mut self, address: SocketAddr) -> Self {
        self.outbound = address;
        self
    }

    /// Opens a local port for this service.
    #[must_use]
    pub fn local(mut self, service: &str) -> Self {
        self.local.push(service.to_owned());
        self
    }

    /// Keeps the last good configuration here.
    #[must_use]
    pub fn last_good(mut self, path: &Path) -> Self {
        self.last_good = Some(path.to_owned());
        self
    }

    /// Asks this DNS server.
    #[must_use]
    pub fn dns(mut self, server: SocketAddr) -> Self {
        self.dns.push(server);
        self
    }

    /// Has its identity from these files.
    #[must_use]
    pub fn identity(mut self, files: &IdentityFiles) -> Self {
        self.identity = Some(files.folder().to_owned());
        self
    }

    /// Adds an argument with its value.
    #[must_use]
    pub fn with(mut self, flag: &str, value: &str) -> Self {
        self.arguments.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// Has this in its bootstrap too.
    #[must_use]
    pub fn bootstrap(mut self, yaml: &str) -> Self {
        self.bootstrap = Some(yaml.to_owned());
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn command_line(&self, folder: &Path) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut flag = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        flag("--node-id", self.id.clone().into());
        flag("--outbound", self.outbound.to_string().into());
        flag("--scrape", ANY.into());
        flag("--admin", ANY.into());
        if let Some(service) = &self.service {
            flag("--service", service.into());
            flag("--inbound", self.inbound.to_string().into());
        }
        match &self.source {
            Source::Control(url) => flag("--control", url.into()),
            Source::Text(_) => flag("--path", folder.join(OWN_FILE).into()),
            Source::Path(path) => flag("--path", path.into()),
        }
        for service in &self.local {
            flag("--local", format!("{ANY}={service}").into());
        }
        if let Some(path) = &self.last_good {
            flag("--last-good", path.into());
        }
        if self.identity.is_some() || self.bootstrap.is_some() {
            flag("--config", folder.join(BOOTSTRAP).into());
        }
        if !self.dns.is_empty() {
            let servers: Vec<_> = self.dns.iter().map(ToString::to_string).collect();
            flag("--dns", servers.join(",").into());
        }
        arguments.extend(self.arguments.iter().map(OsString::from));
        arguments
    }
}

/// The file of a sidecar with [`Source::Text`].
const OWN_FILE: &str = "mesh.yaml";

/// The bootstrap of a sidecar that needs one.
const BOOTSTRAP: &str = "proxy.yaml";

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    id: String,
    program: Program,
    folder: TempDir,
    inbound: Option<SocketAddr>,
    outbound: SocketAddr,
    scrape: SocketAddr,
    admin: SocketAddr,
    local: BTreeMap<String, SocketAddr>,
}

impl Sidecar {
    /// Starts one that only calls out and reads this YAML from a file, and waits until it is ready.
    pub async fn of(yaml: impl std::fmt::Display) -> Self {
        Self::start(SidecarSpec::text("a", &yaml.to_string())).await
    }

    /// Starts one and waits until its sockets listen and it says that it is ready.
    pub async fn start(spec: SidecarSpec) -> Self {
        let sidecar = Self::launch(spec).await;
        sidecar.is_ready().await;
        sidecar
    }

    /// Starts one and waits until its sockets listen.
    pub async fn launch(spec: SidecarSpec) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        if let Source::Text(text) = &spec.source {
            std::fs::write(folder.path().join(OWN_FILE), text).expect("a file in it");
        }
        if spec.identity.is_some() || spec.bootstrap.is_some() {
            let identity = spec.identity.as_deref().map(IdentityFiles::bootstrap);
            let text = identity.unwrap_or_else(|| "kind: Proxy\n".to_owned());
            let text = text + spec.bootstrap.as_deref().unwrap_or_default();
            std::fs::write(folder.path().join(BOOTSTRAP), text).expect("a file in it");
        }
        let arguments = spec.command_line(folder.path());
        let name = format!("sidecar {}", spec.id);
        let program = Program::start_in(&name, "outrigger-proxy", &arguments, &spec.environment);
        let inbound = match spec.service {
            Some(_) => Some(program.listening("inbound").await),
            None => None,
        };
        let mut local = BTreeMap::new();
        for service in &spec.local {
            local.insert(
                service.clone(),
                program.listening(&format!("local:{service}")).await,
            );
        }
        Self {
            id: spec.id,
            inbound,
            outbound: program.listening("outbound").await,
            scrape: program.listening("scrape").await,
            admin: program.listening("admin").await,
            local,
            program,
            folder,
        }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The process.
    pub fn program(&mut self) -> &mut Program {
        &mut self.program
    }

    /// Where it takes requests for the application beside it.
    pub fn inbound(&self) -> SocketAddr {
        let none = || panic!("{} stands beside no service and has no inbound side", self.id);
        self.inbound.unwrap_or_else(none)
    }

    /// Where it takes requests of the application beside it.
    pub fn outbound(&self) -> SocketAddr {
        self.outbound
    }

    /// Where it takes requests for this service alone.
    pub fn local(&self, service: &str) -> SocketAddr {
        self.local[service]
    }

    /// Where it takes callers from outside for this gateway.
    pub async fn gateway(&self, name: &str) -> SocketAddr {
        self.program.listening(&format!("gateway:{name}")).await
    }

    /// Where Prometheus asks.
    pub fn scrape(&self) -> SocketAddr {
        self.scrape
    }

    /// Where operators ask.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// A client of its outbound side.
    pub fn client(&self) -> Client {
        Client::new(self.outbound)
    }

    /// A GET of an admin page.
    pub async fn page(&self, path: &str) -> Reply {
        Client::new(self.admin).get("localhost", path).await
    }

    /// Its metrics.
    pub async fn metrics(&self) -> Metrics {
        let reply = self.page("/metrics").await;
        assert_eq!(reply.status(), 200, "{reply:?}");
        Metrics::parse(&reply.text())
    }

    /// Its metrics, once they pass the test.
    pub async fn metrics_when(&self, what: &str, passes: impl Fn(&Metrics) -> bool) -> Metrics {
        let what = format!("the metrics of {} to show {what}", self.id);
        eventually(&what, async || Some(self.metrics().await).filter(&passes)).await
    }

    /// What `/config` says.
    pub async fn config(&self) -> Value {
        let reply = self.page("/config").await;
        assert_eq!(reply.status(), 200, "{reply:?}");
        reply.json()
    }

    /// What `/config` says, once it passes the test.
    pub async fn config_when(&self, what: &str, passes: impl Fn(&Value) -> bool) -> Value {
        let what = format!("/config of {} to show {what}", self.id);
        eventually(&what, async || Some(self.config().await).filter(&passes)).await
    }

    /// Waits until it says that it is ready.
    pub async fn is_ready(&self) {
        let what = format!("{} to be ready", self.id);
        eventually(&what, async || {
            (self.page("/ready").await.status() == 200).then_some(())
        })
        .await;
    }

    /// The file of a sidecar that was started with [`Source::Text`].
    pub fn file(&self) -> PathBuf {
        self.folder.path().join(OWN_FILE)
    }

    /// Puts another text in the place of its file, as editors do: written beside it, then renamed.
    pub fn rewrite(&self, yaml: &str) {
        let fresh = self.folder.path().join(".mesh.yaml.new");
        std::fs::write(&fresh, yaml).expect("a file in a temporary folder");
        std::fs::rename(&fresh, self.file()).expect("a file that can be renamed");
    }

    /// Puts another text in the place of its file and waits until it is applied.
    pub async fn apply(&self, yaml: &str) {
        let before = self.metrics().await.sum(PUSHES, APPLIED);
        self.rewrite(yaml);
        self.metrics_when("another push applied", |metrics| {
            metrics.sum(PUSHES, APPLIED) > before
        })
        .await;
    }
}

const PUSHES: &str = "outrigger_config_pushes_total";
const APPLIED: &[(&str, &str)] = &[("result", "applied")];
