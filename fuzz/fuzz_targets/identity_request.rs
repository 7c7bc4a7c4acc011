//! The body of a request for a certificate.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| outrigger_control::fuzzing::identity_request(bytes));
