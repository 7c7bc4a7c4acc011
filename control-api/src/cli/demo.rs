//! `outrigger demo`: a mesh to look at, in one process.

use std::io::{IsTerminal, stdin, stdout};
use std::net::SocketAddr;

use clap::Args;
use outrigger_config::units;

use super::output::{Output, Tone};
use super::{CliError, Exit};
use crate::demo::{
    Audience, PORT_BASE_DEFAULT, PORT_BASE_MAX, Row, Settings, Summary, edge, millis, percent, run,
};

/// The most requests a second: what an open loop of one task a millisecond can send.
const RATE_MAX: i64 = 1_000;

/// Run a control API, a small shop with its sidecars, and traffic, and watch them. Ends with a summary: 0 if the shop
/// was answering, 1 if it was not.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// End by itself after this long, such as 20s.
    #[arg(long = "for", value_name = "DURATION")]
    time: Option<units::Duration>,
    /// Print only the summary, as JSON.
    #[arg(long)]
    json: bool,
    /// Requests of the shoppers, a second.
    #[arg(long, default_value_t = 200, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=RATE_MAX))]
    rate: u32,
    /// Where the control API listens; port 0 lets the system choose.
    #[arg(long, default_value = "127.0.0.1:9900", value_name = "ADDRESS")]
    api_listen: SocketAddr,
    /// The first port of the shop and its sidecars, which take 40; 0 lets the system choose each.
    #[arg(long, default_value_t = PORT_BASE_DEFAULT, value_name = "PORT", value_parser = clap::value_parser!(u16).range(0..=i64::from(PORT_BASE_MAX)))]
    port_base: u16,
}

impl Demo {
    pub(super) async fn run(self, output: &mut Output) -> Result<Exit, CliError> {
        let settings = Settings {
            time: self.time.map(|time| time.0),
            api: self.api_listen,
            port_base: self.port_base,
            rate: self.rate,
        };
        let mut line = |text: &str| output.line(text);
        let audience = if self.json {
            Audience::Nobody
        } else if stdout().is_terminal() && stdin().is_terminal() {
            Audience::Screen
        } else {
            Audience::Lines(&mut line)
        };
        let summary = run(&settings, audience).await;
        let summary = summary.map_err(|error| CliError::Sentence(error.to_string()))?;
        if self.json {
            output.json(&summary);
        } else {
            show(&summary, output);
        }
        let answered = summary.shoppers.pages > 0;
        Ok(if answered { Exit::Done } else { Exit::Failed })
    }
}

fn show(summary: &Summary, output: &mut Output) {
    let header = [
        "WHO → WHOM",
        "SENT",
        "SHARE",
        "SUCCESS",
        "PER TRY",
        "RETRIES",
        "P50ms",
        "P99ms",
    ];
    output.table(&header, summary.edges.iter().map(row).collect());
    let shoppers = summary.shoppers;
    let tone = if shoppers.failed() == 0 {
        Tone::Good
    } else {
        Tone::Attention
    };
    let saw = output.paint(tone, shoppers.words());
    output.line(format!(
        "in {:.0}s the shoppers saw {saw}; version {} served at the end",
        summary.seconds, summary.version
    ));
}

fn row(row: &Row) -> Vec<String> {
    vec![
        edge(row),
        row.requests.to_string(),
        percent(row.share, 1),
        percent(row.success, 2),
        percent(row.attempt_success, 2),
        row.retries.to_string(),
        millis(row.p50_ms).trim().to_owned(),
        millis(row.p99_ms).trim().to_owned(),
    ]
}
