//! The body of a poll.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| outrigger_control::fuzzing::poll(bytes));
