//! A program as a child process: its log lines kept and awaited, its end certain.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use tokio::sync::watch;

use crate::wait::within;

/// Lines kept of each stream. A run under load with every request logged stays below it; a program that repeats
/// itself for ever does not eat the machine.
const LINES_MAX: usize = 200_000;

/// Where the built programs are: `OUTRIGGER_BIN_DIR`, else the folder of the profile that the tests were built in.
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("OUTRIGGER_BIN_DIR").map_or_else(
        || {
            let test = std::env::current_exe().expect("the path of the test itself");
            test.ancestors().nth(2).expect("target/PROFILE/deps").to_owned()
        },
        PathBuf::from,
    );
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is not built, and the tests run the real programs. Run `cargo build --workspace --bins` first (in the \
         profile of the tests), or say with OUTRIGGER_BIN_DIR where they are.",
        path.display()
    );
    path
}

/// A running program. It is killed, with everything that it started, when this is dropped; if the test has failed
/// by then, all that it logged is printed.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    errors: Arc<Lines>,
    output: Arc<Lines>,
}

/// What a program has written to one of its streams.
#[derive(Debug)]
struct Lines {
    kept: Mutex<VecDeque<String>>,
    /// How many lines there have been, and whether the stream has ended.
    seen: watch::Sender<(usize, bool)>,
}

impl Program {
    /// Starts a program of this workspace. `name` is what the output of a failed test calls it.
    pub fn start(name: &str, binary_name: &str, arguments: &[OsString]) -> Self {
        Self::start_in(name, binary_name, arguments, &[])
    }

    /// The same, with these variables in its environment.
    pub fn start_in(
        name: &str,
        binary_name: &str,
        arguments: &[OsString],
        environment: &[(String, String)],
    ) -> Self {
        let mut command = Command::new(binary(binary_name));
        command.args(arguments);
        // A developer's own settings must not decide a test.
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("OUTRIGGER_") {
                command.env_remove(key);
            }
        }
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        Self::spawn(name, command)
    }

    /// Starts any command, with its streams read and a process group of its own.
    pub fn spawn(name: &str, mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        let errors = Lines::read(child.stderr.take().expect("stderr is piped"));
        let output = Lines::read(child.stdout.take().expect("stdout is piped"));
        Self {
            name: name.to_owned(),
            child,
            status: None,
            errors,
            output,
        }
    }

    /// What the output of a failed test calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that it ever held, in bytes.
    pub fn memory_peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()));
        let status = status.unwrap_or_else(|error| panic!("cannot look at {}: {error}", self.name));
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kilobytes.expect("the kernel says how much") * 1024
    }

    /// The first line of its log, from the start or still to come, that passes the test.
    pub async fn logged(&self, what: &str, passes: impl Fn(&Value) -> bool) -> Value {
        self.logged_after(0, what, passes).await
    }

    /// The first line of its log that passes the test and is not among the first `skip`; see [`Self::log_mark`].
    pub async fn logged_after(&self, skip: usize, what: &str, passes: impl Fn(&Value) -> bool) -> Value {
        let what = format!("{} to log {what}", self.name);
        let json = |line: &str| {
            serde_json::from_str::<Value>(line)
                .ok()
                .filter(|line| passes(line))
        };
        within(&what, self.errors.find(skip, &what, json)).await
    }

    /// How many lines it has logged until now.
    pub fn log_mark(&self) -> usize {
        self.errors.seen.borrow().0
    }

    /// Where one of its sockets listens, as it says at its start.
    pub async fn listening(&self, listener: &str) -> SocketAddr {
        let line = self
            .logged(&format!("that {listener} listens"), |line| {
                line["message"] == "listening" && line["listener"] == listener
            })
            .await;
        let address = line["address"].as_str().unwrap_or_default();
        address.parse().unwrap_or_else(|_| {
            panic!(
                "{} logged no address for {listener}, an IP and a port, but {line}",
                self.name
            )
        })
    }

    /// The first line of its standard output that passes the test.
    pub async fn printed(&self, what: &str, passes: impl Fn(&str) -> bool) -> String {
        let what = format!("{} to print {what}", self.name);
        let text = |line: &str| passes(line).then(|| line.to_owned());
        within(&what, self.output.find(0, &what, text)).await
    }

    /// Its log until now.
    pub fn log(&self) -> Vec<String> {
        self.errors.kept().iter().cloned().collect()
    }

    /// Its standard output until now.
    pub fn output(&self) -> Vec<String> {
        self.output.kept().iter().cloned().collect()
    }

    /// Asks it to stop, as a container runtime does.
    pub fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM)
            .unwrap_or_else(|error| panic!("cannot send SIGTERM to {}: {error}", self.name));
    }

    /// Stops it where it stands, as a machine that is out of memory or a debugger does: its sockets stay open, its kernel
    /// goes on taking connections, and nothing answers.
    pub fn freeze(&self) {
        kill_process(self.pid(), Signal::STOP)
            .unwrap_or_else(|error| panic!("cannot send SIGSTOP to {}: {error}", self.name));
    }

    /// Lets it go on after [`Self::freeze`].
    pub fn thaw(&self) {
        kill_process(self.pid(), Signal::CONT)
            .unwrap_or_else(|error| panic!("cannot send SIGCONT to {}: {error}", self.name));
    }

    /// Ends it without a word, as a power cut does, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            // It may have ended by itself; either way it is gone after the wait.
            let _ = kill_process_group(self.pid(), Signal::KILL);
            self.status = Some(self.child.wait().expect("a child can be waited for"));
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.status.is_none() && self.child.try_wait().expect("a child can be asked").is_none()
    }

    /// Waits until it has ended by itself.
    pub async fn exited(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        let what = format!("{} to end", self.name);
        let status = crate::eventually(&what, async || {
            self.child.try_wait().expect("a child can be asked")
        })
        .await;
        self.status = Some(status);
        status
    }

    /// All that it wrote to its standard output and its standard error, once both have ended.
    pub async fn written(&self) -> (String, String) {
        let what = format!("the output of {} to end", self.name);
        within(&what, async {
            (self.output.whole().await, self.errors.whole().await)
        })
        .await
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Lets it have so many descriptors at most from now on.
    pub fn limit_descriptors(&self, count: u32) {
        let limited = Command::new("prlimit")
            .args(["--pid", &self.child.id().to_string()])
            .arg(format!("--nofile={count}:{count}"))
            .status();
        assert!(
            limited.is_ok_and(|status| status.success()),
            "prlimit limits {}",
            self.name
        );
    }

    /// Everything that it wrote, for a person.
    fn transcript(&self) -> String {
        let mut text = format!("---- {} (pid {}) ----\n", self.name, self.child.id());
        for (stream, lines) in [("stderr", &self.errors), ("stdout", &self.output)] {
            for line in lines.kept().iter() {
                let _ = writeln!(text, "{stream}: {line}");
            }
        }
        text
    }
}

