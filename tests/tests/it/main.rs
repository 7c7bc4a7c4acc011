//! The end-to-end tests: the real programs, seen from outside.
//!
//! One module for each thing that a user can see. Names are sentences; what is asserted is what the sentence says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on ends at once, with the place and the reason"
)]

mod actions;
mod bad_push;
mod balancing;
mod bootstrap;
mod browsers;
mod ca;
mod chaos;
mod cli;
mod clients;
mod crash;
mod dead_endpoints;
mod discovery;
mod dns;
mod dns_families;
mod dns_hostile;
mod dns_memory;
mod dns_real;
mod dns_reported;
mod dns_sources;
mod dns_starved;
mod dns_strangers;
mod drain;
mod edge_cases;
mod edge_cases_page;
mod ejection;
mod every_failure;
mod examples;
mod exhaustion;
mod expect;
mod faults;
mod framing;
mod gateway;
mod headers;
mod health_checks;
mod hedging;
mod hostile;
mod hostile_http2;
mod hostile_tls;
mod hot_swap;
mod http2_conformance;
mod http2_downgrade;
mod http2_drain;
mod http2_upstream;
mod interim;
mod limits;
mod loops;
mod mirror;
mod mtls;
mod mtls_allow;
mod mtls_expired;
mod mtls_forged;
mod mtls_kept;
mod mtls_refused;
mod mtls_revoked;
mod mtls_rotation;
mod mtls_versions;
mod mtls_withdrawn;
mod names;
mod names_in_a_namespace;
mod notices;
mod observability;
mod other_store;
mod outside;
mod paths;
mod peers;
mod postgres;
mod proxy_protocol;
mod rate_limits;
mod real_servers;
mod retries;
mod retries_conditions;
mod retries_elsewhere;
mod retries_grpc;
mod routing;
mod second_looks;
mod tcp;
mod tidy;
mod timeouts;
mod trailers;
mod twins;
mod workers;
mod workload_api;
