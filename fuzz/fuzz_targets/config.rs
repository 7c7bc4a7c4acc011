//! A file of an operator: a service, a mesh, a bootstrap.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| outrigger_proxy::fuzzing::config(text));
