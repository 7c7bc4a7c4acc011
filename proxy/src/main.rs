//! `outrigger-proxy`: arguments in, exit code out. The sidecar itself is in the library.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use outrigger_config::Bootstrap;
use outrigger_config::bootstrap::{AccessLog, LocalListener};
use outrigger_config::join::JoinToken;
use outrigger_config::units::Duration;
use outrigger_proxy::app::{Sidecar, Start};
use outrigger_proxy::drain::Drain;
use outrigger_proxy::upstream::discovery::SystemFiles;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code for a command line or bootstrap that cannot be understood.
const EXIT_USAGE: u8 = 2;

/// The Outrigger sidecar. Flags and OUTRIGGER_* variables overrule the bootstrap file.
#[derive(Debug, Parser)]
#[command(name = "outrigger-proxy", version, about)]
struct Arguments {
    /// The bootstrap file
    #[arg(long, env = "OUTRIGGER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of this sidecar, unique in the mesh [default: the host's name]
    #[arg(long, env = "OUTRIGGER_NODE_ID", value_name = "ID")]
    node_id: Option<String>,
    /// The service whose instance it stands beside
    #[arg(long, env = "OUTRIGGER_SERVICE", value_name = "NAME")]
    service: Option<String>,
    /// The control API, such as http://127.0.0.1:9900
    #[arg(long, env = "OUTRIGGER_CONTROL", value_name = "URL")]
    control: Option<String>,
    /// A YAML file or a folder of them to watch instead
    #[arg(long, env = "OUTRIGGER_PATH", value_name = "PATH")]
    path: Option<PathBuf>,
    /// Where the last good configuration is kept
    #[arg(long, env = "OUTRIGGER_LAST_GOOD", value_name = "FILE")]
    last_good: Option<PathBuf>,
    /// The token to join the mesh with, as `outrigger token create` prints it. Better in the variable than on the command
    /// line, which others can see
    #[arg(long, env = "OUTRIGGER_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A file that holds it
    #[arg(long, env = "OUTRIGGER_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Where requests for the application come in [default: 0.0.0.0:15000]
    #[arg(long, env = "OUTRIGGER_INBOUND", value_name = "ADDRESS")]
    inbound: Option<SocketAddr>,
    /// Where requests of the application come in [default: 127.0.0.1:15001]
    #[arg(long, env = "OUTRIGGER_OUTBOUND", value_name = "ADDRESS")]
    outbound: Option<SocketAddr>,
    /// A port that stands for one service, such as 127.0.0.1:9001=reviews; may be given again
    #[arg(long, env = "OUTRIGGER_LOCAL", value_name = "ADDRESS=SERVICE", value_delimiter = ',', value_parser = local)]
    local: Vec<LocalListener>,
    /// Where the application asks for names, such as 127.0.0.1:15053 [default: nowhere]
    #[arg(long, env = "OUTRIGGER_DNS_LISTENER", value_name = "ADDRESS")]
    dns_listener: Option<SocketAddr>,
    /// Where Prometheus and health checks ask [default: 0.0.0.0:9901]
    #[arg(long, env = "OUTRIGGER_SCRAPE", value_name = "ADDRESS")]
    scrape: Option<SocketAddr>,
    /// Where operators ask [default: 127.0.0.1:9902]
    #[arg(long, env = "OUTRIGGER_ADMIN", value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// Data threads [default: the CPUs it may use]
    #[arg(long, env = "OUTRIGGER_WORKERS", value_name = "COUNT")]
    workers: Option<usize>,
    /// The longest that stopping may take [default: 20s]
    #[arg(long, env = "OUTRIGGER_DRAIN", value_name = "DURATION")]
    drain: Option<Duration>,
    /// Which requests are written to standard output: failures, all, off
    #[arg(long, env = "OUTRIGGER_ACCESS_LOG", value_name = "WHICH", value_parser = access_log)]
    access_log: Option<AccessLog>,
    /// Ask the sidecar that runs here whether it is ready, on its scrape address, and end with 0 if it is: the health
    /// check for ECS and compose, where the image has no other program
    #[arg(long)]
    check_ready: bool,
    /// DNS servers to ask instead of the system's, such as 127.0.0.1:53
    #[arg(long, env = "OUTRIGGER_DNS", value_name = "ADDRESS", value_delimiter = ',')]
    dns: Vec<SocketAddr>,
    /// Read instead of /etc/resolv.conf
    #[arg(long, env = "OUTRIGGER_RESOLV_CONF", value_name = "FILE", hide = true)]
    resolv_conf: Option<PathBuf>,
    /// Read instead of /etc/hosts
    #[arg(long, env = "OUTRIGGER_HOSTS", value_name = "FILE", hide = true)]
    hosts: Option<PathBuf>,
}

fn local(text: &str) -> Result<LocalListener, String> {
    let expected = || {
        format!("`{text}` is not a local listener: expected ADDRESS=SERVICE, such as 127.0.0.1:9001=reviews")
    };
    let (address, service) = text.split_once('=').ok_or_else(expected)?;
    let address = address.parse().map_err(|_| expected())?;
    Ok(LocalListener {
        address,
        service: service.to_owned(),
        proxy_protocol: false,
    })
}

fn access_log(text: &str) -> Result<AccessLog, String> {
    match text {
        "failures" => Ok(AccessLog::Failures),
        "all" => Ok(AccessLog::All),
        "off" => Ok(AccessLog::Off),
        _ => Err(format!("`{text}` is not one of failures, all, off")),
    }
}

