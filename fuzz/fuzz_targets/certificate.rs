//! A caller's certificate, in DER, and what the application is told of it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| outrigger_proxy::fuzzing::certificate(bytes));
