//! The sidecar: the data plane of Outrigger.
//!
//! Floors, from the top; a module imports from lower floors only, which a test keeps:
//!
//! * [`app`] builds every part once, runs them, stops them.
//! * [`apply`] is the journey of one push.
//! * `listener`, `control`, `admin` are the edges: bytes in, config in, operators in.
//! * `request` is the journey of one request.
//! * [`snapshot`] is config as it runs, and the routing table.
//! * [`upstream`] is clusters, endpoints, balancing, discovery, pools.
//! * `stream` is a socket as hyper and h2 are handed it, [`tls`] who is at its two ends, and at that of the control API.
//! * [`telemetry`] is metrics and the access log.
//! * `arriving` is a body that comes in, whichever version of HTTP it comes by.
//! * [`error`], [`drain`], `timer`, `pump`, `http1`, `http2` are the ground: the one table of reasons, how everything stops,
//!   deadlines, HTTP/1.1 to endpoints as bytes, streams as bodies.
//! * [`browsers`] tells requests of web pages from those of tools; beside the ground.
//! * Under it, `frames` looks at the frames of HTTP/2 before `h2` does.
//!
//! `fuzzing` is compiled for tests and fuzz targets only.

mod admin;
pub mod app;
pub mod apply;
mod arriving;
pub mod browsers;
pub mod control;
pub mod drain;
pub mod error;
mod frames;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod http1;
mod http2;
mod interim;
mod listener;
mod names;
mod pump;
mod request;
pub mod snapshot;
mod stream;
pub mod telemetry;
mod timer;
pub mod tls;
pub mod upstream;
