//! The words of Outrigger: what a person may write and what two programs say to each other.
//!
//! Holds the service file, the mesh file, the proxy's bootstrap, the discovery messages, their units and their
//! defaults, and the reading of YAML into them with every problem placed by file, line, column and path. It does
//! not know sockets, HTTP or TLS: whatever needs one of those belongs to a crate above.
//!
//! **Invariant:** [`check`] is the only judge of what is valid. The operator's tool, the control API and the
//! sidecar all call it, so a file means the same to the three of them and is refused in the same words.

pub mod actions;
pub mod bootstrap;
mod bounded;
pub mod discover;
pub mod discovery;
pub mod endpoints;
pub mod gateway;
pub mod identity;
pub mod join;
pub mod mesh;
pub mod names;
pub mod outside;
pub mod pattern;
pub mod problem;
pub mod read;
pub mod retry;
pub mod schema;
pub mod service;
pub mod traffic;
pub mod units;

pub use bootstrap::Bootstrap;
pub use gateway::Gateway;
pub use mesh::Mesh;
pub use problem::Problem;
pub use read::{
    Known, check, check_after, check_bootstrap, check_within, is_bootstrap, read_bootstrap, split,
};
pub use service::Service;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What a document is about: the value of its `kind` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// One service: where it lives, how it is called, how it is released.
    Service,
    /// What holds for every service of the mesh. There is at most one.
    Mesh,
    /// Hosts that are served to callers outside of the mesh.
    Gateway,
}

/// One YAML document as its author wrote it, comments included, and where it was written.
///
/// Documents travel and are stored as text, so that a problem that a sidecar finds is placed in the author's own
/// file, and `outrigger get` gives back what was pushed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// What it is about.
    pub kind: Kind,
    /// The service's name; `mesh` for the [`Mesh`] document; the name of a [`Gateway`] with `@` before it.
    pub name: String,
    /// The file it came from, as the author named it.
    pub file: String,
    /// The line of `file`, counted from 1, that is the first line of `text`.
    pub line: usize,
    /// The text of this document alone.
    pub text: String,
}

impl Document {
    /// The name under which the store, the discovery messages and the person know this document: the service's
    /// name, or [`MESH_KEY`] or the `@` name of a gateway, which no service can bear.
    pub fn key(&self) -> &str {
        match self.kind {
            Kind::Service | Kind::Gateway => &self.name,
            Kind::Mesh => MESH_KEY,
        }
    }
}

/// The key of the one `Mesh` document. A service name is a DNS label and so cannot begin with `@`;
/// no gateway may be called `mesh`.
pub const MESH_KEY: &str = "@mesh";

/// Everything that was said, decoded and checked: plain data, ready to be compiled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// What holds for every service.
    pub mesh: Mesh,
    /// The services, in the order of their names.
    pub services: Vec<Arc<Service>>,
    /// The gateways, in the order of their names.
    pub gateways: Vec<Gateway>,
}
