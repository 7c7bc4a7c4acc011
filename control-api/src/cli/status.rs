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
        let header = ["NODE", "SERVICE", "VERSION", "ZONE", "HOLDS", "STATE"];
        let rows = list.nodes.iter().map(|node| row(node, output)).collect();
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
