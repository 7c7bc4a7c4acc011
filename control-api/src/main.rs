//! The program `outrigger`: the control API and the operator's tool. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    outrigger_control::cli::run()
}
