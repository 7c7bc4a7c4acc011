//! `outrigger revoke`: adds certificates or identities to what the `Mesh` document revokes, and pushes it.
//!
//! The document is text that a person wrote: only its `revoked` block is written anew, and what comes of it is read back
//! before it is pushed.

use std::collections::HashSet;

use clap::Args;
use outrigger_config::identity::SpiffeId;
use outrigger_config::join::{Revoked, service_of};
use outrigger_config::{MESH_KEY, Mesh, check, split};
use serde_json::Value;

use super::ca::certificates;
use super::output::{Output, count, harmless};
use super::{CliError, Exit};
use crate::ca::certificates::{CertificateView, Which};
use crate::ca::revoked::digits;
use crate::ca::rotation::Status;
use crate::ca::tokens::TokenView;
use crate::client::{Api, Ask, ClientError, escape};
use crate::push::Outcome;

/// Revoke certificates or identities: the Mesh document names them, and every sidecar is told.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Revoke {
    /// The serial number of a certificate, as `outrigger audit` shows it, with all that it was renewed from or to; may be
    /// given again.
    #[arg(long, value_name = "HEX", required_unless_present_any = ["token", "identity"])]
    serial: Vec<String>,
    /// The id of a join token: it is taken back, and all that came of it is revoked; may be given again.
    #[arg(long, value_name = "ID")]
    token: Vec<String>,
    /// A SPIFFE ID, with all its certificates; may be given again.
    #[arg(long, value_name = "SPIFFE_ID")]
    identity: Vec<String>,
    /// Trust it again: take it out of what is revoked. A token stays taken back: make a new one.
    #[arg(long)]
    undo: bool,
    /// Print what the push did as JSON.
    #[arg(long)]
    json: bool,
}

impl Revoke {
    pub(super) async fn run(self, api: &Api, output: &mut Output) -> Result<Exit, CliError> {
        let edit = if self.undo { Edit::Undo } else { Edit::Revoke };
        let Some(mut outcome) = self.once(api, (edit, true), output).await? else {
            return Err(CliError::Sentence("nothing was changed".to_owned()));
        };
        // What was renewed between the look and the push is found now: past the push nothing of it is renewed.
        let is_looked_up = !self.serial.is_empty() || !self.token.is_empty();
        if !self.undo
            && is_looked_up
            && let Some(rest) = self
                .once(api, (edit, false), output)
                .await?
                .filter(|rest| !rest.changed.is_empty())
        {
            outcome = rest;
        }
        if self.json {
            output.json(&outcome);
        } else if outcome.changed.is_empty() {
            output.line(match edit {
                Edit::Revoke => "there is nothing to revoke that is not revoked already",
                Edit::Undo => "none of it is revoked",
            });
        } else {
            let done = match edit {
                Edit::Revoke => "revoked",
                Edit::Undo => "trusted again",
            };
            output.line(format!(
                "{done} with version {}; {} changed; `outrigger status` shows which sidecars have it",
                outcome.version,
                count(outcome.changed.len(), "document")
            ));
        }
        Ok(Exit::Done)
    }
}

