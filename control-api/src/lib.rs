//! The control API and the operator's tool of Outrigger.
