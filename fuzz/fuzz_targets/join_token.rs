//! A join token.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| outrigger_control::fuzzing::join_token(text));
