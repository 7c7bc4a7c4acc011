//! `outrigger token`: makes, lists and takes back the tokens that workloads join the mesh with.

use clap::{Args, Subcommand};
use outrigger_config::units;

use super::output::{Output, Tone, count, harmless};
use super::{CliError, Exit};
use crate::ca::tokens::{MadeToken, NewToken, TokenState, TokenView};
use crate::client::{Api, Ask, escape};
use crate::server::TokenList;

/// Make, list and revoke join tokens.
#[derive(Debug, Args)]
pub(super) struct Token {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a token, and print it: it is shown this once.
    Create(Create),
    /// Show every token, without its secret.
    List(List),
    /// Take a token back. Certificates that were issued by it stay good until they expire.
    Revoke(Revoke),
}

#[derive(Debug, Args)]
struct Create {
    /// The service whose instances may join by it.
    #[arg(long, value_name = "NAME")]
    service: String,
    /// How long it is good: from 1s to 720h, which is 30 days.
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = ttl)]
    ttl: units::Duration,
    /// How often it may be used: once for each instance that starts.
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    uses: u32,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct List {
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Revoke {
    /// The id of the token, as `token list` shows it.
    id: String,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

impl Token {
    pub(super) async fn run(self, api: &Api, output: &mut Output) -> Result<Exit, CliError> {
        match self.command {
            Command::Create(create) => create.run(api, output).await,
            Command::List(list) => list.run(api, output).await,
            Command::Revoke(revoke) => revoke.run(api, output).await,
        }
    }
}

impl Create {
    async fn run(self, api: &Api, output: &mut Output) -> Result<Exit, CliError> {
        let wanted = NewToken {
            service: self.service,
            ttl: self.ttl,
            uses: self.uses,
        };
        let ask = Ask::post_json("/v1/tokens", &wanted);
        let made: MadeToken = api.json(ask).await?;
        if self.json {
            output.json(&made);
        } else {
            // Nothing else on stdout, so that `$(outrigger token create …)` is the token.
            output.line(&made.token);
            output.hint(&format!(
                "for {}, {}, until {}; id {}",
                made.view.service,
                count(made.view.uses_max as usize, "use"),
                made.view.expires,
                made.view.id
            ));
        }
        Ok(Exit::Done)
    }
}

impl List {
    async fn run(self, api: &Api, output: &mut Output) -> Result<Exit, CliError> {
        let list: TokenList = api.json(Ask::get("/v1/tokens")).await?;
        if self.json {
            output.json(&list);
        } else if list.tokens.is_empty() {
            output.line("there is no token: `outrigger token create --service NAME` makes one");
        } else {
            let rows = list.tokens.iter().map(|token| row(token, output)).collect();
            output.table(
                &["ID", "SERVICE", "STATE", "USES", "EXPIRES", "ROOT", "AUTHOR"],
                rows,
            );
        }
        Ok(Exit::Done)
    }
}

impl Revoke {
    async fn run(self, api: &Api, output: &mut Output) -> Result<Exit, CliError> {
        let ask = Ask::delete(format!("/v1/tokens/{}", escape(&self.id)));
        let revoked: TokenView = api.json(ask).await?;
        if self.json {
            output.json(&revoked);
        } else {
            output.line(format!(
                "{} is revoked; {} joined by it",
                revoked.id, revoked.uses
            ));
        }
        Ok(Exit::Done)
    }
}

/// How long a token is to be good. Days are what people think in here, and no unit: it is said what they are in hours.
fn ttl(text: &str) -> Result<units::Duration, String> {
    text.parse::<units::Duration>()
        .map_err(|why| format!("{why}; days are written in hours, and 720h is the longest"))
}

fn row(token: &TokenView, output: &Output) -> Vec<String> {
    let (tone, word) = match token.state {
        TokenState::Good => (Tone::Good, "good"),
        TokenState::Expired => (Tone::Quiet, "expired"),
        TokenState::UsedUp => (Tone::Quiet, "used-up"),
        TokenState::Revoked => (Tone::Bad, "revoked"),
    };
    vec![
        harmless(&token.id),
        harmless(&token.service),
        output.paint(tone, word),
        format!("{}/{}", token.uses, token.uses_max),
        harmless(&token.expires),
        token.root.to_string(),
        harmless(&token.author),
    ]
}
