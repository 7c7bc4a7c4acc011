//! What a person types: `outrigger SUBCOMMAND`, one file each.
//!
//! **Does not** print: [`output`] is the only place that does. Exit codes are in [`Exit`].

mod output;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::client::{API_DEFAULT, Api, ClientError};
use output::Output;

/// The control API of the mesh, and the tool of its operators.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, propagate_version = true)]
struct Arguments {
    /// The control API to speak to.
    #[arg(long, global = true, env = "OUTRIGGER_API", default_value = API_DEFAULT, value_name = "URL")]
    api: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
}

/// How the program ends, for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// What was asked is done.
    Done,
    /// The input was refused, files differ, or what was asked could not be done.
    Failed,
    /// A sidecar refused what the control API had taken.
    SidecarRefused,
    /// A sidecar did not answer in time.
    NoAnswer,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        // 2 is what clap ends with when the command line itself is wrong.
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::SidecarRefused => 3,
            Exit::NoAnswer => 4,
        })
    }
}

/// Why a subcommand could not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Start(#[from] crate::server::StartError),
    #[error("{0}")]
    Sentence(String),
}

/// Runs the program with the arguments of this process.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let mut output = Output::new();
    let mut builder = match arguments.command {
        Command::Serve(_) => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output.error(&format!("cannot start: {error}"));
            return Exit::Failed.into();
        }
    };
    let exit = runtime.block_on(dispatch(arguments, &mut output));
    exit.unwrap_or_else(|error| {
        output.error(&error.to_string());
        Exit::Failed
    })
    .into()
}

async fn dispatch(arguments: Arguments, output: &mut Output) -> Result<Exit, CliError> {
    let api = Api::new(&arguments.api);
    match arguments.command {
        Command::Serve(serve) => serve.run().await,
    }
}
