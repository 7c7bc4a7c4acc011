//! `outrigger status`: which sidecar holds what, and what any of them refused.

use std::collections::BTreeSet;

use clap::Args;

use super::output::{Output, Tone, harmless};
use super::{CliError, Exit};
use crate::client::{Api, Ask};
use crate::nodes::{NodeList, NodeState, NodeView};

/// Show every sidecar: what it holds, and what it refused.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) async fn run(self, api: &Api, output: &mut Output) -> Result<Exit, CliError> {
        let list: NodeList = api.json(Ask::get("/v1/nodes")).await?;
        if self.json {
            output.json(&list);
            return Ok(Exit::Done);
        }
        let version = output.paint(Tone::Strong, &list.version);
        output.line(format!("version {version} at {}", api.url()));
        if list.nodes.is_empty() {
            output.line("no sidecar has polled in the last 10 minutes");
            return Ok(Exit::Done);
        }
        let mut header = vec!["NODE", "SERVICE", "VERSION", "ZONE", "HOLDS", "STATE"];
        let mut rows: Vec<Vec<String>> = list.nodes.iter().map(|node| row(node, output)).collect();
        let is_secure = api.url().starts_with("https://");
        if is_secure || list.nodes.iter().any(|node| node.identity.is_some()) {
            header.extend(["IDENTITY", "LEFT"]);
            let now = time::OffsetDateTime::now_utc().unix_timestamp();
            // In plaintext nobody proves anything, and nobody has to be told so with every line.
            let is_proved = is_secure || list.nodes.iter().any(|node| node.verified);
            for (row, node) in rows.iter_mut().zip(&list.nodes) {
                row.extend(identity(node, now, is_proved, output));
            }
        }
        output.table(&header, rows);
        if list.nodes.iter().any(|node| node.holds_store.is_some()) {
            output.line(
                "\nwhat a sidecar holds of another store it keeps until this store is pushed to; then it is told all of this one",
            );
        }
        let notes: BTreeSet<&str> = list
            .nodes
            .iter()
            .filter_map(|node| node.note.as_deref())
            .collect();
        for note in notes {
            let note = output.paint(Tone::Attention, harmless(note));
            output.line(format!("\n{note}"));
        }
        for node in list.nodes.iter().filter(|node| !node.notices.is_empty()) {
            let says = output.paint(Tone::Attention, "says");
            output.line(format!("\n{} {says}:", harmless(&node.id)));
            for notice in &node.notices {
                output.line(format!("  {}", harmless(notice)));
            }
        }
        for node in &list.nodes {
            let Some(refused) = &node.refused else { continue };
            let bad = output.paint(Tone::Bad, "refused");
            output.line(format!(
                "\n{} {bad} version {}:",
                harmless(&node.id),
                refused.version
            ));
            output.problems(&refused.problems, &[]);
        }
        Ok(Exit::Done)
    }
}

/// Whom a sidecar shows itself as, and how long its certificate is good still. `now`: seconds since 1970; `is_proved`:
/// whether it is worth a word that this one has proved nothing.
fn identity(node: &NodeView, now: i64, is_proved: bool, output: &Output) -> [String; 2] {
    let mut words = Vec::new();
    if let Some(shown) = &node.identity {
        words.push(harmless(&shown.spiffe_id));
    }
    if node.revoked {
        words.push(output.paint(Tone::Bad, "revoked"));
    }
    if is_proved && !node.verified {
        words.push(output.paint(Tone::Attention, "unverified"));
    }
    if words.is_empty() {
        words.push("-".to_owned());
    }
    let left = node.identity.as_ref().map_or_else(
        || "-".to_owned(),
        |shown| {
            let left = shown.not_after - now;
            let tone = match left {
                ..=0 => Tone::Bad,
                1..LEFT_SCANT => Tone::Attention,
                _ => Tone::Quiet,
            };
            output.paint(tone, left_in_words(left))
        },
    );
    [words.join(" "), left]
}

/// A certificate that should have been renewed by now, if it is one of 24 hours: it is renewed at half its life.
const LEFT_SCANT: i64 = 6 * 3600;

/// Rounded down to its largest unit, but for short lives: `3d`, `11h`, `59m`.
fn left_in_words(seconds: i64) -> String {
    match seconds {
        ..=0 => "expired".to_owned(),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn row(node: &NodeView, output: &Output) -> Vec<String> {
    let tone = match node.state {
        NodeState::InSync => Tone::Good,
        NodeState::Behind => Tone::Attention,
        NodeState::Refused => Tone::Bad,
        NodeState::Gone => Tone::Quiet,
    };
    let state = match node.state {
        NodeState::Gone => format!("gone {}s ago", node.last_seen_seconds),
        NodeState::InSync | NodeState::Behind | NodeState::Refused => node.state.word().to_owned(),
    };
    let or_dash = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            harmless(text)
        }
    };
    let holds = match &node.holds_store {
        Some(_) => format!("{} of another store", harmless(&node.holds)),
        None => or_dash(&node.holds),
    };
    vec![
        harmless(&node.id),
        or_dash(&node.service),
        or_dash(&node.version),
        or_dash(&node.zone),
        holds,
        output.paint(tone, state),
    ]
}

#[cfg(test)]
mod tests {
    use super::left_in_words;

    #[test]
    fn what_is_left_is_told_in_its_largest_unit() {
        let words = [-5, 0, 59, 60, 3599, 86_400, 172_800].map(left_in_words);
        assert_eq!(words, ["expired", "expired", "59s", "1m", "59m", "24h", "2d"]);
    }
}
