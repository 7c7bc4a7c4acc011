//! What is known of documents that were found good, so that the next check need not read those again that are the same.
//!
//! It holds what a document says, and of its text the places that are judged beside other documents. It judges nothing.

use std::collections::HashMap;
use std::sync::Arc;

use super::Sheet;
use super::node::{Node, Value};
use crate::{Document, Gateway, Kind, Mesh, Service};

/// The fields of a document that are judged beside other documents: who has a name, who has a host, who may call, what a gateway
/// leads to. A field that such a check asks for and that is not here is missed in documents that are not read again; a test has one
/// of each kind of fault between documents.
const BESIDE_OTHERS: [&str; 5] = ["name", "hosts", "allow", "tls", "services"];

/// What is known of the documents of a configuration that was found good, in their order.
#[derive(Clone, Debug, Default)]
pub struct Known(pub(super) Vec<Good>);

/// One document: nothing is wrong with it by itself.
#[derive(Clone, Debug)]
pub(super) struct Good {
    pub(super) said: Said,
    pub(super) root: Arc<Node>,
}

/// What a document says.
#[derive(Clone, Debug)]
pub(super) enum Said {
    Service(Arc<Service>),
    Gateway(Arc<Gateway>),
    /// None if it could not be read, though that it is there was.
    Mesh(Option<Arc<Mesh>>),
}

/// The documents that are known, by their kind and name, and how they were written.
pub(super) type ByName<'a> = HashMap<(Kind, &'a str), (Sheet<'a>, &'a Good)>;

impl Known {
    /// Puts what is known beside the documents that it is known of.
    pub(super) fn of<'a>(&'a self, documents: &'a [Document]) -> ByName<'a> {
        if documents.len() != self.0.len() {
            return HashMap::new();
        }
        let pairs = documents.iter().zip(&self.0);
        pairs
            .map(|(document, good)| {
                (
                    (document.kind, document.name.as_str()),
                    (Sheet::of(document), good),
                )
            })
            .collect()
    }
}

impl Good {
    pub(super) fn new(said: Said, mut root: Node) -> Self {
        if let Value::Mapping(entries) = &mut root.value {
            entries.retain(|entry| BESIDE_OTHERS.contains(&entry.key.as_str()));
            entries.shrink_to_fit();
        }
        let root = Arc::new(root);
        Self { said, root }
    }
}
