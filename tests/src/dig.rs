//! `dig`, the client of DNS that everybody has, and what it says.

use std::net::SocketAddr;
use std::process::Command;

use crate::cli::finish;
use crate::program::Program;

/// An answer as `dig` shows it.
#[derive(Clone, Debug)]
pub struct Dug {
    /// `NOERROR`, `NXDOMAIN` and their like; empty: there was no answer.
    pub status: String,
    /// `qr`, `aa`, `tc`, `rd`, `ra` and their like.
    pub flags: Vec<String>,
    /// The records of the answer: name, time to live in seconds, type and data.
    pub answer: Vec<Found>,
    /// Those that stand beside it.
    pub authority: Vec<Found>,
    /// All that it said.
    pub text: String,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name, with the root's dot.
    pub name: String,
    /// For how long it may be remembered, in seconds.
    pub ttl: u32,
    /// Its type.
    pub kind: String,
    /// What it says.
    pub data: String,
}

impl Dug {
    fn read(text: String) -> Self {
        let status = text
            .split("status: ")
            .nth(1)
            .and_then(|rest| rest.split(',').next());
        let flags = text
            .split(";; flags: ")
            .nth(1)
            .and_then(|rest| rest.split(';').next());
        let section = |title: &str| {
            let lines = text
                .split(&format!(";; {title} SECTION:\n"))
                .nth(1)
                .unwrap_or_default();
            let lines = lines.lines().take_while(|line| !line.is_empty());
            lines.filter_map(Found::read).collect()
        };
        Self {
            status: status.unwrap_or_default().to_owned(),
            flags: flags
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            answer: section("ANSWER"),
            authority: section("AUTHORITY"),
            text,
        }
    }

    /// What its answer says.
    pub fn data(&self) -> Vec<&str> {
        self.answer.iter().map(|found| found.data.as_str()).collect()
    }
}

impl Found {
    fn read(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (name, ttl) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        let (_class, kind) = (words.next()?, words.next()?.to_owned());
        let data = words.collect::<Vec<_>>().join(" ");
        Some(Self {
            name,
            ttl,
            kind,
            data,
        })
    }
}

/// Asks this server once, with these arguments: a name, perhaps a type, and options.
pub async fn dig(server: SocketAddr, arguments: &[&str]) -> Dug {
    let mut command = Command::new("dig");
    command.arg(format!("@{}", server.ip()));
    command.args(["-p", &server.port().to_string(), "+tries=1", "+timeout=10"]);
    command.args(arguments);
    Dug::read(finish(Program::spawn("dig", command)).await.stdout)
}
