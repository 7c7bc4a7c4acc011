//! A signing request in PEM.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| outrigger_control::fuzzing::signing_request(text));
