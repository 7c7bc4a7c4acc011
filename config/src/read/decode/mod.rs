//! From the tree to the types of this crate, with every mistake found in one pass.
//!
//! serde stops at the first mistake. So the mistake is noted, the smallest node that carries it is marked as
//! broken, and the tree is decoded again without it: an unknown or ill-valued field is passed by, and a required
//! one that is missing or broken is stood in for by a filler, so that its neighbours are still read. What is
//! decoded from a tree with fillers is looked at by [`super::semantic`] and then thrown away.

mod de;
mod error;
mod scalar;

use serde::Deserialize;

use self::de::De;
use self::error::{DecodeError, Wrong};
use super::node::{Entry, Fault, Node, PROBLEMS_MAX, State, Value, push_field, push_index, shown};
use super::suggest::nearest;

/// How often a tree is decoded: each problem costs one round, and a filler for it at most two more, for itself and for each of
/// the fields around it that cannot be without it, which are three at most.
const ROUNDS_MAX: usize = 8 * PROBLEMS_MAX;

/// Decodes a tree. `kind` says whether a field of that name belongs to the document, and so not to `T`. None means
/// that too little could be read to look at the rest.
pub(super) fn decode<T>(root: &mut Node, kind: bool, faults: &mut Vec<Fault>) -> Option<T>
where
    T: for<'de> Deserialize<'de>,
{
    if root.state != State::Whole {
        return None;
    }
    let skip = kind.then_some("kind");
    for _ in 0..ROUNDS_MAX {
        let error = match T::deserialize(De { node: root, skip }) {
            Ok(decoded) => return Some(decoded),
            Err(error) => error,
        };
        if !repair(root, skip, error, faults) || faults.len() >= PROBLEMS_MAX {
            return None;
        }
    }
    None
}

/// Notes the problem and makes the tree such that the next round does not meet it. False: it cannot be done.
fn repair(root: &mut Node, skip: Option<&'static str>, error: DecodeError, faults: &mut Vec<Fault>) -> bool {
    let DecodeError { wrong, rising } = error;
    let address: Vec<usize> = rising.into_iter().rev().collect();
    let path = path_of(root, &address);
    let Some(node) = descend(root, &address) else {
        return false;
    };
    if node.state == State::Filler {
        return give_up_around(root, &address);
    }
    match wrong {
        Wrong::MissingField(field) => fill(node, field, path, faults),
        Wrong::UnknownField { field, allowed } => {
            node.state = State::Broken;
            let at_root = address.len() == 1;
            let known = allowed.iter().copied().chain(skip.filter(|_| at_root));
            let meant = nearest(&field, known);
            let message = format!(
                "unknown field{}",
                options(meant, skip.filter(|_| at_root), allowed)
            );
            unknown_field(root, &address, meant, path, message)
                .map(|fault| faults.push(fault))
                .is_some()
        }
        Wrong::UnknownVariant { variant, allowed } => {
            node.state = State::Broken;
            let meant = nearest(&variant, allowed.iter().copied());
            let message = format!(
                "`{}` is not known here{}",
                shown(&variant),
                options(meant, None, allowed)
            );
            faults.push(Fault {
                mark: node.mark,
                path,
                message,
            });
            !address.is_empty()
        }
        Wrong::Other(message) => {
            node.state = State::Broken;
            faults.push(Fault {
                mark: node.mark,
                path,
                message,
            });
            !address.is_empty()
        }
    }
}

/// The problem of an unknown field, at its key; the field that was probably meant is excused.
fn unknown_field(
    root: &mut Node,
    address: &[usize],
    meant: Option<&'static str>,
    path: String,
    message: String,
) -> Option<Fault> {
    let (index, above) = address.split_last()?;
    let mapping = descend(root, above)?;
    mapping.excused.extend(meant);
    let mark = mapping.entries().get(*index)?.key_mark;
    Some(Fault { mark, path, message })
}

/// Stands in for a required field; tells that it is missing unless it is there and broken, or is there under a
/// name that is nearly right.
fn fill(mapping: &mut Node, field: &'static str, path: String, faults: &mut Vec<Fault>) -> bool {
    let mark = mapping.mark;
    let excused = mapping.excused.contains(&field);
    let Value::Mapping(entries) = &mut mapping.value else {
        return false;
    };
    let filler = |mark| Node {
        state: State::Filler,
        ..Node::new(
            Value::Scalar {
                text: String::new(),
                plain: true,
            },
            mark,
        )
    };
    match entries.iter().position(|entry| entry.key == field) {
        Some(index) if entries[index].value.state == State::Filler => false,
        // What was written stays readable to those who look for names. It comes last: if it will not do, its neighbours have
        // been read before.
        Some(index) => {
            let mut entry = entries.remove(index);
            entry.value.state = State::Filler;
            entries.push(entry);
            true
        }
        None => {
            if !excused {
                faults.push(Fault {
                    mark,
                    path,
                    message: format!("the field `{field}` is missing"),
                });
            }
            entries.push(Entry {
                key: field.to_owned(),
                key_mark: mark,
                value: filler(mark),
            });
            true
        }
    }
}

/// A filler that will not do as a value takes the field or the list item around it along, and nothing beside that. The
/// problem was told before.
fn give_up_around(root: &mut Node, address: &[usize]) -> bool {
    for length in (1..address.len()).rev() {
        let Some(node) = descend(root, &address[..length]) else {
            return false;
        };
        if node.state == State::Whole {
            node.state = State::Broken;
            return true;
        }
    }
    false
}

/// How many allowed words are listed: no closed set of the language is longer, and nobody reads more.
const LISTED_MAX: usize = 20;

/// `; did you mean …? (allowed: …)`.
pub(super) fn options(meant: Option<&str>, first: Option<&str>, allowed: &[&str]) -> String {
    let meant = meant
        .map(|word| format!("; did you mean `{word}`?"))
        .unwrap_or_default();
    let all: Vec<&str> = first
        .into_iter()
        .chain(allowed.iter().copied())
        .take(LISTED_MAX)
        .collect();
    let more = if allowed.len() > LISTED_MAX { ", …" } else { "" };
    format!("{meant} (allowed: {}{more})", all.join(", "))
}

fn descend<'a>(root: &'a mut Node, address: &[usize]) -> Option<&'a mut Node> {
    address
        .iter()
        .try_fold(root, |node, index| match &mut node.value {
            Value::Sequence(items) => items.get_mut(*index),
            Value::Mapping(entries) => entries.get_mut(*index).map(|entry| &mut entry.value),
            Value::Scalar { .. } => None,
        })
}

fn path_of(root: &Node, address: &[usize]) -> String {
    let mut path = String::new();
    let mut here = Some(root);
    for index in address {
        here = match here.map(|node| &node.value) {
            Some(Value::Sequence(items)) => {
                push_index(&mut path, *index);
                items.get(*index)
            }
            Some(Value::Mapping(entries)) => entries.get(*index).map(|entry| {
                push_field(&mut path, &entry.key);
                &entry.value
            }),
            Some(Value::Scalar { .. }) | None => None,
        };
    }
    path
}
