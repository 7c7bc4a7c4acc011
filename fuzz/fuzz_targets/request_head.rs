//! The head of a request: version, method and target in a line, then a field in each.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| outrigger_proxy::fuzzing::request_head(bytes));
