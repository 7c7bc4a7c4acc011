//! A SPIFFE ID.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| outrigger_proxy::fuzzing::spiffe_id(text));
