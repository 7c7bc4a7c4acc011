//! The end-to-end tests: the real programs, seen from outside.
//!
//! One module for each thing that a user can see. Names are sentences; what is asserted is what the sentence says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on ends at once, with the place and the reason"
)]

mod bad_push;
mod bootstrap;
mod cli;
mod clients;
mod crash;
mod dead_endpoints;
mod discovery;
mod dns;
mod drain;
mod examples;
mod headers;
mod hedging;
mod hostile;
mod hot_swap;
mod observability;
mod other_store;
mod retries;
mod retries_conditions;
mod retries_elsewhere;
mod retries_grpc;
mod routing;
mod second_looks;
mod tidy;
mod timeouts;
mod twins;
