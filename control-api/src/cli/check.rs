//! `outrigger check`: says everything that is wrong with some files, without a control API.

use clap::Args;
use outrigger_config::Problem;
use serde::Serialize;

use super::files::Files;
use super::output::{Output, Tone, count};
use super::{CliError, Exit};
use crate::server::{PushText, split_all};

/// Check files, without a control API: ends with 1 if anything is wrong.
#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    files: Files,
    /// Print the problems as JSON.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    documents: usize,
    problems: Vec<Problem>,
}

impl Check {
    pub(super) fn run(self, output: &mut Output) -> Result<Exit, CliError> {
        let texts = self.files.read()?;
        // A proxy's bootstrap may lie beside what is pushed. It is no part of a push, so it is read by itself.
        let (bootstraps, pushed): (Vec<_>, Vec<_>) = texts
            .iter()
            .cloned()
            .partition(|text| outrigger_config::is_bootstrap(&text.text));
        let mut problems: Vec<Problem> = bootstraps
            .iter()
            .filter_map(|text| outrigger_config::check_bootstrap(&text.file, &text.text).err())
            .flatten()
            .collect();
        let mut documents = bootstraps.len();
        match split_all(&pushed) {
            Ok(split) => {
                documents += split.len();
                let is_empty = |text: &&PushText| split.iter().all(|document| document.file != text.file);
                problems.extend(pushed.iter().filter(is_empty).map(empty));
                problems.extend(outrigger_config::check(&split).err().unwrap_or_default());
            }
            Err(found) => problems.extend(found),
        }
        let exit = if problems.is_empty() {
            Exit::Done
        } else {
            Exit::Failed
        };
        if self.json {
            output.json(&Report { documents, problems });
        } else if problems.is_empty() {
            let good = output.paint(Tone::Good, "no problem");
            output.line(format!(
                "{documents} document(s) in {} file(s): {good}",
                texts.len()
            ));
        } else {
            output.problems(&problems, &texts);
            let bad = output.paint(Tone::Bad, count(problems.len(), "problem"));
            output.line(bad);
        }
        Ok(exit)
    }
}

/// A file that says nothing is a file that was not saved, or not the one that was meant.
fn empty(text: &PushText) -> Problem {
    Problem {
        file: text.file.clone(),
        line: text.line,
        column: 1,
        message: "there is no document here; expected one that begins with `kind: Service`, such as those of config-examples".to_owned(),
        ..Problem::default()
    }
}
