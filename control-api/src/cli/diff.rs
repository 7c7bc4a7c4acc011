//! `outrigger diff`: what a push of these files would change, line by line.

use std::collections::BTreeMap;

use clap::Args;
use outrigger_config::Document;
use outrigger_config::discovery::Versioned;
use serde::Serialize;
use similar::TextDiff;

use super::files::Files;
use super::output::{Output, Tone};
use super::{CliError, Exit};
use crate::client::{Api, Ask};
use crate::server::{WholeConfig, split_all};

/// Lines around a change that are shown unchanged: what every diff shows.
const CONTEXT_LINES: usize = 3;

/// Show what a push would change. Ends like diff(1): 0 if nothing, 1 if something, 2 if it cannot tell.
#[derive(Debug, Args)]
pub(super) struct Diff {
    #[command(flatten)]
    files: Files,
    /// Print the differences as JSON.
    #[arg(long)]
    json: bool,
}

/// How one document differs.
#[derive(Serialize)]
struct Difference {
    key: String,
    state: State,
    #[serde(skip_serializing_if = "String::is_empty")]
    diff: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    New,
    Different,
    Same,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    version: String,
    documents: Vec<Difference>,
}

impl Diff {
    pub(super) async fn run(self, api: &Api, output: &mut Output) -> Result<Exit, CliError> {
        let texts = self.files.read()?;
        let documents = match split_all(&texts) {
            Ok(documents) => documents,
            Err(problems) => {
                output.problems(&problems, &texts);
                return Ok(Exit::Trouble);
            }
        };
        let stored: WholeConfig = api.json(Ask::get("/v1/config")).await?;
        let known: BTreeMap<&str, &Versioned> = stored
            .documents
            .iter()
            .map(|stored| (stored.document.key(), stored))
            .collect();
        let differences = documents
            .iter()
            .map(|document| compare(document, known.get(document.key()).copied()));
        let report = Report {
            documents: differences.collect(),
            version: stored.version.clone(),
        };
        let same = report.documents.iter().all(|one| one.state == State::Same);
        if self.json {
            output.json(&report);
        } else {
            for line in report.documents.iter().flat_map(|one| one.diff.lines()) {
                let painted = paint(line, output);
                output.line(painted);
            }
        }
        Ok(if same { Exit::Done } else { Exit::Failed })
    }
}

fn compare(document: &Document, stored: Option<&Versioned>) -> Difference {
    let key = document.key();
    let (state, old, from) = match stored {
        None => (State::New, "", "/dev/null".to_owned()),
        Some(stored) if stored.document.text == document.text => (State::Same, "", String::new()),
        Some(stored) => {
            let from = format!("{key}\tversion {}", stored.version);
            (State::Different, stored.document.text.as_str(), from)
        }
    };
    let diff = match state {
        State::Same => String::new(),
        State::New | State::Different => {
            let file = if document.file.is_empty() {
                "-"
            } else {
                &document.file
            };
            let to = format!("{key}\t{file}:{}", document.line);
            TextDiff::from_lines(old, document.text.as_str())
                .unified_diff()
                .context_radius(CONTEXT_LINES)
                .header(&from, &to)
                .to_string()
        }
    };
    Difference {
        key: key.to_owned(),
        state,
        diff,
    }
}

fn paint(line: &str, output: &Output) -> String {
    let tone = match line.as_bytes() {
        [b'+', b'+', b'+', ..] | [b'-', b'-', b'-', ..] => Tone::Strong,
        [b'+', ..] => Tone::Good,
        [b'-', ..] => Tone::Bad,
        [b'@', ..] => Tone::Place,
        _ => return line.to_owned(),
    };
    output.paint(tone, line)
}
