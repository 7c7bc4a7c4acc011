//! `outrigger check`: says everything that is wrong with some files, without a control API.

use clap::Args;
use outrigger_config::Problem;
use serde::Serialize;

use super::files::Files;
use super::output::{Output, Tone, count};
use super::{CliError, Exit};
use crate::server::split_all;

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
        let (documents, problems) = match split_all(&texts) {
            Ok(documents) => {
                let problems = outrigger_config::check(&documents).err().unwrap_or_default();
                (documents.len(), problems)
            }
            Err(problems) => (0, problems),
        };
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
