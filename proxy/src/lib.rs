//! The sidecar: the data plane of Outrigger.
