//! What an endpoint sends by HTTP/1.1.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| outrigger_proxy::fuzzing::answer(bytes));
