//! What the types cannot say: whether names are names, references lead somewhere, and numbers make sense together.
//!
//! Each check looks at the decoded value for what it means and at the tree for where it stands. A value that was
//! refused in decoding is in the tree as broken or as a filler: no check speaks of it, so that one mistake is one
//! problem.

mod actions;
mod bootstrap;
mod discover;
mod dns;
mod endpoints;
mod gateway;
mod hosts;
mod identity;
mod names;
mod outside;
mod policies;
mod revoked;
mod routes;
mod service;
mod traffic;

pub(super) use self::bootstrap::{bootstrap, bootstrap_alone};
pub(super) use self::gateway::{Exposures, gateway};
pub(super) use self::hosts::Hosts;
pub(super) use self::identity::Callers;
pub use self::names::service_name;
pub(super) use self::policies::mesh;
pub(super) use self::service::service;

use super::node::{Fault, Mark, Node, State, Value, push_field, push_index};

/// A node and its path.
#[derive(Clone, Debug)]
pub(super) struct At<'a> {
    pub(super) node: &'a Node,
    pub(super) path: String,
}

impl<'a> At<'a> {
    pub(super) const fn root(node: &'a Node) -> Self {
        Self {
            node,
            path: String::new(),
        }
    }

    /// The field of that name, if it was read.
    pub(super) fn field(&self, key: &str) -> Option<Self> {
        let entry = self.node.get(key)?;
        let mut path = self.path.clone();
        push_field(&mut path, key);
        (entry.value.state == State::Whole).then_some(Self {
            node: &entry.value,
            path,
        })
    }

    /// Whether it is a list.
    pub(super) const fn is_list(&self) -> bool {
        matches!(self.node.value, Value::Sequence(_))
    }

    /// The items that were read, in the order in which they were decoded.
    pub(super) fn items(&self) -> impl Iterator<Item = Self> {
        let read = self
            .node
            .items()
            .iter()
            .enumerate()
            .filter(|(_, item)| item.state == State::Whole);
        read.map(|(index, node)| {
            let mut path = self.path.clone();
            push_index(&mut path, index);
            Self { node, path }
        })
    }

    /// The items of a field that were read; none if the field was not.
    pub(super) fn items_of(&self, key: &str) -> Vec<Self> {
        self.field(key)
            .map(|list| list.items().collect())
            .unwrap_or_default()
    }

    /// How many of these fields the author gave, whether they could be read or not.
    pub(super) fn given(&self, keys: &[&str]) -> usize {
        keys.iter()
            .filter(|key| {
                let written = self
                    .node
                    .get(key)
                    .is_some_and(|entry| entry.value.mark != self.node.mark);
                written || self.node.excused.contains(key)
            })
            .count()
    }

    /// Whether something in this mapping was refused, so that what is not there may only have been misspelt.
    pub(super) fn is_damaged(&self) -> bool {
        self.node
            .entries()
            .iter()
            .any(|entry| entry.value.state != State::Whole)
    }

    /// Whether everything below was read.
    pub(super) fn is_whole(&self) -> bool {
        whole(self.node)
    }

    pub(super) fn fault(&self, message: impl Into<String>) -> Fault {
        Fault {
            mark: self.node.mark,
            path: self.path.clone(),
            message: message.into(),
        }
    }

    pub(super) const fn mark(&self) -> Mark {
        self.node.mark
    }
}

fn whole(node: &Node) -> bool {
    node.state == State::Whole
        && node.items().iter().all(whole)
        && node.entries().iter().all(|entry| whole(&entry.value))
}

/// Demands exactly one of several fields.
fn exactly_one(at: &At<'_>, keys: &[&str], faults: &mut Vec<Fault>) {
    match at.given(keys) {
        1 => {}
        0 if at.is_damaged() => {}
        0 => faults.push(at.fault(format!("nothing is said here; give one of {}", keys.join(", ")))),
        _ => {
            let given: Vec<String> = keys
                .iter()
                .filter(|key| at.given(&[key]) == 1)
                .map(|key| format!("`{key}`"))
                .collect();
            faults.push(at.fault(format!(
                "{} are given together; exactly one of {} is allowed",
                given.join(" and "),
                keys.join(", ")
            )));
        }
    }
}
