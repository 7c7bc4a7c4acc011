//! The first bytes of a connection.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| outrigger_proxy::fuzzing::opening(bytes));
