//! `outrigger push`: makes files the configuration, and tells what every sidecar says to it.

use std::collections::BTreeMap;

use clap::Args;
use outrigger_config::{Document, Problem, units};
use serde::Serialize;
use similar::{ChangeTag, TextDiff};

use super::answers::{Answers, Show, SidecarAnswer};
use super::files::Files;
use super::output::{Output, Tone, count};
use super::{CliError, Exit};
use crate::client::{Api, Ask, ClientError};
use crate::push::Outcome;
use crate::server::{PushBody, PushText, WholeConfig, split_all};

/// Push files: all of them are taken, or none. Ends with 1 if they are refused, 3 if a sidecar refuses, 4 if one
/// does not answer in time.
#[derive(Debug, Args)]
pub(super) struct Push {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    wait: Wait,
    /// Only say what would change and what is wrong; store nothing.
    #[arg(long)]
    dry_run: bool,
    /// Refuse if the configuration is no longer at this version.
    #[arg(long, value_name = "VERSION")]
    if_match: Option<String>,
}

/// How the answers of the sidecars are awaited.
#[derive(Debug, Args)]
pub(super) struct Wait {
    /// How long to wait for the answers of the sidecars.
    #[arg(long, default_value = "10s", value_name = "DURATION")]
    timeout: units::Duration,
    /// Print what happened as JSON, at the end.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    outcome: &'a Outcome,
    sidecars: &'a [SidecarAnswer],
}

/// What `--json` prints of documents that are refused.
#[derive(Serialize)]
struct Refusal<'a> {
    problems: &'a [Problem],
}

/// What is wrong with a text that is for one sidecar alone.
fn bootstrap(text: &PushText) -> Option<Problem> {
    outrigger_config::is_bootstrap(&text.text).then(|| Problem {
        file: text.file.clone(),
        line: text.line,
        column: 1,
        path: "kind".to_owned(),
        message: "`Proxy` is the bootstrap of one sidecar, which is not pushed: give the file to it with `outrigger-proxy --config`".to_owned(),
    })
}

impl Push {
    pub(super) async fn run(self, api: &Api, output: &mut Output) -> Result<Exit, CliError> {
        let documents = self.files.read()?;
        let bootstraps: Vec<Problem> = documents.iter().filter_map(bootstrap).collect();
        if !bootstraps.is_empty() {
            return Ok(refused(&bootstraps, &documents, self.wait.json, output));
        }
        // The words would be the same from the control API; from here they come also without one.
        let pushed = match split_all(&documents) {
            Ok(pushed) => pushed,
            Err(problems) => return Ok(refused(&problems, &documents, self.wait.json, output)),
        };
        let before: WholeConfig = api.json(Ask::get("/v1/config")).await?;
        let answers = Answers::expect(api).await?;
        let body = PushBody { documents };
        let json = serde_json::to_vec(&body).map_err(|error| CliError::Sentence(error.to_string()))?;
        let dry_run = if self.dry_run { "?dry_run=1" } else { "" };
        let ask = Ask::put(format!("/v1/config{dry_run}"), "application/json", json);
        let outcome: Outcome = match api.json(ask.if_match(self.if_match)).await {
            Ok(outcome) => outcome,
            Err(ClientError::Problems(problems)) => {
                return Ok(refused(&problems, &body.documents, self.wait.json, output));
            }
            Err(error) => return Err(error.into()),
        };
        if !self.wait.json {
            show_changes(&outcome, &pushed, &before, output);
        }
        self.wait
            .follow(api, &outcome, answers, &body.documents, output)
            .await
    }
}

impl Wait {
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Waits for the answers to `outcome` and says what they were.
    pub(super) async fn follow(
        &self,
        api: &Api,
        outcome: &Outcome,
        mut answers: Answers,
        sources: &[PushText],
        output: &mut Output,
    ) -> Result<Exit, CliError> {
        if outcome.dry_run {
            if self.json {
                output.json(outcome);
            } else {
                output.line("nothing was stored: this was a dry run");
            }
            return Ok(Exit::Done);
        }
        let show = Show {
            output,
            sources,
            quiet: self.json,
        };
        if let Err(error) = answers.wait(api, &outcome.version, self.timeout, show).await {
            let version = &outcome.version;
            output.error(&format!(
                "version {version} is stored, but not every answer could be awaited: {error}"
            ));
        }
        output.clear_bar();
        if self.json {
            output.json(&Report {
                outcome,
                sidecars: &answers.given,
            });
        } else {
            output.line(answers.sentence(&outcome.version, self.timeout));
        }
        Ok(answers.exit())
    }
}

/// Says what is wrong with the documents, which ends the push.
fn refused(problems: &[Problem], sources: &[PushText], json: bool, output: &mut Output) -> Exit {
    if json {
        output.json(&Refusal { problems });
    } else {
        output.problems(problems, sources);
        let bad = output.paint(
            Tone::Bad,
            format!("refused, {}", count(problems.len(), "problem")),
        );
        output.line(format!("{bad}: nothing was stored"));
    }
    Exit::Failed
}

/// One line a document: what it is, and how many lines of it are new.
fn show_changes(outcome: &Outcome, pushed: &[Document], before: &WholeConfig, output: &mut Output) {
    let before: BTreeMap<&str, &str> = before
        .documents
        .iter()
        .map(|stored| (stored.document.key(), stored.document.text.as_str()))
        .collect();
    for document in pushed {
        let key = document.key();
        if !outcome.changed.iter().any(|changed| changed == key) {
            output.line(format!("= {key} unchanged"));
            continue;
        }
        let Some(old) = before.get(key) else {
            let sign = output.paint(Tone::Good, "+");
            let lines = count(document.text.lines().count(), "line");
            output.line(format!("{sign} {key} new, {lines}"));
            continue;
        };
        let difference = TextDiff::from_lines(*old, document.text.as_str());
        let changed = |tag| {
            let changes = difference.iter_all_changes();
            changes.filter(|change| change.tag() == tag).count()
        };
        let sign = output.paint(Tone::Attention, "~");
        let more = output.paint(Tone::Good, format!("+{}", changed(ChangeTag::Insert)));
        let less = output.paint(Tone::Bad, format!("-{}", changed(ChangeTag::Delete)));
        output.line(format!("{sign} {key} {more} {less}"));
    }
}
