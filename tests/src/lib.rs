//! The harness and the end-to-end tests of Outrigger.
