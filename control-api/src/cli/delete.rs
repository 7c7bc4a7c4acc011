//! `outrigger delete`: takes one document away, and tells what every sidecar says to it.

use clap::Args;

use super::answers::Answers;
use super::output::{Output, Tone};
use super::push::Wait;
use super::{CliError, Exit};
use crate::client::{Api, Ask, ClientError, escape};
use crate::push::Outcome;

/// Delete a document. Its versions stay in the history.
#[derive(Debug, Args)]
pub(super) struct Delete {
    /// The service's name; @NAME for a gateway, @mesh for the mesh document.
    name: String,
    #[command(flatten)]
    wait: Wait,
    /// Only say whether it could be deleted.
    #[arg(long)]
    dry_run: bool,
}

impl Delete {
    pub(super) async fn run(self, api: &Api, output: &mut Output) -> Result<Exit, CliError> {
        let answers = Answers::expect(api).await?;
        let dry_run = if self.dry_run { "?dry_run=1" } else { "" };
        let ask = Ask::delete(format!("/v1/services/{}{dry_run}", escape(&self.name)));
        let outcome: Outcome = match api.json(ask).await {
            Ok(outcome) => outcome,
            Err(ClientError::Problems(problems)) => {
                output.problems(&problems, &[]);
                let sentence = format!(
                    "without `{}` the rest would be wrong: nothing was deleted",
                    self.name
                );
                return Err(CliError::Sentence(sentence));
            }
            Err(error) => return Err(error.into()),
        };
        if !self.wait.is_json() {
            let sign = output.paint(Tone::Bad, "-");
            output.line(format!("{sign} {}", self.name));
        }
        self.wait.follow(api, &outcome, answers, &[], output).await
    }
}
