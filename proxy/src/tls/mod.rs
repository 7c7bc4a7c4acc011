//! TLS: the only place that names rustls.

pub mod pin;
