//! `outrigger get`: gives back what was pushed, to the letter.

use clap::Args;
use serde_json::Value;

use super::output::Output;
use super::{CliError, Exit};
use crate::client::{Api, Ask, escape};

/// Print what was pushed: one document, or all as a stream that `push` takes back.
#[derive(Debug, Args)]
pub(super) struct Get {
    /// The service's name; @NAME for a gateway, @mesh for the mesh document. Without one: everything.
    name: Option<String>,
    /// Print it as JSON, with its version.
    #[arg(long)]
    json: bool,
}

impl Get {
    pub(super) async fn run(self, api: &Api, output: &mut Output) -> Result<Exit, CliError> {
        let path = match &self.name {
            Some(name) => format!("/v1/services/{}", escape(name)),
            None => "/v1/config".to_owned(),
        };
        if self.json {
            output.json(&api.json::<Value>(Ask::get(path)).await?);
        } else {
            output.text(&api.text(Ask::get(path)).await?);
        }
        Ok(Exit::Done)
    }
}
