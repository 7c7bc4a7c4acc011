//! `outrigger revoke`: adds certificates or identities to what the `Mesh` document revokes, and pushes it.
//!
//! The document is text that a person wrote: only its `revoked` block is written anew, and what comes of it is read back
//! before it is pushed.

use clap::Args;
use outrigger_config::join::Revoked;
use outrigger_config::{MESH_KEY, Mesh, check, split};
use serde_json::Value;

use super::output::{Output, count};
use super::{CliError, Exit};
use crate::client::{Api, Ask, ClientError};
use crate::push::Outcome;

/// Revoke certificates or identities: the Mesh document names them, and every sidecar is told.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Revoke {
    /// The serial number of a certificate, as `outrigger audit` shows it; may be given again.
    #[arg(long, value_name = "HEX")]
    serial: Vec<String>,
    /// A SPIFFE ID, with all its certificates; may be given again.
    #[arg(long, value_name = "SPIFFE_ID")]
    identity: Vec<String>,
    /// Print what the push did as JSON.
    #[arg(long)]
    json: bool,
}

impl Revoke {
    pub(super) async fn run(self, api: &Api, output: &mut Output) -> Result<Exit, CliError> {
        let path = format!("/v1/services/{MESH_KEY}");
        let (text, version) = match api.json::<Value>(Ask::get(path.clone())).await {
            Ok(stored) => (text_of(&stored, "text")?, Some(text_of(&stored, "version")?)),
            Err(ClientError::Status { status, .. }) if status == http::StatusCode::NOT_FOUND => {
                ("kind: Mesh\n".to_owned(), None)
            }
            Err(error) => return Err(error.into()),
        };
        let serials = self
            .serial
            .iter()
            .map(|serial| serial.replace(':', "").to_ascii_lowercase());
        let new = Revoked {
            serials: serials.collect(),
            identities: self.identity,
        };
        let text = with_revoked(&text, new)?;
        let ask = Ask::put(
            format!("{path}?file=mesh.yaml"),
            "application/yaml",
            text.into_bytes(),
        );
        let outcome: Outcome = match api.json(ask.if_match(version)).await {
            Ok(outcome) => outcome,
            Err(ClientError::Problems(problems)) => {
                output.problems(&problems, &[]);
                return Err(CliError::Sentence("nothing was revoked".to_owned()));
            }
            Err(error) => return Err(error.into()),
        };
        if self.json {
            output.json(&outcome);
        } else if outcome.changed.is_empty() {
            output.line("all of it was revoked already");
        } else {
            output.line(format!(
                "revoked with version {}; {} changed; `outrigger status` shows which sidecars have it",
                outcome.version,
                count(outcome.changed.len(), "document")
            ));
        }
        Ok(Exit::Done)
    }
}

fn text_of(stored: &Value, field: &str) -> Result<String, CliError> {
    let text = stored.get(field).and_then(Value::as_str).map(str::to_owned);
    text.ok_or_else(|| CliError::Sentence(format!("the control API gave a document without `{field}`")))
}

/// The text of a `Mesh` document with these revoked as well.
fn with_revoked(text: &str, new: Revoked) -> Result<String, CliError> {
    let before = read(text)?;
    let mut all = before.revoked.clone().unwrap_or_default();
    let known = all.clone();
    all.serials.extend(new.serials);
    all.identities.extend(new.identities);
    dedup(&mut all.serials);
    dedup(&mut all.identities);
    if all == known {
        return Ok(text.to_owned());
    }
    let block = block(&all);
    let mut result = String::new();
    let (mut inside, mut written) = (false, false);
    for line in text.lines() {
        let at_the_top =
            line.starts_with(|first: char| !first.is_whitespace() && first != '#' && first != '-');
        if at_the_top {
            inside = line.starts_with("revoked:");
            if inside {
                result.push_str(&block);
                written = true;
            }
        }
        if !inside {
            result.push_str(line);
            result.push('\n');
        }
    }
    if !written {
        result.push_str(&block);
    }
    let wanted = Mesh {
        revoked: Some(all),
        ..before
    };
    match read(&result) {
        Ok(after) if after == wanted => Ok(result),
        // What was given may be no serial number or no SPIFFE ID: the control API says so, with its place.
        Err(_) => Ok(result),
        Ok(_) => Err(CliError::Sentence(
            "the Mesh document is written in a way that this cannot change: add to its `revoked` by hand and push it"
                .to_owned(),
        )),
    }
}

fn block(revoked: &Revoked) -> String {
    let mut block = "revoked:\n".to_owned();
    for (key, values) in [("serials", &revoked.serials), ("identities", &revoked.identities)] {
        if values.is_empty() {
            continue;
        }
        block.push_str(&format!("  {key}:\n"));
        for value in values {
            // Quoted: a serial number of digits alone would be read as a number. JSON's strings are YAML's.
            block.push_str(&format!("    - {}\n", Value::from(value.as_str())));
        }
    }
    block
}

fn dedup(values: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    values.retain(|value| seen.insert(value.clone()));
}

fn read(text: &str) -> Result<Mesh, CliError> {
    let documents = split("mesh.yaml", text);
    let config = documents.and_then(|documents| check(&documents));
    config.map(|config| config.mesh).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        CliError::Sentence(problems.join("\n"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serial(serial: &str) -> Revoked {
        Revoked {
            serials: vec![serial.to_owned()],
            identities: Vec::new(),
        }
    }

    #[test]
    fn what_a_person_wrote_stays_but_for_the_block_itself() {
        let text = "# ours\nkind: Mesh\ndefaults: # all\n  timeout: { request: 1s }\n";
        let once = with_revoked(text, serial("12")).unwrap();
        assert_eq!(once, format!("{text}revoked:\n  serials:\n    - \"12\"\n"));
        let identity = Revoked {
            serials: vec!["12".to_owned()],
            identities: vec!["spiffe://a/b".to_owned()],
        };
        let twice = with_revoked(&once, identity).unwrap();
        assert_eq!(twice, format!("{once}  identities:\n    - \"spiffe://a/b\"\n"));
        assert_eq!(with_revoked(&twice, serial("12")).unwrap(), twice);
        let before = "kind: Mesh\nrevoked: { serials: [\"12\"] }\n# after\ntrust_domain: a\n";
        let after = "kind: Mesh\nrevoked:\n  serials:\n    - \"12\"\n    - \"ab\"\ntrust_domain: a\n";
        assert_eq!(with_revoked(before, serial("ab")).unwrap(), after);
    }

    #[test]
    fn a_document_that_cannot_be_changed_as_text_is_left_to_a_person() {
        let error = with_revoked("{ kind: Mesh, trust_domain: a }\n", serial("ab"));
        // Two documents in one text, or none: either way nothing is pushed that says something else.
        assert!(error.is_err() || error.is_ok_and(|text| read(&text).is_err()));
    }
}
