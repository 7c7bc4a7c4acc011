//! What a person types: `outrigger SUBCOMMAND`, one file each.
//!
//! **Does not** print: `output` is the only place that does. Exit codes are in `Exit`.

mod answers;
mod audit;
mod ca;
mod check;
mod delete;
mod demo;
mod diff;
mod files;
mod get;
mod output;
mod push;
mod revoke;
mod serve;
mod status;
mod token;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use outrigger_config::join::read_fingerprint;
use outrigger_proxy::tls::pin::Trust;

use crate::client::{API_DEFAULT, Api, ClientError};
use crate::server::is_operator_token;
use output::Output;

/// The variable of the operator token.
const OPERATOR_TOKEN: &str = "OUTRIGGER_OPERATOR_TOKEN";

/// What stands over the options that every command has: without it they stand between its own.
const TOWARDS_API: &str = "The control API to speak to";

/// The control API of the mesh, and the tool of its operators.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, propagate_version = true)]
struct Arguments {
    /// The control API to speak to.
    #[arg(
        long,
        global = true,
        env = "OUTRIGGER_API",
        default_value = API_DEFAULT,
        value_name = "URL",
        help_heading = TOWARDS_API
    )]
    api: String,
    /// For an --api of https://: SHA-256 of the mesh's root, as `outrigger ca status` and the end of a token show it.
    #[arg(
        long,
        global = true,
        env = "OUTRIGGER_CA_FINGERPRINT",
        conflicts_with = "api_ca",
        // One of 64 fingerprints begins with a dash.
        allow_hyphen_values = true,
        value_name = "SHA256",
        help_heading = TOWARDS_API
    )]
    ca_fingerprint: Option<String>,
    /// For an --api of https://: a file with the mesh's roots, as `outrigger ca bundle` prints them.
    #[arg(
        long,
        global = true,
        env = "OUTRIGGER_API_CA",
        value_name = "FILE",
        help_heading = TOWARDS_API
    )]
    api_ca: Option<PathBuf>,
    /// A file with the operator token, `operator.token` of the control API's data folder. Instead, the token itself may
    /// be in OUTRIGGER_OPERATOR_TOKEN. It is needed where the control API is on another machine.
    #[arg(
        long,
        global = true,
        env = "OUTRIGGER_OPERATOR_TOKEN_FILE",
        value_name = "FILE",
        help_heading = TOWARDS_API
    )]
    operator_token_file: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Check(check::Check),
    Push(push::Push),
    Get(get::Get),
    Diff(diff::Diff),
    Delete(delete::Delete),
    Status(status::Status),
    Token(token::Token),
    Ca(ca::Ca),
    Audit(audit::Audit),
    Revoke(revoke::Revoke),
    Demo(demo::Demo),
}

/// How the program ends, for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// What was asked is done.
    Done,
    /// The input was refused, files differ, or what was asked could not be done.
    Failed,
    /// `diff` cannot tell, or the command line itself is wrong: clap ends with the same.
    Trouble,
    /// A sidecar refused what the control API had taken.
    SidecarRefused,
    /// A sidecar did not answer in time.
    NoAnswer,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Trouble => 2,
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
    let on_fault = match &arguments.command {
        Command::Diff(_) => Exit::Trouble,
        _ => Exit::Failed,
    };
    let exit = start(arguments, &mut output).unwrap_or_else(|error| {
        output.error(&error.to_string());
        on_fault
    });
    exit.into()
}

/// Gives the subcommand the runtime that it needs: several threads to serve, one to ask.
fn start(arguments: Arguments, output: &mut Output) -> Result<Exit, CliError> {
    let mut builder = match &arguments.command {
        Command::Serve(_) | Command::Demo(_) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = builder.enable_all().build();
    let runtime = runtime.map_err(|error| CliError::Sentence(format!("cannot start: {error}")))?;
    runtime.block_on(dispatch(arguments, output))
}

async fn dispatch(arguments: Arguments, output: &mut Output) -> Result<Exit, CliError> {
    let (fingerprint, roots) = (arguments.ca_fingerprint, arguments.api_ca);
    let api = || {
        let trust = trust(fingerprint.as_deref(), roots.as_deref())?;
        let api = Api::trusting(&arguments.api, trust)?;
        match operator_token(arguments.operator_token_file.as_deref())? {
            Some(token) => api.with_operator_token(&token).map_err(CliError::from),
            None => Ok(api),
        }
    };
    match arguments.command {
        Command::Serve(serve) => serve.run().await,
        Command::Check(check) => check.run(output),
        Command::Push(push) => push.run(&api()?, output).await,
        Command::Get(get) => get.run(&api()?, output).await,
        Command::Diff(diff) => diff.run(&api()?, output).await,
        Command::Delete(delete) => delete.run(&api()?, output).await,
        Command::Status(status) => status.run(&api()?, output).await,
        Command::Token(token) => token.run(&api()?, output).await,
        Command::Ca(ca) => ca.run(&api()?, output).await,
        Command::Audit(audit) => audit.run(&api()?, output).await,
        Command::Revoke(revoke) => revoke.run(&api()?, output).await,
        Command::Demo(demo) => demo.run(output).await,
    }
}

/// The operator token, if one was given. There is no option that is the token itself: others on the machine can read the
/// arguments of a program. What is wrong with it is said without repeating it.
fn operator_token(file: Option<&Path>) -> Result<Option<String>, CliError> {
    let (from, text) = if let Some(path) = file {
        let from = format!("--operator-token-file {}", path.display());
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| CliError::Sentence(format!("{from}: {error}")))?;
        (from, text)
    } else {
        let Some(text) = std::env::var_os(OPERATOR_TOKEN).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        (OPERATOR_TOKEN.to_owned(), text.to_string_lossy().into_owned())
    };
    let token = text.trim();
    if !is_operator_token(token) {
        let sentence = format!(
            "{from}: it is not an operator token, which begins with `oro1.` and is in the file `operator.token` of the \
             control API's data folder"
        );
        return Err(CliError::Sentence(sentence));
    }
    Ok(Some(token.to_owned()))
}

/// By what an API of https:// is known, if anything was given.
fn trust(fingerprint: Option<&str>, roots: Option<&Path>) -> Result<Option<Trust>, CliError> {
    if let Some(text) = fingerprint {
        let fingerprint = read_fingerprint(text).map_err(CliError::Sentence)?;
        return Ok(Some(Trust::Fingerprint(fingerprint)));
    }
    let Some(path) = roots else {
        return Ok(None);
    };
    let refused = |what: String| CliError::Sentence(format!("--api-ca {}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    let blocks = pem::parse_many(text).map_err(|error| refused(format!("not PEM ({error})")))?;
    let roots: Vec<String> = blocks
        .iter()
        .filter(|block| block.tag() == "CERTIFICATE")
        .map(pem::encode)
        .collect();
    if roots.is_empty() {
        return Err(refused("it holds no certificate".to_owned()));
    }
    Ok(Some(Trust::Roots(roots)))
}
