//! `outrigger ca`: how the certificate authority stands, its roots, and the rotation of them.

use clap::{Args, Subcommand};

use super::output::{Output, Tone, harmless};
use super::{CliError, Exit};
use crate::ca::certificates::{CertificateList, Mark, Which};
use crate::ca::rotation::Status;
use crate::client::{Api, Ask, escape};
use crate::store::ledger::RootState;

/// Show the certificate authority of the mesh, print its roots, replace its root.
#[derive(Debug, Args)]
pub(super) struct Ca {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the trust domain, the roots and how many certificates are alive.
    Status(Format),
    /// Print the roots that are to be trusted, in PEM.
    Bundle,
    /// Show the certificates that are alive, the first to expire first.
    Certificates(Certificates),
    /// Replace the root without a break.
    Rotate(Rotate),
}

#[derive(Debug, Args)]
struct Format {
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Certificates {
    /// Only those of this service.
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only those whose bearer joined by the token of this id.
    #[arg(long, value_name = "ID")]
    token: Option<String>,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Args)]
struct Rotate {
    #[command(subcommand)]
    step: Step,
}

#[derive(Debug, Subcommand)]
enum Step {
    /// Make a new root, which every sidecar is told of; it signs once all know it.
    Start(Format),
    /// Let the new root sign at once, though not all know it: for when the key of the old one is in other hands.
    Sign(Format),
    /// Take the old root away, once no certificate of it is alive and no good token names it.
    Finish(Finish),
    /// Show how far it is.
    Status(Format),
}

#[derive(Debug, Args)]
struct Finish {
    /// Even if the new root does not sign yet, certificates of the old one are alive or good tokens name it: their sidecars are
    /// refused from then on.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: Format,
}

impl Ca {
    pub(super) async fn run(self, api: &Api, output: &mut Output) -> Result<Exit, CliError> {
        let mut is_finished = false;
        let (ask, json) = match self.command {
            Command::Bundle => {
                let status: Status = api.json(Ask::get("/v1/ca")).await?;
                for root in &status.roots {
                    output.text(&root.certificate);
                }
                return Ok(Exit::Done);
            }
            Command::Certificates(which) => return which.run(api, output).await,
            Command::Status(format) => (Ask::get("/v1/ca"), format.json),
            Command::Rotate(rotate) => match rotate.step {
                Step::Status(format) => (Ask::get("/v1/ca"), format.json),
                Step::Start(format) => (
                    Ask::post("/v1/ca/rotation", "application/json", Vec::new()),
                    format.json,
                ),
                Step::Sign(format) => (
                    Ask::post("/v1/ca/rotation/sign", "application/json", Vec::new()),
                    format.json,
                ),
                Step::Finish(finish) => {
                    is_finished = true;
                    let force = if finish.force { "?force=1" } else { "" };
                    (Ask::delete(format!("/v1/ca/rotation{force}")), finish.format.json)
                }
            },
        };
        let status: Status = api.json(ask).await?;
        if json {
            output.json(&status);
            return Ok(Exit::Done);
        }
        show(&status, output);
        let active = status.roots.iter().find(|root| root.state == RootState::Active);
        if let Some(root) = active.filter(|_| is_finished) {
            output.line("\nwho knew the API by the old root knows it by this from now on:");
            output.line(format!(
                "export OUTRIGGER_CA_FINGERPRINT={}",
                harmless(&root.fingerprint)
            ));
        }
        Ok(Exit::Done)
    }
}

impl Certificates {
    async fn run(self, api: &Api, output: &mut Output) -> Result<Exit, CliError> {
        let which = Which {
            service: self.service,
            token: self.token,
            serial: None,
        };
        let list = certificates(api, &which).await?;
        if self.format.json {
            output.json(&list);
            return Ok(Exit::Done);
        }
        let rows = list.certificates.iter().map(|certificate| {
            vec![
                harmless(&certificate.serial),
                harmless(&certificate.service),
                harmless(&certificate.expires),
                certificate.root.to_string(),
                harmless(&certificate.token),
                harmless(&certificate.joined),
                marks(&certificate.revoked, output),
            ]
        });
        let rows = rows.collect();
        output.table(
            &[
                "SERIAL",
                "SERVICE",
                "EXPIRES",
                "ROOT",
                "TOKEN",
                "JOINED AS",
                "REVOKED",
            ],
            rows,
        );
        if list.total > list.certificates.len() {
            output.hint(&format!(
                "{} of {}: ask for one service with --service",
                list.certificates.len(),
                list.total
            ));
        }
        Ok(Exit::Done)
    }
}

/// What of a certificate is revoked, in one cell. That its token was taken back is no more than worth knowing.
fn marks(marks: &[Mark], output: &Output) -> String {
    if marks.is_empty() {
        return "-".to_owned();
    }
    let tone = if marks == [Mark::Token] {
        Tone::Attention
    } else {
        Tone::Bad
    };
    let words: Vec<&str> = marks.iter().map(|mark| mark.word()).collect();
    output.paint(tone, words.join(", "))
}

/// The certificates that are alive and meant.
pub(super) async fn certificates(api: &Api, which: &Which) -> Result<CertificateList, CliError> {
    let words = [
        ("service", &which.service),
        ("token", &which.token),
        ("serial", &which.serial),
    ];
    let words = words
        .iter()
        .filter_map(|(key, value)| Some(format!("{key}={}", escape(value.as_deref()?))));
    let query = words.collect::<Vec<_>>().join("&");
    Ok(api.json(Ask::get(format!("/v1/certificates?{query}"))).await?)
}

fn show(status: &Status, output: &mut Output) {
    let domain = output.paint(Tone::Strong, harmless(&status.trust_domain));
    output.line(format!(
        "trust domain {domain}, certificates for {}, {} alive",
        harmless(&status.certificate_ttl),
        status.certificates
    ));
    let rows = status.roots.iter().map(|root| {
        let (tone, word) = match root.state {
            RootState::Next => (Tone::Attention, "next"),
            RootState::Active => (Tone::Good, "active"),
            RootState::Retiring => (Tone::Quiet, "retiring"),
        };
        vec![
            root.number.to_string(),
            output.paint(tone, word),
            if root.given { "yours" } else { "own" }.to_owned(),
            harmless(&root.since),
            harmless(&root.fingerprint),
        ]
    });
    let rows = rows.collect();
    output.table(&["ROOT", "STATE", "KEY", "SINCE", "FINGERPRINT"], rows);
    if status.roots.len() > 1 {
        output.line(format!(
            "\n{} of {} certificates are without the newest root, {} of an older root; {} good tokens name an older root",
            status.without_newest_root,
            status.certificates,
            status.of_older_root,
            status.tokens_of_older_root
        ));
        output.line(harmless(&status.next));
    }
}
