//! Waits for what each connected sidecar says to a new version, and shows it as it comes.
//!
//! **Does not** decide what a sidecar is: the control API's list of nodes does.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_config::{Problem, units};
use serde::Serialize;
use tokio::time::{Instant, timeout};

use super::output::{Output, Tone, harmless};
use super::{CliError, Exit};
use crate::client::{Api, Ask};
use crate::nodes::{NodeList, NodeView};
use crate::server::PushText;

/// What a sidecar said to a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct SidecarAnswer {
    id: String,
    service: String,
    version: String,
    answer: Said,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<Problem>,
}

/// In one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Said {
    Applied,
    Refused,
    NoAnswer,
}

/// The sidecars whose answer is awaited, and those that answered.
#[derive(Debug)]
pub(super) struct Answers {
    /// By id and process: two that share an id by mistake both have to answer.
    awaited: BTreeMap<(String, String), NodeView>,
    answered: BTreeSet<(String, String)>,
    pub(super) given: Vec<SidecarAnswer>,
}

impl Answers {
    /// Those that are connected now, before the push.
    pub(super) async fn expect(api: &Api) -> Result<Self, CliError> {
        let list: NodeList = api.json(Ask::get("/v1/nodes")).await?;
        let connected = list.nodes.into_iter().filter(|node| node.connected);
        Ok(Self {
            awaited: connected.map(|node| (key(&node), node)).collect(),
            answered: BTreeSet::new(),
            given: Vec::new(),
        })
    }

    /// Waits until each has answered to `version`, at most until `within` is over. Whoever has not answered by then,
    /// or when the control API went away, did not.
    pub(super) async fn wait(
        &mut self,
        api: &Api,
        version: &str,
        within: units::Duration,
        mut show: Show<'_>,
    ) -> Result<(), CliError> {
        let heard = self.hear(api, version, within, &mut show).await;
        for (_, node) in std::mem::take(&mut self.awaited) {
            let answer = SidecarAnswer::of(&node, Said::NoAnswer);
            show.answer(&answer);
            self.given.push(answer);
        }
        heard
    }

    /// Takes in answers as they come.
    async fn hear(
        &mut self,
        api: &Api,
        version: &str,
        within: units::Duration,
        show: &mut Show<'_>,
    ) -> Result<(), CliError> {
        let version: u64 = version
            .parse()
            .map_err(|_| CliError::Sentence(format!("version `{version}` is not a number")))?;
        let end = Instant::now() + within.0;
        let of = self.awaited.len();
        let mut after = String::new();
        while !self.awaited.is_empty() {
            show.progress(self.given.len(), of);
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let path = format!("/v1/nodes?hold={}ms{after}", left.as_millis());
            // The server holds no longer than `left`; the rest of the wait is for an answer that is on its way.
            let asked = timeout(left, api.json::<NodeList>(Ask::get(path))).await;
            let Ok(list) = asked else { break };
            let list = list?;
            after = format!("&after={}", list.seen);
            self.follow_restarts(&list);
            for node in &list.nodes {
                if let Some(answer) = self.take(node, version) {
                    show.answer(&answer);
                    self.given.push(answer);
                }
            }
        }
        Ok(())
    }

    /// Whoever was started again meanwhile answers in the place of its earlier run.
    fn follow_restarts(&mut self, list: &NodeList) {
        let listed: BTreeSet<_> = list.nodes.iter().map(key).collect();
        let awaited = self.awaited.keys();
        let over: Vec<_> = awaited.filter(|key| !listed.contains(key)).cloned().collect();
        for old in over {
            let next = list.nodes.iter().find(|node| {
                let next = key(node);
                next.0 == old.0 && !self.awaited.contains_key(&next) && !self.answered.contains(&next)
            });
            if let Some(next) = next {
                self.awaited.remove(&old);
                self.awaited.insert(key(next), next.clone());
            }
        }
    }

    /// The answer of `node` to `version`, if it is awaited and has come.
    fn take(&mut self, node: &NodeView, version: u64) -> Option<SidecarAnswer> {
        if !self.awaited.contains_key(&key(node)) {
            return None;
        }
        let reached = |text: &str| text.parse::<u64>().is_ok_and(|reached| reached >= version);
        let refused = node.refused.as_ref().filter(|refused| reached(&refused.version));
        let mut answer = match refused {
            Some(_) => SidecarAnswer::of(node, Said::Refused),
            None if node.holds_store.is_none() && reached(&node.holds) => {
                SidecarAnswer::of(node, Said::Applied)
            }
            None => return None,
        };
        if let Some(refused) = refused {
            answer.problems.clone_from(&refused.problems);
        }
        self.awaited.remove(&key(node));
        self.answered.insert(key(node));
        Some(answer)
    }

    fn count(&self, said: Said) -> usize {
        self.given.iter().filter(|answer| answer.answer == said).count()
    }

    /// How the program ends: a refusal outweighs silence.
    pub(super) fn exit(&self) -> Exit {
        if self.count(Said::Refused) > 0 {
            Exit::SidecarRefused
        } else if self.count(Said::NoAnswer) > 0 {
            Exit::NoAnswer
        } else {
            Exit::Done
        }
    }

    /// All of it in a sentence.
    pub(super) fn sentence(&self, version: &str, within: units::Duration) -> String {
        if self.given.is_empty() {
            return format!("version {version} is stored; no sidecar is connected, so none had to answer");
        }
        let mut sentence = format!("version {version}: {} applied", self.count(Said::Applied));
        match self.count(Said::Refused) {
            0 => {}
            refused => sentence.push_str(&format!(", {refused} refused and keep what they had")),
        }
        match self.count(Said::NoAnswer) {
            0 => {}
            silent => sentence.push_str(&format!(", {silent} did not answer within {within}")),
        }
        sentence
    }
}

fn key(node: &NodeView) -> (String, String) {
    (node.id.clone(), node.instance.clone())
}

impl SidecarAnswer {
    fn of(node: &NodeView, answer: Said) -> Self {
        Self {
            id: node.id.clone(),
            service: node.service.clone(),
            version: node.version.clone(),
            answer,
            problems: Vec::new(),
        }
    }
}

/// Where answers are shown as they come; nowhere, when a program reads.
#[derive(Debug)]
pub(super) struct Show<'a> {
    pub(super) output: &'a mut Output,
    pub(super) sources: &'a [PushText],
    pub(super) quiet: bool,
}

impl Show<'_> {
    fn progress(&mut self, done: usize, of: usize) {
        if !self.quiet {
            self.output.progress(done, of, "sidecars answered");
        }
    }

    fn answer(&mut self, answer: &SidecarAnswer) {
        if self.quiet {
            return;
        }
        let (tone, word) = match answer.answer {
            Said::Applied => (Tone::Good, "applied"),
            Said::Refused => (Tone::Bad, "refused"),
            Said::NoAnswer => (Tone::Attention, "no answer"),
        };
        let word = self.output.paint(tone, word);
        let beside = format!("{} {}", answer.service, answer.version);
        let who = match beside.trim() {
            "" => answer.id.clone(),
            beside => format!("{} ({beside})", answer.id),
        };
        self.output.line(format!("  {}: {word}", harmless(&who)));
        self.output.problems(&answer.problems, self.sources);
    }
}
