//! The harness of the end-to-end tests: everything that stands around the real programs.
//!
//! The two programs run as child processes, as they do for their users; what surrounds them (upstreams, clients,
//! load, DNS servers, a scripted control API) runs inside the test, each on a thread of its own, so that a test
//! that waits for a command never stops the servers that the command needs. HTTP is read and written by [`wire`],
//! a strict reader with no leniency, because the tests judge the bytes. It does not use the crates that the
//! proxy is built from: a fault that both shared would be seen by neither.
//!
//! **Invariant:** every wait is for an event and bounded by [`PATIENCE`]; no test sleeps and hopes.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a harness that cannot go on ends the test at once, with the place and the reason"
)]

pub mod background;
pub mod cli;
pub mod client;
pub mod control_api;
pub mod dig;
pub mod dns;
pub mod dns_scripted;
pub mod dns_servers;
pub mod ends;
pub mod grpc;
pub mod http2;
pub mod load;
pub mod metrics;
pub mod pki;
pub mod program;
pub mod service_file;
pub mod sidecar;
pub mod tls;
pub mod tls_servers;
pub mod upstream;
pub mod wait;
pub mod wire;

pub use cli::outrigger;
pub use client::{Ask, Client};
pub use control_api::ControlApi;
pub use load::{Load, LoadSpec};
pub use pki::{IdentityFiles, Leaf, Pki};
pub use service_file::{ServiceFile, simple};
pub use sidecar::{Sidecar, SidecarSpec};
pub use tls::TlsRelay;
pub use upstream::{Answer, Behaviour, Upstream};
pub use wait::{PATIENCE, eventually, within};