impl Drop for Program {
    #[expect(
        clippy::print_stderr,
        reason = "the log of a program belongs to the failed test's output"
    )]
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprint!("{}", self.transcript());
        }
    }
}

impl Lines {
    fn read(stream: impl Read + Send + 'static) -> Arc<Self> {
        let lines = Arc::new(Self {
            kept: Mutex::default(),
            seen: watch::Sender::new((0, false)),
        });
        let written = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let mut kept = written.kept();
                if kept.len() < LINES_MAX {
                    kept.push_back(line);
                    written.seen.send_modify(|seen| seen.0 += 1);
                }
            }
            written.seen.send_modify(|seen| seen.1 = true);
        });
        lines
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.kept
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn whole(&self) -> String {
        let mut seen = self.seen.subscribe();
        // The sender lives as long as this.
        let _ = seen.wait_for(|(_, ended)| *ended).await;
        self.kept()
            .iter()
            .flat_map(|line| [line.as_str(), "\n"])
            .collect()
    }

    async fn find<T>(&self, skip: usize, what: &str, passes: impl Fn(&str) -> Option<T>) -> T {
        let mut seen = self.seen.subscribe();
        let mut looked = skip;
        loop {
            let (_, ended) = *seen.borrow_and_update();
            {
                let kept = self.kept();
                if let Some(found) = kept.iter().skip(looked).find_map(|line| passes(line)) {
                    return found;
                }
                looked = looked.max(kept.len());
            }
            assert!(!ended, "waited for {what}, but it ended without it");
            seen.changed().await.expect("the reader keeps its end");
        }
    }
}
