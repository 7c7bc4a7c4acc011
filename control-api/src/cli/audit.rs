//! `outrigger audit`: who was given a certificate or refused one, and who made tokens and roots.

use clap::Args;

use super::output::{Output, Tone, harmless};
use super::{CliError, Exit};
use crate::client::{Api, Ask};
use crate::server::AuditList;
use crate::store::ledger::{AuditRow, Deed};

/// Show the audit log of the CA, oldest first.
#[derive(Debug, Args)]
pub(super) struct Audit {
    /// Only rows with a higher number than this. Without it: the newest.
    #[arg(long, value_name = "NUMBER")]
    since: Option<u64>,
    /// At most so many rows; the control API gives 10,000 at a time.
    #[arg(long, default_value_t = 1_000, value_name = "COUNT")]
    count: usize,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

impl Audit {
    pub(super) async fn run(self, api: &Api, output: &mut Output) -> Result<Exit, CliError> {
        let since = self
            .since
            .map(|since| format!("&since={since}"))
            .unwrap_or_default();
        let list: AuditList = api
            .json(Ask::get(format!("/v1/audit?count={}{since}", self.count)))
            .await?;
        if self.json {
            output.json(&list);
            return Ok(Exit::Done);
        }
        let rows = list.rows.iter().map(|row| cells(row, output)).collect();
        output.table(
            &[
                "NUMBER", "AT", "WHAT", "SERVICE", "SOURCE", "TOKEN", "SERIAL", "WHO", "NOTE",
            ],
            rows,
        );
        Ok(Exit::Done)
    }
}

fn cells(row: &AuditRow, output: &Output) -> Vec<String> {
    let what = match (row.deed, row.reason) {
        (_, Some(reason)) => output.paint(Tone::Bad, format!("refused {}", reason.word())),
        (Deed::Issued, None) => output.paint(Tone::Good, "issued"),
        (Deed::Renewed, None) => output.paint(Tone::Good, "renewed"),
        (Deed::Refused, None) => output.paint(Tone::Bad, "refused"),
        (Deed::OperatorRefused, None) => output.paint(Tone::Bad, "operator-refused"),
        (Deed::HandshakeRefused, None) => output.paint(Tone::Bad, "handshake-refused"),
        (Deed::TokenCreated, None) => "token-created".to_owned(),
        (Deed::TokenRevoked, None) => "token-revoked".to_owned(),
        (Deed::Revoked, None) => output.paint(Tone::Attention, "revoked"),
        (Deed::Restored, None) => output.paint(Tone::Attention, "restored"),
        (Deed::RootAdded, None) => "root-added".to_owned(),
        (Deed::RootActive, None) => "root-active".to_owned(),
        (Deed::RootRemoved, None) => "root-removed".to_owned(),
    };
    let or_dash = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            harmless(text)
        }
    };
    vec![
        row.number.to_string(),
        harmless(&row.at),
        what,
        or_dash(&row.service),
        or_dash(&row.source),
        or_dash(&row.token),
        or_dash(&row.serial),
        or_dash(&row.who),
        or_dash(&row.note),
    ]
}