impl Revoke {
    /// Looks at what is meant and pushes it. Nothing, where it was refused, which has been told.
    async fn once(
        &self,
        api: &Api,
        (edit, first): (Edit, bool),
        output: &mut Output,
    ) -> Result<Option<Outcome>, CliError> {
        let mut unknown = Vec::new();
        let serials = self.serials(api, &mut unknown).await?;
        if first && !self.undo {
            self.hold_identities(api, &mut unknown).await?;
        }
        let path = format!("/v1/services/{MESH_KEY}");
        let (text, version) = match api.json::<Value>(Ask::get(path.clone())).await {
            Ok(stored) => (text_of(&stored, "text")?, Some(text_of(&stored, "version")?)),
            Err(ClientError::Status { status, .. }) if status == http::StatusCode::NOT_FOUND => {
                ("kind: Mesh\n".to_owned(), None)
            }
            Err(error) => return Err(error.into()),
        };
        let meant = Revoked {
            serials,
            identities: self.identity.clone(),
        };
        let text = with_revoked(&text, meant, edit)?;
        let ask = Ask::put(
            format!("{path}?file=mesh.yaml&restore={}", u8::from(self.undo)),
            "application/yaml",
            text.into_bytes(),
        );
        match api.json(ask.if_match(version)).await {
            Ok(outcome) => {
                // Only now is it so.
                for unknown in unknown.iter().filter(|_| first && !self.undo && !self.json) {
                    output.line(format!("{unknown}; it is denied all the same"));
                }
                Ok(Some(outcome))
            }
            Err(ClientError::Problems(problems)) => {
                output.problems(&problems, &[]);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The serial numbers that are meant: those that were given, and of each the certificates that came of the same join;
    /// those that came of the tokens, which are taken back first, so that none is added meanwhile.
    /// Says in `unknown` what no certificate is found by.
    async fn serials(&self, api: &Api, unknown: &mut Vec<String>) -> Result<Vec<String>, CliError> {
        let mut all = Vec::new();
        for serial in &self.serial {
            let serial = serial.replace(':', "").to_ascii_lowercase();
            let which = Which {
                serial: Some(serial.clone()),
                ..Which::default()
            };
            let found = came_of(api, &which).await?;
            if found.is_empty() {
                unknown.push(format!(
                    "no certificate that is alive has the serial number {}",
                    harmless(&serial)
                ));
            }
            all.push(serial);
            all.extend(found);
        }
        for id in &self.token {
            let id = if self.undo {
                id.clone()
            } else {
                let taken_back: TokenView = api
                    .json(Ask::delete(format!("/v1/tokens/{}", escape(id))))
                    .await?;
                taken_back.id
            };
            let which = Which {
                token: Some(id),
                ..Which::default()
            };
            all.extend(came_of(api, &which).await?);
        }
        Ok(all)
    }
}

impl Revoke {
    /// Refuses identities that nobody of the mesh can have, and says in `unknown` which ones nobody has now.
    async fn hold_identities(&self, api: &Api, unknown: &mut Vec<String>) -> Result<(), CliError> {
        if self.identity.is_empty() {
            return Ok(());
        }
        let ca: Status = api.json(Ask::get("/v1/ca")).await?;
        for identity in &self.identity {
            // What is no SPIFFE ID at all is refused with the push, with what one looks like.
            let Ok(id) = SpiffeId::parse(identity) else {
                continue;
            };
            if id.trust_domain() != ca.trust_domain {
                return Err(CliError::Sentence(format!(
                    "`{}` can be nobody: it is of the trust domain `{}`, and the mesh's is `{}`; expected spiffe://{}/…, and \
                     nothing was changed",
                    harmless(identity),
                    id.trust_domain(),
                    harmless(&ca.trust_domain),
                    harmless(&ca.trust_domain)
                )));
            }
            let which = Which {
                service: service_of(identity, &ca.trust_domain).map(str::to_owned),
                ..Which::default()
            };
            let is_held = which.service.is_some() && certificates(api, &which).await?.total > 0;
            if !is_held {
                unknown.push(format!(
                    "no certificate of this CA that is alive has the identity {}",
                    harmless(identity)
                ));
            }
        }
        Ok(())
    }
}

/// The serial numbers of these certificates and of those that their bearers joined with: the CA renews nothing that came
/// of a revoked one, so that who renews at this moment is not let off.
async fn came_of(api: &Api, which: &Which) -> Result<Vec<String>, CliError> {
    let list = certificates(api, which).await?;
    if list.total > list.certificates.len() {
        return Err(CliError::Sentence(format!(
            "{} certificates are meant, more than can be revoked one by one: revoke the identity with --identity",
            list.total
        )));
    }
    let both = |found: CertificateView| [found.joined, found.serial];
    Ok(list.certificates.into_iter().flat_map(both).collect())
}

fn text_of(stored: &Value, field: &str) -> Result<String, CliError> {
    let text = stored.get(field).and_then(Value::as_str).map(str::to_owned);
    text.ok_or_else(|| CliError::Sentence(format!("the control API gave a document without `{field}`")))
}

/// What is done to what is revoked.
#[derive(Clone, Copy, Debug)]
enum Edit {
    Revoke,
    Undo,
}

/// The text of a `Mesh` document with these revoked as well, or no longer.
fn with_revoked(text: &str, meant: Revoked, edit: Edit) -> Result<String, CliError> {
    let before = read(text)?;
    let mut all = before.revoked.clone().unwrap_or_default();
    let known = all.clone();
    match edit {
        Edit::Revoke => {
            all.serials.extend(meant.serials);
            all.identities.extend(meant.identities);
            dedup(&mut all.serials, digits);
            dedup(&mut all.identities, str::to_owned);
        }
        Edit::Undo => {
            let meant_serials: HashSet<String> = meant.serials.iter().map(|serial| digits(serial)).collect();
            all.serials
                .retain(|serial| !meant_serials.contains(&digits(serial)));
            all.identities
                .retain(|identity| !meant.identities.contains(identity));
        }
    }
    if all == known {
        return Ok(text.to_owned());
    }
    let is_empty = all == Revoked::default();
    let block = if is_empty { String::new() } else { block(&all) };
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
        // A comment at the margin belongs to what follows at least as often as to the block.
        if !inside || line.starts_with('#') {
            result.push_str(line);
            result.push('\n');
        }
    }
    if !written {
        result.push_str(&block);
    }
    let wanted = Mesh {
        revoked: (!is_empty).then_some(all),
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

/// Keeps the first of those that have one form.
fn dedup(values: &mut Vec<String>, form: impl Fn(&str) -> String) {
    let mut seen = HashSet::new();
    values.retain(|value| seen.insert(form(value)));
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
        let once = with_revoked(text, serial("12"), Edit::Revoke).unwrap();
        assert_eq!(once, format!("{text}revoked:\n  serials:\n    - \"12\"\n"));
        let identity = Revoked {
            serials: vec!["12".to_owned()],
            identities: vec!["spiffe://a/b".to_owned()],
        };
        let twice = with_revoked(&once, identity, Edit::Revoke).unwrap();
        assert_eq!(twice, format!("{once}  identities:\n    - \"spiffe://a/b\"\n"));
        assert_eq!(with_revoked(&twice, serial("12"), Edit::Revoke).unwrap(), twice);
        let before = "kind: Mesh\nrevoked: { serials: [\"12\"] }\n# after\ntrust_domain: a\n";
        let after =
            "kind: Mesh\nrevoked:\n  serials:\n    - \"12\"\n    - \"ab\"\n# after\ntrust_domain: a\n";
        assert_eq!(with_revoked(before, serial("ab"), Edit::Revoke).unwrap(), after);
    }

    #[test]
    fn what_is_taken_back_leaves_the_rest_and_at_the_end_nothing() {
        let text = "kind: Mesh\nrevoked:\n  serials:\n    - \"12\"\n    - \"ab\"\n# after\n";
        let once = with_revoked(text, serial("12"), Edit::Undo).unwrap();
        assert_eq!(once, "kind: Mesh\nrevoked:\n  serials:\n    - \"ab\"\n# after\n");
        assert_eq!(with_revoked(&once, serial("12"), Edit::Undo).unwrap(), once);
        // With zeros before it, it is the same number.
        assert_eq!(with_revoked(&once, serial("00ab"), Edit::Revoke).unwrap(), once);
        let zeros = once.replace("\"ab", "\"00ab");
        let none = with_revoked(&zeros, serial("0ab"), Edit::Undo).unwrap();
        assert_eq!(none, "kind: Mesh\n# after\n");
        let none = with_revoked(&once, serial("ab"), Edit::Undo).unwrap();
        assert_eq!(none, "kind: Mesh\n# after\n");
    }

    #[test]
    fn a_document_that_cannot_be_changed_as_text_is_left_to_a_person() {
        let error = with_revoked("{ kind: Mesh, trust_domain: a }\n", serial("ab"), Edit::Revoke);
        // Two documents in one text, or none: either way nothing is pushed that says something else.
        assert!(error.is_err() || error.is_ok_and(|text| read(&text).is_err()));
    }
}
