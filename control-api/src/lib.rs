//! The control API and the operator's tool of Outrigger.
//!
//! One way through the house, from the ground up: [`store`] keeps the documents, `secrets` what only its owner may read, [`ca`] is
//! the certificate authority of the mesh, [`push`] is the journey of one
//! push, [`nodes`] remembers who polls and what it answered, [`discovery`] decides what a poll is told,
//! [`server`] is the edge where all of it meets HTTP, [`client`] speaks to that edge, [`demo`] runs all of it
//! with sidecars and a shop to look at, and [`cli`] is what a person
//! types. A module uses only those named before it. `fuzzing` is compiled for tests and fuzz targets only.
//!
//! **Does not** judge a document: `outrigger_config::check` does, and is asked here before anything is stored.

pub mod ca;
pub mod cli;
pub mod client;
mod demo;
pub mod discovery;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod nodes;
pub mod push;
mod secrets;
pub mod server;
pub mod store;
