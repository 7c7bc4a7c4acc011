//! What operators see: metrics, and one log line for a request.
//!
//! [`metrics`] is the only door to the `prometheus` crate; [`request_log`] gathers the facts of one request and
//! hands them to metrics and log once. Neither knows what a route or an endpoint is: they are fed plain facts.

pub mod metrics;
pub mod request_log;
pub(crate) mod tcp_log;