impl Arguments {
    /// The bootstrap file with the flags over it.
    fn bootstrap(self) -> anyhow::Result<Start> {
        let mut bootstrap = match &self.config {
            None => Bootstrap::default(),
            Some(path) => {
                let name = path.display().to_string();
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the bootstrap {name}"))?;
                outrigger_config::read_bootstrap(&name, &text).map_err(|problems| {
                    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
                    anyhow::anyhow!("the bootstrap cannot be used:\n{}", lines.join("\n"))
                })?
            }
        };
        if self.control.is_some() {
            bootstrap.config.path = None;
        }
        if self.path.is_some() && self.control.is_none() {
            bootstrap.config.control = None;
        }
        overrule(&mut bootstrap.config.control, self.control);
        overrule(&mut bootstrap.config.path, self.path);
        overrule(&mut bootstrap.config.last_good, self.last_good);
        // Read here and not by clap, whose errors repeat what they are given: this is a secret, if a damaged one.
        let token = self.token.as_deref().map(|text| {
            let read = text.trim().parse::<JoinToken>();
            read.map_err(|why| anyhow::anyhow!("--token or OUTRIGGER_TOKEN: {why}"))
        });
        let token = token.transpose()?;
        if token.is_some() || self.token_file.is_some() {
            let source = bootstrap.identity.get_or_insert_default();
            let join = source.join.get_or_insert_default();
            overrule(&mut join.token_file, self.token_file);
        }
        if let Some(source) = &mut bootstrap.identity
            && let Some(api) = &mut source.workload_api
        {
            // SPIFFE Workload Endpoint section 4: where no socket is configured, this variable names it.
            api.socket = api
                .socket
                .take()
                .or_else(|| std::env::var("SPIFFE_ENDPOINT_SOCKET").ok());
        }
        overrule(&mut bootstrap.node.id, self.node_id);
        overrule(&mut bootstrap.node.service, self.service);
        overrule(&mut bootstrap.workers, self.workers);
        replace(&mut bootstrap.listeners.inbound, self.inbound);
        replace(&mut bootstrap.listeners.outbound, self.outbound);
        replace(&mut bootstrap.scrape, self.scrape);
        replace(&mut bootstrap.admin, self.admin);
        replace(&mut bootstrap.drain, self.drain);
        replace(&mut bootstrap.access_log, self.access_log);
        if let Some(address) = self.dns_listener {
            let dns = &mut bootstrap.listeners.dns;
            dns.get_or_insert_with(|| address.into()).address = address;
        }
        if !self.local.is_empty() {
            bootstrap.listeners.local = self.local;
        }
        let mut system_files = SystemFiles::default();
        replace(&mut system_files.resolv_conf, self.resolv_conf);
        replace(&mut system_files.hosts, self.hosts);
        Ok(Start {
            bootstrap,
            dns: self.dns,
            system_files,
            token,
        })
    }
}

fn overrule<T>(value: &mut Option<T>, flag: Option<T>) {
    if flag.is_some() {
        *value = flag;
    }
}

fn replace<T>(value: &mut T, flag: Option<T>) {
    if let Some(flag) = flag {
        *value = flag;
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log_to_stderr();
    let check_ready = arguments.check_ready;
    let start = match arguments.bootstrap() {
        Ok(start) => start,
        Err(error) => {
            tracing::error!("{error:#}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let done = if check_ready {
        ask_whether_ready(start.bootstrap.scrape)
    } else {
        run(start)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How long a sidecar may take to say whether it is ready: health checks commonly allow five seconds.
const READY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

/// Asks the sidecar whose scrape address this is.
fn ask_whether_ready(scrape: SocketAddr) -> anyhow::Result<()> {
    let mut address = scrape;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let asked = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect_timeout(&address, READY_TIMEOUT)?;
        stream.set_read_timeout(Some(READY_TIMEOUT))?;
        stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = asked().with_context(|| format!("no sidecar answers on {address}"))?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        let why = answer.rsplit("\r\n\r\n").next().unwrap_or_default().trim();
        anyhow::bail!("{address} answered {status}: {why}");
    }
    Ok(())
}

/// Raises the limit on open files to what the system allows: each request under way holds two.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}

fn run(start: Start) -> anyhow::Result<()> {
    raise_open_files();
    let drain = Drain::default();
    // Before the first socket is bound: whoever sees it listening may tell it to stop.
    drain_on_signals(drain.clone())?;
    Sidecar::bind(start, drain)?.run()
}

/// SIGTERM and Ctrl-C begin the drain; a second one ends the process at once.
fn drain_on_signals(drain: Drain) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async move {
                for first in [true, false] {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                    if first {
                        drain.start();
                    } else {
                        tracing::warn!("told twice to stop: stopping at once");
                        #[expect(clippy::exit, reason = "the operator asked for exactly this")]
                        std::process::exit(1);
                    }
                }
            });
        })?;
    Ok(())
}

/// Logs go to standard error as JSON lines; `OUTRIGGER_LOG` chooses, in the form of `RUST_LOG`.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("OUTRIGGER_LOG").unwrap_or_else(|_| {
        tracing_subscriber::EnvFilter::new("info,hickory_resolver=warn,hickory_net=warn")
    });
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .init();
}
